//! One command on one instance: sent with a link for its answer, waited for in the bucket, and
//! looked after at the service while the answer does not come. What the shell printed is never
//! an answer: the service cuts it.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_s3::primitives::ByteStream;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};

use super::api::{MOST_COMMENT, Order, SKEW, Trouble};
use super::intents::Intent;
use super::pace::Ramp;
use super::script::{self, Feed, MOST_INLINE_BYTES};
use super::verdict::{self, Verdict};
use super::{Instance, Ssm, carry};
use crate::exec::remote::call::{Broken, Input, Line, Raw, Request, nonce};

/// The command that begins a script.
const START: &str = "start";
/// What a command may take beside what it is known to take.
pub(super) const MARGIN: Duration = Duration::from_secs(120);
/// What a transfer must manage on average.
const LEAST_BYTES_PER_S: u64 = 1 << 20;
/// Longest that the service lets a command run.
const LONGEST: Duration = Duration::from_secs(172_800);
/// An answer that was put is seen at once; a little for the way of the service's own word.
const LAST_LOOK: Duration = Duration::from_secs(1);

impl Line for Ssm {
    fn run<'a>(
        &'a self,
        host: &'a str,
        command: &'a str,
        request: &'a Request<'a>,
    ) -> BoxFuture<'a, std::result::Result<Raw, Broken>> {
        async move {
            let instance = self.instance(host)?;
            let _slot = instance.slots.acquire().await;
            let asked = self.ask(host, instance, command, request).await;
            // Whatever came of it: who tries again puts it there again, and a command that comes to
            // its host later finds nothing to read and claims nothing.
            let is_clean = !request.private || {
                let name = private_input(request.arguments[0]);
                self.bucket.remove(&name).await
            };
            let (answer, id) = asked?;
            if request.command == START && answer.stdout.ends_with(b" 0\n") {
                let token = request.arguments[0];
                let doubted = self.doubted().remove(token);
                if doubted {
                    self.take_back_others(token, &id).await;
                }
                // Else whoever comes next removes what is in the bucket.
                if is_clean {
                    self.intents.done(token);
                }
            }
            Ok(answer)
        }
        .boxed()
    }

    fn doubt<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, ()> {
        // There is no connection: the next command stands for itself.
        std::future::ready(()).boxed()
    }
}

/// A command that the service has taken.
struct Sent<'a> {
    ssm: &'a Ssm,
    id: String,
    instance: &'a str,
    /// Name of its answer.
    name: String,
    /// How long its answer is waited for.
    limit: Duration,
    /// Whether nobody needs it any more when nobody waits: it is taken back then.
    is_watch: bool,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.is_watch {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (api, id) = (self.ssm.api.clone(), std::mem::take(&mut self.id));
            // It would hold one of the agent's few workers for nothing.
            runtime.spawn(async move { drop(api.cancel(&id).await) });
        }
    }
}

impl Ssm {
    fn instance(&self, host: &str) -> std::result::Result<&Instance, Broken> {
        self.instances.get(host).ok_or_else(|| Broken {
            why: format!("there is no instance for the host `{host}`"),
            hopeless: true,
        })
    }

    fn doubted(&self) -> MutexGuard<'_, HashSet<String>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commands with a token that may have been taken although nobody said so: beside the one that
    /// was answered none is needed. One that came after the folder is gone would begin anew.
    async fn take_back_others(&self, token: &str, answered: &str) {
        let Ok(open) = self.intents.open() else {
            return;
        };
        for intent in open.iter().filter(|intent| intent.token == token) {
            let after = intent.time() - SKEW;
            // Whoever cannot ask has still the claim.
            let found = self.api.by_comment(&intent.comment, after).await;
            let ids = found.unwrap_or_default();
            let ids = ids.iter().filter_map(|command| command.command_id());
            for id in ids.filter(|id| *id != answered) {
                let _ = self.api.cancel(id).await;
            }
        }
    }

    /// Sends a command and waits for its answer; also the number under which it was taken.
    async fn ask(
        &self,
        host: &str,
        instance: &Instance,
        command: &str,
        request: &Request<'_>,
    ) -> std::result::Result<(Raw, String), Broken> {
        let mark = nonce();
        let mut sent = self.submit(host, instance, command, request, &mark).await?;
        let answer = self.answer(&sent, request).await;
        // Answered or given up: only who stops waiting leaves something to take back.
        sent.is_watch = false;
        answer.map(|answer| (answer, std::mem::take(&mut sent.id)))
    }

