//! The Slurm executor against the suite for all executors, on a real controller with a `slurmd` in
//! every namespace, and against what only a scheduler can do to it.

#[macro_use]
mod conformance;
mod rig;
#[path = "rig/slurm.rs"]
mod slurm;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Duration;

use conformance::Rig;
use doe::exec::slurm::{SlurmExecutor, SlurmOptions};
use doe::exec::{Ask, Executor, Handle, HostSpec, Script, Status, Stream, Together, Token};
use slurm::Slurm;

/// One cluster for the tests that run at a time; it goes with the last of these.
fn shared() -> Arc<Slurm> {
    static SLURM: LazyLock<Mutex<Weak<Slurm>>> = LazyLock::new(Mutex::default);
    let mut slurm = SLURM.lock().unwrap_or_else(|e| e.into_inner());
    slurm.upgrade().unwrap_or_else(|| {
        let up = Arc::new(Slurm::up(2));
        *slurm = Arc::downgrade(&up);
        up
    })
}

fn specs(slurm: &Slurm) -> [HostSpec; 2] {
    [1, 2].map(|number| HostSpec {
        name: slurm.hosts.name(number),
        address: slurm.hosts.address(number),
        gpus: 0,
    })
}

fn options(slurm: &Slurm, root: &Path) -> SlurmOptions {
    SlurmOptions {
        root: root.to_owned(),
        config: Some(slurm.config()),
        common: Vec::new(),
        gres: Some("gpu".into()),
        service_time: None,
        together: true,
        patience: Duration::from_secs(60),
        queue: Duration::from_secs(60),
        grace: Duration::from_secs(4),
    }
}

async fn connect(slurm: &Slurm, root: &Path) -> SlurmExecutor {
    SlurmExecutor::new(options(slurm, root)).await.unwrap()
}

async fn slurm_rig() -> Rig {
    let slurm = shared();
    let scratch = tempfile::tempdir().unwrap();
    let executor = connect(&slurm, &scratch.path().join("it's a root")).await;
    Rig {
        executor: Box::new(executor),
        hosts: specs(&slurm),
        netns: Some([slurm.hosts.netns(1), slurm.hosts.netns(2)]),
        scratch,
        keep: Some(Box::new(slurm)),
        attached: false,
    }
}

conformance!(
    "slurm",
    match rig::skipped() {
        true => None,
        false => Some(slurm_rig().await),
    }
);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_skew() {
    let Some(_told) = rig::told("slurm", "clock skew") else {
        return;
    };
    let slurm = Slurm::up(2);
    slurm.follow_clocks();
    let slurm = Arc::new(slurm);
    let scratch = tempfile::tempdir().unwrap();
    let rig = Rig {
        executor: Box::new(connect(&slurm, &scratch.path().join("root")).await),
        hosts: specs(&slurm),
        netns: None,
        scratch,
        keep: Some(Box::new(slurm.clone())),
        attached: false,
    };
    conformance::hosts::clock_skew(&rig, |ahead_s| slurm.hosts.set_clocks(ahead_s)).await;
}

#[test]
fn peer_process() {
    conformance::process::peer_process();
}

/// A cluster of its own for a test that hurts it.
struct Own {
    executor: SlurmExecutor,
    dir: tempfile::TempDir,
    specs: [HostSpec; 2],
    slurm: Slurm,
}

impl Own {
    async fn up(nodes: u32) -> Self {
        Self::on(Slurm::up(nodes)).await
    }

    async fn on(slurm: Slurm) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let executor = connect(&slurm, &dir.path().join("root")).await;
        let specs = specs(&slurm);
        Self {
            executor,
            dir,
            specs,
            slurm,
        }
    }

    /// Another client of the same cluster and folder.
    async fn again(&self, queue: Duration) -> SlurmExecutor {
        let options = SlurmOptions {
            queue,
            ..options(&self.slurm, &self.dir.path().join("root"))
        };
        SlurmExecutor::new(options).await.unwrap()
    }

    fn script(&self, text: &str) -> Script {
        Script {
            name: "step-test".into(),
            text: text.into(),
            env: Default::default(),
            work: self.dir.path().join("work"),
            timeout: Some(Duration::from_secs(300)),
            log_cap_bytes: 1 << 20,
            attached: false,
            ask: Default::default(),
        }
    }

    /// A script that leaves `up` and goes on until there is `go`.
    fn waiting(&self, then: &str) -> Script {
        self.script(&format!(
            "echo run >>count; touch up; until [ -e go ]; do sleep 0.1; done; {then}"
        ))
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("work").join(name)
    }

    async fn begin(&self, script: &Script) -> (Token, Handle) {
        let token = conformance::token();
        let handle = self.executor.start(&self.specs[0], script, &token).await;
        conformance::eventually("it runs", || self.file("up").exists()).await;
        (token, handle.unwrap())
    }

    fn go(&self) {
        std::fs::write(self.file("go"), b"").unwrap();
    }

    async fn wait(&self, handle: &Handle) -> Status {
        let wait = self.executor.wait(handle);
        // A lost node takes a while to be one.
        let status = tokio::time::timeout(Duration::from_secs(180), wait).await;
        status.expect("it did not come to an end").unwrap()
    }

    /// What the controller says of all jobs: number, state, reason.
    fn jobs(&self) -> String {
        self.slurm
            .ask("squeue", &["-h", "-r", "-t", "all", "-o", "%A %T %r"])
    }

    fn node(&self, state: &str) {
        self.try_node(state).unwrap();
    }

    fn try_node(&self, state: &str) -> Result<String, String> {
        let node = format!("nodename={}", self.specs[0].name);
        let state = format!("state={state}");
        let arguments = ["update", &node, &state, "reason=test"];
        self.slurm.try_ask("scontrol", &arguments)
    }
}

fn exited(status: &Status, code: i32) -> bool {
    matches!(status, Status::Exited(exit) if exit.code == Some(code))
}

