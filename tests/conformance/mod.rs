//! What every executor must do, as functions over the trait. A rig gives two hosts whose files
//! and processes this machine can see, so that what is claimed can be held against `/proc` and
//! the file system instead of the executor's own word.

// Every test program that includes this uses its own part of it.
#![allow(unreachable_pub, dead_code)]

pub mod hosts;
pub mod process;
pub mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use doe::exec::{Executor, Exit, Handle, HostSpec, Script, Sign, Status, Stream, Token};
use doe_cache::Digest;

/// An executor with two hosts and a folder for its work.
pub struct Rig {
    pub executor: Box<dyn Executor>,
    pub hosts: [HostSpec; 2],
    /// Network namespaces of the hosts, when they have their own.
    pub netns: Option<[PathBuf; 2]>,
    pub scratch: tempfile::TempDir,
    /// Whether its scripts may live and die with `doe`.
    pub attached: bool,
    /// What must live as long as the rig.
    pub keep: Option<Box<dyn std::any::Any + Send + Sync>>,
}

/// What a script came to.
pub struct Ran {
    pub handle: Handle,
    pub exit: Exit,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A token that nobody else uses.
pub fn token() -> Token {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // The full stop keeps it from being the beginning of another.
    Token(format!("test-{}-{count}.", std::process::id()))
}

impl Rig {
    pub fn script(&self, text: &str) -> Script {
        Script {
            name: "step-test".into(),
            text: text.into(),
            env: BTreeMap::new(),
            work: self.scratch.path().join("work"),
            timeout: Some(Duration::from_secs(120)),
            log_cap_bytes: 1 << 20,
            attached: self.attached,
            ask: Default::default(),
        }
    }

    pub async fn start(&self, script: &Script) -> Handle {
        self.executor
            .start(&self.hosts[0], script, &token())
            .await
            .unwrap()
    }

    pub async fn ended(&self, handle: &Handle) -> Exit {
        match bounded(self.executor.wait(handle)).await.unwrap() {
            Status::Exited(exit) => exit,
            other => panic!("expected an exit record, found {other:?}"),
        }
    }

    pub async fn log(&self, handle: &Handle, stream: Stream) -> Vec<u8> {
        self.executor.log(handle, stream, 0).await.unwrap()
    }

    pub async fn run(&self, script: &Script) -> Ran {
        let handle = self.start(script).await;
        let exit = self.ended(&handle).await;
        Ran {
            stdout: self.log(&handle, Stream::Stdout).await,
            stderr: self.log(&handle, Stream::Stderr).await,
            handle,
            exit,
        }
    }

    /// Listens at a port of a host's own address.
    pub fn listen(&self, host: usize, port: u16) -> std::io::Result<std::net::TcpListener> {
        let netns = self.netns.as_ref().map(|netns| netns[host].as_path());
        crate::rig::listen_in(netns, &format!("{}:{port}", self.hosts[host].address))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}

/// Nothing in the suite may wait for ever. Far above what anything needs: it is no measurement.
pub async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(90), future)
        .await
        .expect("it did not come to an end")
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..9000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came about: {what}");
}

/// Living processes whose token begins so: read straight from `/proc`, zombies left out.
pub fn carriers(token_prefix: &str) -> Vec<u32> {
    let wanted = format!("DOE_TOKEN={token_prefix}").into_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.split(|b| *b == 0).any(|v| v.starts_with(&wanted)) {
            found.push(pid);
        }
    }
    found
}

/// Waits until the watcher of an execution has looked at the clock and sleeps until it looks again,
/// 5 s later.
pub async fn watcher_sleeps(token: &Token) {
    let sleeps = |pid: u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline"));
        words.is_ok_and(|words| words.starts_with(b"sleep\x005."))
    };
    let watched = || carriers(&token.0).into_iter().any(sleeps);
    eventually("its watcher sleeps", watched).await;
}

