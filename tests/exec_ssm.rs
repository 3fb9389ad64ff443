//! The ssm executor against the suite for all executors, over an endpoint that really executes
//! what it is sent and a real S3 server, and against what the service can do to it: throttling,
//! lost answers, duplicated commands, instances that die, results that never come.
#![cfg(feature = "aws")]

mod aws_endpoint;
#[macro_use]
mod conformance;
#[path = "rig/cloud.rs"]
mod cloud;
mod rig;
mod s3;

use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::Duration;

use aws_endpoint::Ping;
use cloud::{Cloud, instance};
use conformance::{Rig, bounded, carriers, eventually, token};
use doe::exec::{Executor, Script, Sign, Status, Stream};

/// Instances for the tests that run at a time; they go with the last of these.
fn shared_cloud() -> Arc<Cloud> {
    static CLOUD: LazyLock<Mutex<Weak<Cloud>>> = LazyLock::new(Mutex::default);
    let mut cloud = CLOUD.lock().unwrap_or_else(|e| e.into_inner());
    cloud.upgrade().unwrap_or_else(|| {
        let up = Arc::new(Cloud::up(None));
        *cloud = Arc::downgrade(&up);
        up
    })
}

async fn ssm_rig() -> Rig {
    let cloud = shared_cloud();
    let scratch = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&scratch.path().join("it's a root")).await;
    Rig {
        executor: Box::new(executor),
        hosts: cloud.specs(),
        netns: Some([cloud.hosts.netns(1), cloud.hosts.netns(2)]),
        scratch,
        attached: false,
        keep: Some(Box::new(cloud)),
    }
}

conformance!(
    "ssm",
    match rig::skipped() {
        true => None,
        false => Some(ssm_rig().await),
    }
);

