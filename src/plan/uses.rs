//! Named things of which a platform has only so many (`tokens`, `link.NAME`), and what patterns
//! take of them while they run (`uses`). What is taken is taken whole unless somebody says how
//! much of it will do; whether there is as much is judged where plan and platform meet.

use std::collections::BTreeMap;

use super::hosts;
use super::model::Platform;
use crate::error::{Diagnostic, Site, nearest};
use crate::label::is_valid_name;
use crate::source::{ItemValue, Table, Text};

/// Most units of one token.
const MOST: i64 = 1_000_000;

/// Something of a platform of which there is only so much.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// How much there is.
    pub capacity: u32,
    /// The hosts that it joins, when it is a link.
    pub hosts: Option<Vec<String>>,
    /// Where it is declared.
    pub site: Site,
}

/// What a pattern takes of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Use {
    /// So many units; all there are when nobody says.
    pub count: Option<u32>,
    /// Where it is named.
    pub name: Site,
    /// Where it is said how much.
    pub site: Site,
}

/// Tokens by name.
pub type Uses = BTreeMap<String, Use>;

/// `uses = ["license"]`, or `uses = { license = 1, fabric = "all" }`.
pub(super) fn read(table: &mut Table<'_>, diags: &mut Vec<Diagnostic>) -> Uses {
    let mut uses = Uses::new();
    let Some(item) = table.item("uses") else {
        return uses;
    };
    if let ItemValue::Array(_) = item.value {
        for Text { text, site } in item.as_texts("`uses`", diags) {
            let name = site.clone();
            let count = None;
            uses.insert(text, Use { count, name, site });
        }
        return uses;
    }
    let Some(table) = item.as_table("`uses`", diags) else {
        return uses;
    };
    for entry in table.entries() {
        let name = &entry.key;
        let what = format!("what is used of `{}`", name.text);
        let site = entry.item.site.clone();
        let count = match &entry.item.value {
            ItemValue::Str(text) if text == "all" => None,
            ItemValue::Int(count) => match u32::try_from(*count) {
                Ok(count) if i64::from(count) <= MOST => Some(count),
                _ => {
                    let text = format!("{what} must be from 0 to {MOST}; found {count}");
                    diags.push(Diagnostic::error("out-of-bounds", text).at(site, ""));
                    continue;
                }
            },
            _ => {
                let found = entry.item.wrong_type(&what, "a whole number or \"all\"");
                diags.push(found.hint("`uses = [\"NAME\"]` takes all there is of it"));
                continue;
            }
        };
        let (text, name) = (name.text.clone(), name.site.clone());
        uses.insert(text, Use { count, name, site });
    }
    uses
}

/// The inner place over the outer one, token by token.
pub(super) fn over(inner: &Uses, outer: &Uses) -> Uses {
    let mut all = outer.clone();
    all.extend(inner.clone());
    all
}

/// Whether the same is taken, wherever that is said.
pub(super) fn same(one: &Uses, other: &Uses) -> bool {
    let counts = |uses: &Uses| -> Vec<(String, Option<u32>)> {
        let uses = uses.iter();
        uses.map(|(name, taken)| (name.clone(), taken.count))
            .collect()
    };
    counts(one) == counts(other)
}

/// Reads `tokens` and `link` of a platform, whose hosts are known.
pub(super) fn declared(
    table: &mut Table<'_>,
    platform: &mut Platform,
    diags: &mut Vec<Diagnostic>,
) {
    let mut found: Vec<(&Text, Token)> = Vec::new();
    if let Some(tokens) = table.opt_table("tokens", diags) {
        for entry in tokens.entries() {
            let what = format!("token `{}`", entry.key.text);
            let count = entry.item.as_int(&what, diags);
            let count = count.and_then(|count| capacity(&what, count.value, &count.site, diags));
            if let Some(capacity) = count {
                let site = entry.key.site.clone();
                found.push((
                    &entry.key,
                    Token {
                        capacity,
                        hosts: None,
                        site,
                    },
                ));
            }
        }
    }
    if let Some(links) = table.opt_table("link", diags) {
        for entry in links.entries() {
            let what = format!("link `{}`", entry.key.text);
            if let Some(table) = entry.item.as_table(&what, diags) {
                let link = link(&entry.key, table.named(what), platform, diags);
                found.extend(link.map(|link| (&entry.key, link)));
            }
        }
    }
    let mut seen: BTreeMap<&str, &Site> = BTreeMap::new();
    for (name, token) in &found {
        if !is_valid_name(&name.text) {
            let text = format!("`{}` cannot be the name of a token or link", name.text);
            let found = Diagnostic::error("bad-name", text).at(name.site.clone(), "");
            diags.push(found);
        }
        if let Some(first) = seen.insert(&name.text, &token.site) {
            let text = format!("a token and a link are both called `{}`", name.text);
            let found = Diagnostic::error("duplicate-name", text).at(name.site.clone(), "");
            diags.push(found.at(first.clone(), "the token"));
        }
    }
    let found = found.into_iter();
    let named = found.map(|(name, token)| (name.text.clone(), token));
    platform.tokens.extend(named);
}

fn link(
    name: &Text,
    mut table: Table<'_>,
    platform: &Platform,
    diags: &mut Vec<Diagnostic>,
) -> Option<Token> {
    let site = table.site().clone();
    let what = format!("`capacity` of link `{}`", name.text);
    let count = table.opt_int("capacity", diags);
    let capacity = match count {
        Some(count) => capacity(&what, count.value, &count.site, diags)?,
        None => 1,
    };
    let mut joined = Vec::new();
    let before = diags.len();
    for text in table.str_list("hosts", diags) {
        for host in hosts::expand(&text.text).unwrap_or_else(|_| vec![text.text.clone()]) {
            if !platform.hosts.contains_key(&host) {
                let known = || platform.hosts.keys().map(String::as_str);
                let mut found = Diagnostic::error(
                    "unknown-host",
                    format!(
                        "link `{}` joins `{host}`, which is not a host of platform `{}`",
                        name.text, platform.name
                    ),
                )
                .at(text.site.clone(), "");
                if let Some(near) = nearest(&host, known()) {
                    found = found.hint(format!("did you mean `{near}`?"));
                }
                let names: Vec<_> = known().collect();
                diags.push(found.hint(format!("hosts: {}", names.join(", "))));
            } else if !joined.contains(&host) {
                joined.push(host);
            }
        }
    }
    if joined.len() < 2 && diags.len() == before {
        let text = format!("link `{}` must join two hosts or more", name.text);
        let found = Diagnostic::error("missing-key", text).at(site, "");
        diags.push(found.hint("as in `hosts = [\"node1\", \"node2\"]`"));
    }
    table.remaining(diags, "of a link");
    Some(Token {
        capacity,
        hosts: Some(joined),
        site: name.site.clone(),
    })
}

fn capacity(what: &str, count: i64, site: &Site, diags: &mut Vec<Diagnostic>) -> Option<u32> {
    let fits = u32::try_from(count).ok();
    let fits = fits.filter(|_| (1..=MOST).contains(&count));
    if fits.is_none() {
        let text = format!("{what} must be from 1 to {MOST}; found {count}");
        diags.push(Diagnostic::error("out-of-bounds", text).at(site.clone(), ""));
    }
    fits
}
