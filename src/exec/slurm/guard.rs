//! Nothing on a node outlives `doe` for ever. Who attends to executions says so in a file of the
//! shared folder, over and over; the task of each passes that on to its wrapper, by the clock of
//! the node that nobody sets, and the wrapper ends what nobody attends to any more.

use std::fs::OpenOptions;
use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::{LOOK, SlurmExecutor};
use crate::error::{Error, Result};
use crate::exec::folder::{self, Late, quote};
use crate::exec::remote::call::nonce;

/// Longest that a node hears nothing of us.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
/// How long the wrapper may think about the end of what nobody attends to.
const THOUGHT: Duration = Duration::from_secs(5);
/// File of an execution that names the file of who attends to it.
const ATTENDS: &str = "attends";

/// What executions are told, and who signs.
pub(super) struct Guard {
    /// File of the shared folder that is signed.
    file: PathBuf,
    /// How long what begins from now on goes on without a sign; nothing where that is Slurm's to
    /// say.
    survive: Option<Duration>,
    signing: AbortHandle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.signing.abort();
    }
}

impl SlurmExecutor {
    /// From now on this executor attends under a name to what runs on the nodes, as long as it
    /// lives; afterwards what it began goes on for `survive`, unless another one takes up the name.
    /// Never for less than a controller is waited for that does not answer. What a driver begins
    /// ends with its job only: the next driver may have to wait for its turn.
    ///
    /// # Errors
    /// `Infra`, when nothing can be written into the shared folder.
    pub fn guard(&self, name: &str, survive: Duration, is_driver: bool) -> Result<()> {
        let survive = survive.max(self.queue.patience());
        let leases = self.root().join("leases");
        folder::make_private(&leases)?;
        let file = leases.join(name);
        let word = nonce();
        let mut count = 0_u64;
        let mut sign = {
            let file = file.clone();
            move || {
                count += 1;
                sign(&file, &format!("{word} {count:20}\n"))
            }
        };
        sign()?;
        let pause = (survive / 5).clamp(LOOK, LONGEST_SILENCE);
        let signing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                // A disk that does not do it now is asked again.
                let _ = sign();
            }
        });
        let guard = Guard {
            file,
            survive: (!is_driver).then_some(survive),
            signing: signing.abort_handle(),
        };
        // A second call changes nothing; its signing ends with its value.
        let _ = self.guard.set(guard);
        Ok(())
    }

    /// What the folder of an execution holds of this: more settings, and further files.
    pub(super) fn attended(&self, dir: &Path) -> Option<(String, [(&'static str, String); 1])> {
        let guard = self.guard.get()?;
        let survive = guard.survive?;
        let survive_cs = (survive.as_millis() / 10).min(u128::from(u32::MAX));
        // Of this execution alone: it is by the clock of its node.
        let lease = quote(&dir.join("lease").display().to_string());
        let settings = format!("lease={lease}\nsurvive_cs={survive_cs}\n");
        let file = format!("{}\n", guard.file.display());
        Some((settings, [(ATTENDS, file)]))
    }
}

/// Why an execution counts as lost that its wrapper has ended. One that is being thought about is
/// waited for: what was decided does not run any more.
pub(super) async fn forsaken(dir: &Path) -> Result<Option<&'static str>> {
    let begun = Instant::now();
    loop {
        match folder::late(dir)? {
            Late::Thinks if begun.elapsed() < THOUGHT => tokio::time::sleep(LOOK / 5).await,
            late => return Ok(late.is_lost()),
        }
    }
}

/// Signs in place: a full disk does not matter.
fn sign(file: &Path, text: &str) -> Result<()> {
    let mut open = OpenOptions::new();
    open.write(true).create(true).truncate(false).mode(0o600);
    let signed = open.open(file).and_then(|mut file| {
        file.rewind()?;
        file.write_all(text.as_bytes())
    });
    signed.map_err(|e| Error::io("write", file, &e))
}
