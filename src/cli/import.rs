//! `doe import FILE`: a plan of the predecessor becomes one of ours, with an account of what the
//! old system read past. Nothing is overwritten unless asked, and nothing is written when the file
//! cannot be read whole.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::plan::import::{self, Imported, Report};
use crate::plan::workspace::LoadOptions;

/// Arguments of `doe import`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The old plan, a JSON file.
    pub file: PathBuf,
    /// Where to write the new plan: a name such as `phase2`, for `plans/phase2.toml` of the
    /// workspace, or a path that ends in `.toml`, from the current folder; `-` for standard
    /// output. The file's own name by default.
    #[arg(long, value_name = "PLAN")]
    pub out: Option<PathBuf>,
    /// Overwrite a plan that is there.
    #[arg(long)]
    pub force: bool,
}

/// Largest file that is read: the predecessor's are under 100 kB.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Imports a plan. `root` is the workspace whose rules the new plan is for. The account goes to
/// `out`, unless the plan itself does.
///
/// # Errors
/// The file cannot be read or is no plan of the predecessor; the rules do not load; the new plan
/// exists and `--force` is not given; writing fails.
pub fn run(
    args: &Args,
    json: bool,
    root: &Path,
    options: &LoadOptions,
    out: &mut dyn Write,
) -> Result<Report> {
    let text = read(&args.file)?;
    let shown = args.file.file_name().unwrap_or(args.file.as_os_str());
    let loaded = crate::plan::parts::load_rules(root, options)?;
    let imported = import::import(&shown.to_string_lossy(), &text, &loaded.rules)?;
    let told = |cause: std::io::Error| Error::io("write", Path::new("standard output"), &cause);
    if args.out.as_deref() == Some(Path::new("-")) {
        out.write_all(imported.plan.as_bytes()).map_err(told)?;
        return Ok(imported.report);
    }
    let path = target(args, &loaded.plans_dir)?;
    write(&path, &imported.plan, args.force)?;
    let account = if json {
        let report = serde_json::to_string(&imported.report);
        let report = report.map_err(|cause| {
            Error::new(
                Kind::Bug,
                "not-json",
                "the report cannot be written as JSON",
            )
            .cause(cause)
        })?;
        format!("{report}\n")
    } else {
        account(&imported, &path)
    };
    out.write_all(account.as_bytes()).map_err(told)?;
    Ok(imported.report)
}

fn read(path: &Path) -> Result<String> {
    let failed = |cause| {
        Error::io("read", path, &cause).hint("give the JSON file of a plan of the predecessor")
    };
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE_BYTES {
        return Err(Error::new(
            Kind::Usage,
            "file-too-large",
            format!("`{}` is too large for a plan", path.display()),
        )
        .hint(format!("at most {MAX_FILE_BYTES} bytes are read")));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// The file to write: a plan by name lies in the workspace, anything else is a path.
fn target(args: &Args, plans_dir: &Path) -> Result<PathBuf> {
    let stem = || args.file.file_stem().map(PathBuf::from);
    let Some(given) = args.out.clone().or_else(stem) else {
        return Err(Error::new(
            Kind::Usage,
            "no-name",
            format!("`{}` has no name to call the plan by", args.file.display()),
        )
        .hint("name the plan with `--out NAME`"));
    };
    let name = given.to_string_lossy();
    // `plans/x` means what `x` means: nobody wants `plans/plans/x.toml`.
    let folder = plans_dir.file_name().map(|folder| folder.to_string_lossy());
    let name = folder
        .and_then(|folder| name.strip_prefix(&*folder)?.strip_prefix('/'))
        .unwrap_or(&name);
    if given.extension().is_none() && crate::label::is_valid_package(name) {
        return Ok(plans_dir.join(format!("{name}.toml")));
    }
    if given.extension().is_some_and(|e| e == "toml") {
        return Ok(given);
    }
    Err(Error::new(
        Kind::Usage,
        "bad-name",
        format!("`{name}` cannot be a plan"),
    )
    .hint("give a name such as `phase2`, a path that ends in `.toml`, or `-`"))
}

fn write(path: &Path, text: &str, force: bool) -> Result<()> {
    let failed = |cause: std::io::Error| Error::io("write", path, &cause);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    if force {
        // Whole or not at all: a full disk leaves the old plan alone.
        return doe_cache::replace(path, text.as_bytes()).map_err(failed);
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = match options.write(true).create_new(true).open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::new(
                Kind::Usage,
                "plan-exists",
                format!("`{}` is there already", path.display()),
            )
            .hint("`--force` overwrites it, `--out NAME` writes another"));
        }
        Err(cause) => return Err(failed(cause)),
    };
    file.write_all(text.as_bytes()).map_err(failed)
}

