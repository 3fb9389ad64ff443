use super::*;
use proptest::prelude::*;

fn doc(text: &str) -> Doc {
    let (doc, diags) = Doc::parse("f.toml", text);
    assert_eq!(diags, []);
    doc
}

/// The text that a site covers.
fn covered(site: &Site) -> &str {
    &site.file.text[site.range.clone()]
}

fn messages(diags: &[Diagnostic]) -> Vec<String> {
    diags
        .iter()
        .map(|d| {
            let place = d
                .sites
                .first()
                .map_or_else(String::new, |(site, _)| site.short());
            format!("{place} {}: {} ({})", d.code, d.message, d.hints.join("; "))
        })
        .collect()
}

#[test]
fn keys_keep_file_order_and_places() {
    let doc = doc("z = 1\na.c = \"x\"\na.b = [1, {k = 2}]\n[t]\n[[l]]\nq = 1\n[[l]]\n");
    let table = doc.table();
    let keys: Vec<_> = table
        .entries()
        .iter()
        .map(|e| e.key.text.as_str())
        .collect();
    assert_eq!(keys, ["z", "a", "t", "l"]);
    let mut diags = Vec::new();
    let a = table.entries()[1].item.as_table("a", &mut diags).unwrap();
    let keys: Vec<_> = a.entries().iter().map(|e| e.key.text.as_str()).collect();
    assert_eq!(keys, ["c", "b"]);
    assert_eq!(covered(&a.entries()[0].item.site), "\"x\"");
    assert_eq!(covered(&a.entries()[1].key.site), "b");
    assert_eq!(covered(&a.entries()[1].item.site), "[1, {k = 2}]");
    assert_eq!(covered(&table.entries()[2].item.site), "[t]");
    let tables = table.entries()[3].item.as_tables("l", &mut diags);
    assert_eq!(tables.len(), 2);
    assert_eq!(tables[1].site().short(), "f.toml:7:1");
    assert_eq!(diags, []);
}

