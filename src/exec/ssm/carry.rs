//! Files between this machine and the hosts, through the bucket, under their SHA-256. A host
//! first says what its files' digests are; a link then takes the content with that digest and no
//! other, and nothing gets its name here before it was held against the digest again.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use sha2::{Digest as _, Sha256};

use super::bucket::{Bucket, MOST_BYTES};
use super::script::Signed;
use crate::error::{Error, Kind, Result};
use crate::exec::remote::call::{Broken, Input, Request, nonce, refused};
use crate::exec::remote::{Collect, bad_output, blocking};

/// How often a file is asked for that changes while it is sent.
const TRIES: u32 = 3;
/// Fewer bytes a second than this is no transfer.
const LEAST_BYTES_PER_S: u64 = 1 << 20;

/// Name of a file's content in the bucket.
pub(super) fn blob(sha256: &[u8]) -> String {
    format!("blobs/{}", hex(sha256))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes sure that a file of this machine is in the bucket; its name there.
pub(super) async fn upload(bucket: &Bucket, path: &Path) -> std::result::Result<String, Broken> {
    let local = |why: String| Broken {
        why: format!("could not send `{}`: {why}", path.display()),
        hopeless: true,
    };
    let source = path.to_owned();
    let read = move || {
        let io = |e: std::io::Error| Error::io("read", &source, &e);
        let mut file = File::open(&source).map_err(io)?;
        let size_bytes = file.metadata().map_err(io)?.len();
        let mut sha = Sha256::new();
        let mut block = vec![0; 256 * 1024];
        loop {
            match file.read(&mut block).map_err(io)? {
                0 => break,
                length => sha.update(&block[..length]),
            }
        }
        Ok((sha.finalize().to_vec(), size_bytes))
    };
    let (sum, size_bytes) = blocking(read).await.map_err(|e| local(e.to_string()))?;
    if size_bytes > MOST_BYTES {
        return Err(local(format!(
            "it has {size_bytes} bytes, S3 takes {MOST_BYTES} at once"
        )));
    }
    let name = blob(&sum);
    if !bucket.has(&name, &sum, size_bytes).await? {
        let body = ByteStream::from_path(path).await;
        let body = body.map_err(|e| local(e.to_string()))?;
        // What changes meanwhile has another digest, and is refused.
        bucket.put(&name, body, &sum, size_bytes).await?;
    }
    Ok(name)
}

/// A file on a host.
struct Found<'a> {
    name: &'a str,
    sha256: Vec<u8>,
    size_bytes: u64,
}

/// Fetches files. See the module.
pub(super) async fn collect(bucket: &Bucket, what: Collect<'_>) -> Result<Vec<PathBuf>> {
    if let Some(name) = what.names.iter().find(|name| name.contains('\n')) {
        return Err(bad_output(name, "its name holds a line feed"));
    }
    let mut fetched: HashMap<&str, PathBuf> = HashMap::new();
    let mut names: Vec<&str> = what.names.iter().map(String::as_str).collect();
    for tried in 0..TRIES {
        let found = sums(&what, &names).await?;
        // What the bucket has and is not right is sent once more.
        send(bucket, &what, &found, tried > 0).await?;
        let mut again = Vec::new();
        for file in &found {
            match fetch(bucket, file, what.into).await? {
                Some(path) => drop(fetched.insert(file.name, path)),
                None => again.push(file.name),
            }
        }
        names = again;
        if names.is_empty() {
            break;
        }
    }
    if let Some(name) = names.first() {
        return Err(Error::new(
            Kind::Integrity,
            "output-changed",
            format!("`{name}` was written to while it was fetched, or never came to the bucket"),
        )
        .hint("run again once nothing writes to it; the host must reach the bucket's endpoint, and you must be allowed to read from the bucket (docs/executors.md)"));
    }
    let paths = what.names.iter();
    Ok(paths
        .filter_map(|name| fetched.get(name.as_str()).cloned())
        .collect())
}

