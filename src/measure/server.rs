//! HTTP servers on threads of their own. A server that started answers on the address its handle
//! tells; dropping the handle stops it and waits until it is gone, so that no port and no thread
//! outlives its owner.

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};

/// How long answers that are under way may take when a server is told to stop.
const GRACE: Duration = Duration::from_secs(2);

/// A running server.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Blocks until SIGTERM or SIGINT, then stops the server.
    ///
    /// # Errors
    /// Infra, when the signals cannot be waited for.
    pub fn until_signal(self) -> Result<()> {
        wait_for_signal()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(()); // it may have ended already
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was printed where it happened
        }
    }
}

/// Blocks until SIGTERM or SIGINT.
///
/// # Errors
/// Infra, when the signals cannot be waited for.
pub fn wait_for_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let fail = |e: std::io::Error| Error::new(Kind::Infra, "signal", "no signals").cause(e);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(fail)?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).map_err(fail)?;
        let mut int = signal(SignalKind::interrupt()).map_err(fail)?;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        Ok(())
    })
}

/// Serves a router on a bound listener until the handle is dropped.
///
/// # Errors
/// Infra, when the threads cannot be started.
pub fn start(listener: TcpListener, router: Router, name: &str) -> Result<Running> {
    let fail =
        |e: std::io::Error| Error::new(Kind::Infra, "serve", "could not start the server").cause(e);
    let address = listener.local_addr().map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(fail)?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(fail)?
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let (closing, closed) = oneshot::channel::<()>();
            // A token must leave when it is written, not when the next one fills the segment.
            let listener = listener.tap_io(|stream| {
                let _ = stream.set_nodelay(true);
            });
            runtime.block_on(async move {
                let server = axum::serve(listener, router).with_graceful_shutdown(async move {
                    let _ = stopped.await; // a dropped handle stops it too
                    let _ = closing.send(());
                });
                let out_of_patience = async {
                    let _ = closed.await;
                    tokio::time::sleep(GRACE).await;
                };
                tokio::select! {
                    _ = server => {}
                    () = out_of_patience => {}
                }
            });
            runtime.shutdown_timeout(GRACE);
        })
        .map_err(fail)?;
    Ok(Running {
        address,
        stop: Some(stop),
        thread: Some(thread),
    })
}
