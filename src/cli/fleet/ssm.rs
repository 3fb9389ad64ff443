//! The way to a platform's instances through AWS Systems Manager, from what `doe.toml` says.

use std::time::Duration;

use super::connect::{GRACE, file, root_of};
use crate::error::{Error, Kind, Result};
use crate::exec::HostSpec;
use crate::exec::remote::RemoteExecutor;
use crate::plan::model::{Platform, Workspace};

/// Connects to the needed hosts.
#[cfg(feature = "aws")]
pub(super) async fn connect(
    workspace: &Workspace,
    platform: &Platform,
    needed: &[HostSpec],
) -> Result<RemoteExecutor> {
    use crate::exec::remote::RemoteOptions;
    use crate::exec::ssm::{self, Named, SsmOptions};
    use crate::plan::model::SsmTable;
    let SsmTable {
        region,
        endpoint,
        s3_endpoint,
        profile,
        credentials,
        bucket,
        tag,
        document,
        root,
        patience_s,
        path: _,
        doe: _,
    } = &platform.ssm;
    // The plan was checked: there is a bucket, and something that tells every instance.
    let missing = |what: &str| Error::new(Kind::Bug, "missing-key", format!("there is no {what}"));
    let bucket = bucket.as_ref().ok_or_else(|| missing("bucket"))?;
    let mut named = Vec::new();
    for host in platform.hosts.values() {
        let by_tag = tag.as_ref().map(|key| Named::Tag {
            key: key.clone(),
            value: host.name.clone(),
        });
        let name = host.instance.clone().map(Named::Id).or(by_tag);
        named.push((host.name.clone(), name.ok_or_else(|| missing("instance"))?));
    }
    let mut options = SsmOptions {
        region: region.clone(),
        endpoint: endpoint.clone(),
        s3_endpoint: s3_endpoint.clone(),
        profile: profile.clone(),
        credentials: credentials.as_ref().map(|path| file(workspace, path)),
        prefix: bucket.prefix.clone(),
        ..SsmOptions::new(
            bucket.bucket.clone(),
            workspace.state_dir.join("ssm").join("intents"),
        )
    };
    if let Some(document) = document {
        options.document.clone_from(document);
    }
    let remote = RemoteOptions {
        root: root_of(workspace, root)?,
        patience: Duration::try_from_secs_f64(*patience_s).unwrap_or(Duration::MAX),
        grace: GRACE,
    };
    ssm::connect(&options, &named, &remote, needed).await
}

/// Says what is missing.
#[cfg(not(feature = "aws"))]
pub(super) async fn connect(
    _workspace: &Workspace,
    platform: &Platform,
    _needed: &[HostSpec],
) -> Result<RemoteExecutor> {
    let _ = (Duration::ZERO, GRACE, file, root_of);
    Err(Error::new(
        Kind::Usage,
        "no-aws",
        format!(
            "platform `{}` needs AWS, and this doe was built without it",
            platform.name
        ),
    )
    .hint("build it with the feature `aws`, which is on by default"))
}
