//! What people do with a store, disturbed, and what happens to its files behind its back: anything
//! stored may be damaged, the index may go, and every command that writes may die of it.

use std::collections::BTreeSet;
use std::path::Path;

use crate::script::{Care, Pick, Rebuild};
use crate::stored;
use crate::support::{Ran, Workspace};
use crate::timeline::{DISTURBED, Timeline};
use crate::world;

const INDEX: [&str; 3] = ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"];

/// A command with a fault armed.
pub(super) fn with_fault(at: &Workspace, args: &[&str], fault: &str) -> Ran {
    let mut command = at.command(args);
    command.env(doe_cache::fault::FAULT_VAR, fault);
    Ran::of(args, command.output().unwrap())
}

/// The index is gone, or nothing but a file.
pub(super) fn lose_index(workspace: &Workspace, emptied: bool) {
    let state = workspace.path().join(".doe");
    for name in INDEX {
        let path = state.join(name);
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    if emptied {
        std::fs::write(state.join(INDEX[0]), "").unwrap();
    }
}

/// Writes a stored file anew: they are read-only, so a new one takes the place.
pub(super) fn replace(file: &Path, bytes: &[u8]) {
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, bytes).unwrap();
}

impl Timeline {
    /// A command with a fault armed; how it ends is left to it, within reason.
    fn disturbed(&mut self, at: &Workspace, args: &[&str], fault: &str) {
        let ran = with_fault(at, args, fault);
        let code = ran.code;
        self.tell(format!("  {} with {fault}: exit {code}", args.join(" ")));
        assert!(
            DISTURBED.contains(&code),
            "{args:?} exits {code}: {}",
            ran.stderr
        );
    }

    fn here(&mut self, args: &[&str], fault: &str) {
        let here = self.workspace.again();
        self.disturbed(&here, args, fault);
    }

    /// A command that looks after the store dies of a fault: the store is whole all the same.
    pub(super) fn care(&mut self, care: &Care, fault: &str) {
        match care {
            Care::Collect => {
                // What stands is nobody's to sweep, however the sweep ends.
                let before = self.standing();
                self.here(&["cache", "gc", "--delete"], fault);
                let after = self.standing();
                let lost: Vec<_> = before.difference(&after).collect();
                assert!(lost.is_empty(), "a sweep took {lost:?} along");
            }
            Care::CollectOld => {
                let old = ["cache", "gc", "--older-than", "0s"];
                let copy = self.copy();
                copy.doe(&["cache", "verify"]).ok();
                let told = copy.doe(&[&old[..], &["--json"]].concat()).ok().json();
                let told = told["records"].as_array().unwrap().iter();
                let doomed = told.map(|row| row["record"].as_str().unwrap().to_string());
                self.let_go(&doomed.collect());
                self.here(&[&old[..], &["--delete"]].concat(), fault);
            }
            Care::Verify => self.here(&["cache", "verify"], fault),
            Care::Rebuild => self.here(&["cache", "rebuild"], fault),
            Care::Refuse { record, undo } => self.refuse(*record, fault, undo),
        }
        self.workspace.doe(&["cache", "verify"]).ok();
    }

    /// A record is refused and taken back, both disturbed.
    fn refuse(&mut self, record: Pick, fault: &str, undo_fault: &str) {
        let all: Vec<String> = world::records(&self.workspace).into_iter().collect();
        let Some(record) = record.of(&all) else {
            return;
        };
        let is_refused = |workspace: &Workspace| {
            let path = format!(".doe/quarantine/{record}.json");
            workspace.path().join(path).exists()
        };
        self.here(&["cache", "quarantine", record], fault);
        self.workspace.doe(&["cache", "verify"]).ok();
        let refused = is_refused(&self.workspace);
        let there = world::records(&self.workspace).contains(record);
        assert_ne!(refused, there, "a record is refused or there");
        if refused {
            self.workspace.doe(&["cache", "rebuild"]).ok();
            let back = world::records(&self.workspace).contains(record);
            assert!(!back, "a rebuild brought a refused record back");
            self.here(&["cache", "quarantine", "--undo", record], undo_fault);
            self.workspace.doe(&["cache", "verify"]).ok();
        }
        if is_refused(&self.workspace) {
            let undo = ["cache", "quarantine", "--undo", record];
            self.workspace.doe(&undo).ok();
        }
    }

