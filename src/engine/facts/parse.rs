//! From what a probe printed to typed facts. Nothing is guessed: every line is a declared fact of
//! its type, given once, or the whole reading is refused with the host and the line.

use std::collections::BTreeMap;

use doe_cache::Value;

use crate::error::{Error, Kind, Result, nearest};
use crate::rule::host::{HostProbe, LINE_END, OWN_OUTPUT, STDERR_OF};

/// Typed facts by name.
pub type HostValues = BTreeMap<String, Value>;

/// Reads the output of a probe's script that ended well. `stderr` says why a command failed.
pub(super) fn parse(
    probe: &HostProbe,
    host: &str,
    stdout: &str,
    stderr: &str,
) -> Result<HostValues> {
    let reader = Reader {
        probe,
        host,
        found: BTreeMap::new(),
    };
    reader.read(stdout, stderr)
}

struct Reader<'p> {
    probe: &'p HostProbe,
    host: &'p str,
    found: HostValues,
}

impl Reader<'_> {
    fn read(mut self, stdout: &str, stderr: &str) -> Result<HostValues> {
        let own = stdout.split_once(&format!("{OWN_OUTPUT}\n"));
        let (commands, own) = own.unwrap_or((stdout, ""));
        for line in commands.lines() {
            self.of_command(line, stderr)?;
        }
        if own.trim_start().starts_with('{') {
            self.of_json(own)?;
        } else {
            for (at, line) in own.lines().enumerate() {
                let place = format!("line {} of its output", at + 1);
                self.of_line(line, &place)?;
            }
        }
        for (name, fact) in &self.probe.facts {
            if !fact.optional && !self.found.contains_key(name) {
                return Err(self.refuse(format!("it says nothing of fact `{name}`")));
            }
        }
        Ok(self.found)
    }

    /// `NAME EXIT_CODE VALUE`, as the script that we made prints it.
    fn of_command(&mut self, line: &str, stderr: &str) -> Result<()> {
        let mut words = line.splitn(3, ' ');
        let (name, code, text) = (words.next(), words.next(), words.next());
        let (Some(name), Some(code), Some(text)) = (name, code, text) else {
            return Err(self.refuse(format!("`{line}` is not what its script prints")));
        };
        let fact = self.probe.facts.get(name);
        let optional = fact.is_some_and(|fact| fact.optional);
        let lines = text.split(LINE_END).filter(|line| !line.trim().is_empty());
        let lines: Vec<&str> = lines.collect();
        match (code, lines.as_slice()) {
            ("0", [one]) => self.take(name, one, "its command"),
            ("0", []) if optional => Ok(()),
            ("0", []) => Err(self.refuse(format!("the command of fact `{name}` printed nothing"))),
            ("0", [first, ..]) => Err(self.refuse(format!(
                "the command of fact `{name}` printed {} lines instead of one; the first is `{}`",
                lines.len(),
                first.trim()
            ))),
            _ if optional => Ok(()),
            _ => {
                let said = last_words_of(name, stderr);
                let text = format!("the command of fact `{name}` ended with exit code {code}");
                let error = self.refuse(text);
                Err(match said {
                    Some(said) => error.cause(said.trim()),
                    None => error,
                }
                .hint(format!(
                    "a fact that a host may not have is `optional = true` in `{}`",
                    self.probe.id
                )))
            }
        }
    }

    /// `name=value`.
    fn of_line(&mut self, line: &str, place: &str) -> Result<()> {
        match line.split_once('=') {
            _ if line.trim().is_empty() => Ok(()),
            Some((name, value)) => self.take(name.trim(), value, place),
            None => Err(self.refuse(format!("{place} is `{line}`, not `name=value`"))),
        }
    }

    fn of_json(&mut self, text: &str) -> Result<()> {
        let found: serde_json::Value = serde_json::from_str(text).map_err(|cause| {
            self.refuse("its output is not one JSON object")
                .cause(cause)
        })?;
        // It began with a brace.
        for (name, json) in found.as_object().into_iter().flatten() {
            let Some(fact) = self.declared(name, "its JSON object")? else {
                continue;
            };
            if json.is_null() && fact.optional {
                continue;
            }
            let value = fact.ty.read_json(json);
            self.put(name, value, &json.to_string(), "its JSON object")?;
        }
        Ok(())
    }

    fn take(&mut self, name: &str, text: &str, place: &str) -> Result<()> {
        let Some(fact) = self.declared(name, place)? else {
            return Ok(());
        };
        self.put(name, fact.ty.read(text), text, place)
    }

    fn declared(&self, name: &str, place: &str) -> Result<Option<crate::rule::host::FactDef>> {
        if let Some(fact) = self.probe.facts.get(name) {
            return Ok(Some(fact.clone()));
        }
        let text = format!("{place} gives `{name}`, which is no fact of the probe");
        let error = self.refuse(text);
        let near = nearest(name, self.probe.facts.keys().map(String::as_str));
        Err(match near {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(format!(
                "declare it as `fact.{name}` in `{}`",
                self.probe.id
            )),
        })
    }

    fn put(
        &mut self,
        name: &str,
        value: Result<Value, String>,
        text: &str,
        place: &str,
    ) -> Result<()> {
        let value = value.map_err(|why| {
            let shown: String = text.trim().chars().take(80).collect();
            let shown = shown.replace(char::is_control, " ");
            self.refuse(format!(
                "{place} gives `{shown}` for fact `{name}`, which is {why}"
            ))
        })?;
        if self.found.insert(name.to_owned(), value).is_some() {
            return Err(self.refuse(format!("{place} gives fact `{name}` a second time")));
        }
        Ok(())
    }

    fn refuse(&self, why: impl Into<String>) -> Error {
        let (probe, host) = (&self.probe.id, self.host);
        let text = format!("probe `{probe}` on host `{host}`: {}", why.into());
        Error::new(Kind::Infra, "bad-facts", text)
    }
}

