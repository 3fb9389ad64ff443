//! What people do with a store, disturbed, and what happens to its files behind its back: anything
//! stored may be damaged, the index may go, and every command that writes may die of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::Workspace;
use crate::timeline::{DISTURBED, Timeline};
use crate::world;

const INDEX: [&str; 3] = ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"];

impl Timeline {
    /// A command with a fault armed; how it ends is left to it, within reason.
    fn disturbed(&mut self, at: &Path, args: &[&str]) {
        let fault = self.fault(6);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_doe"));
        command.args(args).arg("--workspace").arg(at);
        command.env(doe_cache::fault::FAULT_VAR, &fault);
        let ran = command.output().unwrap();
        let code = ran.status.code().unwrap_or(-1);
        self.tell(format!(
            "{} with DOE_FAULT={fault}: exit {code}",
            args.join(" ")
        ));
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(DISTURBED.contains(&code), "{args:?} exits {code}: {said}");
    }

    /// A command that looks after the store dies of a fault: the store is whole all the same.
    pub(super) fn faulty_care(&mut self) {
        let own = self.workspace.path().to_owned();
        let all: Vec<String> = world::records(&self.workspace).into_iter().collect();
        match self.random.range(0..5) {
            0 => {
                // What stands is nobody's to sweep, however the sweep ends.
                let before = world::reused(&self.workspace);
                self.disturbed(&own, &["cache", "gc", "--delete"]);
                self.workspace.doe(&["cache", "verify"]).ok();
                let after = world::reused(&self.workspace);
                let lost: Vec<_> = before.difference(&after).collect();
                assert!(lost.is_empty(), "a sweep took {lost:?} along");
                self.forget();
            }
            1 => {
                self.disturbed(&own, &["cache", "gc", "--older-than", "0s", "--delete"]);
                self.forget();
            }
            2 => self.disturbed(&own, &["cache", "verify"]),
            3 => self.disturbed(&own, &["cache", "rebuild"]),
            _ if all.is_empty() => {}
            _ => {
                let record = self.random.choose(&all).clone();
                self.disturbed(&own, &["cache", "quarantine", &record]);
                self.workspace.doe(&["cache", "verify"]).ok();
                let refused = refused(&self.workspace, &record);
                let there = world::records(&self.workspace).contains(&record);
                assert_ne!(refused, there, "a record is refused or there");
                if refused {
                    self.workspace.doe(&["cache", "rebuild"]).ok();
                    let back = world::records(&self.workspace).contains(&record);
                    assert!(!back, "a rebuild brought a refused record back");
                    self.disturbed(&own, &["cache", "quarantine", "--undo", &record]);
                    self.workspace.doe(&["cache", "verify"]).ok();
                }
                if self::refused(&self.workspace, &record) {
                    let undo = ["cache", "quarantine", "--undo", &record];
                    self.workspace.doe(&undo).ok();
                }
            }
        }
        self.workspace.doe(&["cache", "verify"]).ok();
    }

    /// Everything goes into a bundle and from there into another store, both disturbed.
    pub(super) fn carry(&mut self) {
        let all = world::records(&self.workspace);
        if all.is_empty() {
            return;
        }
        let own = self.workspace.path().to_owned();
        let other = Workspace::empty();
        let bundle = other.path().join("bundle");
        let bundle = bundle.to_str().unwrap();
        let mut export = vec!["cache", "export", "-o", bundle];
        export.extend(all.iter().map(String::as_str));
        self.disturbed(&own, &export);
        let exported = self.workspace.doe(&export).ok();
        drop(exported);
        let there = other.path().to_owned();
        self.disturbed(&there, &["cache", "import", bundle]);
        let settled = other.doe(&["cache", "verify"]).ok();
        drop(settled);
        let came = other.doe(&["cache", "import", bundle]);
        if came.code == 7 {
            // A clock that jumped made records of a time that is yet to come.
            assert!(came.stderr.contains("ahead") || came.stderr.contains("to come"));
            assert_eq!(world::records(&other), BTreeSet::new());
        } else {
            came.ok();
            let came = world::records(&other);
            assert!(came.is_subset(&all), "records from nowhere: {came:?}");
        }
        other.doe(&["cache", "verify"]).ok();
    }

