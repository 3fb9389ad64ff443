//! Instances for tests: hosts that the endpoint of Systems Manager runs commands on, with a real
//! S3 server that they reach at this machine's address.
#![allow(dead_code)] // each test program uses its own part

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use doe::exec::HostSpec;
use doe::exec::remote::{RemoteExecutor, RemoteOptions};
use doe::exec::ssm::{Named, SsmOptions};

use crate::aws_endpoint::{Endpoint, Spec};
use crate::rig::Hosts;
use crate::s3::{BUCKET, Kind, Server};

/// See the module.
pub struct Cloud {
    pub endpoint: Endpoint,
    pub s3: Server,
    pub hosts: Hosts,
    pub s3_endpoint: String,
    dir: tempfile::TempDir,
    way: Option<tokio::runtime::Runtime>,
}

impl Cloud {
    /// Two instances. With `private` each has an empty folder of its own in that place.
    pub fn up(private: Option<&Path>) -> Self {
        Self::over(Server::start(Kind::S3sFs), private)
    }

    /// The same over this S3 server.
    pub fn over(s3: Server, private: Option<&Path>) -> Self {
        let hosts = Hosts::up(2, private);
        let way = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind((hosts.address(254).as_str(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        way.spawn(forward(listener, s3.port));
        let instances = (1..=2).map(|number| {
            let mut run = vec!["nsenter".to_owned()];
            match private {
                // Its sshd is in the mount namespace that has the private folder.
                Some(_) => {
                    let pid = hosts.dir().join(format!("sshd-{number}.pid"));
                    let pid = std::fs::read_to_string(pid).unwrap();
                    run.extend(["-t".into(), pid.trim().into(), "-n".into(), "-m".into()]);
                }
                None => run.push(format!("--net={}", hosts.netns(number).display())),
            }
            let path = hosts.dir().join("bin").display().to_string();
            run.extend([
                "env".to_owned(),
                format!("PATH={path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ]);
            Spec {
                id: instance(number),
                tags: HashMap::from([("doe".to_owned(), hosts.name(number))]),
                run,
            }
        });
        let endpoint = Endpoint::start(instances.collect());
        let dir = tempfile::tempdir().unwrap();
        let profile = format!(
            "[lab]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            s3.key, s3.secret
        );
        std::fs::write(dir.path().join("credentials"), profile).unwrap();
        Self {
            endpoint,
            s3,
            hosts,
            s3_endpoint: format!("http://{address}"),
            dir,
            way: Some(way),
        }
    }

    pub fn credentials(&self) -> PathBuf {
        self.dir.path().join("credentials")
    }

    pub fn specs(&self) -> [HostSpec; 2] {
        [1, 2].map(|number| HostSpec {
            name: self.hosts.name(number),
            address: self.hosts.address(number),
            gpus: 0,
        })
    }

    pub fn options(&self, intents: &Path) -> SsmOptions {
        SsmOptions {
            region: Some("us-east-1".into()),
            endpoint: Some(self.endpoint.url()),
            s3_endpoint: Some(self.s3_endpoint.clone()),
            profile: Some("lab".into()),
            credentials: Some(self.credentials()),
            prefix: "doe/".into(),
            answer: Duration::from_secs(5),
            ..SsmOptions::new(BUCKET.into(), intents.to_owned())
        }
    }

    pub async fn connect(&self, root: &Path) -> RemoteExecutor {
        self.try_connect(root, Duration::from_secs(60))
            .await
            .unwrap()
    }

    pub async fn try_connect(
        &self,
        root: &Path,
        patience: Duration,
    ) -> doe::error::Result<RemoteExecutor> {
        let options = self.options(&self.notes());
        self.connect_with(&options, root, patience).await
    }

    pub async fn connect_with(
        &self,
        options: &SsmOptions,
        root: &Path,
        patience: Duration,
    ) -> doe::error::Result<RemoteExecutor> {
        // One host by its id, one by its tag.
        let tag = Named::Tag {
            key: "doe".into(),
            value: self.hosts.name(2),
        };
        let named = [
            (self.hosts.name(1), Named::Id(instance(1))),
            (self.hosts.name(2), tag),
        ];
        let remote = RemoteOptions {
            root: root.to_str().unwrap().to_owned(),
            patience,
            grace: Duration::from_secs(4),
        };
        doe::exec::ssm::connect(options, &named, &remote, &self.specs()).await
    }

    /// Where what is submitted is written down.
    pub fn notes(&self) -> PathBuf {
        self.dir.path().join("intents")
    }

    /// What was written down and not done.
    pub fn intents(&self) -> usize {
        let entries = std::fs::read_dir(self.notes());
        entries.map_or(0, Iterator::count)
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(way) = self.way.take() {
            // Waiting is not allowed inside another runtime.
            way.shutdown_background();
        }
    }
}

pub fn instance(number: u32) -> String {
    format!("i-{number:017x}")
}

/// Hands connections on to a port of this machine.
async fn forward(listener: std::net::TcpListener, port: u16) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((mut client, _)) = listener.accept().await {
        tokio::spawn(async move {
            if let Ok(mut server) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
