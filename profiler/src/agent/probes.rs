//! The kernel probes of one agent: loaded together, each failing alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::config::Config;
use crate::activity::{CudaCalls, HardwareCounts};
use crate::clock::Timestamp;
use crate::finding::{Finding, Status};
use crate::ledger::{Owner, ServiceId};
use crate::perf_event;
use crate::probes::cuda::CudaProbe;
use crate::probes::events::{EventError, EventName, EventProbe, ServiceEvents};
use crate::probes::guard;
use crate::probes::health::{ProgramHealth, Tier, Verdict};
use crate::probes::load_error::LoadError;
use crate::probes::loader::{Loader, Options};
use crate::probes::owners::Owners;
use crate::probes::pmc::{self, Pmc};
use crate::probes::requests::{Losses, Observed, RequestProbe};
use crate::probes::requirements;
use crate::probes::sched::{CpuWindow, Detail, SchedProbe, WaitLosses};
use crate::probes::stacks::{self, StackCounts, StackProbe, StackReader};
use crate::probes::syscalls::{GpuDevices, SyscallCounts, SyscallProbe};
use crate::probes::tls::{TlsLosses, TlsProbe};
use crate::probes::uprobes::StopCost;
use crate::services::routes::route;
use crate::waits::{ThreadTimes, Waits};

/// Whatever could be attached.
#[derive(Debug)]
pub(super) struct Probes {
    // Probes go before the loader, which detaches their programs.
    requests: Option<RequestProbe>,
    sched: Option<SchedProbe>,
    syscalls: Option<SyscallProbe>,
    tls: Option<TlsProbe>,
    events: Option<EventProbe>,
    cuda: Option<CudaProbe>,
    pmc: Option<Pmc>,
    stacks: Option<StackProbe>,
    /// Whether stacks of waits are taken.
    takes_waits: bool,
    stack_reader: Option<StackReader>,
    owners: Owners,
    /// Processes for whose services there is no place.
    unplaced: BTreeMap<u32, ServiceId>,
    loader: Loader,
}

impl Probes {
    /// Loads the object and attaches each probe. An error means that no probe can run at all.
    pub(super) fn attach(config: &Config) -> Result<Self, LoadError> {
        let mut options = Options::default();
        options.log_level = config.log_level;
        Owners::configure(&mut options);
        SchedProbe::configure(&mut options, perf_event::CYCLES);
        SchedProbe::follow_threads(&mut options, config.waits);
        RequestProbe::configure(&mut options);
        if !config.usage {
            RequestProbe::without_usage(&mut options);
        }
        if config.trace_ids {
            RequestProbe::with_trace_ids(&mut options);
        }
        if config.syscalls {
            let gpus = GpuDevices::find();
            SyscallProbe::configure(&mut options, config.syscall_timing, gpus);
        }
        if config.faults || !config.events.is_empty() {
            EventProbe::configure(&mut options);
        }
        if config.tls {
            TlsProbe::configure(&mut options);
        }
        if config.cuda {
            CudaProbe::configure(&mut options);
        }
        let wanted_stacks = config.wanted_stacks();
        if wanted_stacks.any() {
            StackProbe::configure(&mut options, wanted_stacks);
        }
        let mut loader = Loader::new(&options)?;
        let mut owners = Owners::attach(&mut loader)?;
        // The loader keeps each verdict for doctor, /metrics and the log. Requests come before
        // the scheduler: nobody's CPU time is booked while they test themselves.
        let requests = match RequestProbe::attach(&mut loader, &mut owners, config.request_tier) {
            Ok(mut probe) => {
                if config.trace_ids {
                    probe.read_trace_ids();
                }
                log::info!("requests: {}", probe.choice().story());
                if let Some(drawback) = probe.choice().drawback() {
                    log::warn!(
                        "requests: tier {}: {drawback}",
                        probe.choice().tier().name()
                    );
                }
                Some(probe)
            }
            Err(error) => {
                log::warn!("requests are not seen: {error}");
                None
            }
        };
        let mut sched = SchedProbe::attach(&mut loader, &owners, perf_event::CYCLES).ok();
        if config.waits != Detail::Nothing
            && let Some(probe) = &mut sched
        {
            // Its verdict is kept by the loader; on-CPU time is told without it.
            let _ = probe.attach_threads(&mut loader);
        }
        let syscalls = if config.syscalls {
            SyscallProbe::attach(&mut loader).ok()
        } else {
            None
        };
        let tls = if config.tls && requests.is_some() {
            TlsProbe::attach(&mut loader).ok()
        } else {
            None
        };
        let cuda = if config.cuda {
            let cuda = CudaProbe::attach(&mut loader);
            cuda.inspect_err(|error| log::warn!("CUDA launches are not counted: {error}"))
                .ok()
        } else {
            None
        };
        let pmc = if config.pmc {
            let pmc = Pmc::start(pmc::HARDWARE);
            pmc.inspect_err(|error| log::warn!("hardware counters: {error}"))
                .ok()
        } else {
            None
        };
        let stacks = if wanted_stacks.any() {
            // The loader keeps the verdict.
            StackProbe::attach(&mut loader, wanted_stacks).ok()
        } else {
            None
        };
        let (stacks, stack_reader) = stacks.unzip();
        loader.settle();
        Ok(Self {
            requests,
            sched,
            syscalls,
            tls,
            events: None,
            cuda,
            pmc,
            takes_waits: stacks.is_some() && wanted_stacks.off_cpu.is_some(),
            stacks,
            stack_reader,
            owners,
            unplaced: BTreeMap::new(),
            loader,
        })
    }

