//! Takes a bundle in. Nothing of it is believed: entries are the listed ones and no other, plain
//! files of the listed length whose content has the listed digest; keys must follow from
//! manifests; every blob that a record needs must be there. Until all of that is known nothing is
//! stored, and where the records came from is kept beside them.

use crate::bundle::{BUNDLE_SCHEMA, HEADER, Header, Item, Origin, user};
use crate::candidates;
use crate::cas::Blob;
use crate::checked;
use crate::digest::Digest;
use crate::durable::Temp;
use crate::error::{Error, Result};
use crate::links::{LinkFile, Linked};
use crate::lock;
use crate::named::STREAM;
use crate::quarantine;
use crate::rebuild::RebuildReport;
use crate::record::{Record, is_ahead};
use crate::store::{Store, now_unix_ms};
use crate::write;
use flate2::bufread::GzDecoder;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

/// The longest first entry that is read.
const MOST_HEADER_BYTES: u64 = 256 << 20;

/// The longest record or file of links that is read.
const MOST_JSON_BYTES: u64 = 256 << 20;

/// The account of one import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Who made the bundle, when and where.
    pub origin: Origin,
    /// When it was taken in.
    pub imported_unix_ms: u64,
    /// On which machine.
    pub host: String,
    /// By whom.
    pub by: String,
    /// The file.
    pub file: String,
    /// The records that were new here.
    pub records: Vec<Digest>,
}

/// What an import brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its account.
    pub import: Import,
    /// Records that were here already.
    pub known: u64,
    /// Records that were refused here before (they lie in quarantine) and stay out.
    pub refused: Vec<Digest>,
    /// Blobs that were new here.
    pub blobs: u64,
}

/// The content of a bundle, checked as far as it can be by itself.
struct Opened {
    header: Header,
    records: Vec<(Digest, Vec<u8>, Record)>,
    links: Vec<Linked>,
    blobs: Vec<(Blob, Temp)>,
}

impl Store {
    /// Takes a bundle in, all of it or nothing.
    ///
    /// # Errors
    /// [`Error::Bundle`] when the bundle is damaged, cut short, or not what it says;
    /// [`Error::SchemaTooNew`]; [`Error::Io`], [`Error::ReadOnly`].
    pub fn import_bundle(&self, bundle: &Path) -> Result<Imported> {
        self.writable()?;
        let opened = self.open_bundle(bundle)?;
        let mut files = Vec::new();
        let mut new = Vec::new();
        let (mut known, mut refused) = (0, Vec::new());
        let brought = opened.records.iter().map(|(digest, _, it)| (*digest, it));
        let all_refused = quarantine::refused_with(self.layout(), brought)?;
        for (digest, bytes, record) in opened.records {
            if all_refused.contains(&digest) {
                refused.push(digest);
            } else if self.record(&digest).is_ok() {
                known += 1;
            } else {
                files.push((
                    Temp::with(&self.layout().tmp(), &bytes)?,
                    self.layout().record(&digest),
                ));
                new.push((digest, bytes.len() as u64, record));
            }
        }
        if !opened.links.is_empty() {
            let bytes = LinkFile::new(opened.links.clone()).to_bytes()?;
            let path = self.layout().link(&Digest::of(&bytes));
            files.push((Temp::with(&self.layout().tmp(), &bytes)?, path));
        }
        let import = Import {
            origin: opened.header.origin,
            imported_unix_ms: now_unix_ms(),
            host: lock::host(),
            by: user(),
            file: bundle.display().to_string(),
            records: new.iter().map(|(digest, ..)| *digest).collect(),
        };
        if !new.is_empty() {
            let line = checked::line(&import)?;
            let name = format!("{}.json", Digest::of(&line));
            let temp = Temp::with(&self.layout().tmp(), line.as_bytes())?;
            files.push((temp, self.layout().imports().join(name)));
        }
        let mut blobs = 0;
        for (blob, temp) in opened.blobs {
            blobs += u64::from(!self.cas().contains(&blob.digest));
            self.cas().adopt(blob, temp)?;
        }
        self.cas().flush_before(files)?;
        self.transaction(|db| {
            let records = new
                .iter()
                .map(|(digest, size, record)| (digest, *size, record));
            write::insert_records(db, records, true)?;
            self.found_blobs(db)?;
            if !new.is_empty() {
                // Others than those of the bundle may have waited for its records.
                self.take_links(db, &mut RebuildReport::default())?;
                return Ok(());
            }
            let mut links = opened.links.iter();
            links.try_for_each(|link| candidates::link(db, link).map(|_| ()))
        })?;
        self.reload_stamp()?;
        Ok(Imported {
            import,
            known,
            refused,
            blobs,
        })
    }

