//! Facts in the keys: those of the hosts that a rule's roles are bound to, by role. Two hosts of
//! which the same is known make the same key; which of them it was decides nothing.

use doe_cache::{Class, Manifest, Value};

use crate::engine::preflight::host_of;
use crate::plan::model::Platform;
use crate::rule::model::Rule;

/// Puts them in. Nothing where the platform has no probe.
pub(in crate::engine) fn entries(manifest: &mut Manifest, rule: &Rule, platform: &Platform) {
    let Some(probing) = &platform.probing else {
        return;
    };
    for role in rule.roles.keys() {
        let Some(host) = host_of(platform, role) else {
            continue;
        };
        let known = probing.known.get(&host.name);
        for name in probing.in_keys(&platform.facts) {
            let (value, origin) = match known {
                Some(known) => (
                    // Null: the host does not have it.
                    known.facts.get(name).cloned().unwrap_or(Value::Null),
                    format!("host `{}`, read {}", host.name, when(known.read_unix_ms)),
                ),
                // No fact is a list, so this is no reading.
                None => (
                    Value::List(Vec::new()),
                    format!("host `{}`, not read yet", host.name),
                ),
            };
            manifest.set_from(format!("fact.{role}.{name}"), value, Class::Result, origin);
        }
    }
}

/// A time as people and machines read it.
pub(in crate::engine) fn when(unix_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(time).to_string()
}
