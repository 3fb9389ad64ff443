//! What a service leaves on its host: looked at before it is started and after it was stopped, with
//! real processes and the real binary. Where something is left, nothing more is begun.

mod support;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use support::{Ran, Workspace};

struct Lab(Workspace);

impl Lab {
    /// `script` runs in the service, `released` is what its rule says of its host, `platform` is
    /// more of the platform.
    fn new(script: &str, released: &str, platform: &str) -> Self {
        let workspace = Workspace::empty();
        let scratch = workspace.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        let scratch = scratch.to_str().unwrap();
        workspace.write(
            "doe.toml",
            &format!(
                "[workspace]\nplatform = \"lab\"\n[platform.lab]\n{platform}\n\
                 roles = {{ \"*\" = \"h1\", second = \"h2\" }}\n\
                 [platform.lab.host.h1]\naddress = \"127.0.0.1\"\ngpus = 1\n\
                 [platform.lab.host.h2]\naddress = \"127.0.0.2\"\ngpus = 1\n"
            ),
        );
        let rules = RULES
            .replace("SCRIPT", script)
            .replace("RELEASED", released)
            .replace("SCRATCH", scratch);
        workspace.write("rules/t.toml", &rules);
        workspace.write("plans/t.toml", PLAN);
        Self(workspace)
    }

