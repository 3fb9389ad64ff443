//! A small campaign whose every number can be foretold: cells hold a value, some ask a service to
//! add to it, sums add what they need, one total adds the sums. Each execution writes a line to a
//! ledger outside the store.

use std::collections::{BTreeMap, BTreeSet};

use std::path::Path;

use crate::support::Workspace;

pub const CELLS: usize = 5;
pub const SUMS: [&[usize]; 3] = [&[0, 1], &[1, 2, 3], &[4]];
/// Cells that ask a service.
pub const SERVED: [usize; 2] = [3, 4];

const RULES: &str = r#"
[cell]
retry = { base = "20ms", cap = "40ms" }
param.name = { type = "str", doc = "its own" }
param.value = { type = "int", doc = "what it measures" }
param.mode = { type = "enum", of = ["ok", "fail", "invalid"], doc = "how it ends" }
param.ledger = { type = "str", doc = "where executions are noted" }
param.pause = { type = "str", doc = "seconds it takes" }
roles = { client = { exclusive = false } }
[[cell.step]]
name = "go"
role = "client"
timeout = "1m"
run = """
echo {{ name }} {{ value }} {{ mode }} >> {{ ledger }}
sleep {{ pause }}
test {{ mode }} != fail
good=1; test {{ mode }} = ok || good=0
printf '{"schema": "chaos-v1", "value": %d, "good": %d}' {{ value }} $good > {{ out.result }}
"""
[cell.output]
result = { path = "r.json", schema = "chaos-v1" }
[cell.metric]
number = { from = "result", at = "/value", unit = "1" }
[cell.valid]
that = ["result.good == 1"]

[served]
retry = { base = "20ms", cap = "40ms" }
param.name = { type = "str", doc = "its own" }
param.value = { type = "int", doc = "what it asks with" }
param.extra = { type = "int", doc = "what the service adds" }
param.mode = { type = "enum", of = ["ok", "fail", "invalid"], doc = "how it ends" }
param.ledger = { type = "str", doc = "where executions are noted" }
param.pause = { type = "str", doc = "seconds it takes" }
roles = { server = { exclusive = false }, client = { exclusive = false } }
[[served.service]]
name = "tap"
role = "server"
run = """
box={{ ledger }}.tap{{ extra }}
rm -rf "$box"; mkdir "$box"; mkfifo "$box/ask"
exec 3<> "$box/ask"
echo open
while read -r answer number <&3; do
  echo $((number + {{ extra }})) > "$box/new"
  mv "$box/new" "$box/$answer"
done
"""
ready = { log = "^open$", within = "50s" }
stop_grace = "1s"
[[served.step]]
name = "go"
role = "client"
timeout = "1m"
run = """
echo {{ name }} {{ value }} {{ extra }} {{ mode }} >> {{ ledger }}
sleep {{ pause }}
test {{ mode }} != fail
good=1; test {{ mode }} = ok || good=0
cd {{ ledger }}.tap{{ extra }}
echo {{ name }}.$$ {{ value }} > ask
while ! test -e {{ name }}.$$; do sleep 0.01; done
printf '{"schema": "chaos-v1", "value": %d, "good": %d}' "$(cat {{ name }}.$$)" $good > {{ out.result }}
"""
[served.output]
result = { path = "r.json", schema = "chaos-v1" }
[served.metric]
number = { from = "result", at = "/value", unit = "1" }
[served.valid]
that = ["result.good == 1"]

[sum]
kind = "analysis"
param.name = { type = "str", doc = "its own" }
param.value = { type = "int", doc = "what it adds" }
param.ledger = { type = "str", doc = "where executions are noted" }
[[sum.step]]
name = "go"
timeout = "1m"
run = """
total={{ value }}; seen=''
for input in $(sed -n 's/.*"result": "\\([^"]*\\)".*/\\1/p' {{ inputs }}); do
  got=$(sed -n 's/.*"value": \\([0-9]*\\).*/\\1/p' "$input")
  total=$((total + got)); seen="$seen-$got"
done
settings=$(sed -n 's/.*"value": \\([0-9]*\\).*/\\1/p' {{ inputs }} | tr '\\n' ,)
echo {{ name }} {{ value }} "$seen" "$settings" >> {{ ledger }}
printf '{"schema": "chaos-v1", "value": %d, "good": 1}' $total > {{ out.result }}
"""
[sum.output]
result = { path = "r.json", schema = "chaos-v1" }
[sum.metric]
number = { from = "result", at = "/value", unit = "1" }
"#;

