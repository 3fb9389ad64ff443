//! An answer on disk: a head with its length, a body, and a digest over both. What does not match
//! its digest was never an answer.

use std::fs;
use std::io::Write;
use std::path::Path;

use doe_cache::Digest;
use serde::{Deserialize, Serialize};

use super::{Answer, World};

const MAGIC: &[u8] = b"doe recall 1\n";

pub(super) struct Found {
    pub(super) world: World,
    pub(super) answer: Answer,
    pub(super) body: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    world: World,
    answer: Answer,
}

/// Reads an answer, or says why it is none.
pub(super) fn read(path: &Path) -> Result<Found, String> {
    let bytes = fs::read(path).map_err(|error| format!("nothing is known: {error}"))?;
    decode(bytes).ok_or_else(|| "what was kept is damaged".to_owned())
}

pub(super) fn decode(mut bytes: Vec<u8>) -> Option<Found> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (digest, rest) = rest.split_at_checked(Digest::LEN)?;
    if Digest::of(rest).as_bytes() != digest {
        return None;
    }
    let (length, rest) = rest.split_at_checked(8)?;
    let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let (head, _) = rest.split_at_checked(length)?;
    let Head { world, answer } = serde_json::from_slice(head).ok()?;
    let body = bytes.split_off(MAGIC.len() + Digest::LEN + 8 + length);
    Some(Found {
        world,
        answer,
        body,
    })
}

pub(super) fn encode(world: &World, answer: &Answer, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let head = serde_json::to_vec(&Head {
        world: world.clone(),
        answer: answer.clone(),
    })?;
    let mut rest = Vec::with_capacity(8 + head.len() + body.len());
    rest.extend_from_slice(&(head.len() as u64).to_le_bytes());
    rest.extend_from_slice(&head);
    rest.extend_from_slice(body);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(Digest::of(&rest).as_bytes());
    bytes.append(&mut rest);
    Ok(bytes)
}

/// Writes an answer, whole or not at all. It need not survive a loss of power.
pub(super) fn write(
    folder: &Path,
    path: &Path,
    world: &World,
    answer: &Answer,
    body: &[u8],
) -> std::io::Result<()> {
    replace(folder, path, &encode(world, answer, body)?)
}

/// Writes a file of the memory, whole or not at all.
pub(super) fn replace(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension(format!("part-{}", std::process::id()));
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}
