//! A private Slurm over the hosts of a rig: a controller of its own, a `slurmd` in every namespace.
#![allow(dead_code)] // each test program uses its own part

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::rig::{Hosts, run, script};

/// See the module.
pub struct Slurm {
    // Ended before the hosts are.
    controller: Controller,
    pub hosts: Hosts,
}

struct Controller {
    dir: PathBuf,
}

impl Slurm {
    /// A cluster of so many nodes, without accounting.
    pub fn up(count: u32) -> Self {
        Self::up_with(count, &[])
    }

    /// One with accounting; it gives nodes up soon, and has a partition whose jobs preempt others.
    pub fn up_with_accounts(count: u32) -> Self {
        Self::up_with(count, &["accounts"])
    }

    fn up_with(count: u32, more: &[&str]) -> Self {
        let hosts = Hosts::up(count, None);
        let dir = hosts.dir().join("slurm");
        // As different as the networks of the rigs are.
        let port = 16_000 + 16 * (hosts.number % 1000);
        let controller = Controller { dir: dir.clone() };
        let mut up = Command::new(script("slurm-up.sh"));
        up.arg(&dir)
            .arg(count.to_string())
            .args([&hosts.prefix, &hosts.net, &port.to_string()])
            .args(more);
        run(&mut up);
        Self { controller, hosts }
    }

    pub fn config(&self) -> PathBuf {
        self.controller.dir.join("etc/slurm.conf")
    }

    /// A command of Slurm; what it printed.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let said = self.try_ask(program, arguments);
        said.unwrap_or_else(|said| panic!("{program} {arguments:?}: {said}"))
    }

    /// The same; what it complained of when it failed.
    pub fn try_ask(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program);
        command.args(arguments).env("SLURM_CONF", self.config());
        let output = command.output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn pid(&self, name: &str) -> String {
        let path = self.controller.dir.join("run").join(format!("{name}.pid"));
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    /// Kills the controller as a power cut does.
    pub fn kill_controller(&self) {
        self.end_controller("-KILL");
    }

    /// Stops the controller: it keeps what it knows.
    pub fn stop_controller(&self) {
        self.end_controller("-TERM");
    }

    /// Lets the controller answer nobody, or again.
    pub fn pause_controller(&self, pause: bool) {
        let signal = if pause { "-STOP" } else { "-CONT" };
        run(Command::new("kill").args([signal, &self.pid("slurmctld")]));
    }

    fn end_controller(&self, signal: &str) {
        let pid = self.pid("slurmctld");
        run(Command::new("kill").args([signal, &pid]));
        while Path::new("/proc").join(&pid).exists() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Takes the controller's memory away, as a lost disk does: its jobs and the last number.
    pub fn forget(&self) {
        let state = self.controller.dir.join("state");
        std::fs::remove_dir_all(&state).unwrap();
        std::fs::create_dir(&state).unwrap();
    }

    /// Waits until the controller has all nodes.
    pub fn wait_until_up(&self) {
        for _ in 0..600 {
            let states = self.ask("sinfo", &["-h", "-N", "-p", "debug", "-o", "%T"]);
            let up = |state: &str| ["idle", "mixed", "allocated"].contains(&state);
            if states.lines().count() == self.hosts.count as usize && states.lines().all(up) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("the nodes did not come up");
    }

    /// Starts the controller again.
    pub fn start_controller(&self) {
        run(Command::new("slurmctld").env("SLURM_CONF", self.config()));
    }

    /// Starts the daemon of a node again, as on a machine with a name of its own that has an empty
    /// folder in a place where others have something.
    pub fn start_daemon_elsewhere(&self, number: u32, folder: &Path) {
        let mut start = Command::new("nsenter");
        start
            .arg(format!("--net={}", self.hosts.netns(number).display()))
            .args(["unshare", "--mount", "--uts", "sh", "-c"])
            .arg("mount -t tmpfs none \"$1\" && hostname \"of-$2\" && exec slurmd -N \"$2\"")
            .arg("sh")
            .arg(folder)
            .arg(self.hosts.name(number))
            .env("SLURM_CONF", self.config());
        run(&mut start);
    }

    /// From now on jobs find the programs of the hosts first, and so the time that these tell.
    pub fn follow_clocks(&self) {
        use std::os::unix::fs::PermissionsExt;
        let bin = self.hosts.dir().join("bin");
        let prolog = self.controller.dir.join("etc/prolog.sh");
        let text = format!("#!/bin/sh\necho \"export PATH={}:$PATH\"\n", bin.display());
        std::fs::write(&prolog, text).unwrap();
        std::fs::set_permissions(&prolog, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = std::fs::read_to_string(self.config()).unwrap();
        let config = format!("{config}TaskProlog={}\n", prolog.display());
        std::fs::write(self.config(), config).unwrap();
        self.ask("scontrol", &["reconfigure"]);
    }

    /// Kills the daemon that keeps the accounts.
    pub fn kill_accounts(&self) {
        run(Command::new("kill").args(["-KILL", &self.pid("slurmdbd")]));
    }

    /// Kills the daemon of a node; the jobs there go on.
    pub fn kill_daemon(&self, number: u32) {
        let pid = self.pid(&format!("slurmd-{}", self.hosts.name(number)));
        run(Command::new("kill").args(["-KILL", &pid]));
    }

    /// Starts the daemon of a node again.
    pub fn start_daemon(&self, number: u32) {
        let mut start = Command::new("nsenter");
        start
            .arg(format!("--net={}", self.hosts.netns(number).display()))
            .args(["slurmd", "-N", &self.hosts.name(number)])
            .env("SLURM_CONF", self.config());
        run(&mut start);
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = Command::new(script("slurm-down.sh"))
            .arg(&self.dir)
            .output();
    }
}