    /// Counts page faults and the tracepoints that the user named, if that is asked for.
    pub(super) fn attach_events(&mut self, config: &Config) -> Result<(), EventError> {
        if config.faults || !config.events.is_empty() {
            let probe = EventProbe::attach(&mut self.loader, config.faults, &config.events)?;
            self.events = Some(probe);
        }
        Ok(())
    }

    pub(super) fn sees_requests(&self) -> bool {
        self.requests.is_some()
    }

    pub(super) fn sees_cpu_time(&self) -> bool {
        self.sched.is_some()
    }

    /// True if the time on CPUs of this package is told.
    pub(super) fn sees_package(&self, package: u32) -> bool {
        self.sched
            .as_ref()
            .is_some_and(|sched| sched.knows_package(package))
    }

    /// From now on the process, and the children it makes, are the service's.
    pub(super) fn join(&mut self, pid: u32, service: ServiceId) {
        let inherited = self.owners.get(pid) == Owner::Service(service);
        if !self.owners.set(pid, Owner::Service(service)) {
            // The first is told, all are counted.
            if self.owners.refused() == 1 {
                log::warn!("process {pid} cannot be followed: there are too many services at once");
            }
            self.unplaced.insert(pid, service);
        } else {
            if let Some(tls) = &mut self.tls {
                tls.join(pid, service);
            }
            if let Some(sched) = &mut self.sched {
                sched.follow(&self.owners, service);
            }
            if let Some(cuda) = &mut self.cuda {
                cuda.join(pid, service);
            }
        }
        if let Some(pmc) = &mut self.pmc {
            pmc.join(pid, service, inherited);
        }
        if let Some(probe) = &mut self.requests
            && let Err(error) = probe.resume(&mut self.loader)
        {
            log::error!("requests are no longer seen: {error}");
        }
    }

    /// The process has ended or is another service's now; its number may be in use again.
    pub(super) fn leave(&mut self, pid: u32, service: ServiceId) {
        self.unplaced.remove(&pid);
        if self.owners.get(pid) == Owner::Service(service) {
            self.owners.set(pid, Owner::Other);
        }
        if let Some(tls) = &mut self.tls {
            tls.leave(pid, &self.owners);
        }
        if let Some(cuda) = &mut self.cuda {
            cuda.leave(pid);
        }
        if let Some(pmc) = &mut self.pmc {
            pmc.leave(pid);
        }
    }

    /// The services have ended: their places are free for others. Behind the last one the requests'
    /// hooks are taken off.
    pub(super) fn forget(&mut self, services: &[ServiceId]) {
        if let Some(sched) = &mut self.sched {
            for service in services {
                sched.forget(&self.owners, *service);
            }
        }
        self.owners.forget(services);
        for (pid, service) in std::mem::take(&mut self.unplaced) {
            self.join(pid, service);
        }
        self.pause_without_services();
    }

    /// How often a process could not be followed.
    pub(super) const fn refused(&self) -> u64 {
        self.owners.refused()
    }

    /// Takes the requests' hooks off while there is no service: nobody is slowed for nobody.
    pub(super) fn pause_without_services(&mut self) {
        if let Some(probe) = &mut self.requests
            && !self.owners.has_services()
        {
            probe.pause(&mut self.loader);
        }
    }

    /// Requests that changed since the last poll, and the moment up to which all is told; `None`
    /// without the probe.
    pub(super) fn poll_requests(&mut self, out: &mut Vec<Observed>) -> Option<Timestamp> {
        if let Some(tls) = &mut self.tls {
            tls.poll(&mut self.loader, &self.owners);
        }
        if let Some(cuda) = &mut self.cuda {
            cuda.poll(&mut self.loader);
        }
        let requests = self.requests.as_mut()?;
        requests.follow_rings(&mut self.loader);
        Some(requests.poll(&self.owners, route, out))
    }

    /// Whether a response was streaming at the last poll.
    pub(super) fn sees_streams(&self) -> bool {
        self.requests
            .as_ref()
            .is_some_and(RequestProbe::sees_streams)
    }

