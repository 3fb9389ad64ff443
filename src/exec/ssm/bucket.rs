//! The bucket that everything longer than a command goes through. Files lie under their SHA-256
//! and are held against it by whoever takes them; answers lie under a name that was made for
//! them and are taken away once read. Hosts get links for one object, never credentials.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::presigning::{PresignedRequest, PresigningConfig};
use aws_sdk_s3::primitives::ByteStream;
use sha2::{Digest as _, Sha256};

use super::api::chain;
use super::script::{Signed, base64};
use crate::exec::remote::call::Broken;

/// Links are valid no longer than the service allows.
const LONGEST_LINK: Duration = Duration::from_secs(7 * 24 * 3600);
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

    /// Whether an object is there.
    pub(super) async fn has(&self, name: &str) -> Result<bool> {
        let request = self.client.head_object().bucket(&self.name);
        match request.key(self.key(name)).send().await {
            Ok(_) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(broken(&error)),
        }
    }

    /// Puts bytes there; returns nothing before they are.
    pub(super) async fn put(&self, name: &str, body: ByteStream, sha256: &[u8]) -> Result<()> {
        let request = self.client.put_object().bucket(&self.name);
        let request = request.key(self.key(name)).checksum_sha256(base64(sha256));
        request
            .body(body)
            .send()
            .await
            .map(drop)
            .map_err(|e| broken(&e))
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

    /// Takes an object away; one that stays does no harm.
    pub(super) async fn remove(&self, name: &str) {
        let request = self.client.delete_object().bucket(&self.name);
        let _ = request.key(self.key(name)).send().await;
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

fn is_missing<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    error
        .raw_response()
        .is_some_and(|answer| answer.status().as_u16() == 404)
        && error
            .as_service_error()
            .is_none_or(|e| e.code() != Some("NoSuchBucket"))
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
