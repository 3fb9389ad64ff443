//! What every part of a run shares: where scripts run, where things are kept, what the
//! environment of a script is. Made once, never changed.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use doe_cache::{Digest, Store};
use tokio::sync::{Mutex, watch};

use super::commit::Committer;
use super::facts::again::Readings;
use super::intent::{Home, Intents};
use super::moved::{Program, Reading};
use super::scratch::Scratch;
use super::unended::Unended;
use crate::error::{Error, Kind, Result};
use crate::exec::secrets::Secrets;
use crate::exec::{Executor, Facts, HostSpec, Script, Site, Token};
use crate::label::Label;
use crate::plan::model::Platform;
use crate::rule::action::RoleBinding;

/// Each log of a process is cut to this many bytes.
pub(super) const LOG_CAP_BYTES: u64 = 16 << 20;

/// See the module.
pub(super) struct Context {
    /// Runs what has a role.
    pub executor: Arc<dyn Executor>,
    /// Runs what has none, beside `doe` itself.
    pub local: Arc<dyn Executor>,
    /// Where it runs.
    pub platform: Platform,
    /// Results.
    pub store: Arc<Store>,
    /// Makes records durable.
    pub committer: Committer,
    /// Announces what is about to be started.
    pub intents: Intents,
    /// What could not be ended.
    pub unended: Unended,
    /// The run and its folders.
    pub home: Home,
    /// Short paths for temporary files.
    pub(crate) scratch: Scratch,
    /// How scripts call `doe` on this machine.
    pub doe: PathBuf,
    /// Where things are on the platform's hosts; `None` when these have the files of this machine.
    pub site: Option<Site>,
    /// Environment of every script, below that of the platform and of the rule.
    pub env: BTreeMap<String, String>,
    /// What services and steps get beside it, and nothing keeps.
    pub secrets: Secrets,
    /// True once everything is to be cancelled.
    pub abort: watch::Receiver<bool>,
    /// What was read of each host in this run.
    pub(crate) facts: Mutex<BTreeMap<String, Reading>>,
    /// What the platform's probe read of each host in this run.
    pub(super) probed: Readings,
    /// Which file `doe` was when the run began.
    pub(crate) program: Program,
}

impl Context {
    /// The host that a role is bound to; `None` stands for the machine of `doe` itself.
    pub(super) fn host(&self, role: Option<&str>) -> Result<HostSpec> {
        let Some(role) = role else {
            return Ok(HostSpec {
                name: "localhost".into(),
                address: "127.0.0.1".into(),
                gpus: 0,
            });
        };
        let host = super::preflight::host_of(&self.platform, role).ok_or_else(|| {
            Error::new(
                Kind::Plan,
                "no-host",
                format!(
                    "platform `{}` has no host for role `{role}`",
                    self.platform.name
                ),
            )
        })?;
        Ok(HostSpec {
            name: host.name.clone(),
            address: host.address.clone(),
            gpus: host.gpus,
        })
    }

    /// What is on the hosts of a script: the site, when it has a role and they are elsewhere.
    pub(super) fn site(&self, on_hosts: bool) -> Option<&Site> {
        self.site.as_ref().filter(|_| on_hosts)
    }

    /// The working folder of an execution. Who runs its first script makes it.
    pub(super) fn work(&self, home: &Home, below: &Path, on_hosts: bool) -> PathBuf {
        match self.site(on_hosts) {
            Some(_) => home.host_dir.join(below),
            None => home.run_dir.join(below),
        }
    }

    /// A folder for temporary files with a short path.
    pub(super) fn tmp(
        &self,
        home: &Home,
        scratch: &Scratch,
        name: &str,
        on_hosts: bool,
    ) -> Result<PathBuf> {
        match self.site(on_hosts) {
            Some(site) => {
                let run = Digest::of(&home.run_id).short().to_string();
                Ok(site.root.join("tmp").join(&run[..10]).join(name))
            }
            None => scratch.folder(name),
        }
    }

