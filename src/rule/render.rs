//! From a rule and settings to an action. Rendering is a pure function; with the symbolic binding
//! it makes what a key is made of, with a real one what is run, and the two differ in places only.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use doe_cache::Value;

use super::action::{
    Action, Binding, Demand, OutputAction, Probe, Ready, Released, ServiceAction, StepAction,
};
use super::expr::{self, describe};
use super::model::{ProbeDef, ReadyDef, Rule, ServiceDef, StepDef};
use super::places::{self, Extent, Part};
use super::scope::Scope;
use super::template::{self, Mode};
use super::{order, script, settings};
use crate::error::{Diagnostic, Error, Result};
use crate::source::Text;

/// Most GPUs that one host is asked for; more is a mistake in an expression.
const MAX_GPUS: i64 = 1024;

/// Renders a rule with complete, checked settings.
///
/// # Errors
/// A text cannot be rendered with these settings: the finding names it, with its place in the
/// rule's file. A real binding that lacks a role is one too.
pub fn render<K: AsRef<str>, V: Borrow<Value>>(
    rule: &Rule,
    settings: impl IntoIterator<Item = (K, V)>,
    binding: &Binding,
) -> Result<Action> {
    Rendering::new(rule, settings.into_iter().collect(), binding)
        .and_then(|rendering| {
            // What fails lists the names that there are, so it is made once more with all of them.
            let action = rendering.action(Extent::Named);
            action.or_else(|_| rendering.action(Extent::All))
        })
        .map_err(|diagnostic| Error::from_diagnostics(vec![diagnostic.label(&rule.id)]))
}

struct Rendering<'a> {
    rule: &'a Rule,
    binding: &'a Binding,
    /// Settings and the variables that the rule's texts mention.
    settings: Scope,
    gpus: BTreeMap<&'a str, u32>,
}

impl<'a> Rendering<'a> {
    fn new(rule: &'a Rule, mut settings: Scope, binding: &'a Binding) -> Result<Self, Diagnostic> {
        settings::add_variables(rule, &mut settings, mentioned(rule)?)?;
        let mut gpus = BTreeMap::new();
        for (name, role) in &rule.roles {
            let count = match &role.gpus {
                Some(text) => gpu_count(name, text, &settings)?,
                None => 0,
            };
            gpus.insert(name.as_str(), count);
        }
        Ok(Self {
            rule,
            binding,
            settings,
            gpus,
        })
    }

    fn action(&self, extent: Extent) -> Result<Action, Diagnostic> {
        let rule = self.rule;
        let services = order::services(rule).map_err(|diagnostic| *diagnostic)?;
        let last_role = rule.steps.last().and_then(|step| step.role.clone());
        Ok(Action {
            services: (services.into_iter())
                .map(|service| self.service(service, extent))
                .collect::<Result<_, _>>()?,
            steps: (rule.steps.iter())
                .map(|step| self.step(step, extent))
                .collect::<Result<_, _>>()?,
            outputs: (rule.outputs.iter())
                .map(|(name, output)| OutputAction {
                    name: name.clone(),
                    path: output.path.clone(),
                    role: output.role.clone().or_else(|| last_role.clone()),
                    schema: output.schema.clone(),
                })
                .collect(),
            roles: (rule.roles.iter())
                .map(|(name, role)| {
                    let demand = Demand {
                        gpus: self.gpus.get(name.as_str()).copied().unwrap_or(0),
                        exclusive: role.exclusive,
                    };
                    (name.clone(), demand)
                })
                .collect(),
        })
    }

    fn service(&self, service: &ServiceDef, extent: Extent) -> Result<ServiceAction, Diagnostic> {
        let scope = self.scope(Part::Service(service), extent)?;
        Ok(ServiceAction {
            name: service.name.clone(),
            role: service.role.clone(),
            script: self.script(&service.run, &scope)?,
            env: self.env(&service.env, &scope)?,
            ready: ready(&service.ready, &scope)?,
            ports: service.ports.clone(),
            after: service.after.clone(),
            gpus: self.gpus.get(service.role.as_str()).copied().unwrap_or(0),
            stop_grace_s: service.stop_grace_s,
            health: service.health,
            released: (service.released.as_ref())
                .map(|released| -> Result<_, Diagnostic> {
                    Ok(Released {
                        script: self.script(&released.run, &scope)?,
                        within_s: released.within_s,
                    })
                })
                .transpose()?,
        })
    }

    fn step(&self, step: &StepDef, extent: Extent) -> Result<StepAction, Diagnostic> {
        let scope = self.scope(Part::Step(step), extent)?;
        Ok(StepAction {
            name: step.name.clone(),
            role: step.role.clone(),
            script: self.script(&step.run, &scope)?,
            env: self.env(&step.env, &scope)?,
            timeout_s: seconds(&step.timeout, &self.settings)?,
            gang: step.gang.clone(),
            after: step.after.clone(),
            ready: (step.ready.as_ref())
                .map(|definition| ready(definition, &scope))
                .transpose()?,
            ports: step.ports.clone(),
        })
    }

