//! Where things are, as templates see it. Symbolic places are texts such as `@decode.ip@` that a
//! key may hold; real ones are addresses, ports and paths. Both have exactly the same names, so a
//! script that renders for the key renders for the run.

use std::collections::BTreeMap;

use doe_cache::Value;

use super::action::{Binding, RealBinding, RoleBinding};
use super::model::{ProbeDef, Rule, RuleKind, ServiceDef, StepDef};
use super::scope::Scope;
use super::template::Mode;
use crate::error::Diagnostic;
use crate::source::Text;

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

    /// Every template of the part itself; the rule's environment is beside them.
    pub(super) fn texts(self) -> impl Iterator<Item = (&'a Text, Mode)> {
        let (run, env, ready, released) = match self {
            Part::Service(service) => {
                let released = service.released.as_ref();
                (&service.run, &service.env, Some(&service.ready), released)
            }
            Part::Step(step) => (&step.run, &step.env, step.ready.as_ref(), None),
        };
        let probe = ready.and_then(|ready| match &ready.probe {
            ProbeDef::Http(text)
            | ProbeDef::Tcp(text)
            | ProbeDef::Listen(text)
            | ProbeDef::File(text) => Some(text),
            ProbeDef::Log(_) | ProbeDef::Alive => None,
        });
        let scripts = [Some(run), released.map(|released| &released.run)];
        let scripts = scripts.into_iter().flatten();
        let plain = env.values().chain(probe).map(|text| (text, Mode::Plain));
        scripts.map(|text| (text, Mode::Shell)).chain(plain)
    }
}

/// Which places are put into a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Those whose name stands anywhere in a text of the part: what it may mention.
    Named,
    /// All that there are, for a message that lists them.
    All,
}

/// The scope of a part: the settings with every place that the part may mention.
pub(super) fn scope(
    rule: &Rule,
    part: Part<'_>,
    settings: &Scope,
    binding: &Binding,
    extent: Extent,
) -> Result<Scope, Diagnostic> {
    let texts = part.texts().map(|(text, _)| text);
    let texts: Vec<&Text> = texts.chain(rule.env.values()).collect();
    let named =
        |name: &str| extent == Extent::All || texts.iter().any(|text| text.text.contains(name));
    let mut scope = settings.clone();
    for role in rule.roles.keys() {
        if named(role) {
            scope.set(role, &Value::Map(address(role, binding)?));
        } else {
            // One that has no host is told whether it is named or not.
            host(role, binding)?;
        }
    }
    if named("service") {
        let services = rule.services.iter().map(Part::Service);
        scope.set("service", &places(services, binding)?);
    }
    if part.role().is_some() && named("self") {
        scope.set("self", &place(part, binding)?);
    }
    let real = |symbol: &str, real: fn(&RealBinding) -> &String| {
        Value::Str(match binding {
            Binding::Symbolic => symbol.to_owned(),
            Binding::Real(binding) => real(binding).clone(),
        })
    };
    if named("work") {
        scope.set("work", &real("@work@", |binding| &binding.work));
    }
    if matches!(part, Part::Service(_)) {
        return Ok(scope);
    }
    if named("step") {
        scope.set("step", &places(rule.steps.iter().map(Part::Step), binding)?);
    }
    if named("session") {
        scope.set("session", &real("@session@", |binding| &binding.session));
    }
    if rule.kind == RuleKind::Analysis && named("inputs") {
        scope.set("inputs", &real("@inputs@", |binding| &binding.inputs));
    }
    if named("out") {
        scope.set("out", &outputs(rule, binding));
    }
    Ok(scope)
}

fn outputs(rule: &Rule, binding: &Binding) -> Value {
    let outputs = rule.outputs.iter().map(|(name, output)| {
        let path = match binding {
            Binding::Symbolic => format!("@out.{name}@"),
            Binding::Real(binding) => format!("{}/{}", binding.work, output.path),
        };
        (name.clone(), Value::Str(path))
    });
    Value::Map(outputs.collect())
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
    let (ip, host) = match host(role, binding)? {
        None => (format!("@{role}.ip@"), format!("@{role}.host@")),
        Some(place) => (place.ip.clone(), place.host.clone()),
    };
    Ok(BTreeMap::from([
        ("ip".to_owned(), Value::Str(ip)),
        ("host".to_owned(), Value::Str(host)),
    ]))
}

/// Where a role is; nowhere for the key.
fn host<'b>(role: &str, binding: &'b Binding) -> Result<Option<&'b RoleBinding>, Diagnostic> {
    let Binding::Real(binding) = binding else {
        return Ok(None);
    };
    let place = binding.roles.get(role).ok_or_else(|| {
        let message = format!("no host is bound to the role `{role}`");
        Diagnostic::error("unbound-role", message)
            .hint("name one in the platform's `roles` in doe.toml; `\"*\"` stands for all others")
    })?;
    Ok(Some(place))
}
