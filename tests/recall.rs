//! What was answered before is answered again only when nothing could have changed, and always as
//! it would be worked out anew. The oracle is the same program with `--no-recall`.

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use support::Workspace;

const RULES: &str = "
[echo]
doc = \"Writes a word.\"
param.i = { type = \"int\", doc = \"which\" }
param.word = { type = \"str\", default = \"\", doc = \"what\" }
roles = { here = { exclusive = false } }
[[echo.step]]
name = \"echo\"
role = \"here\"
timeout = \"1m\"
run = \"echo {{ i }} {{ word }} > {{ out.text }}\"
[echo.output]
text = { path = \"text\" }
";

const WORKSPACE: &str = "
[workspace]
platform = \"here\"
[platform.here]
executor = \"local\"
roles = { \"*\" = \"h\" }
facts = { kernel = \"6\" }
[platform.here.host.h]
address = \"127.0.0.1\"
";

/// A plan of layers, each needing cells of the one before; one cell of each has a word.
fn plan(words: &[String], width: usize) -> String {
    let mut text = "[plan]\ntitle = \"t\"\nrules = [\"r\"]\n".to_owned();
    for (layer, word) in words.iter().enumerate() {
        let cells: Vec<String> = (0..width).map(|i| i.to_string()).collect();
        text.push_str(&format!(
            "\n[[layer]]\nid = \"L{layer}\"\nrule = \"r.echo\"\npattern = \"n{layer}-{{{{ i }}}}\"\n"
        ));
        if layer > 0 {
            let before = layer - 1;
            text.push_str(&format!(
                "needs = [\"n{before}-{{{{ (i * 7 + 1) % {width} }}}}\", \"n{before}-{{{{ i }}}}\"]\n"
            ));
        }
        if !word.is_empty() {
            text.push_str(&format!(
                "[[layer.override]]\nwhen = \"i == 1\"\nsettings = {{ word = \"{word}\" }}\n"
            ));
        }
        text.push_str(&format!("[layer.matrix]\ni = [{}]\n", cells.join(", ")));
    }
    text
}

fn workspace(words: &[&str], width: usize) -> Workspace {
    let workspace = Workspace::empty();
    workspace.write("doe.toml", WORKSPACE);
    workspace.write("rules/r.toml", RULES);
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    workspace.write("plans/p.toml", &plan(&words, width));
    workspace
}

/// What tells one kept answer from another that was written later.
fn kept(workspace: &Workspace) -> Vec<(PathBuf, u64, i64, i64)> {
    let folder = workspace.path().join(".doe/recall");
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_none())
        .map(|entry| {
            let meta = entry.metadata().unwrap();
            (entry.path(), meta.ino(), meta.mtime(), meta.mtime_nsec())
        })
        .collect();
    found.sort();
    found
}

/// Output without what is new every time: the run's name, times.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        if let Ok(mut json) = serde_json::from_str::<serde_json::Value>(line) {
            if let Some(object) = json.as_object_mut() {
                for key in ["run_id", "run_dir", "at_unix_ms", "wall_s", "command"] {
                    object.remove(key);
                }
            }
            out.push_str(&json.to_string());
        } else if let Some((head, _)) = line.split_once(" in ") {
            out.push_str(head);
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

#[test]
fn nothing_to_do_is_told_again_as_it_was() {
    let workspace = workspace(&["a", "b"], 3);
    for args in [&["build", "//..."][..], &["build", "//...", "--json"]] {
        workspace.doe(args).ok();
        let slow = workspace.doe(args).ok();
        let before = kept(&workspace);
        assert!(!before.is_empty());
        let quick = workspace.doe(args).ok();
        assert_eq!(kept(&workspace), before, "it was worked out again");
        let anew: Vec<&str> = args.iter().copied().chain(["--no-recall"]).collect();
        let anew = workspace.doe(&anew).ok();
        assert_eq!(plain(&quick.stdout), plain(&anew.stdout));
        assert_eq!(plain(&quick.stdout), plain(&slow.stdout));
        assert_eq!(quick.stderr, anew.stderr);
    }
    let last = workspace.doe(&["build", "//...", "--json"]).ok();
    let last = last.stdout.lines().last().unwrap().to_owned();
    assert!(last.contains("\"event\":\"summary\",\"ok\":0,\"reused\":6,"));
}

#[test]
fn commands_that_look_say_the_same_again() {
    let workspace = workspace(&["a", "b"], 3);
    workspace.doe(&["build", "//..."]).ok();
    for args in [
        &["plan", "//..."][..],
        &["plan", "//...", "--json"],
        &["status"],
        &["check", "//..."],
        &["plan", "//...", "--up-to-date"],
        &["plan", "//p:L0"],
        &["plan", "//...", "--set", "word=x"],
    ] {
        let slow = workspace.doe(args);
        let quick = workspace.doe(args);
        let anew: Vec<&str> = args.iter().copied().chain(["--no-recall"]).collect();
        let anew = workspace.doe(&anew);
        assert_eq!(slow.stdout, quick.stdout, "{args:?}");
        assert_eq!(anew.stdout, quick.stdout, "{args:?}");
        assert_eq!(
            (anew.code, &anew.stderr),
            (quick.code, &quick.stderr),
            "{args:?}"
        );
    }
}

type Change<'c> = &'c dyn Fn(&Workspace);

#[test]
fn every_change_is_seen() {
    let text = plan(&["a".into(), "b".into()], 3);
    let edits: &[(&str, Change<'_>)] = &[
        ("a setting", &|w| {
            w.write("plans/p.toml", &text.replace("\"a\"", "\"c\""))
        }),
        ("a comment in a plan", &|w| {
            w.write("plans/p.toml", &format!("# new\n{text}"))
        }),
        ("a rule", &|w| {
            w.write(
                "rules/r.toml",
                &RULES.replace("echo {{ i }}", "echo x{{ i }}"),
            )
        }),
        ("doe.toml", &|w| {
            w.write("doe.toml", &WORKSPACE.replace("\"6\"", "\"7\""))
        }),
        ("a new plan", &|w| w.write("plans/q.toml", &text)),
        ("a new plan in a folder", &|w| {
            w.write("plans/d/q.toml", &text)
        }),
        ("a new rule file", &|w| w.write("rules/s.toml", RULES)),
        ("a plan that is gone", &|w| {
            std::fs::remove_file(w.path().join("plans/p.toml")).unwrap()
        }),
        ("a record that is gone", &|w| {
            let folder = w.path().join(".doe/records");
            let one = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
            let file = std::fs::read_dir(one.path())
                .unwrap()
                .next()
                .unwrap()
                .unwrap();
            std::fs::remove_file(file.path()).unwrap();
        }),
        ("an index that is gone", &|w| {
            std::fs::remove_file(w.path().join(".doe/index.sqlite")).unwrap()
        }),
        ("an index made again", &|w| {
            doe_cache::Store::rebuild(w.path().join(".doe")).unwrap();
        }),
    ];
    for (what, edit) in edits {
        let workspace = workspace(&["a", "b"], 3);
        let args = ["build", "//...", "--json"];
        for _ in 0..3 {
            workspace.doe(&args).ok();
        }
        workspace.doe(&["plan", "//..."]);
        edit(&workspace);
        let plan = workspace.doe(&["plan", "//..."]);
        let anew = workspace.doe(&["plan", "//...", "--no-recall"]);
        assert_eq!(plan.stdout, anew.stdout, "{what}");
        let dry = workspace.doe(&["build", "//...", "--dry-run"]);
        assert_eq!(dry.stdout, anew.stdout, "{what}");
        workspace.doe(&args);
        let said = workspace.read(".doe/recall/last-look.txt");
        assert!(said.contains("is not what it was"), "{what}: {said}");
    }
}

#[test]
fn what_is_damaged_is_no_answer() {
    let workspace = workspace(&["a"], 3);
    let args = ["build", "//...", "--json"];
    for _ in 0..2 {
        workspace.doe(&args).ok();
    }
    let right = plain(&workspace.doe(&args).ok().stdout);
    let is_answer = |path: &PathBuf| std::fs::read(path).unwrap().starts_with(b"doe recall 1");
    let mut paths = kept(&workspace).into_iter().map(|(path, ..)| path);
    let path = paths.find(is_answer).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut damaged: Vec<Vec<u8>> = [0, 1, 12, 13, 45, 53, 60, whole.len() / 2, whole.len() - 1]
        .iter()
        .map(|&at| whole[..at].to_vec())
        .collect();
    for at in [0, 20, 46, 54, 80, whole.len() - 3] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        damaged.push(bytes);
    }
    damaged.push([&whole[..], b"x"].concat());
    damaged.push(vec![0xff; 300]);
    for bytes in damaged {
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(plain(&workspace.doe(&args).ok().stdout), right);
        assert_eq!(
            std::fs::read(&path).unwrap().len(),
            whole.len(),
            "kept anew"
        );
    }
}

/// An edit of one setting is planned by judging one pattern, says the same as the long way, and
/// taking it back leads to what was known. An edit of more takes the long way.
#[test]
fn an_edit_of_a_setting_judges_what_it_reaches() {
    let workspace = workspace(&["a", "b", "c"], 4);
    workspace.doe(&["build", "//..."]).ok();
    workspace.doe(&["build", "//..."]).ok();
    let text = workspace.read("plans/p.toml");
    let looked = |edited: &str, said: &str| {
        workspace.write("plans/p.toml", edited);
        for args in [&["plan", "//..."][..], &["plan", "//...", "--json"]] {
            let plan = workspace.doe(args).ok();
            let look = workspace.read(".doe/recall/last-look.txt");
            // The long way leaves an outline of its own where all is reused.
            let again = args.len() > 2 && look.contains("0 plans edited");
            assert!(look.contains(said) || again, "{look}");
            let anew: Vec<&str> = args.iter().copied().chain(["--no-recall"]).collect();
            assert_eq!(plan.stdout, workspace.doe(&anew).ok().stdout);
        }
    };
    looked(
        &text.replace("\"b\"", "\"x\""),
        "1 plans edited, 1 patterns judged again",
    );
    looked(
        &text.replace("\"a\"", "\"x\""),
        "1 plans edited, 1 patterns judged again",
    );
    let both = text.replace("\"a\"", "\"x\"").replace("\"c\"", "\"y\"");
    looked(&both, "1 plans edited, 2 patterns judged again");
    looked(&format!("# back\n{text}"), "more than values of settings");
    looked(
        &text.replace("[0, 1, 2, 3]", "[0, 1, 2, 3, 4]"),
        "more than values",
    );
    workspace.write("plans/p.toml", &text);
    let plan = workspace.doe(&["plan", "//...", "--json"]).ok().json();
    assert_eq!(plan["run"].as_array().unwrap().len(), 0);
    assert_eq!(plan["reuse"].as_array().unwrap().len(), 12);
}

/// An outline takes nothing for stored whose file is gone.
#[test]
fn a_record_that_is_gone_stands_for_nothing_in_an_outline() {
    let workspace = workspace(&["", "old"], 3);
    let plan = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        workspace.write("plans/p.toml", &plan(&words, 3));
    };
    workspace.doe(&["build", "//..."]).ok();
    let listed = ["cache", "ls", "--json", "--label", "//p:n1-1"];
    let listed = workspace.doe(&listed).ok().json();
    let record = listed[0]["record"].as_str().unwrap();
    plan(&["", "new"]);
    workspace.doe(&["build", "//..."]).ok();
    let file = format!(".doe/records/{}/{record}.json", &record[..2]);
    std::fs::remove_file(workspace.path().join(file)).unwrap();
    workspace.doe(&["build", "//..."]).ok();
    workspace.doe(&["plan", "//..."]).ok();
    plan(&["", "old"]);
    workspace.doe(&["plan", "//...", "--up-to-date"]).exits(6);
    workspace
        .doe(&["plan", "//...", "--up-to-date", "--no-recall"])
        .exits(6);
}

/// What is no file is not waited for.
#[test]
fn a_pipe_among_the_plans_holds_nobody_up() {
    let workspace = workspace(&[""], 2);
    workspace.doe(&["build", "//..."]).ok();
    workspace.doe(&["build", "//..."]).ok();
    let pipe = |name: &str| {
        let made = Command::new("mkfifo")
            .arg(workspace.path().join(name))
            .status();
        assert!(made.unwrap().success());
    };
    let plan = || {
        let doe = workspace.command(&["plan", "//..."]);
        let mut limited = Command::new("timeout");
        limited
            .arg("60")
            .arg(doe.get_program())
            .args(doe.get_args());
        limited.output().unwrap()
    };
    pipe("plans/.hidden.toml");
    assert_eq!(plan().status.code(), Some(0));
    pipe("rules/seen.toml");
    let refused = plan();
    assert_eq!(refused.status.code(), Some(3));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned()
        + &String::from_utf8_lossy(&refused.stdout);
    assert!(told.contains("not-regular"), "{told}");
}

/// The lock of a build that goes on is respected by one that would have nothing to do.
#[test]
fn two_builds_never_meet() {
    let workspace = workspace(&["a"], 2);
    for _ in 0..3 {
        workspace.doe(&["build", "//..."]).ok();
    }
    let lock = doe_cache::WriterLock::acquire(workspace.path().join(".doe"), "test").unwrap();
    assert_eq!(workspace.doe(&["build", "//...", "--wait=0"]).code, 5);
    drop(lock);
    workspace.doe(&["build", "//..."]).ok();
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// Random workspaces, random edits, builds in between: what is said is always what is worked out
/// anew. `RECALL_STEPS` asks for more of them.
#[test]
fn the_oracle_is_never_contradicted() {
    let steps: usize = std::env::var("RECALL_STEPS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(25);
    for seed in [7, 8] {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed);
        let width = 2 + dice.roll(3);
        let mut words: Vec<String> = (0..2 + dice.roll(3)).map(|l| format!("w{l}")).collect();
        let workspace = workspace(&[], width);
        let write = |words: &[String]| workspace.write("plans/p.toml", &plan(words, width));
        write(&words);
        let mut log = Vec::new();
        for step in 0..steps {
            let layer = dice.roll(words.len());
            let what = dice.roll(10);
            log.push((what, layer));
            match what {
                0..=3 => words[layer] = format!("w{}", dice.roll(4)),
                4 => words[layer] = String::new(),
                5 => {
                    workspace.doe(&["build", "//..."]).ok();
                }
                6 => {
                    workspace.doe(&["build", "//..."]).ok();
                    workspace.doe(&["build", "//..."]).ok();
                }
                7 if words.len() > 1 => {
                    words.pop();
                }
                7 | 8 => words.push("new".into()),
                _ => {
                    let version = dice.roll(3);
                    let text = RULES.replace(
                        "doc = \"Writes",
                        &format!("version = {}\ndoc = \"Writes", version + 1),
                    );
                    workspace.write("rules/r.toml", &text);
                }
            }
            write(&words);
            for target in ["//...", "//p:L1"] {
                let said = workspace.doe(&["plan", target]);
                let anew = workspace.doe(&["plan", target, "--no-recall"]);
                assert_eq!(
                    (said.code, &said.stdout, &said.stderr),
                    (anew.code, &anew.stdout, &anew.stderr),
                    "seed {seed}, step {step}, {target}: {log:?}"
                );
            }
        }
    }
}

/// Many analyses: only those whose numbers are shown are read when there is nothing to do.
#[test]
fn nothing_to_do_costs_no_look_at_results_that_are_not_shown() {
    let lab = Workspace::empty();
    lab.write("doe.toml", WORKSPACE);
    let rules = "
[number]
kind = \"analysis\"
doc = \"Gives a number.\"
param.i = { type = \"int\", doc = \"which\" }
[[number.step]]
name = \"number\"
timeout = \"1m\"
run = \"printf '{\\\"schema\\\": \\\"n-v1\\\", \\\"n\\\": %s}' {{ i }} > {{ out.n }}\"
[number.output]
n = { path = \"n.json\", schema = \"n-v1\" }
[number.metric]
number = { from = \"n\", at = \"/n\", unit = \"1\" }
[word]
kind = \"analysis\"
doc = \"Gives no number.\"
param.i = { type = \"int\", doc = \"which\" }
[[word.step]]
name = \"word\"
timeout = \"1m\"
run = \"echo {{ i }} > {{ out.text }}\"
[word.output]
text = { path = \"text\" }
";
    lab.write("rules/r.toml", rules);
    let cells: Vec<String> = (0..42).map(|i| i.to_string()).collect();
    let layer = |id: &str, rule: &str| {
        format!(
            "\n[[layer]]\nid = \"{id}\"\nrule = \"r.{rule}\"\npattern = \"{id}-{{{{ i }}}}\"\n\
             [layer.matrix]\ni = [{}]\n",
            cells.join(", ")
        )
    };
    let (numbers, words) = (layer("n", "number"), layer("w", "word"));
    let text = format!("[plan]\ntitle = \"t\"\nrules = [\"r\"]\n{words}{numbers}");
    lab.write("plans/p.toml", &text);
    let warned = |rules: &str| {
        lab.write("rules/r.toml", rules);
        let checked = lab.doe(&["check", "//..."]).ok();
        checked.stdout.contains("no-inputs")
    };
    assert!(warned(&rules.replacen(
        "printf",
        "wc {{ inputs }}; printf",
        1
    )));
    assert!(!warned(rules), "they look at nothing");
    lab.doe(&["build", "//..."]).ok();
    for _ in 0..2 {
        let again = lab.doe(&["build", "//..."]).ok().stdout;
        assert!(again.contains("//p:n-39") && !again.contains("//p:n-40"));
        assert!(!again.contains("//p:w-"), "{again}");
        assert!(
            again.contains("and 2 more analyses: `doe results`"),
            "{again}"
        );
    }
    // What is shown is read, and nothing else: a record that is gone is seen only where it is shown.
    let file_of = |label: &str| {
        let list = lab.doe(&["cache", "ls", "--label", label, "--json"]).ok();
        let record = list.json()[0]["record"].as_str().unwrap().to_owned();
        let found = walk(&lab.path().join(".doe"));
        let mut found = found.into_iter();
        let named = |path: &PathBuf| path.to_str().unwrap().replace('/', "").contains(&record);
        found.find(named).unwrap()
    };
    let damage = |label: &str| {
        let path = file_of(label);
        // In place, so that no folder says that anything was touched.
        let mut permissions = std::fs::metadata(&path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
        std::fs::set_permissions(&path, permissions).unwrap();
        std::fs::write(&path, "torn").unwrap();
    };
    damage("//p:w-3");
    damage("//p:n-41");
    let before = kept(&lab);
    lab.doe(&["build", "//..."]).ok();
    assert_eq!(kept(&lab), before, "told again");
    damage("//p:n-3");
    let shown = lab.doe(&["build", "//..."]);
    assert!(
        shown.code != 0 || shown.stdout.contains("1 ok"),
        "a damaged record is not shown: {}",
        shown.stdout
    );
}

fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(walk(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}
