//! The folder of one execution, as the wrapper reads and writes it: the same on every host and
//! for every executor. What is written here holds any value without loss; what is read here is
//! either whole or refused, so a torn record never passes for an outcome.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::procfs::ProcessId;
use super::remote::call::nonce;
use super::{Exit, Script, Token};
use crate::error::{Error, Kind, Result};
use crate::rule::variables;

mod late;
pub use late::{Late, late};

/// The program that runs a script on a host (POSIX shell).
pub const WRAPPER: &str = include_str!("wrapper.sh");

/// Settings of the wrapper: `token`, `work`, limits.
pub const JOB: &str = "job";
/// The script's environment as `export` lines. One that holds secrets begins with its own removal:
/// a shell that reads it has it open.
pub const ENV: &str = "env";
/// The script.
pub const SCRIPT: &str = "script";
/// Who runs it: `PID START_TICKS BOOT_ID`.
pub const PID: &str = "pid";
/// Stands for the boot in a claim that keeps everybody from running a script: the token was taken
/// back.
pub const REVOKED: &str = "revoked";
/// The exit record.
pub const EXIT: &str = "exit";
/// How the names of folders begin that are not in their place yet.
pub const UNPLACED: &str = ".new-";
/// What the wrapper itself had to say.
pub const WRAPPER_LOG: &str = "wrapper.log";

/// The smallest log that has room for a head, a tail and the note between them.
const SMALLEST_LOG_BYTES: u64 = 4096;
const LONGEST_TOKEN_BYTES: usize = 96;

/// What the wrapper must know beside the script.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// The submission.
    pub token: &'a Token,
    /// The script.
    pub script: &'a Script,
    /// Time between TERM and KILL when the limit is up or the script leaves processes behind.
    pub grace: Duration,
    /// Whether orphans of the tree fall to the wrapper (the launcher made it a subreaper).
    pub adopts: bool,
}

/// Puts a text into single quotes for a POSIX shell.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Checks that a token can be a file name and a shell word: 1 to 96 letters, digits and `._:-`,
/// the first a letter or digit.
pub fn check_token(token: &Token) -> Result<()> {
    let text = &token.0;
    let safe = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    if text.len() <= LONGEST_TOKEN_BYTES
        && text.bytes().all(safe)
        && text
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric)
    {
        return Ok(());
    }
    Err(Error::new(
        Kind::Bug,
        "bad-token",
        format!(
            "`{text}` cannot be a token: expected 1 to {LONGEST_TOKEN_BYTES} letters, digits and `._:-`, a letter or digit first"
        ),
    ))
}

/// The content of `job`, `env` and `script` (in this order), each with its file name.
pub fn files(job: &Job<'_>) -> Result<[(&'static str, String); 3]> {
    check_token(job.token)?;
    let script = job.script;
    check_script(script)?;
    // The wrapper counts in hundredths of a second; a limit above zero stays above zero.
    let hundredths = |d: Duration| d.as_millis().div_ceil(10).min(u128::from(u32::MAX));
    let settings = format!(
        "token={}\nwork={}\ntimeout_cs={}\ngrace_cs={}\ncap_bytes={}\nadopts={}\n{}",
        quote(&job.token.0),
        quote(&script.work.to_string_lossy()),
        script.timeout.map_or(0, |limit| hundredths(limit).max(1)),
        hundredths(job.grace),
        script
            .log_cap_bytes
            .clamp(SMALLEST_LOG_BYTES, i64::MAX as u64),
        u8::from(job.adopts),
        if script.is_private() {
            "private=1\n"
        } else {
            ""
        },
    );
    Ok([
        (JOB, settings),
        (ENV, environment(script)),
        (SCRIPT, script.text.clone()),
    ])
}

/// Refuses a script that cannot be run as it is written.
pub fn check_script(script: &Script) -> Result<()> {
    if !script.work.to_str().is_some_and(|w| w.starts_with('/')) {
        return Err(refused(
            script,
            format!(
                "its working folder `{}` must be an absolute path in UTF-8",
                script.work.display()
            ),
        ));
    }
    if script.text.contains('\0') || script.work.to_string_lossy().contains('\0') {
        return Err(refused(script, "it holds a NUL byte".to_string()));
    }
    for (name, value) in &script.env {
        if !variables::is_name(name) {
            return Err(refused(
                script,
                format!(
                    "`{name}` cannot be a variable: expected letters, digits and `_`, no digit first"
                ),
            ));
        }
        if variables::is_own(name) {
            return Err(refused(
                script,
                format!(
                    "the variable `{name}` belongs to the shell or to doe: choose another name"
                ),
            ));
        }
        if value.contains('\0') {
            return Err(refused(
                script,
                format!("the variable `{name}` holds a NUL byte"),
            ));
        }
        if !variables::fits(name, value) {
            return Err(refused(
                script,
                format!(
                    "the variable `{name}` has {} bytes, more than a program can be given: pass a file instead",
                    value.len()
                ),
            ));
        }
    }
    Ok(())
}