    fn scratch(&self, name: &str) -> PathBuf {
        self.0.path().join("scratch").join(name)
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.scratch(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn build(&self) -> Ran {
        self.0.doe(&["build", "//t:all", "--json"])
    }

    /// Opens the port that a service asks for and holds it until this is dropped, as a container
    /// does that a service had started by a daemon: no child of it, so its end does not end that.
    fn daemon(&self) -> Daemon {
        let (ask, there) = (self.scratch("ask"), self.scratch("there"));
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let thread = std::thread::spawn(move || {
            let mut held = None;
            while !stop.load(Ordering::Relaxed) {
                let port = std::fs::read_to_string(&ask).unwrap_or_default();
                if let (None, Ok(port)) = (&held, port.trim().parse::<u16>()) {
                    held = Some(TcpListener::bind(("127.0.0.1", port)).unwrap());
                    std::fs::write(&there, "").unwrap();
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Daemon(over, Some(thread))
    }
}

struct Daemon(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().map(JoinHandle::join);
    }
}

/// A service on the GPU of the first host, and a measurement on the second host.
const RULES: &str = r#"
[served]
param.size = { type = "int", default = 1, doc = "configuration of the service" }
roles = { first = { gpus = 1 } }
[[served.service]]
name = "server"
role = "first"
ports = { http = 8000 }
stop_grace = "2s"
RELEASED
ready = { file = "{{ work }}/up", within = "30s" }
run = '''
echo {{ size }} >> SCRATCH/starts
SCRIPT
touch {{ work }}/up
while sleep 0.05; do test ! -e SCRATCH/die; done
'''
[[served.step]]
name = "go"
role = "first"
timeout = "1m"
run = "echo '{}' > {{ out.result }}"
[served.output]
result = { path = "r.json" }

[plain]
roles = { first = {} }
[[plain.step]]
name = "go"
role = "first"
timeout = "1m"
run = "echo plain >> SCRATCH/plain; echo '{}' > {{ out.result }}"
[plain.output]
result = { path = "r.json" }

[beside]
roles = { second = {} }
[[beside.step]]
name = "go"
role = "second"
timeout = "1m"
run = "while test ! -e SCRATCH/go; do sleep 0.02; done; echo '{}' > {{ out.result }}"
[beside.output]
result = { path = "r.json" }
"#;

/// Two configurations of the service that need the one GPU, then something on the same host, then
/// something that waits for that on the other.
const PLAN: &str = r#"[plan]
title = "test"
rules = ["t"]
[[layer]]
id = "A"
rule = "t.served"
pattern = "a{{ size }}"
retry = { times = 2, base = "10ms" }
[layer.matrix]
size = [1, 2]
[[layer]]
id = "B"
rule = "t.plain"
pattern = "b"
gate = ["a1"]
[[layer]]
id = "C"
rule = "t.beside"
pattern = "c"
"#;

/// Has its port opened by somebody else.
const ASKS_FOR_ITS_PORT: &str = "\
if ! test -e SCRATCH/clean; then
  echo {{ self.port.http }} > SCRATCH/ask
  while ! test -e SCRATCH/there; do sleep 0.02; done
fi";

/// The end of a node: outcome, class, reason.
fn end(events: &[Value], label: &str) -> (String, String, String) {
    let node = events
        .iter()
        .find(|e| e["event"] == "node-finished" && e["label"] == label)
        .unwrap_or_else(|| panic!("{label} has no end"));
    let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
    (text("outcome"), text("class"), text("reason"))
}

fn tainted(events: &[Value]) -> Vec<String> {
    let warnings = events
        .iter()
        .filter(|e| e["event"] == "warning" && e["code"] == "host-tainted");
    warnings
        .map(|e| e["message"].as_str().unwrap().to_owned())
        .collect()
}

/// The host of `a1` is not used for anything after it; the other one is.
fn assert_only_the_first_ran(lab: &Lab, ran: &Ran, why: &str) {
    let events = ran.events();
    assert_eq!(end(&events, "//t:a1").0, "ok");
    assert_eq!(end(&events, "//t:c").0, "ok");
    for label in ["//t:a2", "//t:b"] {
        let (outcome, class, reason) = end(&events, label);
        match outcome.as_str() {
            // It had its host already and waited for its service.
            "failed" => assert_eq!(class, "not-released"),
            other => assert_eq!(other, "blocked", "{label}: {reason}"),
        }
        assert!(reason.starts_with("host `h1` is not free: "), "{reason}");
        assert!(reason.contains(why), "{reason}");
    }
    let told = tainted(&events);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("host `h1` is not used any more in this build: "));
    assert!(told[0].contains(why) && told[0].contains("build again"));
    let stopped: Vec<&Value> = events
        .iter()
        .filter(|e| e["event"] == "service" && e["state"] == "stopped")
        .collect();
    assert_eq!(stopped.len(), 1);
    assert!(stopped[0]["reason"].as_str().unwrap().contains(why));
    assert_eq!(lab.lines("starts"), ["1"]);
    assert_eq!(lab.lines("plain"), Vec::<String>::new());
    assert_eq!(ran.summary()["service_starts"], 1);
    assert!(
        !events.iter().any(|e| e["event"] == "retrying"),
        "there is nothing to wait for"
    );
}

#[test]
fn a_port_that_stays_open_bars_the_host_until_it_is_gone() {
    let lab = Lab::new(ASKS_FOR_ITS_PORT, "", "dynamic_ports = true");
    std::fs::write(lab.scratch("go"), "").unwrap();
    let daemon = lab.daemon();
    let ran = lab.build().exits(1);
    assert_only_the_first_ran(
        &lab,
        &ran,
        "(`http`) stayed in use for 5s after service `server` was stopped",
    );
    // Once it is gone, the next build does the rest and what is at hand stays.
    drop(daemon);
    std::fs::write(lab.scratch("clean"), "").unwrap();
    let summary = lab.build().ok().summary();
    assert_eq!(
        (summary["ok"].clone(), summary["reused"].clone()),
        (2.into(), 2.into())
    );
    lab.0.assert_nothing_runs();
}

#[test]
fn what_is_never_released_bars_the_host_and_is_said_in_its_own_words() {
    let released = "released = { run = \"test ! -e SCRATCH/held || { echo 41 GiB are in use; exit 1; }\", within = \"5s\" }";
    let lab = Lab::new("touch SCRATCH/held", released, "dynamic_ports = true");
    std::fs::write(lab.scratch("go"), "").unwrap();
    let ran = lab.build().exits(1);
    let why = "`released` did not hold within 5s (it said: 41 GiB are in use) after service `server` was stopped";
    assert_only_the_first_ran(&lab, &ran, why);
    // The next build looks before it starts anything.
    let events = lab.build().exits(1).events();
    let (outcome, class, reason) = end(&events, "//t:a2");
    assert_eq!(
        (outcome.as_str(), class.as_str()),
        ("failed", "not-released")
    );
    assert_eq!(
        reason,
        "host `h1` is not free: `released` did not hold within 5s (it said: 41 GiB are in use) before service `server` was to be started"
    );
    assert_eq!(lab.lines("starts"), ["1"]);
    assert_eq!(tainted(&events).len(), 1);
    std::fs::remove_file(lab.scratch("held")).unwrap();
    // The service makes it again, but now nothing comes after it.
    let events = lab.build().exits(0).events();
    assert_eq!(end(&events, "//t:a2").0, "ok");
    lab.0.assert_nothing_runs();
}

#[test]
fn what_is_released_late_is_waited_for() {
    let released = "released = { run = '''test ! -e SCRATCH/held && exit\n\
                    echo try >> SCRATCH/tries\ntest $(wc -l < SCRATCH/tries) -ge 3\nrm SCRATCH/held SCRATCH/tries''', within = \"1m\" }";
    let script = "test ! -e SCRATCH/held\ntouch SCRATCH/held";
    let lab = Lab::new(script, released, "dynamic_ports = true");
    std::fs::write(lab.scratch("go"), "").unwrap();
    let ran = lab.build().ok();
    assert_eq!(ran.summary()["ok"], 4);
    assert_eq!(tainted(&ran.events()), Vec::<String>::new());
    assert_eq!(lab.lines("starts").len(), 2);
    assert!(!lab.scratch("held").exists(), "after the last one too");
    lab.0.assert_nothing_runs();
}

#[test]
fn a_dead_service_bars_its_host_as_a_stopped_one_does() {
    let lab = Lab::new(ASKS_FOR_ITS_PORT, "", "dynamic_ports = true");
    let rules = lab.0.read("rules/t.toml");
    let waits =
        "touch SCRATCH/die; exec sleep 60".replace("SCRATCH", lab.scratch("").to_str().unwrap());
    let rules = rules.replacen(
        "run = \"echo '{}'",
        &format!("run = \"{waits}; echo '{{}}'"),
        1,
    );
    lab.0.write("rules/t.toml", &rules);
    std::fs::write(lab.scratch("go"), "").unwrap();
    let _daemon = lab.daemon();
    let events = lab.build().exits(1).events();
    let (outcome, class, _) = end(&events, "//t:a1");
    assert_eq!(
        (outcome.as_str(), class.as_str()),
        ("failed", "service-died")
    );
    let (_, _, reason) = end(&events, "//t:a2");
    assert!(reason.starts_with("host `h1` is not free: "), "{reason}");
    assert_eq!(tainted(&events).len(), 1);
    assert_eq!(
        lab.lines("starts"),
        ["1"],
        "not started once more beside what it left"
    );
    assert_eq!(end(&events, "//t:c").0, "ok");
}

#[test]
fn a_port_that_somebody_else_has_is_found_before_the_service_is_started() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let lab = Lab::new("", "", "");
    lab.0
        .replace("rules/t.toml", "http = 8000", &format!("http = {port}"), 1);
    std::fs::write(lab.scratch("go"), "").unwrap();
    let events = lab.build().exits(1).events();
    let reason = format!(
        "host `h1` is not free: port {port} (`http`) stayed in use for 5s before service `server` was to be started"
    );
    let (outcome, class, why) = end(&events, "//t:a1");
    assert_eq!(
        (outcome.as_str(), class.as_str()),
        ("failed", "not-released")
    );
    assert_eq!(why, reason);
    assert_eq!(
        end(&events, "//t:a2"),
        ("blocked".into(), String::new(), reason)
    );
    assert_eq!(lab.lines("starts"), Vec::<String>::new());
    // On the other host nothing is wrong.
    assert_eq!(end(&events, "//t:c").0, "ok");
    drop(taken);
    assert_eq!(lab.build().ok().summary()["ok"], 3);
}

/// The shipped rules look at the memory of the GPUs that a server needs.
#[test]
fn a_shipped_server_is_not_started_on_gpus_that_are_in_use() {
    let workspace = Workspace::shipped("0.001");
    let plan = "[plan]\ntitle = \"one\"\nrules = [\"serving\"]\n[[layer]]\nid = \"One\"\nrule = \"serving.unified\"\n\
                [layer.settings]\nmodel = \"Qwen/Qwen2.5-7B-Instruct\"\nmax_model_len = 4096\n\
                prompt_tokens = 128\nmax_tokens = 4\nconcurrency = 1\nwarmup_iterations = 0\nmeasurement_iterations = 1\n\
                tp_size = 4\n[[layer.pattern]]\nid = \"one\"\n";
    workspace.write("plans/one.toml", plan);
    let sim = |fail: &str| {
        let text = format!("[platform.sim]\nsim = {{ time_scale = 0.001, fail = [{fail}] }}\n");
        workspace.write("doe.toml", &text);
        workspace.doe(&["build", "//one:all", "--json"])
    };
    workspace.replace(
        "rules/serving.toml",
        "within = \"1m\", run",
        "within = \"5s\", run",
        3,
    );
    let events = sim("\"nvidia-smi:used-mib=41000\"").exits(1).events();
    let (outcome, class, reason) = end(&events, "//one:one");
    assert_eq!(
        (outcome.as_str(), class.as_str()),
        ("failed", "not-released")
    );
    assert_eq!(
        reason,
        "host `node1` is not free: `released` did not hold within 5s \
         (it said: 0 GPUs have less than 1 GiB in use, 4 are needed) before service `vllm` was to be started"
    );
    assert_eq!(tainted(&events).len(), 1);
    assert_eq!(sim("").ok().summary()["ok"], 1);
    workspace.assert_nothing_runs();
}
