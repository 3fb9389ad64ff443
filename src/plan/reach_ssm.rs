//! The table `ssm` of a platform: how its instances are reached through AWS Systems Manager. It
//! holds no credentials, and there is no key for any.

use doe_cache::remote::{Place, Target};

use super::model::{Platform, SsmTable};
use super::reach::{is_word, no_word, path, root};
use crate::error::{Diagnostic, Site};
use crate::source::Table;

type Diags = Vec<Diagnostic>;

/// Reads `ssm = { … }` over what is known.
pub(super) fn ssm(ssm: &mut SsmTable, mut table: Table<'_>, diags: &mut Diags) {
    let mut word = |key, place: &mut Option<String>, table: &mut Table<'_>| {
        if let Some(text) = table.opt_str(key, diags) {
            if is_word(&text.text) {
                *place = Some(text.text);
            } else {
                diags.push(no_word(key, &text));
            }
        }
    };
    word("region", &mut ssm.region, &mut table);
    word("profile", &mut ssm.profile, &mut table);
    word("credentials", &mut ssm.credentials, &mut table);
    word("tag", &mut ssm.tag, &mut table);
    word("document", &mut ssm.document, &mut table);
    word("doe", &mut ssm.doe, &mut table);
    for (key, place) in [
        ("endpoint", &mut ssm.endpoint),
        ("s3_endpoint", &mut ssm.s3_endpoint),
    ] {
        if let Some(text) = table.opt_str(key, diags) {
            match Target::check_endpoint(&text.text) {
                Ok(()) => *place = Some(text.text),
                Err(error) => diags
                    .push(Diagnostic::error("bad-endpoint", error.to_string()).at(text.site, "")),
            }
        }
    }
    if let Some(text) = table.opt_str("bucket", diags) {
        match text.text.parse::<Place>() {
            Ok(place) => ssm.bucket = Some(place),
            Err(_) => diags.push(
                Diagnostic::error(
                    "bad-bucket",
                    format!("`{}` is no bucket", shown(&text.text)),
                )
                .at(text.site, ""),
            ),
        }
    }
    if let Some(patience) = table.opt_duration("patience", diags) {
        ssm.patience_s = patience.value;
    }
    root(&mut ssm.root, &mut table, diags);
    path(&mut ssm.path, &mut table, diags);
    table.remaining(diags, "of `ssm`");
}

/// A value without what may be a secret in front of an `@`.
fn shown(text: &str) -> &str {
    text.rsplit('@').next().unwrap_or(text)
}

/// What an executor over Systems Manager cannot do without. `site` is the platform's name.
pub(super) fn check(platform: &Platform, site: &Site, diags: &mut Diags) {
    if platform.executor != "ssm" {
        return;
    }
    let missing = |what: String, hint: String| {
        Diagnostic::error("missing-key", what)
            .at(site.clone(), "")
            .hint(hint)
    };
    let name = &platform.name;
    if platform.ssm.bucket.is_none() {
        diags.push(missing(
            format!("platform `{name}` has no bucket: results and files go through one"),
            "add `ssm = { bucket = \"s3://BUCKET/PREFIX\" }`".into(),
        ));
    }
    if platform.ssm.tag.is_none() {
        for host in platform.hosts.values().filter(|h| h.instance.is_none()) {
            diags.push(missing(
                format!("nothing tells the instance of host `{}`", host.name),
                format!("add `instance = \"i-...\"` to [platform.{name}.host.\"{}\"], or `tag = \"KEY\"` to `ssm`: the tag whose value is the host's name", host.name),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::platform;
    use crate::source::Doc;
    use std::collections::BTreeMap;

    fn load(text: &str) -> (super::Platform, Vec<String>) {
        let (doc, mut diags) = Doc::parse("doe.toml", text);
        let mut platforms = BTreeMap::new();
        let table = doc.table().opt_table("platform", &mut diags).unwrap();
        for entry in table.entries() {
            let body = entry.item.as_table("a platform", &mut diags).unwrap();
            platform::read(&mut platforms, &entry.key, body, None, &mut diags);
        }
        let found = diags.iter().map(|d| format!("{} {}", d.code, d.message));
        let found = found.collect();
        (platforms.remove("aws").unwrap(), found)
    }

    #[test]
    fn instances_are_told_by_id_or_by_tag() {
        let (platform, found) = load(
            "[platform.aws]\nexecutor = \"ssm\"\n\
             ssm = { region = \"eu-central-1\", bucket = \"s3://lab/doe\", tag = \"doe\", patience = \"2m\" }\n\
             [platform.aws.host.\"gpu[1-2]\"]\naddress = \"10.0.0.[1-2]\"\n\
             [platform.aws.host.gpu3]\ninstance = \"i-0123456789abcdef0\"\n",
        );
        assert!(found.is_empty(), "{found:?}");
        let bucket = platform.ssm.bucket.unwrap();
        assert_eq!(
            (bucket.bucket.as_str(), bucket.prefix.as_str()),
            ("lab", "doe/")
        );
        assert_eq!(platform.ssm.patience_s, 120.0);
        let instance = platform.hosts["gpu3"].instance.as_deref();
        assert_eq!(instance, Some("i-0123456789abcdef0"));
        assert_eq!(platform.hosts["gpu1"].instance, None);
    }

    #[test]
    fn what_is_missing_or_wrong_is_told() {
        let (_, found) = load(
            "[platform.aws]\nexecutor = \"ssm\"\nssm = { endpoint = \"localhost:1\", secret = \"x\" }\n\
             [platform.aws.host.gpu1]\ngpus = 1\n",
        );
        for expected in [
            "bad-endpoint the endpoint must begin with",
            "unknown-key",
            "missing-key platform `aws` has no bucket",
            "missing-key nothing tells the instance of host `gpu1`",
        ] {
            let told = found.iter().any(|line| line.starts_with(expected));
            assert!(told, "{expected}: {found:?}");
        }
        let (_, found) = load(
            "[platform.aws]\nexecutor = \"ssm\"\nssm = { bucket = \"lab\", tag = \"a b\" }\n\
             [platform.aws.host.gpu1]\ninstance = \"-x\"\n",
        );
        assert!(
            found.iter().any(|line| line.starts_with("bad-bucket")),
            "{found:?}"
        );
        assert_eq!(
            found
                .iter()
                .filter(|line| line.starts_with("bad-value"))
                .count(),
            2,
            "{found:?}"
        );
    }
}
