//! `perjoule stat`: like perf stat. One table at the end, or one line of JSON.

mod command;

use std::num::NonZeroU32;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::command::{Launcher, start_held};
use super::settings::Target;
use super::{EXIT_USAGE, logging, print, usage};
use crate::agent::{Agent, Options as AgentOptions};
use crate::report::FullEnergy;

/// Before the command: what it causes can only be told from idle if idle was seen. A server that is
/// busy by then leaves the floor unknown, and the figures say so by their bound.
const QUIET: Duration = Duration::from_secs(2);

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
    /// End after this many seconds; a command that still runs then is ended
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
    /// Also tell each thread's time on CPU, in the run queue and off CPU, and its switches
    #[arg(long)]
    per_thread: bool,
    #[command(flatten)]
    full: FullEnergy,
    /// Runs while counting, two seconds after it began where a GPU's idle power must be learned
    /// first. With --pid, --port or --name it only sets the time (a load generator,
    /// `sleep 10`); without, it is what is counted. Its exit code is kept
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Counts until the command or every process named ends, the time is over or a signal comes.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    let Options {
        mut target,
        json,
        duration,
        per_thread,
        full,
        command,
    } = options;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // A command that is itself counted must exist before its service can be found, and must
        // not run before its requests can be seen.
        let counts_command = !command.is_empty() && !target.names_services();
        let mut child = None;
        let mut held = None;
        if counts_command {
            let (started, hold) = start_held(&command)?;
            if let Some(pid) = started.id().and_then(NonZeroU32::new) {
                target.add_pid(pid);
            }
            child = Some(started);
            held = hold;
        }
        let ends_with_target = command.is_empty() && target.names_only_processes();
        let config = match target.config(file, verbose) {
            Ok(config) => config,
            Err(error) => return Ok(usage(&error, EXIT_USAGE)),
        };
        logging::start(&config, true);
        let launcher = if command.is_empty() || child.is_some() {
            None
        } else {
            Some(Launcher::new(&command)?)
        };
        let mut agent = Agent::start(AgentOptions {
            config,
            on_gpus: !target.names_services(),
            recording: target.record,
            state: None,
            requests_required: true,
            per_thread,
            summary: true,
            command: !command.is_empty(),
            live: false,
        })?;
        let mut ticks = interval(agent.period());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if !command.is_empty() && agent.learns_a_floor() {
            let quiet = Instant::now() + QUIET;
            while Instant::now() < quiet {
                ticks.tick().await;
                agent.tick();
            }
        }
        if let Some(launcher) = launcher {
            child = Some(launcher.launch()?);
        }
        if let Some(held) = held {
            held.let_go();
        }
        let end = duration.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut status = None;
        let mut over = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    agent.tick();
                    if ends_with_target && !agent.sees_processes() {
                        break;
                    }
                }
                ended = wait(child.as_mut()) => {
                    status = Some(ended?);
                    break;
                }
                () = until(end) => {
                    over = true;
                    break;
                }
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            }
        }
        let settled = Instant::now() + SETTLE;
        while Instant::now() < settled {
            ticks.tick().await;
            agent.tick();
        }
        if let (Some(child), None) = (child.as_mut(), status) {
            status = Some(command::end(child).await?);
        }
        let report = agent.finish()?.unwrap_or_default().report(full);
        if json {
            print(&(report.to_json()? + "\n"))?;
        } else {
            print(&report.to_table())?;
        }
        if report.services.is_empty() {
            eprintln!(
                "perjoule: no service was found: no process that listens on TCP holds a GPU; name \
                 one with --port, --pid or --name"
            );
        }
        Ok(match status {
            Some(status) if !over => exit_code(status),
            _ => ExitCode::SUCCESS,
        })
    })
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
