//! A cursor over one table. Every getter records its key as known, so that [`Table::remaining`]
//! can refuse the rest and name what would have been understood; a getter that finds the wrong
//! type adds a finding and goes on.

use super::form;
use super::text::{Spanned, Text};
use super::tree::{Entry, Item};
use crate::error::{Diagnostic, Site, nearest};

/// A cursor over one table.
#[derive(Debug, Clone)]
pub struct Table<'a> {
    what: String,
    entries: &'a [Entry],
    site: Site,
    known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    pub(super) fn new(what: &str, entries: &'a [Entry], site: Site) -> Self {
        Self {
            what: what.to_owned(),
            entries,
            site,
            known: Vec::new(),
        }
    }

    /// Where the table is: its header, or its braces when it is inline.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Names the table for messages: `the layer` in "the layer needs `id`".
    pub fn named(mut self, what: impl Into<String>) -> Self {
        self.what = what.into();
        self
    }

    /// How messages call it.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// All entries in file order, known or not.
    pub fn entries(&self) -> &'a [Entry] {
        self.entries
    }

    /// Whether a key is there; does not make it known.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key.text == key)
    }

    /// The entry of a key, which is known from now on.
    pub fn entry(&mut self, key: &'static str) -> Option<&'a Entry> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entries.iter().find(|entry| entry.key.text == key)
    }

    /// The value of a key, which is known from now on.
    pub fn item(&mut self, key: &'static str) -> Option<&'a Item> {
        self.entry(key).map(|entry| &entry.item)
    }

    /// The value of a key that must be there.
    pub fn req(&mut self, key: &'static str, diags: &mut Vec<Diagnostic>) -> Option<&'a Item> {
        let item = self.item(key);
        if item.is_none() {
            let mut diagnostic =
                Diagnostic::error("missing-key", format!("{} needs `{key}`", self.what))
                    .at(self.site.clone(), "");
            let unknown = (self.entries.iter())
                .map(|entry| entry.key.text.as_str())
                .filter(|name| !self.known.contains(name));
            if let Some(near) = nearest(key, unknown) {
                diagnostic = diagnostic.hint(format!("is `{near}` meant to be `{key}`?"));
            }
            let example = form::of_key(key).unwrap_or("\"...\"");
            diagnostic = diagnostic.hint(format!("add `{key}`, as in `{key} = {example}`"));
            diags.push(diagnostic);
        }
        item
    }

    /// A text that must be there.
    pub fn req_str(&mut self, key: &'static str, diags: &mut Vec<Diagnostic>) -> Option<Text> {
        self.req(key, diags)?.as_text(&ticks(key), diags)
    }

    /// A text.
    pub fn opt_str(&mut self, key: &'static str, diags: &mut Vec<Diagnostic>) -> Option<Text> {
        self.item(key)?.as_text(&ticks(key), diags)
    }

    /// A whole number.
    pub fn opt_int(
        &mut self,
        key: &'static str,
        diags: &mut Vec<Diagnostic>,
    ) -> Option<Spanned<i64>> {
        self.item(key)?.as_int(&ticks(key), diags)
    }

    /// A number; a whole one is accepted.
    pub fn opt_float(
        &mut self,
        key: &'static str,
        diags: &mut Vec<Diagnostic>,
    ) -> Option<Spanned<f64>> {
        self.item(key)?.as_float(&ticks(key), diags)
    }

    /// A boolean.
    pub fn opt_bool(
        &mut self,
        key: &'static str,
        diags: &mut Vec<Diagnostic>,
    ) -> Option<Spanned<bool>> {
        self.item(key)?.as_bool(&ticks(key), diags)
    }

    /// A duration in seconds.
    pub fn opt_duration(
        &mut self,
        key: &'static str,
        diags: &mut Vec<Diagnostic>,
    ) -> Option<Spanned<f64>> {
        self.item(key)?.as_duration(&ticks(key), diags)
    }

    /// A table.
    pub fn opt_table(
        &mut self,
        key: &'static str,
        diags: &mut Vec<Diagnostic>,
    ) -> Option<Table<'a>> {
        self.item(key)?.as_table(&ticks(key), diags)
    }

    /// A list of tables (`[[key]]`); empty when the key is not there.
    pub fn tables(&mut self, key: &'static str, diags: &mut Vec<Diagnostic>) -> Vec<Table<'a>> {
        match self.item(key) {
            Some(item) => item.as_tables(&ticks(key), diags),
            None => Vec::new(),
        }
    }

    /// A list of anything.
    pub fn opt_array(
        &mut self,
        key: &'static str,
        diags: &mut Vec<Diagnostic>,
    ) -> Option<&'a [Item]> {
        self.item(key)?.as_array(&ticks(key), diags)
    }

    /// A list of texts; empty when the key is not there.
    pub fn str_list(&mut self, key: &'static str, diags: &mut Vec<Diagnostic>) -> Vec<Text> {
        match self.item(key) {
            Some(item) => item.as_texts(&ticks(key), diags),
            None => Vec::new(),
        }
    }

    /// Refuses every key that no getter asked for: `unknown-key`, with the nearest known key and
    /// all of them. `place` ends the sentence: `in a layer`.
    pub fn remaining(&mut self, diags: &mut Vec<Diagnostic>, place: &str) {
        for entry in self.entries {
            let name = entry.key.text.as_str();
            if self.known.contains(&name) {
                continue;
            }
            let absent = (self.known.iter().copied()).filter(|known| !self.has(known));
            let mut diagnostic =
                Diagnostic::error("unknown-key", format!("`{name}` is not a key {place}"))
                    .at(entry.key.site.clone(), "");
            if let Some(near) = nearest(name, absent) {
                diagnostic = diagnostic.hint(format!("did you mean `{near}`?"));
            }
            let mut known = self.known.clone();
            known.sort_unstable();
            diagnostic = diagnostic.hint(format!("keys {place}: {}", known.join(", ")));
            diags.push(diagnostic);
        }
    }
}

fn ticks(key: &str) -> String {
    format!("`{key}`")
}
