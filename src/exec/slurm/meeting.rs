//! Where starts that belong together wait for each other before they are submitted. Who does not
//! come is not waited for for long: nothing that can be begun ever hangs on it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;

use super::submit::Asked;
use crate::exec::{Ask, Together, Token};

/// How long the first to come waits for the last one. They are started side by side, so that one
/// does not come is rare, and mostly it says so.
const PATIENCE: Duration = Duration::from_secs(5);

/// Groups that are not whole yet, by name.
#[derive(Debug, Default)]
pub struct Meeting(Mutex<HashMap<String, Group>>);

/// Some of a group.
#[derive(Debug, Default)]
struct Group {
    asked: Vec<Asked>,
    /// Who came, and who is not to come.
    known: HashSet<Token>,
}

/// The place of one start among those that it waits for. When it is dropped it is not waited for.
#[derive(Debug)]
pub struct Seat {
    meeting: Arc<Meeting>,
    together: Together,
    token: Token,
    gone: UnboundedSender<Vec<Asked>>,
    has_come: bool,
}

impl Meeting {
    fn groups(&self) -> MutexGuard<'_, HashMap<String, Group>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// A place, where the start is one of several that are submitted, for the first time or again.
    pub fn of(
        meeting: &Arc<Meeting>,
        gone: &UnboundedSender<Vec<Asked>>,
        ask: &Ask,
        token: &Token,
        round: u32,
    ) -> Option<Self> {
        let mut together = ask.together.clone().filter(|all| all.count > 1)?;
        together.group.push_str(&format!(" {round}"));
        Some(Self {
            meeting: meeting.clone(),
            together,
            token: token.clone(),
            gone: gone.clone(),
            has_come: false,
        })
    }

    /// Waits for the others; the last one has all of them submitted.
    pub fn take(mut self, asked: Asked) {
        self.has_come = true;
        self.count(Some(asked));
    }

    fn count(&self, asked: Option<Asked>) {
        let name = &self.together.group;
        let mut groups = self.meeting.groups();
        if !groups.contains_key(name) {
            self.limit();
        }
        let group = groups.entry(name.clone()).or_default();
        group.asked.extend(asked);
        group.known.insert(self.token.clone());
        if group.known.len() >= self.together.count as usize
            && let Some(group) = groups.remove(name)
        {
            send(&self.gone, group);
        }
    }

    /// Sees to it that nobody waits for ever.
    fn limit(&self) {
        let (meeting, name) = (self.meeting.clone(), self.together.group.clone());
        let gone = self.gone.clone();
        // Who is dropped with everything else leaves nobody behind who would wait.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            // Of one that went meanwhile the name does not come again, but for who was late.
            let group = meeting.groups().remove(&name);
            group.into_iter().for_each(|group| send(&gone, group));
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.has_come {
            self.count(None);
        }
    }
}

fn send(gone: &UnboundedSender<Vec<Asked>>, group: Group) {
    if !group.asked.is_empty() {
        // Who asked is told when nobody submits any more: what it waits for is dropped.
        let _ = gone.send(group.asked);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::exec::HostSpec;
    use crate::exec::slurm::submit::Start;

    #[test]
    fn who_says_that_it_does_not_come_is_not_waited_for() {
        let (gone, mut submitted) = mpsc::unbounded_channel();
        let meeting = Arc::new(Meeting::default());
        let ask = Ask {
            together: Some(Together {
                group: "g".into(),
                count: 2,
            }),
            ..Ask::default()
        };
        let seat = |name: &str| Seat::of(&meeting, &gone, &ask, &Token(name.into()), 0).unwrap();
        let asked = |name: &str| {
            let start = Start {
                host: HostSpec {
                    name: name.into(),
                    address: name.into(),
                    gpus: 0,
                },
                token: Token(name.into()),
                timeout: None,
                ask: ask.clone(),
            };
            (start, oneshot::channel().0)
        };
        // Nothing here is a matter of time: there is no clock.
        let (one, two) = (seat("one"), seat("two"));
        one.take(asked("one"));
        assert!(submitted.try_recv().is_err(), "it waits for the other one");
        drop(two);
        let alone = submitted.try_recv().unwrap();
        let names: Vec<_> = alone.iter().map(|(start, _)| &start.token.0).collect();
        assert_eq!(names, ["one"]);
    }
}
