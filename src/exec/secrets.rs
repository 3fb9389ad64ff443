//! Values that only scripts are to see: tokens and passwords. They are given to a script when it
//! starts and to nothing else: no key, no record, no event has one, nothing here prints one, and
//! whatever is read of a log has a mask in its place, as long as the value so that an offset into a
//! log stays what it is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{Executor, Handle, Script, Stream};
use crate::error::{Error, Result};

/// The variable that says which others of a script hold secrets, as `NAME,NAME`. Whoever writes
/// the environment of such a script down sees to it that it does not stay.
pub const NAMES_VARIABLE: &str = "DOE_SECRETS";

/// Shorter values are no secrets to a log: their masks would tear it to pieces.
pub const SHORTEST_MASKED_BYTES: usize = 8;
/// So much of the begin of a value at the end of a log is taken for the value on its way.
const SHORTEST_BEGIN_BYTES: usize = 4;

/// Secrets by the name of their variable.
#[derive(Clone, Default)]
pub struct Secrets {
    values: BTreeMap<String, Arc<str>>,
    /// What logs are searched for, each with its name, the shortest first.
    hidden: Arc<Vec<(String, Vec<u8>)>>,
    missing: Option<Error>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Secrets {
    /// These values; what is `missing` beside them is an error for whoever needs them.
    pub fn new(values: BTreeMap<String, String>, missing: Option<Error>) -> Self {
        let mut hidden: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, value) in &values {
            // Tools take white space off its ends, and print what has several lines line by line.
            let forms = std::iter::once(value.as_str()).chain([value.trim()]);
            for form in forms.chain(value.lines().map(str::trim)) {
                let form = form.as_bytes();
                let known = hidden.iter().any(|(_, other)| other == form);
                if form.len() >= SHORTEST_MASKED_BYTES && !known {
                    hidden.push((name.clone(), form.to_owned()));
                }
            }
        }
        hidden.sort_by_key(|(_, form)| form.len());
        let values = values.into_iter();
        Self {
            values: values.map(|(name, value)| (name, value.into())).collect(),
            hidden: hidden.into(),
            missing,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.missing.is_none()
    }

    /// Fails when one has no value.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn demand(&self) -> Result<()> {
        self.missing.clone().map_or(Ok(()), Err)
    }

    /// Gives them to a script.
    ///
    /// # Errors
    /// One has no value.
    pub fn give(&self, script: &mut Script) -> Result<()> {
        self.demand()?;
        if self.values.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.values.keys().map(String::as_str).collect();
        script.env.insert(NAMES_VARIABLE.into(), names.join(","));
        for (name, value) in &self.values {
            script.env.insert(name.clone(), value.to_string());
        }
        Ok(())
    }

    /// Puts masks over every value in a text, and over the begin of one at its very end.
    pub fn mask(&self, text: &mut [u8]) {
        // One may be a part of another, or begin in it: each is looked for in what was printed, not
        // in what the mask of another has left of it.
        let printed = text.to_vec();
        for (name, value) in self.hidden.iter() {
            let mask = mask_of(name, value.len());
            let mut from = 0;
            while let Some(at) = find(&printed[from..], value) {
                text[from + at..][..value.len()].copy_from_slice(&mask);
                from += at + 1;
            }
            let most = (value.len() - 1).min(text.len());
            let mut begins = (SHORTEST_BEGIN_BYTES..=most).rev();
            if let Some(length) = begins.find(|length| printed.ends_with(&value[..*length])) {
                let at = text.len() - length;
                text[at..].copy_from_slice(&mask[..length]);
            }
        }
    }

    /// Reads a log as [`Executor::log`] does, with masks.
    ///
    /// # Errors
    /// Those of the executor.
    pub async fn log(
        &self,
        executor: &dyn Executor,
        handle: &Handle,
        stream: Stream,
        offset: u64,
    ) -> Result<Vec<u8>> {
        let longest = self.hidden.last().map(|(_, value)| value.len());
        // A value may have begun before the offset.
        let before = longest.map_or(0, |longest| longest as u64 - 1).min(offset);
        let mut text = executor.log(handle, stream, offset - before).await?;
        self.mask(&mut text);
        let before = usize::try_from(before).unwrap_or(usize::MAX);
        text.drain(..before.min(text.len()));
        Ok(text)
    }
}

/// `[secret HF_TOKEN]****`, as long as the value.
fn mask_of(name: &str, length: usize) -> Vec<u8> {
    let mut mask = format!("[secret {name}]").into_bytes();
    if mask.len() > length {
        mask = b"[secret]".to_vec();
    }
    mask.resize(length, b'*');
    mask
}

