//! Runs scripts on instances that are reached through AWS Systems Manager: no port is open there
//! and no key is theirs. Commands go as `AWS-RunShellScript`, everything that comes back and
//! every file goes through a bucket. The service has no token of ours but a command's comment:
//! what is submitted is written down first, and on the host a token is claimed once.

mod api;
mod bucket;
mod carry;
mod intents;
mod line;
mod link;
mod pace;
mod script;
mod verdict;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::meta::region::RegionProviderChain;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_smithy_http_client::tls;
use tokio::sync::Semaphore;

use self::api::Api;
use self::bucket::Bucket;
use self::intents::Intents;
use super::HostSpec;
use super::remote::call::Broken;
use super::remote::{RemoteExecutor, RemoteOptions};
use crate::error::{Error, Kind, Result};

const NAME: &str = "ssm";
/// Commands on one instance at a time. An agent has five workers for them by default.
const SLOTS: usize = 5;
/// Not delivered by then, a command never begins.
const DELIVERY: Duration = Duration::from_secs(60);
/// Time to make a connection, and for an answer to begin.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);

/// Where things are.
#[derive(Debug, Clone)]
pub struct SsmOptions {
    /// Region; else that of the environment or the profile.
    pub region: Option<String>,
    /// Another server than AWS for Systems Manager.
    pub endpoint: Option<String>,
    /// Another server than AWS for S3.
    pub s3_endpoint: Option<String>,
    /// Profile whose credentials are taken, when the environment has none.
    pub profile: Option<String>,
    /// File with profiles, when it is not the usual one.
    pub credentials: Option<PathBuf>,
    /// Bucket.
    pub bucket: String,
    /// Beginning of all names in it: empty, or with a slash at its end.
    pub prefix: String,
    /// Document that runs a shell script.
    pub document: String,
    /// Folder of this machine for what is about to be submitted.
    pub intents: PathBuf,
    /// Longest wait for an answer of the service.
    pub answer: Duration,
}

impl SsmOptions {
    /// The usual ones.
    pub fn new(bucket: String, intents: PathBuf) -> Self {
        Self {
            region: None,
            endpoint: None,
            s3_endpoint: None,
            profile: None,
            credentials: None,
            bucket,
            prefix: String::new(),
            document: "AWS-RunShellScript".into(),
            intents,
            answer: ANSWER,
        }
    }
}

/// What tells the instance of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Its id.
    Id(String),
    /// A tag that it bears.
    Tag {
        /// Name of the tag.
        key: String,
        /// Its value.
        value: String,
    },
}

#[derive(Debug)]
struct Instance {
    id: String,
    slots: Semaphore,
}

/// The way to instances.
#[derive(Debug)]
pub struct Ssm {
    api: Arc<Api>,
    bucket: Bucket,
    intents: Intents,
    instances: HashMap<String, Instance>,
    /// Tokens of starts that may have been taken although nobody said so.
    doubted: Mutex<HashSet<String>>,
    document: String,
    /// How long a command waits for its host.
    delivery: Duration,
    /// What an answer may take longer than the command itself.
    slack: Duration,
}

/// Finds the instances and puts the host program on each.
///
/// # Errors
/// `Infra`, when there is no such instance or it does not answer; when the service refuses us.
pub async fn connect(
    options: &SsmOptions,
    named: &[(String, Named)],
    remote: &RemoteOptions,
    hosts: &[HostSpec],
) -> Result<RemoteExecutor> {
    let shared = load(options).await;
    // Other servers than AWS have no name for each bucket.
    let elsewhere = options.s3_endpoint.is_some()
        || shared.endpoint_url().is_some()
        || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
    let mut s3 = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(elsewhere)
        .retry_config(RetryConfig::standard().with_max_attempts(4))
        // Files are held against their names, which are digests.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    if let Some(endpoint) = &options.s3_endpoint {
        s3 = s3.endpoint_url(endpoint);
    }
    let mut ssm = aws_sdk_ssm::config::Builder::from(&shared)
        // What may be tried again differs from request to request.
        .retry_config(RetryConfig::disabled());
    if let Some(endpoint) = &options.endpoint {
        ssm = ssm.endpoint_url(endpoint);
    }
    // Below this a slow moment would pass for a dead host.
    let patience = remote.patience.max(Duration::from_secs(5));
    let api = Arc::new(Api::new(
        aws_sdk_ssm::Client::from_conf(ssm.build()),
        remote.patience,
    ));
    let wanted = named
        .iter()
        .filter(|(name, _)| hosts.iter().any(|host| host.name == *name));
    // Side by side, at the service's pace.
    let found = wanted.map(async |(name, named)| {
        let id = find(&api, name, named).await?;
        let slots = Semaphore::new(SLOTS);
        Ok::<_, Error>((name.clone(), Instance { id, slots }))
    });
    let found = futures_util::future::try_join_all(found).await?;
    let instances = found.into_iter().collect();
    let link = Ssm {
        bucket: Bucket::new(
            aws_sdk_s3::Client::from_conf(s3.build()),
            options.bucket.clone(),
            options.prefix.clone(),
        ),
        intents: Intents::new(options.intents.clone())?,
        api,
        instances,
        doubted: Mutex::default(),
        document: options.document.clone(),
        delivery: DELIVERY.min(patience),
        slack: line::MARGIN.min(patience),
    };
    RemoteExecutor::connect(link, remote, hosts).await
}