    /// Everything goes into a bundle and from there into another store, both disturbed.
    pub(super) fn carry(&mut self, export_fault: &str, import_fault: &str) {
        // What a killed build left half-way is settled by whoever comes first.
        self.workspace.doe(&["cache", "verify"]).ok();
        let all = world::records(&self.workspace);
        if all.is_empty() {
            return;
        }
        let other = Workspace::empty();
        let bundle = other.path().join("bundle");
        let bundle = bundle.to_str().unwrap();
        let mut export = vec!["cache", "export", "-o", bundle];
        export.extend(all.iter().map(String::as_str));
        self.here(&export, export_fault);
        let told = self.workspace.doe(&export).ok().stderr;
        self.disturbed(&other, &["cache", "import", bundle], import_fault);
        drop(other.doe(&["cache", "verify"]).ok());
        let came = other.doe(&["cache", "import", bundle]);
        if came.code == 7 {
            // A clock that jumped made records of a time that is yet to come.
            assert!(came.stderr.contains("ahead") || came.stderr.contains("to come"));
            assert_eq!(world::records(&other), BTreeSet::new());
        } else {
            came.ok();
            let came = world::records(&other);
            assert!(came.is_subset(&all), "records from nowhere: {came:?}");
            let mut lost = self.standing_records();
            lost.retain(|record| {
                // One that stands without a log is left out, which is said.
                let said = told.contains(&format!("record `{}` lacks blob", &record[..12]));
                said.then(|| stored::document(&self.workspace, record));
                !said && !came.contains(record)
            });
            assert!(lost.is_empty(), "not in the bundle: {lost:?}\n{told}");
        }
        other.doe(&["cache", "verify"]).ok();
    }

    /// Whole digests of the records that stand.
    fn standing_records(&self) -> BTreeSet<String> {
        let begins: Vec<String> = world::reused(&self.workspace).into_values().collect();
        let all = world::records(&self.workspace).into_iter();
        all.filter(|record| begins.iter().any(|begin| record.starts_with(begin)))
            .collect()
    }

    /// A flipped or missing byte is found, put aside and made again; it is never believed. What
    /// the index knows as well is not even lost.
    pub(super) fn damage(&mut self, kind: &str, file: Pick, bit: Option<(u64, u8)>) {
        // What a killed build left half-way is settled by whoever comes first.
        self.workspace.doe(&["cache", "verify"]).ok();
        let files = stored::files(&self.workspace, kind);
        let Some(file) = file.of(&files) else {
            return;
        };
        let good = std::fs::read(file).unwrap();
        let mut bytes = good.clone();
        match bit {
            Some((at, bit)) if !bytes.is_empty() => {
                let at = (at % bytes.len() as u64) as usize;
                bytes[at] ^= 1 << bit;
            }
            _ => bytes.truncate(bytes.len() / 2),
        }
        if bytes == good {
            return;
        }
        self.tell(format!("  damage to {}", file.display()));
        self.let_go_of(kind, file);
        replace(file, &bytes);
        let found = self.workspace.doe(&["cache", "verify"]);
        // Notes of a run that died are written anew before anybody looks.
        if kind != "runs" || found.code != 0 {
            found.exits(7);
        }
        self.workspace.doe(&["cache", "verify"]).ok();
    }

    /// The end of a file is missing, and the next that comes is a build, which never believes it.
    pub(super) fn cut(&mut self, kind: &str, file: Pick, percent: u64) {
        let files = stored::files(&self.workspace, kind);
        // What a run announces is synced line by line: only the last line of the last can be torn.
        let file = match kind {
            "intents" => files.last(),
            _ => file.of(&files),
        };
        let Some(file) = file else {
            return;
        };
        let mut bytes = std::fs::read(file).unwrap();
        let from = match kind {
            "intents" => bytes.trim_ascii_end().iter().rposition(|b| *b == b'\n'),
            _ => Some(0),
        };
        let from = from.unwrap_or(0);
        let left = from + (bytes.len() - from) * percent as usize / 100;
        if left == bytes.len() {
            return;
        }
        self.tell(format!(
            "  {} has {left} of {} bytes",
            file.display(),
            bytes.len()
        ));
        self.let_go_of(kind, file);
        bytes.truncate(left);
        replace(file, &bytes);
        self.build();
        let found = self.workspace.doe(&["cache", "verify"]);
        assert!(
            [0, 7].contains(&found.code),
            "{}: {}",
            found.code,
            found.stderr
        );
        self.workspace.doe(&["cache", "verify"]).ok();
    }

    fn let_go_of(&mut self, kind: &str, file: &Path) {
        if !matches!(kind, "cas" | "records") {
            return;
        }
        let mut on = stored::standing_on(&self.workspace, file);
        let records = self.records.clone();
        if kind == "records" {
            on.extend(
                file.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
        self.let_go(&on);
        if kind == "cas" {
            // The records stay, without what they are about.
            self.records = records;
        }
    }

    /// The index is lost or emptied and made again from the files, maybe at the second try, and
    /// says the same.
    pub(super) fn rebuild(&mut self, how: &Rebuild) {
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
        lose_index(&self.workspace, how.emptied);
        if let Some(fault) = &how.fault {
            self.here(&how.maker, fault);
        }
        self.workspace.doe(&how.maker).ok();
        let after = ask(&self.workspace);
        assert_eq!(after, before, "the index made again says something else");
    }
}
