//! `perjoule run`: the agent as a service. Serves `/metrics` until SIGINT or SIGTERM; reads its
//! configuration again at SIGHUP.

mod notify;

use std::env;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::notify::Notifier;
use super::settings::Target;
use super::{EXIT_USAGE, logging, usage};
use crate::agent::config::{Config, ConfigError, SERVICE_CPU_BUDGET, SERVICE_LISTEN};
use crate::agent::privileges::serving::{self, Files};
use crate::agent::{Agent, Options as AgentOptions};
use crate::export::http::{ListenAddress, Listener};
use crate::export::{self, Aliases, Web, WebError};

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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("http")
        .build()?;
    // Before anything is attached: a taken port leaves nothing behind.
    let (listeners, signals) = runtime.block_on(async {
        let mut listeners = Vec::new();
        for address in &listen {
            listeners.push(Listener::bind(address).await.with_context(|| {
                format!(
                    "cannot serve /metrics on {address}; is another agent running? try --listen"
                )
            })?);
        }
        anyhow::Ok((listeners, Signals::new()?))
    })?;
    // Taken away at the end by this thread, which may.
    let _files: Vec<_> = listeners.iter().filter_map(Listener::file).collect();
    notifier.check_watchdog(config.intervals.publish);
    let mut agent = Agent::start(AgentOptions {
        config,
        recording: options.target.record.clone(),
        state: options.state.clone().or_else(default_state),
        requests_required: false,
        on_gpus: true,
        per_thread: false,
        summary: false,
        command: false,
        live: false,
    })?;
    for listener in &listeners {
        let url = listener.url(web.as_ref().is_some_and(|web| web.is_tls()))?;
        log::info!("metrics on {url}");
    }
    if let Some(web) = &web {
        log::info!("who reads the metrics: {web}");
    }

    // Scrapes and signals wait on a thread of their own: an event loop that also ticks wakes
    // nearly three times a tick. It can do little else, see `serving`.
    let exposition = agent.exposition();
    let (tell, told) = mpsc::channel();
    let front = thread::Builder::new().name("http".into()).spawn(move || {
        let files = if web.is_some() {
            Files::Readable
        } else {
            Files::Closed
        };
        if let Err(error) = serving::confine(files) {
            log::warn!("the threads that serve /metrics are not confined: {error}");
        }
        runtime.block_on(export::http::serve(listeners, web, exposition, async {
            signals.tell(&tell).await;
        }));
        // A password that is being checked holds nobody up.
        runtime.shutdown_background();
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
    if front.join().is_err() {
        bail!("the thread that serves /metrics failed");
    }
    finished?;
    Ok(ExitCode::SUCCESS)
}

fn settings(options: &Options, file: Option<&Path>, verbose: u8) -> Result<Config, ConfigError> {
    let mut config = options.target.config(file, verbose)?;
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

/// Reads the web configuration, where there is one.
fn open_web(file: Option<PathBuf>) -> Result<Option<Arc<Web>>, WebError> {
    let open = |file: PathBuf| Web::open(&file).map(Arc::new);
    file.map(open).transpose()
}

/// Where systemd's `StateDirectory=` is; it may name several, and the first is ours.
fn default_state() -> Option<PathBuf> {
    let folders = env::var_os("STATE_DIRECTORY")?;
    Some(env::split_paths(&folders).next()?.join("state.json"))
}

/// What a signal asks for.
#[derive(Debug)]
enum Told {
    /// To end; the signal's name.
    End(&'static str),
    /// To read the configuration again.
    Reload,
}

/// The signals that the agent follows.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// Whoever closes the terminal it was started from means its end.
    has_terminal: bool,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
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
            };
            let ends = matches!(told, Told::End(_));
            if tell.send(told).is_err() || ends {
                return;
            }
        }
    }
}
