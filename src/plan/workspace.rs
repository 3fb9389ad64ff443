//! From a folder to a [`Workspace`]: `doe.toml`, every rule file and every plan under it. Whatever
//! is wrong anywhere is told in one go, in the order of files and lines; a workspace comes out
//! only when nothing is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doe_cache::remote::Target;

use super::expand::{self, CommandLine, Context, Expanded, name_hints};
use super::files::plan_files;
use super::model::{Platform, Workspace};
use super::order::in_file_order;
use super::resolve::{self, Index};
use super::{compare, followup, monitor, platform, probing, read, remote};
use crate::error::{Diagnostic, Error, Kind, Result, Severity, nearest};
use crate::rule::load as rule_load;
use crate::rule::model::{Rule, RuleId};
use crate::rule::retry::RetryDef;
use crate::source::{Doc, Table, Text};

/// The file that makes a folder a workspace.
pub const WORKSPACE_FILE: &str = "doe.toml";

/// What a workspace is loaded with.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// `--set k=v`: for every pattern whose rule has `k`.
    pub sets: Vec<(String, String)>,
    /// What rule scripts may call of `doe`: `measure openai`, `parse iperf3`, `proxy`.
    pub known_instruments: Vec<String>,
    /// Names of executors; when empty, none is refused.
    pub known_executors: Vec<String>,
    /// Whether the `sim` table of a platform is a profile of simulated hosts; the reason if not.
    pub sim_profile: Option<platform::SimCheck>,
}

/// How long what runs outlives a `doe` that was killed, unless the workspace says otherwise.
const SURVIVE_S: f64 = 600.0;

/// `doe.toml`, read.
pub(super) struct Head {
    platforms: BTreeMap<String, Platform>,
    default_platform: String,
    pub(super) plans: PathBuf,
    pub(super) rules: PathBuf,
    pub(super) state: PathBuf,
    remote: Option<Target>,
    survive_s: f64,
    retry: RetryDef,
}

/// The folders that `doe.toml` names, relative to its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// Plans.
    pub plans: PathBuf,
    /// Rule files.
    pub rules: PathBuf,
    /// The store.
    pub state: PathBuf,
    /// The platform used when nobody names one.
    pub platform: String,
}

/// Reads nothing but the folders out of `doe.toml`; `None` when anything is wrong with it, or when
/// there is more to a store than a folder: a mirror.
pub fn folders(root: &Path) -> Option<Folders> {
    let (doc, found) = Doc::read(&root.join(WORKSPACE_FILE), WORKSPACE_FILE).ok()?;
    let mut diags = found;
    let unreadable = has_errors(&diags);
    let head = head(&doc, unreadable, &LoadOptions::default(), &mut diags);
    (!has_errors(&diags) && head.remote.is_none()).then_some(Folders {
        plans: head.plans,
        rules: head.rules,
        state: head.state,
        platform: head.default_platform,
    })
}

/// The workspace that a folder belongs to: `given` when named, else the nearest folder at or above
/// `start` that has a `doe.toml`.
///
/// # Errors
/// `no-workspace`: there is none.
pub fn find_root(start: &Path, given: Option<&Path>) -> Result<PathBuf> {
    let none = |message: String| {
        Error::new(Kind::Usage, "no-workspace", message).hint(
            "a workspace is a folder with a `doe.toml`, which may be empty; `doe init` makes one",
        )
    };
    if let Some(given) = given {
        if given.join(WORKSPACE_FILE).is_file() {
            // Steps run in folders of their own, so the paths made of it must not be relative.
            return std::path::absolute(given).map_err(|e| Error::io("find", given, &e));
        }
        return Err(none(format!(
            "`{}` has no `{WORKSPACE_FILE}`",
            given.display()
        )));
    }
    let found = start
        .ancestors()
        .find(|folder| folder.join(WORKSPACE_FILE).is_file());
    found.map(Path::to_owned).ok_or_else(|| {
        none(format!(
            "there is no `{WORKSPACE_FILE}` in `{}` or any folder above it",
            start.display()
        ))
        .hint("`--workspace DIR` names one elsewhere")
    })
}

impl Workspace {
    /// Reads everything under a folder.
    ///
    /// # Errors
    /// `plan-invalid` with all findings, warnings included, in the order of files and lines; or
    /// `no-workspace`, or `io` when a folder cannot be read.
    pub fn load(root: &Path, options: &LoadOptions) -> Result<Self> {
        let (workspace, diagnostics) = load(root, options)?;
        match workspace {
            Some(mut workspace) => {
                workspace.warnings = diagnostics;
                Ok(workspace)
            }
            None => Err(Error::from_diagnostics(diagnostics)),
        }
    }
}