/// How a cell ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Ok,
    Fail,
    Invalid,
}

/// A change of the plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Edit {
    Value(usize, i64),
    Mode(usize, Mode),
    /// What the service of a served cell adds.
    Extra(usize, i64),
    Sum(usize, i64),
    Comment,
}

/// What the plan says.
#[derive(Debug, Clone)]
pub struct State {
    pub cells: [(i64, Mode); CELLS],
    pub extras: [i64; SERVED.len()],
    pub sums: [i64; SUMS.len()],
    pub comment: u64,
}

/// What is to be expected of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The line it writes to the ledger when it is executed; `None` while it is blocked.
    pub line: Option<String>,
    /// Its number, when it is good.
    pub value: Option<i64>,
    /// The nodes that it needs, by name.
    pub needs: Vec<String>,
}

impl State {
    pub fn new() -> Self {
        Self {
            cells: [(1, Mode::Ok); CELLS],
            extras: [1; SERVED.len()],
            sums: [0; SUMS.len()],
            comment: 0,
        }
    }

    pub fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::Value(cell, value) => self.cells[cell].0 = value,
            Edit::Mode(cell, mode) => self.cells[cell].1 = mode,
            Edit::Extra(at, extra) => self.extras[at] = extra,
            Edit::Sum(at, value) => self.sums[at] = value,
            Edit::Comment => self.comment += 1,
        }
    }

    /// What the service of a cell adds, if it has one.
    fn extra(&self, cell: usize) -> Option<i64> {
        let at = SERVED.iter().position(|served| *served == cell)?;
        Some(self.extras[at])
    }

    /// Every node by name, from the definitions alone.
    pub fn expected(&self) -> BTreeMap<String, Expected> {
        let mut all = BTreeMap::new();
        for (at, (value, mode)) in self.cells.iter().enumerate() {
            let word = format!("{mode:?}").to_lowercase();
            let extra = self.extra(at);
            let told = extra.map_or(String::new(), |extra| format!(" {extra}"));
            all.insert(
                format!("c{at}"),
                Expected {
                    line: Some(format!("c{at} {value}{told} {word}")),
                    value: (*mode == Mode::Ok).then_some(*value + extra.unwrap_or(0)),
                    needs: Vec::new(),
                },
            );
        }
        // What it sees of its inputs: their numbers and their settings.
        let sum = |name: String,
                   own: i64,
                   needs: Vec<String>,
                   of: Vec<Option<i64>>,
                   settings: Vec<i64>| {
            let settings: String = settings.iter().map(|s| format!("{s},")).collect();
            let of: Option<Vec<i64>> = of.into_iter().collect();
            let line = of.as_ref().map(|of| {
                let seen: String = of.iter().map(|v| format!("-{v}")).collect();
                format!("{name} {own} {seen} {settings}")
            });
            let value = of.map(|of| own + of.iter().sum::<i64>());
            (name, Expected { line, value, needs })
        };
        for (at, of) in SUMS.iter().enumerate() {
            let values = of.iter().map(|c| all[&format!("c{c}")].value).collect();
            let settings = of.iter().map(|c| self.cells[*c].0).collect();
            let needs = of.iter().map(|c| format!("c{c}")).collect();
            let (name, made) = sum(format!("s{at}"), self.sums[at], needs, values, settings);
            all.insert(name, made);
        }
        let values = (0..SUMS.len()).map(|s| all[&format!("s{s}")].value);
        let needs = (0..SUMS.len()).map(|s| format!("s{s}")).collect();
        let settings = self.sums.to_vec();
        let (name, made) = sum("total".into(), 0, needs, values.collect(), settings);
        all.insert(name, made);
        all
    }

    /// Whether a build of everything ends well.
    pub fn is_good(&self) -> bool {
        self.cells.iter().all(|(_, mode)| *mode == Mode::Ok)
    }

    /// Writes plan, rules and platform into a workspace.
    pub fn write(&self, workspace: &Workspace, ledger: &Path, pause: &str) {
        let mut plan = format!(
            "# {}\n[plan]\ntitle = \"chaos\"\nrules = [\"chaos\"]\n[settings]\nledger = \"{}\"\npause = \"{pause}\"\n",
            self.comment,
            ledger.display(),
        );
        for served in [false, true] {
            let rule = if served { "served" } else { "cell" };
            plan.push_str(&format!(
                "[[layer]]\nid = \"{rule}\"\nrule = \"chaos.{rule}\"\n"
            ));
            for (at, (value, mode)) in self.cells.iter().enumerate() {
                let extra = self.extra(at);
                if extra.is_some() != served {
                    continue;
                }
                let mode = format!("{mode:?}").to_lowercase();
                let extra = extra.map_or(String::new(), |extra| format!(", extra = {extra}"));
                plan.push_str(&format!(
                    "[[layer.pattern]]\nid = \"c{at}\"\nsettings = {{ name = \"c{at}\", value = {value}, mode = \"{mode}\"{extra} }}\n"
                ));
            }
        }
        let sums = SUMS.iter().enumerate().map(|(at, of)| {
            let needs: Vec<String> = of.iter().map(|c| format!("\"c{c}\"")).collect();
            (format!("s{at}"), self.sums[at], needs)
        });
        plan.push_str("[[layer]]\nid = \"L1\"\nrule = \"chaos.sum\"\n");
        for (name, value, needs) in sums {
            plan.push_str(&sum_pattern(&name, value, &needs));
        }
        plan.push_str("[[layer]]\nid = \"L2\"\nrule = \"chaos.sum\"\n");
        let needs: Vec<String> = (0..SUMS.len()).map(|s| format!("\"s{s}\"")).collect();
        plan.push_str(&sum_pattern("total", 0, &needs));
        workspace.write("plans/chaos.toml", &plan);
        workspace.write("rules/chaos.toml", RULES);
        workspace.write(
            "doe.toml",
            "[workspace]\nplatform = \"here\"\n[platform.here]\nexecutor = \"local\"\nroles = { \"*\" = \"h\" }\n[platform.here.host.h]\naddress = \"127.0.0.1\"\n",
        );
    }
}

