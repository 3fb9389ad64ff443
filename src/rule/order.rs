//! What starts before what. Services come out in an order in which `after` points backwards, and a
//! rule whose `after` runs in a circle is refused.

use std::collections::BTreeSet;

use super::model::{Rule, ServiceDef};
use crate::error::{Diagnostic, Site};

/// The services, each behind those it waits for; file order where that is free.
pub(super) fn services(rule: &Rule) -> Result<Vec<&ServiceDef>, Box<Diagnostic>> {
    let edges: Vec<_> = (rule.services.iter())
        .map(|s| (s.name.as_str(), s.after.as_slice(), &s.site))
        .collect();
    let order = sorted(&edges).map_err(|cycle| circle("services", &edges, &cycle))?;
    Ok(order.into_iter().map(|at| &rule.services[at]).collect())
}

/// Names in an order in which `after` points backwards, or the members of a circle.
fn sorted(edges: &[(&str, &[String], &Site)]) -> Result<Vec<usize>, Vec<usize>> {
    let mut order: Vec<usize> = Vec::with_capacity(edges.len());
    let mut open: Vec<usize> = (0..edges.len()).collect();
    while !open.is_empty() {
        let waits = |at: usize| {
            let (_, after, _) = edges[at];
            open.iter()
                .any(|&other| after.iter().any(|name| name == edges[other].0))
        };
        let Some(free) = open.iter().position(|&at| !waits(at)) else {
            return Err(open);
        };
        order.push(open.remove(free));
    }
    Ok(order)
}

fn circle(what: &str, edges: &[(&str, &[String], &Site)], members: &[usize]) -> Box<Diagnostic> {
    // Walk back from any member: each waits for another one that is still open.
    let mut path = vec![members[0]];
    loop {
        let last = path[path.len() - 1];
        let Some(&next) =
            (members.iter()).find(|&&m| edges[last].1.iter().any(|n| n == edges[m].0))
        else {
            break;
        };
        if let Some(start) = path.iter().position(|&at| at == next) {
            path.drain(..start);
            path.push(next);
            break;
        }
        path.push(next);
    }
    let names: Vec<_> = path.iter().map(|&at| edges[at].0).collect();
    Box::new(
        Diagnostic::error(
            "after-cycle",
            format!("{what} wait for each other: {}", names.join(" → ")),
        )
        .at(edges[path[0]].2.clone(), ""),
    )
}

/// Findings about gangs: members stand together in the file, waiting makes no circle, and one that
/// is waited for says when it is ready.
pub(super) fn gangs(rule: &Rule) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut last: Option<&str> = None;
    for step in &rule.steps {
        let gang = step.gang.as_deref();
        if let Some(name) = gang
            && gang != last
            && !seen.insert(name)
        {
            found.push(
                Diagnostic::error(
                    "split-gang",
                    format!("step `{}` stands apart from its gang `{name}`", step.name),
                )
                .at(step.site.clone(), "")
                .hint("the steps of a gang run together, so they stand next to each other"),
            );
        }
        last = gang;
        if gang.is_none() && step.ready.is_some() {
            found.push(
                Diagnostic::error(
                    "missing-key",
                    format!(
                        "step `{}` has `ready` but no `gang` to wait for it",
                        step.name
                    ),
                )
                .at(step.site.clone(), "")
                .hint(
                    "take `ready` away, or give it and the steps that wait for it the same `gang`",
                ),
            );
        }
    }
    for gang in seen {
        let members = rule
            .steps
            .iter()
            .filter(|s| s.gang.as_deref() == Some(gang));
        let edges: Vec<_> = members
            .map(|s| (s.name.as_str(), s.after.as_slice(), &s.site))
            .collect();
        if let Err(cycle) = sorted(&edges) {
            found.push(*circle("steps", &edges, &cycle));
        }
    }
    for step in &rule.steps {
        let awaited = rule
            .steps
            .iter()
            .find(|other| other.after.contains(&step.name));
        if let Some(other) = awaited
            && step.ready.is_none()
        {
            found.push(
                Diagnostic::error(
                    "missing-key",
                    format!(
                        "step `{}` needs `ready`: `{}` waits for it",
                        step.name, other.name
                    ),
                )
                .at(step.site.clone(), "")
                .hint("as in `ready = { tcp = \"…\" }`, or `ready = { alive = true }`"),
            );
        }
    }
    found
}