    async fn submit<'a>(
        &'a self,
        host: &str,
        instance: &'a Instance,
        command: &str,
        request: &Request<'_>,
        mark: &str,
    ) -> std::result::Result<Sent<'a>, Broken> {
        let is_start = request.command == START;
        let name = format!("answers/{mark}");
        let size_bytes = size_of(&request.input);
        let given = request.limit.unwrap_or_default();
        let limit = (given + MARGIN + transfer(size_bytes)).min(LONGEST);
        // The host program is done with a start within half a minute; what it starts lasts longer.
        let own = if is_start { MARGIN / 4 } else { given };
        let waited = own + self.slack + transfer(size_bytes);
        let valid = self.delivery + waited + MARGIN;
        let comment = match request.arguments.first() {
            // The token is all that a lost submission is found by.
            Some(token) if is_start => format!("doe:{token}"),
            _ => format!("doe {} {mark}", request.command),
        };
        let comment: String = comment.chars().take(MOST_COMMENT).collect();
        // Before anything of it is anywhere: what is in the bucket is found by this note.
        if is_start {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let intent = Intent {
                token: request.arguments[0].to_owned(),
                host: host.to_owned(),
                instance: instance.id.clone(),
                comment: comment.clone(),
                private: request.private,
                unix_s: now.map_or(0, |now| now.as_secs()),
            };
            self.intents.note(&intent).map_err(|e| Broken {
                why: format!("could not write down what is to be submitted: {e}"),
                hopeless: true,
            })?;
        }
        let answer = self.bucket.writing(&name, valid, None).await?;
        let feed = self.feed(request, valid).await?;
        let again = request.again.unwrap_or_default();
        let text = script::text(command, &feed, again, &answer).ok_or_else(|| Broken {
            why: "the command is longer than SSM takes".into(),
            hopeless: true,
        })?;
        let order = Order {
            instance: &instance.id,
            document: &self.document,
            text: &text,
            comment: &comment,
            mark: &name,
            limit: match (is_start, request.limit) {
                (true, None) => LONGEST,
                _ => limit,
            },
            delivery: self.delivery,
        };
        let sent = self.api.send(&order).await;
        if let (Err(_), true) = (&sent, is_start) {
            self.doubted().insert(request.arguments[0].to_owned());
        }
        let id = sent?;
        Ok(Sent {
            ssm: self,
            id,
            instance: &instance.id,
            name,
            limit: waited,
            is_watch: request.command == "await" || request.again.is_some(),
        })
    }

    /// What a command reads, in its script or in the bucket. The service keeps scripts, so secrets
    /// are never in one; in the bucket they stay until the command is answered.
    async fn feed<'a>(
        &self,
        request: &'a Request<'_>,
        valid: Duration,
    ) -> std::result::Result<Feed<'a>, Broken> {
        let input = &request.input;
        let bytes = match input {
            Input::None => return Ok(Feed::Nothing),
            Input::Bytes(bytes) if request.private => {
                let name = private_input(request.arguments[0]);
                let (sum, size_bytes) = (Sha256::digest(bytes), bytes.len() as u64);
                let body = ByteStream::from(bytes.clone());
                self.bucket.put(&name, body, &sum, size_bytes).await?;
                return Ok(Feed::Fetched(self.bucket.reading(&name, valid).await?));
            }
            Input::Bytes(bytes) if bytes.len() <= MOST_INLINE_BYTES => {
                return Ok(Feed::Inline(bytes));
            }
            Input::Bytes(bytes) => Some(bytes.clone()),
            Input::File(_) => None,
        };
        let name = match (bytes, input) {
            (Some(bytes), _) => {
                let sum = Sha256::digest(&bytes);
                let name = carry::blob(&sum);
                let size_bytes = bytes.len() as u64;
                if !self.bucket.has(&name, &sum, size_bytes).await? {
                    let body = ByteStream::from(bytes);
                    self.bucket.put(&name, body, &sum, size_bytes).await?;
                }
                name
            }
            (None, Input::File(path)) => carry::upload(&self.bucket, path).await?,
            (None, _) => return Ok(Feed::Nothing),
        };
        Ok(Feed::Fetched(self.bucket.reading(&name, valid).await?))
    }

    /// Waits for the answer to a command.
    async fn answer(
        &self,
        sent: &Sent<'_>,
        request: &Request<'_>,
    ) -> std::result::Result<Raw, Broken> {
        let begun = Instant::now();
        // The bucket can be asked often, the service cannot.
        let mut pauses = Ramp::new(Duration::from_millis(30), Duration::from_secs(1));
        let mut asking = Ramp::new(Duration::from_millis(1500), Duration::from_secs(15));
        let mut ask_at = begun + asking.step();
        let mut delivered = None;
        let mut told = false;
        let mut unseen: Option<Broken> = None;
        loop {
            match self.take(&sent.name, request.into).await {
                Ok(Some(raw)) => return Ok(raw),
                Ok(None) => {}
                Err(broken) if broken.hopeless => return Err(broken),
                Err(broken) => unseen = Some(broken),
            }
            let now = Instant::now();
            let waits = delivered.map_or(begun.elapsed(), |at: Instant| at.elapsed());
            let limit = match delivered {
                None if told => self.delivery + self.slack / 4,
                // Nobody says whether it is on its host.
                None => self.delivery + sent.limit,
                Some(_) => sent.limit,
            };
            if waits > limit {
                // Nobody waits for it any more; whether it ends is not told.
                let _ = self.api.cancel(&sent.id).await;
                return Err(unseen.unwrap_or_else(|| Broken {
                    why: match delivered {
                        None if told => verdict::Failure::NotDelivered.words().to_owned(),
                        _ => format!("no answer came within {} s", limit.as_secs()),
                    },
                    hopeless: false,
                }));
            }
            if now >= ask_at {
                match self.api.verdict(&sent.id, sent.instance).await {
                    Ok(Some((Verdict::Running, _))) => {
                        delivered.get_or_insert(now);
                    }
                    Ok(Some((Verdict::Ended(code), said))) => {
                        return self
                            .last_look(sent, request, verdict::no_answer(code, &said))
                            .await;
                    }
                    Ok(Some((Verdict::Failed(failure), _))) => {
                        return self.last_look(sent, request, failure.broken()).await;
                    }
                    Ok(Some((Verdict::Waiting, _))) => told = true,
                    // Not in sight yet, or the service has no time.
                    Ok(None) | Err(Trouble::Throttled | Trouble::Unsure(_)) => {}
                    Err(Trouble::Refused { code, why }) => {
                        unseen = Some(Broken {
                            why: format!("SSM refused: {code}: {why}"),
                            hopeless: false,
                        });
                    }
                }
                ask_at = Instant::now() + asking.step();
            }
            tokio::time::sleep(pauses.step()).await;
        }
    }

    /// The command is over: its answer is there now, or it never comes.
    async fn last_look(
        &self,
        sent: &Sent<'_>,
        request: &Request<'_>,
        broken: Broken,
    ) -> std::result::Result<Raw, Broken> {
        let begun = Instant::now();
        while begun.elapsed() < LAST_LOOK {
            if let Ok(Some(raw)) = self.take(&sent.name, request.into).await {
                return Ok(raw);
            }
            tokio::time::sleep(LAST_LOOK / 5).await;
        }
        Err(broken)
    }

    /// Takes an answer out of the bucket, if it is there.
    async fn take(
        &self,
        name: &str,
        into: Option<&Path>,
    ) -> std::result::Result<Option<Raw>, Broken> {
        let Some(body) = self.bucket.get(name).await? else {
            return Ok(None);
        };
        let bytes = body.collect().await;
        let bytes = bytes.map_err(|e| super::bucket::torn(&e))?.to_vec();
        let Some((err, out)) = script::unpack(&bytes) else {
            return Err(Broken {
                why: "the answer in the bucket is not one of ours".into(),
                hopeless: false,
            });
        };
        let mut raw = Raw {
            stdout: Vec::new(),
            stderr: String::from_utf8_lossy(err).into_owned(),
        };
        match into {
            None => raw.stdout = out.to_vec(),
            Some(path) => std::fs::write(path, out).map_err(|e| Broken {
                why: format!("could not write `{}`: {e}", path.display()),
                hopeless: true,
            })?,
        }
        let (bucket, name) = (self.bucket.clone(), name.to_owned());
        tokio::spawn(async move { bucket.remove(&name).await });
        Ok(Some(raw))
    }
}

/// Name in the bucket of what the start of a token reads when it holds secrets: beside the answers,
/// where what is read is taken away.
pub(super) fn private_input(token: &str) -> String {
    format!("answers/{token}.in")
}

fn size_of(input: &Input) -> u64 {
    match input {
        Input::None => 0,
        Input::Bytes(bytes) => bytes.len() as u64,
        Input::File(path) => std::fs::metadata(path).map_or(0, |m| m.len()),
    }
}

/// How long a transfer may take.
fn transfer(size_bytes: u64) -> Duration {
    Duration::from_secs(size_bytes / LEAST_BYTES_PER_S)
}
