//! Monitors of a platform: commands that run beside every node and whose samples are kept with its
//! record. Their names are unique on a platform; what they print is not understood here.

use std::collections::BTreeMap;

use super::expand::name_hints;
use super::model::Platform;
use crate::error::{Diagnostic, Severity, Site};
use crate::rule::load::Rules;
use crate::source::{Table, Text};

/// `[[platform.NAME.monitor]]`.
#[derive(Debug, Clone)]
pub struct Monitor {
    /// What its samples are called.
    pub name: String,
    /// The command, a shell script: every line it prints is a sample.
    pub run: String,
    /// Only on the hosts of these roles; on all hosts of the node when there are none.
    pub roles: Vec<Text>,
    /// Only beside these rules: `serving.unified`, `serving.*`; beside all when there are none.
    pub rules: Vec<Text>,
    /// When a sample was taken.
    pub time: SampleTime,
    /// The step that is the measurement; all steps when there is none of that name.
    pub during: Option<Text>,
    /// Whether its samples are an output that analyses read.
    pub output: bool,
    /// Whether it enters the keys.
    pub in_key: bool,
    /// Where.
    pub site: Site,
}

/// Where the time of a sample comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SampleTime {
    /// The line is stamped on the host when it comes.
    Arrival,
    /// A column of comma-separated values under a header: Unix seconds or milliseconds, or RFC 3339.
    Column(String),
}

/// Reads the monitors of a platform over those that are known.
pub(super) fn read(table: &mut Table<'_>, platform: &mut Platform, diags: &mut Vec<Diagnostic>) {
    let mut seen: Vec<(String, Site)> = Vec::new();
    for entry in table.tables("monitor", diags) {
        let Some(monitor) = one(entry, diags) else {
            continue;
        };
        if let Some((_, first)) = seen.iter().find(|(name, _)| *name == monitor.name) {
            diags.push(
                Diagnostic::error(
                    "duplicate-name",
                    format!("two monitors are called `{}`", monitor.name),
                )
                .at(monitor.site.clone(), "")
                .at(first.clone(), "first here"),
            );
        }
        seen.push((monitor.name.clone(), monitor.site.clone()));
        platform.monitors.retain(|known| known.name != monitor.name);
        platform.monitors.push(monitor);
    }
}

fn one(table: Table<'_>, diags: &mut Vec<Diagnostic>) -> Option<Monitor> {
    let mut table = table.named("a monitor");
    let name = table.req_str("name", diags);
    let run = table.req_str("run", diags);
    let roles = table.str_list("roles", diags);
    let rules = table.str_list("rules", diags);
    let time = match table.opt_str("time_column", diags) {
        Some(column) => SampleTime::Column(column.text),
        None => SampleTime::Arrival,
    };
    let during = table.opt_str("during", diags);
    let output = table.opt_bool("output", diags).is_some_and(|b| b.value);
    let in_key = table.opt_bool("in_key", diags);
    table.remaining(diags, "of a monitor");
    let (name, run) = (name?, run?);
    if !crate::label::is_valid_name(&name.text) {
        diags.push(
            Diagnostic::error(
                "bad-name",
                format!("`{}` cannot be the name of a monitor", name.text),
            )
            .at(name.site.clone(), "")
            .hint("names are letters, digits and `._+=,-`, and start with a letter or digit"),
        );
        return None;
    }
    Some(Monitor {
        name: name.text,
        run: run.text,
        roles,
        rules,
        time,
        during,
        output,
        // What analyses read must be there whenever the result is.
        in_key: output || in_key.is_some_and(|b| b.value),
        site: name.site,
    })
}

impl Monitor {
    /// Whether it runs beside nodes of a rule.
    pub fn watches(&self, rule: &str) -> bool {
        self.rules.is_empty() || self.rules.iter().any(|wanted| fits(&wanted.text, rule))
    }

    /// Whether it runs where this role of a rule that it watches is.
    pub fn watches_role(&self, role: &str) -> bool {
        self.roles.is_empty() || self.roles.iter().any(|named| named.text == role)
    }
}