    /// On-CPU time since the last read; `None` without the probe.
    pub(super) fn read_cpu(&mut self) -> Option<CpuWindow> {
        Some(self.sched.as_mut()?.read(&self.owners))
    }

    /// What the threads of each service waited for since the last call.
    pub(super) fn read_waits(&mut self) -> Vec<(ServiceId, Waits)> {
        self.sched
            .as_mut()
            .map_or_else(Vec::new, SchedProbe::read_waits)
    }

    /// Frees what threads have left whose end was not seen. Asks /proc for each that has been still
    /// for ten seconds: to be called seldom.
    pub(super) fn sweep_threads(&mut self) {
        if let Some(sched) = &mut self.sched {
            sched.sweep_threads(Duration::from_secs(10));
        }
    }

    /// Every thread of a service.
    pub(super) fn threads(&self) -> Vec<ThreadTimes> {
        self.sched
            .as_ref()
            .map_or_else(Vec::new, SchedProbe::threads)
    }

    /// The threads of the processes that are wanted, and where each is found again.
    pub(super) fn places_of(&self, is_wanted: impl Fn(u32) -> bool) -> Vec<(usize, ThreadTimes)> {
        self.sched
            .as_ref()
            .map_or_else(Vec::new, |sched| sched.places_of(is_wanted))
    }

    /// One thread's times up to now; `None` once it has ended.
    pub(super) fn thread_at(&self, place: usize, tid: u32) -> Option<ThreadTimes> {
        self.sched.as_ref()?.thread_at(place, tid)
    }

    /// Switches at which no program ran; `None` where on-CPU time is not told.
    pub(super) fn unseen_switches(&self) -> Option<u64> {
        Some(self.sched.as_ref()?.unseen_switches())
    }

    /// What of threads could not be followed; `None` where none is.
    pub(super) fn wait_losses(&self) -> Option<WaitLosses> {
        self.sched.as_ref()?.wait_losses()
    }

    /// Calls by class of each service that was counted so far, since it first was; these services
    /// are counted from now on. Empty without the probe.
    pub(super) fn read_syscalls(&mut self, services: &[ServiceId]) -> Vec<SyscallCounts> {
        let Some(probe) = &mut self.syscalls else {
            return Vec::new();
        };
        let counts = probe.read();
        let refused = probe.set_services(&self.owners, services);
        if refused > 0 {
            log::debug!("system calls of {refused} services are not counted: no room");
        }
        counts
    }

    /// Takes off the next optional probe that runs, the one that is wanted least first, and returns
    /// its name; `why` is its verdict from now on. `None` if none is left.
    pub(super) fn thin(&mut self, why: &str) -> Option<&'static str> {
        let optional = [
            ("stacks", StackProbe::PROGRAMS),
            ("syscalls", SyscallProbe::PROGRAMS),
            ("events", EventProbe::PROGRAMS),
        ];
        let retired = |(probe, programs): &(&str, &[&'static str])| {
            let why = format!("{why}: {probe} are no longer seen");
            self.loader.retire(programs, &why)
        };
        if let Some(stacks) = &self.stacks
            && std::mem::take(&mut self.takes_waits)
        {
            log::warn!("{why}: stacks of waits are no longer taken");
            stacks.take_waits(false);
            return Some("off_cpu_stacks");
        }
        optional.into_iter().find(retired).map(|(probe, _)| probe)
    }

    /// Calls that should have been timed and were not, at most; `None` without the probe.
    pub(super) fn untimed_syscalls(&self) -> Option<u64> {
        self.syscalls.as_ref().map(SyscallProbe::untimed)
    }

    /// What happened in each service so far, and the tracepoints' names. Empty without the probe.
    pub(super) fn read_events(&mut self) -> (Vec<ServiceEvents>, Vec<EventName>) {
        match &mut self.events {
            Some(probe) => (probe.read(&self.owners), probe.named().to_vec()),
            None => (Vec::new(), Vec::new()),
        }
    }

    /// What services asked of their GPUs since the last read. Empty without the probe.
    pub(super) fn read_cuda(&mut self) -> Vec<CudaCalls> {
        let cuda = self.cuda.as_mut();
        cuda.map_or_else(Vec::new, |cuda| cuda.read(&self.owners))
    }

    /// Waits for GPUs that are in no figure; `None` without the probe.
    pub(super) fn cuda_untimed(&self) -> Option<u64> {
        self.cuda.as_ref().map(CudaProbe::untimed)
    }

    /// What hardware counted for services since the last read, and all threads so far whose counters
    /// could not be opened. `None` without counters.
    pub(super) fn read_pmc(&mut self) -> Option<(Vec<HardwareCounts>, u64)> {
        let pmc = self.pmc.as_mut()?;
        Some((pmc.read(), pmc.refused()))
    }