#[test]
fn getters_take_what_fits_and_tell_what_does_not() {
    let doc = doc(concat!(
        "s = 'a'\ni = 3\nf = 2\nb = true\nd = \"1h30m\"\nn = 90\nl = ['x', 'y']\n",
        "bad_s = 1\nbad_i = 1.5\nbad_f = nan\nbad_b = \"true\"\nbad_d = \"15\"\nbad_d2 = -1\n",
        "bad_d3 = \"soon\"\nbad_l = 'x'\nbad_l2 = [1, 'y']\nbad_t = 3\nbad_ts = {}\n",
    ));
    let mut table = doc.table();
    let mut diags = Vec::new();
    assert_eq!(table.req_str("s", &mut diags).unwrap().text, "a");
    assert_eq!(table.opt_int("i", &mut diags).unwrap().value, 3);
    assert_eq!(table.opt_float("f", &mut diags).unwrap().value, 2.0);
    assert!(table.opt_bool("b", &mut diags).unwrap().value);
    assert_eq!(table.opt_duration("d", &mut diags).unwrap().value, 5400.0);
    assert_eq!(table.opt_duration("n", &mut diags).unwrap().value, 90.0);
    assert_eq!(table.str_list("l", &mut diags).len(), 2);
    assert!(table.opt_str("none", &mut diags).is_none());
    assert!(table.tables("none", &mut diags).is_empty());
    assert_eq!(diags, []);
    table.opt_str("bad_s", &mut diags);
    table.opt_int("bad_i", &mut diags);
    table.opt_float("bad_f", &mut diags);
    table.opt_bool("bad_b", &mut diags);
    table.opt_duration("bad_d", &mut diags);
    table.opt_duration("bad_d2", &mut diags);
    table.opt_duration("bad_d3", &mut diags);
    table.str_list("bad_l", &mut diags);
    assert_eq!(table.str_list("bad_l2", &mut diags).len(), 1);
    table.opt_table("bad_t", &mut diags);
    table.tables("bad_ts", &mut diags);
    table.req_str("gone", &mut diags);
    insta::assert_snapshot!(messages(&diags).join("\n"), @r#"
    f.toml:8:9 wrong-type: `bad_s` must be a string, found an integer (put it in quotes: write `bad_s = "1"`)
    f.toml:9:9 wrong-type: `bad_i` must be an integer, found a float (write `bad_i = 8`, for example)
    f.toml:10:9 wrong-type: `bad_f` must be a finite number (write the number itself, such as 0.7; `nan` and `inf` measure nothing)
    f.toml:11:9 wrong-type: `bad_b` must be `true` or `false`, found a string (write `bad_b = true`, without quotes)
    f.toml:12:9 bad-duration: `bad_d` must be a duration, found `15` (add a unit, as in "15s", or take the quotes away; write a duration such as "90s", "15m" or "1h30m", or a number of seconds)
    f.toml:13:10 bad-duration: `bad_d2` must be a duration from 0 to 100years, found -1 seconds (write a duration such as "90s", "15m" or "1h30m", or a number of seconds)
    f.toml:14:10 bad-duration: `bad_d3` must be a duration, found `soon` (write a duration such as "90s", "15m" or "1h30m", or a number of seconds)
    f.toml:15:9 wrong-type: `bad_l` must be a list, found a string (write `bad_l = ['x']`)
    f.toml:16:11 wrong-type: each of `bad_l2` must be a string, found an integer (put it in quotes: write `"1"`)
    f.toml:17:9 wrong-type: `bad_t` must be a table, found an integer (write `bad_t = { name = "value" }`, for example)
    f.toml:18:10 wrong-type: `bad_ts` must be a list of tables, found a table (double the brackets of its header, as in `[[bad_ts]]`)
    f.toml:1:1 missing-key: the file needs `gone` (add `gone`, as in `gone = "..."`)
    "#);
}

#[test]
fn keys_that_nobody_asked_for_are_refused() {
    let doc = doc("title = 1\ntilte = 2\nrule = 3\nxyzzy = 4\n");
    let mut table = doc.table();
    let mut diags = Vec::new();
    for key in ["title", "rule", "gate"] {
        table.item(key);
    }
    table.remaining(&mut diags, "in a layer");
    insta::assert_snapshot!(messages(&diags).join("\n"), @r#"
    f.toml:2:1 unknown-key: `tilte` is not a key in a layer (keys in a layer: gate, rule, title)
    f.toml:4:1 unknown-key: `xyzzy` is not a key in a layer (keys in a layer: gate, rule, title)
    "#);
}

#[test]
fn all_syntax_errors_come_at_once() {
    let (_, diags) = Doc::parse(
        "f.toml",
        "a = \nb = 1\nb = 2\nc = \"x\n[t\nd = 08\ne = 99999999999999999999\n",
    );
    insta::assert_snapshot!(messages(&diags).join("\n"), @r#"
    f.toml:1:5 syntax: not valid TOML: string values must be quoted, expected literal string (write text in quotes, for example `name = "text"`)
    f.toml:3:1 syntax: not valid TOML: duplicate key (a key or table can be written once; give one of them another name)
    f.toml:4:7 syntax: not valid TOML: invalid basic string, expected `"` (close the string with `"` on the same line; inside it write `\"` for a quote and `\\` for a backslash, or use '...' as it stands)
    f.toml:5:3 syntax: not valid TOML: unclosed table, expected `]` (close the header: `[name]` or `[[name]]`)
    "#);
}

/// What was written wrongly may be the secret itself.
#[test]
fn a_line_of_secrets_that_does_not_parse_is_not_shown() {
    let found = |text: &str| {
        let (_, diags) = Doc::parse("f.toml", text);
        diags
            .into_iter()
            .map(|found| (found.sites.len(), found.message))
            .collect::<Vec<_>>()
    };
    let said = |at: &str| {
        let why = "string values must be quoted, expected literal string";
        vec![(0, format!("not valid TOML: {why} (f.toml:{at})"))]
    };
    assert_eq!(found("secrets = { A = hf_x }\n"), said("1:17"));
    assert_eq!(
        found("[p.lab]\nsecrets = [\n  hf_é,\n]\n[q]\nb = 1\n"),
        said("3:3")
    );
    assert_eq!(found("[p.lab.secrets]\nA = \"x\"\nB = hf_x"), said("3:5"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.toml");
    std::fs::write(&path, b"[p]\nsecrets = { A = \"hf_x\" } # f\xfcr\n").unwrap();
    let (_, diags) = Doc::read(&path, "f.toml").unwrap();
    let said = "`f.toml` is not UTF-8 (f.toml:2:29)";
    assert_eq!((diags[0].sites.len(), &*diags[0].message), (0, said));
    // Whatever stands before it, on its line or above.
    for before in ["a = 1\n", "a = true\n", "a = 1 "] {
        let text = format!("[p]\n{before}secrets = {{ A = hf_x }}\n");
        let shown = found(&text).iter().map(|(sites, _)| sites).sum::<usize>();
        assert_eq!(shown, 0, "{text}");
    }
    // Other tables are shown.
    assert_eq!(found("[p]\nsecrets = [\"A\"]\n[q]\nb = hf_x\n")[0].0, 1);
}

#[test]
fn values_lower_without_places() {
    let doc = doc("v = {a = [1, 2.5, 'x', true], b = {}}\nw = [1979-05-27, inf, 07:32:00]\n");
    let mut table = doc.table();
    let mut diags = Vec::new();
    let value = table
        .item("v")
        .unwrap()
        .to_value("`v`", &mut diags)
        .unwrap();
    assert_eq!(
        serde_json::to_string(&value).unwrap(),
        r#"{"a":[1,2.5,"x",true],"b":{}}"#
    );
    assert_eq!(diags, []);
    assert!(
        table
            .item("w")
            .unwrap()
            .to_value("`w`", &mut diags)
            .is_none()
    );
    insta::assert_snapshot!(messages(&diags).join("\n"), @r#"
    f.toml:2:6 wrong-type: `w` cannot be a date (write it as a string: "1979-05-27")
    f.toml:2:18 wrong-type: `w` must be a finite number (write the number itself, such as 0.7; `nan` and `inf` measure nothing)
    f.toml:2:23 wrong-type: `w` cannot be a date (write it as a string: "07:32:00")
    "#);
}

#[test]
fn columns_count_characters_whatever_the_line_ends() {
    let (doc, diags) = Doc::parse("f.toml", "\u{feff}a = 'é'\r\nb = ['ü', x]\r\n");
    assert_eq!(doc.file().line_column(0), (1, 1));
    let (site, _) = &diags[0].sites[0];
    assert_eq!(site.short(), "f.toml:2:11");
    assert_eq!(covered(site), "x");
}

#[test]
fn a_part_of_a_text_finds_its_place() {
    for (source, part, expected) in [
        (r#"v = "a + b""#, "b", "b"),
        (r#"v = 'a + b'"#, "+ b", "+ b"),
        (r#"v = "a\t\u00e9 \"b\"""#, "é", r"\u00e9"),
        (r#"v = "a\t\u00e9 \"b\"""#, "b", "b"),
        ("v = \"\"\"\n  é x\n  y\"\"\"", "y", "y"),
        ("v = \"\"\"\r\na \\\r\n   b\r\nc\"\"\"", "b\nc", "b\nc"),
        ("v = '''\r\na\r\nb'''", "b", "b"),
        ("v = \"\"\"a\\   \n\n  b\"\"\"", "b", "b"),
    ] {
        let doc = doc(source);
        let text = doc.table().req_str("v", &mut Vec::new()).unwrap();
        let at = text
            .text
            .find(part)
            .unwrap_or_else(|| panic!("{source}: {:?}", text.text));
        assert_eq!(
            covered(&text.locate(at..at + part.len())),
            expected,
            "{source}"
        );
    }
    // A text that is not what its site says has the whole site as its place.
    let mut text = doc("v = 'abc'")
        .table()
        .req_str("v", &mut Vec::new())
        .unwrap();
    text.text = "xyz".into();
    assert_eq!(covered(&text.locate(1..2)), "'abc'");
}

#[test]
fn files_that_are_no_text_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.toml");
    std::fs::write(&path, b"a = 1\nb = '\xff'\n").unwrap();
    let (_, diags) = Doc::read(&path, "f.toml").unwrap();
    assert_eq!(diags[0].code, "not-utf8");
    assert_eq!(diags[0].sites[0].0.short(), "f.toml:2:6");
    let error = Doc::read(&dir.path().join("none.toml"), "none.toml").unwrap_err();
    assert_eq!(error.code, "io");
    std::fs::write(&path, "a = 1\n").unwrap();
    let (doc, diags) = Doc::read(&path, "f.toml").unwrap();
    assert_eq!((doc.table().entries().len(), diags.len()), (1, 0));
}

#[test]
fn depth_is_survived() {
    for text in [
        format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000)),
        "a = ".to_owned() + &"{b=".repeat(50_000),
        "a.".repeat(50_000) + "a = 1",
        format!("[{}a]\n{}a = 1", "a.".repeat(79), "b.".repeat(79)).repeat(3),
        format!("[[{}a]]\n", "a.".repeat(79)).repeat(100),
    ] {
        let (doc, _) = Doc::parse("f.toml", &text);
        drop(doc.clone());
    }
}

fn any_toml() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "a",
        "b",
        ".",
        "=",
        " ",
        "\n",
        "\r\n",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        ",",
        "'",
        "\"",
        "\"\"\"",
        "'''",
        "#",
        "1",
        "-",
        "0x",
        "1e5",
        "nan",
        "inf",
        "true",
        "1979-05-27",
        "é",
        "\\",
        "\\u00e9",
        "\u{0}",
        "\u{feff}",
    ]);
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_text_makes_a_document(text in prop_oneof!["\\PC{0,120}", any_toml()]) {
        let (doc, diags) = Doc::parse("f.toml", &text);
        for diagnostic in &diags {
            for (site, _) in &diagnostic.sites {
                prop_assert!(site.file.text.get(site.range.clone()).is_some(), "{diagnostic:?}");
                site.short();
            }
        }
        let mut table = doc.table();
        let mut found = Vec::new();
        table.remaining(&mut found, "here");
        for entry in doc.table().entries() {
            entry.item.to_value("it", &mut found);
            entry.item.as_duration("it", &mut found);
            if let Some(text) = entry.item.as_text("it", &mut found) {
                for (at, c) in text.text.char_indices() {
                    let site = text.locate(at..at + c.len_utf8());
                    prop_assert!(site.file.text.get(site.range.clone()).is_some());
                }
            }
        }
    }

    /// Every character of every string is found where it is written.
    #[test]
    fn strings_find_their_characters(text in "\\PC{0,30}", literal in any::<bool>()) {
        prop_assume!(!literal || !text.contains('\''));
        let source = if literal { format!("v = '{text}'") } else { format!("v = {}", toml::Value::from(text.as_str())) };
        let (doc, diags) = Doc::parse("f.toml", &source);
        prop_assert!(diags.is_empty(), "{source}");
        let value = doc.table().req_str("v", &mut Vec::new()).unwrap();
        prop_assert_eq!(&value.text, &text);
        for (at, c) in text.char_indices() {
            let site = value.locate(at..at + c.len_utf8());
            let found = covered(&site);
            let mut written = [0; 4];
            let written = &*c.encode_utf8(&mut written);
            prop_assert!(found == written || found.starts_with('\\'), "{source}: {c:?} at {found:?}");
        }
    }

    #[test]
    fn durations_round_trip(ms in 0u64..10_000_000_000) {
        let seconds = ms as f64 / 1000.0;
        let text = format_duration(seconds);
        let back = parse_duration(&text).unwrap();
        prop_assert!((back - seconds).abs() < 0.0011, "{text}");
    }
}
