//! From written values to settings: each is held against its parameter's type once, however many
//! cells it reaches, and becomes one shared [`Setting`]. What does not fit is one finding.

use std::collections::HashMap;
use std::sync::Arc;

use doe_cache::Value;

use crate::error::{Diagnostic, Site, nearest};
use crate::plan::model::{Setting, Source};
use crate::plan::schema::PlanDecl;
use crate::rule::model::Rule;
use crate::rule::params;
use crate::source::Text;

/// Settings by rule and place, so that patterns that got a value from the same place share it.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    known: HashMap<Place, Option<Arc<Setting>>>,
}

/// The rule, the file (or none for the command line), the offset in it (or the number of a
/// `--set`) and what kind of place it is.
type Place = (usize, usize, usize, Source);

/// What the command line sets, with whether each was of use.
#[derive(Debug, Clone)]
pub(crate) struct CommandLine {
    items: Vec<(String, String, bool)>,
}

impl CommandLine {
    /// `k=v` pairs, later ones win.
    pub(crate) fn new(sets: &[(String, String)]) -> Self {
        let items = sets.iter().map(|(k, v)| (k.clone(), v.clone(), false));
        Self {
            items: items.collect(),
        }
    }

    /// Whether a factor of the plan is set, so that its levels give way to one.
    pub(crate) fn collapses(&self, plan: &PlanDecl) -> bool {
        let of_layer = plan.layers.iter().map(|layer| &layer.common.matrix);
        let patterns = plan.layers.iter().flat_map(|layer| &layer.patterns);
        let of_patterns = patterns.map(|pattern| &pattern.common.matrix);
        of_layer
            .chain(of_patterns)
            .flatten()
            .any(|factor| self.items.iter().any(|(key, _, _)| *key == factor.key.text))
    }

    /// Keys that no rule in use has.
    pub(crate) fn unused(&self) -> impl Iterator<Item = &str> {
        let unused = self.items.iter().filter(|(_, _, used)| !used);
        unused.map(|(key, _, _)| key.as_str())
    }
}

/// Values for the patterns of one rule.
pub(super) struct Base<'a> {
    /// The rule.
    pub(super) rule: &'a Arc<Rule>,
    pool: &'a mut Pool,
}

impl<'a> Base<'a> {
    pub(super) fn new(rule: &'a Arc<Rule>, pool: &'a mut Pool) -> Self {
        Self { rule, pool }
    }

    /// `unknown-setting` for a key that is no parameter of the rule.
    pub(super) fn unknown(&self, key: &Text) -> Diagnostic {
        let names = self.rule.params.keys().map(String::as_str);
        let found = Diagnostic::error(
            "unknown-setting",
            format!(
                "`{}` is not a parameter of rule `{}`",
                key.text, self.rule.id
            ),
        )
        .at(key.site.clone(), "");
        let what = format!("parameters of `{}`", self.rule.id);
        name_hints(found, &key.text, names, &what)
    }

    /// A value held against its parameter; `None` after a finding, or when there is no such
    /// parameter.
    pub(super) fn checked(
        &self,
        key: &Text,
        value: &Value,
        site: &Site,
        diags: &mut Vec<Diagnostic>,
    ) -> Option<Value> {
        let param = self.rule.params.get(&key.text)?;
        match params::check(&key.text, param, value, Some(site)) {
            Ok(value) => Some(value),
            Err(found) => {
                diags.push(found);
                None
            }
        }
    }

    /// A written value as a setting; the finding of a value that does not fit is told the first
    /// time only.
    pub(super) fn setting(
        &mut self,
        key: &Text,
        value: &Value,
        site: &Site,
        source: Source,
        diags: &mut Vec<Diagnostic>,
    ) -> Option<Arc<Setting>> {
        let place = self.place(Arc::as_ptr(&site.file) as usize, site.range.start, source);
        if let Some(known) = self.pool.known.get(&place) {
            return known.clone();
        }
        let setting = self.checked(key, value, site, diags).map(|value| {
            Arc::new(Setting {
                value,
                source,
                site: Some(site.clone()),
            })
        });
        self.pool.known.insert(place, setting.clone());
        setting
    }

    /// The rule's default of a parameter.
    pub(super) fn default(&mut self, name: &str) -> Option<Arc<Setting>> {
        let param = self.rule.params.get(name)?;
        let value = param.default.as_ref()?;
        let site = &param.site;
        let file = Arc::as_ptr(&site.file) as usize;
        let place = self.place(file, site.range.start, Source::Default);
        let setting = self.pool.known.entry(place).or_insert_with(|| {
            Some(Arc::new(Setting {
                value: value.clone(),
                source: Source::Default,
                site: Some(site.clone()),
            }))
        });
        setting.clone()
    }

    /// What the command line sets for this rule: the name, and the setting unless its value does
    /// not fit.
    pub(super) fn command_line(
        &mut self,
        sets: &mut CommandLine,
        diags: &mut Vec<Diagnostic>,
    ) -> Vec<(String, Option<Arc<Setting>>)> {
        let mut found = Vec::new();
        for (number, (key, text, used)) in sets.items.iter_mut().enumerate() {
            let Some(param) = self.rule.params.get(key) else {
                continue;
            };
            *used = true;
            let place = self.place(0, number, Source::CommandLine);
            let setting = self.pool.known.entry(place).or_insert_with(|| {
                match params::from_text(key, param, text) {
                    Ok(value) => Some(Arc::new(Setting {
                        value,
                        source: Source::CommandLine,
                        site: None,
                    })),
                    Err(mut wrong) => {
                        wrong.message = format!("--set {key}={text}: {}", wrong.message);
                        diags.push(wrong);
                        None
                    }
                }
            });
            found.push((key.clone(), setting.clone()));
        }
        found
    }

    fn place(&self, file: usize, offset: usize, source: Source) -> Place {
        (Arc::as_ptr(self.rule) as usize, file, offset, source)
    }
}

/// Adds the nearest of some names and, when they are few, all of them. `what` names them all:
/// `parameters of `serving.unified``.
pub(crate) fn name_hints<'a>(
    mut found: Diagnostic,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
    what: &str,
) -> Diagnostic {
    const FEW: usize = 30;
    if let Some(near) = nearest(name, known.clone()) {
        found = found.hint(format!("did you mean `{near}`?"));
    }
    let mut all: Vec<&str> = known.take(FEW + 1).collect();
    all.sort_unstable();
    all.dedup();
    if all.is_empty() {
        found.hint(format!("there are no {what}"))
    } else if all.len() <= FEW {
        found.hint(format!("{what}: {}", all.join(", ")))
    } else {
        found
    }
}
