//! The bucket that everything longer than a command goes through. Files lie under their SHA-256
//! and are held against it by whoever takes them; answers lie under a name that was made for
//! them and are taken away once read. Hosts get links for one object, never credentials.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::StalledStreamProtectionConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use sha2::{Digest as _, Sha256};

use super::api::chain;
use super::script::{Signed, base64};
use crate::exec::remote::call::Broken;

/// Links are valid no longer than the service allows.
const LONGEST_LINK: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a transfer may take, and how many bytes a second it must manage beyond that.
const LEAST_TRANSFER: Duration = Duration::from_secs(60);
const SLOWEST_BYTES_PER_S: u64 = 256 << 10;
/// The most that S3 takes in one request.
pub(super) const MOST_BYTES: u64 = 5 << 30;

type Result<T> = std::result::Result<T, Broken>;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    client: Client,
    name: String,
    prefix: String,
}

impl Bucket {
    pub(super) fn new(client: Client, name: String, prefix: String) -> Self {
        Self {
            client,
            name,
            prefix,
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A link to write one object with; with a digest only the content that has it is taken.
    pub(super) async fn writing(
        &self,
        name: &str,
        valid: Duration,
        sha256: Option<&[u8]>,
    ) -> Result<Signed> {
        let request = self.client.put_object().bucket(&self.name);
        let request = request
            .key(self.key(name))
            .set_checksum_sha256(sha256.map(base64));
        let made = request.presigned(link(valid)?).await;
        made.map(|made| signed(&made)).map_err(|e| broken(&e))
    }

    /// A link to read one object with.
    pub(super) async fn reading(&self, name: &str, valid: Duration) -> Result<Signed> {
        let request = self.client.get_object().bucket(&self.name);
        let made = request.key(self.key(name)).presigned(link(valid)?).await;
        made.map(|made| signed(&made)).map_err(|e| broken(&e))
    }

    /// Whether an object is there and, as far as the bucket knows, right.
    pub(super) async fn has(&self, name: &str, sha256: &[u8], size_bytes: u64) -> Result<bool> {
        let request = self.client.head_object().bucket(&self.name);
        let request = request
            .key(self.key(name))
            .checksum_mode(ChecksumMode::Enabled);
        match request.send().await {
            Ok(found) => {
                let size = found
                    .content_length()
                    .and_then(|size| u64::try_from(size).ok());
                let sum = found.checksum_sha256();
                Ok(size.is_none_or(|size| size == size_bytes)
                    && sum.is_none_or(|sum| sum == base64(sha256)))
            }
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(broken(&error)),
        }
    }

    /// Puts bytes there; returns nothing before they are.
    pub(super) async fn put(
        &self,
        name: &str,
        body: ByteStream,
        sha256: &[u8],
        size_bytes: u64,
    ) -> Result<()> {
        let request = self.client.put_object().bucket(&self.name);
        let request = request.key(self.key(name)).checksum_sha256(base64(sha256));
        // A server may be silent while it takes what is long.
        let limit = LEAST_TRANSFER + Duration::from_secs(size_bytes / SLOWEST_BYTES_PER_S);
        let timeouts = TimeoutConfig::builder()
            .read_timeout(limit)
            .operation_attempt_timeout(limit)
            .build();
        let patient = aws_sdk_s3::config::Builder::new()
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let request = request.body(body).customize().config_override(patient);
        request.send().await.map(drop).map_err(|e| broken(&e))
    }

    /// Takes an object, if it is there.
    pub(super) async fn get(&self, name: &str) -> Result<Option<ByteStream>> {
        let request = self.client.get_object().bucket(&self.name);
        match request.key(self.key(name)).send().await {
            Ok(found) => Ok(Some(found.body)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(broken(&error)),
        }
    }

    /// Takes an object into a file and returns its SHA-256.
    pub(super) async fn get_into(&self, name: &str, path: &Path) -> Result<Option<Vec<u8>>> {
        let Some(mut body) = self.get(name).await? else {
            return Ok(None);
        };
        let local = |e: std::io::Error| Broken {
            why: format!("could not write `{}`: {e}", path.display()),
            hopeless: true,
        };
        let mut file = File::create(path).map_err(local)?;
        let mut sha = Sha256::new();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| torn(&e))?;
            sha.update(&chunk);
            file.write_all(&chunk).map_err(local)?;
        }
        file.sync_all().map_err(local)?;
        Ok(Some(sha.finalize().to_vec()))
    }

    /// Takes an object away. Whether it is gone.
    pub(super) async fn remove(&self, name: &str) -> bool {
        let request = self.client.delete_object().bucket(&self.name);
        match request.key(self.key(name)).send().await {
            Ok(_) => true,
            // Some servers complain of what is not there.
            Err(error) => error
                .raw_response()
                .is_some_and(|a| a.status().as_u16() == 404),
        }
    }
}

fn link(valid: Duration) -> Result<PresigningConfig> {
    PresigningConfig::expires_in(valid.clamp(Duration::from_secs(60), LONGEST_LINK)).map_err(|e| {
        Broken {
            why: format!("could not sign a link: {e}"),
            hopeless: true,
        }
    })
}

fn signed(made: &PresignedRequest) -> Signed {
    let own = |name: &str| {
        let name = name.to_ascii_lowercase();
        // What curl says by itself.
        !["host", "content-length", "user-agent"].contains(&name.as_str())
    };
    let headers = made.headers().filter(|(name, _)| own(name));
    Signed {
        url: made.uri().to_owned(),
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}

/// An answer that ended in its middle.
pub(super) fn torn(error: &dyn std::error::Error) -> Broken {
    Broken {
        why: format!("the bucket's answer was cut off: {}", chain(error)),
        hopeless: false,
    }
}

/// Whether an object is not there. Who may not list the bucket is told that with the words of one
/// who may not read it.
fn is_missing<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let code = error.as_service_error().and_then(|e| e.code());
    match error.raw_response().map(|answer| answer.status().as_u16()) {
        Some(404) => code != Some("NoSuchBucket"),
        // The answer to a HEAD has no words.
        Some(403) => matches!(code, None | Some("AccessDenied" | "Forbidden")),
        _ => false,
    }
}

fn broken<E>(error: &SdkError<E>) -> Broken
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let code = error.as_service_error().and_then(|e| e.code());
    let hopeless = matches!(
        code,
        Some(
            "NoSuchBucket"
                | "AccessDenied"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "PermanentRedirect"
                | "ExpiredToken"
        )
    );
    Broken {
        why: match code {
            Some(code) => {
                let said = error.as_service_error().and_then(|e| e.message());
                format!("S3 refused: {code}: {}", said.unwrap_or("without a word"))
            }
            None => format!("no answer from S3: {}", chain(error)),
        },
        hopeless,
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::config::http::HttpResponse;
    use aws_sdk_s3::error::ErrorMetadata;
    use aws_sdk_s3::primitives::SdkBody;

    use super::*;

    #[test]
    fn what_may_not_be_told_to_be_missing_is_missing() {
        let missing = |status: u16, code: Option<&str>| {
            let mut words = ErrorMetadata::builder();
            if let Some(code) = code {
                words = words.code(code);
            }
            let raw = HttpResponse::new(status.try_into().unwrap(), SdkBody::empty());
            is_missing(&SdkError::service_error(words.build(), raw))
        };
        assert!(missing(404, None));
        assert!(missing(404, Some("NoSuchKey")));
        assert!(missing(403, Some("AccessDenied")));
        assert!(missing(403, None));
        // Whoever this is not, and where there is nothing at all.
        assert!(!missing(403, Some("SignatureDoesNotMatch")));
        assert!(!missing(403, Some("InvalidAccessKeyId")));
        assert!(!missing(404, Some("NoSuchBucket")));
        assert!(!missing(503, None));
    }
}
