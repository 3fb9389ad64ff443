//! Files on their way to a host. They are named by their digest, verified on the host before
//! they get that name, and not sent when they are there and right.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use doe_cache::Digest;
use sha2::{Digest as _, Sha256};

use super::call::{Caller, Input, Request, refused};
use crate::error::{Error, Kind, Result};
use crate::exec::files::{changed, hex, lower_hex, sums};

/// What a host can verify.
#[derive(Debug, Clone)]
struct Sum {
    sha256: String,
    executable: bool,
}

/// Stages files.
#[derive(Debug, Default)]
pub struct Stager {
    sums: Mutex<HashMap<Digest, Sum>>,
}

impl Stager {
    /// Makes sure that the files are on the host, under their digests. Returns their paths.
    pub async fn stage(
        &self,
        caller: &Caller,
        host: &str,
        files: &[(Digest, PathBuf)],
    ) -> Result<Vec<PathBuf>> {
        let mut list = String::new();
        let mut sums = Vec::new();
        for (digest, source) in files {
            let sum = self.sum(*digest, source).await?;
            let mode = if sum.executable { "x" } else { "-" };
            list.push_str(&format!("{} {} {mode}\n", hex(*digest), sum.sha256));
            sums.push(sum);
        }
        let request = Request::new("have", vec![]).reading(Input::Bytes(list.into_bytes()));
        let answer = caller.call(host, &request).await?;
        if answer.code != 0 {
            return Err(refused(host, "look at staged files", &answer));
        }
        let missing = answer.text();
        for ((digest, source), sum) in files.iter().zip(&sums) {
            let name = hex(*digest);
            if !missing.lines().any(|line| line == name) {
                continue;
            }
            // It may have changed since it was first looked at.
            let now = read_sum(source).await?;
            if now.0 != *digest {
                return Err(changed(source));
            }
            let mode = if sum.executable { "x" } else { "-" };
            let arguments = vec![name.as_str(), sum.sha256.as_str(), mode];
            let request = Request::new("put", arguments).reading(Input::File(source.clone()));
            let answer = caller.call(host, &request).await?;
            match answer.code {
                0 => {}
                65 => return Err(changed(source)),
                _ => {
                    let what = format!("put `{}`", source.display());
                    return Err(refused(host, &what, &answer));
                }
            }
        }
        let blobs = Path::new(caller.root()).join("blobs");
        Ok(files
            .iter()
            .map(|(digest, _)| blobs.join(hex(*digest)))
            .collect())
    }

    fn known(&self, digest: Digest) -> Option<Sum> {
        let known = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&digest).cloned()
    }

    async fn sum(&self, digest: Digest, source: &Path) -> Result<Sum> {
        let known = self.known(digest);
        if let Some(sum) = known {
            return Ok(sum);
        }
        let (found, sum) = read_sum(source).await?;
        if found != digest {
            return Err(changed(source));
        }
        let mut known = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(digest, sum.clone());
        Ok(sum)
    }
}

async fn read_sum(source: &Path) -> Result<(Digest, Sum)> {
    let source = source.to_owned();
    let work = move || {
        let metadata = std::fs::metadata(&source).map_err(|e| Error::io("read", &source, &e))?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let (digest, sha256) = sums(&source)?;
        Ok((digest, Sum { sha256, executable }))
    };
    super::blocking(work).await
}

/// Takes the payload of a fetched file out of a raw answer and holds it against the digest that
/// the host told in its first line. Blocks.
pub(super) fn unpack(raw: &Path, span: (u64, u64), into: &Path) -> Result<()> {
    use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
    let io = |e: std::io::Error| Error::io("copy into", into, &e);
    let mut reader = BufReader::new(File::open(raw).map_err(io)?);
    reader.seek(SeekFrom::Start(span.0)).map_err(io)?;
    let mut told = String::new();
    let used = reader.read_line(&mut told).map_err(io)? as u64;
    let length = (span.1 - span.0).saturating_sub(used);
    if let Some(parent) = into.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let new = into.with_file_name(format!(".doe-{}", super::call::nonce()));
    let copy = || -> std::io::Result<String> {
        let mut target = File::create_new(&new)?;
        let mut sha = Sha256::new();
        let mut rest = reader.take(length);
        let mut block = vec![0; 256 * 1024];
        loop {
            let length = rest.read(&mut block)?;
            if length == 0 {
                break;
            }
            sha.update(&block[..length]);
            target.write_all(&block[..length])?;
        }
        target.sync_all()?;
        Ok(lower_hex(&sha.finalize()))
    };
    let done = copy().map_err(io).and_then(|found| {
        if found != told.trim() {
            return Err(Error::new(
                Kind::Integrity,
                "output-changed",
                format!("`{}` was written to while it was fetched", into.display()),
            ));
        }
        std::fs::rename(&new, into).map_err(io)
    });
    if done.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    done
}
