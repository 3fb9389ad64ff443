//! Waiting for many executions of one host with one command at a time. Whoever waits is told the
//! moment the host says that its execution has ended; who stops waiting is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::call::{Caller, Input, Request, refused};
use super::parse_status;
use crate::error::Result;
use crate::exec::{Status, Token};

type Answer = oneshot::Sender<Result<Status>>;

/// Those who wait, by host.
#[derive(Default)]
pub struct Watches(Mutex<HashMap<String, Arc<Watch>>>);

#[derive(Default)]
struct Watch {
    waiting: Mutex<HashMap<Token, Vec<Answer>>>,
    more: Notify,
}

/// How long one command stays with the host: longer and longer while nothing changes.
const FIRST_CS: u64 = 50;
const LAST_CS: u64 = 1000;
/// Those who come together are asked for together.
const GATHER: Duration = Duration::from_millis(5);

impl Watches {
    /// Waits for the end of an execution.
    pub async fn wait(
        &self,
        caller: &Arc<Caller>,
        wrapper: &str,
        host: &str,
        token: &Token,
    ) -> Result<Status> {
        let (sender, receiver) = oneshot::channel();
        let watch = locked(&self.0).entry(host.to_owned()).or_default().clone();
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
        let mut limit = FIRST_CS;
        tokio::time::sleep(GATHER).await;
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
            let request = Request::new("await", vec![wrapper, &limit_text])
                .reading(Input::Bytes(list.into_bytes()));
            let asked = tokio::select! {
                answer = caller.call(host, &request) => Some(answer),
                () = self.more.notified() => None,
            };
            let Some(answer) = asked else {
                limit = FIRST_CS;
                tokio::time::sleep(GATHER).await;
                continue;
            };
            let answer = answer.and_then(|answer| match answer.code {
                0 => Ok(answer.text()),
                _ => Err(refused(host, "wait for scripts", &answer)),
            });
            match answer {
                Ok(text) => {
                    limit = (limit * 2).min(LAST_CS);
                    for (token, status) in statuses(&text) {
                        if status != Status::Running {
                            limit = FIRST_CS;
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

/// The states in an answer: `token NAME`, then what the wrapper says of it.
fn statuses(text: &str) -> Vec<(Token, Status)> {
    let mut found = Vec::new();
    for part in text.split("token ").skip(1) {
        if let Some((token, status)) = part.split_once('\n') {
            found.push((Token(token.to_owned()), parse_status(status)));
        }
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
        let text = "token a.1\nexited\ncode=0\nsignal=\ntimed_out=0\nstarted_ms=1\nended_ms=2\nend\n      \ntoken b\nlost the host was rebooted\ntoken c\nrunning 4 5\n";
        let found = statuses(text);
        assert_eq!(found.len(), 3);
        assert!(matches!(&found[0].1, Status::Exited(exit) if exit.success()));
        assert_eq!(
            found[1].1,
            Status::Lost {
                why: "the host was rebooted".into()
            }
        );
        assert_eq!(found[2], (Token("c".into()), Status::Running));
    }
}
