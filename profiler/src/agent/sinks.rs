//! Where booked values go: `/metrics`, the recording, the last minutes, the summary, the live view. Each sees the
//! same values in the same order.

mod host;

use std::collections::HashMap;

use self::host::Host;
use super::hindsight::LastMinutes;
use crate::activity::{CudaCalls, HardwareCounts};
use crate::clock::Timestamp;
use crate::export::{BeforeShown, Metrics};
use crate::ledger::{
    Booked, CpuTime, EngineInfo, Floor, Meter, MeterId, RequestId, ServiceId, TokenDelta, TraceId,
};
use crate::probes::stacks::{StackCounts, Wanted};
use crate::probes::syscalls::ClassCalls;
use crate::recording::{
    Hindsight, RecordedEngine, RecordedSample, RecordedWait, Recording, RecordingError, StackId,
};
use crate::report::Summary;
use crate::top;
use crate::waits::Waits;

/// All sinks of one agent.
#[derive(Debug)]
pub(super) struct Sinks {
    pub(super) metrics: Metrics,
    /// Of all services since the start, where it is asked for: it grows with them.
    pub(super) summary: Option<Summary>,
    /// Where somebody looks on.
    pub(super) live: Option<top::Model>,
    recording: Option<Recording>,
    /// False once the recording could not be written: it has ended early.
    records: bool,
    /// Where the last minutes are kept.
    pub(super) hindsight: Option<LastMinutes>,
    /// As they were told last.
    floors: HashMap<MeterId, Option<Floor>>,
    /// As they were told last.
    facts: HashMap<String, String>,
    host: Host,
}

impl Sinks {
    pub(super) fn new(
        recording: Option<Recording>,
        hindsight: Option<LastMinutes>,
        summary: Option<Summary>,
        live: Option<top::Model>,
    ) -> Self {
        Self {
            metrics: Metrics::new(env!("CARGO_PKG_VERSION")),
            summary,
            live,
            recording,
            records: true,
            hindsight,
            floors: HashMap::new(),
            facts: HashMap::new(),
            host: Host::new(),
        }
    }

    pub(super) fn describe_meter(&mut self, id: MeterId, meter: &Meter) {
        self.metrics.describe_meter(id, meter);
        self.sum_up(|summary| summary.describe_meter(id, meter));
        self.show(|live| live.describe_meter(id, meter));
        self.write(|recording| recording.meter(id, meter));
        self.keep(|hindsight| hindsight.meter(id, meter));
    }

    pub(super) fn gpu_idle(&mut self, id: MeterId, meter: &Meter, floor: Option<Floor>) {
        self.metrics.record_gpu_idle(&meter.device, floor);
        self.sum_up(|summary| summary.set_floor(id, floor));
        if self.floors.insert(id, floor) != Some(floor) {
            self.write(|recording| recording.floor(id, floor));
            self.keep(|hindsight| hindsight.floor(id, floor));
        }
    }

    pub(super) fn describe_service(&mut self, id: ServiceId, name: &str, model: Option<&str>) {
        self.metrics.describe_service(id, name, model);
        self.sum_up(|summary| summary.describe_service(id, name, model));
        self.show(|live| live.describe_service(id, name, model));
        self.write(|recording| recording.service(id, name, model));
        self.keep(|hindsight| hindsight.service(id, name, model));
    }

    /// A service ended long ago.
    pub(super) fn forget_service(&mut self, id: ServiceId) {
        self.metrics.forget_service(id);
        self.show(|live| live.forget_service(id));
        self.gather(|host| host.forget_service(id));
        if let Some(minutes) = &mut self.hindsight {
            minutes.forget_service(id);
        }
    }

    pub(super) fn describe_engine(&mut self, info: &EngineInfo, at: Timestamp) {
        self.metrics.describe_engine(info);
        self.sum_up(|summary| summary.describe_engine(info));
        self.show(|live| live.describe_engine(info));
        let told = RecordedEngine::new(info, at);
        self.write(|recording| recording.engine(&told));
        self.keep(|hindsight| hindsight.engine(&told));
    }

    pub(super) fn count_tokens(&mut self, delta: &TokenDelta) {
        self.metrics.record_tokens(delta);
        self.sum_up(|summary| summary.add_tokens(delta));
        self.show(|live| live.add_tokens(delta));
        self.write(|recording| recording.tokens(delta));
        self.keep(|hindsight| hindsight.write(|recording| recording.tokens(delta)));
    }

    pub(super) fn trace(&mut self, request: RequestId, trace: TraceId) {
        self.write(|recording| recording.trace(request, trace));
        self.keep(|hindsight| hindsight.write(|recording| recording.trace(request, trace)));
    }

    pub(super) fn stack(&mut self, stack: StackId, frames: &str) {
        self.write(|recording| recording.stack(stack, frames));
        self.keep(|hindsight| hindsight.write(|recording| recording.stack(stack, frames)));
    }

    pub(super) fn stack_sample(&mut self, sample: &RecordedSample) {
        self.write(|recording| recording.sample(sample));
        self.keep(|hindsight| hindsight.write(|recording| recording.sample(sample)));
    }

    pub(super) fn stack_wait(&mut self, wait: &RecordedWait) {
        self.write(|recording| recording.wait(wait));
        self.keep(|hindsight| hindsight.write(|recording| recording.wait(wait)));
    }

