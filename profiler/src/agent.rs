//! The agent: wires sources to the ledger and the ledger to its sinks.
//!
//! In: [`Config`]. Out: what the sinks show. One thread (the caller's) drains the kernel side,
//! feeds the ledger and publishes; devices and /proc have threads of their own.

pub mod config;
mod probes;
mod sinks;
mod tokens;
mod watch;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use thiserror::Error;

use crate::clock::Timestamp;
use crate::export::Exposition;
use crate::finding::Finding;
use crate::ledger::{
    self, Booked, BookedRequest, Class, Component, CpuTime, Event, Ledger, Meter, MeterId, Owner,
    Route, ServiceId,
};
use crate::meters::{self, Discovery, News, Running};
use crate::probes::health::{ProgramHealth, Verdict};
use crate::probes::load_error::LoadError;
use crate::probes::requests::Observed;
use crate::recording::{Journal, JournalError};
use crate::report::Report;
use crate::services::{Selection, Service, Target};
use config::Config;
use probes::Probes;
use sinks::Sinks;
use tokens::Engines;
use watch::{Update, Watch};

/// The GPU's name when it is a simulator's.
const SIMULATED: &str = "(simulated)";

/// Between two reads of on-CPU time: no longer than a GPU counter's tick.
const CPU_PERIOD: Duration = Duration::from_millis(100);

/// After its last process a service's last requests and CPU time have long been told.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Why the agent cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Requests must be seen and cannot be.
    #[error("requests cannot be seen: {0}")]
    Requests(String),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A service chosen by hand is not there.
    #[error("{0}")]
    NoService(String),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// What the agent is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Settings.
    pub config: Config,
    /// Where everything booked is written, if anywhere.
    pub journal: Option<PathBuf>,
    /// True if measuring without seeing requests, or without a service named by hand, makes no
    /// sense.
    pub requests_required: bool,
    /// True if services are also found by their GPU contexts.
    pub on_gpus: bool,
}

/// A running agent. [`Self::finish`] ends it and books what is left.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    probes: Option<Probes>,
    watch: Watch,
    /// `None` where engines' metrics are not to be read.
    engines: Option<Engines>,
    /// By id.
    services: Vec<Service>,
    running: Option<Running>,
    news: Receiver<News>,
    ledger: Ledger,
    sinks: Sinks,
    meters: HashMap<MeterId, Meter>,
    /// When each GPU last said what it draws.
    power_read: HashMap<MeterId, Timestamp>,
    /// Since when services have no process, until they are forgotten.
    ended: HashMap<ServiceId, Timestamp>,
    observed: Vec<Observed>,
    lost_requests: u64,
    /// System calls already told, by service and class.
    syscalls: HashMap<(ServiceId, &'static str), u64>,
    began: Timestamp,
    cpu_read: Timestamp,
    published: Timestamp,
}