/// Whether a process runs, judged by its state letter alone.
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A number that a script wrote into a file, once it is there.
pub async fn number_in(path: &std::path::Path) -> u32 {
    let read = || fs::read_to_string(path).ok().filter(|t| t.ends_with('\n'));
    eventually(&format!("a number in {}", path.display()), || {
        read().is_some()
    })
    .await;
    read().unwrap().trim().parse().unwrap()
}

pub async fn facts(rig: &Rig) {
    let facts = rig.executor.probe(&rig.hosts[0]).await.unwrap();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(facts["kernel"], kernel.trim());
    assert_eq!(facts["boot_id"], boot.trim());
    let cpus = fs::read_to_string("/proc/cpuinfo")
        .unwrap()
        .matches("processor\t")
        .count();
    assert_eq!(facts["cpu_count"].parse::<usize>().unwrap(), cpus);
    assert!(facts["memory_mib"].parse::<u64>().unwrap() > 0);
    for name in ["hostname", "os", "arch"] {
        assert!(!facts[name].is_empty(), "{name}");
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

pub async fn staging(rig: &Rig) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let contents: [&[u8]; 3] = [b"#!/bin/sh\necho \"staged $1\"\n", b"", &[0, 255, 10, 13]];
    let mut files = Vec::new();
    for (at, content) in contents.iter().enumerate() {
        let path = rig.path(&format!("source {at}"));
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        files.push((digest(content), path));
    }
    let stage = || rig.executor.stage(&rig.hosts[0], &files);
    let first = stage().await.unwrap();
    let inodes = |paths: &[PathBuf]| -> Vec<u64> {
        paths
            .iter()
            .map(|p| fs::metadata(p).unwrap().ino())
            .collect()
    };
    for (path, content) in first.iter().zip(contents) {
        assert_eq!(fs::read(path).unwrap(), content);
    }
    let mut script = rig.script("\"$TOOL\" tool");
    let tool = first[0].to_str().unwrap();
    script.env.insert("TOOL".into(), tool.into());
    let ran = rig.run(&script).await;
    assert_eq!(ran.exit.code, Some(0));
    assert_eq!(ran.stdout, b"staged tool\n");

    let before = inodes(&first);
    assert_eq!(stage().await.unwrap(), first);
    assert_eq!(inodes(&first), before, "present files are not sent again");

    // One is damaged, one is gone; the third stays as it is.
    fs::set_permissions(&first[0], fs::Permissions::from_mode(0o600)).unwrap();
    let mut damaged = contents[0].to_vec();
    damaged[3] ^= 1;
    fs::write(&first[0], damaged).unwrap();
    fs::remove_file(&first[1]).unwrap();
    assert_eq!(stage().await.unwrap(), first);
    for (path, content) in first.iter().zip(contents) {
        assert_eq!(fs::read(path).unwrap(), content);
    }
    assert_eq!(inodes(&first)[2], before[2]);

    fs::write(&files[2].1, b"changed").unwrap();
    fs::remove_file(&first[2]).unwrap();
    assert_eq!(stage().await.unwrap_err().code, "staged-file-changed");
    assert!(
        !first[2].exists(),
        "what is not verified never gets its name"
    );
}

pub async fn collecting(rig: &Rig) {
    let ran = rig
        .run(&rig.script("printf '\\000\\377' >result.bin; mkdir logs; echo l >logs/a.txt; ln -s /etc/passwd leak"))
        .await;
    assert!(ran.exit.success());
    let work = rig.path("work");
    let into = rig.path("into");
    let collect = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let (work, into, executor, host) =
            (work.clone(), into.clone(), &rig.executor, &rig.hosts[0]);
        async move { executor.collect(host, &work, &names, &into).await }
    };
    let got = collect(&["result.bin", "missing", "logs/a.txt"])
        .await
        .unwrap();
    assert_eq!(got.len(), 2, "{got:?}");
    assert!(got[0].ends_with("result.bin") && got[1].ends_with("logs/a.txt"));
    assert_eq!(fs::read(&got[0]).unwrap(), [0, 255]);
    assert_eq!(fs::read(&got[1]).unwrap(), b"l\n");
    for bad in ["../into/result.bin", "/etc/passwd", "", "logs/../../x"] {
        assert_eq!(
            collect(&[bad]).await.unwrap_err().code,
            "bad-output-name",
            "{bad}"
        );
    }
    assert_eq!(collect(&["leak"]).await.unwrap_err().code, "bad-output");
    assert_eq!(collect(&["logs"]).await.unwrap_err().code, "bad-output");
}

