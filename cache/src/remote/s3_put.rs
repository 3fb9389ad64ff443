//! Sending to S3: small objects in one request, large ones in parts, a few of which are in memory
//! at a time. A conditional put that lost leaves nothing behind.

use super::fault::Fault;
use super::objects::Put;
use super::s3::{Bucket, chain, fault, not_missing, patience, within};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Objects up to this length go in one request. S3 takes parts from 5 MiB on.
pub(super) const PART_BYTES: u64 = 8 << 20;

/// Bodies up to this length are answered as fast as any request.
const QUICK_BYTES: usize = 256 << 10;

/// Parts of one object in memory at a time.
const PARTS_AT_A_TIME: usize = 2;

/// S3 takes 10,000 parts.
const MOST_PARTS: u64 = 9_000;

/// Whether a conditional request was told that the object is there.
fn was_there<E>(error: &SdkError<E>) -> bool {
    error
        .raw_response()
        .is_some_and(|answer| answer.status().as_u16() == 412)
}

/// One request.
pub(super) async fn whole(
    bucket: Bucket,
    key: String,
    bytes: Vec<u8>,
    only_new: bool,
) -> Result<Put, Fault> {
    let client = match bytes.len() {
        0..=QUICK_BYTES => &bucket.client,
        _ => &bucket.bulk,
    };
    let patience = patience(bytes.len() as u64);
    let request = client
        .put_object()
        .bucket(bucket.name)
        .key(key)
        .set_if_none_match(only_new.then(|| "*".to_owned()))
        .body(ByteStream::from(bytes));
    match within(patience, request.send()).await? {
        Ok(_) => Ok(Put::Stored),
        Err(error) if only_new && was_there(&error) => Ok(Put::WasThere),
        Err(error) => Err(not_missing(fault(&error))),
    }
}

/// In parts, read from the file as they are sent.
pub(super) async fn in_parts(
    bucket: Bucket,
    key: String,
    path: PathBuf,
    size_bytes: u64,
    only_new: bool,
) -> Result<Put, Fault> {
    let file = File::open(&path)
        .map_err(|e| Fault::Local(format!("could not read `{}`: {e}", path.display())))?;
    let create = bucket.client.create_multipart_upload();
    let create = create.bucket(&bucket.name).key(&key).send();
    let created = within(patience(0), create).await?;
    let created = created.map_err(|e| not_missing(fault(&e)))?;
    let Some(id) = created.upload_id().map(str::to_owned) else {
        return Err(Fault::Passing("an upload without a name".into()));
    };
    let sent = send_parts(&bucket, &key, &id, Arc::new(file), size_bytes).await;
    let done = match sent {
        Ok(parts) => complete(&bucket, &key, &id, parts, size_bytes, only_new).await,
        Err(fault) => Err(fault),
    };
    if done != Ok(Put::Stored) {
        let abort = bucket.client.abort_multipart_upload();
        let abort = abort.bucket(&bucket.name).key(&key).upload_id(&id).send();
        // Some servers cannot; the bucket's lifecycle rule clears what is left.
        let _ = within(patience(0), abort).await;
    }
    done
}

async fn send_parts(
    bucket: &Bucket,
    key: &str,
    id: &str,
    file: Arc<File>,
    size_bytes: u64,
) -> Result<Vec<CompletedPart>, Fault> {
    let part_bytes = PART_BYTES.max(size_bytes.div_ceil(MOST_PARTS));
    let mut done = Vec::new();
    let mut sending: JoinSet<Result<CompletedPart, Fault>> = JoinSet::new();
    for (number, start) in (1..).zip((0..size_bytes).step_by(part_bytes as usize)) {
        if sending.len() >= PARTS_AT_A_TIME
            && let Some(sent) = sending.join_next().await
        {
            done.push(sent.map_err(|e| Fault::Local(chain(&e)))??);
        }
        let length = part_bytes.min(size_bytes - start) as usize;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, start)
            .map_err(|e| Fault::Local(format!("could not read a blob: {e}")))?;
        let request = bucket
            .bulk
            .upload_part()
            .bucket(&bucket.name)
            .key(key)
            .upload_id(id)
            .part_number(number)
            .body(ByteStream::from(bytes));
        sending.spawn(async move {
            let sent = within(patience(length as u64), request.send()).await?;
            let sent = sent.map_err(|e| match fault(&e) {
                Fault::Missing => Fault::Passing("the upload was forgotten".into()),
                fault => fault,
            })?;
            Ok(CompletedPart::builder()
                .part_number(number)
                .set_e_tag(sent.e_tag)
                .set_checksum_crc32(sent.checksum_crc32)
                .set_checksum_crc32_c(sent.checksum_crc32_c)
                .set_checksum_crc64_nvme(sent.checksum_crc64_nvme)
                .build())
        });
    }
    while let Some(sent) = sending.join_next().await {
        done.push(sent.map_err(|e| Fault::Local(chain(&e)))??);
    }
    done.sort_by_key(|part| part.part_number);
    Ok(done)
}

async fn complete(
    bucket: &Bucket,
    key: &str,
    id: &str,
    parts: Vec<CompletedPart>,
    size_bytes: u64,
    only_new: bool,
) -> Result<Put, Fault> {
    let parts = CompletedMultipartUpload::builder()
        .set_parts(Some(parts))
        .build();
    let request = bucket
        .bulk
        .complete_multipart_upload()
        .bucket(&bucket.name)
        .key(key)
        .upload_id(id)
        .set_if_none_match(only_new.then(|| "*".to_owned()))
        .multipart_upload(parts);
    match within(patience(size_bytes), request.send()).await? {
        Ok(_) => Ok(Put::Stored),
        Err(error) if only_new && was_there(&error) => Ok(Put::WasThere),
        Err(error) => Err(match fault(&error) {
            Fault::Missing => Fault::Passing("the upload was forgotten".into()),
            fault => fault,
        }),
    }
}