    fn scope(&self, part: Part<'_>, extent: Extent) -> Result<Scope, Diagnostic> {
        places::scope(self.rule, part, &self.settings, self.binding, extent)
    }

    fn script(&self, run: &Text, scope: &Scope) -> Result<String, Diagnostic> {
        let script = template::render(run, Mode::Shell, scope)?;
        let known = &self.rule.instruments;
        match self.binding {
            Binding::Real(real)
                if !known.is_empty() && !matches!(real.doe.as_str(), "" | "doe") =>
            {
                let known: Vec<_> = known.iter().map(String::as_str).collect();
                Ok(script::with_program(&script, &known, &real.doe))
            }
            _ => Ok(script),
        }
    }

    /// The part's environment over the rule's; what renders to nothing is left out.
    fn env(
        &self,
        own: &BTreeMap<String, Text>,
        scope: &Scope,
    ) -> Result<BTreeMap<String, String>, Diagnostic> {
        let inherited = (self.rule.env.iter()).filter(|(name, _)| !own.contains_key(*name));
        let mut env = BTreeMap::new();
        for (name, text) in inherited.chain(own) {
            let value = template::render(text, Mode::Plain, scope)?;
            if !value.is_empty() {
                env.insert(name.clone(), value);
            }
        }
        Ok(env)
    }
}

fn ready(ready: &ReadyDef, scope: &Scope) -> Result<Ready, Diagnostic> {
    let text = |text: &Text| template::render(text, Mode::Plain, scope);
    Ok(Ready {
        probe: match &ready.probe {
            ProbeDef::Http(url) => Probe::Http(text(url)?),
            ProbeDef::Tcp(address) => Probe::Tcp(text(address)?),
            ProbeDef::Listen(port) => Probe::Listen(text(port)?),
            ProbeDef::File(path) => Probe::File(text(path)?),
            ProbeDef::Log(pattern) => Probe::Log(pattern.text.clone()),
            ProbeDef::Alive => Probe::Alive,
        },
        within_s: ready.within_s,
        fail_on_log: ready.fail_on_log.iter().map(|t| t.text.clone()).collect(),
    })
}

/// The rule's variables that some text of it mentions outside of conditions on settings and
/// results: those are needed for rendering.
fn mentioned(rule: &Rule) -> Result<BTreeSet<&str>, Diagnostic> {
    let mut names = BTreeSet::new();
    if rule.lets.is_empty() {
        return Ok(names);
    }
    let mut add = |vars: &BTreeSet<String>| {
        let variables = vars.iter().filter_map(|name| rule.lets.get_key_value(name));
        names.extend(variables.map(|(name, _)| name.as_str()));
    };
    let services = rule.services.iter().map(Part::Service);
    let parts = services.chain(rule.steps.iter().map(Part::Step));
    let inherited = rule.env.values().map(|text| (text, Mode::Plain));
    for (text, mode) in parts.flat_map(Part::texts).chain(inherited) {
        add(&template::compiled(text, mode)?.vars);
    }
    let gpus = rule.roles.values().filter_map(|role| role.gpus.as_ref());
    for text in gpus.chain(rule.steps.iter().map(|step| &step.timeout)) {
        add(&expr::compiled(text)?.vars);
    }
    Ok(names)
}

fn gpu_count(role: &str, text: &Text, settings: &Scope) -> Result<u32, Diagnostic> {
    let value = expr::eval(text, settings)?;
    let whole = match value {
        Value::Int(whole) => Some(whole),
        Value::Float(real) if real.fract() == 0.0 && real.abs() <= 1e6 => Some(real as i64),
        _ => None,
    };
    (whole.filter(|whole| (0..=MAX_GPUS).contains(whole)))
        .and_then(|whole| u32::try_from(whole).ok())
        .ok_or_else(|| {
            Diagnostic::error(
                "out-of-bounds",
                format!(
                    "`gpus` of role `{role}` must be a whole number from 0 to {MAX_GPUS}; it is {}",
                    describe(&value)
                ),
            )
            .at(text.site.clone(), "")
        })
}

fn seconds(text: &Text, settings: &Scope) -> Result<f64, Diagnostic> {
    let value = expr::eval(text, settings)?;
    let seconds = match value {
        Value::Int(whole) => whole as f64,
        Value::Float(real) => real,
        _ => f64::NAN,
    };
    if seconds.is_finite() && seconds > 0.0 {
        return Ok(seconds);
    }
    Err(Diagnostic::error(
        "out-of-bounds",
        format!(
            "`timeout` must be a number of seconds greater than 0; it is {}",
            describe(&value)
        ),
    )
    .at(text.site.clone(), "")
    .hint("write a duration such as \"30m\", or an expression in seconds over the settings"))
}
