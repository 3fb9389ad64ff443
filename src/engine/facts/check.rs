//! Claims about hosts against what they say of themselves: those of plans (`[requires]`) and those
//! of the platform (its `facts`). What nobody has read is not judged; what nobody could read is
//! refused, since a claim that cannot be held against anything protects from nothing.

use std::collections::{BTreeMap, BTreeSet};

use doe_cache::Value;

use super::ask::{plain, probe_of};
use super::file::is_fresh;
use super::key::when;
use crate::engine::preflight::host_of;
use crate::error::{Diagnostic, Severity, nearest};
use crate::graph::{Graph, NodeId};
use crate::plan::claim;
use crate::plan::expect::Judgement;
use crate::plan::model::{HostClaim, Plan, Platform};
use crate::rule::fact::FactType;
use crate::rule::model::RuleKind;

/// Roles by host.
type Used<'g> = BTreeMap<&'g str, BTreeSet<&'g str>>;

/// Findings about the hosts that these nodes use. One that rests on an old reading is a warning.
pub fn check(graph: &Graph<'_>, nodes: &[NodeId], platform: &Platform) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut plans: BTreeMap<&str, Used<'_>> = BTreeMap::new();
    for &node in nodes {
        let pattern = graph.pattern(node);
        if pattern.rule.kind != RuleKind::Measure {
            continue;
        }
        let used = plans.entry(pattern.label.package()).or_default();
        for role in pattern.rule.roles.keys() {
            if let Some(host) = host_of(platform, role) {
                used.entry(&host.name).or_default().insert(role);
            }
        }
    }
    let hosts: BTreeSet<&str> = plans
        .values()
        .flat_map(|used| used.keys().copied())
        .collect();
    for host in hosts {
        found.extend(declared(platform, host));
    }
    for (package, used) in plans {
        let Some(plan) = graph.workspace().plans.get(package) else {
            continue;
        };
        for claim in &plan.requires {
            found.extend(role_exists(plan, claim));
            for (host, roles) in &used {
                let about = |role: &String| roles.contains(role.as_str());
                if claim.role.as_ref().is_none_or(about) {
                    found.extend(required(platform, host, claim));
                }
            }
        }
    }
    let mut told = BTreeSet::new();
    found.retain(|d| told.insert((d.message.clone(), d.sites.first().map(|(s, _)| s.short()))));
    found
}

/// A finding about a host: an error, unless what is known of it may be out of date.
fn finding(platform: &Platform, host: &str, code: &'static str, message: String) -> Diagnostic {
    let mut found = Diagnostic::error(code, message);
    if let Some(probing) = &platform.probing
        && let Some(known) = probing.known.get(host)
        && !is_fresh(probing, host)
    {
        found.severity = Severity::Warning;
        let when = when(known.read_unix_ms);
        found = found.hint(format!("that was read {when}; `doe probe` reads it again"));
    }
    found
}

/// Whether the host is what the platform says.
fn declared(platform: &Platform, host: &str) -> Vec<Diagnostic> {
    let Some(known) = (platform.probing.as_ref()).and_then(|probing| probing.known.get(host))
    else {
        return Vec::new();
    };
    let mut all = Vec::new();
    // A simulation pretends some facts and has nothing to say about others.
    let probe = probe_of(platform).filter(|_| !platform.simulated);
    let reads = |fact: &String| probe.is_some_and(|(_, probe)| probe.facts.contains_key(fact));
    for (fact, said) in &platform.facts {
        let claimed = plain(said);
        let text = match known.facts.get(fact) {
            Some(read) if read == said => continue,
            Some(read) => {
                let read = plain(read);
                format!("`{fact}` of host `{host}` is `{read}`; the platform says `{claimed}`")
            }
            None if reads(fact) => {
                format!("host `{host}` has no `{fact}`; the platform says `{claimed}`")
            }
            // Nobody asks the host.
            None => continue,
        };
        let mut found = finding(platform, host, "fact-mismatch", text);
        if let Some(site) = platform.fact_sites.get(fact) {
            found = found.at(site.clone(), "declared here");
        }
        all.push(found.hint(format!(
            "correct it, bind roles to other hosts, or take `{fact}` away: the probe reads it anyway"
        )));
    }
    all
}

