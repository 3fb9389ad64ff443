//! Everything that enters a key enters the world that answers are kept under; and what is read
//! back from disk is what was written, or nothing.

use std::path::Path;

use doe_cache::{Class, Digest, Manifest, Store};
use proptest::prelude::*;

use super::*;
use crate::engine::context::now_unix_ms;
use crate::engine::event::Body;
use crate::engine::facts;
use crate::engine::instruments;
use crate::engine::key::{self, Need, Needs};
use crate::graph::Graph;
use crate::plan::model::{HostFacts, Workspace};
use crate::plan::workspace::{LoadOptions, folders};
use crate::rule::action::Binding;
use crate::rule::render::render;

const PLAN: &str = "[plan]\ntitle = \"t\"\nrules = [\"r\"]\n[settings]\nword = \"a\"\n\
    [[layer]]\nid = \"A\"\nrule = \"r.measure\"\npattern = \"a{{ i }}\"\n\
    expect = \"oom\"\nrepeat = 2\n[layer.matrix]\ni = [1]\n\
    [[layer]]\nid = \"B\"\nrule = \"r.summary\"\npattern = \"b{{ i }}\"\nneeds = [\"A\"]\n\
    settings = { i = 1 }\n";

const RULES: &str = "[measure]\ndoc = \"d\"\nversion = 1\nfailure = [{ class = \"oom\", log = \"a\" }]\n\
    param.i = { type = \"int\", doc = \"i\" }\n\
    param.word = { type = \"str\", default = \"\", doc = \"w\" }\n\
    env.MODE = \"quick\"\n\
    roles = { here = {}, there = {} }\n\
    [[measure.service]]\nname = \"server\"\nrole = \"here\"\nrun = \"serve {{ word }}\"\n\
    ready = { log = \"up\", within = \"5s\" }\n\
    [[measure.step]]\nname = \"go\"\nrole = \"here\"\ntimeout = \"1m\"\n\
    run = \"doe measure openai --url http://x --out {{ out.text }}; echo {{ i }}\"\n\
    [[measure.step]]\nname = \"look\"\nrole = \"there\"\ntimeout = \"1m\"\nrun = \"true\"\n\
    [measure.output]\ntext = { path = \"text\", role = \"here\" }\n\
    [hosts]\nkind = \"probe\"\nfact.tuned = { run = \"uname -r\" }\n\
    [summary]\nkind = \"analysis\"\ndoc = \"d\"\n\
    param.i = { type = \"int\", doc = \"i\" }\n\
    [[summary.step]]\nname = \"sum\"\ntimeout = \"1m\"\n\
    run = \"cat {{ inputs }} > {{ out.text }}; echo {{ i }}\"\n\
    [summary.output]\ntext = { path = \"text\" }\n";

const HEAD: &str = "[workspace]\nplatform = \"sim\"\n[platform.sim]\nsim = { seed = 1 }\nprobe = \"r.hosts\"\n\
    facts = { gpu = \"none\" }\nenv = { HOME_OF = \"x\" }\n\
    [[platform.sim.monitor]]\nname = \"tick\"\nrun = \"date\"\nin_key = true\n";

fn write(root: &Path) {
    std::fs::create_dir_all(root.join("plans")).unwrap();
    std::fs::create_dir_all(root.join("rules")).unwrap();
    std::fs::write(root.join("doe.toml"), HEAD).unwrap();
    std::fs::write(root.join("plans/p.toml"), PLAN).unwrap();
    std::fs::write(root.join("rules/r.toml"), RULES).unwrap();
}

fn look(root: &Path) -> World {
    World::look(&Places {
        root: root.to_owned(),
        folders: folders(root).unwrap(),
        platform: folders(root).unwrap().platform,
        program: std::env::current_exe().unwrap(),
    })
    .unwrap()
}

/// Both manifests of every pattern, with what the store says of their needs.
fn manifests(root: &Path) -> Vec<Manifest> {
    let options = LoadOptions {
        known_instruments: instruments::known(),
        ..LoadOptions::default()
    };
    let workspace = Workspace::load(root, &options).unwrap();
    let graph = Graph::build(&workspace).unwrap();
    let mut platform = workspace.platforms[&workspace.default_platform].clone();
    facts::file::recall(&workspace.state_dir, &mut platform);
    let platform = &platform;
    let store = Store::open(&workspace.state_dir).unwrap();
    let known = store.runs(1).unwrap().len();
    let mut found = Vec::new();
    for node in graph.nodes() {
        let pattern = graph.pattern(node);
        let needs: Needs = graph
            .deps(node)
            .into_iter()
            .map(|(dep, _)| {
                let need = Need::of(graph.pattern(dep), Digest::of(format!("{known}")));
                (graph.label(dep).clone(), need)
            })
            .collect();
        let spec = key::spec_manifest(pattern, platform, &needs).unwrap();
        let settings = pattern.settings.plain();
        let action = render(&pattern.rule, &settings, &Binding::Symbolic).unwrap();
        let action = key::action_manifest(pattern, &action, &spec);
        found.extend([spec, action]);
    }
    found
}

