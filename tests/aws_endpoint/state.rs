//! Commands and what becomes of them. An invocation only moves forward, and its last state stays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Faults, Spec};

/// Whether an agent is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ping {
    Online,
    /// The agent does not fetch what is sent.
    ConnectionLost,
    /// The same for long.
    Inactive,
    /// Terminated or never there.
    Gone,
}

#[derive(Debug, Clone)]
pub struct InstanceState {
    pub spec: Spec,
    pub ping: Ping,
}

/// One SendCommand.
#[derive(Debug, Clone)]
pub struct Command {
    pub id: String,
    pub comment: String,
    pub document: String,
    pub commands: Vec<String>,
    pub parameters: Value,
    pub execution_timeout: Duration,
    pub timeout: Duration,
    pub requested: SystemTime,
    pub visible_at: Instant,
    pub accepted: Instant,
    pub invocations: BTreeMap<String, Invocation>,
    /// Its answer was lost.
    pub lost: bool,
}

/// One command on one instance.
#[derive(Debug, Clone)]
pub struct Invocation {
    pub status: &'static str,
    pub details: &'static str,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub begun: Option<SystemTime>,
    pub ended: Option<SystemTime>,
    pub cancel: bool,
    /// How often it is carried out.
    pub times: u32,
    /// How it ends without being run.
    pub spoilt: Option<(&'static str, &'static str)>,
}

impl Invocation {
    pub fn is_final(&self) -> bool {
        !["Pending", "InProgress", "Delayed", "Cancelling"].contains(&self.status)
    }

    pub fn set(&mut self, status: &'static str, details: &'static str) {
        if self.is_final() {
            return;
        }
        self.status = status;
        self.details = details;
        if self.is_final() {
            self.ended = Some(SystemTime::now());
        }
    }
}

impl Command {
    /// The state of all invocations together.
    pub fn status(&self) -> (&'static str, &'static str) {
        let all: Vec<&Invocation> = self.invocations.values().collect();
        for status in ["InProgress", "Cancelling", "Delayed", "Pending"] {
            if let Some(one) = all.iter().find(|i| i.status == status) {
                return (one.status, one.details);
            }
        }
        for status in ["Failed", "TimedOut", "Cancelled", "Success"] {
            if let Some(one) = all.iter().find(|i| i.status == status) {
                return (one.status, one.details);
            }
        }
        ("Pending", "Pending")
    }

    pub fn json(&self) -> Value {
        let (status, details) = self.status();
        let count = |wanted: &dyn Fn(&Invocation) -> bool| {
            self.invocations.values().filter(|i| wanted(i)).count()
        };
        json!({
            "CommandId": self.id,
            "DocumentName": self.document,
            "DocumentVersion": "$DEFAULT",
            "Comment": self.comment,
            "ExpiresAfter": unix(self.requested + self.timeout + self.execution_timeout),
            "Parameters": self.parameters,
            "InstanceIds": self.invocations.keys().collect::<Vec<_>>(),
            "Targets": [],
            "RequestedDateTime": unix(self.requested),
            "Status": status,
            "StatusDetails": details,
            "OutputS3Region": "",
            "OutputS3BucketName": "",
            "OutputS3KeyPrefix": "",
            "MaxConcurrency": "50",
            "MaxErrors": "0",
            "TargetCount": self.invocations.len(),
            "CompletedCount": count(&|i| i.is_final()),
            "ErrorCount": count(&|i| i.status == "Failed"),
            "DeliveryTimedOutCount": count(&|i| i.details == "DeliveryTimedOut"),
            "ServiceRole": "",
            "NotificationConfig": {"NotificationArn": "", "NotificationEvents": [], "NotificationType": ""},
            "CloudWatchOutputConfig": {"CloudWatchLogGroupName": "", "CloudWatchOutputEnabled": false},
            "TimeoutSeconds": self.timeout.as_secs(),
        })
    }

    /// An answer of GetCommandInvocation: output is cut, and empty until the end.
    pub fn invocation_json(&self, instance: &str, one: &Invocation) -> Value {
        let done = one.is_final();
        let cut = |text: &str, most: usize| -> String {
            if !done {
                return String::new();
            }
            let mut end = most.min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text[..end].to_owned()
        };
        let time = |time: Option<SystemTime>| {
            time.map_or(String::new(), |t| {
                humantime::format_rfc3339_millis(t).to_string()
            })
        };
        json!({
            "CommandId": self.id,
            "InstanceId": instance,
            "Comment": self.comment,
            "DocumentName": self.document,
            "DocumentVersion": "$DEFAULT",
            "PluginName": "aws:runShellScript",
            "ResponseCode": if done { one.code } else { -1 },
            "ExecutionStartDateTime": time(one.begun),
            "ExecutionElapsedTime": if done { "PT0.1S" } else { "" },
            "ExecutionEndDateTime": time(one.ended),
            "Status": one.status,
            "StatusDetails": one.details,
            "StandardOutputContent": cut(&one.stdout, 24_000),
            "StandardOutputUrl": "",
            "StandardErrorContent": cut(&one.stderr, 8_000),
            "StandardErrorUrl": "",
            "CloudWatchOutputConfig": {"CloudWatchLogGroupName": "", "CloudWatchOutputEnabled": false},
        })
    }
}

pub struct State {
    pub dir: PathBuf,
    pub instances: HashMap<String, InstanceState>,
    pub commands: Vec<Command>,
    pub faults: Faults,
    pub asked: HashMap<String, u32>,
    pub count: u64,
    pub region: String,
    pub uses: BTreeSet<(String, String)>,
}

impl State {
    pub fn new(dir: PathBuf, instances: Vec<Spec>) -> Self {
        let instances = instances.into_iter().map(|spec| {
            let ping = Ping::Online;
            (spec.id.clone(), InstanceState { spec, ping })
        });
        Self {
            dir,
            instances: instances.collect(),
            commands: Vec::new(),
            faults: Faults::default(),
            asked: HashMap::new(),
            count: 0,
            region: "us-east-1".to_owned(),
            uses: BTreeSet::new(),
        }
    }

    pub fn invocation(&mut self, id: &str, instance: &str) -> Option<&mut Invocation> {
        let command = self.commands.iter_mut().find(|c| c.id == id)?;
        command.invocations.get_mut(instance)
    }

    /// Ends what was not delivered in time. Looked at whenever somebody asks.
    pub fn expire(&mut self) {
        for command in &mut self.commands {
            let age = command.accepted.elapsed();
            for (id, one) in &mut command.invocations {
                if one.status != "Pending" && one.status != "Delayed" {
                    continue;
                }
                let ping = self.instances.get(id).map(|i| i.ping);
                if ping == Some(Ping::Gone) && age > Duration::from_secs(1) {
                    one.set("Failed", "Undeliverable");
                } else if age > command.timeout + command.execution_timeout {
                    one.set("TimedOut", "DeliveryTimedOut");
                }
            }
        }
    }

    /// A number that looks like the service's ids.
    pub fn fresh_id(&mut self) -> String {
        self.count += 1;
        let count = self.count;
        let process = std::process::id();
        format!("{process:08x}-d0e0-4000-8000-{count:012x}")
    }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_millis() as f64 / 1000.0
}

/// Takes one from a counter of faults.
pub fn take(counter: &mut u32) -> bool {
    let is = *counter > 0;
    *counter = counter.saturating_sub(1);
    is
}
