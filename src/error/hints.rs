//! What to do about each kind of finding, for places that know nothing better. Every code that a
//! plan, a rule or the graph can be refused with has an entry, so that no finding is without
//! advice; the test reads the sources and fails on a code that is not here.

/// Codes with their standing hints, in order of code.
const STANDING: &[(&str, &str)] = &[
    (
        "after-cycle",
        "take one of these `after` entries away: one of them has to start first",
    ),
    (
        "bad-bucket",
        "write `bucket = \"s3://BUCKET\"`, or with a prefix `s3://BUCKET/PREFIX`",
    ),
    (
        "bad-class",
        "classes of failures are told from each other by `log` and `exit_code`; give this one another name",
    ),
    (
        "bad-duration",
        "write a duration such as \"90s\", \"15m\" or \"1h30m\", or a number of seconds",
    ),
    (
        "bad-endpoint",
        "write the address of the store's S3 interface, as in `http://10.0.0.1:9000`",
    ),
    (
        "bad-estimate",
        "an estimate is a duration such as \"15m\", or an expression that gives seconds, 0 or more",
    ),
    (
        "bad-expectation",
        "an expectation is `30..40`, `< 80`, `<= 80`, `> 1`, `>= 1`, a number, or texts joined by `or`",
    ),
    (
        "bad-expression",
        "expressions compare and compute as in `prompt_tokens > 1024 and transport == 'efa'`",
    ),
    (
        "bad-host-range",
        "write a range as `node[001-008]` or a list as `gpu[1,3-4]`, with as many values as hosts",
    ),
    (
        "bad-id",
        "ids are letters, digits and `._+=,-`, and start with a letter or digit; `all` is taken",
    ),
    (
        "bad-mode",
        "write `mode = \"remote:rw\"`, `\"remote:r\"` or `\"remote:off\"`",
    ),
    (
        "bad-name",
        "names are letters, digits and `._+=,-`, and start with a letter or digit",
    ),
    (
        "bad-path",
        "name a path inside the folder, without `..`, as in `result.json`",
    ),
    (
        "bad-pointer",
        "a JSON pointer is written as in `/ttft_ms/p50`",
    ),
    (
        "bad-price",
        "write an amount and its currency, as in `cost_per_hour = \"10.49 USD\"`",
    ),
    (
        "bad-regex",
        "the syntax is that of Rust's regex crate: no look-around, no back-references",
    ),
    (
        "bad-remote",
        "write `remote = \"s3://BUCKET\"`, or with a prefix `s3://BUCKET/PREFIX`",
    ),
    (
        "bad-repeat",
        "say it once, with `repeat` or with `stop_when`, and of what is measured",
    ),
    (
        "bad-secret",
        "write `secrets = [\"HF_TOKEN\"]` and set the variable where `doe` is called, or `secrets = { HF_TOKEN = { file = \"~/.hf-token\" } }`; a value that was written here is to be replaced where it was given out",
    ),
    (
        "bad-tag",
        "tags are letters, digits and `._+=,-`, and start with a letter or digit",
    ),
    (
        "bad-value",
        "write one word, without spaces and quotes, that does not begin with `-`",
    ),
    (
        "clear-secret",
        "name the variable in the platform's `secrets` and set it in the environment of `doe`",
    ),
    (
        "cycle",
        "a `needs` or `gate` entry of one of them has to go",
    ),
    ("duplicate-id", "give one of them another id"),
    ("duplicate-level", "write each level once"),
    (
        "duplicate-name",
        "give one of them another name, or take it away",
    ),
    ("duplicate-port", "give each port a number of its own"),
    ("duplicate-setting", "set it in one of the two places"),
    (
        "empty-layer",
        "name the ad-hoc patterns themselves, or take the entry away",
    ),
    (
        "empty-list",
        "write at least one entry, or take the key away",
    ),
    (
        "empty-plan",
        "add a [[layer]] with `id`, `rule` and `pattern`, or take the file away; docs/plans.md has an example",
    ),
    (
        "expression-failed",
        "the values that it works on do not allow this: guard it, as in `a / b if b > 0 else 0`",
    ),
    (
        "extends-cycle",
        "take one `extends` away: what rules share goes into a rule of its own, which the others extend",
    ),
    (
        "file-too-large",
        "plans and rules are written by people: split the file, or keep data elsewhere",
    ),
    (
        "hidden-setting",
        "take it away here, or take the key out of the matrix",
    ),
    ("io", "check that it exists and may be read"),
    (
        "let-cycle",
        "write one of these variables in terms of parameters alone",
    ),
    (
        "matches-nothing",
        "compare it with the levels of the matrix, or take it away",
    ),
    ("missing-key", "add the key here"),
    ("missing-part", "add the part"),
    ("missing-rule", "rules are called `file.table`"),
    (
        "missing-rule-file",
        "`rules` lists files of the rules folder, without `.toml`",
    ),
    (
        "missing-setting",
        "give it a value in `[settings]`, in the layer or in the pattern, or give the parameter a `default`",
    ),
    ("no-host", "bind the role to a host in `doe.toml`"),
    (
        "no-inputs",
        "say what it looks at, as in `needs = [\"L2-EFA\"]`",
    ),
    (
        "no-plans",
        "write a plan there, or import one with `doe import`; docs/plans.md has an example",
    ),
    ("no-remote", "add `remote = \"s3://BUCKET/PREFIX\"`"),
    (
        "not-a-boolean",
        "compare it with something: `==`, `<`, `in`, ...",
    ),
    (
        "not-adhoc",
        "write `adhoc = true` in its layer or in the pattern",
    ),
    (
        "not-for-analysis",
        "an analysis runs beside doe, never on a host",
    ),
    ("not-json", "the file to import is one JSON object"),
    (
        "not-on-link",
        "take it out of `uses`, or bind one of the roles to a host of the link",
    ),
    ("not-one-of", "write one of these words, in quotes"),
    (
        "not-regular",
        "replace it by a regular file, or move it out of the folder",
    ),
    ("not-utf8", "save the file as UTF-8"),
    ("out-of-bounds", "write a number within the bounds"),
    ("out-of-range", "write a number within the range"),
    (
        "pattern-count",
        "correct `expect_patterns`, or the layers that make another count",
    ),
    (
        "pattern-mismatch",
        "the whole text has to match the regular expression of the parameter",
    ),
    (
        "port-twice",
        "give each its own number in `ports`, or let the platform hand them out with `dynamic_ports = true`",
    ),
    (
        "quoted-value",
        "values quote themselves: take the quotes away",
    ),
    (
        "render",
        "correct the rule's template or the settings that it uses",
    ),
    ("requirement", "change one of the settings so that it holds"),
    (
        "requirement-broken",
        "change one of the settings so that it holds",
    ),
    ("reserved-name", "give it another name"),
    (
        "secret-in-env",
        "take it out of `env`; its value there is in every manifest, so replace it where it was given out",
    ),
    (
        "self-need",
        "name other layers or patterns; a layer's name means all of its patterns",
    ),
    (
        "sim-profile",
        "docs/simulation.md lists the fields of a profile, with what they take",
    ),
    (
        "split-gang",
        "the steps of a gang run together, so they stand next to each other",
    ),
    (
        "syntax",
        "a line is `key = value`, `[table]` or `[[entry of a list]]`; texts stand in double quotes",
    ),
    (
        "too-long",
        "shorten it, or move the long part into a file that the script reads",
    ),
    (
        "too-many-cells",
        "take levels or factors away, or split the matrix into several layers",
    ),
    (
        "too-many-gpus",
        "lower the demand of the roles on that host, or bind a role to another host",
    ),
    (
        "too-many-tokens",
        "ask for less, or declare more of it in `tokens` of the platform",
    ),
    (
        "unbound-role",
        "bind the role to a host of the platform in `doe.toml`",
    ),
    (
        "undefined-variable",
        "correct the name, or define it: settings are declared as `param.NAME` of the rule",
    ),
    (
        "unfair-comparison",
        "make it equal, or name it in `only_on` if it is meant to differ",
    ),
    (
        "unknown-class",
        "name a class that the rule's failures have: `oom`, or one of its `failure` entries",
    ),
    (
        "unknown-executor",
        "docs/executors.md says what executors there are",
    ),
    (
        "unknown-fact",
        "facts are declared by the probe as `fact.NAME`, or by the platform in `facts`",
    ),
    ("unknown-host", "name a host of the platform"),
    (
        "unknown-instrument",
        "`doe measure --help` and `doe parse --help` list the instruments",
    ),
    ("unknown-key", "correct the key, or take it away"),
    (
        "unknown-metric",
        "expectations are of metrics that the rule declares under `metric`",
    ),
    (
        "unknown-name",
        "correct the name, or define what it should name",
    ),
    (
        "unknown-platform",
        "platforms are `[platform.NAME]` in `doe.toml`; `sim` always exists",
    ),
    (
        "unknown-probe",
        "a probe is a table of a rule file with `kind = \"probe\"`, named `file.table`",
    ),
    (
        "unknown-rule",
        "a rule of another file is named `file.table`, one of the same file `table`",
    ),
    (
        "unknown-setting",
        "correct the name, or declare it as `param.NAME` of the rule",
    ),
    (
        "unknown-token",
        "name a token or link of the platform, or declare one there, as in `tokens = { license = 1 }`",
    ),
    ("unpaired", "a pair agrees in every setting that `by` names"),
    (
        "unresolved-compare",
        "`across` names the id of a `[[compare]]` of this plan",
    ),
    (
        "unresolved-gate",
        "`gate` names layers or patterns of this plan, or `//plan:name` of another",
    ),
    (
        "unresolved-layer",
        "`between` names layers of this plan, or `//plan:layer` of another",
    ),
    (
        "unresolved-need",
        "`needs` names layers or patterns of this plan, or `//plan:name` of another",
    ),
    (
        "unresolved-pattern",
        "`patterns` names layers or patterns of this plan, or `//plan:name` of another",
    ),
    (
        "unused-key",
        "take it out, or name the executor that it belongs to",
    ),
    (
        "unused-parameter",
        "take it away, or mention it in `run`, `env` or another part of the rule",
    ),
    (
        "unused-role",
        "take it away, or give a service or a step this `role`",
    ),
    (
        "unused-rules",
        "take it out of `rules`, or name one of its rules in a layer",
    ),
    (
        "unused-setting",
        "take it away, or use a rule that reads it",
    ),
    ("unused-variable", "take it away, or mention it"),
    (
        "wrong-type",
        "texts stand in double quotes; numbers, `true` and `false` stand without",
    ),
];

