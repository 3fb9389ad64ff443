//! The three verdicts on an execution, kept apart: did it run, may its numbers be used, and are
//! they what was expected. None is ever derived from another.

use crate::value::Value;
use serde::{Deserialize, Serialize};

/// An enum whose variants are stored as fixed words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// All variants.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word it is stored as.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::error::Error;

            fn from_str(text: &str) -> $crate::error::Result<Self> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::error::Error::invalid(format!(
                        concat!("`{}` is none of", $(" ", $word),+),
                        text
                    ))),
                }
            }
        }

        impl rusqlite::types::FromSql for $name {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                value
                    .as_str()?
                    .parse()
                    .map_err(|e| rusqlite::types::FromSqlError::Other(Box::new(e)))
            }
        }

        impl rusqlite::types::ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                Ok(self.as_str().into())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// How the execution ended.
    ExecutionStatus {
        /// Every step ended well and every declared output is there.
        Ok = "ok",
        /// A step, a service or the collection of outputs failed.
        Failed = "failed",
        /// Somebody stopped it.
        Cancelled = "cancelled",
        /// A limit stopped it.
        Timeout = "timeout",
    }
}

words! {
    /// Whether the numbers may be used.
    ValidityStatus {
        /// Every condition of the rule holds.
        Valid = "valid",
        /// At least one condition does not hold.
        Invalid = "invalid",
        /// Nobody could tell, because there are no outputs.
        Unknown = "unknown",
    }
}

words! {
    /// Whether the numbers are what was expected.
    CriterionStatus {
        /// Every expectation is met.
        Met = "met",
        /// At least one is not.
        Missed = "missed",
        /// Nothing was expected.
        None = "none",
        /// Nobody could tell, because there are no valid numbers.
        Unknown = "unknown",
    }
}

/// Did it run?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// Class of the failure as the rule or the executor names it (`oom`, `host-lost`).
    #[serde(default)]
    pub class: Option<String>,
    /// Exit code of the step that decided, if one did.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Why, in one sentence for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// How it ended.
    pub status: ExecutionStatus,
}

/// May the numbers be used?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// The conditions that do not hold, as the rule writes them.
    #[serde(default)]
    pub failed: Vec<String>,
    /// The verdict.
    pub status: ValidityStatus,
}

/// Are the numbers what was expected?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Criterion {
    /// Every expectation that was looked at.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// The verdict.
    pub status: CriterionStatus,
}

/// One expectation and what came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was expected: a number, or the condition as written (`<= 250`, `PHB or NODE`).
    pub expected: Value,
    /// What was found; `None` when the metric is missing.
    #[serde(default)]
    pub got: Option<Value>,
    /// Whether that meets it.
    pub met: bool,
    /// Name of the metric or text field.
    pub metric: String,
}

/// The three verdicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Are they what was expected?
    pub criterion: Criterion,
    /// Did it run?
    pub execution: Execution,
    /// May the numbers be used?
    pub validity: Validity,
}

impl Verdicts {
    /// The verdicts on an execution without outputs: it ended like this, the rest is unknown.
    pub fn not_ok(execution: Execution) -> Self {
        Self {
            execution,
            validity: Validity {
                status: ValidityStatus::Unknown,
                failed: Vec::new(),
            },
            criterion: Criterion {
                status: CriterionStatus::Unknown,
                checks: Vec::new(),
            },
        }
    }

    /// Whether it ran and its numbers may be used: the least that any reuse asks.
    pub fn good(&self) -> bool {
        self.execution.status == ExecutionStatus::Ok
            && self.validity.status == ValidityStatus::Valid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back() {
        for status in ExecutionStatus::ALL {
            assert_eq!(
                status.to_string().parse::<ExecutionStatus>().unwrap(),
                *status
            );
            let json = serde_json::to_string(status).unwrap();
            assert_eq!(json, format!("\"{status}\""));
        }
        let error = "fine".parse::<ValidityStatus>().unwrap_err();
        assert_eq!(error.to_string(), "`fine` is none of valid invalid unknown");
    }

    #[test]
    fn only_run_and_valid_is_good() {
        for execution in ExecutionStatus::ALL {
            for validity in ValidityStatus::ALL {
                for criterion in CriterionStatus::ALL {
                    let mut verdicts = Verdicts::not_ok(Execution {
                        status: *execution,
                        class: None,
                        reason: None,
                        exit_code: None,
                    });
                    verdicts.validity.status = *validity;
                    verdicts.criterion.status = *criterion;
                    let good = (execution.as_str(), validity.as_str()) == ("ok", "valid");
                    assert_eq!(verdicts.good(), good);
                }
            }
        }
    }
}
