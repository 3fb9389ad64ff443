//! The outline of the plan that the targets name: made when all of it is reused, used when nothing
//! but values of settings was edited since.

use doe_cache::{Digest, Store};

use super::super::args::Global;
use super::super::facts;
use super::super::out::Out;
use super::super::session;
use super::Recall;
use crate::engine::decide::Decider;
use crate::engine::forecast::expected_s;
use crate::engine::recall::{Fate, Memory, Outline, Question, World};
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::label::{Selector, Target};
use crate::plan::part::{Edit, settings_only};
use crate::plan::workspace::plan_names;

/// Package, name in the world, name in messages and text of a plan.
struct PlanText {
    package: String,
    name: String,
    shown: String,
    text: String,
}

/// Where the outline of some targets is kept, and the world as it is.
pub struct Outlined<'a> {
    global: &'a Global,
    recall: Recall,
    memory: Memory,
    world: World,
}

impl<'a> Outlined<'a> {
    /// Looks at the world. Nothing when the targets depend on more than is in it, or when it
    /// cannot be looked at.
    pub fn new(global: &'a Global, targets: &[Selector], out: &Out) -> Option<Self> {
        let asks_the_store = |s: &Selector| matches!(s.target, Target::Failed | Target::Stale);
        if !global.sets.is_empty() || targets.iter().any(asks_the_store) {
            return None;
        }
        let recall = Recall::new(global, out)?;
        let sign = |s: &Selector| if s.subtract { "-" } else { "" };
        let words = targets.iter().map(|s| format!("{}{}", sign(s), s.target));
        let platform = global.platform.clone().unwrap_or_default();
        let words: Vec<String> = ["outline".into(), platform]
            .into_iter()
            .chain(words)
            .collect();
        let root = &recall.places.root;
        let memory = Memory::new(&recall.state, &Question::new(&words, root, root, &[]));
        let world = World::look(&recall.places).ok()?;
        Some(Self {
            global,
            recall,
            memory,
            world,
        })
    }

    /// All plans, read as the world has them.
    fn texts(&self) -> Option<Vec<PlanText>> {
        let places = &self.recall.places;
        let folder = places.folders.plans.display().to_string();
        let names = plan_names(&places.root, &places.folders)?.into_iter();
        let texts = names.map(|(package, path, shown)| {
            let text = std::fs::read_to_string(path).ok()?;
            let name = format!("plans{}", shown.strip_prefix(&folder)?);
            self.world.reads(&name, &text).then_some(PlanText {
                package,
                name,
                shown,
                text,
            })
        });
        texts.collect()
    }

    /// The outline of a plan in which every node is reused.
    pub fn of(&self, decider: &Decider<'_>, records: &[(NodeId, Digest)]) -> Option<Outline> {
        // An outline knows no hosts, so it cannot say what a plan costs.
        let platform = decider.platform();
        // Nor, then, what a pattern takes.
        if platform.cost_per_hour.is_some() || !platform.tokens.is_empty() {
            return None;
        }
        let texts = self.texts()?.into_iter().map(|t| (t.name, t.text));
        let seconds = |node| expected_s(decider, node);
        let world = self.world.clone();
        Outline::of(world, texts.collect(), decider, records, &seconds)
    }

    /// Keeps an outline, when the world is still what it was made in.
    pub fn keep(&self, outline: Option<Outline>) {
        let Some(mut outline) = outline else { return };
        if let Ok(after) = World::look(&self.recall.places)
            && self.world.holds(&after)
        {
            outline.world = after;
            self.memory.keep_outline(&outline);
        }
    }

    /// What becomes of everything, when an outline is at hand and nothing but values of settings
    /// was edited since it was made.
    pub fn replan(&self) -> Result<Option<(Outline, Vec<Fate>)>> {
        let Some(mut outline) = self.memory.outline() else {
            return Ok(None);
        };
        let edited: Vec<&str> = outline.world.differences(&self.world).collect();
        let is_plan = |name: &&str| outline.texts.iter().any(|(known, _)| known == name);
        if let Some(other) = edited.iter().find(|name| !is_plan(name)) {
            self.memory.note(&format!("`{other}` is not what it was"));
            return Ok(None);
        }
        let Some(now) = self.texts() else {
            return Ok(None);
        };
        let pairs = now.iter().zip(&outline.texts);
        let edits: Vec<Edit<'_>> = pairs
            .filter(|(now, _)| edited.contains(&now.name.as_str()))
            .map(|(now, (_, old))| Edit {
                package: &now.package,
                shown: &now.shown,
                old,
                new: &now.text,
            })
            .collect();
        let same = now.iter().map(|plan| &plan.name);
        if edits.len() != edited.len() || !same.eq(outline.texts.iter().map(|(name, _)| name)) {
            return Ok(None);
        }
        let (root, options) = session::place(self.global)?;
        let Some(mut part) = settings_only(&root, &options, &edits) else {
            self.memory.note("more than values of settings was edited");
            return Ok(None);
        };
        facts::recall(&mut part.workspace);
        let edited = edits.len();
        let Ok(graph) = Graph::build(&part.workspace) else {
            return Ok(None);
        };
        let Ok(platform) = session::platform(self.global, &part.workspace) else {
            return Ok(None);
        };
        let store = Store::open_read_only(&self.recall.state)?;
        let seconds = |decider: &Decider<'_>, node| expected_s(decider, node);
        let fates = outline.replan(&part, &graph, platform, &store, &seconds)?;
        // What was read on the way was what was looked at.
        let still = World::look(&self.recall.places).is_ok_and(|now| self.world.holds(&now));
        let Some(fates) = fates.filter(|_| still) else {
            self.memory
                .note("more is to be judged than the outline has");
            return Ok(None);
        };
        self.memory.note(&format!(
            "{} plans edited, {} patterns judged again, the rest follows from the outline",
            edited,
            part.changed.len()
        ));
        Ok(Some((outline, fates)))
    }
}
