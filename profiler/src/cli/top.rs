//! `perjoule top`: what is measured, as it is measured, on a terminal.

use std::env;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::settings::{Record, Target};
use super::{EXIT_USAGE, logging, usage};
use crate::agent::{Agent, Options as AgentOptions};
use crate::top::{Asked, Model, Theme, Ui, draw};

const EXAMPLES: &str = "\
Examples:
  perjoule top                 every service that holds a GPU
  perjoule top --port 8000     the service that listens there
  perjoule top --interval 5    drawn every five seconds, for slow lines
  perjoule top --record F      the same, and everything booked is kept in F

Keys are in its help (h). Where there is no terminal, use `perjoule stat`.";

/// What to look at.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    record: Record,
    /// Between two redraws, seconds; a key redraws at once [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    interval: Option<Duration>,
}

/// Looks on until `q` or a signal.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    if !io::stdout().is_terminal() {
        eprintln!(
            "perjoule: top draws on a terminal, and stdout is none; for pipes and files use \
             `perjoule stat`"
        );
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let Options {
        target,
        record: Record { record },
        interval,
    } = options;
    let config = match target.config(file, verbose, |_| record.is_some()) {
        Ok(config) => config,
        Err(error) => return Ok(usage(&error, EXIT_USAGE)),
    };
    // What is said meanwhile would stand in the middle of the screen.
    let log = logging::start_held(&config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut agent = Agent::start(AgentOptions {
        config,
        on_gpus: !target.names_services(),
        recording: record,
        hindsight: None,
        state: None,
        requests_required: true,
        per_thread: false,
        command: false,
        summary: false,
        live: true,
    })?;
    let every = interval.unwrap_or(Duration::from_secs(1));
    let shown = runtime.block_on(look_on(&mut agent, every, &log));
    // Also where the terminal is gone: a recording is to be whole.
    let finished = agent.finish();
    shown?;
    Ok(match finished.records {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn look_on(agent: &mut Agent, every: Duration, log: &logging::HeldLog) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut screen = Screen::open()?;
    let mut events = events()?;
    let mut redraws = interval(every);
    redraws.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tick = Instant::now();
    let mut ui = Ui::default();
    // What was on the screen when it was paused.
    let mut paused: Option<Model> = None;
    loop {
        let mut asked = Asked::Redraw;
        tokio::select! {
            () = sleep_until(tick) => {
                agent.tick();
                tick = Instant::now() + agent.period();
                continue;
            }
            _ = redraws.tick() => {}
            event = events.recv() => {
                let mut next = event;
                // The terminal is gone.
                if next.is_none() {
                    break;
                }
                asked = Asked::Nothing;
                while let (Some(event), Some(live)) = (next, agent.live()) {
                    match ui.take(&event, paused.as_ref().unwrap_or(live)) {
                        Asked::Nothing => {}
                        wanted => asked = wanted,
                    }
                    if asked == Asked::Quit {
                        break;
                    }
                    next = events.try_recv().ok();
                }
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hang_up.recv() => break,
        }
        match asked {
            Asked::Quit => break,
            Asked::Nothing => continue,
            Asked::Repaint => screen.terminal.clear()?,
            Asked::Redraw => {}
        }
        ui.warnings = log.count();
        let Some(live) = agent.live() else {
            break;
        };
        match (ui.paused, &paused) {
            (true, None) => paused = Some(live.clone()),
            (false, Some(_)) => paused = None,
            _ => {}
        }
        screen.show(paused.as_ref().unwrap_or(live), &ui)?;
    }
    Ok(())
}

/// The terminal, as it was again once this is dropped or the program fails.
struct Screen {
    terminal: DefaultTerminal,
    theme: Theme,
}

impl Screen {
    fn open() -> Result<Self> {
        // A value that is empty asks for nothing: no-color.org.
        let colours = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let opened = ratatui::try_init().inspect_err(|_| ratatui::restore());
        Ok(Self {
            terminal: opened.context("cannot draw on this terminal; is TERM set?")?,
            theme: Theme::new(colours),
        })
    }

    fn show(&mut self, model: &Model, ui: &Ui) -> Result<()> {
        let theme = self.theme;
        self.terminal.draw(|frame| draw(frame, model, ui, theme))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = self.terminal.show_cursor();
        let _ = ratatui::try_restore();
    }
}

/// Keys and sizes, read by a thread that ends with the program.
fn events() -> Result<UnboundedReceiver<Event>> {
    let (tell, told) = mpsc::unbounded_channel();
    thread::Builder::new().name("keys".into()).spawn(move || {
        while let Ok(event) = event::read() {
            if tell.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(told)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (0.1..=3_600.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "not a number of seconds from 0.1 to 3600".to_owned())
}
