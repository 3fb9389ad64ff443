//! Where scripts on this machine find programs: the simulated tools first, then `doe`, then what
//! the user has.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// The search path. `bin` is made, with `doe` in it.
pub(super) fn search_path(bin: &Path, prefix: &[PathBuf], doe: &Path) -> Result<String> {
    std::fs::create_dir_all(bin).map_err(|e| Error::io("make", bin, &e))?;
    let link = bin.join("doe");
    if std::fs::read_link(&link).ok().as_deref() != Some(doe) {
        // One that names another program is none of ours any more.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(doe, &link).map_err(|e| Error::io("link", &link, &e))?;
    }
    let inherited =
        std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let folders = prefix.iter().cloned().chain([bin.to_owned()]);
    let folders = folders.chain(std::env::split_paths(&inherited));
    let path = std::env::join_paths(folders).map_err(|cause| {
        Error::new(Kind::Usage, "bad-path", "the search path cannot be made").cause(cause)
    })?;
    Ok(path.to_string_lossy().into_owned())
}