    /// The accounts of all imports, the oldest first.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] when one cannot be read.
    pub fn imports(&self) -> Result<Vec<Import>> {
        let files = checked::files(&self.layout().imports(), ".json")?;
        let mut all: Vec<Import> = files
            .iter()
            .map(|path| checked::read(path))
            .collect::<Result<_>>()?;
        all.sort_by_key(|import| import.imported_unix_ms);
        Ok(all)
    }

    fn open_bundle(&self, path: &Path) -> Result<Opened> {
        let bad = |detail: String| bad(path, detail);
        let torn = |e: std::io::Error| torn(path, &e);
        let file = match path.as_os_str() == STREAM {
            true => std::io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .map(File::from),
            false => File::open(path),
        };
        let file = file.map_err(|e| Error::io("open", path, &e))?;
        let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(file)));
        let mut entries = tar.entries().map_err(torn)?;
        let mut first = match entries.next() {
            Some(entry) => entry.map_err(torn)?,
            None => return Err(bad("it is empty".to_owned())),
        };
        if &*first.path_bytes() != HEADER.as_bytes() || first.size() > MOST_HEADER_BYTES {
            return Err(bad(format!("its first entry is not `{HEADER}`")));
        }
        let mut text = Vec::new();
        first.read_to_end(&mut text).map_err(torn)?;
        drop(first);
        let header = header(&text, &bad)?;
        let mut expected: HashMap<String, Item> = HashMap::new();
        for (name, item) in header.names() {
            if expected.insert(name.clone(), item.clone()).is_some() {
                return Err(bad(format!("it lists `{name}` twice")));
            }
        }
        let mut opened = Opened {
            header,
            records: Vec::new(),
            links: Vec::new(),
            blobs: Vec::new(),
        };
        for entry in entries {
            let mut entry = entry.map_err(torn)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            // Only names that the header lists, so no other place can ever be meant.
            let Some(item) = expected.remove(&name) else {
                return Err(bad(format!("it holds `{name}`, which it does not list")));
            };
            if !entry.header().entry_type().is_file() {
                return Err(bad(format!("`{name}` is not a plain file")));
            }
            if entry.size() != item.size_bytes {
                return Err(bad(format!("`{name}` has another length than listed")));
            }
            let unread = |error: Error| match error {
                Error::SchemaTooNew { .. } => error,
                error => bad(format!("`{name}` cannot be read: {error}")),
            };
            let wrong = |found: Digest| bad(format!("`{name}` has the digest `{}`", found.short()));
            if name.starts_with("cas/") {
                let (temp, found) = self.unpack(&mut entry, path)?;
                if found != item.digest {
                    return Err(wrong(found));
                }
                let blob = Blob {
                    digest: item.digest,
                    size_bytes: item.size_bytes,
                };
                opened.blobs.push((blob, temp));
                continue;
            }
            if item.size_bytes > MOST_JSON_BYTES {
                return Err(bad(format!("`{name}` is too long")));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(torn)?;
            let found = Digest::of(&bytes);
            if found != item.digest {
                return Err(wrong(found));
            }
            match name.starts_with("records/") {
                true => {
                    let record = Record::from_bytes(&bytes).map_err(unread)?;
                    record.check_foreign().map_err(|e| bad(e.to_string()))?;
                    opened.records.push((item.digest, bytes, record));
                }
                false => {
                    let links = LinkFile::from_bytes(&bytes).map_err(unread)?;
                    opened.links.extend(links.links);
                }
            }
        }
        if let Some(name) = expected.keys().min() {
            return Err(bad(format!("`{name}` is missing: it was cut short")));
        }
        // The end of the archive and the check sum of the compression come after the last entry.
        let mut rest = tar.into_inner();
        let mut buffer = [0; 4096];
        loop {
            match rest.read(&mut buffer).map_err(torn)? {
                0 => break,
                count if buffer[..count].iter().all(|b| *b == 0) => {}
                _ => return Err(bad("something follows its end".to_owned())),
            }
        }
        if !rest.into_inner().fill_buf().map_err(torn)?.is_empty() {
            return Err(bad("something follows its end".to_owned()));
        }
        self.complete(&opened, &bad)?;
        Ok(opened)
    }

    /// Writes an entry to a temporary file, hashing it on the way.
    fn unpack(&self, entry: &mut impl Read, bundle: &Path) -> Result<(Temp, Digest)> {
        let (temp, mut file) = Temp::create(&self.layout().tmp())?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let count = entry.read(&mut buffer).map_err(|e| torn(bundle, &e))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            file.write_all(&buffer[..count])
                .map_err(|e| Error::io("write", temp.path(), &e))?;
        }
        temp.finish(&file)?;
        Ok((temp, hasher.finalize().into()))
    }

    /// Whether everything that the records need comes along or is here.
    fn complete(&self, opened: &Opened, bad: &dyn Fn(String) -> Error) -> Result<()> {
        let brought: HashMap<Digest, u64> = opened
            .blobs
            .iter()
            .map(|(blob, _)| (blob.digest, blob.size_bytes))
            .collect();
        for (_, _, record) in &opened.records {
            let outputs = record.outputs.values().map(|o| (o.digest, o.size_bytes));
            let logs = record.logs.iter().map(|l| (l.digest, l.size_bytes));
            for (blob, size) in outputs.chain(logs) {
                let there = brought
                    .get(&blob)
                    .copied()
                    .or_else(|| self.cas().size(&blob));
                if there != Some(size) {
                    let label = &record.label;
                    let short = blob.short();
                    return Err(bad(format!("blob `{short}` of `{label}` is not in it")));
                }
            }
        }
        let records: Vec<Digest> = opened.records.iter().map(|(digest, ..)| *digest).collect();
        if let Some(link) = opened.links.iter().find(|l| is_ahead(l.linked_unix_ms)) {
            return Err(bad(format!("it links `{}` in a time to come", link.label)));
        }
        match opened.links.iter().find(|l| !records.contains(&l.record)) {
            Some(link) => Err(bad(format!("it links `{}` to a stranger", link.label))),
            None => Ok(()),
        }
    }
}

fn bad(bundle: &Path, detail: String) -> Error {
    Error::Bundle {
        path: bundle.to_owned(),
        detail,
    }
}

fn torn(bundle: &Path, cause: &std::io::Error) -> Error {
    bad(bundle, format!("it is damaged or cut short: {cause}"))
}

fn header(text: &[u8], bad: &dyn Fn(String) -> Error) -> Result<Header> {
    #[derive(Deserialize)]
    struct Head {
        schema: u32,
    }
    let head: Head = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
    if head.schema > BUNDLE_SCHEMA {
        return Err(Error::SchemaTooNew {
            what: "bundle",
            found: head.schema,
            supported: BUNDLE_SCHEMA,
        });
    }
    serde_json::from_slice(text).map_err(|e| bad(e.to_string()))
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
