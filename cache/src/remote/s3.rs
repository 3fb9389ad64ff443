//! The one place, with `s3_put`, that knows the AWS SDK. Nothing of it starts before the first
//! request: no thread, no reading of profiles, no certificates. Requests run on two threads of
//! their own, so that callers may block wherever they are; every request ends in bounded time.

use super::fault::Fault;
use super::objects::{Body, Objects, Page, Put};
use super::place::Target;
use super::s3_put;
use aws_config::meta::region::RegionProviderChain;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_smithy_http_client::tls;
use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Time to make a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// Time for an answer to begin, and for a small request as a whole.
const ANSWER: Duration = Duration::from_secs(8);

/// The same when megabytes are sent first.
const BULK_ANSWER: Duration = Duration::from_secs(120);

/// What a transfer must manage on average, after [`ANSWER`].
const LEAST_BYTES_PER_S: u64 = 32 * 1024;

/// What is needed to make requests.
#[derive(Debug)]
struct Ready {
    /// `None` only while dropping.
    runtime: Option<Runtime>,
    client: Client,
    bulk: Client,
}

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting is not allowed where the last owner may be: inside another runtime.
            runtime.shutdown_background();
        }
    }
}

/// A bucket.
#[derive(Debug)]
pub(super) struct S3 {
    target: Target,
    ready: OnceLock<Result<Ready, Fault>>,
}

/// A bucket that a request is made to.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub client: Client,
    /// With time for large bodies.
    pub bulk: Client,
    pub name: String,
}

impl S3 {
    pub(super) fn new(target: Target) -> Self {
        Self {
            target,
            ready: OnceLock::new(),
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.target.place.prefix)
    }

    /// Runs a request to its end, on the client's own threads: the caller may be on a thread of
    /// another runtime.
    fn call<T, F>(&self, request: impl FnOnce(Bucket) -> F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let ready = self.ready.get_or_init(|| start(&self.target));
        let ready = ready.as_ref().map_err(Clone::clone)?;
        let Some(runtime) = &ready.runtime else {
            return Err(Fault::Local("the client was stopped".into()));
        };
        let request = request(Bucket {
            client: ready.client.clone(),
            bulk: ready.bulk.clone(),
            name: self.target.place.bucket.clone(),
        });
        let (answer, answered) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            // The caller waits for it.
            let _ = answer.send(request.await);
        });
        let gone = || Fault::Local("a request ended without an answer".into());
        answered.recv().map_err(|_| gone())?
    }
}

fn start(target: &Target) -> Result<Ready, Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("doe-mirror")
        .enable_all()
        .build()
        .map_err(|e| Fault::Local(format!("could not start threads: {e}")))?;
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(
            tls::rustls_provider::CryptoMode::Ring,
        ))
        .build_https();
    let timeouts = |answer| {
        TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .read_timeout(answer)
            .build()
    };
    // Never the instance's metadata: asking it costs seconds where there is none.
    let region = RegionProviderChain::first_try(target.region.clone().map(Region::new))
        .or_else(aws_config::environment::EnvironmentVariableRegionProvider::new())
        .or_else(aws_config::profile::ProfileFileRegionProvider::new())
        .or_else("us-east-1");
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .region(region)
        // The guard tries again, and the breaker must see every failure.
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts(ANSWER))
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled()
                .grace_period(ANSWER)
                .build(),
        );
    if let Some(endpoint) = &target.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let shared = runtime.block_on_elsewhere(loader.load())?;
    let path_style = target.path_style.unwrap_or(target.endpoint.is_some());
    let config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(path_style)
        // Every object is held against its name anyway.
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    Ok(Ready {
        runtime: Some(runtime),
        client: Client::from_conf(config.clone().build()),
        bulk: Client::from_conf(config.timeout_config(timeouts(BULK_ANSWER)).build()),
    })
}

trait Elsewhere {
    /// Like `block_on`, from any thread.
    fn block_on_elsewhere<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Fault>;
}

impl Elsewhere for Runtime {
    fn block_on_elsewhere<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Fault> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.spawn(async move {
            let _ = answer.send(work.await);
        });
        answered
            .recv()
            .map_err(|_| Fault::Local("the client could not be started".into()))
    }
}

impl Objects for S3 {
    fn head(&self, name: &str) -> Result<Option<u64>, Fault> {
        let key = self.key(name);
        self.call(|bucket| async move {
            let request = bucket.client.head_object().bucket(bucket.name).key(key);
            match within(ANSWER, request.send()).await? {
                Ok(found) => Ok(Some(length(found.content_length()))),
                Err(error) => match fault(&error) {
                    Fault::Missing => Ok(None),
                    // An answer to HEAD says nothing more: it may be the server's bad moment.
                    Fault::Refused(why) => Err(Fault::Passing(why)),
                    fault => Err(fault),
                },
            }
        })
    }

    fn get(&self, name: &str, most_bytes: u64) -> Result<Vec<u8>, Fault> {
        let key = self.key(name);
        self.call(move |bucket| async move {
            let found = open(&bucket, key, most_bytes).await?;
            let size_bytes = length(found.content_length());
            let collect = found.body.collect();
            let bytes = within(patience(size_bytes), collect).await?;
            let bytes = bytes.map_err(|e| Fault::Passing(chain(&e)))?.to_vec();
            whole(bytes.len() as u64, size_bytes)?;
            Ok(bytes)
        })
    }

