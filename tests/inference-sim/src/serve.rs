//! Front and engine together: the front is the parent, the engine its child.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::front::{self, FrontConfig};

/// How long the engine may take to listen.
const ENGINE_START: Duration = Duration::from_secs(10);

/// A terminal's interrupt goes to front and engine alike, and the engine may be gone first.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// Serves HTTP at `listen` for the engine at `socket` until SIGTERM or SIGINT. With an `engine`
/// command, that is started first and ended last.
///
/// # Errors
/// The address or the socket cannot be used, or the engine ends by itself.
pub async fn run(
    listen: &str,
    socket: &Path,
    config: FrontConfig,
    engine: Option<std::process::Command>,
) -> anyhow::Result<()> {
    let mut stop = Stop::new()?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen at {listen}"))?;
    let mut child = engine.map(|command| start(command, socket)).transpose()?;
    let engine = tokio::select! {
        connected = connect(socket) => connected?,
        status = exited(child.as_mut()) => anyhow::bail!("the engine did not start: {status}"),
        () = stop.asked() => return end(child).await,
    };
    println!("listening on http://{}", listener.local_addr()?);
    // Dropping the front closes its socket to the engine, but not yet its connections: what is in
    // flight ends as "shutdown" and not as left by its client.
    let served = tokio::select! {
        served = front::run(listener, engine, config) => served,
        () = stop.asked() => Ok(()),
    };
    if served.is_err()
        && tokio::time::timeout(SAME_SIGNAL, stop.asked())
            .await
            .is_err()
    {
        end(child).await?;
        return served;
    }
    end(child).await
}

fn start(command: std::process::Command, socket: &Path) -> anyhow::Result<Child> {
    // A socket left by an earlier engine would be connected to in vain.
    let _ = std::fs::remove_file(socket);
    Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the engine")
}

async fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    let retry = async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(ENGINE_START, retry)
        .await
        .with_context(|| format!("no engine at {}", socket.display()))
}

async fn exited(child: Option<&mut Child>) -> String {
    match child {
        Some(child) => match child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        },
        None => pending().await,
    }
}

fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
        // SAFETY: sending a signal touches no memory; the child has not been waited for, so the
        // pid is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

async fn end(child: Option<Child>) -> anyhow::Result<()> {
    let Some(mut child) = child else {
        return Ok(());
    };
    terminate(&child);
    let status = child.wait().await?;
    anyhow::ensure!(status.success(), "the engine ended with {status}");
    Ok(())
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Where an engine listens for its front if nobody says otherwise: beside its state file.
pub fn default_socket(gpu_state: &Path) -> PathBuf {
    let mut name = gpu_state.as_os_str().to_owned();
    name.push(".engine");
    PathBuf::from(name)
}
