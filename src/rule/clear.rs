//! Variables that look like secrets and are written in clear: what stands in a rule or a platform
//! is in every manifest, plan and explanation. Findings name the place in words: the line itself is
//! what is not to be shown once more.

use crate::error::{Diagnostic, Site};

/// Words that a name of a secret ends with or holds.
const WORDS: [&str; 5] = ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "APIKEY"];
const PAIRS: [&str; 3] = ["API_KEY", "ACCESS_KEY", "PRIVATE_KEY"];

/// Whether a variable of this name is likely to hold a secret.
fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let mut words = name.split('_');
    words.any(|word| WORDS.contains(&word)) || PAIRS.iter().any(|pair| name.contains(pair))
}

/// The warning about a variable with this value, when it is one to warn of. The value is not in it.
pub fn check(name: &str, value: &str, site: &Site) -> Option<Diagnostic> {
    // A number, a flag or a path to a file is no secret.
    let plain = value.len() < 6 || value.starts_with('/') || value.parse::<f64>().is_ok();
    if plain || !looks_secret(name) {
        return None;
    }
    let text = format!(
        "`{name}` looks like a secret and is written in clear ({})",
        site.short()
    );
    let hint = format!(
        "name it in the platform's `secrets = [\"{name}\"]` and set it in the environment of `doe`: what stands here is in every manifest, plan and explanation"
    );
    Some(Diagnostic::warning("clear-secret", text).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::looks_secret;

    #[test]
    fn names_of_secrets() {
        for name in [
            "HF_TOKEN",
            "token",
            "AWS_SECRET_ACCESS_KEY",
            "DB_PASSWORD",
            "OPENAI_API_KEY",
        ] {
            assert!(looks_secret(name), "{name}");
        }
        for name in [
            "TOKENIZERS_PARALLELISM",
            "MAX_TOKENS",
            "HF_HOME",
            "KEY",
            "UCX_TLS",
        ] {
            assert!(!looks_secret(name), "{name}");
        }
    }
}
