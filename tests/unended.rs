//! What could not be ended stays nobody's neighbour: before anything else is begun on its host it is
//! ended, in the same run and in later ones. Real processes; an executor stands between that loses its
//! hosts, or does not get rid of what runs there, for as long as a file says so.

mod lab;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use doe::engine::event::{Body, Event, NodeState, Outcome};
use doe::engine::intent::{self, Home, Intent, NodeIntent, Place, ServiceIntent, StepIntent};
use doe::error::{Error, Kind, Result};
use doe::exec::{Executor, Facts, Handle, HostSpec, Script, Sign, Status, Stream, Token};
use doe_cache::{Digest, RunInfo, RunStatus};
use futures_util::future::BoxFuture;
use lab::rules::{cell, label, pattern, rule, served};
use lab::{Build, Built, Lab};

/// The executor below, with two troubles: `cut-HOST` in its folder and the host does not answer,
/// `stay-HOST` and what runs there does not go.
struct Troubled {
    below: Arc<dyn Executor>,
    dir: PathBuf,
}

impl Troubled {
    fn reach(&self, host: &str) -> Result<()> {
        match self.dir.join(format!("cut-{host}")).exists() {
            true => Err(Error::new(
                Kind::Infra,
                "host-unreachable",
                format!("host `{host}` does not answer"),
            )),
            false => Ok(()),
        }
    }

    fn goes(&self, host: &str) -> Result<()> {
        self.reach(host)?;
        match self.dir.join(format!("stay-{host}")).exists() {
            true => Err(Error::new(Kind::Infra, "would-not-end", "it does not go")),
            false => Ok(()),
        }
    }
}

impl Executor for Troubled {
    fn name(&self) -> &'static str {
        self.below.name()
    }
    fn probe<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<Facts>> {
        self.below.probe(host)
    }
    fn stage<'a>(
        &'a self,
        host: &'a HostSpec,
        files: &'a [(Digest, PathBuf)],
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        self.below.stage(host, files)
    }
    fn start<'a>(
        &'a self,
        host: &'a HostSpec,
        script: &'a Script,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Handle>> {
        Box::pin(async move {
            self.reach(&host.name)?;
            self.below.start(host, script, token).await
        })
    }
    fn find<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        self.below.find(host, token)
    }
    fn revoke<'a>(
        &'a self,
        host: &'a HostSpec,
        token: &'a Token,
        grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Handle>>> {
        Box::pin(async move {
            self.goes(&host.name)?;
            self.below.revoke(host, token, grace).await
        })
    }
    fn ended_unix_ms<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Option<u64>>> {
        self.below.ended_unix_ms(handle)
    }
    fn poll<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        self.below.poll(handle)
    }
    fn wait<'a>(&'a self, handle: &'a Handle) -> BoxFuture<'a, Result<Status>> {
        let cut = async {
            loop {
                if let Err(error) = self.reach(&handle.host) {
                    return error;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        Box::pin(async move {
            tokio::select! {
                status = self.below.wait(handle) => status,
                error = cut => Err(error),
            }
        })
    }
    fn cancel<'a>(&'a self, handle: &'a Handle, grace: Duration) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.goes(&handle.host)?;
            self.below.cancel(handle, grace).await
        })
    }
    fn log<'a>(
        &'a self,
        handle: &'a Handle,
        stream: Stream,
        offset: u64,
    ) -> BoxFuture<'a, Result<Vec<u8>>> {
        self.below.log(handle, stream, offset)
    }
    fn look<'a>(&'a self, host: &'a HostSpec, sign: &'a Sign) -> BoxFuture<'a, Result<bool>> {
        self.below.look(host, sign)
    }
    fn collect<'a>(
        &'a self,
        host: &'a HostSpec,
        from: &'a Path,
        names: &'a [String],
        into: &'a Path,
    ) -> BoxFuture<'a, Result<Vec<PathBuf>>> {
        self.below.collect(host, from, names, into)
    }
    fn free_port<'a>(&'a self, host: &'a HostSpec) -> BoxFuture<'a, Result<u16>> {
        self.below.free_port(host)
    }
}

fn lab(rules: &str, plan: &str) -> Lab {
    let mut lab = Lab::new(rules, plan);
    lab.through = Some(Arc::new(Troubled {
        below: lab.executor.clone(),
        dir: lab.scratch(),
    }));
    lab
}

