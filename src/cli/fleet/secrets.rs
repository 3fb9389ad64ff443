//! The values of a platform's secrets, read where `doe` was called. They are read before anything
//! runs, and whoever only looks does without those that are not there.

use std::collections::BTreeMap;

use doe_cache::Store;

use super::file;
use crate::engine::decide::{Decider, Decision};
use crate::engine::followup::Choice;
use crate::engine::followup::foresee::{Fate, Foreseen, foresee};
use crate::error::{Error, Kind, Result, nearest};
use crate::exec::secrets::Secrets;
use crate::graph::NodeId;
use crate::plan::model::{Platform, Workspace};
use crate::plan::secrets::Origin;
use crate::rule::model::RuleKind;
use crate::rule::variables;

/// Reads what there is.
pub fn read(workspace: &Workspace, platform: &Platform) -> Secrets {
    let (values, missing) = look(workspace, platform);
    Secrets::new(values, missing)
}

/// What there is of all platforms, for whoever shows logs without asking whose they are.
pub fn of_all(workspace: &Workspace) -> Secrets {
    let mut all = BTreeMap::new();
    for platform in workspace.platforms.values() {
        for (name, value) in look(workspace, platform).0 {
            let known = all.get(&name).is_some_and(|known| *known != value);
            let other = format!("{name} of {}", platform.name);
            all.insert(if known { other } else { name }, value);
        }
    }
    Secrets::new(all, None)
}

fn look(workspace: &Workspace, platform: &Platform) -> (BTreeMap<String, String>, Option<Error>) {
    let mut values = BTreeMap::new();
    let mut missing = Vec::new();
    for (name, secret) in &platform.secrets {
        let value = match &secret.from {
            Origin::Variable(variable) => of_environment(variable),
            Origin::File(path) => of_file(workspace, path),
        };
        let value = value.and_then(|value| match can_be_given(name, &value) {
            Ok(()) => Ok(value),
            Err(why) => Err((why, Vec::new())),
        });
        match value {
            Ok(value) => drop(values.insert(name.clone(), value)),
            Err(why) => missing.push((name, why)),
        }
    }
    let missing = missing.into_iter().reduce(|(name, mut first), (_, more)| {
        first.0 = format!("{}, {}", first.0, more.0);
        first.1.extend(more.1);
        (name, first)
    });
    let missing = missing.map(|(name, (why, hints))| {
        let text = format!("platform `{}` gives scripts secrets: {why}", platform.name);
        let error = Error::new(Kind::Usage, "secret-missing", text);
        let error = hints.into_iter().fold(error, Error::hint);
        error.hint(format!(
            "`read -rs {name} && export {name}`, or name a file: `secrets = {{ {name} = {{ file = \"~/.{}\" }} }}`",
            name.to_ascii_lowercase().replace('_', "-")
        ))
    });
    (values, missing)
}

/// Fails when something would run that is to be given secrets of which one is missing: among the
/// nodes, and among what follow-ups are known to bring in. What these may bring in is spared.
pub fn demand(
    secrets: &Secrets,
    decider: &Decider<'_>,
    store: &Store,
    (nodes, followups): (&[NodeId], &Choice),
) -> Result<()> {
    let Err(missing) = secrets.demand() else {
        return Ok(());
    };
    let graph = decider.graph();
    let gets_them = |node: NodeId, decision: &Decision| {
        decision.may_run() && graph.pattern(node).rule.kind == RuleKind::Measure
    };
    let plan = decider.plan(nodes)?;
    if plan
        .iter()
        .any(|(node, decision)| gets_them(*node, decision))
    {
        return Err(missing);
    }
    let outlook = foresee(decider, store, followups, &plan)?;
    let brought_in = |foreseen: &Foreseen| match &foreseen.fate {
        Fate::Decided(_, decision) => gets_them(foreseen.node, decision),
        Fate::Open(..) => false,
    };
    match outlook.nodes.iter().any(brought_in) {
        true => Err(missing),
        false => Ok(()),
    }
}

type Why = (String, Vec<String>);

/// What no script could be started with is no value.
fn can_be_given(name: &str, value: &str) -> std::result::Result<(), String> {
    match value {
        "" => Err(format!("the value of `{name}` is empty")),
        value if value.contains('\0') => Err(format!("the value of `{name}` holds a NUL byte")),
        value if !variables::fits(name, value) => Err(format!(
            "the value of `{name}` has {} bytes, more than a program can be given",
            value.len()
        )),
        _ => Ok(()),
    }
}

fn of_environment(variable: &str) -> std::result::Result<String, Why> {
    match std::env::var(variable) {
        Ok(value) if !value.is_empty() => Ok(value),
        Ok(_) => Err((
            format!("`{variable}` is empty in the environment"),
            Vec::new(),
        )),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err((format!("`{variable}` is no text in UTF-8"), Vec::new()))
        }
        Err(std::env::VarError::NotPresent) => {
            let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
            let names: Vec<String> = names.collect();
            let near = nearest(variable, names.iter().map(String::as_str));
            let hints = near.map(|near| format!("did you mean `{near}`, which is set?"));
            let why = format!("`{variable}` is not set in the environment");
            Err((why, hints.into_iter().collect()))
        }
    }
}

fn of_file(workspace: &Workspace, path: &str) -> std::result::Result<String, Why> {
    let path = file(workspace, path);
    let shown = path.display();
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let line = text.strip_suffix('\n').unwrap_or(&text);
            match line.strip_suffix('\r').unwrap_or(line) {
                "" => Err((format!("the file `{shown}` is empty"), Vec::new())),
                value => Ok(value.to_owned()),
            }
        }
        Err(error) => Err((
            format!("the file `{shown}` cannot be read: {error}"),
            Vec::new(),
        )),
    }
}
