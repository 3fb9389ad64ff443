//! The wire: JSON 1.1 over HTTP, signed requests, the service's checks and errors.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::state::{Command, Invocation, Ping, State, take};

type Shared = Arc<Mutex<State>>;
/// Code and message of an error.
type Refused = (&'static str, String);
type Answer = Result<Value, Refused>;

/// A connection that ends without an answer.
#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer was lost")
    }
}

impl std::error::Error for Lost {}

pub async fn serve(listener: tokio::net::TcpListener, state: Shared) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(request, state.clone()));
            let builder = hyper::server::conn::http1::Builder::new();
            // A client that goes away ends it, and so does a lost answer.
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>, state: Shared) -> Result<Response<Full<Bytes>>, Lost> {
    let header = |name: &str| -> String {
        let value = request.headers().get(name);
        value.map_or(String::new(), |v| v.to_str().unwrap_or_default().to_owned())
    };
    let target = header("x-amz-target");
    let signature = header("authorization");
    let kind = header("content-type");
    let body = request.into_body().collect().await.map_err(|_| Lost)?;
    let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
    let Some(operation) = target.strip_prefix("AmazonSSM.") else {
        return Ok(refuse(
            400,
            "UnknownOperationException",
            "no such operation",
        ));
    };
    if kind != "application/x-amz-json-1.1" {
        return Ok(refuse(400, "SerializationException", "expected JSON 1.1"));
    }
    let scope = format!("/{}/ssm/aws4_request", state.lock().unwrap().region);
    if !signature.starts_with("AWS4-HMAC-SHA256 Credential=") {
        return Ok(refuse(
            400,
            "MissingAuthenticationTokenException",
            "Missing Authentication Token",
        ));
    }
    if !signature.contains(&scope) || !signature.contains("Signature=") {
        return Ok(refuse(
            400,
            "InvalidSignatureException",
            "Credential should be scoped to a valid region.",
        ));
    }
    let (result, lost) = {
        let mut state = state.lock().unwrap();
        *state.asked.entry(operation.to_owned()).or_default() += 1;
        if take(&mut state.faults.throttle) {
            let body = json!({"__type": "ThrottlingException", "Message": "Rate exceeded",
                "QuotaCode": "", "ServiceCode": "ssm"});
            return Ok(respond(400, &body));
        }
        if operation == "SendCommand" && take(&mut state.faults.fail_before) {
            return Ok(refuse(
                500,
                "InternalServerError",
                "An error occurred on the server side.",
            ));
        }
        if state.faults.deny == Some(operation) {
            let why = format!("User: someone is not authorized to perform: ssm:{operation}");
            return Ok(refuse(400, "AccessDeniedException", &why));
        }
        state.expire();
        note_use(&mut state, operation, &body);
        let result = match operation {
            "SendCommand" => send(&mut state, &body),
            "GetCommandInvocation" => get_invocation(&mut state, &body),
            "ListCommands" => list_commands(&state, &body),
            "ListCommandInvocations" => list_invocations(&state, &body),
            "CancelCommand" => cancel(&mut state, &body),
            "DescribeInstanceInformation" => describe(&state, &body),
            _ => {
                return Ok(refuse(
                    400,
                    "UnknownOperationException",
                    "no such operation",
                ));
            }
        };
        let accepted = operation == "SendCommand" && result.is_ok();
        let lost = accepted && take(&mut state.faults.lose_answers);
        if let (true, Some(command)) = (lost, state.commands.last_mut()) {
            command.lost = true;
        }
        for _ in 0..if lost { state.faults.clutter } else { 0 } {
            clutter(&mut state);
        }
        (result, lost)
    };
    if lost {
        return Err(Lost);
    }
    Ok(match result {
        Ok(body) => respond(200, &body),
        Err((code, why)) => refuse(400, code, &why),
    })
}

/// What IAM is asked before an operation.
fn note_use(state: &mut State, operation: &str, body: &Value) {
    let region = state.region.clone();
    let action = format!("ssm:{operation}");
    let mut resources = vec!["*".to_owned()];
    if operation == "SendCommand" {
        let document = text(body, "DocumentName").unwrap_or_default();
        resources = vec![format!("arn:aws:ssm:{region}::document/{document}")];
        let instances = texts(body.get("InstanceIds"));
        let arn = |id: &String| format!("arn:aws:ec2:{region}:000000000000:instance/{id}");
        resources.extend(instances.iter().map(arn));
    }
    let uses = resources.into_iter().map(|one| (action.clone(), one));
    state.uses.extend(uses);
}

