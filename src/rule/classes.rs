//! The names of failures: those that `doe` gives by itself, and those of a rule's `failure`
//! entries. Whether a class is one of the infrastructure is decided here and nowhere else; only
//! such failures are ever tried again.

use std::collections::BTreeSet;

use super::model::Rule;

/// Classes of which the infrastructure is the cause.
pub const INFRASTRUCTURE: &[&str] = &[
    "infrastructure",
    "lost",
    "not-released",
    "preempted",
    "service-lost",
    "throttled",
    "undeliverable",
    "unreachable",
];

/// Classes that `doe` gives and whose cause is in what was run: trying again would only repeat
/// them, or hide them.
pub const OWN: &[&str] = &["no-result", "oom", "program", "service-died", "timeout"];

/// Whether failures of this class are tried again where the rule holds.
pub fn is_infrastructure(rule: &Rule, class: &str) -> bool {
    let marked = |entry: &super::model::FailureDef| entry.infrastructure && entry.class == class;
    INFRASTRUCTURE.contains(&class) || rule.failures.iter().any(marked)
}

/// Every class that a failure under this rule can have.
pub fn known(rule: &Rule) -> BTreeSet<&str> {
    let own = rule.failures.iter().map(|entry| entry.class.as_str());
    let given = INFRASTRUCTURE.iter().chain(OWN).copied();
    given.chain(own).collect()
}
