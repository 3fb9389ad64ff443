use super::errors::GOOD;
use super::*;
use crate::rule::digest::{describe, judge_describe};

/// The rule of the good file after an edit.
fn rule(from: &str, to: &str) -> std::sync::Arc<crate::rule::model::Rule> {
    assert!(GOOD.contains(from), "{from}");
    let (rules, diags) = load(&GOOD.replacen(from, to, 1));
    let errors: Vec<_> = (diags.into_iter())
        .filter(|d| d.severity == crate::error::Severity::Error)
        .collect();
    assert_eq!(lines(&errors), "", "{from} -> {to}");
    rules.into_values().next().unwrap()
}

fn sides(from: &str, to: &str) -> (bool, bool) {
    let before = rule("[r]", "[r]");
    let after = rule(from, to);
    (
        describe(&before) != describe(&after),
        judge_describe(&before) != judge_describe(&after),
    )
}

#[test]
fn what_cannot_change_a_result_is_in_no_key() {
    for (from, to) in [
        ("[r]\n", "# a comment\n\n[r]\ndoc = \"text\"\n"),
        ("doc = \"how much\"", "doc = \"how little\""),
        ("max = 8", "max = 9"),
        ("default = 2", "default = 3"),
        ("unit = \"GiB\"", "unit = \"GB\""),
        ("size > 1 or", "size > 3 or"),
        ("within = \"1m\"", "within = \"2m\", fail_on_log = [\"x\"]"),
        ("size * 60", "size * 61"),
        ("http = 8000", "http = 8001"),
        ("[\"mode\"]", "[\"size\"]"),
        ("out of memory", "OOM"),
        ("role = \"client\"\n", "role = \"client\"  # why\n"),
        ("[[r.step]]", "[[r.step]]\n\n"),
        ("[r.output]\n", "[r.output]\n  "),
        ("[[r.service]]\n", "[[r.service]]\nstop_grace = 1\n"),
        (
            "[[r.service]]\n",
            "[[r.service]]\nhealth = { every = \"1m\", misses = 9 }\n",
        ),
        (
            "[[r.service]]\n",
            "[[r.service]]\nreleased = { run = \"test {{ size }} -gt 0\" }\n",
        ),
    ] {
        assert_eq!(sides(from, to), (false, false), "{from} -> {to}");
    }
}

#[test]
fn what_can_change_a_result_is_in_the_key() {
    for (from, to) in [
        ("[r]\n", "[r]\nversion = 2\n"),
        ("size * 2", "size * 3"),
        ("MODE = \"{{ mode }}\"", "MODE = \"x{{ mode }}\""),
        ("gpus = \"size\"", "gpus = \"size + 1\""),
        ("client = {}", "client = { exclusive = false }"),
        ("exec serve", "exec  serve"),
        ("role = \"client\"", "role = \"server\""),
        (
            "ready = { http = \"http://{{ self.ip }}:{{ self.port.http }}/\"",
            "ready = { tcp = \"{{ self.ip }}:{{ self.port.http }}\"",
        ),
        ("doe parse iperf3", "doe proxy"),
        ("name = \"go\"", "name = \"went\""),
        ("name = \"go\"", "name = \"go\"\nenv.A = \"1\""),
        ("name = \"go\"", "name = \"go\"\nports = { x = 1 }"),
        ("path = \"log.txt\"", "path = \"log2.txt\""),
        ("schema = \"x-v1\"", "schema = \"x-v2\""),
        ("log = { path", "log = { role = \"client\", path"),
    ] {
        assert_eq!(sides(from, to), (true, false), "{from} -> {to}");
    }
}

#[test]
fn what_judges_results_runs_nothing() {
    for (from, to) in [
        ("\"/speed\"", "\"/speeds\""),
        ("unit = \"MB/s\"", "unit = \"GB/s\""),
        ("better = \"higher\"", "better = \"lower\""),
        ("better = \"higher\"", "optional = true"),
        ("/laps/*/s", "/laps/*/t"),
        ("result.errors == 0", "result.errors < 1"),
    ] {
        assert_eq!(sides(from, to), (false, true), "{from} -> {to}");
    }
}