/// Asks for the digests of files; what is not there is left out.
async fn sums<'a>(what: &Collect<'_>, names: &[&'a str]) -> Result<Vec<Found<'a>>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let list: String = names.iter().map(|name| format!("{name}\n")).collect();
    let request = Request::new("sums", vec![what.from]).reading(Input::Bytes(list.into_bytes()));
    let answer = what.caller.call(&what.host.name, &request).await?;
    let text = answer.text();
    let lines: Vec<&str> = text.lines().collect();
    if answer.code != 0 || lines.len() != names.len() {
        return Err(refused(
            &what.host.name,
            "read the digests of files",
            &answer,
        ));
    }
    let mut found = Vec::new();
    for (name, line) in names.iter().zip(lines) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["ok", sum, size] => {
                let file = unhex(sum).zip(size.parse().ok());
                let (sha256, size_bytes) = file.ok_or_else(|| {
                    refused(
                        &what.host.name,
                        &format!("read the digest of `{name}`"),
                        &answer,
                    )
                })?;
                if size_bytes > MOST_BYTES {
                    return Err(bad_output(
                        name,
                        "it has more than the 5 GiB that S3 takes at once",
                    ));
                }
                found.push(Found {
                    name,
                    sha256,
                    size_bytes,
                });
            }
            ["outside"] => {
                return Err(bad_output(
                    name,
                    "it links to something outside the working folder",
                ));
            }
            ["odd"] => return Err(bad_output(name, "it is no regular file")),
            _ => {}
        }
    }
    Ok(found)
}

/// Lets the host put what the bucket does not have. Whether it did is seen in the bucket.
async fn send(
    bucket: &Bucket,
    what: &Collect<'_>,
    found: &[Found<'_>],
    even_what_is_there: bool,
) -> Result<()> {
    let host = &what.host.name;
    let lost = |broken: Broken| {
        Error::new(
            Kind::Infra,
            "bucket-unreachable",
            format!("could not fetch files of host `{host}` through the bucket"),
        )
        .cause(broken.why)
        .hint("look at the platform's `bucket` and `s3_endpoint`, and at your rights there")
    };
    let mut list = String::new();
    let mut limit = Duration::from_secs(0);
    for file in found {
        let name = blob(&file.sha256);
        let there = bucket.has(&name, &file.sha256, file.size_bytes);
        if !even_what_is_there && there.await.map_err(lost)? {
            continue;
        }
        limit += Duration::from_secs(10 + file.size_bytes / LEAST_BYTES_PER_S);
        let link = bucket
            .writing(&name, limit + Duration::from_secs(900), Some(&file.sha256))
            .await;
        let Signed { url, headers } = link.map_err(lost)?;
        let headers: Vec<String> = headers.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        // A link has the digest as its one header, or in itself.
        let header = match &headers[..] {
            [] => "x-doe: 1".to_owned(),
            [one] => one.clone(),
            more => {
                let why = format!("a link with {} headers", more.len());
                return Err(lost(Broken {
                    why,
                    hopeless: true,
                }));
            }
        };
        list.push_str(&format!("{url}\n{header}\n{}\n", file.name));
    }
    if list.is_empty() {
        return Ok(());
    }
    let request = Request {
        limit: Some(limit),
        ..Request::new("send", vec![what.from]).reading(Input::Bytes(list.into_bytes()))
    };
    // What it could not send is not in the bucket, and asked for again.
    what.caller.call(host, &request).await.map(drop)
}

/// Takes a file out of the bucket; `None` when it is not there or not right.
async fn fetch(bucket: &Bucket, file: &Found<'_>, into: &Path) -> Result<Option<PathBuf>> {
    let target = into.join(file.name);
    let folder = target.parent().unwrap_or(into);
    std::fs::create_dir_all(folder).map_err(|e| Error::io("make the folder", folder, &e))?;
    let new = folder.join(format!(".doe-{}", nonce()));
    let got = bucket.get_into(&blob(&file.sha256), &new).await;
    let right = match got {
        Ok(sum) => sum.as_deref() == Some(&file.sha256[..]),
        Err(broken) if broken.hopeless => {
            let _ = std::fs::remove_file(&new);
            return Err(Error::new(
                Kind::Infra,
                "bucket-unreachable",
                format!("could not take `{}` out of the bucket", file.name),
            )
            .cause(broken.why));
        }
        Err(_) => false,
    };
    if !right {
        let _ = std::fs::remove_file(&new);
        return Ok(None);
    }
    std::fs::rename(&new, &target).map_err(|e| Error::io("write", &target, &e))?;
    Ok(Some(target))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (text.len() == 64 && text.is_ascii())
        .then(|| {
            let pairs = (0..32).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16));
            pairs.collect::<std::result::Result<_, _>>().ok()
        })
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_read_back() {
        let sum = Sha256::digest(b"x").to_vec();
        assert_eq!(unhex(&hex(&sum)), Some(sum));
        for bad in ["", "00", &"g".repeat(64), &"ü".repeat(32)] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
