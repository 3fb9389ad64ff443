//! `secrets` of a platform: the names of what scripts are given and nobody writes down. A workspace
//! holds names and where a value comes from, never a value; a variable is a secret or it is not.

use std::collections::BTreeMap;

use super::model::Platform;
use crate::error::{Diagnostic, Site};
use crate::rule::{clear, variables};
use crate::source::{Entry, Item, ItemValue, Table, Text};

/// Where the value of a secret comes from when something is about to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// This variable of the environment of `doe`.
    Variable(String),
    /// This file, without the line feed at its end.
    File(String),
}

/// One secret of a platform.
#[derive(Debug, Clone, PartialEq)]
pub struct Secret {
    /// Where its value comes from.
    pub from: Origin,
    /// Where it is named.
    pub site: Site,
}

/// What scripts have of `doe` itself, and what tells them who they are.
const TAKEN: [&str; 5] = ["PATH", "HOME", "LANG", "TMPDIR", "DOE_SECRETS"];

/// Reads `secrets = ["HF_TOKEN"]`, or `secrets = { HF_TOKEN = { file = "~/.hf-token" } }`.
pub(super) fn read(table: &mut Table<'_>, platform: &mut Platform, diags: &mut Vec<Diagnostic>) {
    if let Some(item) = table.item("secrets") {
        let mut found = Vec::new();
        read_item(item, platform, &mut found);
        diags.extend(found.into_iter().map(unshown));
    }
}

/// A finding whose place is said in words: what stands there may be the secret itself, so neither
/// the line is shown nor a better form of it.
fn unshown(found: Diagnostic) -> Diagnostic {
    let Some((site, _)) = found.sites.first() else {
        return found;
    };
    let text = format!("{} ({})", found.message, site.short());
    match found.code {
        // What its hints name are keys that there are.
        "unknown-key" => Diagnostic {
            message: text,
            sites: Vec::new(),
            ..found
        },
        _ => Diagnostic::error("bad-secret", text),
    }
}

fn read_item(item: &Item, platform: &mut Platform, diags: &mut Vec<Diagnostic>) {
    if !matches!(item.value, ItemValue::Table(_)) {
        for name in item.as_texts("`secrets`", diags) {
            let from = Origin::Variable(name.text.clone());
            add(platform, name, from, diags);
        }
        return;
    }
    let Some(table) = item.as_table("`secrets`", diags) else {
        return;
    };
    for entry in table.entries() {
        if let Some(from) = origin(entry, diags) {
            add(platform, entry.key.clone(), from, diags);
        }
    }
}

fn origin(entry: &Entry, diags: &mut Vec<Diagnostic>) -> Option<Origin> {
    let name = &entry.key.text;
    let mut table = match &entry.item.value {
        ItemValue::Table(_) => entry.item.as_table(&format!("secret `{name}`"), diags)?,
        _ => {
            let text =
                format!("secret `{name}` is to say where its value comes from, not what it is");
            diags.push(Diagnostic::error("bad-secret", text).at(entry.key.site.clone(), ""));
            return None;
        }
    };
    let variable = table.opt_str("env", diags);
    let file = table.opt_str("file", diags);
    table.remaining(diags, "of a secret");
    match (variable, file) {
        (None, Some(file)) => Some(Origin::File(file.text)),
        (Some(variable), None) if !variables::is_name(&variable.text) => {
            let text = format!("`env` of the secret `{name}` is no name of a variable");
            diags.push(Diagnostic::error("bad-secret", text).at(variable.site, ""));
            None
        }
        (Some(variable), None) => Some(Origin::Variable(variable.text)),
        (None, None) => Some(Origin::Variable(name.clone())),
        (Some(_), Some(file)) => {
            let text = format!("secret `{name}` comes from a variable or from a file");
            diags.push(Diagnostic::error("bad-secret", text).at(file.site, ""));
            None
        }
    }
}

fn add(platform: &mut Platform, name: Text, from: Origin, diags: &mut Vec<Diagnostic>) {
    let Text { text, site } = name;
    let is_name = variables::is_name(&text);
    if !is_name || variables::is_own(&text) || TAKEN.contains(&text.as_str()) {
        let text = match is_name {
            true => format!("`{text}` belongs to doe or to the shell and cannot be a secret"),
            false => "what stands in `secrets` is no name of a variable".to_owned(),
        };
        diags.push(Diagnostic::error("bad-secret", text).at(site, ""));
        return;
    }
    platform.secrets.insert(text, Secret { from, site });
}

