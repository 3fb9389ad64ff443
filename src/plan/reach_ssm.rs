//! The table `ssm` of a platform: how its instances are reached through AWS Systems Manager. It
//! holds no credentials, and there is no key for any.

use doe_cache::remote::{Place, Target};

use super::model::{Platform, SsmTable};
use super::reach::{path, root, words};
use crate::error::{Diagnostic, Site};
use crate::source::Table;

type Diags = Vec<Diagnostic>;

/// Reads `ssm = { … }` over what is known.
pub(super) fn ssm(ssm: &mut SsmTable, mut table: Table<'_>, diags: &mut Diags) {
    let places = [
        ("region", &mut ssm.region),
        ("profile", &mut ssm.profile),
        ("credentials", &mut ssm.credentials),
        ("tag", &mut ssm.tag),
        ("document", &mut ssm.document),
        ("doe", &mut ssm.doe),
    ];
    words(places, &mut table, diags);
    for (key, place) in [
        ("endpoint", &mut ssm.endpoint),
        ("s3_endpoint", &mut ssm.s3_endpoint),
    ] {
        if let Some(text) = table.opt_str(key, diags) {
            match Target::check_endpoint(&text.text) {
                Ok(()) => *place = Some(text.text),
                Err(error) => diags
                    .push(Diagnostic::error("bad-endpoint", error.to_string()).at(text.site, "")),
            }
        }
    }
    if let Some(text) = table.opt_str("bucket", diags) {
        match text.text.parse::<Place>() {
            Ok(place) => ssm.bucket = Some(place),
            Err(_) => diags.push(
                Diagnostic::error(
                    "bad-bucket",
                    format!("`{}` is no bucket", shown(&text.text)),
                )
                .at(text.site, ""),
            ),
        }
    }
    if let Some(patience) = table.opt_duration("patience", diags) {
        ssm.patience_s = patience.value;
    }
    root(&mut ssm.root, &mut table, diags);
    path(&mut ssm.path, &mut table, diags);
    table.remaining(diags, "of `ssm`");
}

/// A value without what may be a secret in front of an `@`.
fn shown(text: &str) -> &str {
    text.rsplit('@').next().unwrap_or(text)
}

/// What an executor over Systems Manager cannot do without. `site` is the platform's name.
pub(super) fn check(platform: &Platform, site: &Site, diags: &mut Diags) {
    if platform.executor != "ssm" {
        return;
    }
    let missing = |what: String, hint: String| {
        Diagnostic::error("missing-key", what)
            .at(site.clone(), "")
            .hint(hint)
    };
    let name = &platform.name;
    if platform.ssm.bucket.is_none() {
        diags.push(missing(
            format!("platform `{name}` has no bucket: results and files go through one"),
            "add `ssm = { bucket = \"s3://BUCKET/PREFIX\" }`".into(),
        ));
    }
    if platform.ssm.tag.is_none() {
        for host in platform.hosts.values().filter(|h| h.instance.is_none()) {
            diags.push(missing(
                format!("nothing tells the instance of host `{}`", host.name),
                format!("add `instance = \"i-...\"` to [platform.{name}.host.\"{}\"], or `tag = \"KEY\"` to `ssm`: the tag whose value is the host's name", host.name),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::platform;

    fn load(text: &str) -> (super::Platform, Vec<String>) {
        let (mut platforms, diags) = platform::tests::load(text);
        let found = diags.iter().map(|d| format!("{} {}", d.code, d.message));
        (platforms.remove("aws").unwrap(), found.collect())
    }

    #[test]
    fn instances_are_told_by_id_or_by_tag() {
        let (platform, found) = load(
            "[platform.aws]\nexecutor = \"ssm\"\n\
             ssm = { region = \"eu-central-1\", bucket = \"s3://lab/doe\", tag = \"doe\", patience = \"2m\" }\n\
             [platform.aws.host.\"gpu[1-2]\"]\naddress = \"10.0.0.[1-2]\"\n\
             [platform.aws.host.gpu3]\ninstance = \"i-0123456789abcdef0\"\n",
        );
        assert!(found.is_empty(), "{found:?}");
        let bucket = platform.ssm.bucket.unwrap();
        assert_eq!(
            (bucket.bucket.as_str(), bucket.prefix.as_str()),
            ("lab", "doe/")
        );
        assert_eq!(platform.ssm.patience_s, 120.0);
        let instance = platform.hosts["gpu3"].instance.as_deref();
        assert_eq!(instance, Some("i-0123456789abcdef0"));
        assert_eq!(platform.hosts["gpu1"].instance, None);
    }

    #[test]
    fn what_is_missing_or_wrong_is_told() {
        let (_, found) = load(
            "[platform.aws]\nexecutor = \"ssm\"\nssm = { endpoint = \"localhost:1\", secret = \"x\" }\n\
             [platform.aws.host.gpu1]\ngpus = 1\n",
        );
        for expected in [
            "bad-endpoint the endpoint must begin with",
            "unknown-key",
            "missing-key platform `aws` has no bucket",
            "missing-key nothing tells the instance of host `gpu1`",
        ] {
            let told = found.iter().any(|line| line.starts_with(expected));
            assert!(told, "{expected}: {found:?}");
        }
        let (_, found) = load(
            "[platform.aws]\nexecutor = \"ssm\"\nssm = { bucket = \"lab\", tag = \"a b\" }\n\
             [platform.aws.host.gpu1]\ninstance = \"-x\"\n",
        );
        assert!(
            found.iter().any(|line| line.starts_with("bad-bucket")),
            "{found:?}"
        );
        assert_eq!(
            found
                .iter()
                .filter(|line| line.starts_with("bad-value"))
                .count(),
            2,
            "{found:?}"
        );
    }
}