    fn get_into(&self, name: &str, mut file: File, most_bytes: u64) -> Result<u64, Fault> {
        let key = self.key(name);
        self.call(move |bucket| async move {
            let found = open(&bucket, key, most_bytes).await?;
            let size_bytes = length(found.content_length());
            let mut body = found.body;
            let copy = async {
                let mut count = 0;
                while let Some(chunk) = body.next().await {
                    let chunk = chunk.map_err(|e| Fault::Passing(chain(&e)))?;
                    count += chunk.len() as u64;
                    file.write_all(&chunk)
                        .map_err(|e| Fault::Local(format!("could not write a download: {e}")))?;
                }
                whole(count, size_bytes)
            };
            within(patience(size_bytes), copy).await?
        })
    }

    fn put(&self, name: &str, body: Body<'_>, only_new: bool) -> Result<Put, Fault> {
        let key = self.key(name);
        if body.size_bytes() > s3_put::PART_BYTES
            && let Body::File(path, size_bytes) = body
        {
            let path = path.to_owned();
            return self
                .call(move |bucket| s3_put::in_parts(bucket, key, path, size_bytes, only_new));
        }
        let bytes = match body {
            Body::Bytes(bytes) => bytes.to_vec(),
            Body::File(path, _) => std::fs::read(path)
                .map_err(|e| Fault::Local(format!("could not read `{}`: {e}", path.display())))?,
        };
        self.call(move |bucket| s3_put::whole(bucket, key, bytes, only_new))
    }

    fn list(&self, prefix: &str, after: Option<&str>, most: u16) -> Result<Page, Fault> {
        let prefix = self.key(prefix);
        let after = after.map(|after| self.key(after));
        let cut = self.target.place.prefix.len();
        self.call(move |bucket| async move {
            let request = bucket
                .client
                .list_objects_v2()
                .bucket(bucket.name)
                .prefix(prefix)
                .set_start_after(after)
                .max_keys(i32::from(most));
            let found = within(ANSWER, request.send()).await?;
            let found = found.map_err(|e| not_missing(fault(&e)))?;
            let names = found.contents().iter().filter_map(|object| object.key());
            Ok(Page {
                names: names
                    .filter_map(|k| k.get(cut..))
                    .map(str::to_owned)
                    .collect(),
                more: found.is_truncated().unwrap_or(false),
            })
        })
    }
}

async fn open(bucket: &Bucket, key: String, most_bytes: u64) -> Result<GetObjectOutput, Fault> {
    let request = bucket.client.get_object().bucket(&bucket.name).key(key);
    let found = within(ANSWER, request.send()).await?;
    let found = found.map_err(|e| fault(&e))?;
    let size_bytes = length(found.content_length());
    if size_bytes > most_bytes {
        return Err(Fault::Damaged(format!(
            "it has {size_bytes} bytes, at most {most_bytes} were expected"
        )));
    }
    Ok(found)
}

fn whole(count: u64, size_bytes: u64) -> Result<u64, Fault> {
    if count == size_bytes {
        return Ok(count);
    }
    Err(Fault::Passing(format!(
        "{count} of {size_bytes} bytes came"
    )))
}

fn length(length: Option<i64>) -> u64 {
    u64::try_from(length.unwrap_or(0)).unwrap_or(0)
}

/// How long a transfer of this length may take.
pub(super) fn patience(size_bytes: u64) -> Duration {
    ANSWER + Duration::from_secs(size_bytes / LEAST_BYTES_PER_S)
}

/// Waits so long and no longer.
pub(super) async fn within<T>(
    patience: Duration,
    work: impl Future<Output = T>,
) -> Result<T, Fault> {
    tokio::time::timeout(patience, work)
        .await
        .map_err(|_| Fault::Down(format!("no answer within {} s", patience.as_secs())))
}

/// What is missing cannot be missing in a listing: then it is the bucket.
pub(super) fn not_missing(fault: Fault) -> Fault {
    match fault {
        Fault::Missing => Fault::Refused("there is no such bucket".into()),
        fault => fault,
    }
}

/// What an error of the SDK means.
pub(super) fn fault<E>(error: &SdkError<E>) -> Fault
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let text = chain(error);
    match error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            let code = answer.err().code().unwrap_or_default();
            let mut words = format!("{status} {code}");
            if let Some(message) = answer.err().message() {
                words = format!("{words}: {message}");
            }
            match (status, code) {
                (_, "NoSuchBucket") => Fault::Refused(words),
                (404, _) => Fault::Missing,
                // The bytes did not arrive as they were sent, or too slowly.
                (
                    _,
                    "BadDigest"
                    | "InvalidDigest"
                    | "IncompleteBody"
                    | "RequestTimeout"
                    | "XAmzContentSHA256Mismatch",
                ) => Fault::Passing(words),
                (409 | 429 | 500..=599, _) => Fault::Passing(words),
                _ => Fault::Refused(words),
            }
        }
        SdkError::ResponseError(_) => Fault::Passing(text),
        SdkError::TimeoutError(_) => Fault::Down(text),
        SdkError::DispatchFailure(failure) => {
            if text.contains("credential") {
                // The SDK lists every place that it looked at, a line each.
                let first = text
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .trim_end_matches(':');
                return Fault::Refused(format!(
                    "no usable credentials in the environment, `~/.aws` or the machine's role \
                     ({first})"
                ));
            }
            if failure.is_timeout() || found_nobody(error) || text.contains("dns error") {
                return Fault::Down(text);
            }
            Fault::Passing(text)
        }
        _ => Fault::Refused(text),
    }
}

/// Whether there was no connection at all, rather than one that broke.
fn found_nobody(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::AddrNotAvailable
                    | ErrorKind::TimedOut
            )
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error and what led to it, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = error.source();
    }
    text
}
