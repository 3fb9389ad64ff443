//! The few calls of SSM. A request that was turned down is told apart from one whose answer was
//! lost: the first may be made again, the second is looked up, since the service knows no token
//! of ours but the comment. All requests share one pace.

use std::future::Future;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_sdk_ssm::Client;
use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ssm::types::{
    Command, CommandFilter, CommandFilterKey, InstanceInformation, InstanceInformationStringFilter,
};

use super::pace::{Pacer, Ramp};
use super::verdict::{self, Verdict};
use crate::exec::remote::call::Broken;

/// How far its clock may be from ours.
pub(super) const SKEW: Duration = Duration::from_secs(600);
/// How long a command may take to come into sight.
const IN_SIGHT: Duration = Duration::from_secs(6);
/// What a comment may have.
pub(super) const MOST_COMMENT: usize = 100;

/// Why there is no answer of the service.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Asked too often; nothing was done.
    Throttled,
    /// Turned down with a reason; nothing was done.
    Refused { code: String, why: String },
    /// It may have been done or not.
    Unsure(String),
}

impl Trouble {
    pub(super) fn broken(self) -> Broken {
        match self {
            Trouble::Throttled => Broken {
                why: "SSM was asked too often and does not recover (ThrottlingException)".into(),
                hopeless: false,
            },
            Trouble::Refused { code, why } => Broken {
                hopeless: HOPELESS.contains(&code.as_str()),
                why: format!("SSM refused: {code}: {why}"),
            },
            Trouble::Unsure(why) => Broken {
                why: format!("no answer from SSM: {why}"),
                hopeless: false,
            },
        }
    }
}

/// What no second try mends.
const HOPELESS: [&str; 14] = [
    "AccessDeniedException",
    "AccessDenied",
    "NoCredentials",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "ExpiredTokenException",
    "ValidationException",
    "InvalidParameters",
    "InvalidDocument",
    "UnsupportedPlatformType",
    "MaxDocumentSizeExceeded",
    "DuplicateInstanceId",
];

/// A command to be sent.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub instance: &'a str,
    pub document: &'a str,
    pub text: &'a str,
    /// What it is found by when its answer is lost.
    pub comment: &'a str,
    /// What its text holds and that of no other command does.
    pub mark: &'a str,
    /// Limit on the host.
    pub limit: Duration,
    /// Not delivered by then, it never begins.
    pub delivery: Duration,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Api {
    client: Client,
    pacer: Pacer,
    /// How long a service that throttles or fails is waited for.
    patience: Duration,
}

impl Api {
    pub(super) fn new(client: Client, patience: Duration) -> Self {
        Self {
            client,
            pacer: Pacer::new(),
            patience,
        }
    }

    /// One request at our pace.
    async fn once<T, E>(
        &self,
        request: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, Trouble>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.pacer.turn().await;
        let answer = request.await.map_err(|error| trouble(&error));
        match &answer {
            Err(Trouble::Throttled) => self.pacer.slower(),
            Ok(_) | Err(Trouble::Refused { .. }) => self.pacer.served(),
            Err(Trouble::Unsure(_)) => {}
        }
        answer
    }