#[test]
fn peer_process() {
    conformance::process::peer_process();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_skew() {
    let Some(_told) = rig::told("ssm", "clock skew") else {
        return;
    };
    // Clocks of its own: other tests look at theirs.
    let cloud = Cloud::up(None);
    let scratch = tempfile::tempdir().unwrap();
    let rig = Rig {
        executor: Box::new(cloud.connect(&scratch.path().join("root")).await),
        hosts: cloud.specs(),
        netns: None,
        scratch,
        attached: false,
        keep: None,
    };
    conformance::hosts::clock_skew(&rig, |ahead_s| cloud.hosts.set_clocks(ahead_s)).await;
}

fn script(text: &str, dir: &Path) -> Script {
    Script {
        name: "step-test".into(),
        text: text.into(),
        env: Default::default(),
        work: dir.join("work"),
        timeout: Some(Duration::from_secs(120)),
        log_cap_bytes: 1 << 20,
        attached: false,
        ask: Default::default(),
    }
}

/// The same with a secret.
fn private(text: &str, dir: &Path) -> Script {
    let mut script = script(text, dir);
    let env = [("DOE_SECRETS", "HF_TOKEN"), ("HF_TOKEN", "hf_0123456789")];
    script.env = env.map(|(name, value)| (name.into(), value.into())).into();
    script
}

/// What the bucket has of the start of a token with secrets.
fn private_input(cloud: &Cloud, token: &str) -> std::path::PathBuf {
    cloud.s3.file(&format!("doe/answers/{token}.in"))
}

/// How often a script that writes a line into `count` was run.
fn runs_of(dir: &Path) -> usize {
    let text = std::fs::read_to_string(dir.join("work/count")).unwrap_or_default();
    text.lines().count()
}

const COUNTING: &str = "echo once >>count; echo done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_says_what_it_is_and_how_long_it_may_take() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    let token = token();
    let handle = executor
        .start(&cloud.specs()[0], &script(COUNTING, dir.path()), &token)
        .await
        .unwrap();
    bounded(executor.wait(&handle)).await.unwrap();
    let comment = format!("doe:{}", token.0);
    let sent = cloud.endpoint.commands();
    let start: Vec<_> = sent.iter().filter(|c| c.comment == comment).collect();
    assert_eq!(start.len(), 1);
    // Its own limit, the grace, and the way there.
    assert_eq!(
        start[0].execution_timeout,
        Duration::from_secs(120 + 4 + 120)
    );
    assert!(sent.iter().all(|c| c.document == "AWS-RunShellScript"));
    // Neither the credentials nor anything of the plan is in what the service is told.
    for command in &sent {
        let told = format!("{}{}", command.comment, command.parameters);
        assert!(!told.contains(&cloud.s3.secret) && !told.contains("echo once"));
    }
    assert_eq!(cloud.intents(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_is_respected_and_survived() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    cloud.endpoint.faults(|faults| faults.throttle = 6);
    let handle = executor
        .start(&cloud.specs()[0], &script(COUNTING, dir.path()), &token())
        .await
        .unwrap();
    assert_eq!(cloud.endpoint.faults_left().throttle, 0);
    let status = bounded(executor.wait(&handle)).await.unwrap();
    assert!(matches!(status, Status::Exited(exit) if exit.success()));
    assert_eq!(runs_of(dir.path()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_looked_up_and_nothing_is_sent_again() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    // It comes into sight late, too.
    cloud.endpoint.faults(|faults| {
        faults.lose_answers = 1;
        faults.invisible = Duration::from_secs(1);
    });
    let token = token();
    let handle = executor
        .start(&cloud.specs()[0], &script(COUNTING, dir.path()), &token)
        .await
        .unwrap();
    let comment = format!("doe:{}", token.0);
    let sent = cloud.endpoint.commands();
    assert_eq!(sent.iter().filter(|c| c.comment == comment).count(), 1);
    assert!(cloud.endpoint.asked("ListCommands") > 0);
    bounded(executor.wait(&handle)).await.unwrap();
    assert_eq!(runs_of(dir.path()), 1);
    // Others have sent so much since that it is on the third page.
    cloud.endpoint.faults(|faults| {
        faults.lose_answers = 1;
        faults.clutter = 120;
    });
    let before = cloud.endpoint.asked("ListCommands");
    let again = self::token();
    let handle = executor
        .start(&cloud.specs()[0], &script(COUNTING, dir.path()), &again)
        .await
        .unwrap();
    assert!(cloud.endpoint.asked("ListCommands") - before >= 3);
    let comment = format!("doe:{}", again.0);
    let sent = cloud.endpoint.commands();
    assert_eq!(sent.iter().filter(|c| c.comment == comment).count(), 1);
    bounded(executor.wait(&handle)).await.unwrap();
    assert_eq!(runs_of(dir.path()), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_failed_before_is_made_again() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    cloud.endpoint.faults(|faults| faults.fail_before = 1);
    let handle = executor
        .start(&cloud.specs()[0], &script(COUNTING, dir.path()), &token())
        .await
        .unwrap();
    bounded(executor.wait(&handle)).await.unwrap();
    assert_eq!(runs_of(dir.path()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicated_command_points_to_the_first() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    for round in 1..=3 {
        // Twice at a time, and once more when its script has ended.
        cloud.endpoint.faults(|faults| faults.duplicate = 1);
        let handle = executor
            .start(&cloud.specs()[0], &script(COUNTING, dir.path()), &token())
            .await
            .unwrap();
        let status = bounded(executor.wait(&handle)).await.unwrap();
        assert!(matches!(status, Status::Exited(exit) if exit.success()));
        eventually("all copies are over", || {
            let all = cloud.endpoint.commands();
            all.iter().all(|c| c.status().0 == "Success")
        })
        .await;
        assert_eq!(runs_of(dir.path()), round);
        assert_eq!(
            executor.log(&handle, Stream::Stdout, 0).await.unwrap(),
            b"done\n"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_never_comes_is_asked_for_again() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    let handle = executor
        .start(&cloud.specs()[0], &script(COUNTING, dir.path()), &token())
        .await
        .unwrap();
    cloud.endpoint.faults(|faults| faults.swallow = 1);
    let status = bounded(executor.wait(&handle)).await.unwrap();
    assert!(matches!(status, Status::Exited(exit) if exit.success()));
    // For ever without answers: an error, and no outcome.
    let hasty = cloud
        .try_connect(&dir.path().join("root"), Duration::from_secs(1))
        .await
        .unwrap();
    cloud.endpoint.faults(|faults| faults.swallow = 1000);
    let error = bounded(hasty.poll(&handle)).await.unwrap_err();
    assert_eq!(error.code, "host-unreachable");
    let text = format!("{error:?}");
    assert!(text.contains("never came to the bucket"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_do_not_end_are_told_apart_and_are_no_outcome() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let executor = cloud.connect(&root).await;
    let hasty = cloud
        .try_connect(&root, Duration::from_millis(1))
        .await
        .unwrap();
    let handle = executor
        .start(&cloud.specs()[0], &script("exit 4", dir.path()), &token())
        .await
        .unwrap();
    bounded(executor.wait(&handle)).await.unwrap();
    for (status, details, said) in [
        ("TimedOut", "DeliveryTimedOut", "Delivery Timed Out"),
        ("TimedOut", "ExecutionTimedOut", "Execution Timed Out"),
        ("Failed", "Undeliverable", "Undeliverable"),
        ("Failed", "Terminated", "Terminated"),
        ("Cancelled", "Cancelled", "Cancelled"),
        ("Failed", "Failed", "failed before it had an answer"),
    ] {
        let spoil = || {
            cloud
                .endpoint
                .faults(|faults| faults.spoil.push((status, details)))
        };
        spoil();
        let polled = bounded(executor.poll(&handle)).await.unwrap();
        assert!(matches!(polled, Status::Exited(exit) if exit.code == Some(4)));
        spoil();
        let error = bounded(hasty.poll(&handle)).await.unwrap_err();
        assert_eq!(
            (error.code, error.kind.exit_code()),
            ("host-unreachable", 4)
        );
        let text = format!("{error:?}");
        assert!(text.contains(said), "{details}: {text}");
    }
    // An agent that fetches nothing any more.
    cloud.endpoint.ping(&instance(1), Ping::ConnectionLost);
    let error = bounded(hasty.poll(&handle)).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("Delivery Timed Out"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_dies_is_an_error_and_comes_back_as_a_loss() {
    let Some(_told) = rig::told("ssm", "killed host") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud
        .try_connect(&dir.path().join("root"), Duration::from_secs(3))
        .await
        .unwrap();
    let handle = executor
        .start(
            &cloud.specs()[0],
            &script("sleep 1001", dir.path()),
            &token(),
        )
        .await
        .unwrap();
    cloud.endpoint.ping(&instance(1), Ping::Gone);
    cloud.hosts.kill(1);
    let error = bounded(executor.wait(&handle)).await.unwrap_err();
    assert_eq!(
        (error.code, error.kind.exit_code()),
        ("host-unreachable", 4)
    );
    assert!(
        format!("{error:?}").contains("InvalidInstanceId")
            || format!("{error:?}").contains("Undeliverable"),
        "{error:?}"
    );
    // The other one does not feel it.
    let other = executor
        .start(
            &cloud.specs()[1],
            &script("echo other", dir.path()),
            &token(),
        )
        .await
        .unwrap();
    let status = bounded(executor.wait(&other)).await.unwrap();
    assert!(matches!(status, Status::Exited(exit) if exit.success()));
    // It is started again: what ran there is lost.
    cloud.endpoint.ping(&instance(1), Ping::Online);
    let status = bounded(executor.wait(&handle)).await.unwrap();
    assert!(
        matches!(&status, Status::Lost { why } if why.contains("no exit record")),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_client_had_submitted_never_begins() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let executor = cloud.connect(&root).await;
    let token = token();
    let comment = format!("doe:{}", token.0);
    let held = comment.clone();
    cloud.endpoint.faults(|faults| faults.hold = Some(held));
    let script = private("echo once >>count; sleep 1001", dir.path());
    let input = private_input(&cloud, &token.0);
    {
        let specs = cloud.specs();
        let start = executor.start(&specs[0], &script, &token);
        let accepted = async {
            eventually("the command is accepted", || {
                let all = cloud.endpoint.commands();
                all.iter().any(|c| c.comment == comment)
            })
            .await;
        };
        // The client dies before the command has come to the host.
        tokio::select! {
            started = start => panic!("{started:?}"),
            () = accepted => {}
        }
    }
    drop(executor);
    assert_eq!(cloud.intents(), 1);
    assert!(input.exists());
    // Who only looks takes nothing back.
    let again = cloud.connect(&root).await;
    assert_eq!(cloud.intents(), 1);
    again.recall(&cloud.specs()).await.unwrap();
    assert_eq!(cloud.intents(), 0);
    assert!(!input.exists());
    cloud.endpoint.faults(|faults| faults.hold = None);
    let sent = cloud.endpoint.commands();
    let first = sent.iter().find(|c| c.comment == comment).unwrap();
    assert_eq!(first.status().0, "Cancelled");
    // Nor does a copy that comes later begin.
    let late = again.start(&cloud.specs()[0], &script, &token).await;
    assert_eq!(late.unwrap_err().code, "not-started");
    assert!(!input.exists());
    assert_eq!(runs_of(dir.path()), 0);
    assert_eq!(carriers(&token.0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_secrets_that_nobody_takes_leaves_none_in_the_bucket() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let patience = Duration::from_secs(2);
    let executor = cloud.try_connect(&dir.path().join("root"), patience).await;
    let executor = executor.unwrap();
    cloud.endpoint.ping(&instance(1), Ping::ConnectionLost);
    let (token, script) = (token(), private(COUNTING, dir.path()));
    let started = bounded(executor.start(&cloud.specs()[0], &script, &token)).await;
    assert_eq!(started.unwrap_err().code, "host-unreachable");
    assert!(!private_input(&cloud, &token.0).exists());
    assert_eq!(runs_of(dir.path()), 0);
    // And where all goes well.
    let token = conformance::token();
    let handle = executor.start(&cloud.specs()[1], &script, &token).await;
    bounded(executor.wait(&handle.unwrap())).await.unwrap();
    assert!(!private_input(&cloud, &token.0).exists());
    assert_eq!(runs_of(dir.path()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_survives_the_client_and_a_sweep_finds_what_runs() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let executor = cloud.connect(&root).await;
    let long = script("echo up; sleep 1001", dir.path());
    let token = token();
    let running = executor
        .start(&cloud.specs()[0], &long, &token)
        .await
        .unwrap();
    drop(executor);
    let again = cloud.connect(&root).await;
    assert_eq!(again.poll(&running).await.unwrap(), Status::Running);
    assert_eq!(
        again.sweep(&cloud.specs()[0]).await.unwrap(),
        std::slice::from_ref(&running)
    );
    bounded(again.cancel(&running, Duration::from_millis(200)))
        .await
        .unwrap();
    assert_eq!(carriers(&token.0), [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_inputs_and_files_go_through_the_bucket_once() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    let mut long = script(
        "printf %s \"$long\" | wc -c; head -c 3000000 /dev/zero >a; cp a b",
        dir.path(),
    );
    long.env.insert("long".into(), "x".repeat(100_000));
    let handle = executor
        .start(&cloud.specs()[0], &long, &token())
        .await
        .unwrap();
    bounded(executor.wait(&handle)).await.unwrap();
    assert_eq!(
        executor.log(&handle, Stream::Stdout, 0).await.unwrap(),
        b"100000\n"
    );
    let names = ["a".to_owned(), "missing".to_owned(), "b".to_owned()];
    let into = dir.path().join("into");
    let got = executor
        .collect(&cloud.specs()[0], &dir.path().join("work"), &names, &into)
        .await
        .unwrap();
    assert_eq!(got, [into.join("a"), into.join("b")]);
    assert_eq!(std::fs::read(&got[1]).unwrap(), vec![0; 3_000_000]);
    // Its name in the bucket is its digest, and one content is there once.
    let blobs = cloud.s3.file("doe/blobs");
    let right = std::fs::read_dir(&blobs)
        .unwrap()
        .flatten()
        .filter(|entry| {
            use sha2::{Digest, Sha256};
            let content = std::fs::read(entry.path()).unwrap();
            let sum: String = Sha256::digest(&content)
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            content.len() == 3_000_000 && entry.file_name().to_str() == Some(&sum)
        });
    assert_eq!(right.count(), 1);
    // All documents were short enough, and no answer is left in the bucket.
    eventually("answers are taken away", || {
        std::fs::read_dir(cloud.s3.file("doe/answers")).map_or(0, Iterator::count) == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_nobody_could_find_does_not_begin_after_all_is_over() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    // Taken, and for long neither told, seen nor delivered: it is sent again.
    cloud.endpoint.faults(|faults| {
        faults.lose_answers = 1;
        faults.hold_lost = true;
        faults.hide_lost = true;
        faults.delay = Duration::from_secs(1);
    });
    let token = token();
    let (specs, script) = (cloud.specs(), script(COUNTING, dir.path()));
    let comment = format!("doe:{}", token.0);
    let ours = || {
        let all = cloud.endpoint.commands().into_iter();
        all.filter(|c| c.comment == comment).collect::<Vec<_>>()
    };
    let seen = async {
        eventually("it is sent again", || ours().len() == 2).await;
        cloud.endpoint.faults(|faults| faults.hide_lost = false);
    };
    let (started, ()) = tokio::join!(executor.start(&specs[0], &script, &token), seen);
    let handle = started.unwrap();
    bounded(executor.wait(&handle)).await.unwrap();
    executor.discard(&handle).await.unwrap();
    cloud.endpoint.faults(|faults| faults.hold_lost = false);
    eventually("both are over", || {
        let open = ["Pending", "InProgress", "Cancelling"];
        ours().iter().all(|c| !open.contains(&c.status().0))
    })
    .await;
    assert_eq!(ours()[0].status().0, "Cancelled");
    assert_eq!(runs_of(dir.path()), 1);
    assert_eq!(cloud.intents(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_submitted_to_another_instance_of_that_name_is_let_be() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    let token = token();
    let note = serde_json::json!({"token": token.0, "host": cloud.hosts.name(1),
        "instance": instance(7), "comment": format!("doe:{}", token.0), "unix_s": 1});
    let path = cloud.notes().join(format!("{}.json", token.0));
    std::fs::write(&path, note.to_string()).unwrap();
    let input = private_input(&cloud, &token.0);
    std::fs::create_dir_all(input.parent().unwrap()).unwrap();
    std::fs::write(&input, "HF_TOKEN=hf_0123456789").unwrap();
    executor.recall(&cloud.specs()).await.unwrap();
    // It may be on its way there, and is for the platform that has that instance.
    assert!(path.exists());
    // That instance may have been replaced: it may have what it would read no more.
    assert!(!input.exists());
    let listed = cloud.endpoint.asked("ListCommands");
    assert_eq!(listed, 0);
    let host = &cloud.specs()[0];
    assert_eq!(executor.find(host, &token).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_in_the_bucket_is_sent_anew() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    let [one, two] = cloud.specs();
    let handle = executor
        .start(&one, &script("seq 1 9999 >a", dir.path()), &token())
        .await
        .unwrap();
    bounded(executor.wait(&handle)).await.unwrap();
    let work = dir.path().join("work");
    let content = std::fs::read(work.join("a")).unwrap();
    let names = ["a".to_owned()];
    let damage = |new: &[u8]| {
        let mut damaged = 0;
        for entry in std::fs::read_dir(cloud.s3.file("doe/blobs")).unwrap() {
            let path = entry.unwrap().path();
            if std::fs::read(&path).unwrap() == content {
                std::fs::write(path, new).unwrap();
                damaged += 1;
            }
        }
        assert_eq!(damaged, 1);
    };
    // As it is, with another byte, and cut short.
    let mut other = content.clone();
    other[77] ^= 1;
    for (round, new) in [&content, &other, &content[..99].to_vec()]
        .into_iter()
        .enumerate()
    {
        let into = dir.path().join(format!("into{round}"));
        let got = executor.collect(&one, &work, &names, &into).await.unwrap();
        assert_eq!(std::fs::read(&got[0]).unwrap(), content, "{round}");
        damage(new);
    }
    // What is on its way to a host too, when the bucket can tell.
    let source = work.join("a");
    let digest = doe_cache::Digest(*blake3::hash(&content).as_bytes());
    let staged = executor.stage(&two, &[(digest, source)]).await.unwrap();
    assert_eq!(std::fs::read(&staged[0]).unwrap(), content);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_is_waited_for_on_the_host_with_one_command() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    let host = &cloud.specs()[0];
    let sent = || cloud.endpoint.asked("SendCommand");
    let file = dir.path().join("sign");
    let port = executor.free_port(host).await.unwrap();
    let address = format!("{}:{port}", host.address);
    let limit = Duration::from_secs(60);
    // Each sign shows two seconds after it was first looked for.
    let later = || {
        let (file, address) = (file.clone(), address.clone());
        let netns = cloud.hosts.netns(1);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(2));
            std::fs::write(file, "").unwrap();
            rig::listen_in(Some(&netns), &address).unwrap()
        })
    };
    for (sign, commands) in [
        (Sign::File(file.clone()), 1),
        (Sign::Tcp(address.clone()), 1),
        // At which address somebody listens is asked once more.
        (Sign::Listen(port), 2),
    ] {
        let _ = std::fs::remove_file(&file);
        let before = sent();
        let showing = later();
        assert!(
            bounded(executor.await_sign(host, &sign, limit))
                .await
                .unwrap()
        );
        assert_eq!(sent() - before, commands, "{sign:?}");
        drop(showing.join().unwrap());
    }
    // A limit is kept, and what cannot be looked for is an error.
    let sign = Sign::Tcp(address.clone());
    let seen = executor.await_sign(host, &sign, Duration::from_secs(1));
    assert!(!bounded(seen).await.unwrap());
    let sign = Sign::Http("ftp://x/".into());
    let error = executor.await_sign(host, &sign, limit).await.unwrap_err();
    assert_eq!(error.code, "bad-probe");
    // Who does not wait any more holds none of the agent's workers.
    let sign = Sign::File(dir.path().join("never"));
    let waiting = executor.await_sign(host, &sign, limit);
    let before = sent();
    tokio::select! {
        seen = waiting => panic!("{seen:?}"),
        () = eventually("the command is on the host", || sent() > before) => {}
    }
    eventually("it is taken back", || {
        cloud.endpoint.commands().last().unwrap().status().0 == "Cancelled"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_long_asks_less_and_less() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    let asked = || {
        let of = |operation| cloud.endpoint.asked(operation);
        [of("SendCommand"), of("GetCommandInvocation")]
    };
    let long = script("sleep 20", dir.path());
    let handle = executor
        .start(&cloud.specs()[0], &long, &token())
        .await
        .unwrap();
    let before = asked();
    bounded(executor.wait(&handle)).await.unwrap();
    let [sent, looked] = asked();
    // 2, 4, 8 and 16 s on the host; looks at the service 1.5 s after each, then half as long again.
    assert!(sent - before[0] <= 5, "{sent}");
    assert!(looked - before[1] <= 12, "{looked}");
}

/// With the real service a command takes its time to come to a host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_to_a_host_is_no_difference_of_clocks() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    let delay = Duration::from_secs(2);
    cloud.endpoint.faults(|faults| faults.delay = delay);
    let facts = executor.probe(&cloud.specs()[0]).await.unwrap();
    assert_eq!(facts["clock_ahead_ms"], "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_cannot_be_used_are_named() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    cloud.endpoint.ping(&instance(2), Ping::ConnectionLost);
    let fails = async || {
        let root = dir.path().join("root");
        let tried = cloud.try_connect(&root, Duration::from_secs(1));
        let error = tried.await.err().expect("it was connected");
        assert_eq!((error.code, error.kind.exit_code()), ("host-unusable", 4));
        format!("{error:?}")
    };
    let text = fails().await;
    assert!(
        text.contains("lost its connection") && text.contains("tag"),
        "{text}"
    );
    cloud.endpoint.ping(&instance(2), Ping::Online);
    cloud.endpoint.ping(&instance(1), Ping::Gone);
    let text = fails().await;
    assert!(text.contains("does not know the instance"), "{text}");
}

/// MiniStack knows neither limits nor cancelling nor late visibility, but it was written by
/// others: what it answers is not what we think that the service answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_independent_emulator_is_understood() {
    use doe::exec::remote::RemoteOptions;
    use doe::exec::ssm::{Named, SsmOptions};
    let server = s3::Server::start(s3::Kind::Instances);
    let dir = tempfile::tempdir().unwrap();
    let credentials = dir.path().join("credentials");
    let profile = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        server.key, server.secret
    );
    std::fs::write(&credentials, profile).unwrap();
    let url = format!("http://127.0.0.1:{}", server.port);
    let options = SsmOptions {
        region: Some("us-east-1".into()),
        endpoint: Some(url.clone()),
        s3_endpoint: Some(url),
        credentials: Some(credentials),
        ..SsmOptions::new(s3::BUCKET.into(), dir.path().join("intents"))
    };
    let host = doe::exec::HostSpec {
        name: "one".into(),
        address: "127.0.0.1".into(),
        gpus: 0,
    };
    let remote = RemoteOptions {
        root: dir.path().join("root").to_str().unwrap().to_owned(),
        patience: Duration::from_secs(30),
        grace: Duration::from_secs(2),
    };
    let named = [("one".to_owned(), Named::Id(instance(1)))];
    let hosts = std::slice::from_ref(&host);
    let executor = doe::exec::ssm::connect(&options, &named, &remote, hosts)
        .await
        .unwrap();
    let text = "echo once >>count; seq 1 20000; exit 3";
    let handle = executor
        .start(&host, &script(text, dir.path()), &token())
        .await
        .unwrap();
    let status = bounded(executor.wait(&handle)).await.unwrap();
    assert!(matches!(status, Status::Exited(exit) if exit.code == Some(3)));
    // Longer than what the service would have told.
    let said = executor.log(&handle, Stream::Stdout, 0).await.unwrap();
    assert_eq!(said.len(), 108_894);
    let names = ["count".to_owned()];
    let into = dir.path().join("into");
    let got = executor
        .collect(&host, &dir.path().join("work"), &names, &into)
        .await
        .unwrap();
    assert_eq!(std::fs::read_to_string(&got[0]).unwrap(), "once\n");
    // An instance that it does not know is refused.
    let named = [("one".to_owned(), Named::Id(instance(9)))];
    let tried = doe::exec::ssm::connect(&options, &named, &remote, hosts).await;
    assert_eq!(tried.err().expect("it was connected").code, "host-unusable");
}