fn fits(wanted: &str, rule: &str) -> bool {
    match wanted.strip_suffix(".*") {
        Some(file) => rule.split('.').next() == Some(file),
        None => wanted == rule,
    }
}

/// Refuses what no rule has: a monitor that watches nothing would never be missed.
pub(super) fn check(
    platforms: &BTreeMap<String, Platform>,
    rules: &Rules,
    diags: &mut Vec<Diagnostic>,
) {
    if diags.iter().any(|found| found.severity == Severity::Error) {
        return;
    }
    for monitor in platforms.values().flat_map(|platform| &platform.monitors) {
        let ids = || rules.keys().map(|id| id.0.as_str());
        for wanted in &monitor.rules {
            if !ids().any(|id| fits(&wanted.text, id)) {
                let text = format!("there is no rule `{}` to watch", wanted.text);
                let found = Diagnostic::error("missing-rule", text).at(wanted.site.clone(), "");
                diags.push(name_hints(found, &wanted.text, ids(), "rules"));
            }
        }
        let watched = || rules.values().filter(|rule| monitor.watches(&rule.id.0));
        let roles = || watched().flat_map(|rule| rule.roles.keys().map(String::as_str));
        let steps = || watched().flat_map(|rule| rule.steps.iter().map(|step| step.name.as_str()));
        for role in monitor
            .roles
            .iter()
            .filter(|role| !roles().any(|known| known == role.text))
        {
            let text = format!(
                "no rule that `{}` watches has a role `{}`",
                monitor.name, role.text
            );
            let found = Diagnostic::error("unknown-name", text).at(role.site.clone(), "");
            diags.push(name_hints(found, &role.text, roles(), "roles"));
        }
        for step in monitor
            .during
            .iter()
            .filter(|step| !steps().any(|known| known == step.text))
        {
            let text = format!(
                "no rule that `{}` watches has a step `{}`",
                monitor.name, step.text
            );
            let found = Diagnostic::error("unknown-name", text).at(step.site.clone(), "");
            diags.push(name_hints(found, &step.text, steps(), "steps"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::platform;
    use super::*;

    fn load(text: &str) -> (Vec<Monitor>, Vec<Diagnostic>) {
        let text = format!(
            "[platform.lab]\nroles = {{ \"*\" = \"h\" }}\n[platform.lab.host.h]\naddress = \"127.0.0.1\"\n{text}"
        );
        let (platforms, diags) = platform::tests::load(&text);
        (platforms["lab"].monitors.clone(), diags)
    }

    #[test]
    fn monitors_say_where_and_beside_what_they_run() {
        let (monitors, diags) = load(
            "[[platform.lab.monitor]]\nname = \"gpu\"\nrun = \"nvidia-smi dmon\"\nrules = [\"serving.*\", \"network.iperf3\"]\n\
             [[platform.lab.monitor]]\nname = \"net\"\nrun = \"sar\"\ntime_column = \"time\"\noutput = true\nroles = [\"decode\"]\n",
        );
        assert_eq!(diags, []);
        let [gpu, net] = monitors.as_slice() else {
            panic!("{monitors:?}")
        };
        assert!(gpu.watches("serving.unified") && gpu.watches("network.iperf3"));
        assert!(!gpu.watches("network.fi_info") && net.watches("network.fi_info"));
        assert!(!gpu.in_key && net.in_key, "an output is in the keys");
        assert_eq!(net.time, SampleTime::Column("time".into()));
    }

    #[test]
    fn what_is_no_monitor_is_refused() {
        let one = "[[platform.lab.monitor]]\n";
        for (text, code) in [
            ("name = \"gpu\"", "missing-key"),
            ("name = \"a b\"\nrun = \"x\"", "bad-name"),
            ("name = \"gpu\"\nrun = \"x\"\nevery = 1", "unknown-key"),
            (
                "name = \"gpu\"\nrun = \"x\"\n[[platform.lab.monitor]]\nname = \"gpu\"\nrun = \"y\"",
                "duplicate-name",
            ),
        ] {
            let (_, diags) = load(&format!("{one}{text}\n"));
            assert_eq!(diags.len(), 1, "{text}: {diags:?}");
            assert_eq!(diags[0].code, code);
        }
    }
}