/// The last line that the command of a fact wrote to standard error.
fn last_words_of<'t>(name: &str, stderr: &'t str) -> Option<&'t str> {
    let mut lines = stderr
        .lines()
        .skip_while(|line| line.strip_prefix(STDERR_OF) != Some(name));
    lines.next();
    let own = lines.take_while(|line| !line.starts_with(STDERR_OF));
    own.filter(|line| !line.trim().is_empty()).last()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::load::{RuleFile, load_all};

    fn probe(text: &str) -> HostProbe {
        let text = format!("[gpu]\nkind = \"probe\"\n{text}");
        let file = RuleFile {
            name: "h.toml",
            stem: "h",
            text: &text,
        };
        let loaded = load_all(&[file], &[]);
        assert_eq!(loaded.diags, []);
        (**loaded.probes.values().next().unwrap()).clone()
    }

    /// What the probe's script really prints here.
    fn ask(probe: &HostProbe) -> Result<HostValues> {
        let output = std::process::Command::new("/bin/sh")
            .args(["-eu", "-c", &probe.script()])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        parse(probe, "h1", &text(&output.stdout), &text(&output.stderr))
    }

    #[test]
    fn commands_and_the_own_script_give_typed_facts() {
        let both = probe(
            "run = \"echo cores=4; echo ' gpu = NVIDIA L40S'\"\nfact.cores = { type = \"int\" }\nfact.gpu = {}\n\
             fact.kernel = { run = \"uname -r\" }\nfact.word = { run = \"echo \\\"it's\\\" 'a = b'\" }\n\
             fact.none = { run = \"no-such-tool --version\", optional = true }\n",
        );
        let facts = ask(&both).unwrap();
        assert_eq!(facts["cores"], Value::Int(4));
        assert_eq!(facts["gpu"], Value::from("NVIDIA L40S"));
        assert_eq!(facts["word"], Value::from("it's a = b"));
        assert!(facts["kernel"].as_str().unwrap().contains('.'));
        assert!(!facts.contains_key("none"));
        let json = probe(
            "run = '''echo '{\"cores\": 4,'; echo '\"ok\": true, \"none\": null}' '''\nfact.cores = { type = \"int\" }\n\
             fact.ok = { type = \"bool\" }\nfact.none = { optional = true }\n",
        );
        let facts = ask(&json).unwrap();
        assert_eq!(
            facts.into_iter().collect::<Vec<_>>(),
            [
                ("cores".into(), Value::Int(4)),
                ("ok".into(), Value::Bool(true))
            ]
        );
    }

    #[test]
    fn what_is_not_declared_or_not_of_its_type_is_refused() {
        for (text, why) in [
            (
                "run = \"echo; echo cores 4\"\nfact.cores = {}",
                "line 2 of its output is `cores 4`, not `name=value`",
            ),
            (
                "run = \"echo cores=four\"\nfact.cores = { type = \"int\" }",
                "line 1 of its output gives `four` for fact `cores`, which is not a whole number",
            ),
            (
                "run = \"echo core=4\"\nfact.cores = {}",
                "line 1 of its output gives `core`, which is no fact of the probe",
            ),
            (
                "run = \"echo cores=4; echo cores=4\"\nfact.cores = {}",
                "line 2 of its output gives fact `cores` a second time",
            ),
            (
                "run = \"true\"\nfact.cores = {}",
                "it says nothing of fact `cores`",
            ),
            (
                "run = \"echo {\"\nfact.cores = {}",
                "its output is not one JSON object",
            ),
            (
                "run = \"echo '{\\\"cores\\\": \\\"4\\\"}'\"\nfact.cores = { type = \"int\" }",
                "its JSON object gives `\"4\"` for fact `cores`, which is not a whole number",
            ),
            (
                "fact.gpu = { run = \"echo a; echo b\" }",
                "printed 2 lines instead of one; the first is `a`",
            ),
            (
                "fact.gpu = { run = \"true\" }",
                "the command of fact `gpu` printed nothing",
            ),
            (
                "fact.gpu = { run = \"echo no GPU here >&2; exit 9\" }\nfact.other = { run = \"echo x; echo other >&2\" }",
                "the command of fact `gpu` ended with exit code 9: no GPU here",
            ),
        ] {
            let error = ask(&probe(text)).unwrap_err();
            let told = error.to_string();
            assert!(told.starts_with("probe `h.gpu` on host `h1`: "), "{told}");
            assert!(told.contains(why), "{text}: {told}");
            assert_eq!((error.kind, error.code), (Kind::Infra, "bad-facts"));
        }
    }
}