    /// What the request probe lost.
    pub(super) fn losses(&self) -> Losses {
        self.requests
            .as_ref()
            .map_or_else(Losses::default, RequestProbe::losses)
    }

    /// What the TLS probe lost; `None` without it.
    pub(super) fn tls_losses(&self) -> Option<TlsLosses> {
        self.tls.as_ref().map(TlsProbe::losses)
    }

    /// The end of the ring of stacks, once; `None` where none are sampled.
    pub(super) fn take_stack_reader(&mut self) -> Option<StackReader> {
        self.stack_reader.take()
    }

    /// What was sampled; `None` without the probe.
    pub(super) fn stack_counts(&self) -> Option<StackCounts> {
        self.stacks.as_ref().map(StackProbe::counts)
    }

    /// The service that a sample's index stands for.
    pub(super) fn sampled_service(&self, index: u8) -> Option<ServiceId> {
        match stacks::owner(&self.owners, index)? {
            Owner::Service(service) => Some(service),
            Owner::Other | Owner::Agent => None,
        }
    }

    /// Takes the timers off.
    pub(super) fn stop_stacks(&mut self) {
        if let Some(stacks) = &self.stacks {
            stacks.detach(&mut self.loader);
        }
    }

    pub(super) fn health(&self) -> Vec<ProgramHealth> {
        self.loader.health()
    }

    pub(super) fn poll_log(&mut self) {
        self.loader.poll_log();
    }
}

/// The machine's requirements, then each program's verdict from attaching it for a moment.
pub(super) fn examine(tier: Option<Tier>, log_level: log::LevelFilter) -> Vec<Finding> {
    let mut findings = requirements::check(Path::new("/"));
    if findings
        .iter()
        .any(|finding| finding.status == Status::Fail)
    {
        // Each failure says what to do; attaching would fail for the same reason.
        return findings;
    }
    let config = Config {
        syscalls: true,
        faults: true,
        tls: true,
        cuda: true,
        stacks: Some(stacks::DEFAULT_HERTZ),
        request_tier: tier,
        trace_ids: true,
        log_level,
        ..Config::default()
    };
    match Probes::attach(&config) {
        Ok(mut probes) => {
            // Each program's verdict is told below.
            let _ = probes.attach_events(&config);
            findings.extend(probes.requests.as_ref().map(chosen_tier));
            findings.extend(probes.tls.as_ref().map(|tls| tls_cost(tls.stop_cost())));
            findings.extend(probes.cuda.as_ref().map(|cuda| cuda_cost(cuda.stop_cost())));
            findings.push(pmc::examine(pmc::HARDWARE));
            let tried = |program: &ProgramHealth| program.verdict != Verdict::Off;
            let tried = probes.health().into_iter().filter(tried);
            findings.extend(tried.map(|program| {
                let id = format!("probe.{}", program.program);
                if program.verdict == Verdict::Ok {
                    return Finding::pass(id, format!("attached, tier {}", program.tier.name()));
                }
                let fix = "the other probes go on without it; a newer kernel may have it";
                Finding::of(id, Status::Warn, program.text, fix)
            }));
        }
        Err(error) => {
            let fix = "see the message; `perjoule doctor -v` says more";
            findings.push(Finding::of("probes", Status::Fail, error.to_string(), fix));
        }
    }
    findings
}

/// What reading TLS (`--tls`) would cost a service here.
fn tls_cost(cost: StopCost) -> Finding {
    let StopCost {
        emulated,
        stepped,
        returned,
    } = cost;
    Finding::pass(
        "tls",
        format!(
            "a call of a TLS library would cost {emulated} ns (where the kernel must step \
             {stepped} ns), its return {returned} ns; taken off above {:.0} % of a core",
            guard::LIMIT * 100.0
        ),
    )
}

/// What counting launches (`--cuda`) would cost a service here.
fn cuda_cost(cost: StopCost) -> Finding {
    let StopCost {
        emulated,
        stepped,
        returned,
    } = cost;
    Finding::pass(
        "cuda",
        format!(
            "a CUDA launch would cost {emulated} ns more (where the kernel must step {stepped} ns), \
             a wait's return {returned} ns; taken off above {:.0} % of a core",
            guard::LIMIT * 100.0
        ),
    )
}

/// The request probe's tier, and what another would do better.
fn chosen_tier(probe: &RequestProbe) -> Finding {
    const ID: &str = "requests.tier";
    let choice = probe.choice();
    if !choice.is_tested() {
        let fix = "bring up the loopback interface: ip link set lo up";
        return Finding::of(ID, Status::Warn, choice.story(), fix);
    }
    match choice.drawback() {
        None => Finding::pass(ID, choice.story()),
        Some(drawback) => Finding::of(ID, Status::Warn, choice.story(), drawback),
    }
}