fn environment(script: &Script) -> String {
    let exports = script.env.iter();
    let exports = exports.map(|(name, value)| format!("export {name}={}\n", quote(value)));
    let removal = "rm -f -- \"$dir/env\" \"$dir/payload\"\n".to_owned();
    let removal = script.is_private().then_some(removal);
    removal.into_iter().chain(exports).collect()
}

fn refused(script: &Script, why: String) -> Error {
    Error::new(
        Kind::Plan,
        "script-refused",
        format!("the script `{}` cannot be run: {why}", script.name),
    )
}

/// Makes a private folder and its parents.
pub fn make_private(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::io("make the folder", dir, &e))
}

/// Makes a private folder, and one that is there already private: nobody else may put anything
/// into it. One of somebody else, who could take that back, is an error.
pub fn make_own(dir: &Path) -> Result<()> {
    make_private(dir)?;
    let meta = fs::metadata(dir).map_err(|e| Error::io("look at", dir, &e))?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        let text = format!("the folder `{}` belongs to somebody else", dir.display());
        let hint = "name another `root` for the platform";
        return Err(Error::new(Kind::Infra, "foreign-folder", text).hint(hint));
    }
    // Whose group things are in is the site's matter: quotas go by it.
    let mode = 0o700 | (meta.mode() & 0o2000);
    if meta.mode() & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
        .map_err(|e| Error::io("keep to ourselves", dir, &e))
}

/// Writes a new private file.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(|e| Error::io("write", path, &e))
}

/// Writes a private file that is whole or as it was, whoever reads it meanwhile.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    put(path, content, false)
}

/// The same; it is on disk when this returns.
pub fn durable(path: &Path, content: &[u8]) -> Result<()> {
    put(path, content, true)
}

fn put(path: &Path, content: &[u8], sync: bool) -> Result<()> {
    let new = path.with_file_name(format!(".new-{}", nonce()));
    let put = || {
        let mut open = fs::OpenOptions::new();
        let mut file = open.write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        if sync {
            file.sync_all()?;
        }
        fs::rename(&new, path)?;
        match path.parent().filter(|_| sync) {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    put().map_err(|e| {
        let _ = fs::remove_file(&new);
        Error::io("write", path, &e)
    })
}

/// Makes a private folder with these files, to be put in its place. One that cannot be made whole is
/// removed: it may hold secrets.
pub fn make_filled<'a>(
    dir: &Path,
    files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<()> {
    make_private(dir)?;
    let mut files = files.into_iter();
    let filled = files.try_for_each(|(name, content)| write_private(&dir.join(name), content));
    if filled.is_err() {
        let _ = fs::remove_dir_all(dir);
    }
    filled
}

/// Removes folders that somebody who was killed was about to put in place. `is_left` is asked with
/// what comes behind the begin of the name, which all of them have.
pub fn remove_unplaced(runs: &Path, is_left: impl Fn(&str, &fs::DirEntry) -> bool) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(UNPLACED));
        if rest.is_some_and(|rest| is_left(rest, &entry)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Who claimed an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The session leader.
    pub leader: ProcessId,
    /// The boot that the start time counts from.
    pub boot_id: String,
}

impl Claim {
    /// Parses the file `pid`.
    pub fn parse(text: &str) -> Option<Self> {
        let (line, _) = text.split_once('\n')?;
        let mut words = line.split(' ');
        let claim = Self {
            leader: ProcessId {
                pid: words.next()?.parse().ok()?,
                start_ticks: words.next()?.parse().ok()?,
            },
            boot_id: words.next()?.to_string(),
        };
        words.next().is_none().then_some(claim)
    }

    /// Reads the claim in a folder; `None` when nobody has claimed it.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(PID);
        Ok(read_if_there(&path)?.and_then(|text| Self::parse(&text)))
    }
}

/// Makes the claim in a folder, so that nobody begins any more. False when somebody has made one.
pub fn revoke_claim(dir: &Path) -> Result<bool> {
    let path = dir.join(PID);
    let mut open = fs::OpenOptions::new();
    match open.write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let text = format!("0 0 {REVOKED}\n");
            file.write_all(text.as_bytes())
                .map_err(|e| Error::io("write", &path, &e))?;
            forget_environment(dir);
            Ok(true)
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("write", &path, &e)),
    }
}

