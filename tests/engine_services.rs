//! Services and interrupts, with real processes on the local executor.

mod lab;

use doe::engine::event::{Body, NodeState, Outcome, ServiceState};
use lab::rules::{cell, label, served};
use lab::{Build, Lab};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_shared_by_its_key_and_started_once() {
    // The file alternates between the two configurations; both need the one GPU of the host.
    let plan = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)]
        .map(|(s, n)| cell(s, n, ""))
        .concat();
    let lab = Lab::new(&served("", ""), &plan);
    let built = lab.build().await;
    assert_eq!(built.ended.summary.ok, 5);
    assert_eq!(built.ended.summary.service_starts, 2);
    let starts = lab.lines("starts");
    assert_eq!(starts.len(), 2);
    let order = lab.lines("order");
    let words: Vec<_> = order
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(words, ["1-1", "1-2", "1-3", "2-1", "2-2"]);
    // Steps were told the port that the service was given.
    for (size, line) in [("1", &order[0]), ("2", &order[3])] {
        let start = starts.iter().find(|start| start.starts_with(size)).unwrap();
        assert_eq!(start.split(' ').nth(1), line.split(' ').nth(1));
    }
    let uses =
        ["s1n1", "s1n2", "s2n1", "s2n2"].map(|id| lab.record(&label(id)).services[0].clone());
    assert_eq!(
        uses.each_ref().map(|u| u.started_for_this),
        [true, false, true, false]
    );
    assert!(uses[0].key == uses[1].key && uses[0].key != uses[2].key);
    let states: Vec<_> = built
        .events
        .iter()
        .filter_map(|event| match &event.body {
            Body::Service { state, .. } => Some(*state),
            _ => None,
        })
        .collect();
    use ServiceState::{Ready, Starting, Stopped};
    assert_eq!(states, [Starting, Ready, Stopped, Starting, Ready, Stopped]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_keeps_its_own_part_of_a_services_log() {
    // It has said it, and what was said is in its log.
    let step = "echo word-of-{{ n }} > SCRATCH/say-{{ size }}; while test -e SCRATCH/say-{{ size }}; do sleep 0.01; done\n\
                until cat SCRATCH/../.doe/exec/runs/*/stdout | grep -qx word-of-{{ n }}; do sleep 0.01; done";
    let lab = Lab::new(&served("", step), &(cell(1, 1, "") + &cell(1, 2, "")));
    assert_eq!(lab.build().await.ended.summary.ok, 2);
    let log = |id: &str| lab.log(&lab.record(&label(id)), "service-server.stdout");
    assert_eq!(log("s1n1"), "serving 1\nword-of-1\n");
    assert_eq!(log("s1n2"), "word-of-2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_dies_fails_the_node_and_is_started_once_more() {
    let step =
        "case {{ n }} in 1) kill -KILL $(cat SCRATCH/pid-{{ size }}); exec sleep 600 ;; esac";
    let plan = cell(1, 1, "") + &cell(1, 2, "") + &cell(1, 3, "");
    let lab = Lab::new(&served("", step), &plan);
    let built = lab.build().await;
    let node = built.node("//t:p-s1n1");
    assert_eq!(
        (node.outcome, node.class.as_deref()),
        (Outcome::Failed, Some("service-died"))
    );
    assert_eq!(
        built.reason("//t:p-s1n1"),
        "service `server` was ended by signal 9"
    );
    assert_eq!(built.tail("//t:p-s1n1"), "serving 1");
    assert_eq!(built.node("//t:p-s1n2").outcome, Outcome::Ok);
    assert_eq!(built.node("//t:p-s1n3").outcome, Outcome::Ok);
    assert_eq!(built.ended.summary.service_starts, 2);
    let log = lab.log(&lab.record("//t:p-s1n1"), "service-server.stdout");
    assert_eq!(log, "serving 1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_fails_because_its_service_died_is_not_to_blame() {
    let step = "kill -KILL $(cat SCRATCH/pid-{{ size }}); exit 1";
    let lab = Lab::new(&served("", step), &cell(1, 1, ""));
    let built = lab.build().await;
    assert_eq!(
        built.reason("//t:p-s1n1"),
        "service `server` was ended by signal 9"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_start_is_given_up_after_the_second_try() {
    let script = "case {{ size }} in 1) echo FATAL: no memory; exec sleep 600 ;; esac";
    let plan = [(1, 1), (1, 2), (1, 3), (2, 1)]
        .map(|(s, n)| cell(s, n, ""))
        .concat();
    let lab = Lab::new(&served(script, ""), &plan);
    let built = lab.build().await;
    assert_eq!(
        built.reason("//t:p-s1n1"),
        "service `server` failed to start: FATAL: no memory"
    );
    assert!(built.tail("//t:p-s1n1").ends_with("FATAL: no memory"));
    assert_eq!(built.node("//t:p-s1n2").outcome, Outcome::Failed);
    assert_eq!(built.node("//t:p-s1n3").outcome, Outcome::Blocked);
    assert!(
        built
            .reason("//t:p-s1n3")
            .starts_with("service `server` could not be kept up")
    );
    assert_eq!(built.node("//t:p-s2n1").outcome, Outcome::Ok);
    assert_eq!(lab.lines("starts").len(), 3);
    let log = lab.log(&lab.record("//t:p-s1n1"), "service-server.stdout");
    assert!(log.contains("FATAL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_interrupt_stops_submitting_and_the_second_cancels() {
    for level in [1, 2] {
        let script = "touch SCRATCH/begun; while ! test -e SCRATCH/go; do sleep 0.01; done";
        let plan = cell(1, 1, "") + &cell(2, 1, "");
        let lab = Lab::new(&served("", script), &plan);
        let go = lab.scratch().join("go");
        let built = lab
            .build_with(Build {
                watch: Some(Box::new(move |event, interrupts| match &event.body {
                    Body::NodeState {
                        state: NodeState::Running,
                        ..
                    } => {
                        interrupts.send_replace(level);
                    }
                    Body::Warning { code, .. } if code == "interrupted" && level == 1 => {
                        std::fs::write(&go, "").unwrap();
                    }
                    _ => {}
                })),
                ..Build::default()
            })
            .await;
        assert!(built.ended.interrupted);
        let first = built.node("//t:p-s1n1").outcome;
        assert_eq!(
            first,
            if level == 1 {
                Outcome::Ok
            } else {
                Outcome::Cancelled
            }
        );
        assert_eq!(built.node("//t:p-s2n1").outcome, Outcome::Cancelled);
        assert_eq!(lab.lines("starts").len(), 1);
        // Cancelled work is no result: it runs again.
        std::fs::write(lab.scratch().join("go"), "").unwrap();
        assert!(lab.build().await.ended.summary.is_good());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_a_service_that_is_starting() {
    let lab = Lab::new(&served("echo starting; sleep 600", ""), &cell(1, 1, ""));
    let built = lab
        .build_with(Build {
            watch: Some(Box::new(|event, interrupts| {
                if let Body::Service {
                    state: ServiceState::Starting,
                    ..
                } = &event.body
                {
                    interrupts.send_replace(2);
                }
            })),
            ..Build::default()
        })
        .await;
    assert_eq!(built.node("//t:p-s1n1").outcome, Outcome::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impossible_demand_is_refused_before_anything_starts() {
    let rules = served("", "").replace("gpus = 1", "gpus = 2");
    let lab = Lab::new(&rules, &cell(1, 1, ""));
    let refused = std::panic::AssertUnwindSafe(lab.build());
    let outcome = futures_util::FutureExt::catch_unwind(refused).await;
    let message = *outcome
        .err()
        .expect("it is refused")
        .downcast::<String>()
        .unwrap();
    assert!(
        message.contains("needs 2 GPUs of `h1`, there are 1"),
        "{message}"
    );
    assert!(lab.store.last_run().unwrap().is_none());
    assert!(lab.lines("starts").is_empty());
}

/// A real HTTP server; what a step does to it is said by its number.
const WEB: &str = r#"
[web]
param.n = { type = "int", default = 1, doc = "of the step alone" }
roles = { first = {} }
[[web.service]]
name = "web"
role = "first"
ports = { http = 8000 }
ready = { http = "http://{{ self.ip }}:{{ self.port.http }}/health", within = "1m" }
health = { every = "50ms", misses = 1 }
stop_grace = "1s"
run = """
echo $$ > SCRATCH/web
exec python3 -c '
import http.server, os, sys, time
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if os.path.exists("SCRATCH/slow"):
            time.sleep(3)
            open("SCRATCH/waited", "w").close()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *said):
        pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Answer).serve_forever()
' {{ self.ip }} {{ self.port.http }}
"""
[[web.step]]
name = "go"
role = "first"
timeout = "10m"
run = """
case {{ n }} in
1) kill -STOP $(cat SCRATCH/web); exec sleep 600 ;;
2) touch SCRATCH/slow; while ! test -e SCRATCH/waited; do sleep 0.02; done; rm SCRATCH/slow; sleep 1 ;;
esac
echo '{}' > {{ out.result }}
"""
[web.output]
result = { path = "r.json" }
"#;

/// It lives and answers nobody: the node fails by name long before its own limit, the next one gets
/// a service that answers, and an answer that takes its time is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_answer_any_more_is_as_good_as_dead() {
    let one = |n: i64| {
        let more = format!("settings = {{ n = {n} }}\nretry = {{ times = 0 }}");
        lab::rules::pattern(&n.to_string(), "web", &more)
    };
    let lab = Lab::new(WEB, &(one(1) + &one(2)));
    let built = lab.build().await;
    let node = built.node(&label("1"));
    assert_eq!(
        (node.outcome, node.class.as_deref()),
        (Outcome::Failed, Some("service-lost"))
    );
    let reason = built.reason(&label("1"));
    assert!(
        reason.starts_with("service `web` was lost (it lives and http://127.0.0.1:"),
        "{reason}"
    );
    assert!(
        reason.ends_with("/health did not answer, once)"),
        "{reason}"
    );
    let second = built.node(&label("2"));
    assert_eq!(second.outcome, Outcome::Ok, "{second:?}");
    assert_eq!(built.ended.summary.service_starts, 2);
}