/// The hosts of the platform say that they are tuned so.
fn say(root: &Path, tuned: &str) {
    let options = LoadOptions {
        known_instruments: instruments::known(),
        ..LoadOptions::default()
    };
    let workspace = Workspace::load(root, &options).unwrap();
    let mut platform = workspace.platforms[&workspace.default_platform].clone();
    let facts = HostFacts {
        facts: [("tuned".to_owned(), tuned.into())].into(),
        read_unix_ms: now_unix_ms() - 1,
        just_read: true,
    };
    let facts = std::sync::Arc::new(facts);
    let hosts = platform
        .hosts
        .keys()
        .map(|host| (host.clone(), facts.clone()));
    let known = hosts.collect();
    platform.probing.as_mut().unwrap().known = known;
    facts::file::keep(&workspace.state_dir, &platform).unwrap();
}

/// The values of all entries of a kind that enter keys, in order.
fn values(manifests: &[Manifest], prefix: &str) -> Vec<String> {
    let entries = manifests.iter().flat_map(Manifest::walk);
    entries
        .filter(|(path, entry)| path.starts_with(prefix) && entry.class == Class::Result)
        .map(|(path, entry)| format!("{path}={}", entry.value))
        .collect()
}

/// How each kind of entry that is in a key can come to be another. `None`: it follows from the
/// program itself, which is a part of the world by its file and by its versions.
type Edit = Option<(&'static str, &'static str, &'static str)>;

const INPUTS: &[(&str, Edit)] = &[
    ("rule.definition", Some(("rules/r.toml", "serve", "serve2"))),
    (
        "rule.version",
        Some(("rules/r.toml", "version = 1", "version = 2")),
    ),
    (
        "setting.",
        Some(("plans/p.toml", "word = \"a\"", "word = \"b\"")),
    ),
    ("instrument.", None),
    ("need.", Some(("store", "", ""))),
    (
        "platform.simulated",
        Some(("doe.toml", "platform = \"sim\"", "platform = \"real\"")),
    ),
    (
        "platform.fact.",
        Some(("doe.toml", "gpu = \"none\"", "gpu = \"one\"")),
    ),
    ("fact.", Some(("facts", "", ""))),
    ("monitor.", Some(("doe.toml", "\"date\"", "\"uptime\""))),
    ("platform.sim.model_version", None),
    ("platform.sim.", Some(("doe.toml", "seed = 1", "seed = 2"))),
    (
        "platform.same_host",
        Some((
            "doe.toml",
            "facts = {",
            "roles = { there = \"node2\" }\nfacts = {",
        )),
    ),
    ("platform.env.", Some(("doe.toml", "\"x\"", "\"y\""))),
    (
        "service.",
        Some(("rules/r.toml", "serve {{", "serve --fast {{")),
    ),
    ("step.", Some(("rules/r.toml", "http://x", "http://y"))),
    (
        "expect.class",
        Some(("plans/p.toml", "expect = \"oom\"", "expect = \"timeout\"")),
    ),
    (
        "expect.failures",
        Some(("rules/r.toml", "log = \"a\"", "log = \"b\"")),
    ),
    (
        "replicate",
        Some(("plans/p.toml", "repeat = 2", "repeat = 3")),
    ),
    (
        "output.",
        Some(("rules/r.toml", "path = \"text\"", "path = \"text2\"")),
    ),
    (
        "role.",
        Some(("rules/r.toml", "here = {}", "here = { exclusive = false }")),
    ),
];

#[test]
fn every_input_of_a_key_is_a_part_of_the_world() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root);
    let store = Store::open(root.join(".doe")).unwrap();
    begin(&store, "r0");
    say(root, "6.8");
    let before = manifests(root);
    // A kind of entry that this test does not know must be given a place in the world first.
    for (path, entry) in before.iter().flat_map(Manifest::walk) {
        let known = INPUTS.iter().any(|(prefix, _)| path.starts_with(prefix));
        assert!(
            known || entry.class != Class::Result,
            "`{path}` is in a key: how does it enter the world that answers are kept under?"
        );
    }
    for (prefix, edit) in INPUTS {
        assert!(
            !values(&before, prefix).is_empty(),
            "`{prefix}` is in no key"
        );
        let Some((file, old, new)) = edit else {
            continue;
        };
        write(root);
        let (world, was) = (look(root), values(&manifests(root), prefix));
        if *file == "store" {
            begin(&store, "r1");
            assert!(!world.holds(&look(root)));
        } else if *file == "facts" {
            say(root, "6.9");
            assert_ne!(values(&manifests(root), prefix), was);
        } else {
            let path = root.join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(old), "{old}");
            let mut text = text.replacen(old, new, 1);
            if new.contains("real") {
                text.push_str(
                    "[platform.real]\nexecutor = \"local\"\nroles = { \"*\" = \"h\" }\n\
                     [platform.real.host.h]\naddress = \"127.0.0.1\"\n",
                );
            }
            std::fs::write(&path, text).unwrap();
            assert_ne!(
                values(&manifests(root), prefix),
                was,
                "{prefix}: no such edit"
            );
        }
        let now = look(root);
        // Of another platform other facts are known.
        let is_edit = |part: &&str| *part != "facts" || part == file;
        let other: Vec<&str> = world.differences(&now).filter(is_edit).collect();
        assert_eq!(other, [*file], "{prefix}");
    }
}