async fn load(options: &SsmOptions) -> aws_config::SdkConfig {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(
            tls::rustls_provider::CryptoMode::Ring,
        ))
        .build_https();
    let files = options.credentials.as_ref().map(|file| {
        let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file);
        files.build()
    });
    // The region is that of the profile whose credentials are taken.
    let mut profile = aws_config::profile::ProfileFileRegionProvider::builder();
    if let Some(name) = &options.profile {
        profile = profile.profile_name(name);
    }
    if let Some(files) = &files {
        profile = profile.profile_files(files.clone());
    }
    // Never the instance's metadata: asking it costs seconds where there is none.
    let region = RegionProviderChain::first_try(options.region.clone().map(Region::new))
        .or_else(aws_config::environment::EnvironmentVariableRegionProvider::new())
        .or_else(profile.build())
        .or_else("us-east-1");
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .read_timeout(options.answer)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .region(region)
        .timeout_config(timeouts);
    if let Some(profile) = &options.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(files) = files {
        loader = loader.profile_files(files);
    }
    loader.load().await
}

/// The instance of a host; one that the service knows and that is there.
async fn find(api: &Api, host: &str, named: &Named) -> Result<String> {
    let (key, value) = match named {
        Named::Id(id) => ("InstanceIds".to_owned(), id),
        Named::Tag { key, value } => (format!("tag:{key}"), value),
    };
    let found = api.instances(&key, std::slice::from_ref(value)).await;
    let found = found.map_err(|broken: Broken| refused(broken.why))?;
    let what = match named {
        Named::Id(id) => format!("the instance `{id}`"),
        Named::Tag { key, value } => format!("an instance with the tag `{key}={value}`"),
    };
    let unusable = |why: String| {
        Error::new(
            Kind::Infra,
            "host-unusable",
            format!("the host `{host}` cannot be used: {why}"),
        )
    };
    let online = |i: &&aws_sdk_ssm::types::InstanceInformation| {
        i.ping_status()
            .is_some_and(|ping| ping.as_str() == "Online")
    };
    // An id is held against what was asked for: not everybody who speaks the protocol filters.
    let wanted = |id: &&str| !matches!(named, Named::Id(named) if named != id);
    let known =
        |i: &&aws_sdk_ssm::types::InstanceInformation| i.instance_id().as_ref().is_some_and(wanted);
    let found: Vec<_> = found.iter().filter(known).collect();
    let there: Vec<&str> = found
        .iter()
        .copied()
        .filter(online)
        .filter_map(|i| i.instance_id())
        .collect();
    match there[..] {
        [id] => Ok(id.to_owned()),
        [] if found.is_empty() => Err(unusable(format!("Systems Manager does not know {what}"))
            .hint("its agent must run, with an instance profile that holds AmazonSSMManagedInstanceCore, in the platform's region")),
        [] => Err(unusable(format!("{what} has lost its connection to Systems Manager"))
            .hint("look at the instance and at its agent: `systemctl status amazon-ssm-agent`")),
        _ => Err(unusable(format!("{} instances answer to the tag", there.len()))
            .hint("give each host a value of its own, or name its `instance`")),
    }
}

fn refused(why: String) -> Error {
    Error::new(
        Kind::Infra,
        "aws-refused",
        "Systems Manager did not do what was asked",
    )
    .cause(why)
    .hint("credentials come from the environment, `~/.aws` or the machine's role; docs/executors.md has the policy that they need")
}
