//! Files appear whole and durable, or not at all: written under `tmp/`, synced, renamed into
//! place, and the folder synced. Many files share one pass, because a sync costs milliseconds
//! however little there is to write.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fault::{self, Point, Tear};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
#[cfg(target_os = "linux")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// From this many files on, one sync of the whole file system is cheaper than one a file.
const SYNC_ALL_FROM: usize = 8;

/// Permission bits of what is published: immutable, so nobody may write.
const READ_ONLY: u32 = 0o444;

/// A file under `tmp/`, removed when dropped unless it was published.
#[derive(Debug)]
pub(crate) struct Temp {
    path: PathBuf,
    keep: bool,
    tear: Tear,
}

impl Temp {
    /// Makes an empty file with a name that nobody else has, and opens it for writing.
    pub(crate) fn create(tmp: &Path) -> Result<(Self, File)> {
        Self::create_as(tmp, ("", ""))
    }

    /// The same in a folder of a user's: hidden, and gone at the latest when the next one is made there
    /// after a day. A process of that number may be another machine's, which shares the folder.
    pub(crate) fn create_beside(folder: &Path) -> Result<(Self, File)> {
        const NAME: (&str, &str) = (".doe-", ".part");
        const LEFT: Duration = Duration::from_secs(24 * 3600);
        let is_left = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let name = name.to_str()?.strip_prefix(NAME.0)?.strip_suffix(NAME.1)?;
            let (pid, count) = name.split_once('-')?;
            let is_ours = pid.parse::<u32>().is_ok() && count.parse::<u64>().is_ok();
            let written = entry.metadata().ok()?.modified().ok()?;
            Some(is_ours && written.elapsed().ok()? > LEFT)
        };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if is_left(&entry) == Some(true) {
                // Whose it is may have rights of their own.
                let _ = fs::remove_file(entry.path());
            }
        }
        Self::create_as(folder, NAME)
    }

    fn create_as(tmp: &Path, (before, after): (&str, &str)) -> Result<(Self, File)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let open = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        let tear = fault::before_write(Point::BeforeTmpWrite);
        let tear = tear.map_err(|e| Error::io("write in", tmp, &e))?;
        loop {
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let pid = std::process::id();
            let path = tmp.join(format!("{before}{pid}-{count}{after}"));
            let opened = match open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    create_dir(tmp)?;
                    open(&path)
                }
                other => other,
            };
            match opened {
                Ok(file) => {
                    let keep = false;
                    return Ok((Self { path, keep, tear }, file));
                }
                // Left behind by a process with our number that died.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("create", &path, &e)),
            }
        }
    }

    /// Makes a file with this content. It is read-only from now on, and not yet durable.
    pub(crate) fn with(tmp: &Path, bytes: &[u8]) -> Result<Self> {
        let (temp, mut file) = Self::create(tmp)?;
        file.write_all(bytes)
            .map_err(|e| Error::io("write", &temp.path, &e))?;
        temp.finish(&file)?;
        Ok(temp)
    }

    /// Takes away the right to write, once the content is complete.
    pub(crate) fn finish(&self, file: &File) -> Result<()> {
        self.tear_where_armed()?;
        file.set_permissions(Permissions::from_mode(READ_ONLY))
            .map_err(|e| Error::io("set the permissions of", &self.path, &e))?;
        at(Point::AfterTmpWrite, "write", &self.path)
    }

    /// The process dies here with a part of the file, where that was asked for.
    pub(crate) fn tear_where_armed(&self) -> Result<()> {
        let torn = self.tear.cut(&self.path);
        torn.map_err(|e| Error::io("write", &self.path, &e))
    }

    /// Where it is now.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has got its final name.
    pub(crate) fn is_published(&self) -> bool {
        self.keep
    }

    /// Makes a file with the content of another, like [`Self::with`]; the digest and the length of
    /// what was copied.
    pub(crate) fn copy(tmp: &Path, path: &Path) -> Result<(Self, Digest, u64)> {
        let mut source = File::open(path).map_err(|e| Error::io("open", path, &e))?;
        let (temp, mut file) = Self::create(tmp)?;
        let mut hasher = blake3::Hasher::new();
        // Most are small: to fill a large buffer with zeros would cost more than to read them.
        let expected = source.metadata().map_or(0, |meta| meta.len());
        let mut buffer =
            vec![0; usize::try_from(expected).map_or(1 << 17, |n| n.clamp(1 << 12, 1 << 17))];
        let mut size_bytes = 0;
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io("read", path, &e)),
            };
            hasher.update(&buffer[..count]);
            size_bytes += count as u64;
            file.write_all(&buffer[..count])
                .map_err(|e| Error::io("write", &temp.path, &e))?;
        }
        temp.finish(&file)?;
        Ok((temp, hasher.finalize().into(), size_bytes))
    }

    /// The same content, as its digest says, in a file that was not synced yet; `None` where it is
    /// not to be had. A sync that failed may leave pages behind that count as written and never
    /// were: to sync that file again proves nothing, and what is read of it may be something else.
    pub(crate) fn again(self, digest: &Digest) -> Option<Self> {
        let tmp = self.path.parent().unwrap_or(&self.path);
        let (temp, found, _) = Self::copy(tmp, &self.path).ok()?;
        (found == *digest).then_some(temp)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing refers to it: a failure costs disk space only.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Passes a point where a test may have the disk refuse; the words are those of the real refusal.
pub(crate) fn at(point: Point, what: &'static str, path: &Path) -> Result<()> {
    fault::hit(point).map_err(|e| Error::io(what, path, &e))
}

/// Publishes complete temporary files under their final names. Groups become visible in order:
/// when a file of one group survives a crash, so do all files of the groups before it. On return
/// everything is durable. Existing files are replaced, so content must follow from the name.
pub(crate) fn publish(root: &Path, mut groups: Vec<Vec<(Temp, PathBuf)>>) -> Result<()> {
    publish_from(root, None, &mut groups)
}

/// [`publish`], for whoever wants to have the files back that it did not come to. When it fails,
/// names that were given may not be on disk, and no later call brings them there: see [`sync_all`].
/// `opened` is the root, opened before anything of this was written.
pub(crate) fn publish_from(
    root: &Path,
    opened: Option<&File>,
    groups: &mut [Vec<(Temp, PathBuf)>],
) -> Result<()> {
    let files: Vec<&Path> = groups.iter().flatten().map(|(t, _)| t.path()).collect();
    at(Point::BeforeFsync, "sync", root)?;
    sync(root, opened, &files)?;
    at(Point::AfterFsync, "sync", root)?;
    for group in groups {
        // Folders of which an entry is new. Compared as text: as paths, name by name, it takes long.
        let mut parents = BTreeSet::new();
        for (temp, path) in group {
            let path: &Path = path;
            let parent = path.parent().unwrap_or(root);
            if parents.insert(parent.as_os_str())
                && let Some(above) = parent.parent().filter(|_| !parent.is_dir())
            {
                create_dir(above)?;
                match fs::create_dir(parent) {
                    Err(e) if !parent.is_dir() => {
                        return Err(Error::io("create the folder", parent, &e));
                    }
                    _ => drop(parents.insert(above.as_os_str())),
                }
            }
            at(Point::BeforeRename, "rename to", path)?;
            fs::rename(&temp.path, path).map_err(|e| Error::io("rename to", path, &e))?;
            temp.keep = true;
            at(Point::AfterRename, "rename to", path)?;
        }
        let parents: Vec<&Path> = parents.into_iter().map(Path::new).collect();
        at(Point::BeforeDirSync, "sync", root)?;
        sync(root, opened, &parents)?;
        at(Point::AfterDirSync, "sync", root)?;
    }
    Ok(())
}

/// Makes a folder and those above it, durably.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dir(parent)?;
    }
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        Err(e) => return Err(Error::io("create the folder", dir, &e)),
    }
    match dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => sync_one(parent),
        None => Ok(()),
    }
}

