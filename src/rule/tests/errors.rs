use super::*;
use proptest::prelude::*;

/// A rule without a finding; the cases below break it.
pub(super) const GOOD: &str = r#"[r]
param.size = { type = "int", min = 1, max = 8, default = 2, unit = "GiB", doc = "how much" }
param.mode = { type = "enum", of = ["fast", "slow"], default = "fast" }
require = [{ that = "size > 1 or mode == 'slow'", why = "small and fast do not go together" }]
let.twice = "size * 2"
env.MODE = "{{ mode }}"
roles = { server = { gpus = "size" }, client = {} }
compare_only_on = ["mode"]
failure = [{ class = "oom", log = "out of memory" }]
[[r.service]]
name = "web"
role = "server"
ports = { http = 8000 }
run = "exec serve --port {{ self.port.http }} --size {{ twice }}"
ready = { http = "http://{{ self.ip }}:{{ self.port.http }}/", within = "1m" }
[[r.step]]
name = "go"
role = "client"
timeout = "size * 60"
run = "doe parse iperf3 --url {{ service.web.ip }} --out {{ out.result }}"
[r.output]
result = { path = "result.json", schema = "x-v1" }
log = { path = "log.txt" }
[r.metric]
speed = { from = "result", at = "/speed", unit = "MB/s", better = "higher" }
[r.sample]
laps = { from = "result", at = "/laps/*/s", unit = "s" }
[r.valid]
that = ["result.errors == 0", "speed > size"]
"#;

#[test]
fn the_good_rule_is_good() {
    let (rules, diags) = load(GOOD);
    assert_eq!(lines(&diags), "");
    let rule = rules.values().next().unwrap();
    assert_eq!(rule.instruments, ["parse iperf3"]);
    assert_eq!(rule.id.0, "t.r");
}

