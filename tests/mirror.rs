//! The mirror end to end: the real binary against real S3 servers, with faults between them. A
//! checkout gets from the mirror what another one measured; whatever the mirror does, a build
//! ends as it would without one, and nothing spoilt is ever served.

mod s3;
mod support;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use s3::proxy::{Fault, Proxy};
use s3::{BUCKET, Kind, Server, free_port};
use support::{Ran, Workspace, wait_for};

const SECRET: &str = "the-secret-that-nobody-may-read";

/// A checkout whose mirror is at a port, and who it says it is.
struct Checkout {
    workspace: Workspace,
    key: String,
    secret: String,
}

impl Checkout {
    fn of(workspace: Workspace, server: &Server, port: u16) -> Self {
        let checkout = Self {
            workspace,
            key: server.key.clone(),
            secret: server.secret.clone(),
        };
        checkout.mirror_at(port, "rw");
        checkout
    }

    /// The small campaign: six measurements and one analysis that reads their outputs.
    fn small(server: &Server, port: u16) -> Self {
        let workspace = Workspace::empty();
        workspace.write("rules/t.toml", SMALL_RULES);
        workspace.write("plans/t.toml", SMALL_PLAN);
        Self::of(workspace, server, port)
    }

    fn mirror_at(&self, port: u16, mode: &str) {
        let path = self.workspace.path().join("doe.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let before = text.split("[cache]").next().unwrap().trim_end();
        let text = format!(
            "{before}\n\n[cache]\nremote = \"s3://{BUCKET}/doe\"\nmode = \"local:rw,remote:{mode}\"\n\
             endpoint = \"http://127.0.0.1:{port}\"\n"
        );
        std::fs::write(path, text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.workspace.command(args);
        command
            .env("AWS_ACCESS_KEY_ID", &self.key)
            .env("AWS_SECRET_ACCESS_KEY", &self.secret)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env_remove("AWS_REGION")
            .env_remove("AWS_PROFILE")
            .env_remove("DOE_REMOTE_CACHE");
        command
    }

    fn doe(&self, args: &[&str]) -> Ran {
        Ran::of(args, self.command(args).output().unwrap())
    }

    /// Builds, with the events; it must succeed.
    fn build(&self, args: &[&str]) -> Ran {
        let args = [&["build"], args, &["--json"]].concat();
        self.doe(&args).ok()
    }

    /// Every stored object is what its name says: checked with another implementation's eyes.
    fn assert_store_is_sound(&self) {
        for (folder, cut) in [("cas", ""), ("records", ".json")] {
            for path in files(&self.workspace.path().join(".doe").join(folder)) {
                let bytes = std::fs::read(&path).unwrap();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                let parent = path
                    .parent()
                    .unwrap()
                    .file_name()
                    .unwrap()
                    .to_str()
                    .unwrap();
                let name = name.strip_suffix(cut).unwrap_or(&name).to_owned();
                let name = if folder == "cas" {
                    format!("{parent}{name}")
                } else {
                    name
                };
                assert_eq!(
                    blake3::hash(&bytes).to_hex().as_str(),
                    name,
                    "{}",
                    path.display()
                );
            }
        }
    }
}

fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return found;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

const SMALL_RULES: &str = r#"
[point]
param.n = { type = "int", doc = "which" }
roles = { client = {} }
[[point.step]]
name = "go"
role = "client"
timeout = "1m"
run = """
echo measuring {{ n }} in $$
head -c 3000 /dev/urandom | base64 > {{ out.data }}
printf '{"schema": "t-v1", "got": %d}\n' {{ n }} > {{ out.result }}
"""
[point.output]
result = { path = "r.json", schema = "t-v1" }
data = { path = "data.txt" }
[point.metric]
got = { from = "result", at = "/got", unit = "" }

[total]
kind = "analysis"
param.salt = { type = "int", default = 0, doc = "makes it another analysis" }
[[total.step]]
name = "sum"
timeout = "1m"
run = """
files=$(grep -o '"[^"]*/cas/[^"]*"' {{ inputs }} | tr -d '"')
echo {{ salt }} > {{ out.sum }}
cat $files | wc -c >> {{ out.sum }}
"""
[total.output]
sum = { path = "sum.txt" }

[large]
param.mib = { type = "int", doc = "size" }
roles = { client = {} }
[[large.step]]
name = "go"
role = "client"
timeout = "1m"
run = "head -c $(( {{ mib }} * 1048576 + 7 )) /dev/urandom > {{ out.data }}"
[large.output]
data = { path = "data.bin" }
"#;

const SMALL_PLAN: &str = r#"
[plan]
title = "small"
rules = ["t"]
[[layer]]
id = "A"
rule = "t.point"
pattern = "p-{{ n }}"
[layer.matrix]
n = [1, 2, 3, 4, 5, 6]
[[layer]]
id = "B"
rule = "t.total"
pattern = "total"
needs = ["A"]
"#;

/// Nodes of the small campaign.
const SMALL: u64 = 7;

fn counts(ran: &Ran) -> (u64, u64, u64) {
    let summary = ran.summary();
    let count = |name: &str| summary[name].as_u64().unwrap();
    (count("ok"), count("reused"), count("remote_hits"))
}

fn warnings(ran: &Ran) -> Vec<String> {
    let events = ran.events();
    let told = events
        .iter()
        .filter(|e| e["event"] == "warning" && e["code"] == "mirror");
    told.map(|e| e["message"].as_str().unwrap().to_owned())
        .collect()
}

fn sent(ran: &Ran) -> u64 {
    let events = ran.events();
    let sent = events.iter().find(|e| e["event"] == "mirror-sent");
    sent.map_or(0, |e| e["sent"].as_u64().unwrap())
}

#[test]
fn a_second_checkout_gets_the_whole_campaign_without_running_a_node() {
    let all = "//phase2:all";
    let servers: Vec<Server> = Kind::all().into_iter().map(Server::start).collect();
    let first = Checkout::of(Workspace::shipped("0.001"), &servers[0], servers[0].port);
    let built = first.build(&[all]);
    assert_eq!(counts(&built), (42, 0, 0));
    assert_eq!((sent(&built), warnings(&built)), (42, vec![]));
    let numbers = |checkout: &Checkout| checkout.doe(&["results", all, "--json"]).ok().json();

    // The first server has everything from the build, the others by an explicit push.
    for server in &servers[1..] {
        first.mirror_at(server.port, "rw");
        let mut push = first.command(&["cache", "push", "--json"]);
        push.env("AWS_ACCESS_KEY_ID", &server.key)
            .env("AWS_SECRET_ACCESS_KEY", &server.secret);
        let pushed = Ran::of(&["cache", "push"], push.output().unwrap())
            .ok()
            .json();
        assert_eq!(pushed["moved"], 42, "{:?}: {pushed}", server.kind);
    }
    for server in &servers {
        let second = Checkout::of(Workspace::shipped("0.001"), server, server.port);
        let planned = second.doe(&["plan", all, "--json"]).ok().json();
        assert_eq!(
            support::labels(&planned["reuse"]).len(),
            42,
            "{:?}",
            server.kind
        );
        assert!(
            !second.workspace.path().join(".doe/records").exists(),
            "a plan keeps nothing"
        );

        let built = second.build(&[all]);
        assert_eq!(counts(&built), (0, 42, 42), "{:?}", server.kind);
        assert_eq!(warnings(&built), [""; 0]);
        assert_eq!(built.summary()["service_starts"], 0);
        let planned = built.events().into_iter().find(|e| e["event"] == "planned");
        assert_eq!(planned.unwrap()["run"], 0);
        assert_eq!(numbers(&second), numbers(&first), "the same numbers");
        let stats = second.doe(&["cache", "stats", "--json"]).ok().json();
        assert_eq!(
            (&stats["imported"], &stats["records"]),
            (&42.into(), &42.into())
        );
        assert_eq!(
            stats["blobs"], 0,
            "blobs stay there until somebody reads them"
        );

        // Without the mirror it is all at hand, but what nobody has read yet is not.
        let again = second.build(&[all, "--remote-cache", "off"]);
        assert_eq!(counts(&again), (0, 42, 0));
        let label = "//phase2:p2-efa-4k-c1";
        let log = second
            .doe(&["logs", label, "--log", "step-measure.stdout"])
            .ok()
            .stdout;
        assert_eq!(
            log,
            first
                .doe(&["logs", label, "--log", "step-measure.stdout"])
                .ok()
                .stdout
        );
        let off = ["logs", label, "--remote-cache", "off"];
        let error = second.doe(&off).exits(4).stderr;
        assert!(error.contains("left there"), "{error}");

        // One analysis again: exactly what it reads is fetched.
        let rerun = "//phase2:p2-analysis-bimodality-detection";
        let built = second.build(&[rerun, "--rerun", "--remote-cache", "r"]);
        assert_eq!(counts(&built).0, 1);
        assert!(second.doe(&["cache", "stats", "--json"]).ok().json()["blobs"].as_u64() > Some(10));
        second.assert_store_is_sound();
    }
}

#[test]
fn faults_that_pass_cost_nothing_but_time() {
    let late = Fault::Late(Duration::from_millis(300));
    for kind in Kind::all() {
        let server = Server::start(kind);
        for (number, fault) in [
            late,
            Fault::Reset,
            Fault::ResetInside,
            Fault::Unavailable,
            Fault::Truncated,
            Fault::WrongBytes,
            Fault::WrongRequest,
        ]
        .into_iter()
        .enumerate()
        {
            // Every request is hit when it is first made, and not when it is made again.
            let seen = Mutex::new(HashSet::new());
            let proxy = Proxy::start(server.port, move |_, first| {
                match seen.lock().unwrap().insert(first.to_owned()) {
                    true => fault,
                    false => Fault::None,
                }
            });
            let change = |checkout: &Checkout| {
                // Another campaign for every fault, so that nothing is there already.
                let levels = format!("n = [1{number}1, 1{number}2, 1{number}3]");
                checkout
                    .workspace
                    .replace("plans/t.toml", "n = [1, 2, 3, 4, 5, 6]", &levels, 1);
            };
            let first = Checkout::small(&server, proxy.port);
            change(&first);
            let built = first.build(&["//t:all"]);
            assert_eq!(counts(&built), (4, 0, 0), "{kind:?} {fault:?}");
            if fault == Fault::WrongBytes {
                // Answers about entries may be misread; nothing worse.
                first.mirror_at(server.port, "rw");
                first.doe(&["cache", "push"]).ok();
            } else {
                assert_eq!(warnings(&built), [""; 0], "{kind:?} {fault:?}");
                assert_eq!(sent(&built), 4, "{kind:?} {fault:?}");
            }
            let second = Checkout::small(&server, proxy.port);
            change(&second);
            let built = second.build(&["//t:all"]);
            let (ok, reused, hits) = counts(&built);
            assert_eq!(ok + reused, 4);
            if fault != Fault::WrongBytes {
                assert_eq!(
                    (ok, hits),
                    (0, 4),
                    "{kind:?} {fault:?} {:?}",
                    warnings(&built)
                );
            }
            second.doe(&["cache", "pull", "--blobs"]);
            second.assert_store_is_sound();
            assert!(
                proxy.spoilt() > 5,
                "{kind:?} {fault:?}: the test hit nothing"
            );

            // What lies in the mirror is whole, whatever was done to it on the way.
            let third = Checkout::small(&server, server.port);
            change(&third);
            assert_eq!(
                counts(&third.build(&["//t:all"])),
                (0, 4, 4),
                "{kind:?} {fault:?}"
            );
            third.doe(&["cache", "pull", "--blobs"]).ok();
            third.assert_store_is_sound();
        }
    }
}

#[test]
fn a_mirror_that_is_always_broken_costs_a_warning_and_a_few_requests() {
    let server = Server::start(Kind::S3sFs);
    let filled = Checkout::small(&server, server.port);
    filled.build(&["//t:all"]);
    for fault in [
        Fault::Reset,
        Fault::ResetInside,
        Fault::Unavailable,
        Fault::Truncated,
        Fault::Silence,
    ] {
        let proxy = Proxy::start(server.port, move |_, _| fault);
        let checkout = Checkout::small(&server, proxy.port);
        let built = checkout.build(&["//t:all"]);
        assert_eq!(counts(&built), (SMALL, 0, 0), "{fault:?}");
        let told = warnings(&built);
        assert!(!told.is_empty() && told.len() <= 2, "{fault:?} {told:?}");
        // The breaker: what was under way when it opened, and no more.
        assert!(
            proxy.requests() <= 16 * 4 + 3,
            "{fault:?}: {}",
            proxy.requests()
        );
    }
    // Nobody listens at all.
    let checkout = Checkout::small(&server, free_port());
    let built = checkout.build(&["//t:all"]);
    assert_eq!(counts(&built), (SMALL, 0, 0));
    assert!(
        warnings(&built)[0].contains("cannot be reached"),
        "{:?}",
        warnings(&built)
    );
    // Nothing is asked when everything is at hand.
    assert_eq!(warnings(&checkout.build(&["//t:all"])), [""; 0]);
    let error = checkout.doe(&["cache", "pull"]).exits(4).stderr;
    assert!(error.contains("cannot be reached"), "{error}");
    // It comes back: what was left is sent by hand.
    checkout.mirror_at(server.port, "rw");
    let pushed = checkout.doe(&["cache", "push", "--json"]).ok().json();
    assert_eq!(pushed["moved"], SMALL);
}

#[test]
fn poison_in_the_bucket_is_refused_and_measured_again() {
    let server = Server::start(Kind::S3sFs);
    let first = Checkout::small(&server, server.port);
    first.build(&["//t:all"]);
    let record = |label: &str| {
        let rows = first
            .doe(&["cache", "ls", "--label", label, "--json"])
            .ok()
            .json();
        let digest = rows[0]["record"].as_str().unwrap().to_owned();
        let record = first.doe(&["cache", "show", &digest]).ok().json();
        (digest, record)
    };
    let object = |digest: &str| server.file(&format!("doe/cas/{}/{}", &digest[..2], &digest[2..]));
    let flip = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    // A record changed, one gone, a blob cut, one gone.
    flip(object(&record("//t:p-1").0));
    std::fs::remove_file(object(&record("//t:p-2").0)).unwrap();
    let blob = |label: &str| {
        let (_, record) = record(label);
        object(record["outputs"]["data"]["digest"].as_str().unwrap())
    };
    std::fs::write(blob("//t:p-3"), "short").unwrap();
    std::fs::remove_file(blob("//t:p-4")).unwrap();
    // The entry of one leads to the record of another.
    let (five, _) = record("//t:p-5");
    let (six, record_six) = record("//t:p-6");
    for key in ["spec_key", "action_key"] {
        let entries = server.file(&format!("doe/ac/{}", record_six[key].as_str().unwrap()));
        std::fs::rename(entries.join(&six), entries.join(&five)).unwrap();
    }
    let second = Checkout::small(&server, server.port);
    second.mirror_at(server.port, "r");
    let built = second.build(&["//t:A"]);
    assert_eq!(counts(&built), (5, 1, 1), "{:?}", warnings(&built));
    let told = warnings(&built);
    for why in ["has a content", "is not there"] {
        assert!(
            told.iter().any(|line| line.contains(why)),
            "{why}: {told:?}"
        );
    }
    second.assert_store_is_sound();

    // A blob of the right length that is not itself is noticed when it is read: the analysis
    // needs it, so the measurement is made again rather than the analysis of rubbish.
    let third = Checkout::small(&server, server.port);
    third.build(&["//t:A"]);
    let pushed = third.doe(&["cache", "push"]);
    pushed.ok();
    let label = "//t:p-5";
    flip(blob(label));
    third.workspace.replace(
        "plans/t.toml",
        "rule = \"t.total\"",
        "rule = \"t.total\"\nsettings = { salt = 1 }",
        1,
    );
    let fourth = Checkout::small(&server, server.port);
    fourth
        .workspace
        .write("plans/t.toml", &third.workspace.read("plans/t.toml"));
    let built = fourth.build(&["//t:all"]);
    let told = warnings(&built);
    assert!(
        told.iter().any(|line| line.contains("measured again")),
        "{told:?}"
    );
    let ran: Vec<String> = built
        .events()
        .iter()
        .filter(|e| e["event"] == "node-finished" && e["outcome"] == "ok")
        .map(|e| e["label"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ran, [label, "//t:total"]);
    fourth.assert_store_is_sound();
}

/// What was read anew out of it elsewhere is in the mirror under the key that is asked for.
#[test]
fn a_refused_execution_does_not_come_back_from_the_mirror() {
    let server = Server::start(Kind::S3sFs);
    let [first, second] = [(); 2].map(|()| Checkout::small(&server, server.port));
    first.build(&["//t:p-1"]);
    assert_eq!(counts(&second.build(&["//t:p-1"])), (0, 1, 1));
    let words = [
        "cache",
        "quarantine",
        "//t:p-1",
        "--reason",
        "the fan was off",
    ];
    second.doe(&words).ok();
    let judged = |checkout: &Checkout| {
        let workspace = &checkout.workspace;
        workspace.replace("rules/t.toml", "unit = \"\"", "unit = \"1\"", 1);
    };
    judged(&first);
    let built = first.build(&["//t:p-1"]);
    assert_eq!((counts(&built), sent(&built)), ((0, 1, 0), 1));
    judged(&second);
    let planned = second.doe(&["plan", "//t:p-1", "--json"]).ok().json();
    assert_eq!(planned["run"].as_array().unwrap().len(), 1, "{planned}");
    assert_eq!(counts(&second.build(&["//t:p-1"])), (1, 0, 0));
    let pulled = second.doe(&["cache", "pull", "--json"]).ok().json();
    assert_eq!(pulled["moved"], 0, "{pulled}");
    assert_eq!(counts(&second.build(&["//t:p-1"])), (0, 1, 0));
    second.doe(&["cache", "verify"]).ok();
}

/// What comes to stand only while a build runs may have its outputs in the mirror alone.
#[test]
fn an_input_that_comes_to_stand_in_a_build_is_fetched() {
    let server = Server::start(Kind::S3sFs);
    let [first, second] = [(); 2].map(|()| {
        let checkout = Checkout::small(&server, server.port);
        let workspace = &checkout.workspace;
        let random = "head -c 3000 /dev/urandom | base64";
        workspace.replace("rules/t.toml", random, "seq 900", 1);
        let top = "[[layer]]\nid = \"C\"\nrule = \"t.total\"\nneeds = [\"total\"]\n\
                   [[layer.pattern]]\nid = \"top\"\nsettings = { salt = 1 }\n";
        workspace.write("plans/t.toml", &(workspace.read("plans/t.toml") + top));
        checkout
    });
    first.build(&["//..."]);
    assert_eq!(counts(&second.build(&["//..."])), (0, SMALL + 1, SMALL + 1));
    let workspace = &second.workspace;
    workspace.replace("rules/t.toml", "echo measuring", "echo Measuring", 1);
    workspace.replace("plans/t.toml", "salt = 1", "salt = 2", 1);
    assert_eq!(counts(&second.build(&["//..."])), (SMALL, 1, 0));
    second.assert_store_is_sound();
    second.doe(&["cache", "verify"]).ok();
}

#[test]
fn large_blobs_go_in_parts_and_come_back_whole() {
    for kind in Kind::all() {
        let server = Server::start(kind);
        let plan = "[plan]\ntitle = \"large\"\nrules = [\"t\"]\n[[layer]]\nid = \"L\"\n\
                    rule = \"t.large\"\npattern = \"p-{{ mib }}\"\n[layer.matrix]\nmib = [8, 21]\n";
        // One part in four is reset: it is sent again with its whole object.
        let proxy = Proxy::start(server.port, |number, first| {
            match first.contains("partNumber=2") && number % 4 == 0 {
                true => Fault::Reset,
                false => Fault::None,
            }
        });
        let first = Checkout::small(&server, proxy.port);
        first.workspace.write("plans/t.toml", plan);
        let built = first.build(&["//t:all"]);
        assert_eq!(
            (counts(&built).0, sent(&built)),
            (2, 2),
            "{:?}",
            warnings(&built)
        );
        let second = Checkout::small(&server, server.port);
        second.workspace.write("plans/t.toml", plan);
        let pulled = second
            .doe(&["cache", "pull", "--blobs", "--json"])
            .ok()
            .json();
        assert_eq!(pulled["moved"], 2);
        assert!(
            pulled["received_bytes"].as_u64() > Some(29 << 20),
            "{pulled}"
        );
        second.assert_store_is_sound();
        assert_eq!(
            counts(&second.build(&["//t:all", "--remote-cache", "off"])),
            (0, 2, 0)
        );
    }
}

/// Several checkouts send different results of the same campaign at once. However many of the
/// servers' conditional puts win, everything that is served afterwards is whole.
#[test]
fn writers_at_the_same_time_do_no_harm() {
    for kind in Kind::all() {
        let server = Server::start(kind);
        let checkouts: Vec<Checkout> = (0..6)
            .map(|_| Checkout::small(&server, server.port))
            .collect();
        for checkout in &checkouts {
            checkout.build(&["//t:all", "--remote-cache", "off"]);
        }
        let pushes: Vec<_> = checkouts
            .iter()
            .map(|checkout| checkout.command(&["cache", "push"]).spawn().unwrap())
            .collect();
        for mut push in pushes {
            assert!(push.wait().unwrap().success(), "{kind:?}");
        }
        let reader = Checkout::small(&server, server.port);
        let built = reader.build(&["//t:all"]);
        assert_eq!(
            (counts(&built).0, warnings(&built)),
            (0, vec![]),
            "{kind:?}"
        );
        // Outputs are fetched by whoever asks for one; where a result came from is told.
        let listed = reader.doe(&["cache", "ls", "--json"]).ok().json();
        let record = listed[0]["record"].as_str().unwrap();
        let why = reader.doe(&["cache", "why", record, "--json"]).ok().json();
        assert_eq!(why["mirror"], format!("s3://{BUCKET}/doe"), "{kind:?}");
        let shown = reader.doe(&["cache", "show", record]).ok().json();
        let outputs = shown["outputs"].as_object().unwrap().values();
        for output in outputs {
            let blob = output["digest"].as_str().unwrap();
            let shown = reader.doe(&["cache", "show", blob, "--json"]).ok().json();
            assert_eq!(shown["size_bytes"], output["size_bytes"], "{kind:?}");
        }
        let bundle = reader.workspace.path().join("all.tar.gz");
        let export = ["cache", "export", "//t:all", "--json", "-o"];
        let export = [&export[..], &[bundle.to_str().unwrap()]].concat();
        let lacking = reader.doe(&export).exits(2).stderr;
        assert!(lacking.contains("cache pull --blobs"), "{lacking}");
        // Every result of every writer is there, not only the last one's.
        let pulled = reader.doe(&["cache", "pull", "--blobs", "--json"]).ok();
        assert_eq!(pulled.json()["failed"].as_array().unwrap().len(), 0);
        let exported = reader.doe(&export).ok().json();
        assert_eq!(exported["left_out"], serde_json::json!([]), "{exported}");
        let stats = reader.doe(&["cache", "stats", "--json"]).ok().json();
        assert_eq!(stats["records"], 6 * SMALL, "{kind:?}");
        reader.assert_store_is_sound();
    }
}

#[test]
fn credentials_are_in_no_message_and_no_file() {
    let server = Server::start(Kind::S3sFs);
    let mut checkout = Checkout::small(&server, server.port);
    for (key, secret) in [
        (server.key.as_str(), SECRET),
        ("AKIANOBODY", server.secret.as_str()),
        (server.key.as_str(), server.secret.as_str()),
    ] {
        checkout.key = key.to_owned();
        checkout.secret = secret.to_owned();
        let good = secret != SECRET && key != "AKIANOBODY";
        let built = checkout.build(&["//t:all", "--rerun"]);
        let told = warnings(&built);
        assert_eq!(told.is_empty(), good, "{told:?}");
        let push = checkout.doe(&["cache", "push"]);
        assert_eq!(push.code, if good { 0 } else { 4 }, "{}", push.stderr);
        let mut texts = vec![built.stdout.clone(), built.stderr.clone()];
        texts.extend([push.stdout, push.stderr]);
        for path in files(&checkout.workspace.path().join(".doe")) {
            let bytes = std::fs::read(path).unwrap();
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        for text in &texts {
            assert!(!text.contains(secret), "a secret in\n{text}");
            assert!(!text.contains("AKIANOBODY"), "a key in\n{text}");
        }
    }
    // None at all: a warning that says what is missing, and the build goes on.
    let mut build = checkout.command(&["build", "//t:all", "--rerun", "--json"]);
    build
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    let built = Ran::of(&["build"], build.output().unwrap()).ok();
    let told = warnings(&built);
    assert!(
        told.iter().all(|line| line.contains("credentials")),
        "{told:?}"
    );
    assert!(!told.is_empty());
}

#[test]
fn modes_are_kept() {
    let server = Server::start(Kind::MiniStack);
    let checkout = Checkout::small(&server, server.port);
    checkout.mirror_at(server.port, "r");
    let built = checkout.build(&["//t:all"]);
    assert_eq!((counts(&built), sent(&built)), ((SMALL, 0, 0), 0));
    let error = checkout.doe(&["cache", "push"]).exits(2).stderr;
    assert!(error.contains("may only be read"), "{error}");
    let fresh = Checkout::small(&server, server.port);
    assert_eq!(
        counts(&fresh.build(&["//t:all"])),
        (SMALL, 0, 0),
        "nothing was sent"
    );

    // The command line is above the environment, which is above the file.
    let other = Checkout::small(&server, server.port);
    let mut build = other.command(&["build", "//t:all", "--json"]);
    let built = Ran::of(
        &["build"],
        build.env("DOE_REMOTE_CACHE", "off").output().unwrap(),
    )
    .ok();
    assert_eq!(counts(&built), (SMALL, 0, 0));
    let third = Checkout::small(&server, server.port);
    let mut build = third.command(&["build", "//t:all", "--json", "--remote-cache", "r"]);
    let built = Ran::of(
        &["build"],
        build.env("DOE_REMOTE_CACHE", "off").output().unwrap(),
    )
    .ok();
    assert_eq!(counts(&built), (0, SMALL, SMALL));
    other.doe(&["build", "--remote-cache", "w"]).exits(2);

    // Without a mirror there is nothing to switch on.
    let path = other.workspace.path().join("doe.toml");
    std::fs::write(path, "").unwrap();
    let error = other
        .doe(&["build", "//t:all", "--remote-cache", "rw"])
        .exits(2)
        .stderr;
    assert!(error.contains("names no mirror"), "{error}");
}

#[test]
fn a_killed_run_leaves_a_mirror_that_is_whole() {
    let server = Server::start(Kind::S3sFs);
    // Slow enough that the kill comes while results are under way.
    let proxy = Proxy::start(server.port, |_, _| Fault::Late(Duration::from_millis(150)));
    let first = Checkout::small(&server, proxy.port);
    let mut child = first.command(&["build", "//t:all"]).spawn().unwrap();
    wait_for("something to be sent", Duration::from_secs(120), || {
        (!files(&server.file("doe/cas")).is_empty()).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let second = Checkout::small(&server, server.port);
    second.mirror_at(server.port, "r");
    let built = second.build(&["//t:all"]);
    assert_eq!(warnings(&built), [""; 0], "what has an entry is complete");
    second.assert_store_is_sound();
    first.workspace.assert_nothing_runs();
}
