//! Each field with the keys that a change of it changes, by letter in alphabetical order (see
//! `World::keys`); those with none are scheduling or cosmetic. Every type is taken apart whole.

use std::sync::Arc;
use std::time::Duration;

use doe_cache::{Digest, Value};

use super::Drawn;
use super::world::{World, other_id, with};
use crate::engine::instruments;
use crate::engine::key::Need;
use crate::error::Site;
use crate::label::Label;
use crate::plan::model::*;
use crate::plan::uses::Use;
use crate::rule::action::*;
use crate::rule::host::{FactDef, FactType, HostProbe};
use crate::rule::model::*;
use crate::rule::retry::RetryDef;

/// One field of one type.
pub(super) struct Field {
    pub(super) name: &'static str,
    /// The keys that it changes.
    pub(super) keys: &'static str,
    /// Changes it; says whether it is something else now.
    pub(super) change: fn(&mut World, &Drawn) -> bool,
}

/// `fields!(list, "Type", Type, world => the value; field: "keys", |value, drawn| change; ...)`
macro_rules! fields {
    ($all:ident, $what:literal, $type:ident, $world:ident => $place:expr;
     $($field:ident: $keys:literal, |$it:ident, $drawn:ident| $change:expr;)+) => {
        // Does not compile while a field is missing from the list.
        let _ = |whole: &$type| {
            let $type { $($field: _),+ } = whole;
        };
        $($all.push(Field {
            name: concat!($what, ".", stringify!($field)),
            keys: $keys,
            change: |$world, $drawn| {
                let _ = $drawn;
                let $it = &mut $place.$field;
                let before = format!("{:?}", $it);
                $change;
                before != format!("{:?}", $place.$field)
            },
        });)+
    };
}

mod reached;

/// All of them.
pub(super) fn all() -> Vec<Field> {
    let mut all = Vec::new();
    patterns(&mut all);
    rules(&mut all);
    processes(&mut all);
    judged(&mut all);
    actions(&mut all);
    platforms(&mut all);
    reached::reached(&mut all);
    looks(&mut all);
    all
}

/// A name that nothing has yet.
fn apart(drawn: &Drawn) -> String {
    format!("x-{}", drawn.word)
}

fn label(drawn: &Drawn) -> Label {
    format!("//p:x-{}", drawn.word).parse().unwrap()
}

/// Somewhere else in the file.
fn moved(site: &mut Site, drawn: &Drawn) {
    site.range = 0..drawn.count as usize;
}

fn probe(drawn: &Drawn) -> Probe {
    let word = drawn.word.clone();
    match drawn.count % 6 {
        0 => Probe::Http(word),
        1 => Probe::Tcp(word),
        2 => Probe::Listen(word),
        3 => Probe::File(word),
        4 => Probe::Log(word),
        _ => Probe::Alive,
    }
}

