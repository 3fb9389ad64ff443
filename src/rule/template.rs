//! Templates: text with values in it. A [`Template`] that exists parses and uses only filters and
//! tests that there are; in a shell template every value becomes exactly one word (a list: its
//! words), unless the rule says `| raw`.

use std::collections::BTreeSet;
use std::sync::Arc;

pub use super::jinja::Mode;
use super::jinja::{self, Compiled, FUNCTIONS};
use super::lex::{self, Mentions, Part};
use super::names::Names;
use super::scope::Scope;
use crate::error::Diagnostic;
use crate::source::Text;

/// A compiled template.
#[derive(Debug, Clone)]
pub struct Template {
    text: Text,
    code: Arc<Code>,
}

#[derive(Debug)]
pub(super) struct Code {
    compiled: minijinja::Template<'static, 'static>,
    /// The variables that it mentions.
    pub(super) vars: BTreeSet<String>,
    mentions: Mentions,
}

static PLAIN: Compiled<Code> = Compiled::new();
static SHELL: Compiled<Code> = Compiled::new();

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// `bad-expression`: it cannot be read, or uses a filter or test that does not exist.
    pub fn compile(text: &Text, mode: Mode) -> Result<Self, Diagnostic> {
        Ok(Self {
            code: compiled(text, mode)?,
            text: text.clone(),
        })
    }

    /// The text.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// The variables that it mentions, sorted.
    pub fn vars(&self) -> &BTreeSet<String> {
        &self.code.vars
    }

    /// `undefined-variable` for every mentioned variable that is not among the known ones.
    pub fn check_vars<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Vec<Diagnostic> {
        let unknown = |name: &&String| !known.clone().any(|k| k == name.as_str());
        (self.code.vars.iter().filter(unknown))
            .map(|name| jinja::undefined(&self.text, &self.code.mentions, name, known.clone()))
            .collect()
    }

    /// As [`Template::check_vars`], attributes included.
    pub fn check_names(&self, names: &Names) -> Vec<Diagnostic> {
        names.check(&self.text, &self.code.vars, &self.code.mentions)
    }

    /// The text with the scope's values in it.
    ///
    /// # Errors
    /// `undefined-variable` or `expression-failed`.
    pub fn render(&self, scope: &Scope) -> Result<String, Diagnostic> {
        self.code.render(&self.text, scope)
    }
}

/// [`Template::compile`] and [`Template::render`] in one, without a template that is kept.
pub(super) fn render(text: &Text, mode: Mode, scope: &Scope) -> Result<String, Diagnostic> {
    compiled(text, mode)?.render(text, scope)
}

/// What a text compiles to.
pub(super) fn compiled(text: &Text, mode: Mode) -> Result<Arc<Code>, Diagnostic> {
    jinja::check_length(text, "this template")?;
    let known = match mode {
        Mode::Plain => &PLAIN,
        Mode::Shell => &SHELL,
    };
    known.get(&text.text, || code(text, mode))
}

impl Code {
    /// `text` is what the code was made of.
    fn render(&self, text: &Text, scope: &Scope) -> Result<String, Diagnostic> {
        if let Some(name) = self.vars.iter().find(|name| !scope.has(name)) {
            let known = scope.names();
            return Err(jinja::undefined(text, &self.mentions, name, known));
        }
        jinja::guarded(|| self.compiled.render(scope.context()))
            .map_err(|error| jinja::finding(text, "template", &error))
    }
}

fn code(text: &Text, mode: Mode) -> Result<Code, Diagnostic> {
    let mut mentions = Mentions::default();
    for part in lex::parts(&text.text) {
        let (Part::Output(range) | Part::Statement(range)) = part else {
            continue;
        };
        let found = lex::mentions(&text.text, range);
        mentions.paths.extend(found.paths);
        mentions.filters.extend(found.filters);
        mentions.tests.extend(found.tests);
    }
    // The text outlives every use of the code; see `Compiled`.
    let source: &'static str = Box::leak(text.text.clone().into_boxed_str());
    let compiled = jinja::guarded(|| jinja::environment(mode).template_from_str(source))
        .map_err(|error| jinja::finding(text, "template", &error))?;
    if let Some(diagnostic) = jinja::check_words(text, &mentions).into_iter().next() {
        return Err(diagnostic);
    }
    let mut vars: BTreeSet<_> = (compiled.undeclared_variables(false).into_iter())
        .filter(|name| !FUNCTIONS.contains(&name.as_str()))
        .collect();
    // The engine has a use of its own for this name and does not report it.
    if mentions.paths.iter().any(|path| path.names[0] == "self") {
        vars.insert("self".to_owned());
    }
    Ok(Code {
        compiled,
        vars,
        mentions,
    })
}
