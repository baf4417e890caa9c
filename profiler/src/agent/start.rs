//! How an agent starts: what is found, attached and refused, and what is said about it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use thiserror::Error;

use super::Agent;
use super::budget::Budget;
use super::config::{self, Config};
use super::engines::Engines;
use super::gpus::{self, Registry};
use super::hindsight::{HindsightOptions, LastMinutes};
use super::hops::Hops;
use super::host::Host;
use super::memory;
use super::pods::{self, Pods};
use super::privileges;
use super::probes::{self, Probes};
use super::sinks::Sinks;
use super::stacks::Stacks;
use super::state::{Keeper, State, StateError};
use super::threads::Threads;
use super::tokens::Tokens;
use super::watch::Watch;
use crate::clock::Timestamp;
use crate::finding::Finding;
use crate::ledger::{self, Ledger, Meter, MeterId, TypicalIdle};
use crate::meters;
use crate::meters::calibration::Calibrated;
use crate::probes::events::EventError;
use crate::probes::health::Verdict;
use crate::probes::load_error::LoadError;
use crate::recording::{Hindsight, Recording, RecordingError};
use crate::report::Summary;
use crate::services::{Selection, Target};
use crate::tokens::broker::{self, Broker};
use crate::top;

/// The GPU's name when it is a simulator's.
const SIMULATED: &str = "(simulated)";

/// Why the agent cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Requests must be seen and cannot be.
    #[error("requests cannot be seen: {0}")]
    Requests(String),
    /// A tracepoint that was named cannot be counted.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The recording cannot be written.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// What another agent left cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// A service chosen by hand is not there.
    #[error("{0}")]
    NoService(String),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// What is no longer needed cannot be given up.
    #[error("capabilities cannot be given up: {0}; allow capset(2) and prctl(2)")]
    Privileges(std::io::Error),
}

/// What the agent is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Settings.
    pub config: Config,
    /// Where everything booked is written, if anywhere.
    pub recording: Option<PathBuf>,
    /// Where the last minutes are kept, if they are.
    pub hindsight: Option<HindsightOptions>,
    /// Where the totals are left to the next agent, and taken from, if anywhere.
    pub state: Option<PathBuf>,
    /// True if measuring without seeing requests, or without a service named by hand, makes no
    /// sense.
    pub requests_required: bool,
    /// True if services are also found by their GPU contexts.
    pub on_gpus: bool,
    /// True if the report is to tell each thread's times.
    pub per_thread: bool,
    /// True if [`Agent::finish`] is to sum up: of every service that there was.
    pub summary: bool,
    /// True if a command was or will be started that may have to be ended.
    pub command: bool,
    /// True if the latest minutes are kept for [`Agent::live`].
    pub live: bool,
}

