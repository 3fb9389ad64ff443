//! A failure that is the result: a pattern may say that it is expected to end with a class, as a
//! size that does not fit ends with `oom`. Then that failure is a valid result without outputs,
//! and its absence is an invalid one; any other failure stays what it is.

use doe_cache::{
    Check, Criterion, CriterionStatus, Execution, ExecutionStatus, Validity, ValidityStatus, Value,
    Verdicts,
};

use super::steps::Failure;

/// The verdicts of a failure of the class that was expected.
pub(super) fn met(class: &str, failure: &Failure) -> Verdicts {
    Verdicts {
        execution: Execution {
            status: ExecutionStatus::Ok,
            class: Some(class.to_owned()),
            reason: Some(failure.reason.clone()),
            exit_code: failure.exit_code,
        },
        validity: Validity {
            status: ValidityStatus::Valid,
            failed: Vec::new(),
        },
        criterion: criterion(class),
    }
}

/// What is said of a result whose class was expected: it is there, so it is met.
pub(super) fn criterion(class: &str) -> Criterion {
    Criterion {
        status: CriterionStatus::Met,
        checks: vec![Check {
            metric: "class".into(),
            expected: Value::from(class),
            got: Some(Value::from(class)),
            met: true,
        }],
    }
}

/// What does not hold of one that ran to its end.
pub(super) fn missed(class: &str) -> Validity {
    Validity {
        status: ValidityStatus::Invalid,
        failed: vec![format!(
            "it was to fail with class `{class}`, and ran to its end"
        )],
    }
}
