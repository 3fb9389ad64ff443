//! Scripts: how they end, what they say, what they are given, and that they start once.

use std::fs;
use std::time::Duration;

use doe::exec::{Script, Sign, Status, Stream};

use super::{Rig, bounded, carriers, eventually, token};
use crate::rig::told::Outcome;

pub async fn codes(rig: &Rig) {
    for code in [0, 1, 2, 77, 126, 127, 128, 200, 255] {
        let exit = rig.run(&rig.script(&format!("exit {code}"))).await.exit;
        assert_eq!(
            (exit.code, exit.signal, exit.timed_out),
            (Some(code), None, false)
        );
        assert_eq!(exit.success(), code == 0);
    }
    let exit = rig.run(&rig.script("no-such-program-anywhere")).await.exit;
    assert_eq!(exit.code, Some(127));
}

pub async fn signals(rig: &Rig) {
    for signal in [1, 2, 9, 11, 15] {
        // SIGHUP is ignored, so that a lost connection ends nothing.
        let text = format!("kill -{signal} $$; exit 3");
        let exit = rig.run(&rig.script(&text)).await.exit;
        let expected = if signal == 1 {
            (Some(3), None)
        } else {
            (None, Some(signal))
        };
        assert_eq!((exit.code, exit.signal), expected, "signal {signal}");
        assert!(!exit.success());
    }
    // A command that is killed ends the script alike.
    let exit = rig
        .run(&rig.script("sh -c 'kill -9 $$'; echo not reached"))
        .await
        .exit;
    assert_eq!(exit.signal, Some(9));
}

pub async fn strictness(rig: &Rig) {
    let ran = rig.run(&rig.script("echo a; false; echo b")).await;
    assert_eq!(
        (ran.exit.code, ran.stdout.as_slice()),
        (Some(1), b"a\n".as_slice())
    );
    let ran = rig
        .run(&rig.script("echo \"$undefined_variable\"; echo b"))
        .await;
    assert!(!ran.exit.success() && ran.stdout.is_empty());
    assert!(String::from_utf8_lossy(&ran.stderr).contains("undefined_variable"));
    // Standard input is empty and at its end: nothing waits for a person.
    let ran = rig
        .run(&rig.script("if read -r line; then exit 9; fi; cat"))
        .await;
    assert!(ran.exit.success() && ran.stdout.is_empty());
}

pub async fn times(rig: &Rig) {
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::try_from(now.unwrap().as_millis()).unwrap()
    };
    let before = now();
    let exit = rig.run(&rig.script("sleep 0.2")).await.exit;
    let after = now();
    // `date` may know whole seconds only.
    assert!(before - before % 1000 <= exit.started_unix_ms);
    assert!(exit.started_unix_ms <= exit.ended_unix_ms && exit.ended_unix_ms <= after);
    // Nobody but a wrapper asks what was used.
    let busy = rig.script("head -c 200000000 /dev/zero | cksum");
    let used = rig.run(&busy).await.exit.cpu;
    match used {
        Some(used) => assert!(used.user_ms + used.system_ms >= 50, "{used:?}"),
        None => assert!(rig.attached),
    }
}

pub async fn big_output(rig: &Rig) {
    const TOTAL: usize = 100_000_000;
    let script = rig.script(&format!(
        "echo START; echo ESTART >&2
        head -c {TOTAL} /dev/zero | tr '\\000' x
        head -c {TOTAL} /dev/zero | tr '\\000' y >&2
        echo END; echo EEND >&2; exit 7"
    ));
    let ran = rig.run(&script).await;
    assert_eq!(ran.exit.code, Some(7));
    let cap = usize::try_from(script.log_cap_bytes).unwrap();
    for (log, first, fill, last) in [
        (&ran.stdout, "START\n", 'x', "END\n"),
        (&ran.stderr, "ESTART\n", 'y', "EEND\n"),
    ] {
        let text = String::from_utf8_lossy(log);
        assert!(
            log.len() <= cap && log.len() > cap * 9 / 10,
            "{} of {cap}",
            log.len()
        );
        assert!(text.starts_with(first) && text.ends_with(last));
        let (head, rest) = text.split_once("\n[doe: ").unwrap();
        let (count, tail) = rest
            .split_once(" bytes or a few more were cut here: the log is limited]\n")
            .unwrap();
        assert!(head.len() > cap / 2 && head[first.len()..].chars().all(|c| c == fill));
        assert!(tail[..tail.len() - last.len()].chars().all(|c| c == fill));
        let cut: usize = count.parse().unwrap();
        let really = TOTAL + first.len() + last.len() - head.len() - tail.len();
        assert!(cut <= really && really - cut <= 4096, "{cut} of {really}");
    }
}