/// What a step says that finds the process of another one: `pid-NAME` is its number.
fn beside(name: &str) -> String {
    format!("if kill -0 $(cat SCRATCH/pid-{name}); then echo beside >> SCRATCH/beside; fi")
}

fn warnings<'b>(built: &'b Built, of: &str) -> Vec<&'b str> {
    let warnings = built.events.iter().filter_map(|event| match &event.body {
        Body::Warning { code, message, .. } if code == of => Some(message.as_str()),
        _ => None,
    });
    warnings.collect()
}

const ONCE: &str = "retry = { times = 0 }";
const QUICK: &str = "retry = { times = 2, base = \"20ms\", cap = \"20ms\" }";

/// The first attempt's host is lost, the second cannot even begin because of that; the third ends
/// what the first left.
#[tokio::test(flavor = "multi_thread")]
async fn the_third_attempt_ends_what_the_first_one_left() {
    let script = "test -e SCRATCH/pid-first || { echo $$ > SCRATCH/pid-first; touch SCRATCH/cut-h1; exec sleep 600; }\n";
    let rules = rule("a", &format!("{script}{}", beside("first")));
    let lab = lab(&rules, &pattern("one", "a", QUICK));
    let cut = lab.scratch().join("cut-h1");
    let mut put_off = 0;
    let built = lab
        .build_with(Build {
            watch: Some(Box::new(move |event, _| {
                put_off += usize::from(matches!(event.body, Body::Retrying(_)));
                if put_off == 2 {
                    let _ = std::fs::remove_file(&cut);
                }
            })),
            ..Build::default()
        })
        .await;
    let node = built.node(&label("one"));
    assert_eq!((node.outcome, node.attempt), (Outcome::Ok, Some(3)));
    assert_eq!(lab.lines("beside"), Vec::<String>::new());
    assert_eq!(warnings(&built, "step-left").len(), 1);
}

/// The one after it on the host is another node, and the host comes back in between.
#[tokio::test(flavor = "multi_thread")]
async fn another_node_ends_what_was_left_on_its_host_before_it_begins() {
    let left = "echo $$ > SCRATCH/pid-a; touch SCRATCH/cut-h1; exec sleep 600";
    let rules = rule("a", left) + &rule("b", &beside("a"));
    let lab = lab(
        &rules,
        &(pattern("a", "a", ONCE) + &pattern("b", "b", QUICK)),
    );
    let cut = lab.scratch().join("cut-h1");
    let built = lab
        .build_with(Build {
            watch: Some(Box::new(move |event, _| {
                if matches!(&event.body, Body::Retrying(again) if again.label == label("b")) {
                    let _ = std::fs::remove_file(&cut);
                }
            })),
            ..Build::default()
        })
        .await;
    let (a, b) = (built.node(&label("a")), built.node(&label("b")));
    assert_eq!(
        (a.outcome, a.class.as_deref()),
        (Outcome::Failed, Some("unreachable"))
    );
    assert_eq!((b.outcome, b.attempt), (Outcome::Ok, Some(2)));
    assert_eq!(lab.lines("beside"), Vec::<String>::new());
}

/// What answers and does not go takes its host along, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_on_which_something_will_not_go_is_not_used_any_more() {
    let rules = rule("a", "touch SCRATCH/stay-h1; exit 1")
        + &rule("b", "echo b >> SCRATCH/ran")
        + &rule("c", "echo c >> SCRATCH/ran").replace("first", "second");
    let plan = pattern("a", "a", ONCE)
        + &pattern("b", "b", QUICK)
        + &pattern("b2", "b", "settings = { n = 2 }")
        + &pattern("c", "c", "gate = [\"b2\"]")
        + &pattern("d", "c", "settings = { n = 3 }");
    let built = lab(&rules, &plan).build().await;
    let b = built.node(&label("b"));
    assert_eq!(
        (b.outcome, b.class.as_deref(), b.attempt),
        (Outcome::Failed, Some("not-released"), Some(1))
    );
    let why = "host `h1` is not free: what was left there could not be ended: ";
    for of in ["b", "b2"] {
        let reason = built.reason(&label(of));
        assert!(reason.starts_with(why), "{reason}");
    }
    assert_eq!(built.node(&label("b2")).outcome, Outcome::Blocked);
    assert_eq!(built.node(&label("d")).outcome, Outcome::Ok);
    assert_eq!(warnings(&built, "host-tainted").len(), 1);
}

