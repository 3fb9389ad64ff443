//! One plan through every executor, by the real program: services on two hosts whose steps know each
//! other's addresses, a client that is killed in the middle, and values of a plan that mean something
//! to every shell on their way.

#[cfg(feature = "aws")]
mod aws_endpoint;
#[cfg(feature = "aws")]
#[path = "rig/cloud.rs"]
mod cloud;
mod rig;
#[cfg(feature = "aws")]
mod s3;
#[path = "rig/slurm.rs"]
mod slurm;
mod support;

use std::time::Duration;

use doe_cache::Store;
use rig::told::Case;
use rig::{Hosts, NO_HOSTS};
use support::{Ran, Workspace, wait_for};

const LONG: Duration = Duration::from_secs(400);

/// What a plan may hold. TOML takes these as JSON writes them.
const VALUES: [&str; 14] = [
    "",
    "'",
    "''\"\"``\\'",
    "$(touch pwned) `touch pwned` ${HOME} $HOME $$",
    "a\nb\n\n",
    "\n",
    "\\ \\n \\\\ %s %n \\0",
    "; touch pwned & | > file < file",
    "* ? [a-z] ~ ! # {a,b} ~root",
    "\t \r\n\u{1}\u{1b}[31m",
    "Grüße 測定 🚀 \u{202e}abc e\u{301}",
    "-n",
    "--help -- -",
    "{{parameters}} @left.ip@ %h $1 doe=a=b=",
];

/// Every value as a word of the script, in a list, and in the environment.
fn values_rule() -> String {
    let mut rule = "[values]\nroles = { left = {} }\nparam.all = { type = \"list\", of = \"str\", doc = \"all\" }\n".to_owned();
    let mut run = "touch here\n{\n".to_owned();
    for (at, value) in VALUES.iter().enumerate() {
        rule.push_str(&format!(
            "param.v{at} = {{ type = \"str\", doc = \"a value\" }}\nenv.VALUE_{at} = \"{{{{ v{at} }}}}\"\n"
        ));
        run.push_str(&format!("printf '%s\\0' {{{{ v{at} }}}}\n"));
        // What is empty is not set.
        if !value.is_empty() {
            run.push_str(&format!("printf '%s\\0' \"$VALUE_{at}\"\n"));
        }
    }
    run.push_str("printf '%s\\0' {{ all }}\n} > {{ out.said }}\nls > {{ out.files }}\n");
    rule.push_str(&format!(
        "[[values.step]]\nname = \"say\"\nrole = \"left\"\ntimeout = \"1m\"\nrun = '''\n{run}'''\n\
         [values.output]\nsaid = {{ path = \"said\" }}\nfiles = {{ path = \"files\" }}\n"
    ));
    rule
}

const PAIR: &str = r#"
[pair]
roles = { left = {}, right = {} }
[[pair.service]]
name = "east"
role = "left"
ports = { http = 8100 }
stop_grace = "1s"
run = "exec python3 SCRATCH/serve.py {{ self.ip }} {{ self.port.http }} SCRATCH/east"
ready = { http = "http://{{ self.ip }}:{{ self.port.http }}/", within = "1m" }
[[pair.service]]
name = "west"
role = "right"
ports = { http = 8200 }
stop_grace = "1s"
run = "exec python3 SCRATCH/serve.py {{ self.ip }} {{ self.port.http }} SCRATCH/west"
ready = { http = "http://{{ self.ip }}:{{ self.port.http }}/", within = "1m" }
[[pair.step]]
name = "leftwards"
role = "right"
timeout = "1m"
run = """
echo run >> SCRATCH/leftwards
curl -sS --noproxy '*' --interface {{ self.ip }} http://{{ service.east.ip }}:{{ service.east.port.http }}/
echo {{ left.ip }} {{ left.host }}
"""
[[pair.step]]
name = "rightwards"
role = "left"
timeout = "1m"
run = """
echo run >> SCRATCH/rightwards
curl -sS --noproxy '*' --interface {{ self.ip }} http://{{ service.west.ip }}:{{ service.west.port.http }}/
echo {{ right.ip }} {{ right.host }}
"""
[[pair.step]]
name = "hold"
role = "left"
timeout = "10m"
run = """
echo run >> SCRATCH/hold
while ! test -e SCRATCH/go; do sleep 0.05; done
curl -sS --noproxy '*' http://{{ service.west.ip }}:{{ service.west.port.http }}/ > {{ out.result }}
"""
[pair.output]
result = { path = "r.txt" }
"#;

