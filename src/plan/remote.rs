//! `[cache]` of `doe.toml`: the mirror of the store. What is read here holds no credentials, and
//! there is no key for any.

use doe_cache::remote::{Place, RemoteMode, Target};

use crate::error::Diagnostic;
use crate::source::{Table, Text};

type Diags = Vec<Diagnostic>;

/// Reads the table; nothing when there is no mirror.
pub(super) fn read(root: &mut Table<'_>, diags: &mut Diags) -> Option<Target> {
    let mut table = root.opt_table("cache", diags)?;
    let remote = table.opt_str("remote", diags);
    let mode = table.opt_str("mode", diags);
    let endpoint = table.opt_str("endpoint", diags);
    let region = table.opt_str("region", diags);
    let path_style = table.opt_bool("path_style", diags).map(|flag| flag.value);
    table.remaining(diags, "of `[cache]`");
    let others = [
        ("mode", &mode),
        ("endpoint", &endpoint),
        ("region", &region),
    ];
    let alone = others
        .iter()
        .find_map(|(key, text)| Some((key, text.as_ref()?)));
    if let (None, Some((key, text))) = (&remote, alone) {
        diags.push(
            Diagnostic::error(
                "no-remote",
                format!("`{key}` is about a mirror, but `[cache]` names none"),
            )
            .at(text.site.clone(), "")
            .hint("add `remote = \"s3://BUCKET/PREFIX\"`"),
        );
    }
    let mode = checked(mode, "bad-mode", diags, RemoteMode::of_modes);
    let endpoint = checked(endpoint, "bad-endpoint", diags, |text| {
        Target::check_endpoint(text).map(|()| text.to_owned())
    });
    Some(Target {
        place: checked(remote, "bad-remote", diags, str::parse::<Place>)?,
        mode: mode.unwrap_or_default(),
        endpoint,
        region: region.map(|region| region.text),
        path_style,
    })
}

/// A text that must read as something; what it should be is the message.
fn checked<T>(
    text: Option<Text>,
    code: &'static str,
    diags: &mut Diags,
    read: impl Fn(&str) -> doe_cache::Result<T>,
) -> Option<T> {
    let text = text?;
    match read(&text.text) {
        Ok(value) => Some(value),
        Err(error) => {
            diags.push(Diagnostic::error(code, error.to_string()).at(text.site, ""));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Doc;

    fn read_text(text: &str) -> (Option<Target>, Vec<String>) {
        let (doc, mut diags) = Doc::parse("doe.toml", text);
        let target = read(&mut doc.table(), &mut diags);
        let place = |d: &Diagnostic| d.sites.first().map_or(String::new(), |(s, _)| s.short());
        let found = diags
            .iter()
            .map(|d| format!("{} {} {}", place(d), d.code, d.message));
        (target, found.collect())
    }

    #[test]
    fn a_mirror_is_read() {
        let (target, found) = read_text(
            "[cache]\nremote = \"s3://lab/doe\"\nmode = \"local:rw,remote:r\"\n\
             endpoint = \"http://127.0.0.1:3900\"\nregion = \"garage\"\npath_style = true\n",
        );
        assert!(found.is_empty(), "{found:?}");
        let target = target.unwrap();
        assert_eq!(target.place.to_string(), "s3://lab/doe");
        assert_eq!(target.mode, RemoteMode::Read);
        assert_eq!(target.endpoint.as_deref(), Some("http://127.0.0.1:3900"));
        assert_eq!(target.region.as_deref(), Some("garage"));
        assert_eq!(target.path_style, Some(true));
        let (target, found) = read_text("[cache]\nremote = \"s3://lab\"\n");
        assert!(found.is_empty());
        assert_eq!(target.unwrap().mode, RemoteMode::ReadWrite);
        assert_eq!(read_text(""), (None, Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, expected) in [
            (
                "[cache]\nremote = \"http://lab\"",
                "doe.toml:2:10 bad-remote the mirror must be `s3://BUCKET`",
            ),
            (
                "[cache]\nremote = \"s3://lab\"\nmode = \"remote:w\"",
                "doe.toml:3:8 bad-mode `w` is no mode of the mirror: `off`, `r` or `rw`",
            ),
            (
                "[cache]\nremote = \"s3://lab\"\nendpoint = \"lab:9000\"",
                "doe.toml:3:12 bad-endpoint the endpoint must begin with",
            ),
            (
                "[cache]\nmode = \"remote:r\"",
                "doe.toml:2:8 no-remote `mode` is about a mirror",
            ),
            (
                "[cache]\nremote = \"s3://lab\"\nsecret_key = \"x\"",
                "doe.toml:3:1 unknown-key",
            ),
        ] {
            let (_, found) = read_text(text);
            let told = found.iter().any(|line| line.starts_with(expected));
            assert!(told, "{text}\n{found:?}");
        }
    }
}
