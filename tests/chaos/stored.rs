//! The store as files, read without any of the code that wrote them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::Workspace;

/// What lies in a folder, in order.
fn list(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The files of a part of the store.
pub fn files(workspace: &Workspace, kind: &str) -> Vec<PathBuf> {
    let state = workspace.path().join(".doe");
    let of_runs = |name: &str| {
        let runs = list(&state.join("runs"));
        runs.iter().map(|run| run.join(name)).collect()
    };
    let mut files: Vec<PathBuf> = match kind {
        "runs" => of_runs("notes"),
        "intents" => of_runs("intents.jsonl"),
        "events" => of_runs("events.jsonl"),
        _ => {
            let upper = list(&state.join(kind));
            upper
                .iter()
                .flat_map(|path| {
                    if path.is_dir() {
                        list(path)
                    } else {
                        vec![path.clone()]
                    }
                })
                .collect()
        }
    };
    files.retain(|path| path.is_file());
    files
}

/// The name of a file in the store, as text.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// Digests of all records that lie there.
pub fn records(workspace: &Workspace) -> BTreeSet<String> {
    files(workspace, "records")
        .iter()
        .map(|path| stem(path))
        .collect()
}

/// All records, by their digest.
fn read(workspace: &Workspace) -> BTreeMap<String, Value> {
    let files = files(workspace, "records").into_iter();
    let parsed = files.filter_map(|path| {
        let text = std::fs::read(&path).ok()?;
        Some((stem(&path), serde_json::from_slice(&text).ok()?))
    });
    parsed.collect()
}

/// Records of which a file is a part: it is one, or an output of one.
pub fn standing_on(workspace: &Workspace, file: &Path) -> BTreeSet<String> {
    let Some(folder) = file.parent().and_then(Path::file_name) else {
        return BTreeSet::new();
    };
    let blob = format!("{}{}", folder.to_string_lossy(), stem(file));
    let all = read(workspace).into_iter();
    let on = all.filter(|(record, content)| {
        let outputs = content["outputs"].as_object();
        let mut outputs = outputs.into_iter().flat_map(|outputs| outputs.values());
        *record == stem(file) || outputs.any(|output| output["digest"] == blob.as_str())
    });
    on.map(|(record, _)| record).collect()
}

/// The document that the record which begins so has left.
pub fn document(workspace: &Workspace, record: &str) -> String {
    let folder = workspace.path().join(".doe/records").join(&record[..2]);
    let files = list(&folder);
    let file = files.iter().find(|path| stem(path).starts_with(record));
    let file = file.unwrap_or_else(|| panic!("record {record} stands and does not lie there"));
    let record: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let blob = record["outputs"]["result"]["digest"].as_str().unwrap();
    let path = workspace
        .path()
        .join(".doe/cas")
        .join(&blob[..2])
        .join(&blob[2..]);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Copies what a store is made of into another workspace. What is never changed in its place may
/// be shared.
pub fn copy(from: &Workspace, to: &Workspace) {
    let (from, to) = (from.path().join(".doe"), to.path().join(".doe"));
    if !from.exists() {
        return;
    }
    std::fs::create_dir_all(&to).unwrap();
    for path in list(&from) {
        let name = path.file_name().unwrap().to_str().unwrap();
        match name {
            "exec" | "recall" | "index.sqlite-shm" => {}
            "cas" | "records" => tree(&path, &to.join(name), true, 2),
            // Of a run's folder not what its nodes work in.
            "runs" => tree(&path, &to.join(name), false, 1),
            _ => tree(&path, &to.join(name), false, 2),
        }
    }
}

/// Copies a file, or a folder with folders down to a depth in it.
fn tree(from: &Path, to: &Path, share: bool, depth: usize) {
    if !from.is_dir() {
        if !share || std::fs::hard_link(from, to).is_err() {
            // What a killed build leaves running may still tidy up.
            let _ = std::fs::copy(from, to);
        }
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for path in list(from) {
        if depth > 0 || !path.is_dir() {
            let name = path.file_name().unwrap();
            tree(&path, &to.join(name), share, depth.saturating_sub(1));
        }
    }
}
