//! Parts of a workspace, for what does not need all of it: what makes plans reads no plans, and
//! what looks after results works however unsound the plans are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::workspace::{LoadOptions, WORKSPACE_FILE, has_errors, head, rules};
use crate::error::{Error, Result};
use crate::rule::model::{Rule, RuleId};
use crate::source::Doc;

/// The rules of a workspace, and where its plans are.
#[derive(Debug)]
pub struct RulesOnly {
    /// Rules by id.
    pub rules: BTreeMap<RuleId, Arc<Rule>>,
    /// The folder of the plans.
    pub plans_dir: PathBuf,
}

/// Reads `doe.toml` and the rules, not the plans: for what makes plans.
///
/// # Errors
/// As [`Workspace::load`](super::model::Workspace::load).
pub fn load_rules(root: &Path, options: &LoadOptions) -> Result<RulesOnly> {
    let mut diags = Vec::new();
    let (doc, found) = Doc::read(&root.join(WORKSPACE_FILE), WORKSPACE_FILE)?;
    let unreadable = has_errors(&found);
    diags.extend(found);
    let mut head = head(&doc, unreadable, options, &mut diags);
    let (rules, _) = rules(root, &mut head, options, &mut diags)?;
    if has_errors(&diags) {
        return Err(Error::from_diagnostics(diags));
    }
    Ok(RulesOnly {
        rules,
        plans_dir: root.join(head.plans),
    })
}

/// Where the state is, from `doe.toml` alone: what looks after results must not need plans that
/// are sound.
///
/// # Errors
/// As [`Workspace::load`](super::model::Workspace::load).
pub fn state_dir(root: &Path, options: &LoadOptions) -> Result<PathBuf> {
    let (doc, mut diags) = Doc::read(&root.join(WORKSPACE_FILE), WORKSPACE_FILE)?;
    let unreadable = has_errors(&diags);
    let head = head(&doc, unreadable, options, &mut diags);
    if unreadable {
        return Err(Error::from_diagnostics(diags));
    }
    Ok(root.join(head.state))
}
