//! How the hosts of a platform are reached: the table `ssh` of a platform. Values
//! that end up in front of a program's options are refused here when they could be taken for one.

use super::model::{Platform, SshTable};
use crate::error::{Diagnostic, Site};
use crate::source::{Table, Text};

type Diags = Vec<Diagnostic>;

/// Folder on every host unless the platform names one; `%w` stands for the workspace.
pub const ROOT: &str = "~/.doe-host/%w";

/// Reads `ssh = { … }` over what is known.
pub(super) fn ssh(ssh: &mut SshTable, mut table: Table<'_>, diags: &mut Diags) {
    let places = [
        ("user", &mut ssh.user),
        ("jump", &mut ssh.jump),
        ("config", &mut ssh.config),
        ("identity", &mut ssh.identity),
        ("known_hosts", &mut ssh.known_hosts),
        ("doe", &mut ssh.doe),
    ];
    words(places, &mut table, diags);
    if let Some(port) = table.opt_int("port", diags) {
        match u16::try_from(port.value) {
            Ok(value) if value > 0 => ssh.port = Some(value),
            _ => diags.push(
                Diagnostic::error(
                    "out-of-bounds",
                    format!("`port` must be from 1 to 65535, found {}", port.value),
                )
                .at(port.site, ""),
            ),
        }
    }
    if let Some(patience) = table.opt_duration("patience", diags) {
        ssh.patience_s = patience.value;
    }
    root(&mut ssh.root, &mut table, diags);
    path(&mut ssh.path, &mut table, diags);
    table.remaining(diags, "of `ssh`");
}

pub(super) fn root(place: &mut String, table: &mut Table<'_>, diags: &mut Diags) {
    let Some(root) = table.opt_str("root", diags) else {
        return;
    };
    let absolute = root.text.starts_with('/') || root.text.starts_with("~/");
    if absolute && !root.text.contains(['\n', '\0', ':']) {
        *place = root.text;
        return;
    }
    diags.push(
        Diagnostic::error(
            "bad-path",
            format!("`{}` is not an absolute folder on the hosts", root.text),
        )
        .at(root.site, "")
        .hint("for example `/scratch/me/doe` or `~/.doe-host/%w`, where `%w` stands for this workspace"),
    );
}

pub(super) fn path(place: &mut Vec<String>, table: &mut Table<'_>, diags: &mut Diags) {
    if !table.has("path") {
        return;
    }
    place.clear();
    for folder in table.str_list("path", diags) {
        if folder.text.starts_with('/') && !folder.text.contains([':', '\n', '\0']) {
            place.push(folder.text);
        } else {
            diags.push(
                Diagnostic::error(
                    "bad-path",
                    format!(
                        "`{}` is not an absolute folder for the search path",
                        folder.text
                    ),
                )
                .at(folder.site, ""),
            );
        }
    }
}

/// Whether a value cannot be taken for an option or for several words.
pub(super) fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"')
}

/// Reads values that are one word each.
pub(super) fn words<const N: usize>(
    places: [(&'static str, &mut Option<String>); N],
    table: &mut Table<'_>,
    diags: &mut Vec<Diagnostic>,
) {
    for (key, place) in places {
        if let Some(text) = table.opt_str(key, diags) {
            match is_word(&text.text) {
                true => *place = Some(text.text),
                false => diags.push(no_word(key, &text)),
            }
        }
    }
}

/// The error about a value that is none.
pub(super) fn no_word(key: &str, text: &Text) -> Diagnostic {
    Diagnostic::error(
        "bad-value",
        format!(
            "`{key}` must be one word that does not begin with `-`, found `{}`",
            text.text
        ),
    )
    .at(text.site.clone(), "")
}

/// Refuses tables of another executor than the platform's, and executors that lack what they need.
pub(super) fn check(platform: &Platform, sites: &[(&'static str, Site)], diags: &mut Diags) {
    for (table, site) in sites {
        if platform.executor != *table {
            diags.push(
                Diagnostic::error(
                    "unused-key",
                    format!(
                        "`{table}` says nothing to the executor `{}` of platform `{}`",
                        platform.executor, platform.name
                    ),
                )
                .at(site.clone(), "")
                .hint(format!("remove it, or set `executor = \"{table}\"`")),
            );
        }
    }
}
