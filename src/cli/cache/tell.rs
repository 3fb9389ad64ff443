//! Where a result comes from, and how two differ. Both walk the manifests that the keys were made
//! from, as `doe explain` does.

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use doe_cache::{Change, Class, Digest, Entry, Import, Manifest, Metric, Record, Store};
use serde_json::{Value, json};

use super::look::when;
use super::planned::Planned;
use super::{named, short};
use crate::cli::out::Out;
use crate::error::Result;

/// Two records.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe cache diff //phase2:p2-efa-4k-c1 //phase2:p2-tcp-4k-c1
  doe cache diff 3f2a91 77b0c2 --json")]
pub struct Diff {
    /// Before: a label or the beginning of a digest
    #[arg(value_name = "KEY")]
    pub old: String,
    /// After
    #[arg(value_name = "KEY")]
    pub new: String,
}

/// One record.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  doe cache why //phase2:L4-analysis-bimodality
  doe cache why 3f2a91 --depth 1 --json")]
pub struct Why {
    /// A label or the beginning of a digest
    #[arg(value_name = "KEY")]
    pub key: String,
    /// Follow what it needs at most so many steps
    #[arg(long, default_value_t = 10)]
    pub depth: usize,
}

/// Compares two records.
pub fn diff(store: &Store, planned: &Planned<'_>, args: &Diff, out: &mut Out) -> Result<()> {
    let (old_digest, old) = named(store, planned, &args.old)?;
    let (new_digest, new) = named(store, planned, &args.new)?;
    let asked = Manifest::diff(&old.spec_manifest, &new.spec_manifest);
    let executed = Manifest::diff(&old.action_manifest, &new.action_manifest);
    let outcome = outcomes(&old, &new);
    if out.json {
        return out.json(&json!({
            "old": {"record": old_digest, "label": old.label},
            "new": {"record": new_digest, "label": new.label},
            "same_spec_key": old.spec_key == new.spec_key,
            "same_action_key": old.action_key == new.action_key,
            "same_judge": old.judge == new.judge,
            "same_outputs": old.output_digest == new.output_digest,
            "asked": asked, "executed": executed, "outcome": outcome,
        }));
    }
    out.line(format!("- {} {}", short(&old_digest), old.label))?;
    out.line(format!("+ {} {}", short(&new_digest), new.label))?;
    changes(
        out,
        "asked",
        "spec key",
        old.spec_key == new.spec_key,
        &asked,
    )?;
    changes(
        out,
        "executed",
        "action key",
        old.action_key == new.action_key,
        &executed,
    )?;
    if old.judge != new.judge {
        out.line("judged by other definitions of metrics or validity")?;
    }
    match outcome.is_empty() {
        true => out.line("outcome: the same"),
        false => {
            out.line("outcome:")?;
            outcome.iter().try_for_each(|row| {
                let text = |value: &Value| match value {
                    Value::Null => "(none)".to_owned(),
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                let name = row["name"].as_str().unwrap_or_default();
                sides(out, name, &text(&row["old"]), &text(&row["new"]))
            })
        }
    }
}

fn changes(out: &mut Out, title: &str, key: &str, same: bool, changes: &[Change]) -> Result<()> {
    let verdict = if same { "the same" } else { "another" };
    out.line(format!("{title}: {verdict} {key}"))?;
    for change in changes {
        let side = |entry: &Option<Entry>| match entry {
            Some(entry) => {
                let origin = entry.origin.as_deref().map(|o| format!("  ({o})"));
                format!("{}{}", entry.value, origin.unwrap_or_default())
            }
            None => "(absent)".to_owned(),
        };
        let name = match change.class {
            Class::Result => change.path.clone(),
            class => format!("{} [{class}]", change.path),
        };
        sides(out, &name, &side(&change.old), &side(&change.new))?;
    }
    Ok(())
}

fn sides(out: &mut Out, name: &str, old: &str, new: &str) -> Result<()> {
    out.line(format!("  {name}"))?;
    out.line(out.paint("31", &format!("    - {old}")))?;
    out.line(out.paint("32", &format!("    + {new}")))
}

/// Verdicts and numbers that differ.
fn outcomes(old: &Record, new: &Record) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut row = |name: String, old: Value, new: Value| {
        if old != new {
            rows.push(json!({"name": name, "old": old, "new": new}));
        }
    };
    let words = |record: &Record| {
        let verdicts = &record.verdicts;
        [
            ("execution", json!(verdicts.execution.status)),
            ("validity", json!(verdicts.validity.status)),
            ("criterion", json!(verdicts.criterion.status)),
        ]
    };
    for ((name, old), (_, new)) in words(old).into_iter().zip(words(new)) {
        row(name.to_owned(), old, new);
    }
    let names: BTreeSet<&String> = old.metrics.keys().chain(new.metrics.keys()).collect();
    let number = |metric: Option<&Metric>| metric.map_or(Value::Null, |m| json!(m.value));
    for name in names {
        let (old, new) = (old.metrics.get(name), new.metrics.get(name));
        let unit = new.or(old).map_or("", |metric| &metric.unit);
        let name = match unit {
            "" => name.clone(),
            unit => format!("{name} ({unit})"),
        };
        row(name, number(old), number(new));
    }
    let names: BTreeSet<&String> = old.texts.keys().chain(new.texts.keys()).collect();
    for name in names {
        row(
            name.clone(),
            json!(old.texts.get(name)),
            json!(new.texts.get(name)),
        );
    }
    rows
}