/// The service before it on the GPU could not be stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_starts_when_what_was_left_on_its_host_is_gone() {
    let start = format!("test {{{{ size }}}} = 1 || {{ {} ; }}", beside("1"));
    let step = "test {{ size }} = 2 || touch SCRATCH/stay-h1";
    let lab = lab(&served(&start, step), &(cell(1, 1, "") + &cell(2, 1, "")));
    let stays = lab.scratch().join("stay-h1");
    let built = lab
        .build_with(Build {
            watch: Some(Box::new(move |event, _| {
                if matches!(&event.body, Body::Warning { code, .. } if code == "service-left") {
                    let _ = std::fs::remove_file(&stays);
                }
            })),
            ..Build::default()
        })
        .await;
    assert_eq!(built.ended.summary.ok, 2, "{:?}", built.outcomes());
    assert_eq!(warnings(&built, "service-left").len(), 1);
    assert_eq!(lab.lines("beside"), Vec::<String>::new());
}

/// A run that began elsewhere: its entry, its folder, and a process of it on host `h1`.
struct Earlier<'l> {
    lab: &'l Lab,
    run_id: &'static str,
}

impl<'l> Earlier<'l> {
    fn run(lab: &'l Lab, run_id: &'static str) -> Self {
        lab.store
            .begin_run(&RunInfo {
                run_id: run_id.into(),
                command: "test".into(),
                platform: "lab".into(),
                simulated: false,
                doe_version: "0".into(),
                host: "here".into(),
                pid: 1,
                started_unix_ms: 1,
            })
            .unwrap();
        let earlier = Self { lab, run_id };
        std::fs::create_dir_all(earlier.home().run_dir).unwrap();
        earlier
    }

    fn home(&self) -> Home {
        let run_dir = self.lab.store.layout().runs().join(self.run_id);
        Home {
            run_id: self.run_id.into(),
            host_dir: run_dir.clone(),
            run_dir,
        }
    }

    /// It has ended and could not end everything.
    fn ends(&self) {
        let failed = RunStatus::Failed;
        self.lab.store.end_run(self.run_id, failed).unwrap();
        let marks = self.lab.store.layout().runs().with_file_name("left");
        std::fs::create_dir_all(&marks).unwrap();
        std::fs::write(marks.join(self.run_id), "").unwrap();
    }

    fn place(&self) -> Place {
        Place {
            role: Some("first".into()),
            host: "h1".into(),
            address: "127.0.0.1".into(),
        }
    }

    /// Starts something under this token.
    async fn process(&self, token: &Token, text: &str) {
        let script = Script {
            name: "left".into(),
            text: text.into(),
            env: Default::default(),
            work: self.lab.scratch(),
            timeout: None,
            log_cap_bytes: 1 << 20,
            attached: false,
            ask: Default::default(),
        };
        let host = self.place().spec();
        let handle = self.lab.executor.start(&host, &script, token).await;
        let handle = handle.unwrap();
        if !text.contains("sleep") {
            self.lab.executor.wait(&handle).await.unwrap();
        }
    }

    fn announces(&self, intent: &Intent) {
        let path = self.home().run_dir.join("intents.jsonl");
        let mut text = std::fs::read_to_string(&path).unwrap_or_default();
        text.push_str(&serde_json::to_string(intent).unwrap());
        text.push('\n');
        std::fs::write(path, text).unwrap();
    }

    /// A node whose only step is this process.
    async fn node(&self, label: &str, action: Digest, text: &str) -> Token {
        let token = Token(format!("{}.{}", self.run_id, &label[2..].replace(':', "-")));
        let step = Token(format!("{}-step", token.0));
        self.process(&step, text).await;
        self.announces(&Intent::Node(NodeIntent {
            token,
            label: label.into(),
            action,
            home: self.home(),
            work: Some(self.home().run_dir.join("nodes/n0")),
            scratch: "n0".into(),
            ports: Default::default(),
            attempt: 1,
            previous: None,
            services: Vec::new(),
            steps: vec![StepIntent {
                name: "go".into(),
                token: step.clone(),
                place: self.place(),
                gang: None,
            }],
            monitors: Vec::new(),
            acquired_unix_ms: 1,
        }));
        step
    }