/// Removes the environment of a script that will not begin: it may hold secrets.
pub fn forget_environment(dir: &Path) {
    let _ = fs::remove_file(dir.join(ENV));
}

/// What a folder says about the end of an execution.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// There is none.
    Missing,
    /// There is one, but it is not whole.
    Torn,
    /// A whole one.
    Whole(Exit),
}

/// When what ran in this folder ended, once its exit record is whole.
pub fn ended_unix_ms(dir: &Path) -> Result<Option<u64>> {
    Ok(match Record::read(dir)? {
        Record::Whole(exit) => Some(exit.ended_unix_ms),
        _ => None,
    })
}

impl Record {
    /// Parses the file `exit`. Only a record with every field and its last line is whole.
    pub fn parse(text: &str) -> Self {
        Self::whole(text).map_or(Self::Torn, Self::Whole)
    }

    fn whole(text: &str) -> Option<Exit> {
        let mut fields = BTreeMap::new();
        let mut lines = text.split('\n');
        loop {
            let line = lines.next()?;
            if line == "end" {
                // A last line is one that ends: the wrapper pads what comes after it.
                lines.next()?;
                break;
            }
            let (name, value) = line.split_once('=')?;
            if fields.insert(name, value).is_some() {
                return None;
            }
        }
        let optional = |name: &str| match *fields.get(name)? {
            "" => Some(None),
            number => Some(Some(number.parse::<i32>().ok()?)),
        };
        // A shell that cannot tell leaves them empty.
        let cpu = || {
            Some(doe_cache::CpuTime {
                system_ms: of_times(fields.get("cpu_system")?)?,
                user_ms: of_times(fields.get("cpu_user")?)?,
            })
        };
        let exit = Exit {
            code: optional("code")?,
            signal: optional("signal")?,
            timed_out: match *fields.get("timed_out")? {
                "0" => false,
                "1" => true,
                _ => return None,
            },
            started_unix_ms: fields.get("started_ms")?.parse().ok()?,
            ended_unix_ms: fields.get("ended_ms")?.parse().ok()?,
            cpu: cpu(),
        };
        (exit.code.is_some() != exit.signal.is_some()).then_some(exit)
    }

    /// Reads the record in a folder.
    pub fn read(dir: &Path) -> Result<Self> {
        Ok(match read_if_there(&dir.join(EXIT))? {
            None => Self::Missing,
            Some(text) => Self::parse(&text),
        })
    }
}

/// Reads what `times` of a shell says: `1m2.345s`. In ms.
fn of_times(text: &str) -> Option<u64> {
    let (minutes, rest) = text.split_once('m')?;
    let seconds: f64 = rest.strip_suffix('s')?.replace(',', ".").parse().ok()?;
    let seconds = f64::from(minutes.parse::<u32>().ok()?) * 60.0 + seconds;
    let is_plausible = (0.0..1e12).contains(&seconds);
    is_plausible.then(|| (seconds * 1000.0).round() as u64)
}

/// Facts from `name=value` lines.
pub fn parse_facts(text: &str) -> super::Facts {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_string(), value.trim().to_string()))
        .collect()
}

/// Refuses a name that could lead out of the folder it is looked up in.
pub fn check_inside(name: &str) -> Result<&Path> {
    let path = Path::new(name);
    let inside = path
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if inside && !name.is_empty() && !name.ends_with('/') && !name.contains('\0') {
        return Ok(path);
    }
    Err(Error::new(
        Kind::Plan,
        "bad-output-name",
        format!("`{name}` is no file name inside the working folder"),
    )
    .hint("expected a relative path without `..`, for example `result.json` or `logs/server.txt`"))
}

/// Reads a text; `None` when there is no such file.
pub fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, &e)),
    }
}

/// Where the programs, blobs and executions of an executor lie under its root.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout under a root folder.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder with one folder per execution.
    pub fn runs(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// The folder of one execution; the token was checked.
    pub fn run(&self, token: &Token) -> PathBuf {
        self.runs().join(&token.0)
    }

    /// Folder of staged files, each named by its digest.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The wrapper, named by its content so that versions of `doe` do not disturb each other.
    pub fn wrapper(&self) -> PathBuf {
        let digest = blake3::hash(WRAPPER.as_bytes()).to_hex();
        self.root.join(format!("wrapper-{}.sh", &digest[..16]))
    }
}

#[cfg(test)]
mod tests;
