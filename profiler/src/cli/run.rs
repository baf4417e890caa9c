//! `perjoule run`: the agent as a service. Serves `/metrics` until SIGINT or SIGTERM; reads its
//! configuration again at SIGHUP.

mod notify;

use std::env;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};

use anyhow::{Result, bail};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::notify::Notifier;
use super::serving::{Door, open_web};
use super::settings::{Record, Target};
use super::{EXIT_USAGE, logging, usage};
use crate::agent::config::{
    Config, ConfigError, HindsightWindow, SERVICE_CPU_BUDGET, SERVICE_LISTEN,
};
use crate::agent::{Agent, Answer, HindsightOptions, Options as AgentOptions};
use crate::export::Aliases;
use crate::export::http::{ListenAddress, SaveHindsight};

const EXAMPLES: &str = "\
Examples:
  perjoule run                                             /metrics on port 27182 of every address
  perjoule run --listen 127.0.0.1:27182 --port 8000        one service, for this machine alone
  perjoule run --record night.pj --state /var/tmp/s.json   keep what is booked, and the totals";

/// What to watch and where to serve it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    record: Record,
    /// Keep the last minutes on disk (a number, or 90s, 10m, 1h). After an event, signal SIGUSR2 or, from this
    /// machine, `POST /hindsight/save` saves them as a recording
    #[arg(long, value_name = "MINUTES")]
    hindsight: Option<HindsightWindow>,
    /// After which file the last minutes' are named [default: hindsight.pj in $STATE_DIRECTORY]
    #[arg(long, value_name = "FILE")]
    hindsight_file: Option<PathBuf>,
    /// Where /metrics is served: ADDRESS:PORT, :PORT for every address, unix:/PATH; may be repeated
    /// [default: :27182]
    #[arg(long, visible_alias = "web.listen-address", value_name = "ADDRESS")]
    listen: Vec<ListenAddress>,
    /// TLS, client certificates and passwords for /metrics: a web configuration file as Prometheus'
    /// exporters take it
    #[arg(long = "web.config.file", value_name = "FILE")]
    web_config_file: Option<PathBuf>,
    /// Show a few metrics under others' names too: otel (OpenTelemetry), or none [default: none]
    #[arg(long, value_name = "NAMES")]
    aliases: Option<Aliases>,
    /// Keep the totals in this file, and go on from them at the start, also after a kill
    /// [default: state.json in $STATE_DIRECTORY, which systemd sets]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
}

