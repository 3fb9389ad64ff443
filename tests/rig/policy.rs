//! An IAM policy and what an emulator makes of it: as a judge who is asked, and as a user whose
//! requests are held against it.

use serde_json::Value;

use crate::s3::Server;

/// A document.
pub struct Policy(pub Value);

impl Policy {
    /// Makes a user who has it and nothing else; its key and secret.
    pub fn user(&self, server: &Server) -> (String, String) {
        let ask = |words: &[&str]| {
            let mut args = vec!["-d", "Version=2010-05-08", "-d", "UserName=somebody"];
            for word in words {
                args.extend(["--data-urlencode", word]);
            }
            server.signed("iam", "/", &args)
        };
        ask(&["Action=CreateUser"]);
        let document = format!("PolicyDocument={}", self.0);
        ask(&["Action=PutUserPolicy", "PolicyName=documented", &document]);
        let made = ask(&["Action=CreateAccessKey"]);
        (
            inside(&made, "AccessKeyId"),
            inside(&made, "SecretAccessKey"),
        )
    }

    /// Every action that it names.
    pub fn actions(&self) -> Vec<String> {
        let mut all = Vec::new();
        for statement in self.0["Statement"].as_array().unwrap() {
            match &statement["Action"] {
                Value::String(one) => all.push(one.clone()),
                more => all.extend(
                    more.as_array()
                        .unwrap()
                        .iter()
                        .map(|one| one.as_str().unwrap().to_owned()),
                ),
            }
        }
        all
    }

    /// What the judge says of it as it stands. It knows no tags and no prefixes.
    pub fn judged(&self, server: &Server, action: &str, resource: &str) -> bool {
        judged(&self.0, server, action, resource)
    }

    /// The same, with what its conditions ask for given.
    pub fn allows(&self, server: &Server, action: &str, resource: &str) -> bool {
        let mut met = self.0.clone();
        for statement in met["Statement"].as_array_mut().unwrap() {
            statement.as_object_mut().unwrap().remove("Condition");
        }
        judged(&met, server, action, resource)
    }
}

fn judged(document: &Value, server: &Server, action: &str, resource: &str) -> bool {
    let answer = server.signed(
        "iam",
        "/",
        &[
            "-d",
            "Version=2010-05-08",
            "-d",
            "Action=SimulateCustomPolicy",
            "--data-urlencode",
            &format!("PolicyInputList.member.1={document}"),
            "--data-urlencode",
            &format!("ActionNames.member.1={action}"),
            "--data-urlencode",
            &format!("ResourceArns.member.1={resource}"),
        ],
    );
    match inside(&answer, "EvalDecision").as_str() {
        "allowed" => true,
        "implicitDeny" | "explicitDeny" => false,
        other => panic!("{other}: {answer}"),
    }
}

fn inside(xml: &str, name: &str) -> String {
    let rest = xml.split(&format!("<{name}>")).nth(1);
    let text = rest.and_then(|rest| rest.split('<').next());
    text.unwrap_or_else(|| panic!("no {name} in {xml}"))
        .to_owned()
}

/// Somebody's client for the server.
pub fn client(server: &Server, key: &str, secret: &str) -> aws_sdk_s3::Client {
    use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(key, secret, None, None, "test"))
        .endpoint_url(format!("http://127.0.0.1:{}", server.port))
        .force_path_style(true)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    aws_sdk_s3::Client::from_conf(config)
}