    async fn service(&self) -> Token {
        let token = Token(format!("{}.service", self.run_id));
        self.process(&token, "exec sleep 600").await;
        self.announces(&Intent::Service(ServiceIntent {
            token: token.clone(),
            name: "server".into(),
            key: Digest::of("server"),
            place: self.place(),
            ports: Default::default(),
            work: self.lab.scratch(),
            home: self.home(),
            at_unix_ms: 1,
        }));
        token
    }

    async fn runs(&self, token: &Token) -> bool {
        let (executor, host) = (&self.lab.executor, self.place().spec());
        let handle = executor.find(&host, token).await.unwrap().unwrap();
        executor.poll(&handle).await.unwrap() == Status::Running
    }
}

fn taking_over() -> Build<'static> {
    Build {
        takes_over: true,
        ..Build::default()
    }
}

/// A node and a service that an ended run left, on a host on which they still will not go: nothing is
/// begun beside them, and the rest of the build goes on. The next one ends them.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_ended_run_left_keeps_others_off_its_host_only() {
    let rules = rule("a", "true") + &rule("c", "true").replace("first", "second");
    let lab = lab(&rules, &(pattern("a", "a", "") + &pattern("c", "c", "")));
    let earlier = Earlier::run(&lab, "earlier");
    let node = earlier
        .node("//t:gone", Digest::of("other"), "exec sleep 600")
        .await;
    let service = earlier.service().await;
    earlier.ends();
    let stays = lab.scratch().join("stay-h1");
    std::fs::write(&stays, "").unwrap();
    // Whoever collects leaves the only account of them.
    assert!(intent::in_use(&lab.store).unwrap().contains("earlier"));

    let built = lab.build_with(taking_over()).await;
    let a = built.node(&label("a"));
    assert_eq!(a.class.as_deref(), Some("not-released"), "{:?}", a.reason);
    assert_eq!(built.node(&label("c")).outcome, Outcome::Ok);
    let told = warnings(&built, "leftovers").join("\n");
    assert_eq!(
        told.matches("still could not be ended").count(),
        2,
        "{told}"
    );
    assert!(earlier.runs(&node).await && earlier.runs(&service).await);

    std::fs::remove_file(&stays).unwrap();
    let built = lab.build_with(taking_over()).await;
    assert_eq!(built.node(&label("a")).outcome, Outcome::Ok);
    assert!(!earlier.runs(&node).await && !earlier.runs(&service).await);
    assert_eq!(intent::open_runs(&lab.store).unwrap().len(), 0);
}

/// What a killed run left and could not be ended fails the build before it begins anything. It is as
/// if that had been killed too: whoever comes next goes on with all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_cannot_take_over_forgets_nothing() {
    let lab = lab(&rule("a", "true"), &pattern("a", "a", ""));
    let earlier = Earlier::run(&lab, "earlier");
    let torn = earlier
        .node("//t:torn", Digest::of("other"), "exec sleep 600")
        .await;
    let stays = lab.scratch().join("stay-h1");
    std::fs::write(&stays, "").unwrap();
    let (ended, events) = lab.attempt(taking_over()).await;
    assert_eq!(ended.unwrap_err().code, "would-not-end");
    let is_end = |event: &&Event| matches!(&event.body, Body::NodeFinished(node) if node.outcome == Outcome::Cancelled);
    assert_eq!(events.iter().filter(is_end).count(), 1);
    let open = intent::open_runs(&lab.store).unwrap();
    let left = open.iter().filter(|(_, open)| !open.nodes.is_empty());
    let left: Vec<_> = left
        .map(|(run, _)| (run.status, &run.info.run_id))
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].0 == RunStatus::Running && left[0].1 != "earlier");
    assert!(earlier.runs(&torn).await);

    std::fs::remove_file(&stays).unwrap();
    let built = lab.build_with(taking_over()).await;
    assert_eq!(built.ended.summary.ok, 1);
    assert!(!earlier.runs(&torn).await);
    assert_eq!(intent::open_runs(&lab.store).unwrap().len(), 0);
}

/// A lab in which `p-a` and `p-b` have run, so that their actions are known.
async fn known(rules: &str) -> (Lab, [Digest; 2]) {
    let lab = lab(rules, &(pattern("a", "a", ONCE) + &pattern("b", "b", ONCE)));
    lab.build().await;
    let keys = ["a", "b"].map(|id| lab.record(&label(id)).action_key);
    (lab, keys)
}

