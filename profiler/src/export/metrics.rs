//! The writer's side: takes what was booked and what the sources say, and publishes snapshots.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::aliases::Aliases;
use super::exemplars::Moment;
use super::fold::{Finished, Folded, Leaving, SERIES_BUDGET, folded_route};
use super::histogram::SYSCALL;
use super::labels::{Names, OTHER, clean};
use super::process::{self, ProcessUse};
use super::saved::Saved;
use super::snapshot::{BeforeShown, Exposition, Snapshot};
use super::totals::{
    NodeTotals, ProbeCost, ServerReads, ServiceTotals, SourceCalls, SourceState, Totals,
};
use crate::clock::{self, Timestamp};
use crate::durations::Durations;
use crate::ids::Ids;
use crate::ledger::{
    Booked, BookedInterval, BookedRequest, Component, CpuTime, EngineInfo, EngineLoad, Floor,
    Meter, MeterId, Owner, ServiceId, Source, TokenDelta,
};
use crate::pods::{GpuPod, PodNames};
use crate::telemetry::GpuTelemetry;
use crate::units::{Ratio, Watts};
use crate::waits::Waits;

/// Every source asks at least so often, unless it says otherwise.
const USUAL_PACE: Duration = Duration::from_secs(2);

/// Services that nobody described.
const NOBODY: ServiceId = ServiceId(u32::MAX);

/// All metrics of one agent. One thread writes, [`Self::publish`] makes what scrapes read.
#[derive(Debug)]
pub struct Metrics {
    pub(super) totals: Totals,
    meters: HashMap<MeterId, MeterKey>,
    pub(super) services: Ids<ServiceId, ServiceKey>,
    /// Names under which nobody lives.
    pub(super) leaving: Vec<Leaving>,
    pub(super) series_budget: usize,
    /// Series as of the latest count, with room for services that came since.
    pub(super) series: Option<usize>,
    pub(super) process: ProcessUse,
    /// When this clock was zero, in milliseconds since the Unix epoch.
    unix_zero: u64,
    /// True once an interval has been booked.
    ready: bool,
    /// True once a snapshot has shown one.
    shows_figures: bool,
    pub(super) exposition: Arc<Exposition>,
}

#[derive(Debug)]
pub(super) struct ServiceKey {
    /// As it was told, so that telling it again does not count as one more folded name.
    name: String,
    pub(super) number: usize,
    reads: ServerReads,
}

#[derive(Debug, Clone)]
struct MeterKey {
    component: Component,
    device: String,
    source: Source,
}

impl Metrics {
    /// No series but the agent's own; `version` is the build's.
    pub fn new(version: &str) -> Self {
        Self {
            totals: Totals {
                version: version.to_owned(),
                aliases: Aliases::None,
                meters: BTreeMap::new(),
                nodes: BTreeMap::new(),
                service_names: Names::default(),
                services: Vec::new(),
                pods_folded: 0,
                finished: Finished::default(),
                folded: Folded::default(),
                gpus: BTreeMap::new(),
                gpu_pods: None,
                sources: BTreeMap::new(),
                probes: BTreeMap::new(),
                probe_costs: BTreeMap::new(),
                probes_thinned: BTreeMap::new(),
                dropped: BTreeMap::new(),
            },
            meters: HashMap::new(),
            services: Ids::default(),
            leaving: Vec::new(),
            series_budget: SERIES_BUDGET,
            series: None,
            process: process::read(process::start_seconds()),
            unix_zero: clock::unix_zero_millis(),
            ready: false,
            shows_figures: false,
            exposition: Arc::new(Exposition::default()),
        }
    }

    /// What [`super::http::serve`] serves.
    pub fn exposition(&self) -> Arc<Exposition> {
        Arc::clone(&self.exposition)
    }

    /// Shows a few families under others' names too.
    pub fn set_aliases(&mut self, aliases: Aliases) {
        self.totals.aliases = aliases;
    }

    /// Tells what a meter is; what is booked on a meter nobody described is not shown.
    pub fn describe_meter(&mut self, id: MeterId, meter: &Meter) {
        let key = MeterKey {
            component: meter.component,
            device: clean(&meter.device),
            source: meter.source,
        };
        self.totals
            .meters
            .entry((key.component, key.device.clone()))
            .or_default()
            .gain_error_ratio = meter.gain_error_ratio;
        self.meters.insert(id, key);
    }