/// The account for people: counts first, then what is to be known, equal reasons together.
fn account(imported: &Imported, path: &Path) -> String {
    let report = &imported.report;
    let layers: Vec<_> = (report.by_layer.iter())
        .map(|layer| format!("{} {}", layer.layer, layer.patterns))
        .collect();
    let mut lines = vec![format!(
        "wrote {}: {} patterns ({})",
        path.display(),
        report.patterns,
        layers.join(", ")
    )];
    if !report.infeasible.is_empty() {
        lines.push(format!(
            "\n{} patterns could never have run in the old system:",
            report.infeasible.len()
        ));
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for item in &report.infeasible {
            match reasons
                .iter_mut()
                .find(|(reason, _)| *reason == item.reason)
            {
                Some((_, ids)) => ids.push(&item.id),
                None => reasons.push((&item.reason, vec![&item.id])),
            }
        }
        for (reason, ids) in reasons {
            lines.push(format!("  {}: {reason}", ids.join(" ")));
        }
    }
    if !report.dead_settings.is_empty() {
        lines.push(format!(
            "\n{} settings had no effect:",
            report.dead_settings.len()
        ));
        for dead in &report.dead_settings {
            lines.push(format!("  {} in {}: {}", dead.key, dead.place, dead.reason));
        }
    }
    if !report.warnings.is_empty() {
        lines.push("\nto be known:".to_owned());
        lines.extend(report.warnings.iter().map(|warning| format!("  {warning}")));
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::Workspace;

    const OLD: &str = r#"{"name": "small", "layers": [{"id": "L0-Baseline", "patterns": [
        {"id": "p-fi-info", "tool": "fi_info", "expected": {"efa_device_count": ">=1"}}]}]}"#;

    const RULES: &str = r#"
[fi_info]
roles = { client = {} }
[[fi_info.step]]
name = "query"
role = "client"
timeout = "1m"
run = "fi_info > {{ out.result }}"
[fi_info.output]
result = { path = "result.json", schema = "fi_info-v1" }
[fi_info.metric]
efa_device_count = { from = "result", at = "/n", unit = "devices" }
"#;

    fn workspace() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("doe.toml"), "").unwrap();
        std::fs::create_dir(root.path().join("rules")).unwrap();
        std::fs::write(root.path().join("rules/network.toml"), RULES).unwrap();
        std::fs::write(root.path().join("old.json"), OLD).unwrap();
        root
    }

    fn args(root: &Path) -> Args {
        Args {
            file: root.join("old.json"),
            out: None,
            force: false,
        }
    }

    #[test]
    fn a_plan_is_written_once_and_overwritten_only_when_asked() {
        let root = workspace();
        let options = LoadOptions::default();
        let mut out = Vec::new();
        let report = run(&args(root.path()), true, root.path(), &options, &mut out).unwrap();
        assert_eq!(report.patterns, 1);
        let told: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(told["by_layer"]["L0-Baseline"], 1);
        let path = root.path().join("plans/old.toml");
        let first = std::fs::read_to_string(&path).unwrap();
        assert!(first.contains("efa_device_count = \">= 1\""), "{first}");
        let loaded = Workspace::load(root.path(), &options).unwrap();
        assert_eq!(loaded.plans["old"].patterns.len(), 1);

        let again = run(
            &args(root.path()),
            true,
            root.path(),
            &options,
            &mut Vec::new(),
        )
        .unwrap_err();
        assert_eq!((again.code, again.kind), ("plan-exists", Kind::Usage));
        let forced = Args {
            force: true,
            ..args(root.path())
        };
        let mut out = Vec::new();
        run(&forced, false, root.path(), &options, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().starts_with("wrote "));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
        assert_eq!(
            std::fs::read_dir(root.path().join("plans"))
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn a_name_may_stand_with_the_folder_of_the_plans() {
        let root = workspace();
        for (out, file) in [("plans/a", "plans/a.toml"), ("b/c", "plans/b/c.toml")] {
            let args = Args {
                out: Some(out.into()),
                ..args(root.path())
            };
            let mut told = Vec::new();
            run(&args, true, root.path(), &LoadOptions::default(), &mut told).unwrap();
            assert!(root.path().join(file).is_file(), "{out}");
        }
    }

    #[test]
    fn a_text_that_ends_too_early_is_wrong_where_it_ends() {
        let root = workspace();
        std::fs::write(root.path().join("old.json"), "{\"a\":\n").unwrap();
        let options = LoadOptions::default();
        let wrong = run(
            &args(root.path()),
            true,
            root.path(),
            &options,
            &mut Vec::new(),
        );
        let wrong = wrong.unwrap_err();
        assert_eq!(wrong.diagnostics[0].sites[0].0.short(), "old.json:1:6");
    }

    #[test]
    fn the_plan_can_go_to_standard_output() {
        let root = workspace();
        let args = Args {
            out: Some("-".into()),
            ..args(root.path())
        };
        let mut out = Vec::new();
        run(&args, true, root.path(), &LoadOptions::default(), &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("[[layer]]"));
        assert!(!root.path().join("plans").exists());
    }

    #[test]
    fn what_is_no_plan_is_refused_and_nothing_is_written() {
        let root = workspace();
        for (text, code) in [
            ("{", "plan-invalid"),
            ("[]", "not-a-plan"),
            ("{\"a\": 1}", "not-a-plan"),
            ("{\"layers\": {}}", "not-a-plan"),
            ("{\"layers\": []}", "not-a-plan"),
            (
                "{\"layers\": [{\"id\": \"L0\", \"patterns\": []}]}",
                "not-a-plan",
            ),
        ] {
            std::fs::write(root.path().join("old.json"), text).unwrap();
            let error = run(
                &args(root.path()),
                true,
                root.path(),
                &LoadOptions::default(),
                &mut Vec::new(),
            );
            assert_eq!(error.unwrap_err().code, code, "{text}");
        }
        for out in ["a b", "x.json", ""] {
            std::fs::write(root.path().join("old.json"), OLD).unwrap();
            let args = Args {
                out: Some(out.into()),
                ..args(root.path())
            };
            let error = run(
                &args,
                true,
                root.path(),
                &LoadOptions::default(),
                &mut Vec::new(),
            );
            assert_eq!(error.unwrap_err().code, "bad-name", "{out}");
        }
        assert!(!root.path().join("plans").exists());
    }
}
