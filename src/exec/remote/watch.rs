//! Waiting for many executions of one host with one command at a time. Whoever waits is told the
//! moment the host says that its execution has ended; who stops waiting is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::Pace;
use super::call::{Caller, Input, Request, refused};
use super::clock::{Clocks, Said};
use super::state::State;
use crate::error::Result;
use crate::exec::{Status, Token};

type Answer = oneshot::Sender<Result<Status>>;

/// Those who wait, by host.
pub struct Watches {
    hosts: Mutex<HashMap<String, Arc<Watch>>>,
    pace: Pace,
}

struct Watch {
    pace: Pace,
    waiting: Mutex<HashMap<Token, Vec<Answer>>>,
    more: Notify,
}

impl Watches {
    /// Nobody waits yet.
    pub fn new(pace: Pace) -> Self {
        Self {
            hosts: Mutex::default(),
            pace,
        }
    }

    /// Waits for the end of an execution.
    pub async fn wait(
        &self,
        caller: &Arc<Caller>,
        wrapper: &str,
        host: &str,
        token: &Token,
    ) -> Result<Status> {
        let (sender, receiver) = oneshot::channel();
        let fresh = || {
            Arc::new(Watch {
                pace: self.pace,
                waiting: Mutex::default(),
                more: Notify::new(),
            })
        };
        let watch = locked(&self.hosts)
            .entry(host.to_owned())
            .or_insert_with(fresh)
            .clone();
        let first = {
            let mut waiting = locked(&watch.waiting);
            let first = waiting.is_empty();
            waiting.entry(token.clone()).or_default().push(sender);
            first
        };
        if first {
            // The one task of this host; it ends with the last who waits.
            let (watch, caller) = (watch.clone(), caller.clone());
            let (wrapper, host) = (wrapper.to_owned(), host.to_owned());
            tokio::spawn(async move { watch.run(&caller, &wrapper, &host).await });
        } else {
            watch.more.notify_one();
        }
        match receiver.await {
            Ok(status) => status,
            // The runtime shuts down: nobody will ever tell.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Watch {
    /// Tokens that somebody still waits for. Empty means that the task is over: the next who
    /// comes finds nobody and starts a new one.
    fn tokens(&self) -> Vec<Token> {
        let mut waiting = locked(&self.waiting);
        waiting.retain(|_, answers| {
            answers.retain(|answer| !answer.is_closed());
            !answers.is_empty()
        });
        waiting.keys().cloned().collect()
    }

    async fn run(&self, caller: &Caller, wrapper: &str, host: &str) {
        // Longer and longer while nothing changes.
        let mut limit = self.pace.first_cs;
        tokio::time::sleep(self.pace.gather).await;
        loop {
            let tokens = self.tokens();
            if tokens.is_empty() {
                return;
            }
            let list: String = tokens
                .iter()
                .map(|token| format!("{}\n", token.0))
                .collect();
            let limit_text = limit.to_string();
            let request = Request {
                limit: Some(Duration::from_millis(limit * 10)),
                ..Request::new("await", vec![wrapper, &limit_text])
                    .reading(Input::Bytes(list.into_bytes()))
            };
            let asked = tokio::select! {
                answer = caller.call(host, &request) => Some(answer),
                () = self.more.notified() => None,
            };
            let Some(answer) = asked else {
                limit = self.pace.first_cs;
                tokio::time::sleep(self.pace.gather).await;
                continue;
            };
            let answer = answer.and_then(|answer| match answer.code {
                0 => Ok((answer.text(), answer.said)),
                _ => Err(refused(host, "wait for scripts", &answer)),
            });
            match answer {
                Ok((text, said)) => {
                    limit = (limit * 2).min(self.pace.last_cs);
                    for (token, status) in statuses(&text, &caller.clocks, host, said) {
                        if status != Status::Running {
                            limit = self.pace.first_cs;
                            self.tell(&token, &Ok(status));
                        }
                    }
                }
                Err(error) => {
                    for token in tokens {
                        self.tell(&token, &Err(error.clone()));
                    }
                }
            }
        }
    }

    fn tell(&self, token: &Token, status: &Result<Status>) {
        // Taken out one by one: while somebody is left in the map this task counts as running,
        // and it looks again before it ends.
        let answers = locked(&self.waiting).get_mut(token).map(std::mem::take);
        for answer in answers.unwrap_or_default() {
            // Nobody there any more is fine.
            let _ = answer.send(status.clone());
        }
    }
}

/// The states in an answer: `token NAME`, how long the host had waited by then, and what the wrapper
/// says of it.
fn statuses(text: &str, clocks: &Clocks, host: &str, said: Said) -> Vec<(Token, Status)> {
    let mut found = Vec::new();
    for part in text.split("token ").skip(1) {
        let parts = part.split_once('\n');
        let Some(((token, waited_cs), state)) =
            parts.and_then(|(head, state)| Some((head.split_once(' ')?, state)))
        else {
            continue;
        };
        let waited_ms = waited_cs.parse().map_or(0, |cs: i64| cs * 10);
        let said = Said {
            from_ms: (said.from_ms + waited_ms).min(said.to_ms),
            ..said
        };
        let state = State::read(state, (clocks, host, said));
        found.push((Token(token.to_owned()), state.status));
    }
    found
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_told_apart() {
        let text = "token a.1 100\nexited 200\ncode=0\nsignal=\ntimed_out=0\nstarted_ms=1\nended_ms=2\nended_cs=3\nend\n      \ntoken b 100\nlost the host was rebooted\ntoken c 100\nrunning 4 5\n";
        let said = Said {
            from_ms: 9000,
            to_ms: 10_010,
        };
        let found = statuses(text, &Clocks::default(), "h", said);
        assert_eq!(found.len(), 3);
        // It had ended 2 s before the host said so, after a second of waiting.
        assert!(
            matches!(&found[0].1, Status::Exited(exit) if exit.success() && exit.ended_unix_ms == 8005)
        );
        assert_eq!(
            found[1].1,
            Status::Lost {
                why: "the host was rebooted".into()
            }
        );
        assert_eq!(found[2], (Token("c".into()), Status::Running));
    }
}
