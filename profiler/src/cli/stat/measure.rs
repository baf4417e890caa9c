//! One measurement of `stat`: an agent from start to end, and the command meanwhile.

use std::future::pending;
use std::num::NonZeroU32;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at, sleep_until};

use super::Options;
use super::command::{self, Launcher, start_held};
use crate::agent::{Agent, Options as AgentOptions};
use crate::cli::logging;
use crate::report::Report;

/// Before the command: what it causes can only be told from idle if idle was seen. A server that is
/// busy by then leaves the floor unknown, and the figures say so by their bound.
const QUIET: Duration = Duration::from_secs(2);

/// After the command: the meters' next changes close the intervals of the last requests.
const SETTLE: Duration = Duration::from_millis(700);

/// What was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    /// With intervals, of the last one.
    pub(super) report: Report,
    /// What to exit with: the command's own code.
    pub(super) code: u8,
}

/// Where a measurement is; each has an end, but for counting.
enum Phase {
    Quiet(Instant),
    Counting(Option<Instant>),
    Settling(Instant),
}

/// Measures once. `each` is told every interval, if there are any: seconds from the start to its end, and its report.
pub(super) fn measure(
    file: Option<&Path>,
    verbose: u8,
    options: &Options,
    mut each: impl FnMut(f64, &Report) -> Result<()>,
) -> Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let command = &options.command;
        let mut target = options.target.clone();
        // A command that is itself counted must exist before its service can be found, and must
        // not run before its requests can be seen.
        let counts_command = !command.is_empty() && !target.names_services();
        let mut child = None;
        let mut held = None;
        if counts_command {
            let (started, hold) = start_held(command)?;
            if let Some(pid) = started.id().and_then(NonZeroU32::new) {
                target.add_pid(pid);
            }
            child = Some(started);
            held = hold;
        }
        let ends_with_target = command.is_empty() && target.names_only_processes();
        let config = target.config(file, verbose)?;
        logging::start(&config, true);
        let mut launcher = if command.is_empty() || child.is_some() {
            None
        } else {
            Some(Launcher::new(command)?)
        };
        let mut agent = Agent::start(AgentOptions {
            config,
            on_gpus: !target.names_services(),
            recording: target.record,
            state: None,
            requests_required: true,
            per_thread: options.per_thread,
            summary: true,
            command: !command.is_empty(),
            live: false,
        })?;
        let began = Instant::now();
        let mut ticks = interval(agent.period());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let length = options.interval.map(Duration::from_millis);
        let mut intervals = length.map(|length| interval_at(began + length, length));
        let quiet = match !command.is_empty() && agent.learns_a_floor() {
            true => QUIET,
            false => Duration::ZERO,
        };
        let mut phase = Phase::Quiet(began + quiet);
        let mut status = None;
        let mut over = false;
        let settle = || Phase::Settling(Instant::now() + SETTLE);
        loop {
            let counting = matches!(phase, Phase::Counting(_));
            let end = match phase {
                Phase::Quiet(end) | Phase::Settling(end) => Some(end),
                Phase::Counting(end) => end,
            };
            tokio::select! {
                _ = ticks.tick() => {
                    agent.tick();
                    if counting && ends_with_target && !agent.sees_processes() {
                        phase = settle();
                    }
                }
                () = next(intervals.as_mut()) => {
                    if let Some(part) = agent.cut() {
                        each(began.elapsed().as_secs_f64(), &part.report(options.full))?;
                    }
                }
                ended = wait(child.as_mut()), if counting => {
                    status = Some(ended?);
                    phase = settle();
                }
                () = until(end) => match phase {
                    Phase::Quiet(_) => {
                        if let Some(launcher) = launcher.take() {
                            child = Some(launcher.launch()?);
                        }
                        if let Some(held) = held.take() {
                            held.let_go();
                        }
                        let seconds = options.duration.map(Duration::from_secs);
                        phase = Phase::Counting(seconds.map(|length| Instant::now() + length));
                    }
                    Phase::Counting(_) => {
                        over = true;
                        phase = settle();
                    }
                    Phase::Settling(_) => break,
                },
                _ = interrupt.recv(), if counting => phase = settle(),
                _ = terminate.recv(), if counting => phase = settle(),
            }
        }
        if let (Some(child), None) = (child.as_mut(), status) {
            status = Some(command::end(child).await?);
        }
        let report = agent.finish()?.unwrap_or_default().report(options.full);
        if intervals.is_some() {
            each(began.elapsed().as_secs_f64(), &report)?;
        }
        Ok(Measured {
            report,
            code: status.filter(|_| !over).map_or(0, exit_code),
        })
    })
}

async fn next(intervals: Option<&mut Interval>) {
    match intervals {
        Some(intervals) => {
            intervals.tick().await;
        }
        None => pending().await,
    }
}

async fn wait(child: Option<&mut Child>) -> Result<ExitStatus> {
    match child {
        Some(child) => Ok(child.wait().await?),
        None => pending().await,
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => pending().await,
    }
}

/// The command's own code, or 128 + the signal that ended it, as a shell has it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