fn patterns(all: &mut Vec<Field>) {
    fields!(all, "Pattern", Pattern, w => w.pattern;
        label: "", |it, d| *it = label(d);
        replicate: "AS", |it, d| *it = d.count;
        repeats: "", |it, d| Arc::make_mut(it).seed = Some(d.count.into());
        layer: "", |it, d| *it = d.count as usize;
        title: "", |it, d| *it = Some(d.word.as_str().into());
        rule: "", |it, d| Arc::make_mut(it).doc = d.word.clone();
        settings: "NS", |it, d| *it = with(it, "word", |s| s.value = Value::from(d.word.as_str()));
        factors: "", |it, d| *it = [d.word.as_str().into()].into();
        needs: "", |it, d| *it = [label(d)].into();
        gate: "", |it, d| *it = [label(d)].into();
        expect: "", |it, d| *it = it.iter().map(|e| Expectation { text: d.word.clone(), condition: Condition::Less(d.real), ..e.clone() }).collect();
        expect_class: "AS", |it, d| *it = Some(d.word.as_str().into());
        retry: "", |it, d| Arc::make_mut(it).attempts = d.count;
        uses: "", |it, d| Arc::make_mut(it).get_mut("license").unwrap().count = Some(d.count);
        tags: "", |it, d| _ = Arc::make_mut(it).insert(d.word.clone());
        adhoc: "", |it, d| *it = d.flag;
        estimate_s: "", |it, d| *it = Some(d.real);
        site: "", |it, d| moved(it, d);
    );
    let _ = |whole: &Setting| {
        let Setting {
            value: _,
            source: _,
            site: _,
        } = whole;
    };
    let mut setting = |name, keys, change: fn(&mut World, &Drawn) -> bool| {
        all.push(Field { name, keys, change });
    };
    setting("Setting(result).value", "NS", |w, d| {
        w.set("word", |s| s.value = Value::from(d.word.as_str()))
    });
    setting("Setting(scheduling).value", "", |w, d| {
        w.set("patience", |s| s.value = Value::from(d.count))
    });
    setting("Setting(cosmetic).value", "", |w, d| {
        w.set("note", |s| s.value = Value::from(d.word.as_str()))
    });
    // What it is held against decides whether the numbers may be used.
    setting("Setting(judging).value", "J", |w, d| {
        w.set("least", |s| s.value = Value::from(d.count + 1))
    });
    setting("Rule.lets(judging)", "JS", |w, d| {
        w.rule().lets.get_mut("bound").unwrap().text = format!("least + {}", d.count);
        true
    });
    setting("Setting.source", "", |w, d| {
        w.set("word", |s| {
            s.source = [Source::Plan, Source::CommandLine][usize::from(d.flag)]
        })
    });
    setting("Setting.site", "", |w, d| {
        w.set("word", |s| s.site = s.site.take().filter(|_| d.flag))
    });
    fields!(all, "Use", Use, w => Arc::make_mut(&mut w.pattern.uses).get_mut("license").unwrap();
        count: "", |it, d| *it = Some(d.count);
        name: "", |it, d| moved(it, d);
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "Need", Need, w => w.needs.values_mut().next().unwrap();
        output: "AS", |it, d| *it = Digest::of(&d.word);
        settings: "AS", |it, d| *it = Digest::of(&d.word);
    );
    fields!(all, "World", World, w => w;
        pattern: "", |it, d| it.title = Some(d.word.as_str().into());
        action: "A", |it, d| it.steps[0].script = d.word.clone();
        platform: "", |it, d| it.name = d.word.clone();
        // Their labels are read by analyses.
        needs: "AS", |it, d| _ = it.insert(label(d), Need { output: Digest::of(""), settings: Digest::of("") });
        hosts: "V", |it, d| _ = it.insert("here".to_owned(), d.word.clone());
        after: "V", |it, d| _ = it.insert(d.word.clone(), Digest::of(""));
    );
}

fn rules(all: &mut Vec<Field>) {
    fields!(all, "Rule", Rule, w => w.rule();
        id: "", |it, d| *it = other_id(&d.word);
        kind: "AS", |it, d| *it = if d.flag { RuleKind::Analysis } else { RuleKind::Measure };
        doc: "", |it, d| *it = d.word.clone();
        version: "AS", |it, d| *it = d.count.into();
        params: "", |it, d| _ = it.insert(apart(d), it["word"].clone());
        require: "", |it, _d| it.push(it[0].clone());
        lets: "S", |it, d| _ = it.insert(apart(d), it["twice"].clone());
        env: "S", |it, d| _ = it.insert(apart(d), it["MODE"].clone());
        // Facts are in the keys by role.
        roles: "AS", |it, d| _ = it.insert(apart(d), it["far"].clone());
        services: "S", |it, d| it.push(ServiceDef { name: apart(d), ..it[0].clone() });
        steps: "S", |it, d| it.push(StepDef { name: apart(d), ..it[0].clone() });
        outputs: "S", |it, d| _ = it.insert(apart(d), it["result"].clone());
        metrics: "J", |it, d| _ = it.insert(apart(d), it["speed"].clone());
        samples: "J", |it, d| _ = it.insert(apart(d), it["laps"].clone());
        valid: "J", |it, _d| it.clear();
        compare_only_on: "", |it, d| it.push(d.word.clone());
        failures: "", |it, _d| it.push(it[0].clone());
        retry: "", |it, _d| *it = RetryDef::default();
        instruments: "AS", |it, d| *it = vec![instruments::known()[d.count as usize % instruments::known().len()].clone()];
        unread: "", |it, d| _ = it.insert(d.word.clone());
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "Param(result)", Param, w => w.rule().params.get_mut("word").unwrap();
        ty: "", |it, d| *it = ParamType::Str { pattern: Some(d.word.clone()) };
        default: "", |it, d| *it = Some(Value::from(d.word.as_str()));
        unit: "", |it, d| *it = Some(d.word.clone());
        doc: "", |it, d| *it = d.word.clone();
        affects: "NS", |it, d| *it = if d.flag { Affects::Scheduling } else { Affects::Cosmetic };
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "Param(cosmetic)", Param, w => w.rule().params.get_mut("note").unwrap();
        ty: "", |it, _d| *it = ParamType::Table;
        default: "", |it, _d| *it = None;
        unit: "", |it, d| *it = Some(d.word.clone());
        doc: "", |it, d| *it = d.word.clone();
        affects: "NS", |it, _d| *it = Affects::Result;
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "Require", Require, w => w.rule().require[0];
        that: "", |it, d| it.text = d.word.clone();
        why: "", |it, d| *it = d.word.clone();
    );
    fields!(all, "FailureDef", FailureDef, w => w.rule().failures[0];
        class: "", |it, d| *it = d.word.clone();
        log: "", |it, _d| *it = None;
        exit_code: "", |it, d| *it = Some(d.count as i32);
        infrastructure: "", |it, d| *it = d.flag;
    );
    fields!(all, "Role", Role, w => w.rule().roles.get_mut("here").unwrap();
        gpus: "S", |it, d| it.as_mut().unwrap().text = d.word.clone();
        exclusive: "S", |it, d| *it = d.flag;
        site: "", |it, d| moved(it, d);
    );
}

