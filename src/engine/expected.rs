//! A failure that is the result: a pattern may say that it is expected to end with a class, as a
//! size that does not fit ends with `oom`. Then that failure is a valid result without outputs,
//! and its absence is an invalid one; any other failure stays what it is.

use std::collections::BTreeMap;

use doe_cache::{
    Check, Criterion, CriterionStatus, Execution, ExecutionStatus, Record, Validity,
    ValidityStatus, Value, Verdicts,
};

use super::decide::Decider;
use super::steps::Failure;
use super::{judge, reference};
use crate::error::Result;
use crate::graph::NodeId;

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

impl Decider<'_> {
    /// Whether what stands for a node is as the plan expects it now. The record is only read where
    /// something is expected of its numbers.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn criterion_of(
        &self,
        node: NodeId,
        stands: impl FnOnce() -> Result<Record>,
    ) -> Result<Criterion> {
        let pattern = self.graph().pattern(node);
        // The class is in the key, and what gives it: what stands for it ended so.
        if let Some(class) = &pattern.expect_class {
            return Ok(criterion(class));
        }
        let own = pattern.expect.iter().cloned();
        let expect: Vec<_> = own.chain(reference::expectation(self, node)).collect();
        if expect.is_empty() {
            return Ok(judge::criterion(
                &expect,
                &BTreeMap::new(),
                &BTreeMap::new(),
            ));
        }
        let stands = stands()?;
        Ok(judge::criterion(&expect, &stands.metrics, &stands.texts))
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
