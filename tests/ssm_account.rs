//! The ssm executor and an account: whose credentials and which region, which instances, what the
//! documented policy allows and what it does not, and that nothing secret is there to be read.
#![cfg(feature = "aws")]

mod aws_endpoint;
#[path = "rig/cloud.rs"]
mod cloud;
#[path = "rig/policy.rs"]
mod policy;
mod rig;
mod s3;
mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aws_endpoint::{Ping, Spec};
use cloud::{Cloud, instance};
use doe::exec::remote::RemoteExecutor;
use doe::exec::ssm::SsmOptions;
use doe::exec::{Executor, Script, Sign, Status, Token};
use policy::Policy;
use s3::{BUCKET, Kind, Server};
use support::Workspace;

const PATIENCE: Duration = Duration::from_secs(60);

fn script(text: &str, dir: &Path) -> Script {
    Script {
        name: "step-test".into(),
        text: text.into(),
        env: BTreeMap::new(),
        work: dir.join("work"),
        timeout: Some(Duration::from_secs(120)),
        log_cap_bytes: 1 << 20,
        attached: false,
        ask: Default::default(),
    }
}

/// Runs a script that leaves a file, and fetches that.
async fn works(cloud: &Cloud, executor: &RemoteExecutor, dir: &Path) {
    let host = &cloud.specs()[0];
    let mut long = script("head -c 300000 /dev/zero >a; echo \"$long\" | wc -c", dir);
    long.env.insert("long".into(), "x".repeat(40_000));
    let token = Token(format!("account-{}", std::process::id()));
    let handle = executor.start(host, &long, &token).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, executor.wait(&handle)).await;
    let status = ended.expect("it ends").unwrap();
    assert!(matches!(status, Status::Exited(exit) if exit.success()));
    let names = ["a".to_owned()];
    let from = dir.join("work");
    let into = dir.join("into");
    let got = executor.collect(host, &from, &names, &into).await.unwrap();
    assert_eq!(std::fs::read(&got[0]).unwrap().len(), 300_000);
    executor.discard(&handle).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_region_is_that_of_the_named_profile() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let lab = std::fs::read_to_string(cloud.credentials()).unwrap();
    let file = dir.path().join("credentials");
    let text = format!("[default]\nregion = us-west-2\n{lab}region = eu-central-1\n");
    std::fs::write(&file, text).unwrap();
    cloud.endpoint.region("eu-central-1");
    let options = SsmOptions {
        region: None,
        credentials: Some(file),
        ..cloud.options(&dir.path().join("intents"))
    };
    let root = dir.path().join("root");
    cloud.connect_with(&options, &root, PATIENCE).await.unwrap();
    // A region that was said goes before it.
    let said = SsmOptions {
        region: Some("us-east-1".into()),
        ..options
    };
    let refused = cloud.connect_with(&said, &root, PATIENCE).await;
    let error = refused.err().expect("it was signed for another region");
    assert_eq!(error.code, "aws-refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_found_by_their_tag_on_whatever_page() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    // Stopped ones bear the tag too, before the one that runs and after it.
    let name = cloud.hosts.name(2);
    let stopped = |id: &str, ping| {
        let tags = HashMap::from([("doe".to_owned(), name.clone())]);
        let (id, run) = (id.to_owned(), Vec::new());
        cloud.endpoint.add(Spec { id, tags, run }, ping);
    };
    for number in 0..4 {
        stopped(&format!("i-0000000{number}"), Ping::ConnectionLost);
        stopped(&format!("i-f000000{number}"), Ping::Inactive);
    }
    cloud.endpoint.faults(|faults| faults.page = Some(2));
    let before = cloud.endpoint.asked("DescribeInstanceInformation");
    let executor = cloud.connect(&root).await;
    let pages = cloud.endpoint.asked("DescribeInstanceInformation") - before;
    assert!(pages > 5, "{pages}");
    executor.probe(&cloud.specs()[1]).await.unwrap();
    // Two that run are one too many.
    cloud.endpoint.ping("i-f0000002", Ping::Online);
    let tried = cloud.try_connect(&root, PATIENCE).await;
    let error = tried.err().expect("two instances bear the tag");
    assert_eq!(error.code, "host-unusable");
    let text = format!("{error:?}");
    assert!(text.contains("2 instances answer to the tag"), "{text}");
    // None that runs is none.
    cloud.endpoint.ping("i-f0000002", Ping::Gone);
    cloud.endpoint.ping(&instance(2), Ping::Inactive);
    let tried = cloud.try_connect(&root, PATIENCE).await;
    let text = format!("{:?}", tried.err().expect("no instance runs"));
    assert!(text.contains("lost its connection"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_done_is_told_at_once() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    let fails = async |sent: u32| {
        let before = cloud.endpoint.asked("SendCommand");
        // Patience is a minute, and nothing of it is used up.
        let error = executor.probe(&cloud.specs()[0]).await.unwrap_err();
        assert_eq!(cloud.endpoint.asked("SendCommand") - before, sent);
        format!("{error:?}")
    };
    cloud
        .endpoint
        .faults(|faults| faults.deny = Some("SendCommand"));
    let text = fails(1).await;
    assert!(text.contains("AccessDeniedException"), "{text}");
    assert!(text.contains("the rights that are needed"), "{text}");
    cloud.endpoint.faults(|faults| faults.deny = None);
    for (details, said) in [
        ("AccessDenied", "no right to send commands"),
        ("Invalid Platform", "another operating system"),
    ] {
        let spoil = ("Failed", details);
        cloud.endpoint.faults(|faults| faults.spoil.push(spoil));
        let text = fails(1).await;
        assert!(text.contains(said), "{text}");
    }
    // What is said of a command is of use, and not needed.
    let deny = Some("GetCommandInvocation");
    cloud.endpoint.faults(|faults| faults.deny = deny);
    works(&cloud, &executor, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_link_is_nobodys_argument() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let dir = tempfile::tempdir().unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    // Whoever looks at the processes, all the time.
    let over = Arc::new(AtomicBool::new(false));
    let movers = Arc::new(AtomicUsize::new(0));
    let looker = std::thread::spawn({
        let over = over.clone();
        let movers = movers.clone();
        move || {
            let mut links = Vec::new();
            while !over.load(Ordering::SeqCst) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let words = std::fs::read(entry.path().join("cmdline"));
                    let words = String::from_utf8_lossy(&words.unwrap_or_default()).into_owned();
                    let mover = words.starts_with("curl\0");
                    movers.fetch_add(usize::from(mover), Ordering::SeqCst);
                    if words.contains("X-Amz-Signature") {
                        links.push(words);
                    }
                }
            }
            links
        }
    });
    // Who looks may be held back whenever a file is moved.
    for round in 0..20 {
        if round >= 3 && movers.load(Ordering::SeqCst) > 0 {
            break;
        }
        works(&cloud, &executor, dir.path()).await;
        std::fs::remove_dir_all(dir.path().join("into")).unwrap();
        std::fs::remove_dir_all(cloud.s3.file("doe/blobs")).unwrap();
        std::fs::create_dir(cloud.s3.file("doe/blobs")).unwrap();
    }
    over.store(true, Ordering::SeqCst);
    let links = looker.join().unwrap();
    assert_eq!(links, Vec::<String>::new());
    let movers = movers.load(Ordering::SeqCst);
    assert!(movers > 0, "it looked, and saw none that moves a file");
}

/// The policy of the documentation, for a bucket and a prefix of it.
fn documented() -> Policy {
    let text = std::fs::read_to_string(support::repository().join("docs/executors.md")).unwrap();
    let section = text.split("## The ssm executor").nth(1).unwrap();
    let block = section.split("```json").nth(1).unwrap();
    let text = block.split("```").next().unwrap();
    let text = text
        .replace("REGION", "us-east-1")
        .replace("ACCOUNT", "000000000000")
        .replace("BUCKET", BUCKET)
        .replace("PREFIX", "doe");
    Policy(serde_json::from_str(&text).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_policy_is_enough_and_not_too_much() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let policy = documented();
    let server = Server::start(Kind::Guarded);
    let (key, secret) = policy.user(&server);
    let cloud = Cloud::over(server, None);
    let dir = tempfile::tempdir().unwrap();
    // Signatures and rights are looked at by the S3 server, for us and for the hosts' links.
    let profile = format!("[lab]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    std::fs::write(cloud.credentials(), profile).unwrap();
    let executor = cloud.connect(&dir.path().join("root")).await;
    works(&cloud, &executor, dir.path()).await;
    let host = &cloud.specs()[1];
    // Who stops waiting takes a command back.
    let never = Sign::File(dir.path().join("never"));
    let asked = || cloud.endpoint.asked("GetCommandInvocation");
    let before = asked();
    // It knows its command when it asks how that goes.
    let sent = async {
        while asked() == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        seen = executor.await_sign(host, &never, PATIENCE) => panic!("{seen:?}"),
        () = sent => {}
    }
    cloud.endpoint.faults(|faults| faults.lose_answers = 1);
    executor.probe(host).await.unwrap();
    for _ in 0..1200 {
        if cloud.endpoint.asked("CancelCommand") > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // All that was done is allowed, as IAM judges it, and all that is allowed was done.
    let uses = cloud.endpoint.uses();
    for (action, resource) in &uses {
        assert!(
            policy.allows(&cloud.s3, action, resource),
            "{action} {resource}"
        );
    }
    let done: Vec<&str> = uses.iter().map(|(action, _)| action.as_str()).collect();
    for action in policy.actions().iter().filter(|a| a.starts_with("ssm:")) {
        assert!(done.contains(&action.as_str()), "{action} is not needed");
    }
    // What nobody needs is not allowed.
    let document = "arn:aws:ssm:us-east-1::document/";
    let machine = "arn:aws:ec2:us-east-1:000000000000:instance/i-1";
    for (action, resource) in [
        (
            "ssm:SendCommand",
            &*format!("{document}AWS-RunPowerShellScript"),
        ),
        (
            "ssm:SendCommand",
            "arn:aws:ssm:us-east-1:000000000000:document/mine",
        ),
        (
            "ssm:SendCommand",
            "arn:aws:ec2:eu-west-1:000000000000:instance/i-1",
        ),
        (
            "ssm:SendCommand",
            "arn:aws:ec2:us-east-1:111111111111:instance/i-1",
        ),
        ("ssm:StartSession", machine),
        (
            "ssm:GetParameter",
            "arn:aws:ssm:us-east-1:000000000000:parameter/secret",
        ),
        ("ec2:TerminateInstances", machine),
        ("iam:PassRole", "*"),
        ("sts:AssumeRole", "*"),
        ("s3:ListBucket", &*format!("arn:aws:s3:::{BUCKET}")),
        ("s3:PutBucketPolicy", &*format!("arn:aws:s3:::{BUCKET}")),
        (
            "s3:PutObjectAcl",
            &*format!("arn:aws:s3:::{BUCKET}/doe/blobs/x"),
        ),
        ("s3:GetObject", "arn:aws:s3:::another/doe/blobs/x"),
    ] {
        let allowed = policy.allows(&cloud.s3, action, resource);
        assert!(!allowed, "{action} {resource}");
    }
    // Instances without the tag are out of reach: the condition is not met.
    let tagged = policy.0["Statement"].as_array().unwrap().iter();
    let mut tagged = tagged.filter(|s| s["Resource"].as_str().unwrap().contains(":ec2:"));
    let like = &tagged.next().unwrap()["Condition"]["StringLike"];
    assert!(like["ssm:resourceTag/doe-host"].is_string());
    assert!(!policy.judged(&cloud.s3, "ssm:SendCommand", machine));
    // The same with real requests to the bucket.
    let client = policy::client(&cloud.s3, &key, &secret);
    let put = async |name: &str| {
        let body = aws_sdk_s3::primitives::ByteStream::from_static(b"x");
        let request = client.put_object().bucket(BUCKET).key(name).body(body);
        request
            .send()
            .await
            .map_err(|e| e.into_service_error().meta().code().map(str::to_owned))
    };
    put("doe/blobs/x").await.unwrap();
    let denied = Some("AccessDenied".to_owned());
    assert_eq!(put("other/x").await.unwrap_err(), denied);
    let gone = client.delete_object().bucket(BUCKET).key("doe/blobs/x");
    let error = gone.send().await.unwrap_err().into_service_error();
    assert_eq!(error.meta().code().map(str::to_owned), denied);
    let list = client.list_objects_v2().bucket(BUCKET);
    let error = list.send().await.unwrap_err().into_service_error();
    assert_eq!(error.meta().code().map(str::to_owned), denied);
}

#[test]
fn credentials_come_by_the_usual_chain_and_are_told_nowhere() {
    let Some(_told) = rig::own("ssm") else {
        return;
    };
    let cloud = Cloud::up(None);
    let workspace = Workspace::empty();
    let mut text = format!(
        "[platform.cloud]\nexecutor = \"ssm\"\nprobe = \"probe.net\"\nroles = {{ \"*\" = \"{}\" }}\n\
         ssm = {{ bucket = \"s3://{BUCKET}/doe\", tag = \"doe\", root = \"{}\", patience = \"20s\" }}\n",
        cloud.hosts.name(1),
        workspace.path().join("hosts").display(),
    );
    for number in [1, 2] {
        let (name, address) = (cloud.hosts.name(number), cloud.hosts.address(number));
        text.push_str(&format!(
            "[platform.cloud.host.{name}]\naddress = \"{address}\"\n"
        ));
    }
    workspace.write("doe.toml", &text);
    workspace.write(
        "rules/probe.toml",
        "[net]\nkind = \"probe\"\nfact.kernel_name = { run = \"uname -s\" }\n",
    );
    let secret = "a-secret-that-nobody-tells";
    let with = |pairs: &[(&str, &str)]| {
        let home = workspace.path().join("home");
        let mut command = workspace.command(&["probe", "--platform", "cloud", "--json"]);
        command
            .env("HOME", &home)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL_SSM", cloud.endpoint.url())
            .env("AWS_ENDPOINT_URL_S3", &cloud.s3_endpoint)
            .envs(pairs.iter().copied());
        let output = command.output().unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let right = [
        ("AWS_ACCESS_KEY_ID", cloud.s3.key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", &cloud.s3.secret),
    ];
    let (code, said) = with(&right);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = with(&[right[0], ("AWS_SECRET_ACCESS_KEY", secret)]);
    assert_eq!(code, Some(4), "{said}");
    assert!(
        said.contains("SignatureDoesNotMatch") && !said.contains(secret),
        "{said}"
    );
    // A role's: the third part goes along, and nowhere else.
    let session = "a-session-that-nobody-tells";
    with(&[right[0], right[1], ("AWS_SESSION_TOKEN", session)]);
    // None: said as such, and not looked for any longer.
    let (code, said) = with(&[("AWS_EC2_METADATA_DISABLED", "true")]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("no usable credentials"), "{said}");
    // A profile of the usual file.
    let file = format!(
        "[lab]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        cloud.s3.key, cloud.s3.secret
    );
    workspace.write("home/.aws/credentials", &file);
    let (code, said) = with(&[("AWS_PROFILE", "lab")]);
    assert_eq!(code, Some(0), "{said}");
    std::fs::remove_dir_all(workspace.path().join("home")).unwrap();
    // Neither they nor a link is in what is kept, here or on the hosts.
    for told in [secret, session, "X-Amz-Signature", "aws_secret_access_key"] {
        let mut grep = std::process::Command::new("grep");
        let found = grep
            .args(["-rlIF", told])
            .arg(workspace.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(found.stdout).unwrap(), "", "{told}");
    }
}
