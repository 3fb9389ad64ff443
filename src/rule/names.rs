//! The names that a text may mention, known before any of them has a value: the tree of variables
//! and their attributes. A text that passes has no name that could turn out undefined, save inside
//! values whose shape only a run can tell.

use std::collections::{BTreeMap, BTreeSet};

use super::jinja::{name_hint, undefined};
use super::lex::Mentions;
use crate::error::Diagnostic;
use crate::source::Text;

/// Names with their attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    children: BTreeMap<String, Shape>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// A value; what is inside is not known.
    Value,
    /// Exactly these attributes.
    Group(Names),
}

impl Names {
    /// No names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a name for a value of any shape.
    pub fn value(&mut self, name: &str) -> &mut Self {
        self.children.insert(name.to_owned(), Shape::Value);
        self
    }

    /// Adds a name that has exactly the given attributes.
    pub fn group(&mut self, name: &str, attributes: Names) -> &mut Self {
        (self.children).insert(name.to_owned(), Shape::Group(attributes));
        self
    }

    /// Whether a name is there.
    pub fn has(&self, name: &str) -> bool {
        self.children.contains_key(name)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.children.keys().map(String::as_str)
    }

    /// `undefined-variable` for every variable and attribute that is not there.
    pub(super) fn check(
        &self,
        text: &Text,
        vars: &BTreeSet<String>,
        mentions: &Mentions,
    ) -> Vec<Diagnostic> {
        let mut found: Vec<_> = (vars.iter().filter(|name| !self.has(name)))
            .map(|name| undefined(text, mentions, name, self.names()))
            .collect();
        for path in &mentions.paths {
            // A name that the text itself sets (`for x in …`) is its own business.
            if !vars.contains(&path.names[0]) {
                continue;
            }
            let mut names = self;
            for (at, name) in path.names.iter().enumerate() {
                match names.children.get(name) {
                    Some(Shape::Group(inner)) => names = inner,
                    Some(Shape::Value) => break,
                    None if at == 0 => break,
                    None => {
                        let group = path.names[..at].join(".");
                        let known: BTreeSet<&str> = names.names().collect();
                        let diagnostic = Diagnostic::error(
                            "undefined-variable",
                            format!("`{name}` is not in `{group}`"),
                        )
                        .at(text.locate(path.places[at].clone()), "");
                        found.push(name_hint(diagnostic, name, &known));
                        break;
                    }
                }
            }
        }
        found.dedup();
        found
    }
}

impl<S: AsRef<str>> FromIterator<S> for Names {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        let mut all = Self::new();
        for name in names {
            all.value(name.as_ref());
        }
        all
    }
}