    /// How a script calls `doe`.
    pub(super) fn doe(&self, on_hosts: bool) -> String {
        let doe = self.site(on_hosts).map_or(&self.doe, |site| &site.doe);
        doe.display().to_string()
    }

    /// The executor for a role.
    pub(super) fn executor(&self, role: Option<&str>) -> &Arc<dyn Executor> {
        match role {
            Some(_) => &self.executor,
            None => &self.local,
        }
    }

    /// Where the roles are.
    pub(super) fn bindings<'r>(
        &self,
        roles: impl Iterator<Item = &'r String>,
    ) -> Result<BTreeMap<String, RoleBinding>> {
        roles
            .map(|role| {
                let HostSpec { name, address, .. } = self.host(Some(role))?;
                let binding = RoleBinding {
                    host: name,
                    ip: address,
                };
                Ok((role.clone(), binding))
            })
            .collect()
    }

    /// A script with the environment that every script has; `folders` are its working folder and
    /// that for temporary files.
    pub(super) fn script(
        &self,
        name: String,
        text: &str,
        env: &BTreeMap<String, String>,
        (work, tmp): (&Path, &Path),
        timeout_s: Option<f64>,
        on_hosts: bool,
    ) -> Script {
        let env_of_all = self.site(on_hosts).map_or(&self.env, |site| &site.env);
        let mut all = env_of_all.clone();
        all.insert("TMPDIR".into(), tmp.display().to_string());
        all.extend(self.platform.env.clone());
        all.extend(env.clone());
        Script {
            name,
            text: text.to_owned(),
            env: all,
            work: work.to_owned(),
            timeout: timeout_s.and_then(|s| std::time::Duration::try_from_secs_f64(s).ok()),
            log_cap_bytes: LOG_CAP_BYTES,
            attached: false,
            ask: Default::default(),
        }
    }

    /// What the host said of itself when it was last asked. What cannot be read is left out: facts are
    /// told beside a result, they do not make it.
    pub(super) async fn facts(&self, host: &HostSpec) -> Facts {
        let mut known = self.facts.lock().await;
        if let Some(reading) = known.get(&host.name) {
            return reading.facts.clone();
        }
        let asked = Instant::now();
        let facts = self.executor.probe(host).await.unwrap_or_default();
        let reading = Reading { facts, asked };
        let facts = reading.facts.clone();
        known.insert(host.name.clone(), reading);
        facts
    }

    /// What the host says of itself, asked at this time or later. Those who wait together share
    /// one answer; a host that does not answer is what it was.
    pub(super) async fn facts_since(&self, host: &HostSpec, since: Instant) -> Facts {
        let mut known = self.facts.lock().await;
        if let Some(reading) = known.get(&host.name).filter(|r| r.asked >= since) {
            return reading.facts.clone();
        }
        let asked = Instant::now();
        if let Ok(facts) = self.executor.probe(host).await {
            known.insert(host.name.clone(), Reading { facts, asked });
        }
        let reading = known.get(&host.name);
        reading.map(|r| r.facts.clone()).unwrap_or_default()
    }

    /// The token of one submission: the run, what can be read of the name, and its digest, since
    /// executors allow few characters and labels may be long.
    pub(crate) fn token(&self, what: &str) -> Token {
        self.home.token(what)
    }

    /// Resolves when everything is to be cancelled, at once when it already is.
    pub(super) async fn aborted(&self) {
        let mut abort = self.abort.clone();
        if abort.wait_for(|abort| *abort).await.is_err() {
            // Nobody is left who could ask for it.
            std::future::pending::<()>().await;
        }
    }

    /// Whether everything is to be cancelled.
    pub(super) fn is_aborted(&self) -> bool {
        *self.abort.borrow()
    }
}

impl Home {
    /// The token of a submission of this run: see [`Context::token`].
    pub(super) fn token(&self, what: &str) -> Token {
        Token(token_text(&self.run_id, what))
    }
}

