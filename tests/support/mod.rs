//! What the end-to-end tests share: a workspace in a temporary folder and the real binary.
#![allow(dead_code)] // each test file uses its own part

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A workspace that goes when the test ends.
pub struct Workspace {
    path: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl Workspace {
    /// An empty workspace: only `doe.toml`.
    pub fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut workspace = Self::at(dir.path());
        workspace._dir = Some(dir);
        workspace
    }

    /// An empty workspace in a folder that stays.
    pub fn at(path: &Path) -> Self {
        let workspace = Self {
            path: path.to_owned(),
            _dir: None,
        };
        workspace.write("doe.toml", "");
        workspace
    }

    /// The same workspace, as it is.
    pub fn again(&self) -> Self {
        Self {
            path: self.path.clone(),
            _dir: None,
        }
    }

    /// The shipped plans and rules, on a simulation that is faster than the shipped one.
    pub fn shipped(time_scale: &str) -> Self {
        let workspace = Self::empty();
        for folder in ["plans", "rules"] {
            let from = repository().join(folder);
            for entry in std::fs::read_dir(from).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_string();
                workspace.write(
                    &format!("{folder}/{name}"),
                    &std::fs::read_to_string(&path).unwrap(),
                );
            }
        }
        workspace.write(
            "doe.toml",
            &format!("[platform.sim]\nsim = {{ time_scale = {time_scale} }}\n"),
        );
        workspace
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    /// Replaces text that must stand there exactly `times` times.
    pub fn replace(&self, name: &str, old: &str, new: &str, times: usize) {
        let text = self.read(name);
        assert_eq!(text.matches(old).count(), times, "`{old}` in {name}");
        self.write(name, &text.replace(old, new));
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doe"));
        command
            .args(args)
            .arg("--workspace")
            .arg(self.path())
            .env_remove("NO_COLOR")
            .stdin(Stdio::null());
        command
    }

    pub fn doe(&self, args: &[&str]) -> Ran {
        Ran::of(args, self.command(args).output().unwrap())
    }

    /// Starts `doe` and leaves it running; its output goes to files in the workspace.
    pub fn spawn(&self, args: &[&str]) -> (Child, PathBuf) {
        let out = self.path().join("stdout.txt");
        let child = self
            .command(args)
            .stdout(std::fs::File::create(&out).unwrap())
            .stderr(std::fs::File::create(self.path().join("stderr.txt")).unwrap())
            .spawn()
            .unwrap();
        (child, out)
    }

    /// Labels that `doe plan` puts under a heading.
    pub fn planned(&self, target: &str, heading: &str) -> Vec<String> {
        let plan = self.doe(&["plan", target, "--json"]).ok().json();
        labels(&plan[heading])
    }

    /// Processes that belong to this workspace: their environment or command line names it.
    pub fn processes(&self) -> Vec<String> {
        let needle = self.path().to_str().unwrap().as_bytes();
        let own = std::process::id().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().to_string();
            if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == own {
                continue;
            }
            let read = |what: &str| std::fs::read(entry.path().join(what)).unwrap_or_default();
            let (command, environment) = (read("cmdline"), read("environ"));
            let names = |text: &[u8]| text.windows(needle.len()).any(|w| w == needle);
            // A zombie has neither; it is gone but for its parent.
            if names(&command) || names(&environment) {
                found.push(format!(
                    "{pid} {}",
                    String::from_utf8_lossy(&command).replace('\0', " ")
                ));
            }
        }
        found
    }

    /// Waits until nothing of this workspace runs.
    pub fn assert_nothing_runs(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left running:\n{}",
                left.join("\n")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Labels of a list of `{label, …}`.
pub fn labels(list: &serde_json::Value) -> Vec<String> {
    let list = list
        .as_array()
        .unwrap_or_else(|| panic!("not a list: {list}"));
    list.iter()
        .map(|item| item["label"].as_str().unwrap().to_string())
        .collect()
}

/// Waits until something holds; says what was awaited when it does not.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Shell text that waits until every monitor of a name that runs has said more, by its log in the
/// folder of executions: with the times that stand there it is of the measurement.
pub fn monitors_spoke(runs: &str, name: &str) -> String {
    let dirs = format!("{runs}/*monitor-{name}*");
    format!(
        r#"
ls -d {dirs} >/dev/null
from=$(date +%s%3N)
for dir in {dirs}; do
  while kill -0 "$(cut -d' ' -f1 "$dir/pid")" 2>/dev/null &&
    test "$(awk -v from="$from" '$1 > from' "$dir/stdout" | wc -l)" -lt 5; do sleep 0.02; done
done
"#
    )
}

/// What a command did.
pub struct Ran {
    args: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// What a command that was spawned wrote, once it has ended well or not.
    pub fn of_files(workspace: &Workspace) -> Self {
        Self {
            args: "(spawned)".into(),
            code: 0,
            stdout: workspace.read("stdout.txt"),
            stderr: workspace.read("stderr.txt"),
        }
    }

    pub fn of(args: &[&str], output: Output) -> Self {
        Self {
            args: args.join(" "),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "doe {}\n{}\n{}",
            self.args, self.stdout, self.stderr
        );
        self
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// The whole output as one document.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("doe {}: {e}\n{}", self.args, self.stdout))
    }

    /// The last line as a document.
    #[track_caller]
    pub fn summary(&self) -> serde_json::Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        let summary: serde_json::Value = serde_json::from_str(last)
            .unwrap_or_else(|e| panic!("doe {}: {e}\n{}\n{}", self.args, self.stdout, self.stderr));
        assert_eq!(summary["event"], "summary", "{last}");
        summary
    }

    /// Every line as a document.
    pub fn events(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }
}