fn begin(store: &Store, run_id: &str) {
    store
        .begin_run(&doe_cache::RunInfo {
            run_id: run_id.into(),
            command: String::new(),
            platform: String::new(),
            simulated: true,
            doe_version: String::new(),
            host: String::new(),
            pid: 1,
            started_unix_ms: 1,
        })
        .unwrap();
}

/// An answer stands no longer than the reading that it rests on.
#[test]
fn facts_that_are_too_old_are_another_world_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root);
    say(root, "6.8");
    let world = look(root);
    assert_eq!(world.differences(&look(root)).count(), 0);
    let path = root.join(".doe/facts/sim.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        text.replace("\"max_age_ms\": 600000", "\"max_age_ms\": 0"),
    )
    .unwrap();
    let old = look(root);
    assert_eq!(world.differences(&old).collect::<Vec<_>>(), ["facts"]);
    assert!(!old.holds(&look(root)) && old.differences(&look(root)).count() == 1);
    std::fs::write(&path, "{").unwrap();
    assert_eq!(look(root).differences(&look(root)).count(), 0);
}

/// On the executor `local` hosts are this machine, and what was read of another one is not known.
#[test]
fn an_answer_is_of_the_machine_that_gave_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let world = look(dir.path());
    let here = format!(":{}", serde_json::to_string(&doe_cache::host()).unwrap());
    let text = serde_json::to_string(&world).unwrap();
    assert!(text.contains(&here), "{text}");
    let elsewhere: World = serde_json::from_str(&text.replace(&here, ":\"elsewhere\"")).unwrap();
    assert_eq!(
        elsewhere.differences(&world).collect::<Vec<_>>(),
        ["machine"]
    );
}

#[test]
fn what_is_deleted_by_hand_meanwhile_is_a_move() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    drop(Store::open(dir.path().join(".doe")).unwrap());
    let folder = dir.path().join(".doe/records/ab");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("record.json"), "{}").unwrap();
    let before = look(dir.path());
    // Who reads may leave an empty log.
    drop(Store::open_read_only(dir.path().join(".doe")).unwrap());
    assert!(before.holds(&look(dir.path())));
    std::fs::remove_file(folder.join("record.json")).unwrap();
    assert!(!before.holds(&look(dir.path())));
}

/// What is not in a key but in what is printed: names, notes, files that are there or not.
#[test]
fn what_could_be_read_is_a_part_of_the_world() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write(root);
    let world = look(root);
    assert_eq!(world.differences(&look(root)).count(), 0);
    let differs = |what: &str| {
        let now = look(root);
        let parts: Vec<&str> = world.differences(&now).collect();
        assert!(!parts.is_empty(), "{what}");
        assert!(!world.holds(&now), "{what}");
    };
    std::fs::create_dir(root.join("plans/new")).unwrap();
    differs("a folder");
    std::fs::write(root.join("plans/new/a.toml"), "").unwrap();
    differs("a plan in it");
    std::fs::remove_dir_all(root.join("plans/new")).unwrap();
    assert_eq!(world.differences(&look(root)).count(), 0);
    assert!(
        !world.holds(&look(root)),
        "a folder that was touched meanwhile"
    );
    std::fs::write(root.join("rules/s.toml"), "").unwrap();
    differs("a rule file");
    std::fs::remove_file(root.join("rules/s.toml")).unwrap();
    std::fs::remove_dir_all(root.join("rules")).unwrap();
    differs("rules that are gone");
}