/// All files below a folder, in order.
pub(crate) fn sorted_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    files_below(dir, &mut |path, _| files.push(path.to_owned()))?;
    files.sort();
    Ok(files)
}

/// The content of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::io("read", path, &e))
}

/// Removes the temporary files of other processes, which must be dead.
pub(crate) fn sweep(tmp: &Path) -> Result<u64> {
    let ours = format!("{}-", std::process::id());
    let list = match fs::read_dir(tmp) {
        Ok(list) => list,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(Error::io("list", tmp, &e)),
    };
    let mut count = 0;
    for entry in list {
        let entry = entry.map_err(|e| Error::io("list", tmp, &e))?;
        if !entry.file_name().to_string_lossy().starts_with(&ours) {
            let path = entry.path();
            // None of ours is a folder, and what somebody else put here is in nobody's way.
            match fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::IsADirectory => continue,
                done => done.map_err(|e| Error::io("remove", &path, &e))?,
            }
            count += 1;
        }
    }
    Ok(count)
}

/// Links a file into a folder, under `name` or, when that is taken, a numbered one; durable on
/// return. Where it is now too.
pub(crate) fn keep(file: &Path, dir: &Path, name: &str) -> Result<PathBuf> {
    create_dir(dir)?;
    at(Point::BeforeQuarantine, "quarantine", file)?;
    for target in numbered(dir, name) {
        // A link fails when the name is taken, where a rename would replace.
        match fs::hard_link(file, &target) {
            Ok(()) => {
                sync_one(dir)?;
                at(Point::AfterQuarantine, "quarantine", file)?;
                return Ok(target);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io("quarantine", file, &e)),
        }
    }
    unreachable!("a folder holds fewer than 2^32 files of one name")
}

/// The names that [`keep`] gives, in their order.
pub(crate) fn numbered(dir: &Path, name: &str) -> impl Iterator<Item = PathBuf> {
    (0..u32::MAX).map(move |count| match count {
        0 => dir.join(name),
        n => dir.join(format!("{name}.{n}")),
    })
}

