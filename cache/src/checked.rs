//! Small documents that are not named by their content: one line of JSON after sixteen digits of
//! its digest, so that no accident to them goes unseen.

use crate::digest::Digest;
use crate::durable::{self, Temp};
use crate::error::{Error, Result};
use crate::layout::Layout;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::{Path, PathBuf};

fn check(json: &str) -> String {
    let mut digits = Digest::of(json).hex();
    digits.truncate(16);
    digits
}

/// A document as a line.
pub(crate) fn line(document: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string(document).map_err(|e| Error::invalid(e.to_string()))?;
    Ok(format!("{} {json}\n", check(&json)))
}

/// The document of a line; `None` when anything is wrong with it.
pub(crate) fn of_line<T: DeserializeOwned>(line: &[u8]) -> Option<T> {
    let line = std::str::from_utf8(line).ok()?;
    let (digits, json) = line.strip_suffix('\n')?.split_once(' ')?;
    let good = digits == check(json);
    good.then(|| serde_json::from_str(json).ok()).flatten()
}

/// Writes a document as a file of one line, durably.
pub(crate) fn write(layout: &Layout, path: PathBuf, document: &impl Serialize) -> Result<()> {
    let temp = Temp::with(&layout.tmp(), line(document)?.as_bytes())?;
    durable::publish(layout.root(), vec![vec![(temp, path)]])
}

/// Reads a file of one line.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, &e))?;
    of_line(&bytes).ok_or_else(|| Error::Corrupt {
        what: format!("`{}`", path.display()),
        detail: "it does not match its check".to_owned(),
        quarantined: None,
    })
}

/// The files of a folder whose names end so, in order; none when there is no folder.
pub(crate) fn files(dir: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let list = match fs::read_dir(dir) {
        Ok(list) => list,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir, &e)),
    };
    let mut files = Vec::new();
    for entry in list {
        let path = entry.map_err(|e| Error::io("list", dir, &e))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy());
        if name.is_some_and(|name| name.ends_with(suffix)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