/// A command of somebody else, which has ended.
fn clutter(state: &mut State) {
    let Some(mut command) = state.commands.last().cloned() else {
        return;
    };
    command.id = state.fresh_id();
    command.comment = "somebody else's".to_owned();
    command.visible_at = Instant::now();
    for one in command.invocations.values_mut() {
        one.set("Success", "Success");
    }
    state.commands.push(command);
}

fn respond(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let kind = "application/x-amz-json-1.1".parse().unwrap();
    response.headers_mut().insert("content-type", kind);
    response
}

fn refuse(status: u16, code: &str, why: &str) -> Response<Full<Bytes>> {
    respond(status, &json!({"__type": code, "Message": why}))
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Refused> {
    Err(("ValidationException", why.into()))
}

fn text<'v>(body: &'v Value, key: &str) -> Option<&'v str> {
    body.get(key).and_then(Value::as_str)
}

fn texts(value: Option<&Value>) -> Vec<String> {
    let all = value.and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn is_instance(id: &str) -> bool {
    let rest = id.strip_prefix("i-").map(|rest| (rest, [8, 17]));
    let rest = rest.or(id.strip_prefix("mi-").map(|rest| (rest, [17, 17])));
    rest.is_some_and(|(rest, sizes)| {
        sizes.contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn seconds(body: &Value, key: &str, least: i64, most: i64, usual: i64) -> Result<i64, Refused> {
    let value = body.get(key).map_or(Some(usual), Value::as_i64);
    match value {
        Some(value) if (least..=most).contains(&value) => Ok(value),
        _ => invalid(format!(
            "Value at '{key}' failed to satisfy constraint: from {least} to {most}"
        )),
    }
}

fn send(state: &mut State, body: &Value) -> Answer {
    let Some(document) = text(body, "DocumentName") else {
        return invalid("DocumentName is required");
    };
    let comment = text(body, "Comment").unwrap_or_default();
    if comment.chars().count() > 100 {
        return invalid(
            "Value at 'comment' failed to satisfy constraint: Member must have length less than or equal to 100",
        );
    }
    let timeout = seconds(body, "TimeoutSeconds", 30, 2_592_000, 3600)?;
    let ids = texts(body.get("InstanceIds"));
    if ids.is_empty() || ids.len() > 50 {
        return invalid("InstanceIds must have from 1 to 50 members");
    }
    if let Some(bad) = ids.iter().find(|id| !is_instance(id)) {
        return invalid(format!(
            "Value '{bad}' at 'instanceIds' failed to satisfy constraint"
        ));
    }
    if document != "AWS-RunShellScript" {
        return Err((
            "InvalidDocument",
            format!("Document with name {document} does not exist."),
        ));
    }
    if ids.iter().collect::<HashSet<_>>().len() < ids.len() {
        return Err(("DuplicateInstanceId", String::new()));
    }
    let known = |id: &String| {
        state
            .instances
            .get(id)
            .is_some_and(|i| i.ping != Ping::Gone)
    };
    if let Some(id) = ids.iter().find(|id| !known(id)) {
        return Err((
            "InvalidInstanceId",
            format!("Instances [[{id}]] not in a valid state for account 000000000000"),
        ));
    }
    let parameters = body.get("Parameters").cloned().unwrap_or(Value::Null);
    for key in parameters
        .as_object()
        .into_iter()
        .flat_map(|map| map.keys())
    {
        if !["commands", "workingDirectory", "executionTimeout"].contains(&key.as_str()) {
            return Err((
                "InvalidParameters",
                format!("document AWS-RunShellScript does not support parameter {key}."),
            ));
        }
    }
    let commands = texts(parameters.get("commands"));
    if commands.is_empty() {
        return Err((
            "InvalidParameters",
            "document AWS-RunShellScript must specify value for parameter commands.".into(),
        ));
    }
    if commands.iter().any(|line| line.contains("{{")) {
        return Err((
            "InvalidParameters",
            "a parameter in braces could not be resolved".into(),
        ));
    }
    let limit = texts(parameters.get("executionTimeout"));
    let limit = limit.first().map_or("3600", String::as_str);
    let limit: u64 = match limit.parse() {
        Ok(limit @ 1..=172_800) if !limit.to_string().starts_with('0') => limit,
        _ => {
            return Err((
                "InvalidParameters",
                "executionTimeout must be from 1 to 172800".into(),
            ));
        }
    };
    // The document has its own frame of about 1 KB.
    if parameters.to_string().len() + 1024 > 64 * 1024 {
        return Err((
            "MaxDocumentSizeExceeded",
            "The size limit of a document is 64 KB.".into(),
        ));
    }
    let one = Invocation {
        status: "Pending",
        details: "Pending",
        code: -1,
        stdout: String::new(),
        stderr: String::new(),
        begun: None,
        ended: None,
        cancel: false,
        times: if take(&mut state.faults.duplicate) {
            3
        } else {
            1
        },
        spoilt: state
            .faults
            .spoil
            .pop()
            .or_else(|| take(&mut state.faults.swallow).then_some(("Success", "Success"))),
    };
    let command = Command {
        id: state.fresh_id(),
        comment: comment.to_owned(),
        document: document.to_owned(),
        commands,
        parameters,
        execution_timeout: Duration::from_secs(limit),
        timeout: Duration::from_secs(u64::try_from(timeout).unwrap()),
        requested: SystemTime::now(),
        visible_at: Instant::now() + state.faults.invisible,
        accepted: Instant::now(),
        invocations: ids
            .into_iter()
            .map(|id| (id, one.clone()))
            .collect::<BTreeMap<_, _>>(),
        lost: false,
    };
    let answer = json!({"Command": command.json()});
    state.commands.push(command);
    Ok(answer)
}

fn get_invocation(state: &mut State, body: &Value) -> Answer {
    let (id, instance) = (text(body, "CommandId"), text(body, "InstanceId"));
    let (Some(id), Some(instance)) = (id, instance) else {
        return invalid("CommandId and InstanceId are required");
    };
    if id.len() != 36 {
        return invalid(
            "Value at 'commandId' failed to satisfy constraint: Member must have length 36",
        );
    }
    if !is_instance(instance) {
        return invalid("Value at 'instanceId' failed to satisfy constraint");
    }
    if text(body, "PluginName").is_some_and(|name| !name.starts_with("aws:runShellScript")) {
        return Err(("InvalidPluginName", String::new()));
    }
    let command = state.commands.iter().find(|c| c.id == id);
    let command = command.filter(|c| c.visible_at <= Instant::now());
    let found = command.and_then(|c| Some((c, c.invocations.get(instance)?)));
    match found {
        Some((command, one)) => Ok(command.invocation_json(instance, one)),
        None => Err(("InvocationDoesNotExist", String::new())),
    }
}

/// The commands that a listing asks for, newest first, one page of them.
fn page<'s>(state: &'s State, body: &Value) -> Result<(Vec<&'s Command>, Value), Refused> {
    let most = seconds(body, "MaxResults", 1, 50, 50)?;
    let mut all: Vec<&Command> = state
        .commands
        .iter()
        .rev()
        .filter(|c| c.visible_at <= Instant::now())
        .filter(|c| !(c.lost && state.faults.hide_lost))
        .collect();
    if let Some(id) = text(body, "CommandId") {
        all.retain(|c| c.id == id);
        if all.is_empty() && !state.commands.iter().any(|c| c.id == id) {
            return Err(("InvalidCommandId", String::new()));
        }
    }
    if let Some(id) = text(body, "InstanceId") {
        all.retain(|c| c.invocations.contains_key(id));
    }
    for filter in body
        .get("Filters")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let (key, value) = (
            text(filter, "key"),
            text(filter, "value").unwrap_or_default(),
        );
        let time = || {
            humantime::parse_rfc3339(value)
                .map_err(|_| ("ValidationException", format!("`{value}` is no time")))
        };
        match key {
            Some("InvokedAfter") => {
                let after = time()?;
                all.retain(|c| c.requested >= after);
            }
            Some("InvokedBefore") => {
                let before = time()?;
                all.retain(|c| c.requested < before);
            }
            Some("Status") => all.retain(|c| c.status().0 == value),
            Some("DocumentName") => all.retain(|c| c.document == value),
            Some("ExecutionStage") => {
                let done = |c: &Command| c.invocations.values().all(Invocation::is_final);
                all.retain(|c| done(c) == (value == "Complete"));
            }
            _ => return Err(("InvalidFilterKey", String::new())),
        }
    }
    let ids: Vec<&str> = all.iter().map(|c| c.id.as_str()).collect();
    let (rows, next) = cut(state, body, &ids, most)?;
    Ok((all.drain(rows).collect(), next))
}

/// The rows of one page, and the token of the next: `AFTER` or, for a page that is empty, `AFTER+`.
fn cut(
    state: &State,
    body: &Value,
    ids: &[&str],
    most: i64,
) -> Result<(std::ops::Range<usize>, Value), Refused> {
    let token = text(body, "NextToken");
    let from = match token.map(|token| token.trim_end_matches('+')) {
        None => 0,
        Some(last) => {
            let last = ids.iter().position(|id| *id == last);
            last.ok_or(("InvalidNextToken", String::new()))? + 1
        }
    };
    let most = usize::try_from(most).unwrap();
    let most = state.faults.page.map_or(most, |page| page.min(most));
    if let Some(token) = token.filter(|token| token.ends_with('+')) {
        return Ok((from..from, json!(token.trim_end_matches('+'))));
    }
    let to = (from + most).min(ids.len());
    let empty = if state.faults.page.is_some() { "+" } else { "" };
    let next = match ids.get(to.wrapping_sub(1)) {
        Some(last) if to < ids.len() => json!(format!("{last}{empty}")),
        _ => Value::Null,
    };
    Ok((from..to, next))
}

fn with_token(mut answer: Value, next: Value) -> Value {
    if !next.is_null() {
        answer["NextToken"] = next;
    }
    answer
}

fn list_commands(state: &State, body: &Value) -> Answer {
    let (commands, next) = page(state, body)?;
    let commands: Vec<Value> = commands.iter().map(|c| c.json()).collect();
    Ok(with_token(json!({"Commands": commands}), next))
}

fn list_invocations(state: &State, body: &Value) -> Answer {
    let (commands, next) = page(state, body)?;
    let details = body.get("Details") == Some(&Value::Bool(true));
    let mut found = Vec::new();
    for command in commands {
        for (id, one) in &command.invocations {
            let mut entry = command.invocation_json(id, one);
            let output: String = one.stdout.chars().take(2500).collect();
            entry["CommandPlugins"] = match details {
                true => json!([{"Name": "aws:runShellScript", "Status": one.status,
                    "StatusDetails": one.details, "ResponseCode": one.code, "Output": output}]),
                false => json!([]),
            };
            found.push(entry);
        }
    }
    Ok(with_token(json!({"CommandInvocations": found}), next))
}

fn cancel(state: &mut State, body: &Value) -> Answer {
    let id = text(body, "CommandId").unwrap_or_default();
    let some = texts(body.get("InstanceIds"));
    let Some(command) = state.commands.iter_mut().find(|c| c.id == id) else {
        return Err(("InvalidCommandId", String::new()));
    };
    for (instance, one) in &mut command.invocations {
        if !some.is_empty() && !some.contains(instance) || one.is_final() {
            continue;
        }
        one.cancel = true;
        if one.status == "InProgress" {
            one.set("Cancelling", "Cancelling");
        } else {
            one.set("Cancelled", "Cancelled");
        }
    }
    Ok(json!({}))
}

fn describe(state: &State, body: &Value) -> Answer {
    let most = seconds(body, "MaxResults", 5, 50, 50)?;
    let mut found: Vec<_> = state
        .instances
        .values()
        .filter(|i| i.ping != Ping::Gone)
        .collect();
    found.sort_by_key(|i| &i.spec.id);
    for filter in body
        .get("Filters")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let values = texts(filter.get("Values"));
        match text(filter, "Key").unwrap_or_default() {
            "InstanceIds" => found.retain(|i| values.contains(&i.spec.id)),
            "PingStatus" => found.retain(|i| values.contains(&format!("{:?}", i.ping))),
            key => match key.strip_prefix("tag:") {
                Some(tag) => {
                    found.retain(|i| i.spec.tags.get(tag).is_some_and(|v| values.contains(v)));
                }
                None => return Err(("InvalidFilterKey", String::new())),
            },
        }
    }
    let ids: Vec<&str> = found.iter().map(|i| i.spec.id.as_str()).collect();
    let (rows, next) = cut(state, body, &ids, most)?;
    let list: Vec<Value> = found[rows]
        .iter()
        .map(|i| {
            json!({"InstanceId": i.spec.id, "PingStatus": format!("{:?}", i.ping),
                "AgentVersion": "3.3.0.0", "PlatformType": "Linux", "ResourceType": "EC2Instance"})
        })
        .collect();
    Ok(with_token(json!({"InstanceInformationList": list}), next))
}
