//! `perjoule stat`: like perf stat. One table at the end, or one line of JSON.

use std::num::NonZeroU32;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::settings::{Target, start_log};
use super::{EXIT_USAGE, print, usage};
use crate::agent::{Agent, Options as AgentOptions};

/// After the command: the meters' next changes close the intervals of the last requests.
const SETTLE: Duration = Duration::from_millis(700);

/// What to count, and for how long.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    /// One line of JSON, schema 1, as the last line on stdout
    #[arg(long)]
    json: bool,
    /// End after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
    /// Runs while counting. With --pid, --port or --name it only sets the time (a load generator,
    /// `sleep 10`); without, it is what is counted. Its exit code is kept
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Counts until the command ends, the time is over or a signal comes.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    let Options {
        mut target,
        json,
        duration,
        command,
    } = options;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // A command that is itself counted must exist before its service can be found.
        let counts_command = !command.is_empty() && !target.names_services();
        let mut child = None;
        if counts_command {
            let started = start(&command)?;
            if let Some(pid) = started.id().and_then(NonZeroU32::new) {
                target.add_pid(pid);
            }
            child = Some(started);
        }
        let config = match target.config(file, verbose) {
            Ok(config) => config,
            Err(error) => return Ok(usage(&error, EXIT_USAGE)),
        };
        start_log(&config, true);
        let mut agent = Agent::start(AgentOptions {
            config,
            on_gpus: !target.names_services(),
            journal: target.journal,
            requests_required: true,
        })?;
        if !command.is_empty() && child.is_none() {
            child = Some(start(&command)?);
        }

        let mut ticks = interval(agent.period());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = duration.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut status = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => agent.tick(),
                ended = wait(child.as_mut()) => {
                    status = Some(ended?);
                    break;
                }
                () = until(end) => break,
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            }
        }
        let settled = Instant::now() + SETTLE;
        while Instant::now() < settled {
            ticks.tick().await;
            agent.tick();
        }
        let report = agent.finish()?;
        if json {
            print(&(report.to_json()? + "\n"))?;
        } else {
            print(&report.to_table())?;
        }
        Ok(status.map_or(ExitCode::SUCCESS, exit_code))
    })
}

fn start(command: &[String]) -> Result<Child> {
    let (program, arguments) = command.split_first().context("no command")?;
    Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run `{program}`; is it spelt right and on PATH?"))
}

async fn wait(child: Option<&mut Child>) -> Result<ExitStatus> {
    match child {
        Some(child) => Ok(child.wait().await?),
        None => std::future::pending().await,
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// The command's own code, or 128 + the signal that ended it, as a shell has it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
