//! The task by itself: the wrapper that it is given claims the token as the right one does, and the
//! rest is up to the test.

use std::os::unix::fs::symlink;
use std::process::{Child, Command};

use super::*;

const CLAIM: &str = "read -r boot </proc/sys/kernel/random/boot_id; echo $$ 1 $boot >$2/pid";
/// Runs until it is to end.
const RUNS: &str = "until [ -e $2/go ]; do sleep 0.02; done";

/// A shared folder with one execution.
struct Task {
    root: tempfile::TempDir,
    run: PathBuf,
}

impl Task {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("runs/t");
        for dir in [&run, &root.path().join("arrays")] {
            folder::make_private(dir).unwrap();
        }
        folder::write_private(&root.path().join("arrays/n"), b"t\n").unwrap();
        folder::write_private(&run.join("staged"), b"end\n").unwrap();
        Self { root, run }
    }

    /// Begins it with a wrapper that does this when it is told to run and to end.
    fn begin(&self, run: &str, end: &str) -> Child {
        let file = |name: &str, text: &str| {
            let path = self.root.path().join(name);
            folder::write_private(&path, text.as_bytes()).unwrap();
            path
        };
        let wrapper = format!("case $1 in run) {run} ;; end) {end} ;; esac\n");
        let mut task = Command::new("/bin/sh");
        task.arg(file("batch.sh", BATCH)).arg(self.root.path());
        task.arg("n").arg(file("wrapper.sh", &wrapper));
        task.env_remove("SLURM_ARRAY_TASK_ID");
        task.spawn().unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.run.join(name).exists()
    }

    fn wait_for(&self, name: &str) {
        let begun = Instant::now();
        while !self.has(name) {
            assert!(begun.elapsed() < Duration::from_secs(120), "no {name}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn terminate(task: &Child) {
    let mut kill = Command::new("kill");
    let status = kill.args(["-TERM", &task.id().to_string()]).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_task_says_that_it_is_over_only_when_nothing_is_left() {
    for (end, over) in [("exit 0", true), ("exit 1", false)] {
        let task = Task::new();
        let mut child = task.begin(&format!("{CLAIM}; exit 9"), end);
        assert_eq!(child.wait().unwrap().code(), Some(1), "{end}");
        assert_eq!(task.has(OVER), over, "{end}");
    }
}

#[test]
fn a_task_that_cannot_make_its_files_ends_what_it_runs_all_the_same() {
    let task = Task::new();
    for name in ["interrupted", "unwanted"] {
        symlink("/nonexistent/file", task.run.join(name)).unwrap();
    }
    let mut child = task.begin(&format!("{CLAIM}; {RUNS}"), "echo >$2/go");
    task.wait_for("beat");
    terminate(&child);
    child.wait().unwrap();
    assert!(task.has("go") && task.has(OVER) && task.has("interrupted"));
}

#[test]
fn what_cannot_be_attended_to_does_not_begin() {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for (attends, works) in [(true, true), (true, false), (false, false)] {
        let task = Task::new();
        let lease = task.run.join(format!("lease.{}", boot.trim()));
        if attends {
            let file = task.root.path().join("sign").display().to_string();
            folder::write_private(&task.run.join("attends"), format!("{file}\n").as_bytes())
                .unwrap();
        }
        if !works {
            std::fs::create_dir(&lease).unwrap();
        }
        let look = "[ ! -f $2/lease.* ] || echo >$2/leased";
        let mut child = task.begin(&format!("{look}; {CLAIM}; echo >$2/exit"), "exit 0");
        let code = child.wait().unwrap().code();
        let refusal = state::refusal(&task.run).unwrap();
        if attends && !works {
            let refusal = refusal.unwrap();
            assert!(refusal.contains("that somebody attends"), "{refusal}");
            assert!(code == Some(73) && !task.has(folder::PID));
        } else {
            assert_eq!((refusal, task.has(OVER)), (None, true));
            // It is there before the wrapper looks for it.
            assert_eq!(task.has("leased"), attends);
        }
    }
}

#[test]
fn who_ends_a_job_is_noted_even_when_its_record_was_quicker() {
    let record = "echo >$2/exit; echo >$2/ready";
    for (cancelled, interrupted) in [(false, true), (true, false)] {
        let task = Task::new();
        let mut child = task.begin(&format!("{CLAIM}; {record}; {RUNS}"), "echo >$2/go");
        task.wait_for("ready");
        task.wait_for("beat");
        if cancelled {
            std::fs::write(task.run.join("cancel"), b"").unwrap();
        }
        terminate(&child);
        child.wait().unwrap();
        assert!(task.has(OVER));
        assert_eq!(task.has("interrupted"), interrupted);
    }
    // What ended by itself is left alone by the end of its job.
    let task = Task::new();
    let mut child = task.begin(&format!("{CLAIM}; echo >$2/exit"), "exit 0");
    child.wait().unwrap();
    assert!(task.has(OVER) && !task.has("interrupted"));
}

/// Each way a script can name a staged file: the wrapper claims when the node sees what was staged.
#[test]
fn what_was_staged_is_held_against_its_digest_on_the_node() {
    let task = Task::new();
    let root = task.root.path().canonicalize().unwrap();
    let staged = staged::Staged::new(root.clone());
    let [tool, other] = ["#!/bin/sh", "#!/bin/bash"].map(|text| staged.put_text(text).unwrap());
    let links = root.join("links/0123456789ab");
    folder::make_private(&links).unwrap();
    symlink(&other, links.join("doe")).unwrap();
    let wrapper = root.join("wrapper.sh");
    let begin = |text: &str, meanwhile: &dyn Fn()| {
        let texts = [
            ("job", "work='x'\n".to_owned()),
            ("script", text.to_owned()),
        ];
        let list = staged.list(&task.run, &texts, &wrapper).unwrap();
        for (name, text) in texts.iter().chain([&("staged", list.clone())]) {
            folder::write_private(&task.run.join(name), text.as_bytes()).unwrap();
        }
        for name in ["failed", "pid", "exit", "over", "wrapper.log"] {
            let _ = std::fs::remove_file(task.run.join(name));
        }
        meanwhile();
        let mut child = task.begin(&format!("{CLAIM}; echo >$2/exit"), "exit 0");
        let code = child.wait().unwrap().code();
        let refusal = state::refusal(&task.run).unwrap();
        assert_eq!(task.has(folder::PID), refusal.is_none(), "{refusal:?}");
        (refusal.map(|refusal| (code, refusal)), list.lines().count())
    };
    let (dir, name) = (root.display(), "links/0123456789ab");
    let elsewhere = "c".repeat(64);
    let named = [
        (format!("'{}' --fast", tool.display()), &tool),
        (format!("PATH='{dir}/{name}':\"$PATH\""), &other),
        (format!("exec '{dir}/{name}/doe' --version"), &other),
    ];
    let none = format!("cp /elsewhere/blobs/{elsewhere} /elsewhere/{name} .");
    assert_eq!(begin("true", &|| {}), (None, 3));
    for (text, _) in &named {
        assert_eq!(begin(text, &|| {}), (None, 4), "{text}");
        // Once more, when it was looked at before.
        assert_eq!(begin(text, &|| {}), (None, 4), "{text}");
    }
    let wrong = |path: &std::path::Path| {
        let bytes = std::fs::read(path).unwrap();
        let old = std::fs::metadata(path).unwrap().modified().unwrap();
        std::fs::remove_file(path).unwrap();
        folder::write_private(path, &bytes[1..]).unwrap();
        // As what is brought back from elsewhere looks.
        let file = std::fs::File::open(path).unwrap();
        file.set_modified(old).unwrap();
        bytes
    };
    for (at, (text, blob)) in named.iter().enumerate() {
        let good = std::fs::read(blob).unwrap();
        let spoil = || match at {
            0 => std::fs::remove_file(blob).unwrap(),
            _ => drop(wrong(blob)),
        };
        let (refusal, _) = begin(text, &spoil);
        let (code, said) = refusal.unwrap();
        let name = blob.strip_prefix(&root).unwrap().display();
        let why = format!("{name} is not on this node what it was when it was staged");
        assert!(code == Some(74) && said.contains(&why), "{said}");
        let _ = std::fs::remove_file(blob);
        folder::write_private(blob, &good).unwrap();
        assert_eq!(begin(text, &|| {}).0, None);
    }
    let script = task.run.join("script");
    assert!(
        begin("exit 3", &|| drop(wrong(&script)))
            .0
            .unwrap()
            .1
            .contains("runs/t/script is not")
    );
    let list = task.run.join("staged");
    let cut = || std::fs::write(&list, &std::fs::read(&list).unwrap()[..80]).unwrap();
    assert!(begin("exit 3", &cut).0.unwrap().1.contains("is not whole"));
    // What was never staged here is another's.
    assert_eq!(begin(&none, &|| {}), (None, 4));
}

#[test]
fn a_shared_folder_that_others_may_write_to_is_kept_to_ourselves() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a/root");
    let mode = || std::fs::metadata(&root).unwrap().permissions().mode() & 0o7777;
    folder::make_own(&root).unwrap();
    assert_eq!(mode(), 0o700);
    // The group that everything below is to have stays.
    for (before, after) in [(0o1777, 0o700), (0o2770, 0o2700)] {
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(before)).unwrap();
        folder::make_own(&root).unwrap();
        assert_eq!(mode(), after);
    }
}

/// What is found in the place of `srun`: runs what it is given, on no other node.
const SRUN: &str = "#!/bin/sh\nwhile [ \"${1#--}\" != \"$1\" ]; do shift; done\nexec \"$@\"\n";

/// A shared folder with two executions of one job.
struct Several(tempfile::TempDir);

impl Several {
    fn new(srun: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["runs/a", "runs/b", "arrays", "bin"] {
            folder::make_private(&root.path().join(dir)).unwrap();
        }
        let put = |name: &str, text: &str| {
            folder::write_private(&root.path().join(name), text.as_bytes()).unwrap();
        };
        put("arrays/n", "a\nb\n");
        put("together.sh", TOGETHER);
        put("bin/srun", srun);
        let srun = root.path().join("bin/srun");
        let may = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(srun, may).unwrap();
        Self(root)
    }

    /// Begins their job, whose tasks do this; they are told which of the two they are, in `$4`.
    fn begin(&self, task: &str) -> Child {
        let batch = self.0.path().join("batch.sh");
        let dir = "case $4 in 0) dir=$1/runs/a ;; 1) dir=$1/runs/b ;; esac";
        folder::write_private(&batch, format!("{dir}\n{task}\n").as_bytes()).unwrap();
        let path = format!("{}/bin:/usr/bin:/bin", self.0.path().display());
        let mut job = Command::new("/bin/sh");
        job.arg(self.0.path().join("together.sh"))
            .arg(self.0.path())
            .args(["n", "wrapper"])
            .arg(&batch)
            .args(["0", "1"])
            .env("PATH", path)
            .env("SLURM_JOB_ID", "7");
        job.spawn().unwrap()
    }

    fn files(&self, token: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.path().join("runs").join(token)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

#[test]
fn a_job_of_several_says_what_a_task_cannot_say_any_more() {
    // Killed after its begin, another over.
    let several = Several::new(SRUN);
    let killed = "echo 1 >$dir/pid; [ $4 = 0 ] || kill -KILL $$; echo >$dir/over; exit 3";
    assert!(several.begin(killed).wait().unwrap().success());
    assert_eq!(several.files("a"), ["over", "pid"]);
    assert_eq!(several.files("b"), ["gone", "pid"]);
    // One that another job has begun, or that is not wanted, is left to who has it.
    let several = Several::new(SRUN);
    let left = "[ $4 = 0 ] || exit 0; echo >$dir/unwanted; exit 1";
    assert!(several.begin(left).wait().unwrap().success());
    assert_eq!(
        (several.files("a"), several.files("b")),
        (vec!["unwanted".to_owned()], vec![])
    );
    // What cannot be begun on a node says why.
    let several = Several::new("#!/bin/sh\necho no such node >&2\nexit 5\n");
    assert!(several.begin("").wait().unwrap().success());
    let refusal = state::refusal(&several.0.path().join("runs/b")).unwrap();
    assert_eq!(refusal.as_deref(), Some("no such node (code 5)"));
}

#[test]
fn a_job_of_several_lives_until_the_last_one_has_ended() {
    let several = Several::new(SRUN);
    let task =
        "echo >$dir/up; [ $4 = 0 ] || until [ -e $dir/go ]; do sleep 0.02; done; echo >$dir/over";
    let mut job = several.begin(task);
    let runs = several.0.path().join("runs");
    let begun = Instant::now();
    while !(runs.join("a/over").exists() && runs.join("b/up").exists()) {
        assert!(begun.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(10));
    }
    terminate(&job);
    std::thread::sleep(Duration::from_millis(300));
    assert!(job.try_wait().unwrap().is_none());
    fs::write(runs.join("b/go"), b"").unwrap();
    assert!(job.wait().unwrap().success());
}

#[test]
fn a_job_of_several_is_ended_when_nobody_wants_it_any_more() {
    let several = Several::new(SRUN);
    let root = several.0.path();
    let put = |name: &str, text: &str| fs::write(root.join("runs").join(name), text).unwrap();
    put("a/slurm", "n 0\n");
    put("b/slurm", "n 1\n");
    let ended = |index: u32, state: &str| {
        let key = queue::JobKey {
            comment: "doe:n".into(),
            index,
        };
        let job = Job {
            number: format!("29+{index}"),
            state: state.into(),
            reason: String::new(),
            submitted: String::new(),
            node: String::new(),
        };
        together::to_end(root, &key, &job)
    };
    assert_eq!((ended(0, "RUNNING"), ended(1, "RUNNING")), (None, None));
    put("b/unwanted", "");
    assert_eq!(ended(1, "PENDING"), None);
    assert_eq!(ended(1, "RUNNING").as_deref(), Some("29+1"));
    fs::remove_file(root.join("runs/b/unwanted")).unwrap();
    put("a/pid", "0 0 revoked\n");
    // The other one would end with it.
    assert_eq!(ended(0, "RUNNING"), None);
    put("b/over", "");
    assert_eq!(ended(0, "RUNNING").as_deref(), Some("29"));
    assert_eq!(ended(1, "PENDING").as_deref(), Some("29"));
    // One that was submitted once more is in another job.
    fs::remove_file(root.join("runs/b/over")).unwrap();
    put("b/slurm", "m 0\n");
    assert_eq!(ended(0, "RUNNING").as_deref(), Some("29"));
}

/// A step sees all GPUs of its component, and two members on one node share a component.
#[test]
fn members_with_gpus_on_one_node_are_no_job_of_several() {
    let place = |gres: Option<&str>| Place {
        root: PathBuf::new(),
        batch: PathBuf::new(),
        wrapper: PathBuf::new(),
        together: PathBuf::new(),
        common: Vec::new(),
        gres: gres.map(str::to_owned),
        limits: Limits::new(&[], None),
    };
    let gang = |members: &[(&str, u32)]| -> Vec<submit::Asked> {
        let start = |(name, gpus): &(&str, u32)| submit::Start {
            host: crate::exec::HostSpec {
                name: (*name).to_owned(),
                address: (*name).to_owned(),
                gpus: 8,
            },
            token: Token(format!("t-{name}-{gpus}")),
            timeout: None,
            ask: crate::exec::Ask {
                gpus: *gpus,
                ..Default::default()
            },
        };
        let asked = members.iter().map(start);
        asked
            .map(|start| (start, tokio::sync::oneshot::channel().0))
            .collect()
    };
    let one_job = |gres, members: &[(&str, u32)]| together::is_gang(&place(gres), &gang(members));
    let gpu = Some("gpu");
    assert!(one_job(gpu, &[("n1", 8), ("n2", 8)]));
    assert!(!one_job(gpu, &[("n1", 4), ("n1", 4), ("n2", 8)]));
    // Where nobody asks Slurm for them there is nothing to see.
    assert!(one_job(None, &[("n1", 4), ("n1", 4), ("n2", 8)]));
    assert!(one_job(gpu, &[("n1", 0), ("n1", 0), ("n2", 0)]));
    assert!(!one_job(gpu, &[("n1", 0), ("n1", 0)]));
}

/// A driver that sees another `doe` than was staged drives nothing, and says so.
#[test]
fn a_driver_runs_the_doe_that_was_staged_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let put = |name: &str, text: &str| folder::write_private(&path(name), text.as_bytes()).unwrap();
    put("drive.sh", include_str!("drive.sh"));
    put("program", "right");
    put("here", "");
    put("mark", &format!("{}\n", path("here").display()));
    put("command", &format!("touch '{}'\n", path("ran").display()));
    let (_, sum) = files::sums(&path("program")).unwrap();
    put("doe", &format!("{sum} {}\n", path("program").display()));
    let drive = |number: &str| {
        let mut driver = Command::new("/bin/sh");
        driver.arg(path("drive.sh")).arg(dir.path()).arg(number);
        driver.status().unwrap().code()
    };
    put("program", "wrong");
    assert_eq!(drive("1"), Some(66));
    let said = fs::read_to_string(path("failed-1")).unwrap();
    assert!(
        said.contains("does not see the doe that was staged"),
        "{said}"
    );
    assert!(!path("ran").exists() && !path("begun-1").exists());
    put("program", "right");
    assert_eq!(drive("2"), Some(0));
    assert!(path("ran").exists() && path("over").exists());
}