/// What can always be said about a code.
pub(super) fn standing(code: &str) -> Option<&'static str> {
    let found = STANDING.binary_search_by_key(&code, |(known, _)| known);
    found.ok().map(|at| STANDING[at].1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::*;

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }

    /// Every code that a finding is made with, as the sources write it.
    fn codes() -> BTreeSet<String> {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = ["label.rs", "engine/preflight.rs", "engine/uses.rs"];
        let mut files: Vec<_> = files.iter().map(|file| src.join(file)).collect();
        for room in ["source", "plan", "rule", "graph"] {
            sources(&src.join(room), &mut files);
        }
        let made = regex::Regex::new(
            r#"(?:Diagnostic::(?:error|warning)|self\.push)\(\s*"([a-z0-9-]+)"\s*,"#,
        )
        .unwrap();
        // Given to the function that makes the finding.
        let handed =
            regex::Regex::new(r#""(unresolved-[a-z]+|bad-(?:mode|endpoint|remote))""#).unwrap();
        let mut codes = BTreeSet::new();
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let product = text.split("#[cfg(test)]").next().unwrap();
            for by in [&made, &handed] {
                codes.extend(by.captures_iter(product).map(|found| found[1].to_owned()));
            }
        }
        codes
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(STANDING.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn every_code_has_a_standing_hint_and_every_hint_a_code() {
        let codes = codes();
        assert!(
            codes.len() > 60,
            "the sources were not understood: {codes:?}"
        );
        let without: Vec<_> = codes
            .iter()
            .filter(|code| standing(code).is_none())
            .collect();
        assert!(without.is_empty(), "add a hint for {without:?}");
        let spare: Vec<_> = STANDING
            .iter()
            .filter(|(code, _)| !codes.contains(*code))
            .collect();
        assert!(spare.is_empty(), "nothing is refused with {spare:?}");
    }
}
