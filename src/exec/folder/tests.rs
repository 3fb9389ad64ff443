use std::process::Command;

use proptest::prelude::*;

use super::*;

fn script(env: &[(&str, &str)]) -> Script {
    Script {
        name: "step".into(),
        text: "true\n".into(),
        env: env
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect(),
        work: "/tmp".into(),
        timeout: None,
        log_cap_bytes: 1 << 20,
        attached: false,
        ask: Default::default(),
    }
}

fn job<'a>(script: &'a Script, token: &'a Token) -> Job<'a> {
    Job {
        token,
        script,
        grace: Duration::from_secs(1),
        adopts: true,
    }
}

const RECORD: &str = "code=3\nsignal=\ntimed_out=0\nstarted_ms=10\nended_ms=25\nend\n";

#[test]
fn what_was_used_is_read_as_shells_say_it() {
    let used = |user: &str, system: &str| {
        let lines = format!("cpu_user={user}\ncpu_system={system}\nend");
        match Record::parse(&RECORD.replace("end\n", &format!("{lines}\n"))) {
            Record::Whole(exit) => exit.cpu.map(|cpu| (cpu.user_ms, cpu.system_ms)),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(used("0m1.250000s", "2m0.010s"), Some((1250, 120_010)));
    assert_eq!(used("61m0,50s", "0m0.00s"), Some((3_660_500, 0)));
    for none in ["", "0m", "1.5s", "m1s", "0m-1s", "0mnans", "0m1e99s"] {
        assert_eq!(used(none, "0m0s"), None, "{none}");
    }
}

#[test]
fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for put in [replace, durable] {
        for text in ["long enough", "short"] {
            put(&path, text.as_bytes()).unwrap();
            assert_eq!(read_if_there(&path).unwrap().as_deref(), Some(text));
        }
    }
    // A folder is not replaced by a file.
    fs::create_dir(dir.path().join("folder")).unwrap();
    assert!(durable(&dir.path().join("folder"), b"text").is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_whole_record_is_read_and_its_padding_ignored() {
    let exit = Exit {
        code: Some(3),
        signal: None,
        timed_out: false,
        started_unix_ms: 10,
        ended_unix_ms: 25,
        cpu: None,
    };
    assert_eq!(Record::parse(RECORD), Record::Whole(exit.clone()));
    assert_eq!(
        Record::parse(&format!("{RECORD}      \n")),
        Record::Whole(exit)
    );
    let killed = RECORD.replace("code=3\nsignal=", "code=\nsignal=9");
    assert!(
        matches!(Record::parse(&killed), Record::Whole(e) if e.signal == Some(9) && !e.success())
    );
}

#[test]
fn every_beginning_of_a_record_is_torn() {
    for cut in 0..RECORD.len() {
        assert_eq!(Record::parse(&RECORD[..cut]), Record::Torn, "{cut}");
    }
    for bad in [
        RECORD.replace("code=3", "code="),
        RECORD.replace("signal=", "signal=9"),
        RECORD.replace("timed_out=0", "timed_out=yes"),
        RECORD.replace("ended_ms=25\n", ""),
        RECORD.replace("code=3", "code=3\ncode=0"),
    ] {
        assert_eq!(Record::parse(&bad), Record::Torn, "{bad}");
    }
}

#[test]
fn a_claim_must_be_whole() {
    let claim = Claim::parse("12 345 abc\n").unwrap();
    assert_eq!(
        claim.leader,
        ProcessId {
            pid: 12,
            start_ticks: 345
        }
    );
    assert_eq!(claim.boot_id, "abc");
    for bad in ["", "12", "12 345 abc", "12 345\n", "a b c\n", "1 2 3 4\n"] {
        assert_eq!(Claim::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn tokens_are_file_names_and_shell_words() {
    for good in ["a", "r1-n2.a3:b_4", &"x".repeat(96)] {
        check_token(&Token(good.into())).unwrap();
    }
    for bad in [
        "",
        ".",
        "..",
        "-x",
        "a b",
        "a/b",
        "ü",
        "a\nb",
        "a'b",
        &"x".repeat(97),
    ] {
        assert_eq!(
            check_token(&Token(bad.into())).unwrap_err().code,
            "bad-token",
            "{bad:?}"
        );
    }
}

#[test]
fn what_a_shell_would_refuse_or_change_is_refused_before() {
    let token = Token("t".into());
    let long = "x".repeat(variables::LONGEST_BYTES);
    for (name, value) in [
        ("A B", ""),
        ("1A", ""),
        ("", ""),
        ("A=B", ""),
        ("PPID", "1"),
        ("DOE_TOKEN", "other"),
        ("DOE_GROUP", "other"),
        ("A", "nul\0"),
        ("A", &long),
    ] {
        let script = script(&[(name, value)]);
        assert_eq!(
            files(&job(&script, &token)).unwrap_err().code,
            "script-refused",
            "{name:?}"
        );
    }
    let relative = Script {
        work: "here".into(),
        ..script(&[])
    };
    assert_eq!(
        files(&job(&relative, &token)).unwrap_err().code,
        "script-refused"
    );
}

#[test]
fn a_short_limit_never_becomes_none() {
    let token = Token("t".into());
    let timeout_of = |timeout| {
        let script = Script {
            timeout,
            ..script(&[])
        };
        let [(_, settings), ..] = files(&job(&script, &token)).unwrap();
        settings
            .lines()
            .find(|l| l.starts_with("timeout_cs="))
            .unwrap()
            .to_string()
    };
    assert_eq!(timeout_of(None), "timeout_cs=0");
    assert_eq!(timeout_of(Some(Duration::ZERO)), "timeout_cs=1");
    assert_eq!(timeout_of(Some(Duration::from_nanos(1))), "timeout_cs=1");
    assert_eq!(
        timeout_of(Some(Duration::from_millis(1500))),
        "timeout_cs=150"
    );
}

#[test]
fn names_stay_inside_their_folder() {
    for good in ["a", "a/b.json", ".hidden", "a..b", "ü"] {
        assert_eq!(check_inside(good).unwrap(), Path::new(good));
    }
    for bad in ["", "/etc/passwd", "..", "a/../b", "../a", ".", "a/", "a\0"] {
        assert_eq!(
            check_inside(bad).unwrap_err().code,
            "bad-output-name",
            "{bad:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The oracle is the shell itself: it must hand back the very bytes.
    #[test]
    fn any_value_survives_the_shell(value in "\\PC{0,20}|[\u{1}-\u{7f}]{0,40}|['\"$`\\\\\n!(){}*? ]{0,20}") {
        let dir = tempfile::tempdir().unwrap();
        let script = script(&[("VALUE", &value)]);
        let [_, (_, env), _] = files(&job(&script, &Token("t".into()))).unwrap();
        let path = dir.path().join("env");
        fs::write(&path, env).unwrap();
        let output = Command::new("/bin/sh")
            .args(["-c", ". \"$1\"; exec env -0", "sh"])
            .arg(&path)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap();
        let found = output
            .stdout
            .split(|b| *b == 0)
            .find_map(|entry| entry.strip_prefix(b"VALUE="))
            .map(<[u8]>::to_vec);
        prop_assert_eq!(found, Some(value.into_bytes()));
    }

    #[test]
    fn no_text_makes_the_readers_panic(text in "\\PC{0,80}|[a-z_=0-9\n]{0,80}") {
        let _ = Record::parse(&text);
        let _ = Claim::parse(&text);
        let _ = parse_facts(&text);
    }
}

#[test]
fn a_folder_that_is_not_in_its_place_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join(".new-1-1");
    // As on a full disk: one of its files cannot be written.
    let files = [
        ("env", &b"export A='hf_0123456789'\n"[..]),
        ("no/such", b""),
    ];
    assert!(make_filled(&new, files).is_err());
    assert!(!new.exists());
    make_filled(&new, files[..1].iter().copied()).unwrap();
    let placed = dir.path().join("token");
    make_filled(&placed, files[..1].iter().copied()).unwrap();
    make_filled(&dir.path().join(".new-2-1"), []).unwrap();
    remove_unplaced(dir.path(), |rest, _| rest.starts_with("1-"));
    assert!(!new.exists() && placed.exists() && dir.path().join(".new-2-1").exists());
}
