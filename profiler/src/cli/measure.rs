//! Measuring for a while, as `stat` and `record` do: until a command or every process that was named has ended,
//! the time is over, or a signal comes.

use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Result;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::command::{self, Launcher, start_held};
use super::serving::{Door, open_web};
use super::settings::Target;
use super::{EXIT_USAGE, logging, usage};
use crate::agent::config::{Unit, parse_span};
use crate::agent::{Agent, Options as AgentOptions};
use crate::export::http::ListenAddress;
use crate::report::{Report, Summary};

/// Before the command: what it causes can only be told from idle if idle was seen. A server that is
/// busy by then leaves the floor unknown, and the figures say so by their bound.
const QUIET: Duration = Duration::from_secs(2);

/// After the command: the meters' next changes close the intervals of the last requests.
const SETTLE: Duration = Duration::from_millis(700);

/// What is measured, and until when.
pub(super) struct Measure<'a> {
    /// The configuration file that was named.
    pub(super) file: Option<&'a Path>,
    pub(super) verbose: u8,
    pub(super) target: Target,
    /// Everything, also where a command is named that might be meant alone.
    pub(super) all: bool,
    pub(super) command: Vec<String>,
    pub(super) duration: Option<Duration>,
    pub(super) recording: Option<PathBuf>,
    pub(super) per_thread: bool,
    /// Where `/metrics` is served meanwhile.
    pub(super) listen: Vec<ListenAddress>,
}

/// What was measured.
pub(super) struct Measured {
    pub(super) summary: Summary,
    /// The command's own, where it ended by itself.
    pub(super) code: ExitCode,
}

/// Measures. `tick` is told each time the agent has taken in what there was, and may end it. Settings that make no
/// sense have been named, and are the code that is returned in place of figures.
pub(super) fn measure(
    measure: Measure<'_>,
    mut tick: impl FnMut(&mut Agent) -> ControlFlow<()>,
) -> Result<Result<Measured, ExitCode>> {
    let Measure {
        file,
        verbose,
        mut target,
        all,
        command,
        duration,
        recording,
        per_thread,
        listen,
    } = measure;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // A command that is itself measured must exist before its service can be found, and must
    // not run before its requests can be seen.
    let is_measured = !command.is_empty() && !target.names_services() && !all;
    let mut child = None;
    let mut held = None;
    if is_measured {
        let (started, hold) = start_held(&command)?;
        if let Some(pid) = started.id().and_then(NonZeroU32::new) {
            target.add_pid(pid);
        }
        child = Some(started);
        held = hold;
    }
    let ends_with_target = command.is_empty() && target.names_only_processes();
    let config = match target.config(file, verbose, recording.is_some()) {
        Ok(config) => config,
        Err(error) => return Ok(Err(usage(&error, EXIT_USAGE))),
    };
    logging::start(&config, true);
    let door = if listen.is_empty() {
        None
    } else {
        let web = match open_web(config.web_config_file.clone()) {
            Ok(web) => web,
            Err(error) => return Ok(Err(usage(&error, EXIT_USAGE))),
        };
        Some(Door::open(&listen, web)?)
    };
    let launcher = if command.is_empty() || child.is_some() {
        None
    } else {
        Some(Launcher::new(&command)?)
    };
    let mut agent = Agent::start(AgentOptions {
        config,
        on_gpus: !target.names_services(),
        recording,
        hindsight: None,
        state: None,
        requests_required: true,
        per_thread,
        summary: true,
        command: !command.is_empty(),
        live: false,
    })?;
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = None;
    if let Some(door) = door {
        for url in door.urls()? {
            eprintln!("perjoule: metrics on {url}");
        }
        let until = async {
            // An end without a word is one too.
            let _ = stopped.await;
        };
        serving = Some(door.serve(agent.exposition(), None, until)?);
    }

    let (status, over) = runtime.block_on(async {
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
        let end = duration.map(|duration| Instant::now() + duration);
        let mut status = None;
        let mut over = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    agent.tick();
                    let ended = ends_with_target && !agent.sees_processes();
                    if ended || tick(&mut agent).is_break() {
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
        anyhow::Ok((status, over))
    })?;
    let finished = agent.finish();
    // The last figures were shown; nobody waits for more.
    let _ = stop.send(());
    if let Some(serving) = serving {
        serving.end()?;
    }
    let own = status.filter(|_| !over).map_or(0, exit_code);
    let code = match (own, finished.records) {
        (0, false) => 1,
        _ => own,
    };
    Ok(Ok(Measured {
        summary: finished.summary.unwrap_or_default(),
        code: ExitCode::from(code),
    }))
}

/// Says so if there was nothing to measure.
pub(super) fn check_services(report: &Report) {
    if report.services.is_empty() {
        eprintln!(
            "perjoule: no service was found: no process that listens on TCP holds a GPU; name \
             one with --port, --pid or --name"
        );
    }
}

/// For how long, of `--duration`.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    parse_span(text, Unit::Second).map_err(|error| error.to_string())
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
fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