/// Moves a file out of the way, durably: see [`keep`].
pub(crate) fn quarantine(file: &Path, dir: &Path, name: &str) -> Result<PathBuf> {
    let target = keep(file, dir, name)?;
    fs::remove_file(file).map_err(|e| Error::io("remove", file, &e))?;
    sync_parents([file])?;
    Ok(target)
}

/// Removes a file; says whether it was there. It is gone for good after [`sync_parents`].
pub(crate) fn remove(path: &Path) -> Result<bool> {
    at(Point::BeforeRemove, "remove", path)?;
    let there = match fs::remove_file(path) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io("remove", path, &e)),
    };
    at(Point::AfterRemove, "remove", path)?;
    Ok(there)
}

/// Makes it durable that files came or went.
pub(crate) fn sync_parents<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let parents: BTreeSet<&Path> = paths.into_iter().filter_map(Path::parent).collect();
    // One that is gone too has nothing left to lose.
    let parents: Vec<&Path> = parents.into_iter().filter(|p| p.is_dir()).collect();
    match parents.first() {
        Some(first) => sync(first, None, &parents),
        None => Ok(()),
    }
}

/// What lies in a folder; nothing where there is no folder.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    use io::ErrorKind::{NotADirectory, NotFound};
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    };
    match list() {
        Err(e) if matches!(e.kind(), NotFound | NotADirectory) => Ok(Vec::new()),
        other => other.map_err(|e| Error::io("list", dir, &e)),
    }
}

/// Calls `visit` for every file two levels down (`ab/cdef…`), in no particular order. A folder
/// that is not there has no files; a file that vanishes meanwhile is passed over.
pub(crate) fn files_below(dir: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) -> Result<()> {
    for folder in entries(dir)? {
        for path in entries(&folder)? {
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_file() => visit(&path, &meta),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("look at", &path, &e)),
            }
        }
    }
    Ok(())
}

/// Whether [`files_below`] would find any file.
pub(crate) fn any_below(dir: &Path) -> Result<bool> {
    let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    for folder in entries(dir)? {
        if entries(&folder)?.iter().any(is_file) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A descriptor hears of failed writes from when it was opened on, and of earlier ones only while
/// nobody else has been told of them: hence one that was `opened` before the writes.
fn sync(root: &Path, opened: Option<&File>, paths: &[&Path]) -> Result<()> {
    #[cfg(target_os = "linux")]
    if paths.len() >= SYNC_ALL_FROM && syncfs_tells() {
        let io = |e: io::Error| Error::io("sync", root, &e);
        let synced = match opened {
            Some(dir) => rustix::fs::syncfs(dir),
            None => rustix::fs::syncfs(File::open(root).map_err(io)?),
        };
        return synced.map_err(|e| io(e.into()));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (root, opened);
    paths.iter().try_for_each(|path| sync_one(path))
}

/// Whether this kernel's `syncfs` says so when something could not be written. Asked for once, as
/// `uname -r` asks; a kernel that does not say which it is is believed nothing.
#[cfg(target_os = "linux")]
fn syncfs_tells() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| {
        let release = fs::read("/proc/sys/kernel/osrelease");
        release.is_ok_and(|release| tells_of_failed_writes(&release))
    })
}

/// `syncfs` of a kernel before 5.8 returns 0 whatever became of the writes (syncfs(2), "VERSIONS"),
/// where `fsync` of each file tells.
#[cfg(target_os = "linux")]
fn tells_of_failed_writes(release: &[u8]) -> bool {
    let numbers = release.split(|byte| !byte.is_ascii_digit());
    let mut numbers = numbers.map(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
    let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
    matches!((major, minor), (Some(major), Some(minor)) if (major, minor) >= (5, 8))
}

/// Brings to disk whatever lies below a root, whoever left it there unsynced.
pub(crate) fn sync_all(root: &Path) -> Result<()> {
    at(Point::BeforeDirSync, "sync", root)?;
    #[cfg(target_os = "linux")]
    if syncfs_tells() {
        let dir = File::open(root).map_err(|e| Error::io("open", root, &e))?;
        rustix::fs::syncfs(&dir).map_err(|e| Error::io("sync", root, &e.into()))?;
    } else {
        sync_folders(root)?;
    }
    #[cfg(not(target_os = "linux"))]
    sync_folders(root)?;
    at(Point::AfterDirSync, "sync", root)
}

/// Files are synced before they get their names: what can be missing are names.
fn sync_folders(root: &Path) -> Result<()> {
    for folder in entries(root)?.into_iter().chain([root.to_owned()]) {
        for below in entries(&folder)?.into_iter().chain([folder]) {
            if below.is_dir() {
                sync_one(&below)?;
            }
        }
    }
    Ok(())
}

/// Makes what is in a file, or the names in a folder, durable.
pub(crate) fn sync_one(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|e| Error::io("sync", path, &e))
}

#[cfg(test)]
#[path = "durable_tests.rs"]
mod tests;
