//! Bundles: records with everything that they need, in one file (`tar`, compressed with gzip) that
//! another store can take in. The first entry lists all others with digest and length, so a
//! reader knows what must come before it comes; the same selection gives the same entries in the
//! same order.

use crate::digest::Digest;
use crate::durable::{self, Temp};
use crate::error::{Error, Result};
use crate::links::{self, LinkFile, Linked};
use crate::lock;
use crate::named::{STREAM, Target};
use crate::record::Record;
use crate::store::{Store, now_unix_ms};
use flate2::Compression;
use flate2::write::GzEncoder;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

/// Version of the format that this program writes, and the newest it reads.
pub(crate) const BUNDLE_SCHEMA: u32 = 1;

/// Name of the first entry.
pub(crate) const HEADER: &str = "doe-bundle.json";

/// Who made a bundle, when and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// When.
    pub exported_unix_ms: u64,
    /// On which machine.
    pub host: String,
    /// By whom, as the environment says.
    pub by: String,
    /// From which store.
    pub store: String,
    /// Version of the program.
    pub doe_version: String,
    /// What for, for people.
    pub comment: String,
}

/// One entry that follows the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
}

/// The first entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) schema: u32,
    pub(crate) origin: Origin,
    pub(crate) records: Vec<Item>,
    pub(crate) links: Vec<Item>,
    pub(crate) blobs: Vec<Item>,
}

impl Header {
    /// Names of all entries after the header, in their order.
    pub(crate) fn names(&self) -> impl Iterator<Item = (String, &Item)> {
        let kinds = [
            ("records", ".json", &self.records),
            ("links", ".json", &self.links),
            ("cas", "", &self.blobs),
        ];
        kinds.into_iter().flat_map(|(kind, end, items)| {
            let named = move |item: &'_ Item| format!("{kind}/{}{end}", item.digest);
            items.iter().map(move |item| (named(item), item))
        })
    }
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Records.
    pub records: u64,
    /// Blobs.
    pub blobs: u64,
    /// Bytes of both before compression.
    pub content_bytes: u64,
    /// Bytes of the bundle.
    pub bundle_bytes: u64,
    /// Outputs and logs that the store lacks, in words; their records were left out.
    pub left_out: Vec<String>,
}

