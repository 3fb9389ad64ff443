//! Real S3 servers on loopback, each with an empty bucket, and what stands between them and us.
//! `.ci/s3-servers` installs them; a test without its server fails and says so.
#![allow(dead_code)] // each test file uses its own part

pub mod proxy;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const BUCKET: &str = "campaigns";

/// Servers that the tests know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Conditional puts are atomic; signatures are not looked at.
    MiniStack,
    /// The same with two instances that its Systems Manager runs commands on.
    Instances,
    /// The same, and everybody's rights and signatures are looked at.
    Guarded,
    /// Signatures and checksums are verified; several concurrent writers may win.
    S3sFs,
    /// Signatures and checksums are verified; conditional puts are ignored. Takes long to build,
    /// so it is used where it is at hand.
    Garage,
}

impl Kind {
    /// All that are at hand; those that CI installs must be.
    pub fn all() -> Vec<Kind> {
        let mut all = vec![Kind::MiniStack, Kind::S3sFs];
        all.extend(garage().map(|_| Kind::Garage));
        all
    }
}

/// Where `.ci/s3-servers` puts the servers.
fn installed(path: &str) -> PathBuf {
    let base = match std::env::var_os("DOE_S3_SERVERS") {
        Some(base) => PathBuf::from(base),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/s3-servers"),
    };
    base.join(path)
}

fn needed(path: &str) -> PathBuf {
    let path = installed(path);
    assert!(
        path.exists(),
        "{} is missing: `.ci/s3-servers` installs the S3 servers that this test needs",
        path.display()
    );
    path
}

fn garage() -> Option<PathBuf> {
    let path = installed("bin/garage");
    path.exists().then_some(path)
}

/// A port that nobody listens on; somebody else may be quicker, so starting is tried again.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A running server; it ends with this.
pub struct Server {
    pub kind: Kind,
    pub port: u16,
    pub key: String,
    pub secret: String,
    dir: tempfile::TempDir,
    child: Child,
}

impl Server {
    pub fn start(kind: Kind) -> Self {
        for _ in 0..5 {
            if let Some(server) = Self::try_start(kind) {
                server.make_bucket();
                return server;
            }
        }
        panic!("{kind:?} does not start");
    }

    fn try_start(kind: Kind) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let (mut key, mut secret) = ("test".to_owned(), "testtest".to_owned());
        let mut command = match kind {
            Kind::MiniStack | Kind::Instances | Kind::Guarded => {
                let mut command = Command::new(needed("venv/bin/python"));
                if kind == Kind::Instances {
                    // It signs links with this one.
                    secret = "test".into();
                    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
                    command
                        .arg(manifest.join("tests/rigs/ministack_instances.py"))
                        .arg("2");
                } else {
                    command.args(["-m", "ministack"]);
                }
                if kind == Kind::Guarded {
                    // Who may everything has this one.
                    secret = "test".into();
                    command.env("AUTH", "true");
                }
                command
                    .env("GATEWAY_PORT", port.to_string())
                    .env("BIND_HOST", "127.0.0.1")
                    .env("IOT_MTLS_ENABLED", "0")
                    .env("SFTP_ENABLED", "0")
                    .env("TMPDIR", dir.path());
                command
            }
            Kind::S3sFs => {
                let root = dir.path().join("root");
                std::fs::create_dir_all(root.join(BUCKET)).unwrap();
                let mut command = Command::new(needed("bin/s3s-fs"));
                command
                    .args(["--host", "127.0.0.1", "--port", &port.to_string()])
                    .args(["--access-key", &key, "--secret-key", &secret])
                    .arg(root);
                command
            }
            Kind::Garage => {
                key = "GK00112233445566778899aabb".into();
                secret = "00112233445566778899aabbccddeeff".repeat(2);
                let path = dir.path().display();
                let config = format!(
                    "metadata_dir = \"{path}/meta\"\ndata_dir = \"{path}/data\"\n\
                     db_engine = \"sqlite\"\nreplication_factor = 1\n\
                     rpc_bind_addr = \"127.0.0.1:{rpc}\"\nrpc_public_addr = \"127.0.0.1:{rpc}\"\n\
                     rpc_secret = \"{:064}\"\n[s3_api]\ns3_region = \"us-east-1\"\n\
                     api_bind_addr = \"127.0.0.1:{port}\"\nroot_domain = \".s3.localhost\"\n",
                    7,
                    rpc = free_port(),
                );
                std::fs::write(dir.path().join("garage.toml"), config).unwrap();
                let mut command = Command::new(garage().unwrap());
                command
                    .arg("server")
                    .env("GARAGE_CONFIG_FILE", dir.path().join("garage.toml"));
                command
            }
        };
        let log = std::fs::File::create(dir.path().join("server.log")).unwrap();
        let child = command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self {
            kind,
            port,
            key,
            secret,
            dir,
            child,
        };
        server.is_up().then_some(server)
    }

    fn is_up(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if http(self.port, "GET", "/").is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn make_bucket(&self) {
        match self.kind {
            Kind::S3sFs => {}
            Kind::MiniStack | Kind::Instances => {
                let answer = http(self.port, "PUT", &format!("/{BUCKET}")).unwrap();
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
            Kind::Guarded => {
                self.signed("s3", &format!("/{BUCKET}"), &["-X", "PUT"]);
            }
            Kind::Garage => {
                let node = self.garage(&["node", "id", "-q"]);
                let node = node.trim().split('@').next().unwrap().to_owned();
                for args in [
                    &["layout", "assign", "-z", "z1", "-c", "1G", &node][..],
                    &["layout", "apply", "--version", "1"],
                    &[
                        "key",
                        "import",
                        "--yes",
                        "-n",
                        "test",
                        &self.key,
                        &self.secret,
                    ],
                    &["bucket", "create", BUCKET],
                    &[
                        "bucket", "allow", BUCKET, "--read", "--write", "--key", "test",
                    ],
                ] {
                    self.garage(args);
                }
            }
        }
    }

    /// A request of who may everything, with these arguments of `curl`; what was answered.
    pub fn signed(&self, service: &str, path: &str, args: &[&str]) -> String {
        let output = Command::new("curl")
            .args([
                "-sSf",
                "--aws-sigv4",
                &format!("aws:amz:us-east-1:{service}"),
            ])
            .args(["--user", &format!("{}:{}", self.key, self.secret)])
            .args(args)
            .arg(format!("http://127.0.0.1:{}{path}", self.port))
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn garage(&self, args: &[&str]) -> String {
        let output = Command::new(garage().unwrap())
            .args(args)
            .env("GARAGE_CONFIG_FILE", self.dir.path().join("garage.toml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "garage {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Files of the bucket, for servers that keep objects as files of the same name.
    pub fn file(&self, name: &str) -> PathBuf {
        assert_eq!(self.kind, Kind::S3sFs);
        self.dir.path().join("root").join(BUCKET).join(name)
    }

    /// What the server said of itself.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By its own handle; it has no children.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One plain request; nothing when nobody answers.
fn http(port: u16, method: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = Vec::new();
    // A server that closes roughly has answered all the same.
    let _ = stream.read_to_end(&mut answer);
    (!answer.is_empty()).then(|| String::from_utf8_lossy(&answer).into_owned())
}
