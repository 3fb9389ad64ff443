//! What an executor's error means to whoever might try again: that a host cannot be reached, that
//! a service does not deliver to it, or that it was asked too often. Everything else is no
//! trouble of this kind, whatever its words are.

use crate::error::{Error, Kind};

/// Why a host did not do what was asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It does not answer.
    Unreachable,
    /// The service that carries commands cannot deliver to it.
    Undeliverable,
    /// The service that carries commands was asked too often.
    Throttled,
}

/// The trouble that an error is, when it is one.
pub fn of(error: &Error) -> Option<Trouble> {
    let unreachable = [
        "host-unreachable",
        "bucket-unreachable",
        "controller-unreachable",
    ]
    .contains(&error.code);
    if error.kind != Kind::Infra || !unreachable {
        return None;
    }
    // The service's own words, as `ssm` repeats them.
    let said = |words: &[&str]| {
        let causes = error.causes.iter();
        causes
            .clone()
            .any(|cause| words.iter().any(|word| cause.contains(word)))
    };
    Some(if said(&["(Undeliverable)", "(Delivery Timed Out)"]) {
        Trouble::Undeliverable
    } else if said(&["(ThrottlingException)"]) {
        Trouble::Throttled
    } else {
        Trouble::Unreachable
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_words_of_an_executor_are_trouble() {
        let error = |code, cause: &str| Error::new(Kind::Infra, code, "x").cause(cause);
        for (code, cause, trouble) in [
            (
                "host-unreachable",
                "Connection refused",
                Some(Trouble::Unreachable),
            ),
            ("bucket-unreachable", "503", Some(Trouble::Unreachable)),
            ("controller-unreachable", "x", Some(Trouble::Unreachable)),
            (
                "host-unreachable",
                "SSM cannot deliver to the instance (Undeliverable)",
                Some(Trouble::Undeliverable),
            ),
            (
                "host-unreachable",
                "SSM was asked too often and does not recover (ThrottlingException)",
                Some(Trouble::Throttled),
            ),
            ("host-refused", "(Undeliverable)", None),
            ("io", "No space left on device", None),
        ] {
            assert_eq!(of(&error(code, cause)), trouble, "{code} {cause}");
        }
        let other = Error::new(Kind::Plan, "host-unreachable", "x");
        assert_eq!(of(&other), None);
    }
}