/// Runs until a signal.
pub(super) fn run(file: Option<&Path>, verbose: u8, options: Options) -> Result<ExitCode> {
    let config = match settings(&options, file, verbose) {
        Ok(config) => config,
        Err(error) => return Ok(usage(&error, EXIT_USAGE)),
    };
    logging::start(&config, false);
    let mut notifier = Notifier::from_env();
    let listen = match options.listen.clone() {
        told if told.is_empty() => config.listen.clone().unwrap_or(vec![SERVICE_LISTEN]),
        told => told,
    };
    let web_config = options
        .web_config_file
        .clone()
        .or(config.web_config_file.clone());
    let web = match open_web(web_config) {
        Ok(web) => web,
        Err(error) => return Ok(usage(&error, EXIT_USAGE)),
    };
    let hindsight = match hindsight(&options, &config) {
        Ok(hindsight) => hindsight,
        Err(error) => return Ok(usage(&error, EXIT_USAGE)),
    };
    let about_web = web.as_ref().map(ToString::to_string);
    let door = Door::open(&listen, web)?;
    let signals = {
        let _inside = door.enter();
        Signals::new()?
    };
    notifier.check_watchdog(config.intervals.publish);
    let keeps = hindsight.is_some();
    let mut agent = Agent::start(AgentOptions {
        config,
        recording: options.record.record.clone(),
        hindsight,
        state: options
            .state
            .clone()
            .or_else(|| in_state_directory("state.json")),
        requests_required: false,
        on_gpus: true,
        per_thread: false,
        summary: false,
        command: false,
        live: false,
    })?;
    for url in door.urls()? {
        log::info!("metrics on {url}");
    }
    if let Some(web) = about_web {
        log::info!("who reads the metrics: {web}");
    }

    let (tell, told) = mpsc::channel();
    let asked = tell.clone();
    let save: Option<SaveHindsight> = keeps.then(|| {
        let save: SaveHindsight = Arc::new(move |answer| {
            let answer: Answer = Box::new(|saved| {
                // Who asked may have left.
                let _ = answer.send(saved);
            });
            // Nobody listens any more: the answer is dropped, which the asker sees.
            let _ = asked.send(Told::Save(answer));
        });
        save
    });
    let serving = door.serve(agent.exposition(), save, async move {
        signals.tell(&tell).await;
    })?;
    notifier.ready();
    let name = loop {
        match told.recv_timeout(agent.period()) {
            Ok(Told::End(name)) => break name,
            Ok(Told::Reload) => {
                notifier.reloading();
                reload(&mut agent, settings(&options, file, verbose));
                notifier.ready();
            }
            Ok(Told::Save(answer)) => agent.save_hindsight(answer),
            Err(RecvTimeoutError::Timeout) => {
                agent.tick();
                notifier.alive(agent.published(), || agent.status());
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that serves /metrics ended"),
        }
    };
    log::info!("{name}: draining");
    notifier.stopping();
    let finished = agent.finish();
    serving.end()?;
    Ok(match finished.records {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn settings(options: &Options, file: Option<&Path>, verbose: u8) -> Result<Config, ConfigError> {
    let is_recorded = options.record.record.is_some();
    let hindsight = |config: &Config| options.hindsight.or(config.hindsight);
    let keeps_stacks = |config: &Config| is_recorded || hindsight(config).is_some();
    let mut config = options.target.config(file, verbose, keeps_stacks)?;
    config.hindsight = hindsight(&config);
    config.aliases = options.aliases.unwrap_or(config.aliases);
    config.cpu_budget.get_or_insert(SERVICE_CPU_BUDGET);
    Ok(config)
}

/// Takes over what can change while the agent runs. What is not understood changes nothing.
fn reload(agent: &mut Agent, settings: Result<Config, ConfigError>) {
    let reloaded = match settings {
        Ok(config) => agent.reload(config),
        Err(error) => {
            log::error!("the configuration stays as it was: {error}");
            return;
        }
    };
    logging::set_level(agent.config(), false);
    let list = |keys: &[&str]| match keys {
        [] => "nothing".to_owned(),
        keys => keys.join(", "),
    };
    log::info!(
        "configuration read again: {} changed",
        list(&reloaded.applied)
    );
    if !reloaded.waiting.is_empty() {
        log::warn!(
            "these settings change with a restart: {}",
            list(&reloaded.waiting)
        );
    }
}

/// Where the last minutes are kept, if they are.
fn hindsight(options: &Options, config: &Config) -> Result<Option<HindsightOptions>, ConfigError> {
    let file = options.hindsight_file.clone();
    let Some(HindsightWindow(window)) = config.hindsight else {
        return match file {
            Some(_) => Err(ConfigError::HindsightUnasked),
            None => Ok(None),
        };
    };
    let file = file.or_else(|| in_state_directory("hindsight.pj"));
    let path = file.ok_or(ConfigError::HindsightNowhere)?;
    Ok(Some(HindsightOptions { path, window }))
}

/// Where systemd's `StateDirectory=` is; it may name several, and the first is ours.
fn in_state_directory(file: &str) -> Option<PathBuf> {
    let folders = env::var_os("STATE_DIRECTORY")?;
    Some(env::split_paths(&folders).next()?.join(file))
}

/// What a signal, or a client, asks for.
enum Told {
    /// To end; the signal's name.
    End(&'static str),
    /// To read the configuration again.
    Reload,
    /// To save the last minutes.
    Save(Answer),
}

/// The signals that the agent follows.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    save: Signal,
    /// Whoever closes the terminal it was started from means its end.
    has_terminal: bool,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            save: signal(SignalKind::user_defined2())?,
            has_terminal: io::stderr().is_terminal(),
        })
    }

    /// Tells each; returns behind one that ends the agent. Nobody listens any more where the agent
    /// has failed.
    async fn tell(mut self, tell: &Sender<Told>) {
        loop {
            let told = tokio::select! {
                _ = self.interrupt.recv() => Told::End("SIGINT"),
                _ = self.terminate.recv() => Told::End("SIGTERM"),
                _ = self.hang_up.recv() => match self.has_terminal {
                    true => Told::End("SIGHUP"),
                    false => Told::Reload,
                },
                // The log says what came of it.
                _ = self.save.recv() => Told::Save(Box::new(|_| ())),
            };
            let ends = matches!(told, Told::End(_));
            if tell.send(told).is_err() || ends {
                return;
            }
        }
    }
}