    /// Tells how stacks were taken, and how many are missing.
    pub(super) fn stack_counts(&mut self, wanted: Wanted, counts: StackCounts) {
        let least = wanted.off_cpu.map(|least| least.as_nanos() as u64);
        let on_cpu = wanted.on_cpu.map(u64::from);
        for (key, value) in [
            ("stacks_hertz", on_cpu),
            ("stacks_taken", on_cpu.and(Some(counts.taken))),
            ("stacks_lost", on_cpu.and(Some(counts.lost))),
            ("stacks_cut", on_cpu.and(Some(counts.cut))),
            ("off_cpu_least_ns", least),
            ("off_cpu_waits", least.and(Some(counts.waits))),
            ("off_cpu_lost", least.and(Some(counts.waits_lost))),
        ] {
            if let Some(value) = value {
                self.fact(key, &value.to_string());
            }
        }
    }

    pub(super) fn cpu(&mut self, cpu: &CpuTime) {
        self.metrics.record_cpu(cpu);
        self.sum_up(|summary| summary.add_cpu(cpu));
        self.show(|live| live.add_cpu(cpu));
        self.gather(|host| host.add_cpu(cpu));
    }

    /// More calls of a class.
    pub(super) fn syscalls(&mut self, id: ServiceId, class: &'static str, new: &ClassCalls) {
        self.metrics.record_syscalls(id, class, new.calls);
        self.metrics.record_syscall_durations(id, class, &new.timed);
        self.sum_up(|summary| summary.add_syscalls(id, class, new.calls, &new.timed));
    }

    /// More page faults of a kind.
    pub(super) fn page_faults(&mut self, id: ServiceId, kind: &'static str, count: u64) {
        self.metrics.record_page_faults(id, kind, count);
        self.sum_up(|summary| summary.add_page_faults(id, kind, count));
    }

    /// More events of a tracepoint.
    pub(super) fn tracepoint(&mut self, id: ServiceId, event: &str, count: u64) {
        self.metrics.record_tracepoint(id, event, count);
        self.sum_up(|summary| summary.add_tracepoint(id, event, count));
    }

    /// More launches and waits of a service.
    pub(super) fn cuda(&mut self, calls: &CudaCalls) {
        self.metrics.record_cuda(calls);
        self.sum_up(|summary| summary.add_cuda(calls));
    }

    /// More of what hardware counted for a service.
    pub(super) fn hardware(&mut self, counts: &HardwareCounts) {
        self.metrics.record_hardware(counts);
        self.sum_up(|summary| summary.add_hardware(counts));
    }

    pub(super) fn waits(&mut self, service: ServiceId, waits: &Waits) {
        self.metrics.record_waits(service, waits);
        self.sum_up(|summary| summary.add_waits(service, waits));
        self.show(|live| live.add_run_queue(service, waits.run_queue));
        self.gather(|host| host.add_waits(service, waits));
    }

    pub(super) fn starved(&mut self, service: ServiceId, reason: &'static str, nanos: u64) {
        self.metrics.record_starved(service, reason, nanos);
        self.sum_up(|summary| summary.add_starved(service, reason, nanos));
        self.show(|live| live.add_starved(service, nanos));
        self.gather(|host| host.add_starved(service, reason, nanos));
    }

    pub(super) fn book(&mut self, booked: &Booked) {
        self.metrics.book(booked);
        self.sum_up(|summary| summary.add(booked));
        self.show(|live| live.add(booked));
        self.write(|recording| recording.book(booked));
        self.keep(|hindsight| hindsight.write(|recording| recording.book(booked)));
    }

    /// Makes what was booked visible to readers: who follows the recording, scrapes, who looks on. In this order:
    /// what was shown anywhere outlives the agent.
    pub(super) fn publish(&mut self, now: Timestamp, before_shown: Option<BeforeShown>) {
        self.write_host(now);
        self.write(Recording::commit);
        if let Some(minutes) = &mut self.hindsight {
            minutes.commit(now);
        }
        self.metrics.publish(now, before_shown);
        self.show(|live| live.advance(now));
    }

    /// Closes what is on disk.
    pub(super) fn close(&mut self) {
        if let Some(Err(error)) = self.recording.take().map(Recording::close) {
            log::error!("{error}");
            self.records = false;
        }
        if let Some(minutes) = self.hindsight.take() {
            minutes.close();
        }
    }

    /// True unless the recording that was asked for ended early. The log says why.
    pub(super) const fn records(&self) -> bool {
        self.records
    }

    /// All events and all request records that were lost.
    pub(super) fn losses(&mut self, events: u64, requests: u64) {
        self.sum_up(|summary| summary.set_losses(events, requests));
        self.show(|live| live.set_losses(events, requests));
        self.fact("events_lost", &events.to_string());
        self.fact("requests_lost", &requests.to_string());
    }

    /// Tells the summary, where one is kept.
    pub(super) fn sum_up(&mut self, tell: impl FnOnce(&mut Summary)) {
        if let Some(summary) = &mut self.summary {
            tell(summary);
        }
    }

    /// Tells who looks on.
    pub(super) fn show(&mut self, show: impl FnOnce(&mut top::Model)) {
        if let Some(live) = &mut self.live {
            show(live);
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut Recording) -> Result<(), RecordingError>) {
        let Some(recording) = &mut self.recording else {
            return;
        };
        if let Err(error) = write(recording) {
            log::error!(
                "{error}; nothing more is written to it, what was committed stays; make room, and start a new \
                 recording"
            );
            self.recording = None;
            self.records = false;
        }
    }

    fn keep(&mut self, keep: impl FnOnce(&mut Hindsight) -> Result<(), RecordingError>) {
        if let Some(minutes) = &mut self.hindsight {
            minutes.keep(keep);
        }
    }
}