impl Agent {
    /// Finds meters and services, attaches probes, starts the sources' threads. What is absent is
    /// logged and left out.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let Options {
            config,
            journal,
            requests_required,
            on_gpus,
        } = options;
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

        let probes = match Probes::attach(config.syscalls, config.log_level) {
            Ok(probes) => Some(probes),
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

        let journal = journal
            .map(|path| Journal::create(&path, simulated))
            .transpose()?;
        let mut sinks = Sinks::new(journal, simulated);
        let mut ledger = Ledger::new(ledger::Config {
            requests: probes.as_ref().is_some_and(Probes::sees_requests),
            cpu: probes.as_ref().is_some_and(Probes::sees_cpu_time),
            ..ledger::Config::default()
        });
        let (watch, services, missing) =
            Watch::start(selection(&config, on_gpus), config.intervals.discover)?;
        if let Some(target) = missing.first() {
            let what = not_found(target);
            if requests_required {
                return Err(StartError::NoService(what));
            }
            log::warn!("{what}; it is looked for again every second");
        }

        let (sender, news) = mpsc::channel();
        let mut meters = HashMap::new();
        describe_gpus(&discovery, &mut sinks);
        let running = discovery.start(
            |mut meter| {
                if meter.component == Component::Gpu && meter.idle.is_none() {
                    meter.idle = config.idle_watts.of(&meter.device);
                }
                let id = ledger.add_meter(meter.clone());
                sinks.describe_meter(id, &meter);
                meters.insert(id, meter);
                id
            },
            sender,
        )?;

        // Before the first request can be seen, so that every token of it is counted.
        let engines = if config.engine_metrics {
            let chosen = config.services.ports.clone();
            Some(Engines::start(chosen, &services.services)?)
        } else {
            None
        };

        let now = Timestamp::now();
        let mut agent = Self {
            config,
            probes,
            watch,
            engines,
            services: Vec::new(),
            running: Some(running),
            news,
            ledger,
            sinks,
            meters,
            power_read: HashMap::new(),
            ended: HashMap::new(),
            observed: Vec::new(),
            lost_requests: 0,
            syscalls: HashMap::new(),
            began: now,
            cpu_read: now,
            published: now,
        };
        agent.take_services(services);
        agent.publish(now);
        Ok(agent)
    }

    /// What scrapes read.
    pub fn exposition(&self) -> Arc<Exposition> {
        self.sinks.metrics.exposition()
    }

    /// How often [`Self::tick`] wants to be called.
    pub const fn period(&self) -> Duration {
        self.config.intervals.drain
    }

    /// True if a GPU's idle floor is neither given nor known yet.
    pub fn learns_a_floor(&self) -> bool {
        self.meters.iter().any(|(id, meter)| {
            meter.component == Component::Gpu && self.ledger.floor(*id).is_none()
        })
    }

    /// True if any service has a process, as of the latest look.
    pub fn sees_processes(&self) -> bool {
        self.services.iter().any(|service| !service.pids.is_empty())
    }

    /// Takes what the sources have told and books what can be booked. Memory and channels only:
    /// it does not wait for anything.
    pub fn tick(&mut self) {
        while let Ok(news) = self.news.try_recv() {
            self.take_news(news);
        }
        while let Some(update) = self.watch.next() {
            self.take_services(update);
        }
        self.poll_requests();
        let now = Timestamp::now();
        if now.since(self.cpu_read) >= CPU_PERIOD.as_nanos() as u64 {
            self.cpu_read = now;
            self.read_cpu();
        }
        for booked in self.ledger.advance(now) {
            self.sinks.book(&booked);
        }
        if now.since(self.published) >= self.config.intervals.publish.as_nanos() as u64 {
            self.published = now;
            self.publish(now);
        }
    }

    /// Ends the sources, drains the kernel side a last time, closes every interval and returns
    /// the summary. Takes under a second; a source that hangs in a call is left behind.
    pub fn finish(mut self) -> Result<Report, JournalError> {
        if let Some(running) = self.running.take() {
            for name in running.stop() {
                log::warn!("the {name} thread hangs in a call and is left behind");
            }
        }
        self.tick();
        self.read_cpu();
        // After the last look at requests: all that ended until then is counted.
        if let Some(engines) = &mut self.engines {
            engines.finish(&mut self.sinks, &self.services);
        }
        let now = Timestamp::now();
        for booked in self.ledger.finish(now) {
            self.sinks.book(&booked);
        }
        self.sinks.summary.set_window(self.began, now);
        self.publish(now);
        match self.sinks.take_journal_error() {
            Some(error) => Err(error),
            None => Ok(self.sinks.summary.report()),
        }
    }

    fn take_news(&mut self, news: News) {
        match news {
            News::Event(event) => self.ledger.apply(event),
            News::Power { sample, instant } => {
                if let Some(meter) = self.meters.get(&sample.meter) {
                    self.power_read.insert(sample.meter, sample.at);
                    self.sinks
                        .metrics
                        .record_gpu_power(&meter.device, Some(sample.power));
                }
                if instant {
                    self.ledger.apply(Event::Power(sample));
                }
            }
            News::Processes(processes) => self.watch.tell(processes),
            News::State(state) => {
                self.sinks
                    .metrics
                    .record_source(state.name, state.up, state.last_at);
            }
        }
    }

    fn take_services(&mut self, update: Update) {
        let Update {
            services,
            changes,
            holders,
        } = update;
        let now = Timestamp::now();
        for service in services.iter().skip(self.services.len()) {
            log::info!(
                "service {}: {} processes, ports {:?}",
                service.name,
                service.pids.len(),
                service.ports()
            );
            let model = self.config.model.as_deref();
            self.sinks
                .describe_service(service.id, &service.name, model);
            if self.probes.as_ref().is_some_and(Probes::sees_cpu_time) {
                // Watched from here on: none so far is known, not unknown.
                self.sinks.cpu(&CpuTime {
                    owner: Owner::Service(service.id),
                    from: now,
                    to: now,
                    on_cpu: 0,
                });
            }
        }
        self.forget_ended(&services, now);
        self.services = services;
        if let Some(engines) = &mut self.engines {
            engines.watch(&self.services);
        }
        if let Some(probes) = &mut self.probes {
            for (pid, id) in changes.left {
                probes.leave(pid, id);
            }
            for (pid, id) in changes.joined {
                probes.join(pid, id);
            }
        }
        for holders in holders {
            self.sinks.hold(&holders);
            self.ledger.apply(Event::Holders(holders));
        }
    }

    fn take_engines(&mut self) {
        if let Some(engines) = &mut self.engines {
            engines.take_news(&mut self.sinks, &self.services);
        }
    }

    /// Gives back the kernel side's places of services that ended long ago; there are 253. One
    /// that comes back gets a new place.
    fn forget_ended(&mut self, services: &[Service], now: Timestamp) {
        let has_ended = |id: &ServiceId| {
            let service = services.get(id.0 as usize);
            service.is_some_and(|service| service.pids.is_empty())
        };
        self.ended.retain(|id, _| has_ended(id));
        for service in &self.services {
            if !service.pids.is_empty() && has_ended(&service.id) {
                self.ended.insert(service.id, now);
            }
        }
        let long_ago = |_: &ServiceId, since: &mut Timestamp| {
            now.since(*since) > FORGET_AFTER.as_nanos() as u64
        };
        for (id, _) in self.ended.extract_if(long_ago) {
            if let Some(probes) = &mut self.probes {
                probes.forget(id);
            }
        }
    }

    /// False for a hop inside a service (proxy to child): the same request a second time.
    fn is_outermost(&self, service: ServiceId, port: u16) -> bool {
        let Some(service) = self.services.get(service.0 as usize) else {
            return true;
        };
        let mut here = service
            .listeners
            .iter()
            .filter(|listener| listener.port == port)
            .peekable();
        // A listener that is not known yet is younger than the last look.
        here.peek().is_none() || here.any(|listener| !listener.inner)
    }

    fn poll_requests(&mut self) {
        let Some(probes) = &mut self.probes else {
            self.take_engines();
            return;
        };
        probes.poll_log();
        self.observed.clear();
        let until = probes.poll_requests(&mut self.observed);
        // The agent's own requests were told before a server could see them.
        self.take_engines();
        let Some(until) = until else {
            return;
        };
        let mut observed = std::mem::take(&mut self.observed);
        for seen in observed.drain(..) {
            let Observed {
                at, request, port, ..
            } = seen;
            let is_own = self.engines.as_mut().is_some_and(|all| all.follow(&seen));
            if is_own || !self.is_outermost(request.service, port) {
                continue;
            }
            if request.route == Route::Health {
                // Costs nobody energy; only its end is told.
                if request.end.is_some() {
                    self.sinks.book(&Booked::Request(BookedRequest {
                        request,
                        gpu: None,
                        cpu: None,
                        dram: None,
                        class: Class::C,
                        error_ratio: None,
                    }));
                }
                continue;
            }
            self.ledger.apply(Event::Request { at, request });
        }
        self.observed = observed;
        let lost = self
            .probes
            .as_ref()
            .map_or(0, |probes| probes.losses().requests());
        if lost > self.lost_requests {
            let count = lost - self.lost_requests;
            self.lost_requests = lost;
            self.ledger.apply(Event::RequestsLost { at: until, count });
        }
        self.ledger.apply(Event::RequestsUntil(until));
    }

    fn read_cpu(&mut self) {
        let Some(window) = self.probes.as_mut().and_then(Probes::read_cpu) else {
            return;
        };
        for (owner, on_cpu) in &window.owners {
            let time = CpuTime {
                owner: *owner,
                from: window.from,
                to: window.to,
                on_cpu: *on_cpu,
            };
            self.sinks.cpu(&time);
        }
        for event in window.events() {
            self.ledger.apply(event);
        }
    }

    fn publish(&mut self, now: Timestamp) {
        let metrics = &mut self.sinks.metrics;
        for (id, read) in &self.power_read {
            if let Some(meter) = self.meters.get(id)
                && now.since(*read) > meter.stale_after
            {
                metrics.record_gpu_power(&meter.device, None);
            }
        }
        if let Some(probes) = &mut self.probes {
            // One that nobody asked for is not down.
            let wanted = |program: &ProgramHealth| program.verdict != Verdict::Off;
            for program in probes.health().into_iter().filter(wanted) {
                metrics.record_probe(
                    program.program,
                    program.tier.name(),
                    program.verdict == Verdict::Ok,
                );
                if let Some(seconds) = program.seconds {
                    let nanos = (seconds * 1e9) as u64;
                    metrics.record_probe_cost(program.program, program.runs, nanos);
                }
            }
            let alive = self
                .services
                .iter()
                .filter(|service| !service.pids.is_empty());
            let alive: Vec<ServiceId> = alive.map(|service| service.id).collect();
            let counted = probes.read_syscalls(&alive);
            // One that comes back is counted from 0.
            self.syscalls
                .retain(|(id, _), _| counted.iter().any(|counts| counts.service == *id));
            for counts in counted {
                for (class, count) in counts.iter() {
                    let told = self
                        .syscalls
                        .entry((counts.service, class.name()))
                        .or_default();
                    metrics.record_syscalls(
                        counts.service,
                        class.name(),
                        count.saturating_sub(*told),
                    );
                    *told = count;
                }
            }
            let losses = probes.losses();
            for (reason, count) in losses.by_reason() {
                metrics.record_dropped(reason, count);
            }
            self.sinks
                .summary
                .set_losses(losses.events(), losses.requests());
        }
        // A counter's jump beyond what its device can draw; facts that came after their request
        // was booked.
        metrics.record_dropped("reading_refused", self.ledger.refused());
        metrics.record_dropped("request_fact_late", self.ledger.ignored());
        self.sinks.publish(now);
    }
}

/// Names and limits of GPUs, for info metrics.
fn describe_gpus(discovery: &Discovery, sinks: &mut Sinks) {
    let boards = discovery.nvml.iter().flat_map(|node| node.boards());
    for board in boards {
        let name = board.name.as_deref().unwrap_or("");
        let driver = board.driver.as_deref().unwrap_or("");
        sinks.metrics.record_gpu(&board.uuid, name, driver);
        sinks
            .metrics
            .record_gpu_power_limit(&board.uuid, board.enforced_limit);
    }
}

/// Looks at everything this agent would use, by trying it: the machine's requirements, each probe
/// (attached, and detached again), each meter.
pub fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = probes::examine(config.log_level);
    findings.extend(meters::discover(&meters_config(config)).findings);
    findings
}

/// Where meters are looked for.
fn meters_config(config: &Config) -> meters::Config {
    let mut meters = meters::Config::default();
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
