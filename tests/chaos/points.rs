//! Every named write point is struck on purpose, in every command that is to reach it: the process
//! dies there, the disk refuses there, what is written there is torn. Then everything holds.

use std::path::Path;

use doe_cache::fault::Point;

use crate::care::{lose_index, replace, with_fault};
use crate::side_by_side;
use crate::stored;
use crate::support::{Ran, Workspace};
use crate::timeline::Timeline;
use crate::world::{self, Edit};

/// A command that writes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scene {
    Build,
    /// A build with a build behind it.
    Further,
    Collect,
    Refuse,
    TakeBack,
    Rebuild,
    Import,
    Verify,
    Pin,
}

/// What reaches a point. Whoever adds a point says it here: there is none that nothing reaches.
fn scenes(point: Point) -> &'static [Scene] {
    use Scene::*;
    match point {
        Point::BeforeTmpWrite | Point::AfterTmpWrite => &[Build, Import, Pin],
        Point::BeforeFsync | Point::AfterFsync => &[Build, Import],
        Point::BeforeRename | Point::AfterRename => &[Build, Refuse, Import],
        Point::BeforeDirSync | Point::AfterDirSync => &[Build, Further, Import],
        Point::BeforeAnnounce | Point::AfterAnnounce => &[Build, Further],
        Point::BeforeAppend | Point::AfterAppend => &[Build, Further],
        Point::BeforeCommit | Point::AfterCommit => {
            &[Build, Further, Collect, Refuse, TakeBack, Rebuild, Import]
        }
        Point::BeforeQuarantine | Point::AfterQuarantine => &[Refuse, Verify],
        Point::BeforeRemove | Point::AfterRemove => &[Collect],
    }
}

#[test]
fn every_point_is_struck() {
    let mut cases = Vec::new();
    for point in Point::ALL {
        for scene in scenes(*point) {
            let actions = ["kill", "error", "torn=40"];
            let actions = &actions[..if point.tears() { 3 } else { 2 }];
            cases.extend(actions.iter().map(|action| (*scene, *point, *action)));
        }
    }
    let only = std::env::var("DOE_CHAOS_POINT").ok();
    cases.retain(|case| {
        only.as_ref()
            .is_none_or(|only| format!("{case:?}").contains(only))
    });
    side_by_side(&cases, 4, |(scene, point, action)| {
        let what = format!("{scene:?} with {point}: {action}");
        let ran = std::panic::catch_unwind(|| strike(*scene, *point, action));
        if let Err(why) = ran {
            eprintln!(
                "replay: DOE_CHAOS_POINT='{scene:?}, {point:?}, \"{action}\"' cargo test --locked --test chaos every_point # {what}"
            );
            std::panic::resume_unwind(why);
        }
    });
}

fn strike(scene: Scene, point: Point, action: &str) {
    let mut timeline = Timeline::new(false);
    // A disk that refuses once is often asked again.
    let passages = if action == "error" { "1+" } else { "1" };
    let fault = format!("{point}:{passages}:{action}");
    if scene != Scene::Build {
        timeline.build();
        timeline.hold();
    }
    let ran = timeline.play(scene, &fault);
    let end = format!(
        "{scene:?} with {fault}: exit {}\n{}{}",
        ran.code, ran.stdout, ran.stderr
    );
    match action {
        // What was told is what the disk would have said.
        "error" => {
            assert!([4, 1, 7].contains(&ran.code), "{end}");
            let said = ["No space left on device", "Input/output error"];
            assert!(said.iter().any(|words| end.contains(words)), "{end}");
        }
        _ => assert_eq!(ran.code, -1, "{end}"),
    }
    timeline.hold();
    timeline.build();
    timeline.hold();
    timeline.workspace.doe(&["cache", "verify"]).ok();
    timeline.workspace.assert_nothing_runs();
}

impl Timeline {
    fn play(&mut self, scene: Scene, fault: &str) -> Ran {
        let here = self.workspace.again();
        let here = |args: &[&str]| with_fault(&here, args, fault);
        let record = self.records.first().cloned().unwrap_or_default();
        match scene {
            Scene::Build => here(&["build", "//chaos:all"]),
            Scene::Further => {
                self.edit(Edit::Value(0, 3));
                here(&["build", "//chaos:all"])
            }
            Scene::Collect => {
                let old = self.records.clone();
                self.edit(Edit::Value(0, 3));
                self.edit(Edit::Value(3, 3));
                self.build();
                self.hold();
                // A record that does not stand any more is nobody's, with its links and blobs.
                self.let_go(&old);
                here(&["cache", "gc", "--older-than", "0s", "--delete"])
            }
            Scene::Refuse => {
                self.let_go(&[record.clone()].into());
                here(&["cache", "quarantine", &record])
            }
            Scene::TakeBack => {
                self.workspace.doe(&["cache", "quarantine", &record]).ok();
                let ran = here(&["cache", "quarantine", "--undo", &record]);
                self.workspace.doe(&["cache", "verify"]).ok();
                if !world::records(&self.workspace).contains(&record) {
                    let undo = ["cache", "quarantine", "--undo", &record];
                    self.workspace.doe(&undo).ok();
                }
                ran
            }
            Scene::Rebuild => {
                lose_index(&self.workspace, false);
                let ran = here(&["cache", "rebuild"]);
                // Who only reads is told that there is no index, and makes none.
                self.workspace.doe(&["cache", "rebuild"]).ok();
                ran
            }
            Scene::Import => self.import_elsewhere(fault),
            Scene::Verify => {
                let blobs = stored::files(&self.workspace, "cas");
                let blob: &Path = &blobs[0];
                let on = stored::standing_on(&self.workspace, blob);
                let kept = self.records.clone();
                self.let_go(&on);
                self.records = kept;
                replace(blob, b"something else");
                let ran = here(&["cache", "verify"]);
                let again = self.workspace.doe(&["cache", "verify"]);
                assert!([0, 7].contains(&again.code), "{}", again.stderr);
                ran
            }
            Scene::Pin => here(&["cache", "pin", &record]),
        }
    }

    /// Everything goes to another store, where an import meets the fault and then another does
    /// not.
    fn import_elsewhere(&mut self, fault: &str) -> Ran {
        let other = Workspace::empty();
        let bundle = other.path().join("bundle");
        let bundle = bundle.to_str().unwrap();
        let mut export = vec!["cache", "export", "-o", bundle];
        export.extend(self.records.iter().map(String::as_str));
        drop(self.workspace.doe(&export).ok());
        let ran = with_fault(&other, &["cache", "import", bundle], fault);
        other.doe(&["cache", "verify"]).ok();
        other.doe(&["cache", "import", bundle]).ok();
        assert_eq!(world::records(&other), self.records);
        assert_eq!(stored::records(&other), self.records);
        other.doe(&["cache", "verify"]).ok();
        ran
    }
}
