//! Files between folders of one machine. A file appears under its final name only when it is
//! whole; one that is named by its digest has been held against it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use doe_cache::Digest;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::folder::{check_inside, make_private};
use crate::error::{Error, Kind, Result};

/// What a file looked like when it was verified. Any write moves the change time.
type Stamp = (u64, u64, i64, i64);

fn stamp(metadata: &fs::Metadata) -> Stamp {
    (
        metadata.ino(),
        metadata.len(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

/// Files named by their digests in one folder.
#[derive(Debug)]
pub struct Blobs {
    dir: PathBuf,
    verified: Mutex<HashMap<Digest, Stamp>>,
}

impl Blobs {
    /// The blobs in a folder; it is made when first needed.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            verified: Mutex::default(),
        }
    }

    /// Makes sure that a blob is there and right, from a local file if it must be. Returns its
    /// path. Blocks.
    pub fn put(&self, digest: Digest, source: &Path) -> Result<PathBuf> {
        if let Some(path) = self.find(digest)? {
            return Ok(path);
        }
        let path = self.dir.join(hex(digest));
        make_private(&self.dir)?;
        let executable = fs::metadata(source)
            .map_err(|e| Error::io("read", source, &e))?
            .permissions()
            .mode()
            & 0o111
            != 0;
        let mut hasher = blake3::Hasher::new();
        let mode = if executable { 0o500 } else { 0o400 };
        let temporary = copy(source, &path, mode, |bytes| {
            hasher.update(bytes);
        })?;
        if Digest(*hasher.finalize().as_bytes()) != digest {
            return Err(changed(source));
        }
        temporary.publish()?;
        let metadata = fs::metadata(&path).map_err(|e| Error::io("read", &path, &e))?;
        self.remember(digest, stamp(&metadata));
        Ok(path)
    }

    /// The path of a blob that is there and right. Blocks.
    pub fn find(&self, digest: Digest) -> Result<Option<PathBuf>> {
        let path = self.dir.join(hex(digest));
        Ok(self.is_right(digest, &path)?.then_some(path))
    }

    fn is_right(&self, digest: Digest, path: &Path) -> Result<bool> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io("read", path, &e)),
        };
        let now = |file: &File| file.metadata().map(|m| stamp(&m));
        let before = now(&file).map_err(|e| Error::io("read", path, &e))?;
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.get(&digest) == Some(&before) {
            return Ok(true);
        }
        drop(verified);
        let mut hasher = blake3::Hasher::new();
        each_block(&mut file, |bytes| {
            hasher.update(bytes);
            Ok(())
        })
        .map_err(|e| Error::io("read", path, &e))?;
        if Digest(*hasher.finalize().as_bytes()) != digest {
            return Ok(false);
        }
        self.remember(digest, before);
        Ok(true)
    }

    fn remember(&self, digest: Digest, stamp: Stamp) {
        self.verified
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(digest, stamp);
    }
}

/// What is said of a file whose content is not the one that was to be sent.
pub fn changed(source: &Path) -> Error {
    Error::new(
        Kind::Integrity,
        "staged-file-changed",
        format!(
            "`{}` is not the file that was to be sent: its content has another digest",
            source.display()
        ),
    )
    .hint("it was changed meanwhile: run again")
}

/// The digest of a file and its SHA-256 in hex, of the same bytes. Every host has `sha256sum`, none
/// has BLAKE3. Blocks.
pub fn sums(path: &Path) -> Result<(Digest, String)> {
    let io = |e: std::io::Error| Error::io("read", path, &e);
    let mut file = File::open(path).map_err(io)?;
    let (mut blake, mut sha) = (blake3::Hasher::new(), Sha256::new());
    each_block(&mut file, |bytes| {
        blake.update(bytes);
        sha.update(bytes);
        Ok(())
    })
    .map_err(io)?;
    let sha256 = lower_hex(&sha.finalize());
    Ok((Digest(*blake.finalize().as_bytes()), sha256))
}

/// The SHA-256 of a text, as `sha256sum` prints it.
pub fn sha256_of(text: &[u8]) -> String {
    lower_hex(&Sha256::digest(text))
}

/// Bytes as `sha256sum` prints them.
pub fn lower_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A digest as a file name.
pub fn hex(digest: Digest) -> String {
    blake3::Hash::from_bytes(digest.0).to_hex().to_string()
}

/// Where named files of a folder lie. Names without a file are left out; names that lead out of
/// the folder, or to what is no file, are errors. Blocks.
pub fn found(from: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let names = names
        .iter()
        .map(|n| check_inside(n))
        .collect::<Result<Vec<_>>>()?;
    let mut found = Vec::new();
    for name in names {
        let Some(source) = inside(from, name)? else {
            continue;
        };
        // Opening a pipe would wait for ever.
        if !fs::metadata(&source).is_ok_and(|m| m.is_file()) {
            return Err(bad_output(name, "it is no regular file"));
        }
        found.push(source);
    }
    Ok(found)
}

