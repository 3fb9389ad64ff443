//! Scripts that live and die with `doe` against the suite for all executors: whoever reads their
//! end or their logs finds what a wrapper would have left.

#[macro_use]
mod conformance;
mod rig;

use std::time::Duration;

use conformance::Rig;
use doe::exec::HostSpec;
use doe::exec::local::{LocalExecutor, LocalOptions};

fn rig() -> Rig {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("it's a root");
    let options = LocalOptions {
        grace: Duration::from_secs(4),
        ..LocalOptions::new(env!("CARGO_BIN_EXE_doe"))
    };
    Rig {
        executor: Box::new(LocalExecutor::new(root, options).unwrap()),
        hosts: ["h1", "h2"].map(|name| HostSpec {
            name: name.into(),
            address: if name == "h1" {
                "127.0.0.1"
            } else {
                "127.0.0.2"
            }
            .into(),
            gpus: 0,
        }),
        netns: None,
        scratch,
        keep: None,
        attached: true,
    }
}

// All but two: there is no wrapper to be killed and no record to be torn.
conformance!(@one "attached", Some(rig()); facts staging collecting signs ports);
conformance!(@one "attached", Some(rig()); process::codes process::signals process::strictness process::times
    process::big_output process::output_below_the_cap process::binary_output
    process::followed_log process::hostile_values process::clean_environment
    process::script_with_heredoc process::refusals process::one_start_per_token
    process::concurrent_starts_of_one_token process::found_by_token process::taken_back
    process::two_hosts process::many_at_once);
conformance!(@one "attached", Some(rig()); tree::timeout tree::timeout_of_a_polite_script tree::leftovers_are_ended
    tree::cancel_ends_everything tree::cancel_is_polite_first tree::cancel_twice_and_late
    tree::own_group_does_not_hurt_the_logs tree::a_stopped_tree_is_ended);

/// Its script has ended well, it is in no group of ours and holds no log: only its mark shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_nothing_shows_ends_with_doe() {
    let mut rig = rig();
    let dir = rig.scratch.path().to_owned();
    let text = format!(
        "setsid sh -c 'echo $$ >\"{0}/daemon\"; exec sleep 1003' </dev/null >/dev/null 2>&1 &
        while [ ! -s '{0}/daemon' ]; do sleep 0.02; done",
        dir.display()
    );
    let ran = rig.run(&rig.script(&text)).await;
    assert_eq!(ran.exit.code, Some(0));
    let pid = std::fs::read_to_string(dir.join("daemon")).unwrap();
    let cmdline = format!("/proc/{}/cmdline", pid.trim());
    let lives = || std::fs::read(&cmdline).is_ok_and(|line| line.ends_with(b"sleep\x001003\0"));
    let executor = std::mem::replace(&mut rig.executor, self::rig().executor);
    drop(executor);
    let until = std::time::Instant::now() + Duration::from_secs(120);
    while lives() {
        assert!(std::time::Instant::now() < until, "it goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn peer_process() {
    conformance::process::peer_process();
}
