//! Gangs, with real processes on two hosts: members run at the same time, readiness orders their
//! begin, and the first that goes down, however it does, takes all others with it.

mod lab;

use doe::engine::event::Outcome;
use lab::Lab;
use lab::rules::{label, pattern};

/// Four members on two hosts. Each says that it is there; what they do then is `body`, which sees
/// its own name in `$me`.
fn gang(body: &str, more: &str) -> String {
    let mut rule = "[gang]\nroles = { first = {}, second = {} }\n".to_owned();
    for (name, role) in [
        ("a", "first"),
        ("b", "second"),
        ("c", "first"),
        ("d", "second"),
    ] {
        rule.push_str(&format!(
            "[[gang.step]]\nname = \"{name}\"\ngang = \"all\"\nrole = \"{role}\"\ntimeout = \"1m\"\n\
             run = '''\nme={name}\necho $me >> SCRATCH/there\n{body}\n'''\n"
        ));
    }
    rule.push_str(more);
    rule.push_str(
        "[[gang.step]]\nname = \"last\"\nrole = \"first\"\ntimeout = \"1m\"\nrun = \"echo '{}' > {{ out.result }}\"\n\
         [gang.output]\nresult = { path = \"r.json\" }\n",
    );
    rule
}

const ALL_ARE_THERE: &str =
    "while test $(sort -u SCRATCH/there | wc -l) -lt 4; do sleep 0.02; done";

#[tokio::test(flavor = "multi_thread")]
async fn all_members_run_at_the_same_time() {
    // Nobody gets past this unless all four have begun and none has been waited for.
    let lab = Lab::new(&gang(ALL_ARE_THERE, ""), &pattern("one", "gang", ""));
    let built = lab.build().await;
    let one = built.node(&label("one"));
    assert_eq!(one.outcome, Outcome::Ok, "{:?}", one.reason);
    assert_eq!(lab.lines("there").len(), 4);
    let record = lab.record(&label("one"));
    let hosts = &record.provenance.hosts;
    assert_eq!(
        (hosts["first"].as_str(), hosts["second"].as_str()),
        ("h1", "h2")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_goes_down_takes_the_others_with_it() {
    for (how, reason) in [
        ("exit 7", "step `c` ended with exit code 7"),
        ("kill -KILL $$; sleep 60", "step `c` was ended by signal 9"),
    ] {
        let body = format!(
            "{ALL_ARE_THERE}\ntest $me != c || {{ {how}; }}\ntrap 'echo $me >> SCRATCH/asked' TERM\n\
             while :; do sleep 0.02; done"
        );
        let lab = Lab::new(&gang(&body, ""), &pattern("one", "gang", ""));
        // Every build here checks that nothing is left running.
        let built = lab.build().await;
        assert_eq!(built.node(&label("one")).outcome, Outcome::Failed);
        assert_eq!(built.reason(&label("one")), reason);
        let record = lab.record(&label("one"));
        let logs: Vec<_> = record.logs.iter().map(|log| log.name.as_str()).collect();
        assert!(!logs.iter().any(|name| name.contains("last")), "{logs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_never_ready_ends_those_that_run_and_those_that_wait() {
    let waits = "[[gang.step]]\nname = \"e\"\ngang = \"all\"\nrole = \"first\"\nafter = [\"f\"]\ntimeout = \"1m\"\n\
                 run = \"echo e >> SCRATCH/began\"\n\
                 [[gang.step]]\nname = \"f\"\ngang = \"all\"\nrole = \"second\"\ntimeout = \"1m\"\n\
                 ready = { file = \"SCRATCH/never\", within = \"5s\" }\n\
                 run = \"echo f >> SCRATCH/began; while :; do sleep 0.02; done\"\n";
    let rules = gang("while :; do sleep 0.02; done", waits);
    let lab = Lab::new(&rules, &pattern("one", "gang", ""));
    let built = lab.build().await;
    assert_eq!(built.node(&label("one")).outcome, Outcome::Failed);
    assert_eq!(built.node(&label("one")).class.as_deref(), Some("timeout"));
    assert!(
        built.reason(&label("one")).starts_with("step `f` "),
        "{}",
        built.reason(&label("one"))
    );
    assert_eq!(lab.lines("began"), ["f"], "who waits for it never begins");
}