fn processes(all: &mut Vec<Field>) {
    fields!(all, "ServiceDef", ServiceDef, w => w.rule().services[0];
        name: "S", |it, d| *it = apart(d);
        role: "S", |it, d| *it = d.word.clone();
        run: "S", |it, d| it.text = d.word.clone();
        env: "S", |it, d| _ = it.insert(apart(d), it["KIND"].clone());
        ports: "S", |it, d| _ = it.insert(apart(d), 1);
        after: "S", |it, d| it.push(d.word.clone());
        ready: "S", |it, _d| it.probe = ProbeDef::Alive;
        stop_grace_s: "", |it, d| *it = d.real;
        health: "", |it, d| it.misses = d.count;
        released: "", |it, d| it.as_mut().unwrap().within_s = d.real;
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "ReleasedDef", ReleasedDef, w => w.rule().services[0].released.as_mut().unwrap();
        run: "", |it, d| it.text = d.word.clone();
        within_s: "", |it, d| *it = d.real;
    );
    all.push(Field {
        name: "ServiceDef.ports(number)",
        keys: "",
        change: |w, d| {
            w.rule().services[0]
                .ports
                .insert("http".to_owned(), d.count as u16)
                != Some(d.count as u16)
        },
    });
    fields!(all, "ReadyDef", ReadyDef, w => w.rule().services[0].ready;
        probe: "S", |it, d| if let ProbeDef::Log(sign) = it { sign.text = d.word.clone() };
        within_s: "", |it, d| *it = d.real;
        fail_on_log: "", |it, _d| it.clear();
    );
    fields!(all, "Health", Health, w => w.rule().services[0].health;
        every_s: "", |it, d| *it = Some(d.real);
        misses: "", |it, d| *it = d.count;
    );
    fields!(all, "StepDef", StepDef, w => w.rule().steps[0];
        name: "S", |it, d| *it = apart(d);
        role: "S", |it, d| *it = Some(d.word.clone());
        run: "S", |it, d| it.text = d.word.clone();
        env: "S", |it, d| _ = it.insert(apart(d), it["SIZE"].clone());
        timeout: "", |it, d| it.text = d.word.clone();
        gang: "S", |it, d| *it = Some(d.word.clone());
        after: "S", |it, d| it.push(d.word.clone());
        ready: "S", |it, _d| *it = None;
        ports: "S", |it, d| _ = it.insert(apart(d), 1);
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "Text", Text, w => w.rule().env.get_mut("MODE").unwrap();
        text: "S", |it, d| *it = d.word.clone();
        site: "", |it, d| moved(it, d);
    );
}

fn judged(all: &mut Vec<Field>) {
    fields!(all, "OutputDef", OutputDef, w => w.rule().outputs.get_mut("result").unwrap();
        path: "S", |it, d| *it = d.word.clone();
        role: "S", |it, d| *it = Some(d.word.clone());
        schema: "S", |it, d| *it = Some(d.word.clone());
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "MetricDef", MetricDef, w => w.rule().metrics.get_mut("speed").unwrap();
        from: "J", |it, d| *it = d.word.clone();
        at: "J", |it, d| *it = d.word.clone();
        unit: "J", |it, d| *it = d.word.clone();
        lower_is_better: "J", |it, d| *it = Some(d.flag);
        optional: "J", |it, d| *it = d.flag;
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "SampleDef", SampleDef, w => w.rule().samples.get_mut("laps").unwrap();
        from: "J", |it, d| *it = d.word.clone();
        at: "J", |it, d| *it = d.word.clone();
        unit: "J", |it, d| *it = d.word.clone();
        site: "", |it, d| moved(it, d);
    );
}