pub async fn signs(rig: &Rig) {
    let host = &rig.hosts[0];
    let look = async |sign: Sign| rig.executor.look(host, &sign).await.unwrap();
    let file = rig.path("ready file");
    assert!(!look(Sign::File(file.clone())).await);
    fs::write(&file, b"").unwrap();
    assert!(look(Sign::File(file)).await);

    let port = rig.executor.free_port(host).await.unwrap();
    let address = format!("{}:{port}", host.address);
    assert!(!look(Sign::Tcp(address.clone())).await);
    assert!(!look(Sign::Http(format!("http://{address}/"))).await);
    assert!(!look(Sign::Listen(port)).await);
    let listener = rig.listen(0, port).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(look(Sign::Listen(port)).await);
    assert!(
        listener.accept().is_err(),
        "it was looked at, not connected to"
    );
    assert!(look(Sign::Tcp(address)).await);
    drop(listener);
    let bad = Sign::Http("https://example.invalid/".into());
    assert!(rig.executor.look(host, &bad).await.is_err());
}

pub async fn ports(rig: &Rig) {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100 {
        for (at, host) in rig.hosts.iter().enumerate() {
            let port = rig.executor.free_port(host).await.unwrap();
            assert!(seen.insert(port), "{port} was handed out twice");
            drop(rig.listen(at, port).unwrap());
        }
    }
}

/// Makes a test of every function of the suite for one kind of rig. An executor has a name, and a
/// rig where there can be one.
#[macro_export]
macro_rules! conformance {
    ($executor:expr, $rig:expr) => {
        conformance!(@one $executor, $rig; facts staging collecting signs ports);
        conformance!(@one $executor, $rig; process::codes process::signals process::strictness process::times
            process::big_output process::output_below_the_cap process::binary_output
            process::followed_log process::hostile_values process::clean_environment
            process::script_with_heredoc process::refusals process::one_start_per_token
            process::concurrent_starts_of_one_token process::found_by_token process::taken_back
            process::two_hosts process::many_at_once);
        conformance!(@one $executor, $rig; tree::timeout tree::timeout_of_a_polite_script tree::leftovers_are_ended
            tree::cancel_ends_everything tree::cancel_is_polite_first tree::cancel_twice_and_late
            tree::own_group_does_not_hurt_the_logs tree::lost_leader tree::torn_record
            tree::a_stopped_tree_is_ended tree::what_runs_keeps_its_folder);
        conformance!(@one $executor, $rig; hosts::disk_full hosts::five_hundred_nodes);
    };
    (@one $executor:expr, $rig:expr; $($room:ident $(:: $name:ident)?)*) => {
        $(conformance!(@test $executor, $rig; $room $(:: $name)?);)*
    };
    (@test $executor:expr, $rig:expr; $name:ident) => {
        conformance!(@named $executor, $rig; $name, conformance::$name);
    };
    (@test $executor:expr, $rig:expr; $room:ident :: $name:ident) => {
        conformance!(@named $executor, $rig; $name, conformance::$room::$name);
    };
    (@named $executor:expr, $rig:expr; $name:ident, $function:path) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let name = stringify!($name).replace('_', " ");
            let case = $crate::rig::told::Case::of($executor, &name);
            let rig: Option<Rig> = $rig;
            match rig {
                Some(rig) => case.end($function(&rig).await),
                None => case.skip($crate::rig::NO_HOSTS),
            }
        }
    };
}
