//! Commands over OpenSSH. One master connection a host carries everything; it is made before it
//! is needed and made again when it is gone. Nobody is ever asked for anything, a host whose key
//! is not known is not talked to, and no secret is ever an argument.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, Semaphore};

use super::call::{Broken, Input, Line, Raw, nonce};
use crate::error::{Error, Kind, Result};

/// How OpenSSH is called. What is not said here is as the user's own configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SshOptions {
    /// Another configuration file.
    pub config: Option<PathBuf>,
    /// User to log in as.
    pub user: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// File with the private key.
    pub identity: Option<PathBuf>,
    /// File with the hosts' keys.
    pub known_hosts: Option<PathBuf>,
    /// Hosts to go through, as for `ssh -J`.
    pub jump: Option<String>,
}

/// Commands that one connection carries at a time; servers allow ten sessions by default.
const SESSIONS: usize = 8;
/// A connection that is not used any more is closed after this time, whoever is still there.
const PERSIST_S: u32 = 60;

/// OpenSSH to a set of hosts.
pub struct Ssh {
    base: Vec<String>,
    control: PathBuf,
    hosts: HashMap<String, Host>,
}

struct Host {
    destination: String,
    sessions: Semaphore,
    /// Whether the master was seen alive and nobody has doubted it since.
    master: Mutex<bool>,
}

impl Ssh {
    /// Talks to hosts, given by name and destination.
    pub fn new(
        options: &SshOptions,
        hosts: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        // Sockets have short paths, and only we may reach them.
        let control = std::env::temp_dir().join(format!("doe-ssh-{}", &nonce()[..10]));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&control)
            .map_err(|e| Error::io("make the folder", &control, &e))?;
        let mut base: Vec<String> = Vec::new();
        if let Some(config) = &options.config {
            base.extend(["-F".into(), text(config)?]);
        }
        let mut set = |option: String| base.extend(["-o".to_owned(), option]);
        if let Some(user) = &options.user {
            set(format!("User={user}"));
        }
        if let Some(port) = options.port {
            set(format!("Port={port}"));
        }
        if let Some(identity) = &options.identity {
            set(format!("IdentityFile=\"{}\"", text(identity)?));
            set("IdentitiesOnly=yes".into());
        }
        if let Some(known) = &options.known_hosts {
            set(format!("UserKnownHostsFile=\"{}\"", text(known)?));
        }
        if let Some(jump) = &options.jump {
            set(format!("ProxyJump={jump}"));
        }
        for fixed in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "ConnectTimeout=10",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ForwardAgent=no",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            "RequestTTY=no",
            "RemoteCommand=none",
            "LogLevel=ERROR",
        ] {
            set(fixed.into());
        }
        set(format!("ControlPath=\"{}/%C\"", text(&control)?));
        let hosts = hosts.into_iter().map(|(name, destination)| {
            let host = Host {
                destination,
                sessions: Semaphore::new(SESSIONS),
                master: Mutex::new(false),
            };
            (name, host)
        });
        Ok(Self {
            base,
            control,
            hosts: hosts.collect(),
        })
    }

    fn host(&self, name: &str) -> std::result::Result<&Host, Broken> {
        self.hosts.get(name).ok_or_else(|| Broken {
            why: format!("there is no host `{name}`"),
            hopeless: true,
        })
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        command
            .args(&self.base)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Makes the master connection unless there is one.
    async fn connected(&self, host: &Host) -> std::result::Result<(), Broken> {
        let mut master = host.master.lock().await;
        if *master {
            return Ok(());
        }
        let persist = format!("ControlPersist={PERSIST_S}");
        let arguments = [
            "-o",
            "ControlMaster=auto",
            "-o",
            &persist,
            "--",
            &host.destination,
            "true",
        ];
        let output = self.command(&arguments).output().await.map_err(no_ssh)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Broken {
                hopeless: HOPELESS.iter().any(|sign| said.contains(sign)),
                why: match said.as_str() {
                    "" => format!("ssh to `{}` ended with {}", host.destination, output.status),
                    _ => said,
                },
            });
        }
        *master = true;
        Ok(())
    }

    /// A connection from the host to an address that it reaches, as a pair of pipes. `verbose`
    /// makes ssh say on its standard error when the connection was accepted.
    pub async fn forward(&self, host: &str, address: &str, verbose: bool) -> Result<Child> {
        let failed = |broken: Broken| {
            Error::new(
                Kind::Infra,
                "host-unreachable",
                format!("the host `{host}` cannot be reached"),
            )
            .cause(broken.why)
        };
        let found = self.host(host).map_err(failed)?;
        self.connected(found).await.map_err(failed)?;
        let level = if verbose {
            "LogLevel=DEBUG1"
        } else {
            "LogLevel=ERROR"
        };
        let mut command = Command::new("ssh");
        // The first mention of an option counts.
        command
            .args(["-o", level])
            .args(&self.base)
            .args([
                "-o",
                "ControlMaster=no",
                "-W",
                address,
                "--",
                &found.destination,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().map_err(|cause| failed(no_ssh(cause)))
    }
}

/// What no second try mends.
const HOPELESS: [&str; 5] = [
    "Host key verification failed",
    "Permission denied",
    "Bad configuration option",
    "Bad owner or permissions",
    "Too many authentication failures",
];

fn no_ssh(cause: std::io::Error) -> Broken {
    Broken {
        why: format!("could not run `ssh`: {cause}; install OpenSSH's client"),
        hopeless: true,
    }
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(['"', '\n']));
    text.map(str::to_owned).ok_or_else(|| {
        Error::new(
            Kind::Usage,
            "bad-path",
            format!("ssh cannot be given the path `{}`", path.display()),
        )
    })
}