/// One that had ended is recorded as failed, and with `--fail-fast` the other never goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_under_way_is_ended_when_the_run_ends_before_it_goes_on() {
    let rules = rule("a", "test ! -e SCRATCH/fail") + &rule("b", "true").replace("first", "second");
    let (lab, [a, b]) = known(&rules).await;
    let earlier = Earlier::run(&lab, "earlier");
    let second = lab::rules::label("b");
    earlier.node(&label("a"), a, "true").await;
    let under_way = earlier.node(&second, b, "exec sleep 600").await;
    // Its place is that of the rule.
    let path = earlier.home().run_dir.join("intents.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let rest = rest
        .replace("\"role\":\"first\"", "\"role\":\"second\"")
        .replace("\"host\":\"h1\"", "\"host\":\"h2\"")
        .replace("127.0.0.1", "127.0.0.2");
    std::fs::write(&path, format!("{first}\n{rest}")).unwrap();
    std::fs::write(lab.scratch().join("fail"), "").unwrap();
    let built = lab
        .build_with(Build {
            rerun: &["//t:p-a", "//t:p-b"],
            fail_fast: true,
            ..taking_over()
        })
        .await;
    assert_eq!(built.node(&label("a")).outcome, Outcome::Failed);
    assert_eq!(built.node(&second).outcome, Outcome::Cancelled);
    assert_eq!(warnings(&built, "re-attached").len(), 2);
    assert!(!earlier.runs(&under_way).await);
}

/// It goes on and fails before anybody has looked at its steps.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_under_way_is_ended_when_it_cannot_go_on() {
    let rules = rule("a", "true") + &rule("b", "true");
    let (lab, [a, _]) = known(&rules).await;
    let earlier = Earlier::run(&lab, "earlier");
    let under_way = earlier.node(&label("a"), a, "exec sleep 600").await;
    // No folder can be made there.
    std::fs::write(earlier.home().run_dir.join("nodes"), "").unwrap();
    let built = lab
        .build_with(Build {
            rerun: &["//t:p-a"],
            ..taking_over()
        })
        .await;
    assert_eq!(built.node(&label("a")).outcome, Outcome::Failed);
    assert_eq!(warnings(&built, "re-attached").len(), 1);
    assert!(!earlier.runs(&under_way).await);
}

/// An error of the run itself while a service comes up.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_run_ends_it_while_a_service_comes_up() {
    let look = "\n[look]\nkind = \"analysis\"\n[[look.step]]\nname = \"read\"\ntimeout = \"1m\"\nrun = \"cp {{ inputs }} {{ out.result }}\"\n[look.output]\nresult = { path = \"r.json\" }\n";
    let rules = served("while ! test -e SCRATCH/up; do sleep 0.02; done", "")
        + &rule("a", "while ! test -e SCRATCH/starts; do sleep 0.02; done")
            .replace("first", "second")
        + look;
    let plan =
        cell(1, 1, "") + &pattern("a", "a", "") + &pattern("look", "look", "needs = [\"p-a\"]");
    let lab = lab(&rules, &plan);
    let (up, store) = (lab.scratch().join("up"), lab.store.clone());
    let build = lab.attempt(Build {
        watch: Some(Box::new(move |event, _| {
            let Body::NodeFinished(node) = &event.body else {
                return;
            };
            if node.label == label("a") {
                // The service is reported while nobody listens, and then what the next one
                // needs cannot be read.
                std::fs::write(&up, "").unwrap();
                std::thread::sleep(Duration::from_secs(2));
                let record: Digest = node.record.as_ref().unwrap().parse().unwrap();
                let path = store.layout().record(&record);
                std::fs::remove_file(&path).unwrap();
                std::fs::create_dir(&path).unwrap();
            }
        })),
        ..Build::default()
    });
    let (ended, events) = tokio::time::timeout(Duration::from_secs(120), build)
        .await
        .expect("it ends");
    let error = ended.unwrap_err();
    assert_ne!(error.code, "stalled", "{error}");
    let served = |event: &&Event| matches!(&event.body, Body::NodeState { label: of, state, .. } if *of == label("s1n1") && *state == NodeState::Running);
    assert_eq!(events.iter().filter(served).count(), 0);
}
