//! `perjoule run`: the agent as a service. Serves `/metrics` until SIGINT or SIGTERM.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::settings::{Target, start_log};
use super::{EXIT_USAGE, usage};
use crate::agent::config::{SERVICE_CPU_BUDGET, SERVICE_LISTEN};
use crate::agent::{Agent, Options as AgentOptions};
use crate::export;

/// What to watch and where to serve it.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    /// Where /metrics is served [default: 0.0.0.0:27182]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Keep the totals in this file, and go on from them at the start, also after a kill
    /// [default: state.json in $STATE_DIRECTORY, which systemd sets]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
}

/// Runs until a signal.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    let mut config = match options.target.config(file, verbose) {
        Ok(config) => config,
        Err(error) => return Ok(usage(&error, EXIT_USAGE)),
    };
    config.cpu_budget.get_or_insert(SERVICE_CPU_BUDGET);
    start_log(&config, false);
    let listen = options.listen.or(config.listen).unwrap_or(SERVICE_LISTEN);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Before anything is attached: a taken port leaves nothing behind.
    let (listener, signals) = runtime.block_on(async {
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot serve /metrics on {listen}; is another agent running? try --listen")
        })?;
        anyhow::Ok((listener, Signals::new()?))
    })?;
    let address = listener.local_addr()?;
    let mut agent = Agent::start(AgentOptions {
        config,
        recording: options.target.record,
        state: options.state.or_else(default_state),
        requests_required: false,
        on_gpus: true,
        per_thread: false,
    })?;
    log::info!("metrics on http://{address}/metrics");

    // Scrapes and signals wait on a thread of their own: an event loop that also ticks wakes
    // nearly three times a tick.
    let exposition = agent.exposition();
    let (tell, told) = mpsc::channel();
    let front = thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(export::http::serve(listener, exposition, async {
            let name = signals.next().await;
            // Nobody listens any more where the agent has failed.
            let _ = tell.send(name);
        }));
    })?;
    let name = loop {
        match told.recv_timeout(agent.period()) {
            Ok(name) => break name,
            Err(RecvTimeoutError::Timeout) => agent.tick(),
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that serves /metrics ended"),
        }
    };
    log::info!("{name}: draining");
    let finished = agent.finish();
    if front.join().is_err() {
        bail!("the thread that serves /metrics failed");
    }
    finished?;
    Ok(ExitCode::SUCCESS)
}

/// Where systemd's `StateDirectory=` is; it may name several, and the first is ours.
fn default_state() -> Option<PathBuf> {
    let folders = env::var_os("STATE_DIRECTORY")?;
    Some(env::split_paths(&folders).next()?.join("state.json"))
}

/// The signals that end the agent.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