/// Says to whoever asks where it is asked and where from.
const SERVE: &str = r#"
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{sys.argv[1]} hears {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

open(sys.argv[3], "a").write("run\n")
ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"#;

/// Where the two roles are: names and addresses.
struct Places {
    names: [String; 2],
    addresses: [String; 2],
}

impl Places {
    fn of(hosts: &Hosts) -> Self {
        Self {
            names: [1, 2].map(|number| hosts.name(number)),
            addresses: [1, 2].map(|number| hosts.address(number)),
        }
    }

    /// The platform `two`, whose table begins so; `named` is what tells each host beside its address.
    fn platform(&self, table: &str, named: [String; 2]) -> String {
        let [left, right] = &self.names;
        let mut text = format!(
            "[workspace]\nplatform = \"two\"\nsurvive = \"5m\"\n[platform.two]\ndynamic_ports = true\n\
             roles = {{ \"*\" = \"{left}\", right = \"{right}\" }}\n{table}\n"
        );
        for ((name, address), named) in self.names.iter().zip(&self.addresses).zip(named) {
            text.push_str(&format!(
                "[platform.two.host.{name}]\naddress = \"{address}\"\n{named}"
            ));
        }
        text
    }
}

fn workspace(platform: &str) -> Workspace {
    let workspace = Workspace::empty();
    let scratch = workspace.path().join("scratch");
    let pair = PAIR.replace("SCRATCH", scratch.to_str().unwrap());
    workspace.write("scratch/serve.py", SERVE);
    workspace.write("rules/t.toml", &format!("{}{pair}", values_rule()));
    workspace.write("doe.toml", platform);
    let mut plan = "[plan]\ntitle = \"t\"\nrules = [\"t\"]\n\
        [[layer]]\nid = \"L1\"\nrule = \"t.pair\"\npattern = \"pair\"\nestimate = \"1s\"\n\
        [[layer]]\nid = \"L2\"\nrule = \"t.values\"\npattern = \"values\"\nestimate = \"1s\"\n[layer.settings]\n"
        .to_owned();
    for (at, value) in VALUES.iter().enumerate() {
        plan.push_str(&format!("v{at} = {}\n", serde_json::json!(value)));
    }
    plan.push_str(&format!("all = {}\n", serde_json::json!(VALUES)));
    workspace.write("plans/t.toml", &plan);
    workspace
}

fn lines(workspace: &Workspace, file: &str) -> usize {
    let text = std::fs::read_to_string(workspace.path().join("scratch").join(file));
    text.unwrap_or_default().lines().count()
}

/// The cases of an executor; none where there are no hosts.
fn cases(executor: &str) -> Option<[Case; 4]> {
    let cases = [
        "service and steps",
        "two roles with addresses of each other",
        "killed client and re-attach",
        "hostile values of a plan",
    ];
    let cases = cases.map(|case| Case::of(executor, case));
    if executor != "local" && rig::skipped() {
        cases.into_iter().for_each(|case| case.skip(NO_HOSTS));
        return None;
    }
    Some(cases)
}

fn goes_through(platform: &str, places: &Places, cases: [Case; 4]) {
    let [served, addresses, killed, hostile] = cases;
    let workspace = workspace(platform);
    let build = ["build", "//t:pair", "--json"];
    let (mut child, _) = workspace.spawn(&build);
    wait_for("the last step", LONG, || {
        (lines(&workspace, "hold") > 0).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let left = workspace.doe(&["jobs", "--json"]).ok().json();
    assert_eq!(left.as_array().unwrap().len(), 3, "{left}");
    // What the first one left is the second one's, and ends in its hands.
    let (mut child, out) = workspace.spawn(&build);
    wait_for("the second doe", LONG, || {
        let jobs = workspace.doe(&["jobs", "--json"]).ok().json();
        let jobs = jobs.as_array().unwrap();
        (jobs.len() == 3 && jobs.iter().all(|job| job["doe_pid"] == child.id())).then_some(())
    });
    workspace.write("scratch/go", "");
    let status = child.wait().unwrap();
    assert!(
        status.success(),
        "{}",
        std::fs::read_to_string(out).unwrap()
    );
    let ran = Ran::of_files(&workspace);
    assert_eq!(ran.summary()["ok"], 1, "{}", ran.summary());
    assert_eq!(attached(&ran), 3, "two services and a step");
    for file in ["east", "west", "leftwards", "rightwards", "hold"] {
        assert_eq!(lines(&workspace, file), 1, "{file}");
    }
    killed.end(());
    let said = |step: &str| {
        let log = format!("step-{step}.stdout");
        workspace
            .doe(&["logs", "//t:pair", "--log", &log])
            .ok()
            .stdout
    };
    let [left, right] = &places.addresses;
    let told = |there: usize, here: &str| {
        let (name, address) = (&places.names[there], &places.addresses[there]);
        format!("{address} hears {here}\n{address} {name}\n")
    };
    assert_eq!(said("leftwards"), told(0, right));
    assert_eq!(said("rightwards"), told(1, left));
    addresses.end(());
    let jobs = workspace.doe(&["jobs", "--json"]).ok().json();
    assert_eq!(jobs, serde_json::json!([]), "the services were stopped");
    served.end(());

    let ran = workspace.doe(&["build", "//t:values", "--json"]).ok();
    assert_eq!(ran.summary()["ok"], 1, "{}", ran.summary());
    let (said, files) = (output(&workspace, "said"), output(&workspace, "files"));
    let mut parts = said.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    for value in VALUES {
        assert_eq!(parts.next().unwrap(), value, "as a word");
        if !value.is_empty() {
            assert_eq!(parts.next().unwrap(), value, "in the environment");
        }
    }
    for value in VALUES {
        assert_eq!(parts.next().unwrap(), value, "in a list");
    }
    assert_eq!(parts.collect::<Vec<_>>(), [""]);
    let files = String::from_utf8(files).unwrap();
    let strange = |name: &&str| ["pwned", "file"].contains(name);
    assert!(
        files.contains("here\n") && !files.lines().any(|name| strange(&name)),
        "{files}"
    );
    hostile.end(());
}

/// How many processes a build went on with.
fn attached(ran: &Ran) -> usize {
    let events = ran.events();
    let of = events.iter().filter(|event| event["code"] == "re-attached");
    of.count()
}

fn output(workspace: &Workspace, name: &str) -> Vec<u8> {
    let store = Store::open(workspace.path().join(".doe")).unwrap();
    let known = store.bulk().unwrap();
    let record = known.current("//t:values").unwrap().record;
    let output = &store.record(&record).unwrap().outputs[name];
    store.blob(&output.digest).unwrap()
}

#[test]
fn on_this_machine() {
    let Some(cases) = cases("local") else { return };
    let places = Places {
        names: ["h1", "h2"].map(str::to_owned),
        addresses: ["127.0.0.1", "127.0.0.2"].map(str::to_owned),
    };
    let platform = places.platform("executor = \"local\"", Default::default());
    goes_through(&platform, &places, cases);
}

#[test]
fn over_ssh() {
    let Some(cases) = cases("ssh") else { return };
    let hosts = Hosts::up(2, None);
    let places = Places::of(&hosts);
    let table = format!(
        "executor = \"ssh\"\nssh = {{ config = \"{}\", root = \"{}/root-%w\", patience = \"60s\" }}",
        hosts.config().display(),
        hosts.dir().display(),
    );
    let named = [1, 2].map(|number| format!("ssh = \"{}\"\n", hosts.name(number)));
    goes_through(&places.platform(&table, named), &places, cases);
}

#[test]
fn as_jobs_of_slurm() {
    let Some(cases) = cases("slurm") else { return };
    let slurm = slurm::Slurm::up(2);
    let places = Places::of(&slurm.hosts);
    let table = format!(
        "executor = \"slurm\"\nslurm = {{ config = \"{}\", root = \"{}/shared/%w\", partition = \"debug\", patience = \"60s\" }}",
        slurm.config().display(),
        slurm.hosts.dir().display(),
    );
    goes_through(&places.platform(&table, Default::default()), &places, cases);
}

#[cfg(feature = "aws")]
#[test]
fn through_systems_manager() {
    let Some(cases) = cases("ssm") else { return };
    let cloud = cloud::Cloud::up(None);
    let places = Places::of(&cloud.hosts);
    let table = format!(
        "executor = \"ssm\"\nssm = {{ region = \"us-east-1\", endpoint = \"{}\", s3_endpoint = \"{}\", bucket = \"s3://{}/hosts\", \
         profile = \"lab\", credentials = \"{}\", root = \"{}/root-%w\", patience = \"60s\" }}",
        cloud.endpoint.url(),
        cloud.s3_endpoint,
        s3::BUCKET,
        cloud.credentials().display(),
        cloud.hosts.dir().display(),
    );
    let named = [1, 2].map(|number| format!("instance = \"{}\"\n", cloud::instance(number)));
    goes_through(&places.platform(&table, named), &places, cases);
}
