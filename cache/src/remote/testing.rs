//! An object store in memory, for tests of the protocol alone; what servers really do is tested
//! against servers.

use super::fault::Fault;
use super::objects::{Body, Objects, Page, Put};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    requests: u64,
    puts: Vec<String>,
    /// How the next requests go.
    next: VecDeque<Option<Fault>>,
    always: Option<Fault>,
    /// Whether conditional puts are taken for plain ones, as some servers do.
    careless: bool,
}

/// Shared by its clones.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(Arc<Mutex<State>>);

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn ask(&self) -> Result<MutexGuard<'_, State>, Fault> {
        let mut state = self.state();
        state.requests += 1;
        let always = state.always.clone();
        match state.next.pop_front().unwrap_or(always) {
            Some(fault) => Err(fault),
            None => Ok(state),
        }
    }

    pub(super) fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().next.extend(faults.into_iter().map(Some));
    }

    /// So many requests succeed whatever was said before.
    pub(super) fn pass_next(&self, count: usize) {
        self.state().next.extend(vec![None; count]);
    }

    pub(super) fn fail_always(&self, fault: Option<Fault>) {
        self.state().always = fault;
    }

    pub(super) fn careless(&self) {
        self.state().careless = true;
    }

    pub(super) fn requests(&self) -> u64 {
        self.state().requests
    }

    pub(super) fn puts(&self) -> Vec<String> {
        self.state().puts.clone()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    pub(super) fn set(&self, name: &str, content: &[u8]) {
        self.state().objects.insert(name.into(), content.into());
    }

    pub(super) fn remove(&self, name: &str) {
        self.state().objects.remove(name);
    }

    pub(super) fn content(&self, name: &str) -> Option<Vec<u8>> {
        self.state().objects.get(name).cloned()
    }
}

impl Objects for Memory {
    fn head(&self, name: &str) -> Result<Option<u64>, Fault> {
        Ok(self.ask()?.objects.get(name).map(|c| c.len() as u64))
    }

    fn get(&self, name: &str, most_bytes: u64) -> Result<Vec<u8>, Fault> {
        let content = self.ask()?.objects.get(name).cloned();
        let content = content.ok_or(Fault::Missing)?;
        if content.len() as u64 > most_bytes {
            return Err(Fault::Damaged("too long".into()));
        }
        Ok(content)
    }

    fn get_into(&self, name: &str, mut file: File, most_bytes: u64) -> Result<u64, Fault> {
        let content = self.get(name, most_bytes)?;
        file.write_all(&content).unwrap();
        Ok(content.len() as u64)
    }

    fn put(&self, name: &str, body: Body<'_>, only_new: bool) -> Result<Put, Fault> {
        let mut state = self.ask()?;
        let content = match body {
            Body::Bytes(bytes) => bytes.to_vec(),
            Body::File(path, _) => std::fs::read(path).unwrap(),
        };
        if only_new && !state.careless && state.objects.contains_key(name) {
            return Ok(Put::WasThere);
        }
        state.puts.push(name.to_owned());
        state.objects.insert(name.to_owned(), content);
        Ok(Put::Stored)
    }

    fn list(&self, prefix: &str, after: Option<&str>, most: u16) -> Result<Page, Fault> {
        let state = self.ask()?;
        let mut names = state.objects.keys().filter(|name| {
            name.starts_with(prefix) && after.is_none_or(|after| name.as_str() > after)
        });
        let taken: Vec<String> = names.by_ref().take(most.into()).cloned().collect();
        Ok(Page {
            more: names.next().is_some(),
            names: taken,
        })
    }
}
