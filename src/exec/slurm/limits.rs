//! How long a job may go on. A step has a limit of its own and its job a little more, so that the
//! script's own limit comes first. A service has none: its job gets as long as what uses it may take,
//! and never longer than the platform or the partition lets it.

use std::time::Duration;

use tokio::sync::OnceCell;

use super::queue::Queue;
use crate::error::Result;
use crate::exec::Ask;

/// What a job gets beyond the limit of its script.
const MARGIN_S: u64 = 180;
/// What a job without a limit of its script gets beyond what it may be needed for: until those that
/// use it have their jobs.
const WAITS_S: u64 = 1800;
/// The longest limit that is asked for: a year.
const MOST_MINUTES: u64 = 366 * 24 * 60;

/// Limits of the jobs of one executor.
#[derive(Debug)]
pub struct Limits {
    partition: Option<String>,
    most: Option<Duration>,
    of_partition: OnceCell<Option<u64>>,
}

impl Limits {
    /// Of jobs with these options.
    pub fn new(common: &[String], most: Option<Duration>) -> Self {
        let mut partition = common
            .iter()
            .filter_map(|option| option.strip_prefix("--partition="));
        Self {
            partition: partition.next().map(str::to_owned),
            most,
            of_partition: OnceCell::new(),
        }
    }

    /// Minutes for a job; 0 where nothing follows from anything.
    pub async fn minutes(&self, queue: &Queue, timeout: Option<Duration>, ask: &Ask) -> u64 {
        if let Some(timeout) = timeout {
            return timeout.as_secs().saturating_add(MARGIN_S).div_ceil(60);
        }
        let Some(needed) = ask.needed else {
            return 0;
        };
        let asked = needed.as_secs().saturating_add(WAITS_S);
        let asked = self.most.map_or(asked, |most| asked.min(most.as_secs()));
        let minutes = asked.div_ceil(60).clamp(1, MOST_MINUTES);
        // Not known: then Slurm refuses what it does not allow, and the next one asks again.
        let most = self.of_partition.get_or_try_init(|| self.look(queue)).await;
        let most = most.ok().copied().flatten();
        most.map_or(minutes, |most| minutes.min(most))
    }

    /// What the partition allows; of several, what the strictest does. Nothing where there is no
    /// limit.
    async fn look(&self, queue: &Queue) -> Result<Option<u64>> {
        let arguments = ["-h", "-a", "-o", "%P|%l"].map(str::to_owned);
        let said = queue.ask("sinfo", &arguments).await?;
        Ok(strictest(&said, self.partition.as_deref()))
    }
}

/// The least limit of these partitions, named with commas between; else of the default one.
fn strictest(said: &str, partitions: Option<&str>) -> Option<u64> {
    let lines = said.lines().filter_map(|line| line.split_once('|'));
    let ours = lines.filter(|(name, _)| match partitions {
        Some(named) => named
            .split(',')
            .any(|one| one == name.trim_end_matches('*')),
        None => name.ends_with('*'),
    });
    ours.filter_map(|(_, limit)| minutes_of(limit.trim())).min()
}

/// Reads `DAYS-HOURS:MINUTES:SECONDS`, of which less may stand there; nothing of `infinite`.
fn minutes_of(text: &str) -> Option<u64> {
    let (days, rest) = text.split_once('-').unwrap_or(("0", text));
    let parts: Option<Vec<u64>> = rest.split(':').map(|part| part.parse().ok()).collect();
    let minutes = match parts?.as_slice() {
        [hours, minutes, _] => hours * 60 + minutes,
        [minutes, _] => *minutes,
        _ => return None,
    };
    Some((days.parse::<u64>().ok()? * 24 * 60 + minutes).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_slurm_writes_them() {
        assert_eq!(minutes_of("1-12:30:00"), Some(36 * 60 + 30));
        assert_eq!(minutes_of("8:00:00"), Some(480));
        assert_eq!(minutes_of("30:00"), Some(30));
        assert_eq!(minutes_of("0:30"), Some(1));
        assert_eq!(minutes_of("infinite"), None);
        assert_eq!(minutes_of("n/a"), None);
    }

    #[test]
    fn of_several_partitions_the_strictest_counts() {
        let said = "short|30:00\nlong*|1-00:00:00\nendless|infinite\n";
        assert_eq!(strictest(said, None), Some(1440));
        assert_eq!(strictest(said, Some("long,short")), Some(30));
        assert_eq!(strictest(said, Some("endless")), None);
        assert_eq!(strictest(said, Some("endless,long")), Some(1440));
    }
}