pub async fn output_below_the_cap(rig: &Rig) {
    let ran = rig
        .run(&rig.script("seq 1 20000; seq 1 20000 >/dev/stderr; echo more >/dev/stderr"))
        .await;
    let expected: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), expected);
    // A script that opens /dev/stderr again appends; it does not wipe out what was there.
    assert_eq!(String::from_utf8(ran.stderr).unwrap(), expected + "more\n");
}

pub async fn binary_output(rig: &Rig) {
    let octal: String = (0..=255u32).map(|b| format!("\\{b:03o}")).collect();
    let ran = rig.run(&rig.script(&format!("printf '{octal}'"))).await;
    assert_eq!(ran.stdout, (0..=255u8).collect::<Vec<_>>());
}

pub async fn followed_log(rig: &Rig) {
    // Lines are seen while the script runs, and a reader goes on where it stopped.
    let go = rig.path("go");
    let text = format!(
        "echo first; while [ ! -e '{}' ]; do sleep 0.02; done; echo second",
        go.display()
    );
    let handle = rig.start(&rig.script(&text)).await;
    let mut seen = Vec::new();
    for _ in 0..12_000 {
        seen.extend(
            rig.executor
                .log(&handle, Stream::Stdout, seen.len() as u64)
                .await
                .unwrap(),
        );
        if seen == b"first\n" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(seen, b"first\n");
    assert_eq!(rig.executor.poll(&handle).await.unwrap(), Status::Running);
    fs::write(&go, b"").unwrap();
    rig.ended(&handle).await;
    let rest = rig
        .executor
        .log(&handle, Stream::Stdout, seen.len() as u64)
        .await
        .unwrap();
    assert_eq!(rest, b"second\n");
    assert!(
        rig.executor
            .log(&handle, Stream::Stdout, 1 << 40)
            .await
            .unwrap()
            .is_empty()
    );
}

pub async fn hostile_values(rig: &Rig) {
    let values = [
        "",
        "'",
        "''\"\"``",
        "$(touch pwned) `touch pwned` ${HOME} $HOME",
        "a\nb\n\n",
        "\\ \\n \\\\ %s %n",
        "; rm -rf nothing & | > file < file",
        "* ? [a-z] ~ ! # {a,b}",
        "\t \r\n\u{1}\u{7f}",
        "Grüße 測定 🚀 \u{202e}abc",
        "-n",
        "=a=b=",
    ];
    let mut script = rig.script("");
    script.text = "ls -A >before\n".to_string();
    for (at, value) in values.iter().enumerate() {
        script.env.insert(format!("VALUE_{at}"), value.to_string());
        script
            .text
            .push_str(&format!("printf '%s\\0' \"$VALUE_{at}\"\n"));
        // The same through the text itself, in a quoted heredoc where it can be.
        if !value.contains("EOF") {
            script
                .text
                .push_str(&format!("cat <<'EOF'\n{value}\nEOF\nprintf '\\0'\n"));
        }
    }
    script.env.insert("long".into(), "ü".repeat(60_000));
    script.text.push_str("printf %s \"$long\" | wc -c\n");
    let ran = rig.run(&script).await;
    assert!(
        ran.exit.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let mut parts = ran.stdout.split(|b| *b == 0);
    for value in values {
        assert_eq!(String::from_utf8_lossy(parts.next().unwrap()), value);
        assert_eq!(
            String::from_utf8_lossy(parts.next().unwrap()),
            format!("{value}\n")
        );
    }
    assert_eq!(parts.next().unwrap(), b"120000\n");
    assert!(!rig.path("work/pwned").exists() && !rig.path("work/file").exists());
}

pub async fn clean_environment(rig: &Rig) {
    let mut script = rig.script("env -0");
    script.env.insert("GIVEN".into(), "1".into());
    let ran = rig.run(&script).await;
    let mut names: Vec<_> = ran
        .stdout
        .split(|b| *b == 0)
        .filter(|v| !v.is_empty())
        .map(|v| {
            String::from_utf8_lossy(v)
                .split_once('=')
                .unwrap()
                .0
                .to_string()
        })
        // Shells set these by themselves; the last is the mark of what ends with its `doe`.
        .filter(|name| !["PWD", "OLDPWD", "SHLVL", "_", "DOE_GROUP"].contains(&name.as_str()))
        .collect();
    names.sort();
    assert_eq!(names, ["DOE_TOKEN", "GIVEN", "HOME", "LANG", "PATH"]);

    // A script may be given a path of its own: that is how tools are put in front.
    let tools = rig.path("tools");
    fs::create_dir(&tools).unwrap();
    let tool = tools.join("nvidia-smi");
    fs::write(&tool, "#!/bin/sh\necho simulated\n").unwrap();
    fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut script = rig.script("nvidia-smi; pwd; umask");
    script
        .env
        .insert("PATH".into(), format!("{}:/usr/bin:/bin", tools.display()));
    let ran = rig.run(&script).await;
    let work = script.work.canonicalize().unwrap();
    let text = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(text, format!("simulated\n{}\n0077\n", work.display()));
}

pub async fn script_with_heredoc(rig: &Rig) {
    // What line-wise runners break: several lines, heredocs, exit in the middle, no last newline.
    let text = "cat <<EOF |\nline $((1 + 1))\n  'quoted'\nEOF\nwhile IFS= read -r l; do\n  printf '<%s>\\n' \"$l\"\ndone\nif true; then\n  exit 4\nfi\necho never";
    let ran = rig.run(&rig.script(text)).await;
    assert_eq!(ran.exit.code, Some(4));
    assert_eq!(ran.stdout, b"<line 2>\n<  'quoted'>\n");
}

pub async fn refusals(rig: &Rig) {
    let start = |script: Script, token: &str| {
        let token = doe::exec::Token(token.into());
        async move {
            rig.executor
                .start(&rig.hosts[0], &script, &token)
                .await
                .unwrap_err()
                .code
        }
    };
    assert_eq!(start(rig.script("true"), "../x").await, "bad-token");
    assert_eq!(start(rig.script("a\0b"), "nul").await, "script-refused");
    let with = |name: &str, value: &str| {
        let mut script = rig.script("true");
        script.env.insert(name.into(), value.into());
        script
    };
    assert_eq!(start(with("A-B", ""), "name").await, "script-refused");
    assert_eq!(start(with("DOE_TOKEN", "x"), "own").await, "script-refused");
    // A working folder that cannot be made: the script did not run, and that is no exit code.
    fs::write(rig.path("file"), b"").unwrap();
    let mut script = rig.script("touch ran");
    script.work = rig.path("file/below");
    assert_eq!(start(script, &token().0).await, "not-started");
}

pub async fn one_start_per_token(rig: &Rig) {
    let token = token();
    let script = rig.script("echo once >>count; sleep 0.1");
    let start = || rig.executor.start(&rig.hosts[0], &script, &token);
    let first = start().await.unwrap();
    assert_eq!(start().await.unwrap(), first);
    rig.ended(&first).await;
    // Nor after it has ended, nor with another text.
    assert_eq!(start().await.unwrap(), first);
    let other = rig.script("echo other >>count");
    let again = rig
        .executor
        .start(&rig.hosts[0], &other, &token)
        .await
        .unwrap();
    assert_eq!(again, first);
    assert!(rig.ended(&again).await.success());
    assert_eq!(
        fs::read_to_string(rig.path("work/count")).unwrap(),
        "once\n"
    );
}

pub async fn concurrent_starts_of_one_token(rig: &Rig) {
    for round in 0..5 {
        let token = token();
        let script = rig.script(&format!("echo once >>count-{round}; sleep 0.05"));
        let starts = (0..8).map(|_| rig.executor.start(&rig.hosts[0], &script, &token));
        let handles = futures_util::future::try_join_all(starts).await.unwrap();
        assert!(handles.iter().all(|h| *h == handles[0]), "{handles:?}");
        assert!(rig.ended(&handles[0]).await.success());
        let count = fs::read_to_string(rig.path(&format!("work/count-{round}"))).unwrap();
        assert_eq!(count, "once\n");
    }
}

/// Another `doe` finds by the token alone what was begun, and when it ended.
pub async fn found_by_token(rig: &Rig) {
    let token = token();
    let find = async || rig.executor.find(&rig.hosts[0], &token).await.unwrap();
    assert_eq!(find().await, None);
    let go = rig.path("go");
    let text = format!("until [ -e '{}' ]; do sleep 0.05; done", go.display());
    let started = rig
        .executor
        .start(&rig.hosts[0], &rig.script(&text), &token)
        .await
        .unwrap();
    assert_eq!(find().await.as_ref(), Some(&started));
    let ended = async || rig.executor.ended_unix_ms(&started).await.unwrap();
    assert_eq!(ended().await, None);
    fs::write(&go, b"").unwrap();
    let exit = rig.ended(&started).await;
    assert_eq!(find().await.as_ref(), Some(&started));
    // How far the clock of a host is off is seen anew each time.
    let again = ended().await.unwrap();
    assert!(
        again.abs_diff(exit.ended_unix_ms) < 5000,
        "{again}, {exit:?}"
    );
}

/// What runs of a token that is taken back is ended, and it never begins again.
pub async fn taken_back(rig: &Rig) {
    let token = token();
    let script = rig.script("trap 'echo polite >>said; exit 9' TERM; echo run >>count; touch up; while :; do sleep 0.05; done");
    let host = &rig.hosts[0];
    let revoke = async || {
        let revoked = rig.executor.revoke(host, &token, Duration::from_secs(20));
        bounded(revoked).await.unwrap()
    };
    let started = rig.executor.start(host, &script, &token).await.unwrap();
    eventually("it is up", || rig.path("work/up").exists()).await;
    assert_eq!(revoke().await.as_ref(), Some(&started));
    assert_eq!(carriers(&token.0), [0; 0]);
    assert_eq!(
        fs::read_to_string(rig.path("work/said")).unwrap(),
        "polite\n"
    );
    assert_eq!(revoke().await, None, "nothing of it is left to be ended");
    assert!(
        rig.executor
            .ended_unix_ms(&started)
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(
        rig.executor.start(host, &script, &token).await.unwrap(),
        started
    );
    assert_eq!(fs::read_to_string(rig.path("work/count")).unwrap(), "run\n");
}

/// Each host serves at its own address and asks the other one.
pub async fn two_hosts(rig: &Rig) {
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    let mut servers = Vec::new();
    let mut addresses = Vec::new();
    for host in &rig.hosts {
        let port = rig.executor.free_port(host).await.unwrap();
        let address = format!("{}:{port}", host.address);
        let mut script = rig.script("exec \"$PROGRAM\" --exact peer_process --nocapture");
        script.env.insert("PROGRAM".into(), program.into());
        script.env.insert("DOE_TEST_SERVE".into(), address.clone());
        let handle = rig.executor.start(host, &script, &token()).await.unwrap();
        assert_eq!(handle.host, host.name);
        servers.push(handle);
        addresses.push(address);
    }
    for (host, address) in rig.hosts.iter().zip(&addresses) {
        let sign = Sign::Http(format!("http://{address}/health"));
        let mut ready = false;
        for _ in 0..12_000 {
            ready = rig.executor.look(host, &sign).await.unwrap();
            if ready {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(ready, "{address} never answered");
    }
    for (here, there) in [(0, 1), (1, 0)] {
        let mut script = rig.script("exec \"$PROGRAM\" --exact peer_process --nocapture");
        script.env.insert("PROGRAM".into(), program.into());
        script
            .env
            .insert("DOE_TEST_ASK".into(), addresses[there].clone());
        script
            .env
            .insert("DOE_TEST_FROM".into(), rig.hosts[here].address.clone());
        let handle = rig
            .executor
            .start(&rig.hosts[here], &script, &token())
            .await
            .unwrap();
        assert!(rig.ended(&handle).await.success());
        let said = String::from_utf8(rig.log(&handle, Stream::Stdout).await).unwrap();
        assert!(
            said.contains(&format!("answer from {}", addresses[there])),
            "{said}"
        );
    }
    for handle in &servers {
        bounded(rig.executor.cancel(handle, Duration::from_secs(5)))
            .await
            .unwrap();
    }
    for (host, address) in addresses.iter().enumerate() {
        let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        eventually("the port is free again", || rig.listen(host, port).is_ok()).await;
    }
}

/// The other side of `two_hosts`; does nothing unless it was started for it.
pub fn peer_process() {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    if let Ok(address) = std::env::var("DOE_TEST_SERVE") {
        let listener = TcpListener::bind(&address).unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines
                .next()
                .is_some_and(|line| line.is_ok_and(|l| !l.is_empty()))
            {}
            let body = format!("answer from {address}");
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    }
    if let Ok(address) = std::env::var("DOE_TEST_ASK") {
        let from = std::env::var("DOE_TEST_FROM").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "GET / HTTP/1.1\r\nhost: x\r\nuser-agent: {from}\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        std::io::stdout().write_all(answer.as_bytes()).unwrap();
    }
}

pub async fn many_at_once(rig: &Rig) -> Outcome {
    const COUNT: usize = 200;
    let runs = (0..COUNT).map(|at| async move {
        let text = format!(
            "echo out {at}; echo err {at} >&2; sleep 0.3; exit {}",
            at % 100
        );
        let mut script = rig.script(&text);
        script.work = rig.path(&format!("work-{at}"));
        let ran = rig.run(&script).await;
        assert_eq!(ran.exit.code, Some(i32::try_from(at % 100).unwrap()));
        assert_eq!(
            String::from_utf8(ran.stdout).unwrap(),
            format!("out {at}\n")
        );
        assert_eq!(
            String::from_utf8(ran.stderr).unwrap(),
            format!("err {at}\n")
        );
        ran.handle
    });
    let handles = futures_util::future::join_all(runs).await;
    let tokens: std::collections::HashSet<_> = handles.iter().map(|h| &h.token).collect();
    assert_eq!(tokens.len(), COUNT);
    Outcome::Of(format!("{COUNT} scripts"))
}