fn find(text: &[u8], value: &[u8]) -> Option<usize> {
    let first = *value.first()?;
    let mut from = 0;
    loop {
        let at = from + text[from..].iter().position(|byte| *byte == first)?;
        if text[at..].starts_with(value) {
            return Some(at);
        }
        from = at + 1;
    }
}

impl Script {
    /// Whether its environment holds secrets.
    pub fn is_private(&self) -> bool {
        self.env.contains_key(NAMES_VARIABLE)
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self.env.get(NAMES_VARIABLE).map_or("", String::as_str);
        let is_secret = |name: &str| secrets.split(',').any(|secret| secret == name);
        let env = self.env.iter().map(|(name, value)| match is_secret(name) {
            true => (name, "[secret]"),
            false => (name, value.as_str()),
        });
        f.debug_struct("Script")
            .field("name", &self.name)
            .field("text", &self.text)
            .field("env", &env.collect::<BTreeMap<_, _>>())
            .field("work", &self.work)
            .field("timeout", &self.timeout)
            .field("log_cap_bytes", &self.log_cap_bytes)
            .field("attached", &self.attached)
            .field("ask", &self.ask)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[(&str, &str)]) -> Secrets {
        let values = values.iter();
        let values = values.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Secrets::new(values.collect(), None)
    }

    fn masked(secrets: &Secrets, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        secrets.mask(&mut bytes);
        assert_eq!(bytes.len(), text.len(), "offsets stay what they are");
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn masks_stand_for_values_and_are_as_long() {
        let all = secrets(&[("A", "abcdefghijklmnop"), ("B", "efghijkl"), ("C", "short")]);
        let text = "x abcdefghijklmnop abcabcdefghijklmnop, efghijkl short\n";
        let wanted = "x [secret A]****** abc[secret A]******, [secret] short\n";
        assert_eq!(masked(&all, text), wanted);
        assert_eq!(masked(&all, "nothing of it"), "nothing of it");
        // The begin of one at the very end may go on; three bytes may be anything.
        assert_eq!(masked(&all, "it is abcdefgh"), "it is [secret ");
        assert_eq!(masked(&all, "it is abc"), "it is abc");
        assert_eq!(masked(&all, "abcdefgh, no"), "abcdefgh, no");
        assert_eq!(
            masked(&secrets(&[]), "abcdefghijklmnop"),
            "abcdefghijklmnop"
        );
    }

    #[test]
    fn masks_that_meet_leave_nothing_of_either_value() {
        let all = secrets(&[("A", "alice:passw0rd"), ("B", "passw0rd-long-key")]);
        let text = "as alice:passw0rd-long-key.";
        assert_eq!(masked(&all, text), "as [secre[secret B]*******.");
        // The begin of one at the end of the log stands in the other.
        let all = secrets(&[("A", "5678abcd"), ("B", "abcdefghijkl")]);
        assert_eq!(masked(&all, "tok 12345678abcd"), "tok 1234[sec[sec");
        // One that meets itself.
        let all = secrets(&[("A", "abcabcabc")]);
        assert_eq!(masked(&all, "abcabcabcabc."), "[se[secret]*.");
    }

    #[test]
    fn what_tools_make_of_white_space_and_lines_is_masked_too() {
        let all = secrets(&[("A", "abcdefghijkl\n")]);
        assert_eq!(
            masked(&all, "got 'abcdefghijkl' now"),
            "got '[secret A]**' now"
        );
        assert_eq!(masked(&all, "abcdefghijkl\n."), "[secret A]***.");
        let all = secrets(&[("KEY", "BEGIN-A-KEY\n  MIIEpAIBAAKC  \r\nshort\nEND-OF-IT\n")]);
        let text = "1: BEGIN-A-KEY\n2: MIIEpAIBAAKC\n3: short\n4: END-OF-IT\n";
        let wanted = "1: [secret]***\n2: [secret KEY]\n3: short\n4: [secret]*\n";
        assert_eq!(masked(&all, text), wanted);
    }

    #[test]
    fn nothing_prints_them() {
        let all = secrets(&[("HF_TOKEN", "hf_0123456789")]);
        let mut script = Script {
            name: "step-go".into(),
            text: "true".into(),
            env: BTreeMap::from([("SEEN".into(), "yes".into())]),
            work: "/".into(),
            timeout: None,
            log_cap_bytes: 4096,
            attached: false,
            ask: Default::default(),
        };
        assert!(!script.is_private());
        all.give(&mut script).unwrap();
        assert!(script.is_private());
        assert_eq!(script.env["HF_TOKEN"], "hf_0123456789");
        let told = format!("{all:?} {script:?} {script:#?}");
        assert!(!told.contains("hf_0"), "{told}");
        assert!(told.contains("HF_TOKEN") && told.contains("yes"), "{told}");
    }
}