fn sum_pattern(name: &str, value: i64, needs: &[String]) -> String {
    format!(
        "[[layer.pattern]]\nid = \"{name}\"\nneeds = [{}]\nsettings = {{ name = \"{name}\", value = {value} }}\n",
        needs.join(", ")
    )
}

/// The document that a node with this number leaves.
pub fn document(value: i64) -> String {
    format!("{{\"schema\": \"chaos-v1\", \"value\": {value}, \"good\": 1}}")
}

/// How often each line stands in the ledger.
pub fn ledger(ledger: &Path) -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(ledger).unwrap_or_default();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        *counts.entry(line.trim_end().to_string()).or_insert(0) += 1;
    }
    counts
}

/// Names of the nodes that `doe plan` would reuse, with the beginning of the record that stands.
pub fn reused(workspace: &Workspace) -> BTreeMap<String, String> {
    let plan = workspace
        .doe(&["plan", "//chaos:all", "--json"])
        .ok()
        .json();
    let rows = plan["reuse"].as_array().unwrap().iter();
    let named = rows.map(|row| {
        let reason = row["reason"].as_str().unwrap();
        let (_, record) = reason
            .rsplit_once("record ")
            .unwrap_or_else(|| panic!("{reason}"));
        let record = record.chars().take_while(char::is_ascii_hexdigit).collect();
        let label = row["label"].as_str().unwrap();
        (label.trim_start_matches("//chaos:").to_string(), record)
    });
    named.collect()
}

/// The number of every node that has a valid current result.
pub fn values(workspace: &Workspace) -> BTreeMap<String, i64> {
    let rows = workspace
        .doe(&["results", "//chaos:all", "--json"])
        .ok()
        .json();
    let mut values = BTreeMap::new();
    for row in rows.as_array().unwrap() {
        let name = row["label"]
            .as_str()
            .unwrap()
            .trim_start_matches("//chaos:");
        if row["state"] == "current"
            && let Some(value) = row["metrics"]["number"]["value"].as_f64()
        {
            values.insert(name.to_string(), value as i64);
        }
    }
    values
}

/// Digests of all records, by the index.
pub fn records(workspace: &Workspace) -> BTreeSet<String> {
    let list = workspace.doe(&["cache", "ls", "--json"]).ok().json();
    let rows = list.as_array().unwrap();
    rows.iter()
        .map(|row| row["record"].as_str().unwrap().to_string())
        .collect()
}