/// One edit each; what is said is below, in the same order.
const EDITS: &[(&str, &str)] = &[
    // parameters
    (r#"type = "int""#, r#"type = "integer""#),
    ("min = 1,", r#"min = "1","#),
    ("min = 1,", "minimum = 1,"),
    ("default = 2", "default = 9"),
    ("default = 2", r#"default = "2""#),
    (r#"default = "fast""#, r#"default = "Fast""#),
    (r#"of = ["fast", "slow"]"#, r#"of = ["fast", "fast"]"#),
    (r#"doc = "how much""#, r#"affects = "results""#),
    ("param.mode", "param.self"),
    ("param.mode", "param.a-b"),
    ("let.twice", "let.size"),
    ("server = {", "size = {"),
    // names in expressions and templates
    ("size * 2", "sice * 2"),
    ("size * 2", "size * "),
    ("size * 2", "size + more\"\nlet.more = \"twice + 1"),
    ("{{ mode }}", "{{ mod }}"),
    ("self.port.http }} --size", "self.port.htp }} --size"),
    ("{{ twice }}", "{{ twice | siez }}"),
    ("{{ twice }}", "'{{ twice }}'"),
    ("{{ twice }}", "{{ out.result }}"),
    ("service.web.ip", "service.wbe.ip"),
    ("out.result }}", "out.resutl }}"),
    ("exec serve", "{% for x in size"),
    ("size > 1", "speed > 1"),
    ("speed > size", "spede > size"),
    ("speed > size", "log.x > size"),
    // references
    (r#"role = "server""#, r#"role = "serve""#),
    (r#"role = "client""#, r#"roll = "client""#),
    (
        r#"from = "result", at = "/speed""#,
        r#"from = "log", at = "/speed""#,
    ),
    (
        r#"from = "result", at = "/speed""#,
        r#"from = "res", at = "/speed""#,
    ),
    (r#""/speed""#, r#""speed""#),
    ("/laps/*/s", "/laps/s"),
    (r#"["mode"]"#, r#"["mod"]"#),
    ("name = \"go\"", "name = \"web\""),
    ("name = \"go\"", "name = \"go\"\nafter = [\"web\"]"),
    ("name = \"web\"", "name = \"web\"\nafter = [\"web\"]"),
    // the rest
    ("doe parse iperf3", "doe parse iperf"),
    ("doe parse iperf3", "doe parse {{ mode }}"),
    ("out of memory", "out (of memory"),
    (
        r#"class = "oom""#,
        r#"infrastructure = true, class = "oom""#,
    ),
    (
        r#"class = "oom""#,
        r#"infrastructure = false, class = "lost""#,
    ),
    (
        "[r]\n",
        "[r]\nretry = { times = 21, facter = 2, factor = 0 }\n",
    ),
    (r#", within = "1m""#, r#", within = "1""#),
    (r#", within = "1m""#, r#", alive = true"#),
    ("http = 8000", "http = 80000"),
    ("size * 60", "30 minuets"),
    ("\"result.json\"", "\"../result.json\""),
    ("\"log.txt\"", "\"result.json\""),
    (r#"better = "higher""#, r#"better = "more""#),
    ("[r]\n", "[r]\nkind = \"analysis\"\n"),
    ("[r]\n", "[r]\nextends = \"q\"\n"),
    ("[r]\n", "[r]\nextends = \"r\"\n"),
    ("[r]\n", "x = 1\n[r]\n"),
    ("[r]\n", "[r]\nversion = 1.5\ncolour = 1\n"),
    ("[r.output]", "[r.outputs]"),
    ("[r]\n", "[r\n"),
    ("[r.valid]", "[r.metric]"),
];

#[test]
fn each_mistake_is_told_with_its_place() {
    let mut said = String::new();
    for (from, to) in EDITS {
        assert!(GOOD.contains(from), "{from}");
        let (_, diags) = load(&GOOD.replacen(from, to, 1));
        assert!(!diags.is_empty(), "{from} -> {to} is not noticed");
        said += &format!("{} -> {}\n", from.trim(), to.trim().replace('\n', "⏎"));
        for line in lines(&diags).lines() {
            said += &format!("  {line}\n");
        }
    }
    insta::assert_snapshot!(said, @r#"
    type = "int" -> type = "integer"
      t.toml:2:23 ["integer"] not-one-of: `type` must be one of int, float, bool, str, enum, duration, list, table; found `integer`
          did you mean `int`?
    min = 1, -> min = "1",
      t.toml:2:36 ["1"] wrong-type: `min` must be an integer, found a string
          write `min = 1`, without quotes
    min = 1, -> minimum = 1,
      t.toml:2:30 [minimum] unknown-key: `minimum` is not a key of a parameter of type int
          keys of a parameter of type int: affects, default, doc, max, min, type, unit
    default = 2 -> default = 9
      t.toml:2:58 [9] out-of-bounds: the default of `size` must be from 1 to 8 GiB; found 9
          `size`: how much
    default = 2 -> default = "2"
      t.toml:2:58 ["2"] wrong-type: the default of `size` must be an integer; found the string "2"
          write 2 without quotes
          `size`: how much
    default = "fast" -> default = "Fast"
      t.toml:3:64 ["Fast"] not-one-of: the default of `mode` must be one of fast, slow; found `Fast`
          did you mean `fast`?
    of = ["fast", "slow"] -> of = ["fast", "fast"]
      t.toml:3:45 ["fast"] duplicate-name: `fast` is in `of` twice
          first here at t.toml:3:37
    doc = "how much" -> affects = "results"
      t.toml:2:85 ["results"] not-one-of: `affects` must be one of result, scheduling, cosmetic; found `results`
          did you mean `result`?
    param.mode -> param.self
      t.toml:3:7 [self] reserved-name: `self` cannot be the name of a parameter: it has a meaning already
          reserved: self, service, step, out, work, inputs, session, loop, range
      t.toml:8:20 ["mode"] unknown-name: there is no parameter `mode`
          defined here: self, size
      t.toml:4:34 [mode] undefined-variable: `mode` is not defined
          defined here: self, size, twice
      t.toml:6:16 [mode] undefined-variable: `mode` is not defined
          defined here: client, self, server, service, size, twice, work
    param.mode -> param.a-b
      t.toml:3:7 [a-b] bad-name: `a-b` cannot be the name of a parameter
          names are letters, digits and `_`, and start with a letter
    let.twice -> let.size
      t.toml:5:12 ["size * 2"] duplicate-name: the variable `size` has the name of a parameter
          the parameter at t.toml:2:7
          templates call both by name, so each needs its own
      t.toml:14:57 [twice] undefined-variable: `twice` is not defined
          defined here: client, mode, self, server, service, size, work
    server = { -> size = {
      t.toml:7:11 [size] duplicate-name: the role `size` has the name of a parameter
          the parameter at t.toml:2:7
          templates call both by name, so each needs its own
      t.toml:12:8 ["server"] unknown-name: there is no role `server`
          defined here: client, size
    size * 2 -> sice * 2
      t.toml:5:14 [sice] undefined-variable: `sice` is not defined
          did you mean `size`?
    size * 2 -> size *
      t.toml:5:19 [*] bad-expression: this expression cannot be read: unexpected end of input, expected expression
    size * 2 -> size + more"⏎let.more = "twice + 1
      t.toml:6:12 ["twice + 1"] let-cycle: a variable cannot need itself: more → twice → more
    {{ mode }} -> {{ mod }}
      t.toml:6:16 [mod] undefined-variable: `mod` is not defined
          did you mean `mode`?
    self.port.http }} --size -> self.port.htp }} --size
      t.toml:14:39 [htp] undefined-variable: `htp` is not in `self.port`
          did you mean `http`?
    {{ twice }} -> {{ twice | siez }}
      t.toml:14:65 [siez] bad-expression: there is no filter `siez`
          did you mean `size`?
      t.toml:5:13 ["size * 2"] unused-variable: nothing in the rule mentions the variable `twice`
    {{ twice }} -> '{{ twice }}'
      t.toml:14:55 [{{ twice }}] quoted-value: a value stands inside quotes
          values quote themselves; take the quotes away
    {{ twice }} -> {{ out.result }}
      t.toml:14:57 [out] undefined-variable: `out` is not defined
          a service outlives a node and serves several, so it knows none
      t.toml:5:13 ["size * 2"] unused-variable: nothing in the rule mentions the variable `twice`
    service.web.ip -> service.wbe.ip
      t.toml:20:42 [wbe] undefined-variable: `wbe` is not in `service`
          did you mean `web`?
    out.result }} -> out.resutl }}
      t.toml:20:65 [resutl] undefined-variable: `resutl` is not in `out`
          did you mean `result`?
    exec serve -> {% for x in size
      t.toml:14:32 [{] bad-expression: this template cannot be read: unexpected `{`, expected end of block
      t.toml:5:13 ["size * 2"] unused-variable: nothing in the rule mentions the variable `twice`
    size > 1 -> speed > 1
      t.toml:4:22 [speed] undefined-variable: `speed` is not defined
          defined here: mode, size, twice
    speed > size -> spede > size
      t.toml:29:32 [spede] undefined-variable: `spede` is not defined
          did you mean `speed`?
    speed > size -> log.x > size
      t.toml:29:32 [log] undefined-variable: `log` is not defined
          defined here: mode, result, size, speed, twice
    role = "server" -> role = "serve"
      t.toml:12:8 ["serve"] unknown-name: there is no role `serve`
          did you mean `server`?
      t.toml:7:11 [server] unused-role: nothing runs as `server` and nothing mentions it
    role = "client" -> roll = "client"
      t.toml:18:1 [roll] unknown-key: `roll` is not a key in a step
          did you mean `role`?
          keys in a step: after, env, gang, name, ports, ready, role, run, timeout
      t.toml:16:1 [[[r.step]]] missing-key: step `go` needs `role`
          it says on whose host the step runs
    from = "result", at = "/speed" -> from = "log", at = "/speed"
      t.toml:25:18 ["log"] unknown-name: the output `log` has no `schema`, so it is not read as JSON
          metrics and samples come from outputs with a schema
    from = "result", at = "/speed" -> from = "res", at = "/speed"
      t.toml:25:18 ["res"] unknown-name: there is no output `res`
          defined here: log, result
    "/speed" -> "speed"
      t.toml:25:33 ["speed"] bad-pointer: `speed` does not fit: it must start with `/`
          write it as in `/ttft_ms/p50`
    /laps/*/s -> /laps/s
      t.toml:27:32 ["/laps/s"] bad-pointer: `/laps/s` does not fit: a sample is a series, and no `*` runs over an array
          single numbers belong into `metric`
    ["mode"] -> ["mod"]
      t.toml:8:20 ["mod"] unknown-name: there is no parameter `mod`
          did you mean `mode`?
    name = "go" -> name = "web"
      t.toml:17:8 ["web"] duplicate-name: two services or steps are called `web`
          first here at t.toml:11:8
    name = "go" -> name = "go"⏎after = ["web"]
      t.toml:18:10 ["web"] unknown-name: there is no step of this gang `web`
          `after` orders the steps of one gang; steps without a `gang` run in file order
    name = "web" -> name = "web"⏎after = ["web"]
      t.toml:10:1 [[[r.service]]] after-cycle: services wait for each other: web → web
    doe parse iperf3 -> doe parse iperf
      t.toml:20:8 [doe parse iperf] unknown-instrument: `doe parse iperf` is no instrument
          did you mean `doe parse iperf3`?
    doe parse iperf3 -> doe parse {{ mode }}
      t.toml:20:8 [doe parse] unknown-instrument: the name of an instrument must be written out
          its version is part of the key, so it must be known before values are
    out of memory -> out (of memory
      t.toml:9:35 ["out (of memory"] bad-regex: not a regular expression: unclosed group
          the syntax is that of Rust's regex crate: no look-around, no back-references
    class = "oom" -> infrastructure = true, class = "oom"
      t.toml:9:31 [true] bad-class: failures of class `oom` are never tried again
          `oom` has its cause in what was run: give what the infrastructure causes a class of its own
    class = "oom" -> infrastructure = false, class = "lost"
      t.toml:9:31 [false] bad-class: `lost` is a class of the infrastructure
          give what must not be tried again a class of its own, or `retry = 0`
    [r] -> [r]⏎retry = { times = 21, facter = 2, factor = 0 }
      t.toml:2:19 [21] out-of-bounds: `times` must be from 0 to 20; found 21
          it is the number of further attempts after the first
      t.toml:2:44 [0] out-of-bounds: `factor` must be 1 or more; found 0
      t.toml:2:23 [facter] unknown-key: `facter` is not a key of `retry`
          keys of `retry`: base, cap, factor, times
    , within = "1m" -> , within = "1"
      t.toml:15:73 ["1"] bad-duration: `within` must be a duration, found `1`
          add a unit, as in "1s", or take the quotes away
          write a duration such as "90s", "15m" or "1h30m", or a number of seconds
    , within = "1m" -> , alive = true
      t.toml:15:9 [{ http = "http://{{ self.ip }}] missing-key: `ready` needs exactly one of http, tcp, listen, file, log, alive; found 2
          as in `ready = { tcp = "{{ self.ip }}:{{ self.port.http }}" }`
    http = 8000 -> http = 80000
      t.toml:13:18 [80000] out-of-bounds: port `http` must be from 1 to 65535; found 80000
          write the usual number of the port, such as 8100
    size * 60 -> 30 minuets
      t.toml:19:15 [minuets] bad-expression: this expression cannot be read: unexpected input after expression
          `timeout` is a duration such as "30m", or an expression in seconds
    "result.json" -> "../result.json"
      t.toml:22:19 ["../result.json"] bad-path: `../result.json` cannot be the path of an output
          it is a path inside the node's own folder: names joined by `/`, as in `result.json`
    "log.txt" -> "result.json"
      t.toml:23:1 [log] duplicate-name: the output `log` has the path of another: `result.json`
          the other at t.toml:22:1
    better = "higher" -> better = "more"
      t.toml:25:67 ["more"] not-one-of: `better` must be one of lower, higher; found `more`
    [r] -> [r]⏎kind = "analysis"
      t.toml:8:39 [client] not-for-analysis: the analysis `t.r` cannot have the role `client`
          an analysis runs beside doe, never on a host
      t.toml:11:1 [[[r.service]]] not-for-analysis: the analysis `t.r` cannot have the service `web`
          an analysis runs beside doe, never on a host
      t.toml:17:1 [[[r.step]]] not-for-analysis: step `go` of an analysis cannot have `role`
          an analysis runs beside doe, never on a host
    [r] -> [r]⏎extends = "q"
      t.toml:2:11 ["q"] unknown-rule: there is no rule `t.q` to extend
          did you mean `t.r`?
    [r] -> [r]⏎extends = "r"
      t.toml:2:11 ["r"] extends-cycle: a rule cannot extend itself: t.r → t.r
    [r] -> x = 1⏎[r]
      t.toml:1:5 [1] wrong-type: rule `t.x` must be a table, found an integer
          write `{ name = "value" }`, for example
    [r] -> [r]⏎version = 1.5⏎colour = 1
      t.toml:2:11 [1.5] wrong-type: `version` must be an integer, found a float
          write `version = 8`, for example
      t.toml:3:1 [colour] unknown-key: `colour` is not a key in a rule
          keys in a rule: compare_only_on, doc, env, extends, failure, kind, let, metric, output, param, require, retry, roles, sample, service, step, valid, version
    [r.output] -> [r.outputs]
      t.toml:21:4 [outputs] unknown-key: `outputs` is not a key in a rule
          did you mean `output`?
          keys in a rule: compare_only_on, doc, env, extends, failure, kind, let, metric, output, param, require, retry, roles, sample, service, step, valid, version
    [r] -> [r
      t.toml:1:3 [] syntax: not valid TOML: unclosed table, expected `]`
          close the header: `[name]` or `[[name]]`
    [r.valid] -> [r.metric]
      t.toml:28:4 [metric] syntax: not valid TOML: duplicate key
          a key or table can be written once; give one of them another name
    "#);
}

#[test]
fn rules_extend_rules() {
    let child = r#"
[c]
extends = "r"
doc = "more"
param.mode = { type = "enum", of = ["fast", "slow", "off"] }
roles.third = {}
[[c.step]]
name = "other"
role = "third"
timeout = 5
run = "exit 0"
[c.valid]
that = ["speed > 0"]
"#;
    let (rules, diags) = load(&format!("{GOOD}{child}"));
    assert_eq!(lines(&diags), "");
    let rule = |name: &str| &rules[&crate::rule::model::RuleId(name.into())];
    let (base, child) = (rule("t.r"), rule("t.c"));
    assert_eq!(child.doc, "more");
    assert_eq!(child.params["mode"].default, None);
    assert_eq!(child.params.len(), 2);
    assert_eq!(child.services.len(), 1);
    assert_eq!(child.steps.len(), 1);
    assert_eq!(child.steps[0].name, "other");
    assert_eq!(child.valid.len(), base.valid.len() + 1);
    assert_eq!(child.roles.len(), 3);
    assert!(child.instruments.is_empty());
}

#[test]
fn rules_extend_rules_of_other_files() {
    let files = [
        ("a", "[x]\nextends = \"b.r\"\n[y]\nextends = \"x\"\n"),
        ("b", GOOD),
    ]
    .map(|(stem, text)| RuleFile {
        name: stem,
        stem,
        text,
    });
    let (rules, diags) = load_texts(&files, INSTRUMENTS);
    assert_eq!(lines(&diags), "");
    let ids: Vec<_> = rules.keys().map(|id| id.0.as_str()).collect();
    assert_eq!(ids, ["a.x", "a.y", "b.r"]);
}

#[test]
fn circles_and_broken_parents_are_told_once() {
    let text =
        "[a]\nextends = \"b\"\n[b]\nextends = \"c\"\n[c]\nextends = \"a\"\n[d]\nextends = \"a\"\n";
    insta::assert_snapshot!(lines(&load(text).1), @r#"
    t.toml:6:11 ["a"] extends-cycle: a rule cannot extend itself: t.a → t.b → t.c → t.a
    "#);
    let broken = GOOD.replace("size * 2", "sice * 2") + "[c]\nextends = \"r\"\n";
    insta::assert_snapshot!(lines(&load(&broken).1), @r#"
    t.toml:5:14 [sice] undefined-variable: `sice` is not defined
        did you mean `size`?
    "#);
}

#[test]
fn gangs_and_services_in_circles() {
    let text = r#"
[g]
roles = { a = {}, b = {} }
[[g.service]]
name = "s1"
role = "a"
run = "x"
after = ["s2"]
ready = { alive = true }
[[g.service]]
name = "s2"
role = "a"
run = "x"
after = ["s1"]
ready = { alive = true }
[[g.step]]
name = "one"
role = "a"
gang = "pair"
timeout = 1
run = "x"
after = ["two"]
ready = { listen = 80 }
[[g.step]]
name = "apart"
role = "a"
timeout = 1
run = "x"
ready = { alive = true }
[[g.step]]
name = "two"
role = "b"
gang = "pair"
timeout = 1
run = "x"
after = ["one", "apart"]
[g.output]
o = { path = "o" }
"#;
    insta::assert_snapshot!(lines(&load(text).1), @r#"
    t.toml:36:17 ["apart"] unknown-name: there is no step of this gang `apart`
        defined here: one, two
    t.toml:24:1 [[[g.step]]] missing-key: step `apart` has `ready` but no `gang` to wait for it
        take `ready` away, or give it and the steps that wait for it the same `gang`
    t.toml:30:1 [[[g.step]]] split-gang: step `two` stands apart from its gang `pair`
        the steps of a gang run together, so they stand next to each other
    t.toml:16:1 [[[g.step]]] after-cycle: steps wait for each other: one → two → one
    t.toml:30:1 [[[g.step]]] missing-key: step `two` needs `ready`: `one` waits for it
        as in `ready = { tcp = "…" }`, or `ready = { alive = true }`
    t.toml:4:1 [[[g.service]]] after-cycle: services wait for each other: s1 → s2 → s1
    "#);
}

/// Edits that a slip of the hand makes.
fn slips() -> impl Strategy<Value = Vec<(prop::sample::Index, Slip)>> {
    let slip = prop_oneof![
        Just(Slip::Delete),
        "[\\PC\n\"'\\[\\]{}=.,#\\\\]{1,3}".prop_map(Slip::Insert),
        Just(Slip::Double),
        Just(Slip::Truncate),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), slip), 1..4)
}

#[derive(Debug, Clone)]
enum Slip {
    Delete,
    Insert(String),
    Double,
    Truncate,
}

proptest! {
    #[test]
    fn any_text_is_loaded_or_refused(text in "\\PC{0,200}") {
        lines(&load(&text).1);
    }

    #[test]
    fn any_slip_is_survived(slips in slips()) {
        let mut chars: Vec<char> = GOOD.chars().collect();
        for (at, slip) in slips {
            if chars.is_empty() {
                break;
            }
            let at = at.index(chars.len());
            match slip {
                Slip::Delete => drop(chars.remove(at)),
                Slip::Insert(text) => drop(chars.splice(at..at, text.chars())),
                Slip::Double => chars.insert(at, chars[at]),
                Slip::Truncate => chars.truncate(at),
            }
        }
        let text: String = chars.into_iter().collect();
        lines(&load(&text).1);
    }
}