impl Store {
    /// Writes records, with outputs, logs and links, to one file. The file appears whole or not
    /// at all. Every record and blob is verified on the way out.
    ///
    /// # Errors
    /// [`Error::NotFound`] when a record is not there, [`Error::Corrupt`] when one is damaged,
    /// [`Error::Io`]; [`Error::Invalid`] when nothing is left to export.
    pub fn export(
        &self,
        records: &[Digest],
        to: &Path,
        comment: &str,
        doe_version: &str,
    ) -> Result<Exported> {
        let mut left_out = Vec::new();
        let mut chosen: BTreeMap<Digest, Record> = BTreeMap::new();
        let mut blobs: BTreeMap<Digest, u64> = BTreeMap::new();
        for digest in records {
            let record = self.record(digest)?;
            let outputs = record.outputs.values().map(|o| (o.digest, o.size_bytes));
            let logs = record.logs.iter().map(|l| (l.digest, l.size_bytes));
            let needed: Vec<(Digest, u64)> = outputs.chain(logs).collect();
            let missing = |(blob, size): &&(Digest, u64)| self.cas().size(blob) != Some(*size);
            if let Some((blob, _)) = needed.iter().find(missing) {
                let short = digest.short();
                let why = format!("record `{short}` lacks blob `{}`", blob.short());
                left_out.push(why);
                continue;
            }
            blobs.extend(needed);
            chosen.insert(*digest, record);
        }
        if chosen.is_empty() {
            return Err(Error::invalid("there is nothing to export"));
        }
        let links = links_to(&self.index(), &chosen.keys().copied().collect())?;
        let links = match links.is_empty() {
            true => None,
            false => Some(LinkFile::new(links).to_bytes()?),
        };
        let mut record_files = Vec::with_capacity(chosen.len());
        for digest in chosen.keys() {
            let path = self.layout().record(digest);
            let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, &e))?;
            record_files.push((*digest, bytes));
        }
        let item = |digest: Digest, size_bytes| Item { digest, size_bytes };
        let header = Header {
            schema: BUNDLE_SCHEMA,
            origin: Origin {
                exported_unix_ms: now_unix_ms(),
                host: lock::host(),
                by: user(),
                store: self.layout().root().display().to_string(),
                doe_version: doe_version.to_owned(),
                comment: comment.to_owned(),
            },
            records: record_files
                .iter()
                .map(|(digest, bytes)| item(*digest, bytes.len() as u64))
                .collect(),
            links: links
                .iter()
                .map(|bytes| item(Digest::of(bytes), bytes.len() as u64))
                .collect(),
            blobs: blobs
                .iter()
                .map(|(digest, size)| item(*digest, *size))
                .collect(),
        };
        let content_bytes = header.names().map(|(_, item)| item.size_bytes).sum();
        if to.file_name().is_none() {
            return Err(Error::invalid(format!("`{}` names no file", to.display())));
        }
        let target = match to.as_os_str() == STREAM {
            true => io::stdout()
                .as_fd()
                .try_clone_to_owned()
                .map(|out| Target::Stream(out.into())),
            false => Target::of(to),
        };
        let target = target.map_err(|cause| Failure::Io(cause).at(to))?;
        let links = links.as_deref();
        let bundle_bytes = match target {
            Target::File(path) => {
                let folder = match path.parent() {
                    Some(folder) if !folder.as_os_str().is_empty() => folder,
                    _ => Path::new("."),
                };
                let (temp, file) = Temp::create_beside(folder)?;
                let bytes = self.write_bundle(&header, &record_files, links, file);
                let bytes = bytes.map_err(|failure| failure.at(to))?;
                temp.tear_where_armed()?;
                // With its folder, also where that is the current one.
                let target = folder.join(path.file_name().unwrap_or_default());
                durable::publish(folder, vec![vec![(temp, target)]])?;
                bytes
            }
            Target::Stream(stream) => {
                let bytes = self.write_bundle(&header, &record_files, links, stream);
                bytes.map_err(|failure| failure.at(to))?
            }
        };
        Ok(Exported {
            records: record_files.len() as u64,
            blobs: blobs.len() as u64,
            content_bytes,
            bundle_bytes,
            left_out,
        })
    }

    fn write_bundle(
        &self,
        header: &Header,
        records: &[(Digest, Vec<u8>)],
        links: Option<&[u8]>,
        file: File,
    ) -> Result<u64, Failure> {
        let head = serde_json::to_vec(header).map_err(|e| Error::invalid(e.to_string()))?;
        let counted = Counted { file, bytes: 0 };
        let packed = GzEncoder::new(io::BufWriter::new(counted), Compression::default());
        let mut tar = tar::Builder::new(packed);
        add(&mut tar, HEADER, head.len() as u64, &head[..])?;
        for (name, item) in header.names() {
            if let Some((_, bytes)) = records.iter().find(|(d, _)| *d == item.digest) {
                add(&mut tar, &name, item.size_bytes, &bytes[..])?;
            } else if let (Some(bytes), true) = (links, name.starts_with("links/")) {
                add(&mut tar, &name, item.size_bytes, bytes)?;
            } else {
                let blob = self.cas().open(&item.digest)?;
                add(&mut tar, &name, item.size_bytes, blob.take(item.size_bytes))?;
            }
        }
        let mut buffer = tar.into_inner()?.finish()?;
        buffer.flush()?;
        Ok(buffer.get_ref().bytes)
    }
}

/// A file, and how much was written to it.
struct Counted {
    file: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

enum Failure {
    Store(Error),
    Io(io::Error),
}

impl Failure {
    fn at(self, to: &Path) -> Error {
        match self {
            Self::Store(error) => error,
            Self::Io(cause) => Error::io("write", to, &cause),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn add(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o444);
    header.set_mtime(0);
    tar.append_data(&mut header, name, content)
}

/// The links to these records, in their order.
fn links_to(db: &Connection, records: &BTreeSet<Digest>) -> Result<Vec<Linked>> {
    let links = links::all(db)?;
    let wanted = links
        .into_iter()
        .filter(|link| records.contains(&link.record));
    Ok(wanted.collect())
}

/// Who asks, as far as the environment says.
pub(crate) fn user() -> String {
    let named = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
    named("USER")
        .or_else(|| named("LOGNAME"))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}