pub(super) fn token_text(run_id: &str, what: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let readable = what.chars().map(|c| if plain(c) { c } else { '-' });
    let readable: String = readable.take(40).collect();
    format!("{run_id}.{readable}.{}", Digest::of(what).short())
}

/// A label as one folder name. `~` is in no label, so no two labels share one.
pub(super) fn folder_of(label: &Label) -> String {
    format!("{}~{}", label.package().replace('/', "~"), label.name())
}

/// The name of an attempt in tokens. `#` is in no label either.
pub(super) fn attempt_name(label: &Label, attempt: u32) -> String {
    match attempt {
        1 => folder_of(label),
        more => format!("{}#{more}", folder_of(label)),
    }
}

/// Milliseconds since the Unix epoch.
pub(super) fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// A name for a run: begins with its time, so that names sort as runs began. What ends it is drawn,
/// for processes are told apart by it, and two programs may begin in one millisecond under one
/// number: in one process, on two machines, in two containers.
pub(super) fn new_run_id() -> String {
    let ms = now_unix_ms();
    let time = UNIX_EPOCH + std::time::Duration::from_millis(ms);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    let stamp: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
    let stamp = stamp.trim_end_matches('Z');
    // Keyed by the system's random numbers, each time anew.
    let drawn = RandomState::new().build_hasher().finish();
    format!("{stamp}-{:03}-{:08x}", ms % 1000, drawn >> 32)
}

/// The last lines of a log, for people: at most `lines` and 4 KiB, without control characters.
pub(super) fn tail(log: &[u8], lines: usize) -> Vec<String> {
    let from = log.len().saturating_sub(4096);
    let text = String::from_utf8_lossy(&log[from..]);
    let clean = |line: &str| -> String {
        let line = line
            .rsplit('\r')
            .find(|part| !part.is_empty())
            .unwrap_or("");
        line.chars()
            .filter(|c| *c == '\t' || !c.is_control())
            .collect()
    };
    let mut all: Vec<String> = text.lines().map(clean).collect();
    while all.last().is_some_and(|line| line.trim().is_empty()) {
        all.pop();
    }
    all.split_off(all.len().saturating_sub(lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_different_labels_differ() {
        let folder = |text: &str| folder_of(&text.parse().unwrap());
        assert_eq!(folder("//phase2:p2-efa-4k-c1"), "phase2~p2-efa-4k-c1");
        assert_ne!(folder("//a/b:c"), folder("//a:b"));
    }

    #[test]
    fn tokens_are_short_and_differ() {
        let long = "x".repeat(300);
        let one = token_text(&new_run_id(), &format!("{long}~a,b-step-go"));
        let two = token_text(&new_run_id(), &format!("{long}~a.b-step-go"));
        assert!(one.len() <= 96, "{one}");
        assert!(
            one.chars()
                .all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c))
        );
        assert_ne!(one.rsplit('.').next(), two.rsplit('.').next());
    }

    #[test]
    fn run_ids_sort_by_time_and_are_given_once() {
        let ids: std::collections::HashSet<String> = (0..1000).map(|_| new_run_id()).collect();
        assert_eq!(ids.len(), 1000);
        let id = new_run_id();
        assert_eq!(id.find('-'), Some(15), "{id}");
        assert!(id.starts_with("20"));
    }

    #[test]
    fn tails_are_short_and_clean() {
        assert_eq!(tail(b"a\nb\n\n", 5), ["a", "b"]);
        assert_eq!(tail(b"a\nb\nc\n", 2), ["b", "c"]);
        assert_eq!(tail(b"10%\r50%\r100%\n\x1b[31mred", 5), ["100%", "[31mred"]);
        assert_eq!(tail(b"", 5), Vec::<String>::new());
        assert_eq!(tail(&[b'x'; 10_000], 3)[0].len(), 4096);
    }
}