fn lost(status: &Status, words: &str) -> bool {
    matches!(status, Status::Lost { why } if why.contains(words))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_the_queue_is_found_again_and_can_be_cancelled() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    own.node("drain");
    let impatient = own.again(Duration::from_secs(1)).await;
    let (one, two) = (conformance::token(), conformance::token());
    let host = &own.specs[0];
    let wanted = own.script("echo ran >>ran; exit 4");
    let unwanted = own.script("touch never");
    let (waits, cancelled) = tokio::join!(
        impatient.start(host, &wanted, &one),
        impatient.start(host, &unwanted, &two)
    );
    let (waits, cancelled) = (waits.unwrap(), cancelled.unwrap());
    assert_eq!(
        (waits.pid, impatient.poll(&waits).await.unwrap()),
        (0, Status::Running)
    );
    conformance::bounded(impatient.cancel(&cancelled, Duration::ZERO))
        .await
        .unwrap();
    drop(impatient);

    let again = own.again(Duration::from_secs(60)).await;
    assert_eq!(again.find(host, &one).await.unwrap(), Some(waits.clone()));
    assert_eq!(again.find(host, &two).await.unwrap(), None);
    own.node("resume");
    assert!(exited(&own.wait(&waits).await, 4));
    let status = own.wait(&cancelled).await;
    assert!(lost(&status, "before it began"), "{status:?}");
    assert!(!own.file("never").exists());
    // Started again it is the same execution, which has a number by now.
    let begun = again.start(host, &wanted, &one).await.unwrap();
    assert!(begun.pid > 0 && begun.dir == waits.dir, "{begun:?}");
    assert_eq!(std::fs::read_to_string(own.file("ran")).unwrap(), "ran\n");
    let error = again.start(host, &unwanted, &two).await.unwrap_err();
    assert_eq!(error.code, "not-started", "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_back_before_it_came_never_begins() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let host = &own.specs[0];
    let late = conformance::token();
    let revoked = own.executor.revoke(host, &late, Duration::ZERO).await;
    assert_eq!(revoked.unwrap(), None);
    let script = own.script("touch ran");
    let error = own.executor.start(host, &script, &late).await.unwrap_err();
    assert!(error.to_string().contains("did not start"), "{error}");
    assert_eq!(own.executor.find(host, &late).await.unwrap(), None);
    // A start that is on its way: whoever comes first, nothing runs when both have come.
    for round in 0..6 {
        let token = conformance::token();
        let script = own.script("sleep 1001");
        let (started, revoked) = tokio::join!(own.executor.start(host, &script, &token), async {
            tokio::time::sleep(Duration::from_millis(round * 100)).await;
            own.executor.revoke(host, &token, Duration::ZERO).await
        });
        let revoked = revoked.unwrap();
        if let Ok(started) = &started {
            assert_ne!(own.wait(started).await, Status::Running);
        }
        assert!(
            started.is_err() || revoked.is_some(),
            "{started:?} {revoked:?}"
        );
        let gone = || conformance::carriers(&token.0).is_empty();
        conformance::eventually("nothing carries the token", gone).await;
    }
    assert!(!own.file("ran").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_forgets_and_gives_a_number_again_is_not_believed() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let (token, handle) = own.begin(&own.waiting("exit 5")).await;
    let number = own.jobs().split(' ').next().unwrap().to_owned();
    own.slurm.kill_controller();
    assert_eq!(own.executor.poll(&handle).await.unwrap(), Status::Running);
    own.slurm.forget();
    own.slurm.start_controller();
    // The next job gets the number before the nodes could tell of the forgotten one.
    let script = own.script("sleep 3; exit 9");
    let next = conformance::token();
    let other = own.executor.start(&own.specs[1], &script, &next).await;
    let other = other.unwrap();
    let jobs = own.jobs();
    assert_eq!(jobs.split(' ').next(), Some(number.as_str()), "{jobs}");
    let found = own.executor.find(&own.specs[0], &token).await.unwrap();
    assert_eq!(found.as_ref(), Some(&handle));
    let same = own.waiting("exit 5");
    let again = own.executor.start(&own.specs[0], &same, &token).await;
    assert_eq!(again.unwrap(), handle);
    assert!(exited(&own.wait(&other).await, 9));
    own.go();
    // The end of the other says nothing of it: it ran to its own, or Slurm has ended it.
    let status = own.wait(&handle).await;
    let killed = lost(&status, "left no exit record") || lost(&status, "Slurm ended");
    assert!(exited(&status, 5) || killed, "{status:?}");
    assert_eq!(conformance::carriers(&token.0), [0; 0]);
    assert_eq!(std::fs::read_to_string(own.file("count")).unwrap(), "run\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_job_can_be_cancelled() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let (token, handle) = own.begin(&own.waiting("exit 5")).await;
    own.slurm.kill_controller();
    // Not even a controller is needed.
    let cancelled = own.executor.cancel(&handle, Duration::from_secs(1));
    conformance::bounded(cancelled).await.unwrap();
    assert_eq!(conformance::carriers(&token.0), [0; 0]);
    own.slurm.start_controller();
    let status = own.wait(&handle).await;
    assert!(
        matches!(&status, Status::Exited(exit) if exit.signal.is_some()),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_away_is_waited_for() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    own.slurm.kill_controller();
    let (script, token) = (own.script("exit 6"), conformance::token());
    let (handle, ()) = tokio::join!(own.executor.start(&own.specs[0], &script, &token), async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        own.slurm.start_controller();
    });
    assert!(exited(&own.wait(&handle.unwrap()).await, 6));

    let options = SlurmOptions {
        patience: Duration::from_secs(1),
        ..options(&own.slurm, &own.dir.path().join("root"))
    };
    let impatient = SlurmExecutor::new(options.clone()).await.unwrap();
    own.slurm.kill_controller();
    let script = own.script("touch ran");
    let token = conformance::token();
    let started = impatient.start(&own.specs[0], &script, &token);
    let error = conformance::bounded(started).await.unwrap_err();
    assert_eq!(
        (error.code, error.kind.exit_code()),
        ("controller-unreachable", 4)
    );
    let error = SlurmExecutor::new(options).await.err().unwrap();
    assert_eq!(error.code, "controller-unreachable");
    own.slurm.start_controller();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_slurmd_and_a_cut_link_lose_nothing_that_lives() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let (_, handle) = own.begin(&own.waiting("exit 5")).await;
    own.slurm.kill_daemon(1);
    let failed = || own.jobs().contains("NODE_FAIL");
    conformance::eventually("the controller gives the node up", failed).await;
    assert_eq!(own.executor.poll(&handle).await.unwrap(), Status::Running);
    own.go();
    assert!(exited(&own.wait(&handle).await, 5));
    own.slurm.start_daemon(1);
    own.slurm.wait_until_up();

    for name in ["up", "go"] {
        std::fs::remove_file(own.file(name)).unwrap();
    }
    let (_, handle) = own.begin(&own.waiting("exit 3")).await;
    own.slurm.hosts.link(1, false);
    let failed = || own.jobs().matches("NODE_FAIL").count() == 2;
    conformance::eventually("the controller gives the node up again", failed).await;
    assert_eq!(own.executor.poll(&handle).await.unwrap(), Status::Running);
    own.go();
    let status = own.wait(&handle).await;
    own.slurm.hosts.link(1, true);
    assert!(exited(&status, 3), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_lost_is_lost_with_its_reason() {
    let Some(_told) = rig::told("slurm", "killed host") else {
        return;
    };
    let own = Own::up(1).await;
    let (_, handle) = own.begin(&own.waiting("exit 5")).await;
    own.slurm.hosts.kill(1);
    let status = own.wait(&handle).await;
    assert!(lost(&status, "NODE_FAIL"), "{status:?}");
    // It stays lost, for whoever asks.
    let again = own.again(Duration::from_secs(60)).await;
    assert_eq!(again.poll(&handle).await.unwrap(), status);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_slurm_ends_is_no_outcome_of_the_script() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let (token, handle) = own.begin(&own.waiting("exit 5")).await;
    let number = own.jobs().split(' ').next().unwrap().to_owned();
    // As preemption does, and the end of the partition's time.
    own.slurm.ask("scancel", &[&number]);
    let status = own.wait(&handle).await;
    assert!(lost(&status, "Slurm ended its job"), "{status:?}");
    assert_eq!(conformance::carriers(&token.0), [0; 0]);
    assert!(own.executor.ended_unix_ms(&handle).await.unwrap().is_some());

    // Told to end, a script may say that all is well, and be quick about it.
    std::fs::remove_file(own.file("up")).unwrap();
    let trap = "trap 'exit 0' TERM; touch up; while :; do sleep 0.05; done";
    let (_, handle) = own.begin(&own.script(trap)).await;
    let number = own.jobs();
    let number = number.lines().find(|line| line.contains("RUNNING"));
    let number = number.unwrap().split(' ').next().unwrap();
    own.slurm.ask("scancel", &[number]);
    let status = loop {
        match own.executor.poll(&handle).await.unwrap() {
            Status::Running => tokio::time::sleep(Duration::from_millis(5)).await,
            status => break status,
        }
    };
    assert!(lost(&status, "Slurm ended its job"), "{status:?}");

    // Put back into the queue by somebody, it does not begin a second time.
    std::fs::remove_file(own.file("up")).unwrap();
    std::fs::remove_file(own.file("count")).unwrap();
    let (_, handle) = own.begin(&own.waiting("exit 5")).await;
    let number = own.jobs();
    let number = number
        .lines()
        .find(|line| line.contains("RUNNING"))
        .unwrap();
    let number = number.split(' ').next().unwrap();
    own.slurm.ask(
        "scontrol",
        &["update", &format!("jobid={number}"), "requeue=1"],
    );
    own.slurm.ask("scontrol", &["requeue", number]);
    let status = own.wait(&handle).await;
    assert!(matches!(status, Status::Lost { .. }), "{status:?}");
    assert_eq!(std::fs::read_to_string(own.file("count")).unwrap(), "run\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_slurm_suspended_has_no_outcome() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let (token, handle) = own.begin(&own.waiting("exit 5")).await;
    let number = own.jobs().split(' ').next().unwrap().to_owned();
    conformance::watcher_sleeps(&token).await;
    own.slurm.ask("scontrol", &["suspend", &number]);
    // More than 25 s are a gap; its processes may be stopped a while after that was asked for.
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert_eq!(own.executor.poll(&handle).await.unwrap(), Status::Running);
    own.go();
    own.slurm.ask("scontrol", &["resume", &number]);
    let status = own.wait(&handle).await;
    assert!(lost(&status, "stopped in the middle"), "{status:?}");
    assert_eq!(conformance::carriers(&token.0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_slurm_refuses_or_lets_wait_for_ever_is_an_error_at_once() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    for (word, told) in [
        ("--partition=nowhere", "invalid partition"),
        ("--cpus-per-task=1000", "PartitionConfig"),
        ("--hold", "JobHeldUser"),
    ] {
        let options = SlurmOptions {
            common: vec![word.into()],
            ..options(&own.slurm, &own.dir.path().join("root"))
        };
        let executor = SlurmExecutor::new(options).await.unwrap();
        let script = own.script("touch ran");
        let token = conformance::token();
        let started = executor.start(&own.specs[0], &script, &token);
        let error = conformance::bounded(started).await.unwrap_err();
        assert_eq!(error.code, "not-started", "{error}");
        assert!(
            error.causes.iter().any(|cause| cause.contains(told)),
            "{error:?}"
        );
    }
    assert!(!own.file("ran").exists());
}

/// The file system of the nodes may show a file otherwise than it was written, or not any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_sees_otherwise_than_it_was_staged_is_not_used() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let host = &own.specs[0];
    let tool = own.dir.path().join("tool");
    std::fs::write(&tool, "#!/bin/sh\necho right >ran\n").unwrap();
    let files = [(doe_cache::Digest::of_file(&tool).unwrap(), tool)];
    let stage = || own.executor.stage(host, &files);
    let staged = stage().await.unwrap().remove(0);
    let script = own.script(&format!("sh '{}'", staged.display()));
    let run = async || {
        let token = conformance::token();
        let started = own.executor.start(host, &script, &token);
        let handle = conformance::bounded(started).await?;
        Ok::<_, doe::error::Error>(own.wait(&handle).await)
    };
    assert!(exited(&run().await.unwrap(), 0));
    assert!(own.file("ran").exists());
    // What is not there at all is never the script's own failure.
    for wrong in [Some("#!/bin/sh\necho wrong >ran\n"), None] {
        std::fs::remove_file(own.file("ran")).unwrap();
        own.node("drain");
        let token = conformance::token();
        let starting = own.executor.start(host, &script, &token);
        let (started, ()) = tokio::join!(starting, async {
            let waits = || own.jobs().contains("PENDING");
            conformance::eventually("it waits for its turn", waits).await;
            std::fs::remove_file(&staged).unwrap();
            if let Some(text) = wrong {
                std::fs::write(&staged, text).unwrap();
            }
            own.node("resume");
        });
        let said = "is not on this node what it was when it was staged";
        let told = match started {
            Err(error) => format!("{error:?}"),
            Ok(handle) => format!("{:?}", own.wait(&handle).await),
        };
        assert!(told.contains(said), "{told}");
        assert!(!own.file("ran").exists());
        assert_eq!(stage().await.unwrap(), std::slice::from_ref(&staged));
        assert!(exited(&run().await.unwrap(), 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_survives_the_client_and_a_sweep_finds_what_runs() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let script = own.script("sleep 1; echo x; exit 3");
    let token = conformance::token();
    let done = own.executor.start(&own.specs[0], &script, &token);
    let done = done.await.unwrap();
    let told = own.wait(&done).await;
    let long = own.waiting("exit 5");
    let (token, running) = own.begin(&long).await;
    let again = own.again(Duration::from_secs(60)).await;
    assert!(exited(&told, 3));
    // To whom the disk would seem to say otherwise is told what who waited was.
    let record = std::fs::File::open(done.dir.join("exit")).unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    record.set_modified(long_ago).unwrap();
    assert_eq!(again.poll(&done).await.unwrap(), told);
    assert_eq!(again.log(&done, Stream::Stdout, 0).await.unwrap(), b"x\n");
    assert_eq!(again.poll(&running).await.unwrap(), Status::Running);
    let same = again.start(&own.specs[0], &long, &token).await.unwrap();
    assert_eq!(same, running);
    assert_eq!(again.sweep().await.unwrap(), std::slice::from_ref(&running));
    conformance::bounded(again.cancel(&running, Duration::from_millis(200)))
        .await
        .unwrap();
    assert_eq!(conformance::carriers(&token.0), [0; 0]);
    assert_eq!(again.sweep().await.unwrap(), []);
}

/// How often the controller was asked for its jobs, and how often for a new one.
fn asked(slurm: &Slurm) -> (u64, u64) {
    let said = slurm.ask("sdiag", &[]);
    let count = |name: &str| {
        let mut lines = said.lines().filter(|line| line.contains(name));
        let count = lines.next().and_then(|line| line.split("count:").nth(1));
        let count = count.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        count.unwrap_or_else(|| panic!("no {name}in: {said}"))
    };
    (
        count("REQUEST_JOB_INFO "),
        count("REQUEST_SUBMIT_BATCH_JOB "),
    )
}

/// `DOE_TEST_LONG=1`: 2,000 short scripts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wide_layers_go_through_arrays_and_few_questions() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let long = std::env::var_os("DOE_TEST_LONG").is_some();
    let count: i32 = if long { 2000 } else { 200 };
    let own = Own::up(2).await;
    let begun = std::time::Instant::now();
    let runs = (0..count).map(|at| {
        let own = &own;
        async move {
            let script = own.script(&format!("exit {}", at % 100));
            let host = &own.specs[usize::from(at % 2 == 1)];
            let token = conformance::token();
            let handle = own.executor.start(host, &script, &token);
            let handle = handle.await.unwrap();
            let status = own.executor.wait(&handle).await.unwrap();
            assert!(exited(&status, at % 100), "{status:?}");
        }
    });
    let all = futures_util::future::join_all(runs);
    tokio::time::timeout(Duration::from_secs(560), all)
        .await
        .expect("it did not come to an end");
    let (questions, submissions) = asked(&own.slurm);
    let note = format!(
        "{count} scripts: {submissions} submissions, {questions} questions, {:?}
",
        begun.elapsed()
    );
    std::io::stderr().write_all(note.as_bytes()).unwrap();
    let seconds = begun.elapsed().as_secs();
    // One for each node, and few more; the slower the disk, the later the last of them come.
    assert!(
        (2..=count as u64 / 20 + seconds).contains(&submissions),
        "{submissions} submissions in {seconds} s"
    );
    assert!(
        (1..=seconds + 20).contains(&questions),
        "{questions} questions in {seconds} s"
    );
}

impl Own {
    /// Another client, that waits so long for a controller and for a turn in the queue, and not
    /// long for an answer.
    async fn impatient(&self, patience_s: u64, queue_s: u64) -> SlurmExecutor {
        let quick = self.dir.path().join("quick.conf");
        let config = std::fs::read_to_string(self.slurm.config()).unwrap();
        let config = config.replace("MessageTimeout=30", "MessageTimeout=2");
        std::fs::write(&quick, config).unwrap();
        let options = SlurmOptions {
            config: Some(quick),
            patience: Duration::from_secs(patience_s),
            queue: Duration::from_secs(queue_s),
            ..options(&self.slurm, &self.dir.path().join("root"))
        };
        SlurmExecutor::new(options).await.unwrap()
    }

    /// Waits until nothing of ours is open in the queue.
    async fn quiet(&self) {
        let quiet = || self.slurm.ask("squeue", &["-h"]).is_empty();
        conformance::eventually("the queue is empty", quiet).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_outlives_the_patience_with_its_controller() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let impatient = own.impatient(4, 60).await;
    let (token, handle) = own.begin(&own.waiting("exit 5")).await;
    let living = std::slice::from_ref(&handle);
    // Whatever it is that `squeue` fails of.
    let config = std::fs::read(own.slurm.config()).unwrap();
    std::fs::write(own.slurm.config(), "").unwrap();
    let polled = own.executor.poll(&handle).await;
    std::fs::write(own.slurm.config(), config).unwrap();
    assert_eq!(polled.unwrap(), Status::Running);
    assert_eq!(impatient.sweep().await.unwrap(), living);
    // That nobody asked for a while is no silence of the controller.
    tokio::time::sleep(Duration::from_secs(5)).await;
    own.slurm.stop_controller();
    assert_eq!(impatient.sweep().await.unwrap(), living);
    let wait = async {
        let status = tokio::time::timeout(Duration::from_secs(180), impatient.wait(&handle));
        status.await.unwrap().unwrap()
    };
    let (status, ()) = tokio::join!(wait, async {
        let error = loop {
            match impatient.sweep().await {
                Ok(found) => assert_eq!(found, living),
                Err(error) => break error,
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        assert_eq!(error.code, "controller-unreachable", "{error}");
        // Who waits asks a few times more.
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(impatient.poll(&handle).await.unwrap(), Status::Running);
        assert!(!conformance::carriers(&token.0).is_empty());
        own.go();
    });
    assert!(exited(&status, 5), "{status:?}");
    own.slurm.start_controller();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_and_what_is_taken_back_leave_nothing_to_run() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let host = &own.specs[0];
    own.node("drain");
    let script = own.script("touch ran");
    // It was submitted, and then nobody could tell what came of it.
    let (failing, left) = (conformance::token(), conformance::token());
    // Both are heard by a controller that is there and slow; who takes back has little patience
    // with one that is gone.
    let starter = own.impatient(8, 60).await;
    let before = own.impatient(60, 1).await;
    let other = own.impatient(1, 1).await;
    let waits = before.start(host, &script, &left).await.unwrap();
    let (started, ()) = tokio::join!(starter.start(host, &script, &failing), async {
        let both = || own.jobs().matches("PENDING").count() == 2;
        conformance::eventually("it waits for its turn", both).await;
        own.slurm.stop_controller();
    });
    let error = started.unwrap_err();
    assert_eq!(error.code, "controller-unreachable", "{error}");
    // What has its claim never begins, whether the controller hears of it or not.
    assert_eq!(other.sweep().await.ok(), Some(Vec::new()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let revoked = conformance::bounded(other.revoke(host, &left, Duration::ZERO)).await;
    assert_eq!(revoked.unwrap(), None);
    own.slurm.start_controller();
    let empty = || {
        // A controller that has just begun may not know yet that its node is drained.
        let _ = own.try_node("resume");
        let jobs = own.slurm.try_ask("squeue", &["-h"]);
        jobs.is_ok_and(|jobs| jobs.is_empty())
    };
    conformance::eventually("the queue is empty", empty).await;
    assert!(lost(&own.wait(&waits).await, "before it began"));
    assert!(!own.file("ran").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_be_lost_is_ended_all_the_same_when_it_is_taken_back() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let (token, handle) = own.begin(&own.waiting("exit 5")).await;
    // Neither the node nor its task is to be heard of.
    let place = std::fs::read_to_string(handle.dir.join("slurm")).unwrap();
    let nonce = place.split(' ').next().unwrap();
    let tasks = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let ours = pids.filter(|pid| {
            let said = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            said.split(|b| *b == 0).any(|word| word == nonce.as_bytes())
        });
        ours.map(|pid| pid.to_string()).collect::<Vec<_>>()
    };
    let signal = |signal: &str| {
        let mut kill = std::process::Command::new("kill");
        assert!(kill.arg(signal).args(tasks()).status().unwrap().success());
    };
    assert!(!tasks().is_empty());
    signal("-STOP");
    own.slurm.kill_daemon(1);
    let failed = || own.jobs().contains("NODE_FAIL");
    conformance::eventually("the controller gives the node up", failed).await;
    let begun = std::time::Instant::now();
    let status = loop {
        match own.executor.poll(&handle).await.unwrap() {
            Status::Running => tokio::time::sleep(Duration::from_millis(500)).await,
            status => break status,
        }
        assert!(begun.elapsed() < Duration::from_secs(90));
    };
    assert!(lost(&status, "NODE_FAIL"), "{status:?}");
    let revoked = own.executor.revoke(&own.specs[0], &token, Duration::ZERO);
    let revoked = conformance::bounded(revoked).await.unwrap();
    assert_eq!(revoked, Some(handle.clone()));
    // Nothing shows that it is gone: its claim stays.
    let error = own.executor.discard(&handle).await.unwrap_err();
    assert_eq!(error.code, "still-running", "{error}");
    assert!(!conformance::carriers(&token.0).is_empty());
    signal("-CONT");
    let gone = || conformance::carriers(&token.0).is_empty();
    conformance::eventually("it is ended as soon as its task is back", gone).await;
    let over = || handle.dir.join("over").exists();
    conformance::eventually("its task says so", over).await;
    own.executor.discard(&handle).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_is_about_to_be_written_is_taken_back() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let host = &own.specs[0];
    own.node("drain");
    let (token, script) = (conformance::token(), own.script("touch ran"));
    let other = own.impatient(60, 1).await;
    let waits = other.start(host, &script, &token).await.unwrap();
    std::fs::write(waits.dir.join("pid"), "").unwrap();
    let revoked = conformance::bounded(other.revoke(host, &token, Duration::ZERO));
    revoked.await.unwrap();
    // Its wrapper gave up, and another job for the token comes to its turn.
    std::fs::remove_file(waits.dir.join("pid")).unwrap();
    own.node("resume");
    own.quiet().await;
    assert!(!own.file("ran").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_is_refused_after_its_start_says_why() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    own.node("drain");
    let script = Script {
        work: "/proc/nowhere".into(),
        ..own.script("touch ran")
    };
    let other = own.impatient(60, 1).await;
    let token = conformance::token();
    let waits = other.start(&own.specs[0], &script, &token).await.unwrap();
    own.node("resume");
    let status = own.wait(&waits).await;
    assert!(
        lost(&status, "could not make the working folder"),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_while_the_controller_is_asked_had_begun() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let (host, token) = (&own.specs[0], conformance::token());
    let script = own.script("exit 3");
    let handle = own.executor.start(host, &script, &token).await.unwrap();
    assert!(exited(&own.wait(&handle).await, 3));
    own.quiet().await;
    let (claim, later) = (handle.dir.join("pid"), handle.dir.join("later"));
    std::fs::rename(&claim, &later).unwrap();
    own.slurm.pause_controller(true);
    let (found, ()) = tokio::join!(own.executor.find(host, &token), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::rename(&later, &claim).unwrap();
        own.slurm.pause_controller(false);
    });
    assert_eq!(found.unwrap(), Some(handle));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_announced_is_taken_out_of_the_queue() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let host = &own.specs[0];
    own.node("drain");
    let (known, other) = (conformance::token(), conformance::token());
    let killed = own.impatient(60, 1).await;
    let (one, two) = (own.script("touch one"), own.script("touch two"));
    let (kept, gone) = tokio::join!(
        killed.start(host, &one, &known),
        killed.start(host, &two, &other)
    );
    let (kept, gone) = (kept.unwrap(), gone.unwrap());
    drop(killed);
    let again = own.again(Duration::from_secs(60)).await;
    again.recall(&[known].into()).await.unwrap();
    assert!(lost(&own.wait(&gone).await, "before it began"));
    assert_eq!(again.poll(&kept).await.unwrap(), Status::Running);
    own.node("resume");
    assert!(exited(&own.wait(&kept).await, 0));
    own.quiet().await;
    assert!(own.file("one").exists() && !own.file("two").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_patience_is_one_for_all_nodes() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let patience_s = 20;
    let impatient = own.impatient(patience_s, 60).await;
    own.slurm.stop_controller();
    let script = own.script("touch ran");
    let tokens = [conformance::token(), conformance::token()];
    let begun = std::time::Instant::now();
    let starts = own.specs.iter().zip(&tokens);
    let starts = starts.map(|(host, token)| impatient.start(host, &script, token));
    let started = conformance::bounded(futures_util::future::join_all(starts)).await;
    for start in started {
        assert_eq!(start.unwrap_err().code, "controller-unreachable");
    }
    let took = begun.elapsed().as_secs();
    assert!((patience_s..2 * patience_s).contains(&took), "{took} s");
    own.slurm.start_controller();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gpus_of_the_plan_are_asked_of_slurm() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let host = &own.specs[0];
    let with = |gpus: u32, script: Script| Script {
        ask: Ask {
            gpus,
            ..Ask::default()
        },
        ..script
    };
    let tokens = [(); 3].map(|()| conformance::token());
    // The node has four.
    let (_, holder) = own.begin(&with(4, own.waiting("exit 5"))).await;
    let beside = own.script("exit 7");
    let beside = own.executor.start(host, &beside, &tokens[1]);
    assert!(exited(&own.wait(&beside.await.unwrap()).await, 7));
    let impatient = own.again(Duration::from_secs(1)).await;
    let one = with(1, own.script("exit 6"));
    let waits = impatient.start(host, &one, &tokens[0]);
    let waits = waits.await.unwrap();
    assert_eq!(waits.pid, 0, "it waits for the GPUs: {}", own.jobs());
    own.go();
    assert!(exited(&own.wait(&holder).await, 5));
    assert!(exited(&own.wait(&waits).await, 6));

    let many = with(9, own.script("touch ran"));
    let started = own.executor.start(host, &many, &tokens[2]);
    let error = conformance::bounded(started).await.unwrap_err();
    assert_eq!(error.code, "not-started", "{error}");
    assert!(!own.file("ran").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_has_the_time_that_it_may_be_needed_and_its_end_is_told() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(1).await;
    let with = async |service_time: Option<Duration>| {
        let options = SlurmOptions {
            service_time,
            ..options(&own.slurm, &own.dir.path().join("root"))
        };
        SlurmExecutor::new(options).await.unwrap()
    };
    let needed = Some(Duration::from_secs(10 * 3600));
    let service = Script {
        timeout: None,
        ask: Ask {
            needed,
            ..Ask::default()
        },
        ..own.script("sleep 1001")
    };
    let host = &own.specs[0];
    let begin = async |executor: &SlurmExecutor| {
        let token = conformance::token();
        let handle = executor.start(host, &service, &token).await.unwrap();
        let limits = own.slurm.ask("squeue", &["-h", "-o", "%l"]);
        (handle, limits.trim().to_owned())
    };
    let end = async |handle: &Handle| {
        let cancelled = own.executor.cancel(handle, Duration::from_millis(200));
        conformance::bounded(cancelled).await.unwrap();
        let gone = || own.slurm.ask("squeue", &["-h"]).is_empty();
        conformance::eventually("its job is gone", gone).await;
    };
    let (handle, limit) = begin(&with(None).await).await;
    assert_eq!(limit, "10:30:00", "and half an hour for waiting");
    end(&handle).await;

    let partition = ["update", "PartitionName=debug", "MaxTime=45"];
    own.slurm.ask("scontrol", &partition);
    let (handle, limit) = begin(&with(None).await).await;
    assert_eq!(limit, "45:00", "no more than the partition allows");
    end(&handle).await;

    let (handle, limit) = begin(&with(Some(Duration::from_secs(20))).await).await;
    assert_eq!(limit, "1:00", "no more than the platform says");
    let status = own.wait(&handle).await;
    assert!(lost(&status, "TimeLimit"), "{status:?}");
    assert!(lost(&status, "its 1 min were up"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_a_job_ended_that_nobody_saw_is_asked_of_the_accounts() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::on(Slurm::up_with_accounts(2)).await;
    let [one, two] = &own.specs;
    let begin = async |host: &HostSpec, name: &str| {
        let script = own.script(&format!("touch {name}; exec sleep 1001"));
        let token = conformance::token();
        let handle = own.executor.start(host, &script, &token).await.unwrap();
        conformance::eventually("it runs", || own.file(name).exists()).await;
        handle
    };
    let (lost_node, preempted) = tokio::join!(begin(one, "one"), begin(two, "two"));
    let two_node = format!("--nodelist={}", two.name);
    let urgent = [
        "--partition=urgent",
        "--exclusive",
        &two_node,
        "--output=/dev/null",
        "--chdir=/",
        "--wrap=true",
    ];
    own.slurm.ask("sbatch", &urgent);
    own.slurm.hosts.kill(1);
    let accounts = || {
        let said = own
            .slurm
            .try_ask("sacct", &["-X", "-P", "-n", "-o", "State"]);
        said.unwrap_or_default()
    };
    let both = || {
        ["NODE_FAIL", "PREEMPTED"]
            .iter()
            .all(|word| accounts().contains(word))
    };
    // Not `wait`, which asks less and less often.
    let until_lost = async |handle: &Handle| {
        let begun = std::time::Instant::now();
        loop {
            match own.executor.poll(handle).await.unwrap() {
                Status::Running => tokio::time::sleep(Duration::from_millis(300)).await,
                status => return status,
            }
            assert!(begun.elapsed() < Duration::from_secs(180));
        }
    };
    // Meanwhile their silence is counted, whatever the controller says of them.
    let begun = std::time::Instant::now();
    while !both() {
        for handle in [&lost_node, &preempted] {
            own.executor.poll(handle).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(begun.elapsed() < Duration::from_secs(180), "{}", accounts());
    }
    own.slurm.stop_controller();
    own.slurm.forget();
    own.slurm.start_controller();
    conformance::eventually("it answers", || own.slurm.try_ask("squeue", &[]).is_ok()).await;
    assert!(!own.jobs().contains("NODE_FAIL"), "{}", own.jobs());
    for (handle, word) in [(&lost_node, "NODE_FAIL"), (&preempted, "PREEMPTED")] {
        let status = until_lost(handle).await;
        let told = format!("{word} for Slurm, by its accounting");
        assert!(lost(&status, &told), "{status:?}");
    }

    // That nobody keeps them any more is no reason to wait for long.
    own.slurm.kill_accounts();
    // An answer holds for a moment.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let begun = std::time::Instant::now();
    let polled = conformance::bounded(own.executor.poll(&preempted));
    let polled = polled.await.unwrap();
    let first = begun.elapsed();
    assert!(matches!(polled, Status::Lost { .. }), "{polled:?}");
    assert!(!lost(&polled, "accounting"), "{polled:?}");
    // One has waited for all.
    let begun = std::time::Instant::now();
    let polls = [&preempted, &lost_node].map(|handle| own.executor.poll(handle));
    for status in futures_util::future::join_all(polls).await {
        assert!(!lost(&status.unwrap(), "accounting"));
    }
    let note = format!("{:?} after {first:?}\n", begun.elapsed());
    std::io::stderr().write_all(note.as_bytes()).unwrap();
}

impl Own {
    /// A client that attends to what runs under a name.
    async fn attending(&self, name: &str, survive: Duration, drives: bool) -> SlurmExecutor {
        let options = SlurmOptions {
            patience: survive,
            ..options(&self.slurm, &self.dir.path().join("root"))
        };
        let executor = SlurmExecutor::new(options).await.unwrap();
        executor.guard(name, survive, drives).unwrap();
        executor
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_attends_to_ends_itself() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let survive = Duration::from_secs(8);
    let first = own.attending("one", survive, false).await;
    let driver = own.attending("one", survive, true).await;
    let start = async |executor: &SlurmExecutor, host: usize, text: &str| {
        let (script, token) = (own.script(text), conformance::token());
        let started = executor.start(&own.specs[host], &script, &token);
        started.await.unwrap()
    };
    let stubborn = "trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 1001; done' & while :; do sleep 1002; done";
    let left = [
        start(&first, 0, stubborn).await,
        start(&first, 1, "sleep 1003").await,
    ];
    let driven = start(&driver, 0, "sleep 1005").await;
    let short = start(&first, 0, "sleep 1; echo kept; exit 5").await;
    // As long as somebody attends to it, however little there is to say.
    tokio::time::sleep(2 * survive).await;
    for handle in &left {
        assert_eq!(first.poll(handle).await.unwrap(), Status::Running);
    }
    drop(first);
    drop(driver);
    // One that takes it up in time keeps it alive.
    tokio::time::sleep(survive / 5).await;
    let next = own.attending("one", survive, false).await;
    tokio::time::sleep(survive * 3 / 2).await;
    for handle in &left {
        assert_eq!(next.poll(handle).await.unwrap(), Status::Running);
    }
    drop(next);
    // Neither who only looks nor who attends to something else does.
    let other = own.attending("two", survive, false).await;
    let its = start(&other, 0, "sleep 1004").await;
    for handle in &left {
        let gone = || conformance::carriers(&handle.token.0).is_empty();
        conformance::eventually("it ended itself", gone).await;
        let status = conformance::bounded(other.wait(handle)).await.unwrap();
        assert!(lost(&status, "nobody attended"), "{status:?}");
        assert!(other.ended_unix_ms(handle).await.unwrap().is_some());
    }
    assert_eq!(other.poll(&its).await.unwrap(), Status::Running);
    // What a driver has begun waits for the next one, as long as Slurm lets it.
    assert_eq!(other.poll(&driven).await.unwrap(), Status::Running);
    // What had ended by itself keeps its outcome.
    assert!(exited(&other.poll(&short).await.unwrap(), 5));
    for handle in [&its, &driven] {
        conformance::bounded(other.cancel(handle, Duration::ZERO))
            .await
            .unwrap();
        assert_eq!(conformance::carriers(&handle.token.0), [0; 0]);
    }
}

/// Two members of a gang, each on its node.
struct Gang {
    scripts: [Script; 2],
    tokens: [Token; 2],
}

impl Own {
    /// Two that say that they run and wait until they may end, each with a code of its own.
    fn gang(&self) -> Gang {
        self.gang_of([0, 1].map(|at| {
            format!(
                "echo run >>count{at}; touch up{at}; until [ -e go{at} ]; do sleep 0.1; done; exit {}",
                3 + 2 * at
            )
        }))
    }

    fn gang_of(&self, texts: [String; 2]) -> Gang {
        let together = Together {
            group: conformance::token().0,
            count: 2,
        };
        let scripts = texts.map(|text| Script {
            ask: Ask {
                together: Some(together.clone()),
                ..Ask::default()
            },
            ..self.script(&text)
        });
        Gang {
            scripts,
            tokens: [conformance::token(), conformance::token()],
        }
    }

    async fn start(&self, executor: &SlurmExecutor, gang: &Gang) -> [Handle; 2] {
        let start =
            |at: usize| executor.start(&self.specs[at], &gang.scripts[at], &gang.tokens[at]);
        let (one, two) = tokio::join!(start(0), start(1));
        [one.unwrap(), two.unwrap()]
    }

    async fn begin_gang(&self) -> (Gang, [Handle; 2]) {
        let gang = self.gang();
        let handles = self.start(&self.executor, &gang).await;
        self.both_run().await;
        (gang, handles)
    }

    async fn both_run(&self) {
        let up = || ["up0", "up1"].iter().all(|name| self.file(name).exists());
        conformance::eventually("both run", up).await;
    }

    fn may_end(&self, at: usize) {
        std::fs::write(self.file(&format!("go{at}")), b"").unwrap();
    }

    fn each_ran_once(&self) {
        for file in ["count0", "count1"] {
            assert_eq!(std::fs::read_to_string(self.file(file)).unwrap(), "run\n");
        }
    }

    /// What the controller says of our jobs: number, node, comment, GPUs.
    fn components(&self) -> Vec<Vec<String>> {
        let format = ["-h", "-r", "-t", "all", "-S", "i", "-o", "%i %N %k %b"];
        let said = self.slurm.ask("squeue", &format);
        let words = |line: &str| line.split(' ').map(str::to_owned).collect();
        said.lines().map(words).collect()
    }

    /// The one whose component is the second.
    fn on_second<'h>(&self, handles: &'h [Handle], jobs: &[Vec<String>]) -> &'h [Handle] {
        let second = jobs.iter().rfind(|job| job[0].ends_with("+1")).unwrap();
        let at = handles.iter().position(|handle| handle.host == second[1]);
        std::slice::from_ref(&handles[at.unwrap()])
    }

    /// A signal for all that runs on the second node but its daemons.
    fn signal_tasks_on_second(&self, signal: &str) {
        let tasks = self.slurm.hosts.processes(2).into_iter().filter(|pid| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            let command = command.unwrap_or_default();
            !command.starts_with("sshd") && !command.starts_with("slurm")
        });
        let tasks: Vec<String> = tasks.map(|pid| pid.to_string()).collect();
        assert!(!tasks.is_empty());
        // Some of them may have ended meanwhile.
        let mut kill = std::process::Command::new("kill");
        let _ = kill.arg(signal).args(&tasks).output();
    }

    /// A job of somebody else that has the second node for itself; its number.
    fn occupy(&self) -> String {
        let node = format!("--nodelist={}", self.specs[1].name);
        let arguments = [
            "--parsable",
            "--exclusive",
            &node,
            "--output=/dev/null",
            "--chdir=/",
            "--wrap=sleep 1001",
        ];
        self.slurm.ask("sbatch", &arguments).trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_a_gang_are_one_job_and_end_each_for_itself() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let mut gang = own.gang();
    gang.scripts[0].ask.gpus = 2;
    gang.scripts[1].ask.gpus = 1;
    let options = SlurmOptions {
        common: vec!["--cpus-per-task=3".into()],
        ..options(&own.slurm, &own.dir.path().join("root"))
    };
    let executor = SlurmExecutor::new(options).await.unwrap();
    let handles = own.start(&executor, &gang).await;
    own.both_run().await;
    let cpus = own.slurm.ask("squeue", &["-h", "-o", "%C"]);
    assert_eq!(cpus, "3\n3\n");
    let jobs = own.components();
    let [one, two] = &jobs[..] else {
        panic!("{jobs:?}");
    };
    let number = one[0].strip_suffix("+0").unwrap();
    assert_eq!(two[0], format!("{number}+1"));
    assert!(one[2] == two[2] && one[2].starts_with("doe:"), "{jobs:?}");
    for (spec, gpus) in own.specs.iter().zip(["gpu:2", "gpu:1"]) {
        let on = jobs.iter().find(|job| job[1] == spec.name).unwrap();
        assert!(on[3].ends_with(gpus), "{jobs:?}");
    }
    for handle in &handles {
        assert!(handle.pid > 0);
        assert_eq!(own.executor.poll(handle).await.unwrap(), Status::Running);
    }
    own.may_end(0);
    assert!(exited(&own.wait(&handles[0]).await, 3));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        own.executor.poll(&handles[1]).await.unwrap(),
        Status::Running
    );
    own.may_end(1);
    assert!(exited(&own.wait(&handles[1]).await, 5));
    own.quiet().await;
    // Whoever asks later is told the same.
    let again = own.again(Duration::from_secs(60)).await;
    assert!(exited(&again.poll(&handles[0]).await.unwrap(), 3));
    assert!(exited(&again.poll(&handles[1]).await.unwrap(), 5));
    own.each_ran_once();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_member_of_a_gang_begins_before_all_have_their_nodes() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let busy = own.occupy();
    let impatient = own.again(Duration::from_secs(1)).await;
    let gang = own.gang();
    let handles = own.start(&impatient, &gang).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    for handle in &handles {
        assert_eq!(handle.pid, 0, "it waits: {}", own.jobs());
        assert_eq!(impatient.poll(handle).await.unwrap(), Status::Running);
    }
    assert!(!own.file("up0").exists() && !own.file("up1").exists());
    let there = ["-h", "-w", &own.specs[0].name];
    assert_eq!(own.slurm.ask("squeue", &there), "");
    own.slurm.ask("scancel", &[&busy]);
    own.both_run().await;
    [0, 1].into_iter().for_each(|at| own.may_end(at));
    assert!(exited(&own.wait(&handles[0]).await, 3));
    assert!(exited(&own.wait(&handles[1]).await, 5));
    own.each_ran_once();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_that_is_taken_out_of_the_queue_comes_back_as_one_job() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let busy = own.occupy();
    // Two of the three are on one node, which is one component.
    let mut gang = own.gang();
    let mut third = own.script("echo run >>count2; exit 9");
    for script in &mut gang.scripts {
        script.ask.together.as_mut().unwrap().count = 3;
    }
    third.ask.clone_from(&gang.scripts[0].ask);
    let token = conformance::token();
    let (handles, third, ()) = tokio::join!(
        own.start(&own.executor, &gang),
        own.executor.start(&own.specs[0], &third, &token),
        async {
            let waits = || own.jobs().matches("PENDING").count() == 2;
            conformance::eventually("they wait", waits).await;
            let number = own.components().pop().unwrap()[0].clone();
            let whole = number.strip_suffix("+1").unwrap();
            own.slurm.ask("scancel", &[whole]);
            let again = || own.jobs().matches("PENDING").count() == 2;
            conformance::eventually("they wait again", again).await;
            own.slurm.ask("scancel", &[&busy]);
        }
    );
    own.both_run().await;
    assert!(exited(&own.wait(&third.unwrap()).await, 9));
    [0, 1].into_iter().for_each(|at| own.may_end(at));
    assert!(exited(&own.wait(&handles[0]).await, 3));
    assert!(exited(&own.wait(&handles[1]).await, 5));
    own.each_ran_once();
    assert_eq!(own.components().len(), 5, "{:?}", own.components());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_a_gang_is_cancelled_alone() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    for cancelled in [0, 1] {
        let other = 1 - cancelled;
        let (gang, handles) = own.begin_gang().await;
        let cancel = own
            .executor
            .cancel(&handles[cancelled], Duration::from_millis(200));
        conformance::bounded(cancel).await.unwrap();
        assert_eq!(conformance::carriers(&gang.tokens[cancelled].0), [0; 0]);
        let status = own.wait(&handles[cancelled]).await;
        assert!(
            matches!(&status, Status::Exited(exit) if exit.signal.is_some()),
            "{status:?}"
        );
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(
            own.executor.poll(&handles[other]).await.unwrap(),
            Status::Running
        );
        own.may_end(other);
        assert!(exited(&own.wait(&handles[other]).await, [3, 5][other]));
        own.quiet().await;
        std::fs::remove_dir_all(own.dir.path().join("work")).unwrap();
    }
    // One that waits for its turn: the job stays for the other one.
    let busy = own.occupy();
    let impatient = own.again(Duration::from_secs(1)).await;
    let handles = own.start(&impatient, &own.gang()).await;
    let cancel = impatient.cancel(&handles[0], Duration::ZERO);
    conformance::bounded(cancel).await.unwrap();
    assert_eq!(impatient.poll(&handles[1]).await.unwrap(), Status::Running);
    own.slurm.ask("scancel", &[&busy]);
    conformance::eventually("the other runs", || own.file("up1").exists()).await;
    own.may_end(1);
    assert!(exited(&own.wait(&handles[1]).await, 5));
    assert!(lost(&own.wait(&handles[0]).await, "before it began"));
    assert!(!own.file("up0").exists());
    own.quiet().await;
    // The last one takes it out of the queue.
    own.occupy();
    let handles = own.start(&impatient, &own.gang()).await;
    for handle in &handles {
        let cancel = impatient.cancel(handle, Duration::ZERO);
        conformance::bounded(cancel).await.unwrap();
    }
    let waits = || own.jobs().contains("PENDING");
    conformance::eventually("nothing waits", || !waits()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_client_finds_a_gang_by_its_tokens() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let busy = own.occupy();
    let killed = own.again(Duration::from_secs(1)).await;
    let gang = own.gang();
    let waiting = own.start(&killed, &gang).await;
    drop(killed);
    let again = own.again(Duration::from_secs(1)).await;
    for at in [0, 1] {
        let found = again.find(&own.specs[at], &gang.tokens[at]).await.unwrap();
        assert_eq!(found.as_ref(), Some(&waiting[at]));
    }
    // Started again while they wait they are the same.
    assert_eq!(own.start(&again, &gang).await, waiting);
    own.slurm.ask("scancel", &[&busy]);
    own.both_run().await;
    drop(again);
    let again = own.again(Duration::from_secs(60)).await;
    let handles = own.start(&again, &gang).await;
    let mut found = again.sweep().await.unwrap();
    found.sort_by_key(|handle| handle.token != gang.tokens[0]);
    assert_eq!(found, handles);
    assert_eq!(own.components().len(), 3, "{:?}", own.components());
    [0, 1].into_iter().for_each(|at| own.may_end(at));
    assert!(exited(&own.wait(&handles[0]).await, 3));
    assert!(exited(&own.wait(&handles[1]).await, 5));
    own.each_ran_once();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_whose_submission_was_not_answered_is_submitted_once() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let client = own.impatient(60, 60).await;
    own.slurm.pause_controller(true);
    let gang = own.gang();
    let (handles, ()) = tokio::join!(own.start(&client, &gang), async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        own.slurm.pause_controller(false);
    });
    own.both_run().await;
    // Where the controller heard a word twice, the second job finds nothing to do.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let comments = own.components().into_iter().map(|job| job[2].clone());
    assert_eq!(comments.collect::<std::collections::HashSet<_>>().len(), 1);
    [0, 1].into_iter().for_each(|at| own.may_end(at));
    assert!(exited(&own.wait(&handles[0]).await, 3));
    assert!(exited(&own.wait(&handles[1]).await, 5));
    own.each_ran_once();
    own.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_slurm_ends_of_a_gang_is_no_outcome_of_a_member() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    // The second says that all is well when it is told to end, and is quick about it.
    let mut gang = own.gang();
    gang.scripts[1].text = "trap 'exit 0' TERM; touch up1; while :; do sleep 0.05; done".into();
    for number in ["", "+1"] {
        for token in &mut gang.tokens {
            *token = conformance::token();
        }
        let name = &mut conformance::token().0;
        for script in &mut gang.scripts {
            script.ask.together.as_mut().unwrap().group.clone_from(name);
        }
        let handles = own.start(&own.executor, &gang).await;
        own.both_run().await;
        let jobs = own.components();
        let last = jobs.iter().rfind(|job| job[0].ends_with("+0"));
        let whole = last.unwrap()[0].strip_suffix("+0").unwrap();
        own.slurm.ask("scancel", &[&format!("{whole}{number}")]);
        let ended = match number {
            "" => &handles[..],
            // The component that is not the first ends alone.
            _ => own.on_second(&handles, &jobs),
        };
        for handle in ended {
            let status = loop {
                match own.executor.poll(handle).await.unwrap() {
                    Status::Running => tokio::time::sleep(Duration::from_millis(5)).await,
                    status => break status,
                }
            };
            assert!(lost(&status, "Slurm ended its job"), "{status:?}");
        }
        for handle in &handles {
            let cancel = own.executor.cancel(handle, Duration::ZERO);
            conformance::bounded(cancel).await.unwrap();
            assert_eq!(conformance::carriers(&handle.token.0), [0; 0]);
        }
        own.quiet().await;
        std::fs::remove_dir_all(own.dir.path().join("work")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_that_loses_a_node_is_lost() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let (gang, handles) = own.begin_gang().await;
    own.slurm.hosts.kill(2);
    let again = own.again(Duration::from_secs(60)).await;
    let status = own.wait(&handles[1]).await;
    assert!(lost(&status, "NODE_FAIL"), "{status:?}");
    // Slurm takes the nodes of all back.
    let status = conformance::bounded(again.wait(&handles[0])).await.unwrap();
    assert!(lost(&status, "Slurm ended its job"), "{status:?}");
    assert_eq!(conformance::carriers(&gang.tokens[0].0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_task_is_killed_is_lost_and_the_other_goes_on() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let (_, handles) = own.begin_gang().await;
    own.signal_tasks_on_second("-KILL");
    let status = own.wait(&handles[1]).await;
    assert!(lost(&status, "task is gone"), "{status:?}");
    assert_eq!(
        own.executor.poll(&handles[0]).await.unwrap(),
        Status::Running
    );
    own.may_end(0);
    assert!(exited(&own.wait(&handles[0]).await, 3));
    own.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_does_not_heed_is_ended_without_the_others() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    // On the second node is the second component.
    let gang = own.gang();
    let first = async {
        own.executor
            .start(&own.specs[0], &gang.scripts[0], &gang.tokens[0])
            .await
    };
    let second = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        own.executor
            .start(&own.specs[1], &gang.scripts[1], &gang.tokens[1])
            .await
    };
    let (first, second) = tokio::join!(first, second);
    let (first, second) = (first.unwrap(), second.unwrap());
    own.both_run().await;
    own.signal_tasks_on_second("-STOP");
    let cancel = own.executor.cancel(&second, Duration::ZERO);
    conformance::bounded(cancel).await.unwrap();
    assert_eq!(conformance::carriers(&gang.tokens[1].0), [0; 0]);
    let jobs = own.slurm.ask("squeue", &["-h", "-t", "all", "-o", "%i %T"]);
    let goes_on = |at: &str| jobs.contains(&format!("+{at} RUNNING"));
    assert!(goes_on("0") && !goes_on("1"), "{jobs}");
    assert_eq!(own.executor.poll(&first).await.unwrap(), Status::Running);
    own.may_end(0);
    assert!(exited(&own.wait(&first).await, 3));
    own.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_come_is_not_waited_for() {
    let Some(_told) = rig::own("slurm") else {
        return;
    };
    let own = Own::up(2).await;
    let gang = own.gang();
    // One that was taken back says so, one that nobody starts cannot.
    for revoked in [true, false] {
        let gang = own.gang_of(["exit 3".into(), "exit 5".into()]);
        if revoked {
            let token = &gang.tokens[1];
            let revoke = own.executor.revoke(&own.specs[1], token, Duration::ZERO);
            revoke.await.unwrap();
            let start = |at: usize| {
                own.executor
                    .start(&own.specs[at], &gang.scripts[at], &gang.tokens[at])
            };
            let (one, two) = tokio::join!(start(0), start(1));
            assert_eq!(two.unwrap_err().code, "not-started");
            assert!(exited(&own.wait(&one.unwrap()).await, 3));
        } else {
            let start = own
                .executor
                .start(&own.specs[0], &gang.scripts[0], &gang.tokens[0]);
            assert!(exited(&own.wait(&start.await.unwrap()).await, 3));
        }
    }
    // Slurm hands out no nodes together without its backfill scheduler.
    own.quiet().await;
    own.slurm.stop_controller();
    let config = std::fs::read_to_string(own.slurm.config()).unwrap();
    let config = config.replace("sched/backfill", "sched/builtin");
    std::fs::write(own.slurm.config(), config).unwrap();
    own.slurm.start_controller();
    own.slurm.wait_until_up();
    let start = |at: usize| {
        own.executor
            .start(&own.specs[at], &gang.scripts[at], &gang.tokens[at])
    };
    let (one, two) = tokio::join!(start(0), start(1));
    for error in [one.unwrap_err(), two.unwrap_err()] {
        assert_eq!(error.code, "not-started", "{error}");
        assert!(error.causes[0].contains("not supported"), "{error:?}");
    }
    // Whom that does not suit says so.
    let options = SlurmOptions {
        together: false,
        ..options(&own.slurm, &own.dir.path().join("root"))
    };
    let apart = SlurmExecutor::new(options).await.unwrap();
    let gang = own.gang_of(["exit 3".into(), "exit 5".into()]);
    let [one, two] = own.start(&apart, &gang).await;
    assert!(exited(&own.wait(&one).await, 3) && exited(&own.wait(&two).await, 5));
}