/// What a platform's `env` gives in clear: as a secret too, or under the name of one.
pub(super) fn check(platform: &Platform, env: &[Entry], diags: &mut Vec<Diagnostic>) {
    for Entry { key, item } in env {
        if let Some(secret) = platform.secrets.get(&key.text) {
            let text = format!(
                "the secret `{}` stands in `env` too ({})",
                key.text,
                key.site.short()
            );
            diags.push(Diagnostic::error("secret-in-env", text).at(secret.site.clone(), ""));
        } else if let ItemValue::Str(value) = &item.value {
            diags.extend(clear::check(&key.text, value, &item.site));
        }
    }
}

/// The secrets of a platform by the name of their variable.
pub type Secrets = BTreeMap<String, Secret>;

#[cfg(test)]
mod tests {
    use super::super::platform::tests::load;
    use super::*;
    use crate::error::Severity;

    const HOST: &str = "[platform.lab.host.h]\naddress = \"127.0.0.1\"\n";

    fn found(keys: &str) -> Vec<Diagnostic> {
        load(&format!("[platform.lab]\n{keys}\n{HOST}")).1
    }

    fn secrets(keys: &str) -> Vec<(String, Origin)> {
        let (platforms, found) = load(&format!("[platform.lab]\n{keys}\n{HOST}"));
        assert!(found.is_empty(), "{found:#?}");
        let secrets = platforms["lab"].secrets.clone().into_iter();
        secrets.map(|(name, secret)| (name, secret.from)).collect()
    }

    #[test]
    fn a_list_names_variables_and_a_table_says_where_from() {
        let variable = |name: &str| Origin::Variable(name.into());
        assert_eq!(
            secrets("secrets = [\"HF_TOKEN\", \"B\"]"),
            [
                ("B".to_owned(), variable("B")),
                ("HF_TOKEN".to_owned(), variable("HF_TOKEN"))
            ]
        );
        assert_eq!(
            secrets("secrets = { A = {}, B = { env = \"OTHER\" }, C = { file = \"~/.token\" } }"),
            [
                ("A".to_owned(), variable("A")),
                ("B".to_owned(), variable("OTHER")),
                ("C".to_owned(), Origin::File("~/.token".into()))
            ]
        );
    }

    #[test]
    fn what_is_no_secret_is_refused_and_never_shown() {
        for keys in [
            "secrets = [\"NOT A NAME\"]",
            "secrets = [\"PATH\"]",
            "secrets = [\"1A\"]",
            "secrets = [\"UID\"]",
            "secrets = [\"IFS\"]",
            "secrets = { A = { env = \"B\", file = \"c\" } }",
        ] {
            let found = found(keys);
            assert_eq!(found.len(), 1, "{keys}: {found:#?}");
            assert_eq!(found[0].code, "bad-secret", "{keys}");
            assert_eq!(found[0].severity, Severity::Error);
        }
        // The mistakes that must not be repeated in a message, nor in the line that would be shown
        // under it.
        for (keys, code, place) in [
            ("{ A = \"hf_012345\" }", "bad-secret", "doe.toml:2:13"),
            ("{ A = { value = \"hf_012345\" } }", "unknown-key", "2:19"),
            ("{ A = { env = \"hf_01-2345\" } }", "bad-secret", "2:25"),
            ("{ A = { file = [\"hf_012345\"] } }", "bad-secret", "2:26"),
            ("[{ A = \"hf_012345\" }]", "bad-secret", "2:12"),
            ("[\"hf_01.2345\"]", "bad-secret", "2:12"),
            ("\"hf_012345\"", "bad-secret", "2:11"),
        ] {
            let found = found(&format!("secrets = {keys}"));
            assert_eq!(found.len(), 1, "{keys}: {found:#?}");
            assert_eq!(found[0].code, code, "{keys}");
            let told = format!("{} {:?}", found[0].message, found[0].advice());
            assert!(!told.contains("hf_0"), "{keys}: {told}");
            assert!(found[0].sites.is_empty(), "{keys}");
            assert!(told.contains(place), "{keys}: {told}");
        }
    }

    #[test]
    fn a_variable_is_a_secret_or_it_is_not() {
        let found = found("secrets = [\"A_TOKEN\"]\nenv = { A_TOKEN = \"x\" }");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].code, "secret-in-env");
        let (site, _) = &found[0].sites[0];
        assert_eq!(&site.file.text[site.range.clone()], "\"A_TOKEN\"");
        assert!(found[0].message.contains("doe.toml:3:9"), "{found:#?}");
    }

    #[test]
    fn a_secret_in_clear_is_told() {
        let found = found("env = { HF_TOKEN = \"hf_012345\", HF_HOME = \"/data\" }");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].code, "clear-secret");
        assert_eq!(found[0].severity, Severity::Warning);
        assert!(!found[0].message.contains("hf_0") && found[0].sites.is_empty());
        assert!(
            found[0]
                .advice()
                .iter()
                .any(|hint| hint.contains("secrets = ["))
        );
    }
}