impl Line for Ssh {
    fn run<'a>(
        &'a self,
        host: &'a str,
        command: &'a str,
        input: &'a Input,
        into: Option<&'a Path>,
    ) -> BoxFuture<'a, std::result::Result<Raw, Broken>> {
        async move {
            let host = self.host(host)?;
            self.connected(host).await?;
            let _session = host.sessions.acquire().await;
            let mut ssh =
                self.command(&["-o", "ControlMaster=no", "--", &host.destination, command]);
            run_child(&mut ssh, input, into).await
        }
        .boxed()
    }

    fn doubt<'a>(&'a self, host: &'a str) -> BoxFuture<'a, ()> {
        async move {
            let Ok(host) = self.host(host) else { return };
            let mut master = host.master.lock().await;
            let check = self.command(&["-O", "check", "--", &host.destination]);
            let alive = ended_well(check).await;
            *master = alive;
        }
        .boxed()
    }
}

async fn ended_well(mut command: Command) -> bool {
    let output = tokio::time::timeout(Duration::from_secs(10), command.output()).await;
    matches!(output, Ok(Ok(output)) if output.status.success())
}

/// Runs a program with an input and takes what it says.
pub(super) async fn run_child(
    command: &mut Command,
    input: &Input,
    into: Option<&Path>,
) -> std::result::Result<Raw, Broken> {
    let io = |what: &str, path: &Path, e: std::io::Error| Broken {
        why: format!("could not {what} `{}`: {e}", path.display()),
        hopeless: true,
    };
    match input {
        Input::None => command.stdin(Stdio::null()),
        Input::Bytes(_) => command.stdin(Stdio::piped()),
        Input::File(path) => command.stdin(Stdio::from(
            File::open(path).map_err(|e| io("read", path, e))?,
        )),
    };
    if let Some(path) = into {
        let file = File::create(path).map_err(|e| io("write", path, e))?;
        command.stdout(Stdio::from(file));
    }
    let mut child = command.spawn().map_err(no_ssh)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Input::Bytes(bytes)) = (stdin, input) {
            // Who does not read to the end says in the answer why.
            let _ = stdin.write_all(bytes).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.map_err(no_ssh)?;
    Ok(Raw {
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Drop for Ssh {
    fn drop(&mut self) {
        for host in self.hosts.values() {
            // Only a master that was made is worth a goodbye.
            if host.master.try_lock().is_ok_and(|master| *master) {
                let _ = std::process::Command::new("ssh")
                    .args(&self.base)
                    .args(["-O", "exit", "--", &host.destination])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
        }
        let _ = std::fs::remove_dir_all(&self.control);
    }
}