/// A workspace without plans: all that plans are expanded with. `None` when anything is wrong.
pub(super) fn shell(root: &Path, options: &LoadOptions) -> Option<Workspace> {
    let (doc, mut diags) = Doc::read(&root.join(WORKSPACE_FILE), WORKSPACE_FILE).ok()?;
    let mut head = head(&doc, false, options, &mut diags);
    let (rules, _) = rules(root, &mut head, options, &mut diags).ok()?;
    diags.is_empty().then(|| Workspace {
        root: root.to_owned(),
        state_dir: root.join(&head.state),
        survive: Duration::try_from_secs_f64(head.survive_s).unwrap_or_default(),
        rules,
        plans: BTreeMap::new(),
        platforms: head.platforms,
        default_platform: head.default_platform,
        remote: None,
        warnings: Vec::new(),
    })
}

/// Package, path and shown name of every plan; `None` when anything is wrong.
pub fn plan_names(root: &Path, folders: &Folders) -> Option<Vec<(String, PathBuf, String)>> {
    let mut diags = Vec::new();
    let dir = root.join(&folders.plans);
    let files = plan_files(&dir, &shown(&folders.plans), &mut diags).ok()?;
    let names = files.into_iter().map(|f| (f.package, f.path, f.shown));
    diags.is_empty().then(|| names.collect())
}

fn load(root: &Path, options: &LoadOptions) -> Result<(Option<Workspace>, Vec<Diagnostic>)> {
    let mut diags = Vec::new();
    let (doc, found) = Doc::read(&root.join(WORKSPACE_FILE), WORKSPACE_FILE)?;
    let unreadable = has_errors(&found);
    diags.extend(found);
    let mut head = head(&doc, unreadable, options, &mut diags);
    let (rules, stems) = rules(root, &mut head, options, &mut diags)?;
    let broken_files = broken_files(&head.rules, &diags);
    let sources = plan_files(&root.join(&head.plans), &shown(&head.plans), &mut diags)?;
    if sources.is_empty() && !has_errors(&diags) {
        let message = format!("there is no plan in `{}`", shown(&head.plans));
        diags.push(Diagnostic::warning("no-plans", message).at(doc.table().site().clone(), ""));
    }
    let mut broken_plans = BTreeSet::new();
    let mut plans: Vec<Expanded> = Vec::new();
    let sets = CommandLine::new(&options.sets);
    let mut ranks: Vec<String> = vec![WORKSPACE_FILE.to_owned()];
    ranks.extend(rule_file_names(&diags, &rules));
    let mut context = Context::new(&rules, broken_files, sets);
    context.retry = head.retry;
    for source in &sources {
        ranks.push(source.shown.clone());
        let (doc, found) = Doc::read(&source.path, &source.shown)?;
        if has_errors(&found) {
            diags.extend(found);
            broken_plans.insert(source.package.clone());
            continue;
        }
        diags.extend(found);
        let before = diags.len();
        let decl = read::read(&doc, &source.package, &mut diags);
        if decl.layers.is_empty() && !has_errors(&diags[before..]) {
            let message = format!(
                "`{}` has no layers, so there is nothing to run",
                source.shown
            );
            let found = Diagnostic::warning("empty-plan", message);
            diags.push(found.at(doc.table().site().clone(), ""));
        }
        missing_rule_files(&decl.rules, &stems, &shown(&head.rules), &mut diags);
        let listed = decl.rules.iter().map(|text| &text.text);
        let absent = listed.filter(|stem| !stems.contains(*stem));
        context.broken_files.extend(absent.cloned());
        plans.push(expand::expand(
            &source.package,
            decl,
            &mut context,
            &mut diags,
        ));
    }
    let edges: Vec<_> = {
        let index = Index::new(&plans, &broken_plans);
        let follow = |plan: &Expanded| {
            let edges = resolve::edges(&index, plan, &mut diags);
            let compares = compare::compares(&index, plan, &mut diags);
            let followups = followup::followups(&index, plan, &compares, &mut diags);
            (edges, compares, followups)
        };
        plans.iter().map(follow).collect()
    };
    for (expanded, (edges, compares, followups)) in plans.iter_mut().zip(edges) {
        expand::count(expanded, &context.sets, &mut diags);
        let plan = &mut expanded.plan;
        for (pattern, (needs, gate)) in plan.patterns.iter_mut().zip(edges) {
            pattern.needs = needs;
            pattern.gate = gate;
        }
        plan.compares = compares;
        plan.followups = followups;
        if !expanded.incomplete {
            expand::without_inputs(&expanded.plan, &mut diags);
        }
    }
    let complete = broken_plans.is_empty() && plans.iter().all(|plan| !plan.incomplete);
    unused_sets(&context.sets, complete, &rules, &mut diags);
    let diags = in_file_order(diags, &ranks);
    if has_errors(&diags) {
        return Ok((None, diags));
    }
    let plans = plans
        .into_iter()
        .map(|expanded| (expanded.plan.package.clone(), expanded.plan))
        .collect();
    let workspace = Workspace {
        root: root.to_owned(),
        state_dir: root.join(&head.state),
        survive: Duration::try_from_secs_f64(head.survive_s).unwrap_or_default(),
        rules,
        plans,
        platforms: head.platforms,
        remote: head.remote,
        default_platform: head.default_platform,
        warnings: Vec::new(),
    };
    Ok((Some(workspace), diags))
}

