//! The agent of an instance: fetches what is for it, runs five commands at a time with the
//! environment that the real one gives, ends a command's process group when its time is up or it
//! is cancelled, and reports. What left the group goes on.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

use super::state::{Ping, State};

/// Between two looks for work.
const LOOK: Duration = Duration::from_millis(15);
/// CommandWorkersLimit.
const WORKERS: usize = 5;

type Shared = Arc<Mutex<State>>;

pub async fn run(instance: String, state: Shared) {
    let workers = Arc::new(Semaphore::new(WORKERS));
    loop {
        tokio::time::sleep(LOOK).await;
        loop {
            let Ok(worker) = workers.clone().try_acquire_owned() else {
                break;
            };
            let Some((id, times)) = fetch(&instance, &state) else {
                break;
            };
            let (instance, state) = (instance.clone(), state.clone());
            tokio::spawn(async move {
                let beside = (1..times.max(2)).map(|_| carry_out(&id, &instance, &state));
                futures_util::future::join_all(beside).await;
                if times > 1 {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    carry_out(&id, &instance, &state).await;
                }
                drop(worker);
            });
        }
    }
}

/// The next command for an instance; it is in progress from here on.
fn fetch(instance: &str, state: &Shared) -> Option<(String, u32)> {
    let mut state = state.lock().unwrap();
    state.expire();
    if state.instances[instance].ping != Ping::Online {
        return None;
    }
    let (hold, delay) = (state.faults.hold.clone(), state.faults.delay);
    let hold_lost = state.faults.hold_lost;
    for command in &mut state.commands {
        let (accepted, timeout) = (command.accepted, command.timeout);
        let Some(one) = command.invocations.get_mut(instance) else {
            continue;
        };
        if one.status != "Pending" || hold.as_ref() == Some(&command.comment) {
            continue;
        }
        if accepted.elapsed() < delay || command.lost && hold_lost {
            continue;
        }
        if accepted.elapsed() > timeout {
            continue; // it never begins
        }
        if one.cancel {
            one.set("Cancelled", "Cancelled");
            continue;
        }
        one.set("InProgress", "InProgress");
        one.begun = Some(std::time::SystemTime::now());
        return Some((command.id.clone(), one.times));
    }
    None
}

async fn carry_out(id: &str, instance: &str, state: &Shared) {
    let (run, text, limit, dir, spoilt) = {
        let mut state = state.lock().unwrap();
        let run = state.instances[instance].spec.run.clone();
        let dir = state.dir.join(instance).join(id);
        let spoilt = state.invocation(id, instance).unwrap().spoilt;
        let command = state.commands.iter().find(|c| c.id == id).unwrap();
        (
            run,
            command.commands.join("\n"),
            command.execution_timeout,
            dir,
            spoilt,
        )
    };
    if let Some((status, details)) = spoilt {
        let code = i32::from(status == "Failed");
        return report(id, instance, state, status, details, code, "", "");
    }
    std::fs::create_dir_all(&dir).unwrap();
    let script = dir.join("_script.sh");
    std::fs::write(&script, text).unwrap();
    // The agent itself runs `sh -c FILE`, in a process that writes nothing meanwhile. Here others
    // fork at any time, and one of their children may hold what was just written open for writing:
    // such a file can be read, but not executed (ETXTBSY).
    let words: Vec<String> = run
        .into_iter()
        .chain(["sh".to_owned(), script.display().to_string()])
        .collect();
    let mut command = tokio::process::Command::new(&words[0]);
    command
        .args(&words[1..])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("AWS_SSM_INSTANCE_ID", instance)
        .env("AWS_SSM_REGION_NAME", "us-east-1")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let group = child.id().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let texts = tokio::spawn(async move {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let _ = tokio::join!(out.read_to_end(&mut a), err.read_to_end(&mut b));
        (
            String::from_utf8_lossy(&a).into_owned(),
            String::from_utf8_lossy(&b).into_owned(),
        )
    });
    let begun = Instant::now();
    let mut ended_by = None;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.unwrap(),
            () = tokio::time::sleep(LOOK) => {}
        }
        let cancel = state
            .lock()
            .unwrap()
            .invocation(id, instance)
            .is_some_and(|one| one.cancel);
        if ended_by.is_none() && (cancel || begun.elapsed() > limit) {
            ended_by = Some(if cancel {
                ("Cancelled", "Cancelled")
            } else {
                ("TimedOut", "ExecutionTimedOut")
            });
            let group = rustix::process::Pid::from_raw(i32::try_from(group).unwrap()).unwrap();
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    };
    // Who left the group may hold the pipes; the agent does not wait for that.
    let (out, err) = tokio::time::timeout(Duration::from_secs(2), texts)
        .await
        .map_or_else(|_| Default::default(), Result::unwrap);
    let code = status.code().unwrap_or(-1);
    let (word, details) = match ended_by {
        Some(words) => words,
        None if code == 0 => ("Success", "Success"),
        None => ("Failed", "Failed"),
    };
    report(id, instance, state, word, details, code, &out, &err);
}

#[allow(clippy::too_many_arguments)] // one report
fn report(
    id: &str,
    instance: &str,
    state: &Shared,
    status: &'static str,
    details: &'static str,
    code: i32,
    out: &str,
    err: &str,
) {
    let mut state = state.lock().unwrap();
    // A dead instance reports nothing.
    if state.instances[instance].ping != Ping::Online {
        return;
    }
    if let Some(one) = state.invocation(id, instance) {
        if one.is_final() {
            return;
        }
        one.code = code;
        one.stdout = out.to_owned();
        one.stderr = err.to_owned();
        one.set(status, details);
    }
}