/// Tells where a record comes from.
pub fn why(store: &Store, planned: &Planned<'_>, args: &Why, out: &mut Out) -> Result<()> {
    let (digest, record) = named(store, planned, &args.key)?;
    let chain = Chain {
        store,
        imports: store.imports()?,
        steps: steps(store, digest, &record, args.depth)?,
    };
    let told = chain.told(digest, &record, &mut BTreeSet::new())?;
    if out.json {
        return out.json(&told);
    }
    if args.key.starts_with("//") && args.key != record.label {
        out.line(format!(
            "{} is answered by the record of {}, as the same would be executed",
            args.key, record.label
        ))?;
    }
    print(out, &told, 0)
}

/// The records that one was made from, and how many steps each is away at least.
fn steps(
    store: &Store,
    from: Digest,
    record: &Record,
    most: usize,
) -> Result<BTreeMap<Digest, usize>> {
    let mut steps = BTreeMap::from([(from, 0)]);
    let mut next = vec![record.clone()];
    for step in 1..=most {
        if next.is_empty() {
            break;
        }
        let mut further = Vec::new();
        for (label, output) in next.iter().flat_map(Record::needs) {
            let Some(made) = store.by_output(&output, &label)? else {
                continue;
            };
            if let Place::Vacant(entry) = steps.entry(made) {
                entry.insert(step);
                further.push(store.record(&made)?);
            }
        }
        next = further;
    }
    Ok(steps)
}

/// What is told of a record and of those that it was made from.
struct Chain<'s> {
    store: &'s Store,
    imports: Vec<Import>,
    steps: BTreeMap<Digest, usize>,
}

impl Chain<'_> {
    /// A record and what it was made from, as a document. Each is told once, where it is nearest,
    /// however many need it.
    fn told(&self, digest: Digest, record: &Record, seen: &mut BTreeSet<Digest>) -> Result<Value> {
        let store = self.store;
        seen.insert(digest);
        let mut needs = Vec::new();
        for (label, output) in record.needs() {
            let made = store.by_output(&output, &label)?;
            let near = |made: &Digest| {
                self.steps.get(made) == self.steps.get(&digest).map(|step| step + 1).as_ref()
            };
            let known = match made {
                Some(made) if near(&made) && seen.insert(made) => {
                    self.told(made, &store.record(&made)?, seen)?
                }
                made => json!({"label": label, "record": made}),
            };
            needs.push(json!({"label": label, "output": output, "from": known}));
        }
        let entries = record.spec_manifest.walk();
        let inputs: Vec<Value> = entries
        .filter(|(path, _)| !path.starts_with("need."))
        .map(|(path, entry)| {
            json!({
                "path": path, "value": entry.value, "class": entry.class, "origin": entry.origin,
            })
        })
        .collect();
        let import = self
            .imports
            .iter()
            .find(|import| import.records.contains(&digest));
        let execution = &record.verdicts.execution;
        Ok(json!({
            "record": digest, "label": record.label, "rule": record.rule,
            "run_id": record.run_id, "attempt": record.attempt, "attempts": record.attempts,
            "previous_attempt": record.previous_attempt,
            "recorded_unix_ms": record.recorded_unix_ms,
            "started_unix_ms": record.timings.started_unix_ms,
            "duration_ms": record.duration_ms(), "cpu": record.cpu,
            "execution": execution.status, "reason": execution.reason,
            "validity": record.verdicts.validity.status,
            "criterion": record.verdicts.criterion.status,
            "usable": record.usable(), "not_reusable_because": record.not_reusable_because,
            "spec_key": record.spec_key, "action_key": record.action_key,
            "rejudged_from": record.rejudged_from,
            "simulated": record.provenance.simulated, "platform": record.provenance.platform,
            "executor": record.provenance.executor, "doe_version": record.provenance.doe_version,
            "hosts": record.provenance.hosts,
            "linked_from": store.links_of(&digest)?.into_iter().map(|link| json!({
                "label": link.label, "spec_key": link.spec_key, "linked_unix_ms": link.linked_unix_ms,
            })).collect::<Vec<_>>(),
            "imported": import, "mirror": store.mirror_of(&digest),
            "inputs": inputs, "needs": needs,
        }))
    }
}