    /// A flipped or missing byte is found, put aside and made again; it is never believed. What
    /// the index knows as well is not even lost.
    pub(super) fn damage(&mut self) {
        // What a killed build left half-way is settled by whoever comes first.
        self.workspace.doe(&["cache", "verify"]).ok();
        let kinds = ["cas", "records", "links", "runs", "imports"];
        let kind = *self.random.choose(&kinds);
        let files = stored(&self.workspace, kind);
        if files.is_empty() {
            return;
        }
        let file = self.random.choose(&files);
        let good = std::fs::read(file).unwrap();
        let mut bytes = good.clone();
        if bytes.is_empty() || self.random.chance(0.3) {
            bytes.truncate(bytes.len() / 2);
        } else {
            let at = self.random.range(0..bytes.len() as i64) as usize;
            bytes[at] ^= 1 << self.random.range(0..8);
        }
        if bytes == good {
            return;
        }
        let shown = file.strip_prefix(self.workspace.path()).unwrap();
        self.tell(format!("damage to {}", shown.display()));
        // Stored files are read-only: a new file takes the place, as after a bad copy.
        std::fs::remove_file(file).unwrap();
        std::fs::write(file, &bytes).unwrap();
        let found = self.workspace.doe(&["cache", "verify"]);
        // Notes of a run that died are written anew before anybody looks.
        if kind != "runs" || found.code != 0 {
            found.exits(7);
        }
        self.workspace.doe(&["cache", "verify"]).ok();
        if matches!(kind, "cas" | "records") {
            self.forget();
        }
    }

    /// The index is lost or emptied and made again from the files, maybe at the second try, and
    /// says the same.
    pub(super) fn rebuild(&mut self) {
        // First a writer takes in what a killed build left unindexed.
        self.workspace.doe(&["cache", "verify"]).ok();
        let ask = |workspace: &Workspace| {
            let commands: [&[&str]; 4] = [
                &["plan", "//chaos:all", "--json"],
                &["results", "//chaos:all", "--json"],
                &["status", "//chaos:all", "--json"],
                &["cache", "ls", "--json"],
            ];
            commands.map(|args| workspace.doe(args).ok().stdout)
        };
        let before = ask(&self.workspace);
        let state = self.workspace.path().join(".doe");
        for name in INDEX {
            let path = state.join(name);
            if path.exists() {
                std::fs::remove_file(path).unwrap();
            }
        }
        let emptied = self.random.chance(0.5);
        if emptied {
            std::fs::write(state.join(INDEX[0]), "").unwrap();
        }
        let makers: [&[&str]; 2] = [&["cache", "rebuild"], &["cache", "verify"]];
        let maker = *self.random.choose(&makers);
        let how = if emptied { "emptied" } else { "lost" };
        self.tell(format!("the index is {how}; doe {}", maker.join(" ")));
        if self.random.chance(0.5) {
            let own = self.workspace.path().to_owned();
            self.disturbed(&own, maker);
        }
        self.workspace.doe(maker).ok();
        let after = ask(&self.workspace);
        assert_eq!(after, before, "the index made again says something else");
    }
}

fn refused(workspace: &Workspace, record: &str) -> bool {
    let path = format!(".doe/quarantine/{record}.json");
    workspace.path().join(path).exists()
}

/// The files of a part of the store.
fn stored(workspace: &Workspace, kind: &str) -> Vec<PathBuf> {
    let list = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let mut files = list(&workspace.path().join(".doe").join(kind));
    let folders: Vec<PathBuf> = files.iter().filter(|p| p.is_dir()).cloned().collect();
    files.retain(|path| path.is_file());
    for folder in folders {
        match kind {
            "runs" => files.push(folder.join("notes")),
            _ => files.extend(list(&folder)),
        }
    }
    files.retain(|path| path.is_file());
    files.sort();
    files
}