    /// Tells a service's name and model, again when they change or it comes back. Services of one
    /// name share their series; a name that comes when the series budget is used up shares those of
    /// `other`.
    pub fn describe_service(&mut self, id: ServiceId, name: &str, model: Option<&str>) {
        let number = match self.services.get(&id) {
            Some(known) if known.name == name => known.number,
            _ => {
                let number = self.number_of_name(name);
                let key = ServiceKey {
                    name: name.to_owned(),
                    number,
                    reads: ServerReads::default(),
                };
                self.services.insert(id, key);
                number
            }
        };
        if let (Some(model), Some(service)) = (model, self.totals.service(number)) {
            service.model = Some(clean(model));
        }
    }

    /// Tells what Kubernetes calls a service's container, again when that changes.
    pub fn describe_pod(&mut self, id: ServiceId, names: &PodNames) {
        let Some(number) = self.services.get(&id).map(|service| service.number) else {
            return;
        };
        // What many share is in no pod.
        if self.totals.service_names.name(number) == OTHER {
            return;
        }
        let pod = clean_names(names);
        if let Some(service) = self.totals.service(number)
            && !service.enter(pod)
        {
            self.totals.pods_folded += 1;
        }
    }

    /// Which containers have which GPUs, as the kubelet said at `at`.
    pub fn record_gpu_pods(&mut self, at: Timestamp, pods: &[GpuPod]) {
        let cleaned = pods.iter().map(|pod| GpuPod {
            device: clean(&pod.device),
            resource: clean(&pod.resource),
            claim: clean_known(&pod.claim),
            names: clean_names(&pod.names),
        });
        self.totals.gpu_pods = Some((at, cleaned.collect()));
    }

    /// Takes what the ledger booked.
    pub fn book(&mut self, booked: &Booked) {
        match booked {
            Booked::Interval(interval) => self.book_interval(interval),
            Booked::Request(request) => self.book_request(request),
            Booked::Hole {
                meter, from, to, ..
            } => {
                if let Some(key) = self.meters.get(meter)
                    && let Some(totals) = self
                        .totals
                        .meters
                        .get_mut(&(key.component, key.device.clone()))
                {
                    totals.gap_nanos += to.since(*from);
                }
            }
        }
    }

    fn book_request(&mut self, booked: &BookedRequest) {
        let request = &booked.request;
        let Some(key) = self.key(request.service) else {
            return;
        };
        let (number, reads) = (key.number, key.reads);
        let route = if self.totals.service_names.name(number) == OTHER {
            folded_route(request.route)
        } else {
            request.route
        };
        let ended = request.end.map(|end| end.at).or(request.last_data);
        let moment = Moment {
            request: request.id,
            unix_millis: self.unix_zero + ended.unwrap_or(request.start).0 / 1_000_000,
        };
        if let Some(service) = self.totals.service(number) {
            service.book(booked, route, reads, moment);
        }
    }

    fn book_interval(&mut self, interval: &BookedInterval) {
        let Some(key) = self.meters.get(&interval.meter).cloned() else {
            return;
        };
        self.totals
            .meters
            .entry((key.component, key.device))
            .or_default()
            .book(key.source, interval);
        self.ready = true;
        for share in &interval.services {
            if let Some(service) = self.service(share.service) {
                let parts = service.here.energy.entry(key.component).or_default();
                parts.requests += share.requests;
                parts.overhead += share.overhead;
            }
        }
    }

    /// A service nobody described, or that was forgotten, is `unknown`: its joules are kept.
    pub(super) fn service(&mut self, id: ServiceId) -> Option<&mut ServiceTotals> {
        let number = self.key(id)?.number;
        self.totals.service(number)
    }

    fn key(&mut self, id: ServiceId) -> Option<&mut ServiceKey> {
        if self.services.contains_key(&id) {
            return self.services.get_mut(&id);
        }
        // One key for all: their ids may be any number.
        if !self.services.contains_key(&NOBODY) {
            self.describe_service(NOBODY, "", None);
        }
        self.services.get_mut(&NOBODY)
    }

    /// What an engine counted; from now on its streams' chunks are not.
    pub fn record_tokens(&mut self, delta: &TokenDelta) {
        let Some(key) = self.key(delta.service) else {
            return;
        };
        key.reads.input |= delta.input.is_some();
        key.reads.output |= delta.output.is_some();
        let number = key.number;
        if let Some(service) = self.totals.service(number) {
            service.count(delta);
        }
    }

    /// A service's engine counts no more: chunks are counted again.
    pub fn record_tokens_lost(&mut self, id: ServiceId) {
        if let Some(key) = self.services.get_mut(&id) {
            key.reads = ServerReads::default();
        }
    }