fn actions(all: &mut Vec<Field>) {
    fields!(all, "Action", Action, w => w.action;
        services: "A", |it, d| it.push(ServiceAction { name: apart(d), ..it[0].clone() });
        steps: "A", |it, d| it.insert(d.count as usize % 2, StepAction { name: apart(d), ..it[0].clone() });
        outputs: "A", |it, d| it.push(OutputAction { name: apart(d), ..it[0].clone() });
        roles: "A", |it, d| _ = it.insert(apart(d), it["here"]);
    );
    fields!(all, "ServiceAction", ServiceAction, w => w.action.services[0];
        // Two nodes that call the same service otherwise share it.
        name: "A", |it, d| *it = apart(d);
        role: "AV", |it, d| *it = d.word.clone();
        script: "AV", |it, d| *it = d.word.clone();
        env: "AV", |it, d| _ = it.insert("KIND".to_owned(), d.word.clone());
        ready: "AV", |it, d| it.probe = probe(d);
        ports: "", |it, d| _ = it.insert("http".to_owned(), d.count as u16);
        after: "AV", |it, d| it.push(d.word.clone());
        gpus: "AV", |it, d| *it = d.count;
        stop_grace_s: "", |it, d| *it = d.real;
        health: "", |it, d| it.misses = d.count;
        released: "", |it, d| it.as_mut().unwrap().within_s = d.real;
    );
    fields!(all, "Ready", Ready, w => w.action.services[0].ready;
        probe: "AV", |it, d| *it = probe(d);
        within_s: "", |it, d| *it = d.real;
        fail_on_log: "", |it, d| it.push(d.word.clone());
    );
    fields!(all, "Released", Released, w => w.action.services[0].released.as_mut().unwrap();
        script: "", |it, d| *it = d.word.clone();
        within_s: "", |it, d| *it = d.real;
    );
    fields!(all, "StepAction", StepAction, w => w.action.steps[0];
        name: "A", |it, d| *it = apart(d);
        role: "A", |it, d| *it = Some(d.word.clone());
        script: "A", |it, d| *it = d.word.clone();
        env: "A", |it, d| _ = it.insert("SIZE".to_owned(), d.word.clone());
        timeout_s: "", |it, d| *it = d.real;
        gang: "A", |it, d| *it = Some(d.word.clone());
        after: "A", |it, d| it.push(d.word.clone());
        ready: "A", |it, d| it.as_mut().unwrap().probe = probe(d);
        ports: "", |it, d| _ = it.insert("data".to_owned(), d.count as u16);
    );
    fields!(all, "OutputAction", OutputAction, w => w.action.outputs[0];
        name: "A", |it, d| *it = apart(d);
        path: "A", |it, d| *it = d.word.clone();
        role: "A", |it, d| *it = Some(d.word.clone());
        schema: "A", |it, d| *it = Some(d.word.clone());
    );
    fields!(all, "Demand", Demand, w => w.action.roles.get_mut("here").unwrap();
        gpus: "A", |it, d| *it = d.count;
        exclusive: "A", |it, d| *it = d.flag;
    );
}

