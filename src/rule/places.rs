//! Where things are, as templates see it. Symbolic places are texts such as `@decode.ip@` that a
//! key may hold; real ones are addresses, ports and paths. Both have exactly the same names, so a
//! script that renders for the key renders for the run.

use std::collections::BTreeMap;

use doe_cache::Value;

use super::action::{Binding, RealBinding};
use super::model::{Rule, RuleKind, ServiceDef, StepDef};
use super::scope::Scope;
use crate::error::Diagnostic;

/// A service or step whose texts are rendered.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    Service(&'a ServiceDef),
    Step(&'a StepDef),
}

impl<'a> Part<'a> {
    fn name(self) -> &'a str {
        match self {
            Part::Service(service) => &service.name,
            Part::Step(step) => &step.name,
        }
    }

    fn role(self) -> Option<&'a str> {
        match self {
            Part::Service(service) => Some(&service.role),
            Part::Step(step) => step.role.as_deref(),
        }
    }

    fn ports(self) -> &'a BTreeMap<String, u16> {
        match self {
            Part::Service(service) => &service.ports,
            Part::Step(step) => &step.ports,
        }
    }

    fn group(self) -> &'static str {
        match self {
            Part::Service(_) => "service",
            Part::Step(_) => "step",
        }
    }
}

/// The scope of a part: the settings with every place that the part may mention.
pub(super) fn scope(
    rule: &Rule,
    part: Part<'_>,
    settings: &Scope,
    binding: &Binding,
) -> Result<Scope, Diagnostic> {
    let mut scope = settings.clone();
    for role in rule.roles.keys() {
        scope.set(role, &Value::Map(address(role, binding)?));
    }
    let services = rule.services.iter().map(Part::Service);
    scope.set("service", &places(services, binding)?);
    if part.role().is_some() {
        scope.set("self", &place(part, binding)?);
    }
    let real = |symbol: &str, real: fn(&RealBinding) -> &String| {
        Value::Str(match binding {
            Binding::Symbolic => symbol.to_owned(),
            Binding::Real(binding) => real(binding).clone(),
        })
    };
    scope.set("work", &real("@work@", |binding| &binding.work));
    if matches!(part, Part::Service(_)) {
        return Ok(scope);
    }
    scope.set("step", &places(rule.steps.iter().map(Part::Step), binding)?);
    scope.set("session", &real("@session@", |binding| &binding.session));
    if rule.kind == RuleKind::Analysis {
        scope.set("inputs", &real("@inputs@", |binding| &binding.inputs));
    }
    let outputs = rule.outputs.iter().map(|(name, output)| {
        let path = match binding {
            Binding::Symbolic => format!("@out.{name}@"),
            Binding::Real(binding) => format!("{}/{}", binding.work, output.path),
        };
        (name.clone(), Value::Str(path))
    });
    scope.set("out", &Value::Map(outputs.collect()));
    Ok(scope)
}

fn places<'a>(
    parts: impl Iterator<Item = Part<'a>>,
    binding: &Binding,
) -> Result<Value, Diagnostic> {
    let places = parts.map(|part| Ok((part.name().to_owned(), place(part, binding)?)));
    Ok(Value::Map(places.collect::<Result<_, Diagnostic>>()?))
}

/// `ip`, `host` and `port` of a service or step.
fn place(part: Part<'_>, binding: &Binding) -> Result<Value, Diagnostic> {
    let mut place = match part.role() {
        Some(role) => address(role, binding)?,
        None => BTreeMap::new(),
    };
    let ports = part.ports().iter().map(|(port, preferred)| {
        let number = match binding {
            Binding::Symbolic => {
                Value::Str(format!("@{}.{}.port.{port}@", part.group(), part.name()))
            }
            Binding::Real(binding) => {
                let key = (part.name().to_owned(), port.clone());
                Value::Int((*binding.ports.get(&key).unwrap_or(preferred)).into())
            }
        };
        (port.clone(), number)
    });
    place.insert("port".to_owned(), Value::Map(ports.collect()));
    Ok(Value::Map(place))
}

/// `ip` and `host` of a role.
fn address(role: &str, binding: &Binding) -> Result<BTreeMap<String, Value>, Diagnostic> {
    let (ip, host) = match binding {
        Binding::Symbolic => (format!("@{role}.ip@"), format!("@{role}.host@")),
        Binding::Real(binding) => {
            match binding.roles.get(role) {
                Some(place) => (place.ip.clone(), place.host.clone()),
                None => {
                    return Err(Diagnostic::error(
                    "unbound-role",
                    format!("no host is bound to the role `{role}`"),
                )
                .hint("name one in the platform's `roles` in doe.toml; `\"*\"` stands for all others"));
                }
            }
        }
    };
    Ok(BTreeMap::from([
        ("ip".to_owned(), Value::Str(ip)),
        ("host".to_owned(), Value::Str(host)),
    ]))
}