fn role_exists(plan: &Plan, claim: &HostClaim) -> Option<Diagnostic> {
    let role = claim.role.as_deref()?;
    let roles = plan
        .patterns
        .iter()
        .flat_map(|pattern| pattern.rule.roles.keys());
    let roles: BTreeSet<&str> = roles.map(String::as_str).collect();
    if roles.contains(role) {
        return None;
    }
    let text = format!("no pattern of this plan has a role `{role}`");
    let found = Diagnostic::error("unknown-role", text).at(claim.site.clone(), "");
    let near = nearest(role, roles.iter().copied());
    let found = near.iter().fold(found, |found, near| {
        found.hint(format!("did you mean `{near}`?"))
    });
    let roles: Vec<&str> = roles.into_iter().collect();
    Some(found.hint(format!("roles: {}", roles.join(", "))))
}

/// What is known of a fact of a host.
enum Known<'p> {
    Read(&'p Value, Option<FactType>),
    NotThere,
    NotReadYet,
    Nobody,
}

fn known<'p>(platform: &'p Platform, host: &str, fact: &str) -> Known<'p> {
    if let Some((probing, probe)) = probe_of(platform)
        && let Some(def) = probe.facts.get(fact)
    {
        let read = probing.known.get(host);
        match read.map(|read| read.facts.get(fact)) {
            Some(Some(value)) => return Known::Read(value, Some(def.ty)),
            Some(None) => return Known::NotThere,
            None if !platform.facts.contains_key(fact) => return Known::NotReadYet,
            None => {}
        }
    }
    match platform.facts.get(fact) {
        Some(value) => Known::Read(value, None),
        None => Known::Nobody,
    }
}

/// Whether the host is what a plan says.
fn required(platform: &Platform, host: &str, claim: &HostClaim) -> Option<Diagnostic> {
    let HostClaim {
        role: _,
        fact,
        text,
        site,
    } = claim;
    let at = |found: Diagnostic| found.at(site.clone(), "required here");
    Some(match known(platform, host, fact) {
        Known::NotReadYet => return None,
        Known::Read(value, ty) => match claim::judge(text, value, ty) {
            Judgement::Met => return None,
            judgement => {
                let value = plain(value);
                let message = match judgement {
                    Judgement::Incomparable => format!(
                        "`{fact}` of host `{host}` is `{value}`, which cannot be compared with `{text}`"
                    ),
                    _ => format!(
                        "`{fact}` of host `{host}` is `{value}`; the plan requires `{text}`"
                    ),
                };
                let found = at(finding(platform, host, "unmet-requirement", message));
                found.hint(format!(
                    "run it on other hosts (platform `{}` binds roles to hosts), or require something else",
                    platform.name
                ))
            }
        },
        Known::NotThere => {
            let message = format!("host `{host}` has no `{fact}`; the plan requires `{text}`");
            at(finding(platform, host, "unmet-requirement", message))
                .hint("the probe found none: is the tool that it asks on the search path?")
        }
        Known::Nobody => {
            let message = format!(
                "nobody says what `{fact}` is on platform `{}`",
                platform.name
            );
            let mut names: BTreeSet<&str> = platform.facts.keys().map(String::as_str).collect();
            if let Some((_, probe)) = probe_of(platform) {
                names.extend(probe.facts.keys().map(String::as_str));
            }
            let mut found = at(Diagnostic::error("unknown-fact", message));
            if let Some(near) = nearest(fact, names.iter().copied()) {
                found = found.hint(format!("did you mean `{near}`?"));
            }
            found.hint(format!(
                "give platform `{}` a `probe` that reads it, or declare it among its `facts`",
                platform.name
            ))
        }
    })
}