    /// A request that changes nothing, as long as there is patience.
    async fn read<T, E, F>(&self, request: impl Fn() -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, SdkError<E>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let begun = Instant::now();
        let mut pauses = Ramp::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match self.once(request()).await {
                Err(Trouble::Throttled | Trouble::Unsure(_)) if begun.elapsed() < self.patience => {
                    tokio::time::sleep(pauses.step()).await;
                }
                answer => return answer,
            }
        }
    }

    /// Sends a command and returns its id. When the answer is lost the command is looked for, and
    /// only when it is not there for some time this gives up.
    pub(super) async fn send(&self, order: &Order<'_>) -> Result<String, Broken> {
        let begun = Instant::now();
        loop {
            let request = self
                .client
                .send_command()
                .document_name(order.document)
                .instance_ids(order.instance)
                .parameters("commands", vec![order.text.to_owned()])
                .parameters("executionTimeout", vec![seconds(order.limit, 1, 172_800)])
                .timeout_seconds(
                    seconds(order.delivery, 30, 2_592_000)
                        .parse()
                        .unwrap_or(3600),
                )
                .comment(order.comment);
            let lost = match self.once(request.send()).await {
                Ok(answer) => match answer.command().and_then(Command::command_id) {
                    Some(id) => return Ok(id.to_owned()),
                    None => "an answer without an id".to_owned(),
                },
                Err(Trouble::Throttled) if begun.elapsed() < self.patience => continue,
                Err(Trouble::Unsure(why)) => why,
                Err(trouble) => return Err(trouble.broken()),
            };
            // It may have been taken all the same.
            return match self.look_up(order).await? {
                Some(id) => Ok(id),
                None => Err(Trouble::Unsure(format!(
                    "{lost}; no command with the comment `{}` is known",
                    order.comment
                ))
                .broken()),
            };
        }
    }

    async fn look_up(&self, order: &Order<'_>) -> Result<Option<String>, Broken> {
        let begun = Instant::now();
        let mut pauses = Ramp::new(Duration::from_millis(100), Duration::from_secs(2));
        while begun.elapsed() < IN_SIGHT {
            tokio::time::sleep(pauses.step()).await;
            let ours = |command: &Command| {
                let text = command.parameters().and_then(|all| all.get("commands"));
                command.comment() == Some(order.comment)
                    && text.is_none_or(|text| text.iter().any(|line| line.contains(order.mark)))
            };
            let found = self.sent_after(SystemTime::now() - SKEW, ours, 1).await;
            let found = found.map_err(Trouble::broken)?;
            if let Some(id) = found.first().and_then(Command::command_id) {
                return Ok(Some(id.to_owned()));
            }
        }
        Ok(None)
    }

    /// The commands with a comment that were sent after a time.
    pub(super) async fn by_comment(
        &self,
        comment: &str,
        after: SystemTime,
    ) -> Result<Vec<Command>, Trouble> {
        let ours = |command: &Command| command.comment() == Some(comment);
        self.sent_after(after, ours, usize::MAX).await
    }

    /// The first `most` commands of ours that were sent after a time, page by page.
    async fn sent_after(
        &self,
        after: SystemTime,
        is_ours: impl Fn(&Command) -> bool,
        most: usize,
    ) -> Result<Vec<Command>, Trouble> {
        let filter = CommandFilter::builder()
            .key(CommandFilterKey::InvokedAfter)
            .value(rfc3339(after))
            .build()
            .map_err(unbuilt)?;
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self
                .read(|| {
                    let request = self.client.list_commands().filters(filter.clone());
                    request.max_results(50).set_next_token(token.clone()).send()
                })
                .await?;
            let ours = page.commands().iter();
            found.extend(ours.filter(|command| is_ours(command)).cloned());
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() || found.len() >= most {
                return Ok(found);
            }
        }
    }

    /// How a command stands on its instance, and what its shell said last; `None` when it is not
    /// in sight yet. One request: who asks comes again.
    pub(super) async fn verdict(
        &self,
        id: &str,
        instance: &str,
    ) -> Result<Option<(Verdict, String)>, Trouble> {
        let request = self.client.get_command_invocation();
        let request = request.command_id(id).instance_id(instance);
        match self.once(request.send()).await {
            Ok(found) => {
                let status = found.status().map_or("", |status| status.as_str());
                let details = found.status_details().unwrap_or_default();
                let verdict = verdict::read(status, details, found.response_code());
                let said = found.standard_error_content().unwrap_or_default();
                Ok(Some((verdict, said.to_owned())))
            }
            Err(Trouble::Refused { code, .. }) if code == "InvocationDoesNotExist" => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// Asks for the end of a command; whether it ends is not said. Tried a few times only: nobody
    /// relies on it.
    pub(super) async fn cancel(&self, id: &str) -> Result<(), Trouble> {
        let mut tries = 0;
        loop {
            tries += 1;
            let request = self.client.cancel_command().command_id(id);
            match self.once(request.send()).await {
                Err(Trouble::Throttled | Trouble::Unsure(_)) if tries < 3 => {}
                answer => return answer.map(drop),
            }
        }
    }

    /// What the service knows of instances.
    pub(super) async fn instances(
        &self,
        key: &str,
        values: &[String],
    ) -> Result<Vec<InstanceInformation>, Broken> {
        let filter = InstanceInformationStringFilter::builder()
            .key(key)
            .set_values(Some(values.to_vec()))
            .build()
            .map_err(|e| unbuilt(e).broken())?;
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self
                .read(|| {
                    let request = self.client.describe_instance_information();
                    let request = request.filters(filter.clone()).max_results(50);
                    request.set_next_token(token.clone()).send()
                })
                .await
                .map_err(Trouble::broken)?;
            found.extend_from_slice(page.instance_information_list());
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(found);
            }
        }
    }
}

fn unbuilt(error: impl std::fmt::Display) -> Trouble {
    Trouble::Refused {
        code: "ValidationException".into(),
        why: error.to_string(),
    }
}

fn seconds(span: Duration, least: u64, most: u64) -> String {
    let up = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    up.clamp(least, most).to_string()
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time.max(UNIX_EPOCH)).to_string()
}

fn trouble<E>(error: &SdkError<E>) -> Trouble
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let text = chain(error);
    match error {
        SdkError::ServiceError(answer) => {
            let code = answer.err().code().unwrap_or_default().to_owned();
            let status = answer.raw().status().as_u16();
            let throttled = code.contains("Throttl")
                || [
                    "RequestLimitExceeded",
                    "TooManyRequestsException",
                    "SlowDown",
                ]
                .contains(&code.as_str());
            if throttled || status == 429 {
                Trouble::Throttled
            } else if status >= 500 {
                Trouble::Unsure(format!("{status} {code}"))
            } else {
                let why = answer.err().message().unwrap_or("without a word");
                Trouble::Refused {
                    code,
                    why: why.to_owned(),
                }
            }
        }
        SdkError::ConstructionFailure(_) => Trouble::Refused {
            code: "ValidationException".into(),
            why: text,
        },
        SdkError::DispatchFailure(_) if text.contains("credential") => Trouble::Refused {
            code: "NoCredentials".into(),
            why: "no usable credentials in the environment, `~/.aws` or the machine's role".into(),
        },
        _ => Trouble::Unsure(text),
    }
}

/// An error and what led to it, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_whole_seconds_within_the_bounds() {
        assert_eq!(seconds(Duration::from_millis(1), 1, 100), "1");
        assert_eq!(seconds(Duration::from_millis(1500), 1, 100), "2");
        assert_eq!(seconds(Duration::ZERO, 30, 100), "30");
        assert_eq!(seconds(Duration::MAX / 2, 1, 172_800), "172800");
    }

    #[test]
    fn times_are_as_the_service_reads_them() {
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00Z");
    }
}
