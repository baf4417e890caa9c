//! Measuring for a while, as `stat` and `record` do: until a command or every process that was named has ended,
//! the time is over, or a signal comes.

use std::future::pending;
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
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at, sleep_until};

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
#[derive(Clone)]
pub(super) struct Measure<'a> {
    /// The configuration file that was named.
    pub(super) file: Option<&'a Path>,
    pub(super) verbose: u8,
    pub(super) target: Target,
    /// Everything, also where a command is named that might be meant alone.
    pub(super) all: bool,
    pub(super) command: Vec<String>,
    pub(super) duration: Option<Duration>,
    /// Between two cuts of what is told.
    pub(super) interval: Option<Duration>,
    pub(super) recording: Option<PathBuf>,
    pub(super) per_thread: bool,
    /// Where `/metrics` is served meanwhile.
    pub(super) listen: Vec<ListenAddress>,
}

/// What happens meanwhile.
pub(super) enum News<'a> {
    /// The agent has taken in what there was.
    Tick(&'a Agent),
    /// An interval is over: seconds from the start to its end, and what was booked in it.
    Interval(f64, Summary),
}

/// What was measured.
pub(super) struct Measured {
    /// Of the last interval, where there are intervals.
    pub(super) summary: Summary,
    /// From start to end.
    pub(super) seconds: f64,
    /// What to exit with: the command's own code, where it ended by itself.
    pub(super) code: u8,
}

/// Where a measurement is; each has an end, but for counting.
enum Phase {
    Quiet(Instant),
    Counting(Option<Instant>),
    Settling(Instant),
}

impl Measure<'_> {
    /// Names settings that make no sense, before anything is started; what to exit with then.
    pub(super) fn refused(&self) -> Option<ExitCode> {
        let recording = self.recording.is_some();
        let config = match self.target.config(self.file, self.verbose, |_| recording) {
            Ok(config) => config,
            Err(error) => return Some(usage(&error, EXIT_USAGE)),
        };
        if self.listen.is_empty() {
            return None;
        }
        let opened = open_web(config.web_config_file);
        Some(usage(&opened.err()?, EXIT_USAGE))
    }
}

/// Measures once. `each` is told what happens meanwhile, and may end it.
pub(super) fn measure(
    measure: Measure<'_>,
    mut each: impl FnMut(News<'_>) -> Result<ControlFlow<()>>,
) -> Result<Measured> {
    let Measure {
        file,
        verbose,
        mut target,
        all,
        command,
        duration,
        interval: length,
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
    let config = target.config(file, verbose, |_| recording.is_some())?;
    logging::start(&config, true);
    let door = if listen.is_empty() {
        None
    } else {
        let web = open_web(config.web_config_file.clone())?;
        Some(Door::open(&listen, web)?)
    };
    let mut launcher = if command.is_empty() || child.is_some() {
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

    let began = Instant::now();
    let (status, over) = runtime.block_on(async {
        let mut ticks = interval(agent.period());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                    let ended = ends_with_target && !agent.sees_processes();
                    let unwanted = each(News::Tick(&agent))?.is_break();
                    if counting && (ended || unwanted) {
                        phase = settle();
                    }
                }
                () = next(intervals.as_mut()) => {
                    if let Some(part) = agent.cut() {
                        let unwanted = each(News::Interval(began.elapsed().as_secs_f64(), part))?.is_break();
                        if counting && unwanted {
                            phase = settle();
                        }
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
                        phase = Phase::Counting(duration.map(|length| Instant::now() + length));
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
        anyhow::Ok((status, over))
    })?;
    let finished = agent.finish();
    // The last figures were shown; nobody waits for more.
    let _ = stop.send(());
    if let Some(serving) = serving {
        serving.end()?;
    }
    let own = status.filter(|_| !over).map_or(0, exit_code);
    Ok(Measured {
        summary: finished.summary.unwrap_or_default(),
        seconds: began.elapsed().as_secs_f64(),
        code: match (own, finished.records) {
            (0, false) => 1,
            _ => own,
        },
    })
}

/// Says so if there was nothing to measure.
pub(super) fn check_services<'a>(reports: impl IntoIterator<Item = &'a Report>) {
    let mut reports = reports.into_iter();
    if reports.all(|report| report.services.is_empty()) {
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
