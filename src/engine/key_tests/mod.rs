//! Every field of every type that a key could be made from, changed to whatever is drawn: the keys
//! that `fields` says change, and no other. The lists there are exhaustive, so a new field does not
//! compile here either before somebody has said what it changes; and they are written apart from
//! the classification in `engine::key` and `rule::digest`, so that a slip there shows.

mod fields;
mod world;

use doe_cache::Digest;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::rule::model::RuleKind;
use fields::Field;
use world::World;

/// What fields are changed with.
#[derive(Debug, Clone)]
pub(super) struct Drawn {
    /// A name or a text.
    pub word: String,
    /// A count.
    pub count: u32,
    /// A length of time in seconds, or a share.
    pub real: f64,
    pub flag: bool,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    ("[a-z]{1,6}", 1..100_u32, 1..1000_u32, any::<bool>()).prop_map(|(word, count, half, flag)| {
        Drawn {
            word,
            count,
            real: f64::from(half) / 2.0,
            flag,
        }
    })
}

/// The letters of the keys that differ.
fn changed(before: &BTreeMap<char, Digest>, after: &BTreeMap<char, Digest>) -> String {
    let differs = |key: &&char| before[*key] != after[*key];
    before.keys().filter(differs).collect()
}

/// A field is changed and the keys are compared: what is wrong, if anything.
fn wrong(field: &Field, world: &World, drawn: &Drawn) -> Option<String> {
    let mut other = world.clone();
    let wanted = match (field.change)(&mut other, drawn) {
        true => field.keys,
        // It was that already.
        false => "",
    };
    let found = changed(&world.keys(), &other.keys());
    (found != wanted).then(|| {
        format!(
            "{} changes `{found}`, should change `{wanted}`: {drawn:?}",
            field.name
        )
    })
}

/// Each field with a few values: no field is left to chance.
#[test]
fn every_field_changes_the_keys_that_it_should() {
    let world = World::new();
    let mut found = String::new();
    for field in fields::all() {
        let mut moved = false;
        for (word, count, real, flag) in [
            ("wordy", 7, 2.5, true),
            ("other", 3, 77.0, false),
            ("third", 1, 0.5, true),
        ] {
            let word = word.to_owned();
            let drawn = Drawn {
                word,
                count,
                real,
                flag,
            };
            moved |= (field.change)(&mut world.clone(), &drawn);
            if let Some(wrong) = wrong(&field, &world, &drawn) {
                let _ = writeln!(found, "{wrong}");
            }
        }
        if !moved {
            let _ = writeln!(found, "{} is never changed", field.name);
        }
    }
    assert!(found.is_empty(), "\n{found}");
}

/// Analyses are given the platform's environment as all scripts are; of its hosts they know nothing.
#[test]
fn the_environment_is_in_the_keys_of_analyses_too() {
    let mut world = World::new();
    world.rule().kind = RuleKind::Analysis;
    let mut other = world.clone();
    other
        .platform
        .env
        .insert("HF_HOME".to_owned(), "/x".to_owned());
    assert_eq!(changed(&world.keys(), &other.keys()), "ASV");
    let mut other = world.clone();
    other.platform.facts.clear();
    assert_eq!(changed(&world.keys(), &other.keys()), "");
}

/// How failures are named matters where one is expected, and nowhere else.
#[test]
fn what_names_an_expected_failure_is_of_the_key() {
    let mut world = World::new();
    world.pattern.expect_class = Some("oom".into());
    let mut other = world.clone();
    other.rule().failures[0].class = "else".into();
    assert_eq!(changed(&world.keys(), &other.keys()), "AS");
    let mut other = world.clone();
    other.rule().failures[0].infrastructure ^= true;
    assert_eq!(changed(&world.keys(), &other.keys()), "");
}

/// Whoever adds a kind of entry to a spec says here whether it is of the action too.
#[test]
fn the_action_has_what_surrounds_its_spec() {
    let mut world = World::new();
    world.pattern.replicate = 2;
    world.pattern.expect_class = Some("oom".into());
    let (spec, action) = world.manifests();
    let kinds = |of_action: bool| {
        let entries = spec.entries.iter();
        let entries = entries.filter(|(path, _)| action.entries.contains_key(*path) == of_action);
        let kind = |path: &str| path.split('.').next().unwrap_or_default().to_owned();
        entries.map(|(path, _)| kind(path)).collect::<BTreeSet<_>>()
    };
    let shared = "expect fact instrument monitor need platform replicate rule";
    assert_eq!(
        kinds(true).into_iter().collect::<Vec<_>>().join(" "),
        shared
    );
    assert_eq!(
        kinds(false).into_iter().collect::<Vec<_>>().join(" "),
        "rule setting uses"
    );
    for (path, entry) in spec
        .entries
        .iter()
        .filter(|(path, _)| action.entries.contains_key(*path))
    {
        assert_eq!(action.entries[path], *entry, "{path}");
    }
}

/// The list holds what the issue of keys is about: fields of either kind, in number.
#[test]
fn the_list_is_long() {
    let all = fields::all();
    let results = all.iter().filter(|field| !field.keys.is_empty()).count();
    assert!(results > 60, "{results}");
    assert!(all.len() - results > 90, "{}", all.len() - results);
    let mut names: Vec<&str> = all.iter().map(|field| field.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all.len(), "a field is listed once");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any number of cosmetic changes leaves all keys as they are, and a change of a result on top
    /// of them changes the same keys as without them.
    #[test]
    fn a_result_changes_keys_and_nothing_else_does(
        cosmetic in prop::collection::vec((any::<prop::sample::Index>(), drawn()), 0..6),
        which in any::<prop::sample::Index>(),
        value in drawn(),
    ) {
        let (results, others): (Vec<Field>, Vec<Field>) =
            fields::all().into_iter().partition(|field| !field.keys.is_empty());
        let mut world = World::new();
        let before = world.keys();
        for (which, value) in &cosmetic {
            let field = which.get(&others);
            (field.change)(&mut world, value);
            prop_assert_eq!(changed(&before, &world.keys()), "", "{}: {:?}", field.name, value);
        }
        let wrong = wrong(which.get(&results), &world, &value);
        prop_assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
    }
}