pub(super) fn has_errors(diags: &[Diagnostic]) -> bool {
    diags.iter().any(|found| found.severity == Severity::Error)
}

pub(super) fn head(
    doc: &Doc,
    unreadable: bool,
    options: &LoadOptions,
    diags: &mut Vec<Diagnostic>,
) -> Head {
    let mut head = Head {
        platforms: BTreeMap::from([(platform::SIM.to_owned(), platform::sim())]),
        default_platform: platform::SIM.to_owned(),
        plans: "plans".into(),
        rules: "rules".into(),
        state: ".doe".into(),
        remote: None,
        survive_s: SURVIVE_S,
        retry: RetryDef::default(),
    };
    if unreadable {
        return head;
    }
    let mut root = doc.table();
    let mut default = None;
    if let Some(mut table) = root.opt_table("workspace", diags) {
        default = table.opt_str("platform", diags);
        for (key, place, inside) in [
            ("plans", &mut head.plans, true),
            ("rules", &mut head.rules, true),
            ("state", &mut head.state, false),
        ] {
            if let Some(text) = table.opt_str(key, diags) {
                folder(text, place, inside, diags);
            }
        }
        if let Some(seconds) = table.opt_duration("survive", diags) {
            head.survive_s = seconds.value;
        }
        head.retry = RetryDef::read(&mut table, diags);
        table.remaining(diags, "of `[workspace]`");
    }
    platforms(&mut root, &mut head, options, diags);
    head.remote = remote::read(&mut root, diags);
    root.remaining(diags, "at the top of `doe.toml`");
    if let Some(text) = default {
        if !head.platforms.contains_key(&text.text) {
            let found = Diagnostic::error(
                "unknown-platform",
                format!("there is no platform `{}`", text.text),
            );
            let names = head.platforms.keys().map(String::as_str);
            let found = found.at(text.site.clone(), "");
            diags.push(name_hints(found, &text.text, names, "platforms"));
        }
        head.default_platform = text.text;
    }
    head
}

fn platforms(
    root: &mut Table<'_>,
    head: &mut Head,
    options: &LoadOptions,
    diags: &mut Vec<Diagnostic>,
) {
    let Some(table) = root.opt_table("platform", diags) else {
        return;
    };
    for entry in table.entries() {
        let name = &entry.key.text;
        let Some(table) = entry.item.as_table(&format!("platform `{name}`"), diags) else {
            continue;
        };
        let executor_site = platform::read(
            &mut head.platforms,
            &entry.key,
            table,
            options.sim_profile,
            diags,
        );
        let known = &options.known_executors;
        let executor = head.platforms.get(name).map(|platform| &platform.executor);
        if let Some(executor) = executor
            && !known.is_empty()
            && !known.contains(executor)
        {
            let found = Diagnostic::error(
                "unknown-executor",
                format!("platform `{name}`: there is no executor `{executor}`"),
            );
            let names = known.iter().map(String::as_str);
            let site = executor_site.unwrap_or_else(|| entry.key.site.clone());
            let found = found.at(site, "");
            diags.push(name_hints(found, executor, names, "executors"));
        }
    }
}