    /// Tokens a streamed chunk of a service holds, as learned.
    pub fn record_tokens_per_chunk(&mut self, id: ServiceId, ratio: f64) {
        // It is told of those too that have ended.
        if let Some(key) = self.services.get(&id)
            && let Some(service) = self.totals.service(key.number)
        {
            service.tokens_per_chunk = Some(ratio);
        }
    }

    /// What serves; a model it names is the service's.
    pub fn describe_engine(&mut self, info: &EngineInfo) {
        if let Some(service) = self.service(info.service) {
            service.engine = Some(clean(info.engine));
            service.engine_version = info.version.as_deref().map(clean);
            if let Some(model) = &info.model {
                service.model = Some(clean(model));
            }
        }
    }

    /// Requests in an engine at its latest read.
    pub fn record_engine_load(&mut self, load: &EngineLoad) {
        if let Some(service) = self.service(load.service) {
            service.engine_running = load.running;
            service.engine_waiting = load.waiting;
        }
    }

    /// On-CPU time of a service; other owners have no series.
    pub fn record_cpu(&mut self, cpu: &CpuTime) {
        if let Owner::Service(id) = cpu.owner
            && let Some(service) = self.service(id)
        {
            *service.cpu_nanos.get_or_insert_default() += cpu.on_cpu;
        }
    }

    /// `count` more system calls of a class.
    pub fn record_syscalls(&mut self, id: ServiceId, class: &'static str, count: u64) {
        if let Some(service) = self.service(id) {
            *service.syscalls.entry(Cow::Borrowed(class)).or_default() += count;
        }
    }

    /// Times of a class's calls that were timed.
    pub fn record_syscall_durations(
        &mut self,
        id: ServiceId,
        class: &'static str,
        durations: &Durations,
    ) {
        if durations.count() > 0
            && let Some(service) = self.service(id)
        {
            service
                .syscall_durations
                .entry(Cow::Borrowed(class))
                .or_default()
                .take_in(&SYSCALL, durations);
        }
    }

    /// `count` more page faults of a kind.
    pub fn record_page_faults(&mut self, id: ServiceId, kind: &'static str, count: u64) {
        if let Some(service) = self.service(id) {
            *service.page_faults.entry(Cow::Borrowed(kind)).or_default() += count;
        }
    }

    /// `count` more events of a tracepoint.
    pub fn record_tracepoint(&mut self, id: ServiceId, event: &str, count: u64) {
        if let Some(service) = self.service(id) {
            *service.tracepoints.entry(clean(event)).or_default() += count;
        }
    }

    /// What a service's threads waited for since this was told last.
    pub fn record_waits(&mut self, id: ServiceId, waits: &Waits) {
        if let Some(service) = self.service(id) {
            service.waits.get_or_insert_default().add(waits);
        }
    }

    /// `nanos` more in which a service's GPU starved for a reason.
    pub fn record_starved(&mut self, id: ServiceId, reason: &'static str, nanos: u64) {
        if let Some(service) = self.service(id) {
            *service.starved.entry(Cow::Borrowed(reason)).or_default() += nanos;
        }
    }

    /// A GPU's name and driver; `device` is its meter's.
    pub fn record_gpu(&mut self, device: &str, name: &str, driver: &str) {
        let gpu = self.totals.gpus.entry(clean(device)).or_default();
        gpu.name = clean(name);
        gpu.driver = clean(driver);
    }

    /// A GPU's latest power reading; `None` once it is stale.
    pub fn record_gpu_power(&mut self, device: &str, power: Option<Watts>) {
        let gpu = self.totals.gpus.entry(clean(device)).or_default();
        match power {
            Some(power) => gpu.power.add(power),
            None => gpu.power.end(),
        }
    }

    /// The idle floor the ledger takes for a GPU at present; `None` if it is not known.
    pub fn record_gpu_idle(&mut self, device: &str, floor: Option<Floor>) {
        self.totals.gpus.entry(clean(device)).or_default().idle = Some(floor);
    }

    /// What a GPU showed beside its energy, by its device's name.
    pub fn record_gpu_telemetry(&mut self, telemetry: GpuTelemetry) {
        let gpu = self
            .totals
            .gpus
            .entry(clean(&telemetry.device))
            .or_default();
        gpu.telemetry = Some(telemetry);
    }

    /// All critical errors of a GPU so far, by number.
    pub fn record_gpu_errors(&mut self, device: &str, counts: BTreeMap<u64, u64>) {
        self.totals.gpus.entry(clean(device)).or_default().errors = counts;
    }

