//! The plan files of a workspace: every `*.toml` under the folder of the plans, in the order of
//! their packages. A file that is here has a name that labels can be made of.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Diagnostic, Error, Result, Site, SourceFile};
use crate::label::is_valid_package;
use crate::source::Doc;

/// Nesting of folders under `plans/` beyond this is not followed.
const MAX_DEPTH: usize = 16;

/// A plan on disk.
pub(super) struct PlanFile {
    /// `phase2`, `a/b`.
    pub(super) package: String,
    /// Where it is.
    pub(super) path: PathBuf,
    /// How messages call it.
    pub(super) shown: String,
}

/// Every `*.toml` under a folder, by package.
pub(super) fn plans(dir: &Path, shown: &str, diags: &mut Vec<Diagnostic>) -> Result<Vec<PlanFile>> {
    let mut files = Vec::new();
    if dir.exists() {
        collect(dir, shown, "", 0, &mut files, diags)?;
    }
    files.sort_by(|a, b| a.package.cmp(&b.package));
    Ok(files)
}

fn collect(
    dir: &Path,
    shown: &str,
    prefix: &str,
    depth: usize,
    files: &mut Vec<PlanFile>,
    diags: &mut Vec<Diagnostic>,
) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(|cause| Error::io("read", dir, &cause))?;
    for entry in entries {
        let entry = entry.map_err(|cause| Error::io("read", dir, &cause))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let (path, shown) = (entry.path(), format!("{shown}/{name}"));
        // Hidden files are editors' and version control's.
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if depth < MAX_DEPTH {
                let prefix = format!("{prefix}{name}/");
                collect(&path, &shown, &prefix, depth + 1, files, diags)?;
            }
            continue;
        }
        let Some(stem) = name.strip_suffix(".toml") else {
            continue;
        };
        let package = format!("{prefix}{stem}");
        if !is_valid_package(&package) {
            diags.push(
                Diagnostic::error(
                    "bad-name",
                    format!("`{shown}` cannot be a plan: `//{package}` is no package"),
                )
                .at(start_of(&path, &shown), "the name of this file")
                .hint("names of plans and their folders are letters, digits and `._+=,-`, and start with a letter or digit"),
            );
            continue;
        }
        files.push(PlanFile {
            package,
            path,
            shown,
        });
    }
    Ok(())
}

/// The first place of a file, its first line shown when it can be read.
fn start_of(path: &Path, shown: &str) -> Site {
    let text = match Doc::read(path, shown) {
        Ok((doc, _)) => return doc.table().site().clone(),
        Err(_) => String::new(),
    };
    let file = Arc::new(SourceFile::new(shown, text));
    Site { file, range: 0..0 }
}
