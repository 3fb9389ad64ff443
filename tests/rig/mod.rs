//! Hosts for tests: network namespaces of this machine, each with a real `sshd`. They and all that
//! runs in them are gone when the value is dropped.
#![allow(dead_code)] // each test program uses a part of it

pub mod told;

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// See the module.
pub struct Hosts {
    dir: tempfile::TempDir,
    pub count: u32,
    pub number: u32,
    pub prefix: String,
    pub net: String,
    private: Option<PathBuf>,
}

/// Whether this machine cannot have hosts; then it says so, and the test passes over.
pub fn skipped() -> bool {
    let may = rustix::process::geteuid().is_root()
        && Command::new("unshare")
            .args(["--net", "--mount", "true"])
            .output()
            .is_ok_and(|output| output.status.success());
    if !may {
        let note = b"SKIPPED: no right to make network namespaces and mounts here\n";
        // Not `eprintln!`, which the test harness would keep to itself.
        std::io::stderr().write_all(note).unwrap();
    }
    !may
}

/// The test that runs, as a case of an executor with this name; none where it is passed over for
/// want of hosts.
pub fn told(executor: &str, case: &str) -> Option<told::Case> {
    let case = told::Case::of(executor, case);
    match skipped() {
        true => {
            case.skip(NO_HOSTS);
            None
        }
        false => Some(case),
    }
}

/// The same for a test that stands beside the suite.
pub fn own(executor: &str) -> Option<Option<told::Case>> {
    let case = told::Case::own(executor);
    match skipped() {
        true => {
            case.into_iter().for_each(|case| case.skip(NO_HOSTS));
            None
        }
        false => Some(case),
    }
}

/// Why a test is passed over.
pub const NO_HOSTS: &str = "no right to make network namespaces and mounts here";

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/rigs")
        .join(name)
}

impl Hosts {
    /// So many hosts. With `private` every host has an empty folder of its own in that place.
    pub fn up(count: u32, private: Option<&Path>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Names and addresses that no other test, process or leftover uses.
        let number = (std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed) % 16) % 65_000;
        let hosts = Self {
            dir: tempfile::Builder::new()
                .prefix("rig")
                .tempdir_in("/tmp")
                .unwrap(),
            count,
            number,
            prefix: format!("d{number}n"),
            net: format!("10.{}.{}", 128 + number / 256 % 100, number % 256),
            private: private.map(Path::to_owned),
        };
        let mut up = Command::new(script("hosts-up.sh"));
        up.arg(hosts.dir.path())
            .arg(count.to_string())
            .args([&hosts.prefix, &hosts.net])
            .args(hosts.private.as_ref());
        run(&mut up);
        hosts
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("ssh_config")
    }

    pub fn name(&self, number: u32) -> String {
        format!("{}{number}", self.prefix)
    }

    pub fn address(&self, number: u32) -> String {
        format!("{}.{number}", self.net)
    }

    pub fn netns(&self, number: u32) -> PathBuf {
        Path::new("/run/netns").join(self.name(number))
    }

    /// Cuts the link of a host, or heals it.
    pub fn link(&self, number: u32, up: bool) {
        let state = if up { "up" } else { "down" };
        let link = format!("v-{}", self.name(number));
        run(Command::new("ip").args(["link", "set", &link, state]));
    }

    /// Sets the clocks of all hosts this many seconds ahead, for whoever asks `date` there.
    pub fn set_clocks(&self, ahead_s: i64) {
        use std::os::unix::fs::PermissionsExt;
        let date = self.dir().join("bin/date");
        let new = self.dir().join("date.new");
        // What is asked is two numbers: seconds, and where they are wanted milliseconds.
        let text = format!(
            "#!/bin/sh\ncase $1 in\n+%s%3N) ms=$(/bin/date +%s%3N); echo $((ms + {ahead_s} * 1000)) ;;\n+%s) echo $(($(/bin/date +%s) + {ahead_s})) ;;\n*) exit 1 ;;\nesac\n"
        );
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &date).unwrap();
    }

    /// Processes of a host, sshd's included.
    pub fn processes(&self, number: u32) -> Vec<u32> {
        let output = Command::new("ip")
            .args(["netns", "pids", &self.name(number)])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }

    /// Kills everything on a host at once, as a power cut does.
    pub fn kill(&self, number: u32) {
        for _ in 0..2 {
            let pids = self.processes(number);
            let pids = pids.iter().map(u32::to_string);
            let _ = Command::new("kill").arg("-KILL").args(pids).output();
        }
    }

    /// Starts the sshd of a killed host again.
    pub fn revive(&self, number: u32) {
        let mut start = Command::new(script("host-start.sh"));
        start
            .arg(self.dir.path())
            .args([&number.to_string(), &self.prefix])
            .args(self.private.as_ref());
        run(&mut start);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = Command::new(script("hosts-down.sh"))
            .arg(self.dir.path())
            .args([&self.count.to_string(), &self.prefix])
            .output();
    }
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Listens on an address of a host from within its namespace.
pub fn listen_in(netns: Option<&Path>, address: &str) -> std::io::Result<TcpListener> {
    let Some(netns) = netns else {
        return TcpListener::bind(address);
    };
    let (netns, address) = (netns.to_owned(), address.to_owned());
    // A thread of its own: it never comes back from there.
    let there = std::thread::spawn(move || {
        let file = std::fs::File::open(netns)?;
        rustix::thread::move_into_link_name_space(
            file.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )?;
        TcpListener::bind(address)
    });
    there.join().unwrap()
}