    /// How busy services kept a GPU, as asked at `at`.
    pub fn record_gpu_utilization(
        &mut self,
        device: &str,
        busy: &BTreeMap<ServiceId, Ratio>,
        at: Timestamp,
    ) {
        let mut by_name: BTreeMap<usize, Ratio> = BTreeMap::new();
        for (service, part) in busy {
            if let Some(key) = self.services.get(service) {
                by_name.entry(key.number).or_default().0 += part.0;
            }
        }
        self.totals.gpus.entry(clean(device)).or_default().busy = (at, by_name);
    }

    /// What a meter of the whole machine has shown until now.
    pub fn record_node(&mut self, device: &str, totals: NodeTotals) {
        self.totals.nodes.insert(clean(device), totals);
    }

    /// Whether a source of readings works, and when it last gave one.
    pub fn record_source(&mut self, source: &'static str, up: bool, latest: Option<Timestamp>) {
        let state = self.source(source);
        (state.up, state.latest) = (up, latest);
    }

    fn source(&mut self, source: &'static str) -> &mut SourceState {
        let sources = &mut self.totals.sources;
        sources.entry(source).or_insert_with(|| SourceState {
            up: false,
            latest: None,
            every: USUAL_PACE,
            calls: None,
        })
    }

    /// How long a source lets pass between two asks, where that is more than two seconds.
    pub fn record_source_pace(&mut self, source: &'static str, every: Duration) {
        self.source(source).every = every.max(USUAL_PACE);
    }

    /// What a source's calls have cost so far.
    pub fn record_source_calls(&mut self, source: &'static str, calls: SourceCalls) {
        self.source(source).calls = Some(calls);
    }

    /// A source works no more; its latest reading stays the latest.
    pub fn record_source_down(&mut self, source: &'static str) {
        if let Some(state) = self.totals.sources.get_mut(source) {
            state.up = false;
        }
    }

    /// An optional probe was taken off because of the agent's cost.
    pub fn record_thinned(&mut self, probe: &'static str) {
        *self.totals.probes_thinned.entry(probe).or_default() += 1;
    }

    /// Whether a kernel program runs, and on which kind of hook.
    pub fn record_probe(&mut self, program: &'static str, tier: &'static str, up: bool) {
        self.totals.probes.insert((program, tier), up);
    }

    /// A kernel program's runs and run time since it was loaded.
    pub fn record_probe_cost(&mut self, program: &'static str, runs: u64, run_nanos: u64) {
        let cost = self.totals.probe_costs.entry(program).or_default();
        *cost = ProbeCost {
            runs: cost.runs.max(runs),
            run_nanos: cost.run_nanos.max(run_nanos),
        };
    }

    /// All events that this agent lost for a reason so far; tell 0 for each reason at start, so that the first
    /// loss is seen as an increase.
    pub fn record_dropped(&mut self, reason: &'static str, total: u64) {
        let reason = Cow::Borrowed(reason);
        let dropped = self.totals.dropped.entry(reason).or_default();
        dropped.own = total.max(dropped.own);
    }

    /// The sums so far, for another agent to go on from.
    pub fn save(&self) -> Saved {
        Saved::of(&self.totals)
    }

    /// Goes on from another agent's sums; before anything is told of services.
    pub fn resume(&mut self, saved: Saved) {
        saved.put_into(self);
        self.leave_restored();
    }

    /// True if an interval has been booked and no snapshot shows one yet.
    pub fn has_first_figures(&self) -> bool {
        self.ready && !self.shows_figures
    }

    /// Makes everything told so far visible to scrapes. `before_shown` is called by the first
    /// scrape, if any comes.
    pub fn publish(&mut self, now: Timestamp, before_shown: Option<BeforeShown>) {
        self.shows_figures = self.ready;
        self.process = process::read(self.process.start_seconds);
        self.unix_zero = clock::unix_zero_millis();
        for gpu in self.totals.gpus.values_mut() {
            gpu.power.settle(now);
        }
        self.fold(now);
        self.exposition.set(Snapshot::new(
            self.totals.clone(),
            self.process,
            now,
            self.ready,
            before_shown,
        ));
        self.count_scrapes_of_leaving(now);
    }
}

/// What is not known stays empty.
fn clean_known(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        clean(text)
    }
}

fn clean_names(names: &PodNames) -> PodNames {
    PodNames {
        namespace: clean_known(&names.namespace),
        pod: clean_known(&names.pod),
        container: clean_known(&names.container),
    }
}