fn nothing() -> Nothing {
    Nothing {
        planned: Body::Planned {
            run: 0,
            may_run: 0,
            reuse: 2,
            estimate_s: Some(0.0),
        },
        notes: "w\n".into(),
        platform: "sim".into(),
        simulated: true,
        nodes: 2,
        time_saved_s: 0.1,
        simulated_results: 2,
        missed: vec![("//a:b".into(), vec!["x < 1".into()])],
        told: vec![Body::Warning {
            code: "followup-budget".into(),
            message: "m".into(),
            label: None,
        }],
        followups: 1,
        analyses: vec![("//a:c".into(), "00".into())],
        more_analyses: 2,
    }
}

fn outline(world: &World) -> Outline {
    Outline {
        world: world.clone(),
        texts: vec![("plans/p.toml".into(), PLAN.into())],
        labels: "//p:a//p:é".into(),
        label_ends: vec![5, 11],
        records: vec![Digest::of("1"), Digest::of("2")],
        outputs: vec![Digest::of("3"), Digest::of("4")],
        settings: vec![Digest::of("5"), Digest::of("6")],
        seconds: vec![0.5, 1.5],
        needs: vec![0],
        need_ends: vec![0, 1],
    }
}

#[test]
fn answers_and_outlines_read_back() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let world = look(dir.path());
    let question = Question::new(&["build".into()], dir.path(), dir.path(), &[1]);
    let memory = Memory::new(&dir.path().join(".doe"), &question);
    assert!(!memory.may_know());
    let answer = Answer::Nothing(Box::new(nothing()));
    memory.keep(&world, &answer, b"body");
    assert!(memory.may_know());
    assert_eq!(memory.answer(&world), Some((answer, b"body".to_vec())));
    std::fs::write(dir.path().join("plans/p.toml"), "").unwrap();
    assert_eq!(memory.answer(&look(dir.path())), None);
    memory.keep_outline(&outline(&world));
    assert_eq!(memory.outline().unwrap().label(1), "//p:é");
    assert_eq!(
        memory.outline().map(|read| Outline {
            world: world.clone(),
            ..read
        }),
        Some(outline(&world))
    );
}

#[test]
fn an_outline_that_does_not_fit_together_is_none() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let sound = outline(&look(dir.path()));
    let read = |outline: &Outline| outline_file::decode(&outline_file::encode(outline).unwrap());
    assert!(read(&sound).is_some());
    type Damage = fn(&mut Outline);
    let damages: [Damage; 5] = [
        |o| o.needs = vec![1],
        |o| o.label_ends = vec![10, 11],
        |o| o.label_ends = vec![11, 5],
        |o| o.need_ends = vec![0, 2],
        |o| o.labels.push('x'),
    ];
    for damage in damages {
        let mut outline = sound.clone();
        damage(&mut outline);
        assert!(read(&outline).is_none(), "{outline:?}");
    }
}

#[test]
fn only_so_many_answers_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let world = look(dir.path());
    let state = dir.path().join(".doe");
    for at in 0..MOST_ANSWERS + 5 {
        let question = Question::new(&[at.to_string()], dir.path(), dir.path(), &[]);
        let memory = Memory::new(&state, &question);
        memory.keep(
            &world,
            &Answer::Printed {
                notes: String::new(),
                code: 0,
            },
            b"x",
        );
        assert!(memory.may_know(), "the newest stays");
    }
    let kept = std::fs::read_dir(state.join(FOLDER)).unwrap().count();
    assert!(kept <= MOST_ANSWERS, "{kept}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn rubbish_is_never_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        prop_assert!(file::decode(bytes.clone()).is_none());
        prop_assert!(outline_file::decode(&bytes).is_none());
        let world = World::none();
        let mut whole = file::encode(&world, &Answer::Nothing(Box::new(nothing())), b"body").unwrap();
        prop_assert!(file::decode(whole.clone()).is_some());
        let index = at.index(whole.len());
        prop_assert!(file::decode(whole[..index].to_vec()).is_none());
        whole[index] ^= 1 << bit;
        prop_assert!(file::decode(whole).is_none());
        let mut whole = outline_file::encode(&outline(&world)).unwrap();
        let index = at.index(whole.len());
        prop_assert!(outline_file::decode(&whole[..index]).is_none());
        whole[index] ^= 1 << bit;
        prop_assert!(outline_file::decode(&whole).is_none());
    }

    /// Bytes with a digest that fits, but that nobody of ours wrote.
    #[test]
    fn a_digest_alone_makes_no_answer(rest in prop::collection::vec(any::<u8>(), 0..200)) {
        for magic in [&b"doe recall 1\n"[..], b"doe outline 1\n"] {
            let bytes = [magic, Digest::of(&rest).as_bytes(), &rest].concat();
            prop_assert!(file::decode(bytes.clone()).is_none());
            prop_assert!(outline_file::decode(&bytes).is_none());
        }
    }
}