fn platforms(all: &mut Vec<Field>) {
    fields!(all, "Platform", Platform, w => w.platform;
        name: "", |it, d| *it = d.word.clone();
        executor: "", |it, d| *it = d.word.clone();
        simulated: "AS", |it, d| *it = d.flag;
        hosts: "", |it, d| _ = it.insert(apart(d), Host { name: apart(d), ..it["spare"].clone() });
        // Both roles are on one host then.
        roles: "AS", |it, _d| _ = it.insert("here".to_owned(), "h2".to_owned());
        facts: "AS", |it, d| _ = it.insert(apart(d), Value::from(d.count));
        tokens: "", |it, d| _ = it.insert(apart(d), it["license"].clone());
        fact_sites: "", |it, _d| it.clear();
        probing: "AS", |it, _d| *it = None;
        monitors: "AS", |it, d| it.push(Monitor { name: apart(d), ..it[0].clone() });
        dynamic_ports: "", |it, d| *it = d.flag;
        cost_per_hour: "", |it, _d| *it = None;
        sim: "AS", |it, d| _ = it.insert("seed".to_owned(), Value::from(d.count));
        env: "ASV", |it, d| _ = it.insert("HF_HOME".to_owned(), d.word.clone());
        // A token lets a model be fetched; what is measured is the same with every one.
        secrets: "", |it, d| _ = it.insert(apart(d), it["HF_TOKEN"].clone());
        ssh: "", |it, d| it.user = Some(d.word.clone());
        ssm: "", |it, d| it.region = Some(d.word.clone());
        slurm: "", |it, d| it.account = Some(d.word.clone());
    );
    all.push(Field {
        // The other host is of the same kind.
        name: "Platform.roles(apart)",
        keys: "",
        change: |w, _d| {
            let roles = [("here", "h2"), ("far", "h1")];
            let roles = roles.map(|(role, host)| (role.to_owned(), host.to_owned()));
            w.platform.roles.extend(roles);
            true
        },
    });
    fields!(all, "Host", Host, w => w.platform.hosts.get_mut("spare").unwrap();
        name: "", |it, d| *it = d.word.clone();
        address: "", |it, d| *it = d.word.clone();
        gpus: "", |it, d| *it = d.count;
        ssh: "", |it, d| *it = Some(d.word.clone());
        instance: "", |it, d| *it = Some(d.word.clone());
    );
    fields!(all, "Token", Token, w => w.platform.tokens.get_mut("wire").unwrap();
        capacity: "", |it, d| *it = d.count;
        hosts: "", |it, _d| *it = None;
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "Monitor(in key)", Monitor, w => w.monitor(true);
        name: "AS", |it, d| *it = apart(d);
        run: "AS", |it, d| *it = d.word.clone();
        roles: "AS", |it, d| it[0].text = d.word.clone();
        rules: "", |it, d| it.push(Text { text: apart(d), ..it[0].clone() });
        time: "AS", |it, d| *it = SampleTime::Column(d.word.clone());
        during: "AS", |it, d| it.as_mut().unwrap().text = d.word.clone();
        output: "AS", |it, d| *it = d.flag;
        in_key: "AS", |it, d| *it = d.flag;
        site: "", |it, d| moved(it, d);
    );
    fields!(all, "Monitor(apart)", Monitor, w => w.monitor(false);
        name: "", |it, d| *it = apart(d);
        run: "", |it, d| *it = d.word.clone();
        roles: "", |it, d| it[0].text = d.word.clone();
        rules: "", |it, d| it.push(Text { text: apart(d), ..it[0].clone() });
        time: "", |it, d| *it = SampleTime::Column(d.word.clone());
        during: "", |it, d| it.as_mut().unwrap().text = d.word.clone();
        output: "", |it, d| *it = d.flag;
        in_key: "AS", |it, d| *it = d.flag;
        site: "", |it, d| moved(it, d);
    );
}

fn looks(all: &mut Vec<Field>) {
    fields!(all, "Probing", Probing, w => w.probing();
        name: "", |it, d| it.text = d.word.clone();
        probe: "AS", |it, _d| Arc::make_mut(it.as_mut().unwrap()).facts.clear();
        in_key: "AS", |it, _d| *it = None;
        max_age: "", |it, d| *it = Duration::from_secs_f64(d.real);
        known: "AS", |it, _d| it.clear();
        news: "", |it, d| it.push(d.word.clone());
    );
    fields!(all, "HostFacts", HostFacts, w => w.read();
        facts: "AS", |it, d| _ = it.insert("driver".to_owned(), Value::from(d.word.as_str()));
        read_unix_ms: "", |it, d| *it = d.count.into();
        just_read: "", |it, d| *it = d.flag;
    );
    fields!(all, "HostProbe", HostProbe, w => w.probe();
        id: "", |it, d| *it = other_id(&d.word);
        doc: "", |it, d| *it = d.word.clone();
        facts: "AS", |it, _d| _ = it.remove("kernel");
        run: "", |it, d| *it = Some(d.word.clone());
        env: "", |it, d| _ = it.insert(d.word.clone(), String::new());
        timeout_s: "", |it, d| *it = d.real;
        site: "", |it, d| moved(it, d);
    );
    // What was read is in the keys, not how.
    fields!(all, "FactDef", FactDef, w => w.probe().facts.get_mut("driver").unwrap();
        ty: "", |it, _d| *it = FactType::Version;
        run: "", |it, d| *it = Some(d.word.clone());
        optional: "", |it, d| *it = d.flag;
        doc: "", |it, d| *it = d.word.clone();
    );
}
