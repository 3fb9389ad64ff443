//! What we are about to submit, written down before we do. A note goes only when the host has
//! answered; one that is found later names a command that may still come to a host, and must be
//! taken back first.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::exec::folder::make_private;

/// One submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Intent {
    /// Its token.
    pub token: String,
    /// Host's name.
    pub host: String,
    /// Host's instance.
    pub instance: String,
    /// Comment of its commands.
    pub comment: String,
    /// Whether what it reads is an object of the bucket, for it holds secrets.
    #[serde(default = "perhaps")]
    pub private: bool,
    /// When it was first sent, by our clock.
    pub unix_s: u64,
}

/// Notes of older versions do not say it.
fn perhaps() -> bool {
    true
}

impl Intent {
    /// When it was first sent.
    pub(super) fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.unix_s)
    }
}

/// The notes in a folder.
#[derive(Debug, Clone)]
pub(super) struct Intents {
    dir: PathBuf,
}

impl Intents {
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        make_private(&dir)?;
        Ok(Self { dir })
    }

    fn path(&self, token: &str) -> PathBuf {
        self.dir.join(format!("{token}.json"))
    }

    /// Writes one down; it is on the disk when this returns. An older note on the token stays.
    pub(super) fn note(&self, intent: &Intent) -> Result<()> {
        let path = self.path(&intent.token);
        if path.exists() {
            return Ok(());
        }
        let io = |e: std::io::Error| Error::io("write", &path, &e);
        let new = self.dir.join(format!(".{}.new", intent.token));
        let text = serde_json::to_string(intent).map_err(|e| io(e.into()))?;
        let mut file = File::create(&new).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        fs::rename(&new, &path).map_err(io)?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io)
    }

    /// The host has answered, or the submission was taken back.
    pub(super) fn done(&self, token: &str) {
        // Left behind it only makes the next run look once more.
        let _ = fs::remove_file(self.path(token));
    }

    /// What is open. A note that was never finished is taken away: nothing was sent for it.
    pub(super) fn open(&self) -> Result<Vec<Intent>> {
        let entries = fs::read_dir(&self.dir).map_err(|e| Error::io("read", &self.dir, &e))?;
        let mut open: Vec<Intent> = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            let io = |e: std::io::Error| Error::io("read", &path, &e);
            if path.extension().is_some_and(|e| e == "new") {
                fs::remove_file(&path).map_err(io)?;
            } else {
                let text = fs::read(&path).map_err(io)?;
                open.push(serde_json::from_slice(&text).map_err(|e| io(e.into()))?);
            }
        }
        open.sort_by(|a, b| a.token.cmp(&b.token));
        Ok(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_stays_until_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let intents = Intents::new(dir.path().join("intents")).unwrap();
        let intent = |token: &str, unix_s| Intent {
            token: token.into(),
            host: "h".into(),
            instance: "i-0".into(),
            comment: format!("doe:{token}"),
            private: false,
            unix_s,
        };
        intents.note(&intent("b", 1)).unwrap();
        intents.note(&intent("a", 2)).unwrap();
        // The first time counts: its command may be older than what was tried later.
        intents.note(&intent("b", 9)).unwrap();
        fs::write(dir.path().join("intents/.c.new"), "{").unwrap();
        let again = Intents::new(dir.path().join("intents")).unwrap();
        assert_eq!(again.open().unwrap(), [intent("a", 2), intent("b", 1)]);
        again.done("a");
        again.done("a");
        assert_eq!(intents.open().unwrap(), [intent("b", 1)]);
        assert!(!dir.path().join("intents/.c.new").exists());
    }
}
