//! `perjoule run`: the agent as a service. Serves `/metrics` until SIGINT or SIGTERM.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::settings::{Target, start_log};
use super::{EXIT_USAGE, usage};
use crate::agent::config::SERVICE_LISTEN;
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
}

/// Runs until a signal.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    let config = match options.target.config(file, verbose) {
        Ok(config) => config,
        Err(error) => return Ok(usage(&error, EXIT_USAGE)),
    };
    start_log(&config, false);
    let listen = options.listen.or(config.listen).unwrap_or(SERVICE_LISTEN);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Before anything is attached: a taken port leaves nothing behind.
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot serve /metrics on {listen}; is another agent running? try --listen")
        })?;
        let address = listener.local_addr()?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut agent = Agent::start(AgentOptions {
            config,
            journal: options.target.journal,
            requests_required: false,
            on_gpus: true,
        })?;
        log::info!("metrics on http://{address}/metrics");

        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(export::http::serve(listener, agent.exposition(), async {
            // The sender is dropped at the end, which is the same sign.
            let _ = stopped.await;
        }));
        let name = loop {
            tokio::select! {
                () = sleep(agent.period()) => agent.tick(),
                _ = interrupt.recv() => break "SIGINT",
                _ = terminate.recv() => break "SIGTERM",
            }
        };
        log::info!("{name}: draining");
        drop(stop);
        let finished = agent.finish();
        server.await?;
        finished?;
        Ok(ExitCode::SUCCESS)
    })
}