/// Where a name in a folder leads; `None` when to nothing.
fn inside(folder: &Path, name: &Path) -> Result<Option<PathBuf>> {
    let path = folder.join(name);
    // The usual case needs no look at every folder above.
    if name.components().count() == 1 && fs::symlink_metadata(&path).is_ok_and(|m| m.is_file()) {
        return Ok(Some(path));
    }
    let source = match path.canonicalize() {
        Ok(path) => path,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        // What the step made leads nowhere, however the host does.
        Err(e)
            if matches!(
                Errno::from_io_error(&e),
                Some(Errno::LOOP | Errno::NAMETOOLONG)
            ) =>
        {
            return Err(bad_output(name, "its links lead nowhere"));
        }
        Err(e) => return Err(Error::io("read", &path, &e)),
    };
    let real_folder = folder
        .canonicalize()
        .map_err(|e| Error::io("read", folder, &e))?;
    if !source.starts_with(real_folder) {
        return Err(bad_output(
            name,
            "it links to something outside the working folder",
        ));
    }
    Ok(Some(source))
}

fn bad_output(name: &Path, why: &str) -> Error {
    Error::new(
        Kind::NodeFailed,
        "bad-output",
        format!("the output `{}` cannot be collected: {why}", name.display()),
    )
}

/// A whole file under a temporary name; it vanishes unless it is published.
struct Temporary {
    path: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Temporary {
    fn publish(mut self) -> Result<()> {
        fs::rename(&self.path, &self.target).map_err(|e| Error::io("write", &self.target, &e))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // Nobody knows of it: to leave it costs disk space only.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn copy(source: &Path, target: &Path, mode: u32, mut seen: impl FnMut(&[u8])) -> Result<Temporary> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = std::ffi::OsString::from(".doe-");
    name.push(format!(
        "{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ));
    let path = target.with_file_name(name);
    let mut input = File::open(source).map_err(|e| Error::io("read", source, &e))?;
    let mut output = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&path)
        .map_err(|e| Error::io("write", &path, &e))?;
    let temporary = Temporary {
        path,
        target: target.to_path_buf(),
        published: false,
    };
    // Not synced: blobs are held against their digests before each use, and what is collected
    // becomes durable in the store.
    each_block(&mut input, |bytes| {
        seen(bytes);
        output.write_all(bytes)
    })
    .map_err(|e| Error::io(&format!("copy `{}` to", source.display()), target, &e))?;
    Ok(temporary)
}

fn each_block(
    input: &mut File,
    mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut block = vec![0; 256 * 1024];
    loop {
        match input.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(length) => take(&block[..length])?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    #[test]
    fn a_blob_is_sent_once_verified_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("tool");
        fs::write(&source, b"content").unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).unwrap();
        let blobs = Blobs::new(dir.path().join("blobs"));
        let path = blobs.put(digest(b"content"), &source).unwrap();
        let first = fs::metadata(&path).unwrap();
        assert_eq!(first.permissions().mode() & 0o777, 0o500);

        // Neither the same nor a fresh look copies it again, even without the source.
        fs::remove_file(&source).unwrap();
        blobs.put(digest(b"content"), &source).unwrap();
        let fresh = Blobs::new(dir.path().join("blobs"));
        fresh.put(digest(b"content"), &source).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino());

        // Damage of the same length is seen at once, by the one that had verified it too.
        fs::write(&source, b"content").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"CONTENT").unwrap();
        blobs.put(digest(b"content"), &source).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
    }

    #[test]
    fn a_source_that_changed_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("tool");
        fs::write(&source, b"other").unwrap();
        let blobs = Blobs::new(dir.path().join("blobs"));
        let error = blobs.put(digest(b"content"), &source).unwrap_err();
        assert_eq!(error.kind, Kind::Integrity);
        assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0);
    }

    #[test]
    fn only_files_inside_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().canonicalize().unwrap().join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("a.json"), b"a").unwrap();
        fs::write(from.join("sub/b"), b"b\0\xff").unwrap();
        fs::write(dir.path().join("secret"), b"s").unwrap();
        std::os::unix::fs::symlink("a.json", from.join("latest")).unwrap();
        std::os::unix::fs::symlink("../secret", from.join("leak")).unwrap();
        let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();

        let got = found(
            &from,
            &names(&["a.json", "none", "sub/b", "latest", "a.json/x"]),
        )
        .unwrap();
        // A link is followed once and for all.
        let a = from.join("a.json");
        assert_eq!(got, [a.clone(), from.join("sub/b"), a]);

        std::os::unix::fs::symlink("round", from.join("round")).unwrap();
        for (name, code) in [
            ("leak", "bad-output"),
            ("round", "bad-output"),
            ("sub", "bad-output"),
            ("../secret", "bad-output-name"),
            ("/etc/passwd", "bad-output-name"),
        ] {
            let error = found(&from, &names(&[name])).unwrap_err();
            assert_eq!(error.code, code, "{name}");
        }
        let gone = found(&dir.path().join("gone"), &names(&["a"])).unwrap();
        assert!(gone.is_empty());
    }
}
