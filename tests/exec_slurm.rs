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
use doe::exec::{Ask, Executor, Handle, HostSpec, Script, Status, Stream, Token};
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
        patience: Duration::from_secs(60),
        queue: Duration::from_secs(60),
        grace: Duration::from_secs(2),
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

conformance!(match rig::skipped() {
    true => return,
    false => slurm_rig().await,
});

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
        let slurm = Slurm::up(nodes);
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
        let node = format!("nodename={}", self.specs[0].name);
        let state = format!("state={state}");
        let arguments = ["update", &node, &state, "reason=test"];
        self.slurm.ask("scontrol", &arguments);
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
    if rig::skipped() {
        return;
    }
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
    if rig::skipped() {
        return;
    }
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
    if rig::skipped() {
        return;
    }
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
    if rig::skipped() {
        return;
    }
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
    if rig::skipped() {
        return;
    }
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
    if rig::skipped() {
        return;
    }
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
    if rig::skipped() {
        return;
    }
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
    if rig::skipped() {
        return;
    }
    let own = Own::up(1).await;
    let (token, handle) = own.begin(&own.waiting("exit 5")).await;
    let number = own.jobs().split(' ').next().unwrap().to_owned();
    // As preemption does, and the end of the partition's time.
    own.slurm.ask("scancel", &[&number]);
    let status = own.wait(&handle).await;
    assert!(lost(&status, "Slurm ended its job"), "{status:?}");
    assert_eq!(conformance::carriers(&token.0), [0; 0]);
    assert!(own.executor.ended_unix_ms(&handle).await.unwrap().is_some());

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
async fn what_slurm_refuses_or_lets_wait_for_ever_is_an_error_at_once() {
    if rig::skipped() {
        return;
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_survives_the_client_and_a_sweep_finds_what_runs() {
    if rig::skipped() {
        return;
    }
    let own = Own::up(1).await;
    let script = own.script("echo x; exit 3");
    let token = conformance::token();
    let done = own.executor.start(&own.specs[0], &script, &token);
    let done = done.await.unwrap();
    own.wait(&done).await;
    let long = own.waiting("exit 5");
    let (token, running) = own.begin(&long).await;
    let again = own.again(Duration::from_secs(60)).await;
    assert!(exited(&again.poll(&done).await.unwrap(), 3));
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
        count.unwrap_or(0)
    };
    (
        count("REQUEST_JOB_INFO "),
        count("REQUEST_SUBMIT_BATCH_JOB"),
    )
}

/// `DOE_TEST_LONG=1`: 2,000 short scripts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wide_layers_go_through_arrays_and_few_questions() {
    if rig::skipped() {
        return;
    }
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
    assert!(
        submissions <= count as u64 / 20,
        "{submissions} submissions"
    );
    assert!(
        questions <= seconds + 20,
        "{questions} questions in {seconds} s"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gpus_of_the_plan_are_asked_of_slurm() {
    if rig::skipped() {
        return;
    }
    let own = Own::up(1).await;
    let host = &own.specs[0];
    let with = |gpus: u32, script: Script| Script {
        ask: Ask { gpus, needed: None },
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
    if rig::skipped() {
        return;
    }
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
        ask: Ask { gpus: 0, needed },
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
