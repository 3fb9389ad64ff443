//! What a pattern takes of a platform's tokens and links while it runs: what its plan says, and of
//! a link that joins several of its hosts all there is, unless its plan says otherwise. A pure
//! function of pattern and platform, so `check`, `plan`, the schedule and the manifest agree.

use std::collections::{BTreeMap, BTreeSet};

use super::preflight::host_of;
use crate::error::{Diagnostic, nearest};
use crate::plan::model::{Pattern, Platform};
use crate::plan::uses::Token;
use crate::rule::model::RuleKind;

/// Units by token. What cannot be had is told and left out.
pub fn taken(pattern: &Pattern, platform: &Platform) -> (BTreeMap<String, u32>, Vec<Diagnostic>) {
    let (mut taken, mut found) = (BTreeMap::new(), Vec::new());
    let is_measured = pattern.rule.kind == RuleKind::Measure;
    if !is_measured || (platform.tokens.is_empty() && pattern.uses.is_empty()) {
        return (taken, found);
    }
    let roles = pattern.rule.roles.keys();
    let hosts: BTreeSet<&str> = roles
        .filter_map(|role| Some(host_of(platform, role)?.name.as_str()))
        .collect();
    let on = |token: &Token| {
        let joined = token.hosts.iter().flatten();
        joined.filter(|host| hosts.contains(host.as_str())).count()
    };
    for (name, token) in &platform.tokens {
        // A measurement that crosses a link has it for itself.
        if on(token) >= 2 {
            taken.insert(name.clone(), token.capacity);
        }
    }
    for (name, said) in pattern.uses.iter() {
        let (count, site) = (said.count, &said.site);
        let refused = |diagnostic: Diagnostic| diagnostic.label(&pattern.label);
        let Some(token) = platform.tokens.get(name) else {
            found.push(refused(unknown(name, platform).at(said.name.clone(), "")));
            continue;
        };
        let wanted = count.unwrap_or(token.capacity);
        if wanted > token.capacity {
            let text = format!(
                "{wanted} of `{name}` are asked for, platform `{}` has {}",
                platform.name, token.capacity
            );
            let diagnostic = Diagnostic::error("too-many-tokens", text).at(site.clone(), "");
            let declared = diagnostic.at(token.site.clone(), "declared here");
            found.push(refused(declared.hint("ask for less, or say `\"all\"`")));
            continue;
        }
        if token.hosts.is_some() && on(token) == 0 && wanted > 0 {
            let on: Vec<&str> = hosts.iter().copied().collect();
            let text = format!("link `{name}` joins none of its hosts ({})", on.join(", "));
            let diagnostic = Diagnostic::error("not-on-link", text).at(said.name.clone(), "");
            let declared = diagnostic.at(token.site.clone(), "declared here");
            found.push(refused(declared.hint(
                "take it out of `uses`, or bind one of the roles to a host of the link",
            )));
            continue;
        }
        taken.insert(name.clone(), wanted);
    }
    taken.retain(|_, count| *count > 0);
    (taken, found)
}

fn unknown(name: &str, platform: &Platform) -> Diagnostic {
    let text = format!("platform `{}` has no token or link `{name}`", platform.name);
    let found = Diagnostic::error("unknown-token", text);
    let known = || platform.tokens.keys().map(String::as_str);
    let found = match nearest(name, known()) {
        Some(near) => found.hint(format!("did you mean `{near}`?")),
        None => found,
    };
    let known: Vec<_> = known().collect();
    match known.as_slice() {
        [] => found.hint(format!(
            "declare it: `tokens = {{ {name} = 1 }}` in [platform.{}] of doe.toml",
            platform.name
        )),
        known => found.hint(format!("tokens and links: {}", known.join(", "))),
    }
}