/// A folder of the workspace. Plans and rules must be inside of it: their names are what messages
/// and packages are made of.
fn folder(text: Text, place: &mut PathBuf, inside: bool, diags: &mut Vec<Diagnostic>) {
    let path = PathBuf::from(&text.text);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if text.text.is_empty() || inside && !plain {
        diags.push(
            Diagnostic::error(
                "bad-path",
                format!("`{}` is not a folder inside the workspace", text.text),
            )
            .at(text.site, "")
            .hint("name it relative to `doe.toml`, without `..`"),
        );
        return;
    }
    *place = path;
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

type RulesById = BTreeMap<RuleId, Arc<Rule>>;

/// All rules, and the stems of the files that are there; platforms get the probes that they name.
pub(super) fn rules(
    root: &Path,
    head: &mut Head,
    options: &LoadOptions,
    diags: &mut Vec<Diagnostic>,
) -> Result<(RulesById, BTreeSet<String>)> {
    let dir = root.join(&head.rules);
    if !dir.exists() {
        probing::resolve(&mut head.platforms, &BTreeMap::new(), diags);
        return Ok((BTreeMap::new(), BTreeSet::new()));
    }
    let mut stems = BTreeSet::new();
    let entries = std::fs::read_dir(&dir).map_err(|cause| Error::io("read", &dir, &cause))?;
    for entry in entries {
        let entry = entry.map_err(|cause| Error::io("read", &dir, &cause))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        stems.extend(name.strip_suffix(".toml").map(str::to_owned));
    }
    let instruments: Vec<&str> = options
        .known_instruments
        .iter()
        .map(String::as_str)
        .collect();
    let loaded = rule_load::load_dir(&dir, &shown(&head.rules), &instruments);
    diags.extend(loaded.diags);
    probing::resolve(&mut head.platforms, &loaded.probes, diags);
    monitor::check(&head.platforms, &loaded.rules, diags);
    Ok((loaded.rules, stems))
}

/// Stems of the rule files that have errors.
fn broken_files(folder: &Path, diags: &[Diagnostic]) -> BTreeSet<String> {
    let errors = diags.iter().filter(|d| d.severity == Severity::Error);
    let files = errors
        .flat_map(|d| &d.sites)
        .map(|(site, _)| Path::new(&site.file.name));
    files
        .filter(|path| path.parent() == Some(folder))
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect()
}

/// Names of rule files in the order in which findings about them are told.
fn rule_file_names(diags: &[Diagnostic], rules: &RulesById) -> BTreeSet<String> {
    let of_rules = rules.values().map(|rule| rule.site.file.name.clone());
    let of_findings = diags.iter().flat_map(|d| &d.sites);
    of_rules
        .chain(of_findings.map(|(site, _)| site.file.name.clone()))
        .filter(|name| name != WORKSPACE_FILE)
        .collect()
}

fn missing_rule_files(
    listed: &[Text],
    stems: &BTreeSet<String>,
    folder: &str,
    diags: &mut Vec<Diagnostic>,
) {
    let mut seen: HashMap<&str, &Text> = HashMap::new();
    for text in listed {
        if let Some(first) = seen.insert(&text.text, text) {
            diags.push(
                Diagnostic::warning("duplicate-name", format!("`{}` is listed twice", text.text))
                    .at(text.site.clone(), "")
                    .at(first.site.clone(), "first here"),
            );
        }
        if stems.contains(&text.text) {
            continue;
        }
        let found = Diagnostic::error(
            "missing-rule-file",
            format!("there is no rule file `{folder}/{}.toml`", text.text),
        )
        .at(text.site.clone(), "");
        let names = stems.iter().map(String::as_str);
        diags.push(name_hints(found, &text.text, names, "rule files"));
    }
}

/// `--set` of something that no pattern's rule has.
fn unused_sets(sets: &CommandLine, complete: bool, rules: &RulesById, diags: &mut Vec<Diagnostic>) {
    if !complete && has_errors(diags) {
        return;
    }
    for key in sets.unused() {
        let mut found = Diagnostic::error(
            "unknown-setting",
            format!("--set {key}: no pattern's rule has a parameter `{key}`"),
        );
        let names: BTreeSet<&str> = rules
            .values()
            .flat_map(|rule| rule.params.keys().map(String::as_str))
            .collect();
        if let Some(near) = nearest(key, names.iter().copied()) {
            found = found.hint(format!("did you mean `{near}`?"));
        }
        diags.push(found);
    }
}
