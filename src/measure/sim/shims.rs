//! A directory of shims: for each simulated tool an executable script of the tool's name that
//! runs `doe sim TOOL`, to be put first on the path. Installing again changes nothing; a script
//! is there whole or not at all, also while another process installs the same directory.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

use super::tools;

/// Tools beyond those of [`tools::NAMES`] that are simulated elsewhere.
const OTHERS: &[&str] = &["vllm"];

/// The names that get a shim.
pub fn names() -> impl Iterator<Item = &'static str> {
    tools::NAMES.iter().chain(OTHERS).copied()
}

/// Writes the shims into `dir`, which is made when it is missing. `doe` is the program that they
/// run; it is made absolute.
///
/// # Errors
/// `Infra`, when the directory or a script cannot be written; `Usage`, when the path of `doe` is
/// not text, since a script could not name it.
pub fn install(dir: &Path, doe: &Path) -> Result<()> {
    let doe = std::path::absolute(doe).map_err(|e| Error::io("make absolute", doe, &e))?;
    let Some(doe) = doe.to_str().filter(|p| !p.contains('\0')) else {
        return Err(Error::new(
            Kind::Usage,
            "shim-path",
            format!("the path of doe must be text: `{}`", doe.display()),
        ));
    };
    fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, &e))?;
    for tool in names() {
        let script = format!("#!/bin/sh\nexec {} sim {tool} \"$@\"\n", quoted(doe));
        write(&dir.join(tool), script.as_bytes())?;
    }
    Ok(())
}

/// As one word for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Writes an executable file under a temporary name and renames it.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    if is_current(path, content) {
        return Ok(());
    }
    let temporary = temporary_name(path);
    let written = (|| {
        let mut file = fs::File::create_new(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)
    })();
    written.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io("write the shim", path, &e)
    })
}

fn is_current(path: &Path, content: &[u8]) -> bool {
    let executable = fs::symlink_metadata(path)
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 == 0o111);
    executable && fs::read(path).is_ok_and(|old| old == content)
}

/// A name that no other process and no other thread uses.
fn temporary_name(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.{n}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shim_runs_doe_with_every_argument_as_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        // A program whose path needs quoting, and which prints what it got.
        let doe = dir.path().join("it's \"doe\" $HOME");
        write(
            &doe,
            b"#!/bin/sh\nfor a in \"$@\"; do printf '[%s]' \"$a\"; done\n",
        )
        .unwrap();
        let shims = dir.path().join("a/b");
        install(&shims, &doe).unwrap();
        let output = Command::new(shims.join("iperf3"))
            .args(["-c", "two words", "", "$(x)", "*"])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "[sim][iperf3][-c][two words][][$(x)][*]"
        );
        assert!(shims.join("vllm").exists());
        assert_eq!(fs::read_dir(&shims).unwrap().count(), names().count());
    }

    #[test]
    fn installing_again_changes_nothing_and_mends_what_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let doe = Path::new("/usr/bin/doe");
        install(dir.path(), doe).unwrap();
        let shim = dir.path().join("nixlbench");
        let inode = |p: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(p).unwrap());
        let before = inode(&shim);
        install(dir.path(), doe).unwrap();
        assert_eq!(inode(&shim), before);
        fs::write(&shim, "broken").unwrap();
        fs::set_permissions(dir.path().join("iperf3"), fs::Permissions::from_mode(0o600)).unwrap();
        install(dir.path(), doe).unwrap();
        assert!(fs::read_to_string(&shim).unwrap().contains("sim nixlbench"));
        let mode = fs::metadata(dir.path().join("iperf3"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), names().count());
    }
}
