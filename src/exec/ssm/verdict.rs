//! What the service's word on a command means. Only what our own script said through S3 is an
//! answer; everything here is about why there is none, and whether it is worth trying again.

use super::super::remote::call::Broken;

/// Exit codes of the script that carries a command, beside 0.
pub(super) const NO_TOOL: i32 = 69;
/// It could not make its folder.
pub(super) const NO_FOLDER: i32 = 73;
/// It could not fetch what the command reads.
pub(super) const NO_INPUT: i32 = 75;
/// It could not put the answer into the bucket.
pub(super) const NO_ANSWER: i32 = 76;

/// What is known of an invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not delivered yet.
    Waiting,
    /// On its host, or about to end.
    Running,
    /// The script has ended: its answer is there or never will be.
    Ended(i32),
    /// It did not come to its end.
    Failed(Failure),
}

/// How a command did not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The agent did not fetch it in time.
    NotDelivered,
    /// It was on its host for longer than it may.
    TimedOut,
    /// Somebody cancelled it.
    Cancelled,
    /// The service could not deliver it.
    Undeliverable,
    /// The service ended it with the other invocations of its command.
    Terminated,
    /// Whoever sent it may not send anything to this instance.
    Denied,
    /// The instance does not run what the document is for.
    WrongPlatform,
}

impl Failure {
    /// For people.
    pub(super) fn words(self) -> &'static str {
        match self {
            Failure::NotDelivered => {
                "SSM could not deliver the command in time: the agent on the instance does not answer (Delivery Timed Out)"
            }
            Failure::TimedOut => {
                "the agent ended the command because its time was up (Execution Timed Out)"
            }
            Failure::Cancelled => "somebody cancelled the command (Cancelled)",
            Failure::Undeliverable => {
                "SSM cannot deliver to the instance: it is gone, stopped, or its agent does not run (Undeliverable)"
            }
            Failure::Terminated => "SSM ended the command (Terminated)",
            Failure::Denied => {
                "you have no right to send commands to the instance (Access Denied); docs/executors.md has the policy that is needed"
            }
            Failure::WrongPlatform => {
                "the platform's `document` is for another operating system than the instance's (Invalid Platform)"
            }
        }
    }

    /// As an answer that is none.
    pub(super) fn broken(self) -> Broken {
        Broken {
            why: self.words().to_owned(),
            hopeless: matches!(self, Failure::Denied | Failure::WrongPlatform),
        }
    }
}

/// Reads `Status` and `StatusDetails`. The service's own model writes details both with spaces
/// and without.
pub(super) fn read(status: &str, details: &str, code: i32) -> Verdict {
    let details: String = details.chars().filter(|c| !c.is_whitespace()).collect();
    match details.as_str() {
        "DeliveryTimedOut" => return Verdict::Failed(Failure::NotDelivered),
        "ExecutionTimedOut" => return Verdict::Failed(Failure::TimedOut),
        "Undeliverable" => return Verdict::Failed(Failure::Undeliverable),
        "AccessDenied" => return Verdict::Failed(Failure::Denied),
        "InvalidPlatform" => return Verdict::Failed(Failure::WrongPlatform),
        "Terminated" | "RateExceeded" => return Verdict::Failed(Failure::Terminated),
        _ => {}
    }
    match status {
        "Pending" | "Delayed" => Verdict::Waiting,
        "Success" => Verdict::Ended(0),
        "Failed" => Verdict::Ended(code),
        "Cancelled" => Verdict::Failed(Failure::Cancelled),
        "TimedOut" => Verdict::Failed(Failure::TimedOut),
        // In progress, being cancelled, or a word of tomorrow: its end will be told.
        _ => Verdict::Running,
    }
}

/// Why a script that ended left no answer.
pub(super) fn no_answer(code: i32, said: &str) -> Broken {
    let said = match said.trim() {
        "" => String::new(),
        said => format!(": {}", said.chars().take(400).collect::<String>()),
    };
    let (what, hopeless) = match code {
        0 => (
            "the command ended, but its answer never came to the bucket, or you may not read it there",
            false,
        ),
        NO_TOOL => ("the host lacks a tool", true),
        NO_FOLDER => ("the host could not make a temporary folder", false),
        NO_INPUT => (
            "the host could not fetch the command's input from the bucket",
            false,
        ),
        NO_ANSWER => ("the host could not put its answer into the bucket", false),
        _ => ("the command failed before it had an answer", false),
    };
    Broken {
        why: format!("{what}{said}"),
        hopeless,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_state_has_its_meaning() {
        for (status, details, expected) in [
            ("Pending", "Pending", Verdict::Waiting),
            ("Delayed", "Delayed", Verdict::Waiting),
            ("InProgress", "In Progress", Verdict::Running),
            ("InProgress", "InProgress", Verdict::Running),
            ("Cancelling", "Cancelling", Verdict::Running),
            ("Success", "Success", Verdict::Ended(0)),
            ("Failed", "Failed", Verdict::Ended(76)),
            (
                "Cancelled",
                "Cancelled",
                Verdict::Failed(Failure::Cancelled),
            ),
            (
                "TimedOut",
                "Delivery Timed Out",
                Verdict::Failed(Failure::NotDelivered),
            ),
            (
                "TimedOut",
                "DeliveryTimedOut",
                Verdict::Failed(Failure::NotDelivered),
            ),
            (
                "TimedOut",
                "Execution Timed Out",
                Verdict::Failed(Failure::TimedOut),
            ),
            ("TimedOut", "", Verdict::Failed(Failure::TimedOut)),
            (
                "Failed",
                "Undeliverable",
                Verdict::Failed(Failure::Undeliverable),
            ),
            ("Failed", "Terminated", Verdict::Failed(Failure::Terminated)),
            ("Failed", "Access Denied", Verdict::Failed(Failure::Denied)),
            (
                "Failed",
                "InvalidPlatform",
                Verdict::Failed(Failure::WrongPlatform),
            ),
        ] {
            assert_eq!(read(status, details, 76), expected, "{status}/{details}");
        }
    }

    #[test]
    fn only_a_missing_tool_is_hopeless() {
        for (code, hopeless) in [(0, false), (NO_TOOL, true), (NO_INPUT, false), (1, false)] {
            assert_eq!(no_answer(code, "").hopeless, hopeless, "{code}");
        }
        let said = no_answer(NO_TOOL, "doe: the host has no `curl`\n").why;
        assert_eq!(said, "the host lacks a tool: doe: the host has no `curl`");
        assert!(no_answer(1, &"x".repeat(30_000)).why.len() < 600);
    }
}
