//! Looks at the network from a host, through the connection to it: nothing is needed there for it.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::call::Caller;
use super::ssh::Ssh;
use super::{Link, Pace};
use crate::error::{Error, Kind, Result};
use crate::exec::{HostSpec, look};

impl Link for Ssh {
    fn name(&self) -> &'static str {
        "ssh"
    }

    fn http<'a>(
        &'a self,
        _caller: &'a Caller,
        host: &'a HostSpec,
        url: &'a str,
        limit: Duration,
    ) -> BoxFuture<'a, Result<bool>> {
        async move { look::http_over(url, limit, |address| self.stream(host, address)).await }
            .boxed()
    }

    fn tcp<'a>(
        &'a self,
        _caller: &'a Caller,
        host: &'a HostSpec,
        address: &'a str,
    ) -> BoxFuture<'a, Result<bool>> {
        self.accepts(host, address).boxed()
    }

    fn pace(&self) -> Pace {
        Pace {
            gather: Duration::from_millis(5),
            first_cs: 50,
            last_cs: 1000,
            look_every: Duration::from_secs(15),
        }
    }
}

impl Ssh {
    /// A connection from the host to an address, for one look.
    async fn stream(&self, host: &HostSpec, address: String) -> Result<Option<look::Pipes>> {
        let mut child = self.forward(&host.name, &address, false).await?;
        let pipes = child.stdout.take().zip(child.stdin.take());
        Ok(pipes.map(|(from, to)| look::Pipes::new(from, to, child)))
    }

    /// Whether an address accepts a connection from the host. The master tells the moment it did.
    async fn accepts(&self, host: &HostSpec, address: &str) -> Result<bool> {
        use tokio::io::{AsyncBufReadExt, BufReader};
        let mut child = self.forward(&host.name, address, true).await?;
        let Some(stderr) = child.stderr.take() else {
            return Ok(false);
        };
        let mut lines = BufReader::new(stderr).lines();
        let seen = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("administratively prohibited") {
                    return Err(Error::new(
                        Kind::Infra,
                        "no-forwarding",
                        format!("the host `{}` allows no connections through it, so readiness by TCP or HTTP cannot be seen", host.name),
                    )
                    .hint("allow `AllowTcpForwarding` there, or let the rule wait for `listen`, `file` or `log`"));
                }
                if line.contains("master session id") {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        tokio::time::timeout(look::LIMIT, seen)
            .await
            .unwrap_or(Ok(false))
    }
}