impl Agent {
    /// Finds meters and services, attaches probes, starts the sources' threads. What is absent is
    /// logged and left out.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let Options {
            config,
            recording,
            hindsight,
            state,
            requests_required,
            on_gpus,
            per_thread,
            summary,
            command,
            live,
        } = options;
        // The first thing: it is to hold nothing of the agent's.
        let broker = if config.engine_metrics {
            start_broker()
        } else {
            None
        };
        let left = match &state {
            Some(path) => State::load(path)?,
            None => None,
        };
        memory::give_back_what_is_freed();
        let discovery = meters::discover(&meters_config(&config));
        for finding in &discovery.findings {
            let fix = finding
                .fix
                .as_ref()
                .map_or_else(String::new, |fix| format!("; fix: {fix}"));
            log::info!("{}: {}{fix}", finding.id, finding.found);
        }
        let simulated = discovery.nvml.as_ref().is_some_and(|node| {
            node.boards().iter().any(|board| {
                board
                    .name
                    .as_deref()
                    .is_some_and(|name| name.contains(SIMULATED))
            })
        });

        let mut probes = match Probes::attach(&config) {
            Ok(mut probes) => {
                probes.attach_events(&config)?;
                Some(probes)
            }
            Err(error) if requests_required => return Err(StartError::Requests(told(&error))),
            Err(error) => {
                log::warn!(
                    "no kernel probe runs, requests are not seen: {}",
                    told(&error)
                );
                None
            }
        };
        if requests_required
            && let Some(probes) = &probes
            && !probes.sees_requests()
        {
            return Err(StartError::Requests(failed_programs(probes)));
        }

        let kept = hindsight.as_ref().map(|hindsight| &hindsight.path);
        let outputs: Vec<PathBuf> = recording
            .iter()
            .chain(&state)
            .chain(kept)
            .cloned()
            .collect();
        let recording = recording
            .map(|path| Recording::create(&path, "run", simulated))
            .transpose()?;
        let hindsight = hindsight
            .map(|HindsightOptions { path, window }| Hindsight::create(path, window, simulated))
            .transpose()?;
        // All is attached, and no thread has been started yet.
        let features = privileges::features(&config, probes.is_some(), command);
        let outputs: Vec<&Path> = outputs.iter().map(PathBuf::as_path).collect();
        privileges::give_up(&features, &outputs).map_err(StartError::Privileges)?;
        let summary = summary.then(|| Summary::new(simulated));
        let live = live.then(|| top::Model::new(simulated));
        let mut sinks = Sinks::new(recording, hindsight.map(LastMinutes::new), summary, live);
        if let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") {
            sinks.fact("kernel", release.trim());
        }
        sinks.metrics.set_series_budget(config.series_budget);
        sinks.metrics.set_aliases(config.aliases);
        sinks.sum_up(|summary| summary.expect_activity(config.cuda, config.pmc));
        let mut ledger = Ledger::new(ledger::Config {
            requests: probes.as_ref().is_some_and(Probes::sees_requests),
            cpu: probes.as_ref().is_some_and(Probes::sees_cpu_time),
            ..ledger::Config::default()
        });
        let (watch, services, missing) = Watch::start(
            selection(&config, on_gpus),
            &config.host_root,
            config.intervals.discover,
        )?;
        if let Some(target) = missing.first() {
            let what = not_found(target);
            if requests_required {
                return Err(StartError::NoService(what));
            }
            log::warn!("{what}; it is looked for again every second");
        }

        let (sender, news) = mpsc::channel();
        let mut meters: HashMap<MeterId, Meter> = HashMap::new();
        let mut calibrated: HashMap<MeterId, Calibrated> = HashMap::new();
        let mut typical: HashMap<String, TypicalIdle> = HashMap::new();
        for board in discovery.nvml.iter().flat_map(|node| node.boards()) {
            gpus::describe(board, &mut sinks);
            typical.extend(gpus::idle_of_model(board).map(|idle| (board.uuid.clone(), idle)));
        }
        let mut registry = Registry {
            config: &config,
            left: left.as_ref(),
            ledger: &mut ledger,
            sinks: &mut sinks,
            meters: &mut meters,
            calibrated: &mut calibrated,
        };
        let running = discovery.start(
            |meter| {
                let idle = typical.get(&meter.device).copied();
                registry.add(meter, idle)
            },
            sender,
        )?;

        for (id, meter) in &meters {
            if let (Some(package), Some(probes)) = (meters::package_of(meter), &probes)
                && probes.sees_package(package)
            {
                ledger.set_package(*id, package);
            }
        }
        if let Some(left) = left {
            log::info!("totals go on from those of the agent before");
            sinks.metrics.resume(left.totals);
        }
        for device in config.calibration.keys() {
            if meters.values().all(|meter| meter.device != *device) {
                log::warn!("the calibration of {device} corrects nothing: there is no such meter");
            }
        }

        let reader = probes.as_mut().and_then(Probes::take_stack_reader);
        let stacks = reader.map(Stacks::start).transpose()?;

        // Before the first request can be seen, so that every token of it is counted.
        let mut tokens = Tokens::default();
        if config.engine_metrics {
            let chosen = config.services.ports.clone();
            tokens.read_engines(chosen, &services.services, broker)?;
        }

        let now = Timestamp::now();
        let pods = Pods::new(&config.host_root);
        let budget = config.cpu_budget.and_then(Budget::new);
        let mut agent = Self {
            config,
            probes,
            watch,
            tokens,
            stacks,
            services: Vec::new(),
            pods,
            running: Some(running),
            news,
            ledger,
            sinks,
            meters,
            calibrated,
            power_read: HashMap::new(),
            broken: HashSet::new(),
            observed: Vec::new(),
            crowded: false,
            served: now,
            hops: Hops::default(),
            lost_requests: 0,
            budget,
            state: state.map(Keeper::start).transpose()?,
            host: Host::default(),
            engines: Engines::default(),
            threads: per_thread.then(Threads::default),
            swept: now,
            began: now,
            cpu_read: now,
            published: now,
        };
        agent.take_services(services, now);
        if let Some(probes) = &mut agent.probes {
            probes.pause_without_services();
        }
        agent.publish(now);
        Ok(agent)
    }
}

/// Looks at everything this agent would use, by trying it: the machine's requirements, each probe
/// (attached, and detached again), each meter.
pub fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = probes::examine(config.request_tier, config.log_level);
    findings.extend(privileges::examine(config));
    findings.extend(meters::examine(&meters_config(config)));
    findings.extend(pods::examine(&config.host_root));
    findings
}

/// `None` where other network namespaces cannot be entered.
fn start_broker() -> Option<Broker> {
    let held = rustix::thread::capabilities(None).ok()?.permitted;
    if !held.contains(broker::CAPABILITIES) {
        return None;
    }
    Broker::start()
        .inspect_err(|error| log::warn!("engines in containers are not asked: {error}"))
        .ok()
}

/// Where meters are looked for.
fn meters_config(config: &Config) -> meters::Config {
    let mut meters = meters::Config {
        node_power: config.node_power.clone(),
        ..meters::Config::default()
    };
    if !config.ipmi {
        meters.ipmi = None;
    }
    if let Some(library) = &config.nvml_library {
        meters.nvml_library = Some(library.clone().into());
    }
    meters
}

/// The cause and what to do about it, in one line.
fn told(error: &LoadError) -> String {
    format!("{error}; fix: {}", error.fix())
}

fn failed_programs(probes: &Probes) -> String {
    let failed = probes
        .health()
        .into_iter()
        .filter(|program| matches!(program.verdict, Verdict::Broken | Verdict::Unsupported));
    failed
        .map(|program| program.text)
        .collect::<Vec<_>>()
        .join("; ")
}

fn selection(config: &Config, on_gpus: bool) -> Selection {
    let config::Services { pids, ports, names } = &config.services;
    let targets: Vec<Target> = pids
        .iter()
        .map(|pid| Target::Pid(*pid))
        .chain(ports.iter().map(|port| Target::Port(*port)))
        .chain(names.iter().cloned().map(Target::Name))
        .collect();
    Selection { targets, on_gpus }
}

fn not_found(target: &Target) -> String {
    match target {
        Target::Pid(pid) => format!("no process {pid}; is it still running?"),
        Target::Port(port) => format!(
            "nothing listens on TCP port {port}; start the server first, or check `ss -ltn`"
        ),
        Target::Name(name) => {
            format!("no container, unit or program is called {name}; try --port or --pid")
        }
    }
}