fn print(out: &mut Out, told: &Value, level: usize) -> Result<()> {
    let indent = "  ".repeat(level);
    let text = |name: &str| match &told[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let brief = |name: &str| text(name).chars().take(12).collect::<String>();
    let time = |name: &str| when(told[name].as_u64().unwrap_or(0));
    let mut line = |text: String| out.line(format!("{indent}{text}"));
    line(format!("{} record {}", text("label"), brief("record")))?;
    if told.get("run_id").is_none() {
        return match told["record"].is_null() {
            true => line("  it is no longer stored".to_owned()),
            false => line("  told above, or deeper than asked".to_owned()),
        };
    }
    let mut verdict = format!(
        "execution {}, validity {}, criterion {}",
        text("execution"),
        text("validity"),
        text("criterion")
    );
    for why in ["reason", "not_reusable_because"] {
        if !told[why].is_null() && !verdict.ends_with(&text(why)) {
            verdict += &format!("; {}", text(why));
        }
    }
    line(format!("  verdict   {verdict}"))?;
    let seconds = told["duration_ms"].as_f64().unwrap_or(0.0) / 1000.0;
    let mut attempt = text("attempt");
    if !told["attempts"].is_null() {
        attempt += &format!(" of {}", text("attempts"));
    }
    if !told["previous_attempt"].is_null() {
        attempt += &format!(" (after record {})", brief("previous_attempt"));
    }
    line(format!(
        "  made      {} in run {}, attempt {attempt}, took {}",
        time("started_unix_ms"),
        text("run_id"),
        crate::cli::plan::people(seconds)
    ))?;
    for (step, used) in told["cpu"].as_object().into_iter().flatten() {
        let seconds = |of: &str| used[of].as_f64().unwrap_or(0.0) / 1000.0;
        line(format!(
            "  cpu       step {step}: {:.2} s in programs, {:.2} s in the kernel",
            seconds("user_ms"),
            seconds("system_ms")
        ))?;
    }
    let kind = match told["simulated"].as_bool() {
        Some(true) => "simulated",
        _ => "measured",
    };
    let hosts = told["hosts"].as_object().into_iter().flatten();
    let hosts: Vec<String> = hosts
        .map(|(role, host)| format!("{role} on {}", host.as_str().unwrap_or_default()))
        .collect();
    line(format!(
        "  where     platform {} by {}, {kind}; doe {}{}{}",
        text("platform"),
        text("executor"),
        text("doe_version"),
        if hosts.is_empty() { "" } else { "; " },
        hosts.join(", ")
    ))?;
    line(format!("  rule      {}", text("rule")))?;
    line(format!(
        "  keys      spec {}, action {}",
        brief("spec_key"),
        brief("action_key")
    ))?;
    if !told["rejudged_from"].is_null() {
        line(format!(
            "  judged    again, from the outputs of record {}",
            brief("rejudged_from")
        ))?;
    }
    if let Some(import) = told["imported"].as_object() {
        let origin = &import["origin"];
        line(format!(
            "  imported  {} from {} ({} by {}, {})",
            when(import["imported_unix_ms"].as_u64().unwrap_or(0)),
            origin["host"].as_str().unwrap_or_default(),
            when(origin["exported_unix_ms"].as_u64().unwrap_or(0)),
            origin["by"].as_str().unwrap_or_default(),
            origin["store"].as_str().unwrap_or_default(),
        ))?;
    }
    if let Some(mirror) = told["mirror"].as_str() {
        line(format!("  mirror    taken from {mirror}"))?;
    }
    for link in told["linked_from"].as_array().into_iter().flatten() {
        line(format!(
            "  stands    for {} since {}",
            link["label"].as_str().unwrap_or_default(),
            when(link["linked_unix_ms"].as_u64().unwrap_or(0))
        ))?;
    }
    line("  inputs".to_owned())?;
    for input in told["inputs"].as_array().into_iter().flatten() {
        let value: String = match &input["value"] {
            Value::String(text) => text.replace('\n', " "),
            other => other.to_string(),
        };
        let short: String = value.chars().take(60).collect();
        let more = if short.len() < value.len() { "…" } else { "" };
        let origin = input["origin"].as_str().map(|o| format!("  ({o})"));
        line(format!(
            "    {} = {short}{more}{}",
            input["path"].as_str().unwrap_or_default(),
            origin.unwrap_or_default()
        ))?;
    }
    let needs = told["needs"].as_array().filter(|needs| !needs.is_empty());
    if needs.is_some() {
        line("  needs".to_owned())?;
    }
    let mut all = needs.into_iter().flatten();
    all.try_for_each(|need| print(out, &need["from"], level + 2))
}
