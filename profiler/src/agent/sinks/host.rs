//! What the host did, for what is on disk: gathered between two publishings, then a row a service.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Sinks;
use crate::clock::Timestamp;
use crate::ledger::{CpuTime, MeterId, Owner, ServiceId};
use crate::recording::RecordedHost;
use crate::telemetry::{GpuTelemetry, ThrottleReason};
use crate::waits::Waits;

type Throttled = [u64; ThrottleReason::ALL.len()];

/// Gathered since the last rows.
#[derive(Debug)]
pub(super) struct Host {
    since: Timestamp,
    services: BTreeMap<ServiceId, (Option<u64>, Option<Waits>)>,
    /// A reason that was told once is told again only where its time grows.
    starved: BTreeMap<(ServiceId, &'static str), u64>,
    told: BTreeSet<(ServiceId, &'static str)>,
    /// As each board told last, since its first look.
    throttled: HashMap<MeterId, Throttled>,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            since: Timestamp::now(),
            services: BTreeMap::new(),
            starved: BTreeMap::new(),
            told: BTreeSet::new(),
            throttled: HashMap::new(),
        }
    }

    pub(super) fn add_cpu(&mut self, cpu: &CpuTime) {
        if let Owner::Service(id) = cpu.owner {
            *self.services.entry(id).or_default().0.get_or_insert(0) += cpu.on_cpu;
        }
    }

    pub(super) fn add_waits(&mut self, id: ServiceId, waits: &Waits) {
        let of = self.services.entry(id).or_default();
        of.1.get_or_insert_default().add(waits);
    }

    pub(super) fn add_starved(&mut self, id: ServiceId, reason: &'static str, nanos: u64) {
        if self.told.insert((id, reason)) || nanos > 0 {
            *self.starved.entry((id, reason)).or_default() += nanos;
        }
    }

    pub(super) fn forget_service(&mut self, id: ServiceId) {
        self.told.retain(|(service, _)| *service != id);
    }
}

impl Sinks {
    /// True where something is on disk.
    const fn is_on_disk(&self) -> bool {
        self.recording.is_some() || self.hindsight.is_some()
    }

    /// Tells what is gathered, which is so only where somebody keeps it.
    pub(super) fn gather(&mut self, gather: impl FnOnce(&mut Host)) {
        if self.is_on_disk() {
            gather(&mut self.host);
        }
    }

    /// Writes what was gathered.
    pub(super) fn write_host(&mut self, now: Timestamp) {
        let from = std::mem::replace(&mut self.host.since, now);
        for (service, (on_cpu, waits)) in std::mem::take(&mut self.host.services) {
            let host = RecordedHost {
                service,
                from,
                to: now,
                on_cpu,
                waits,
            };
            self.write(|recording| recording.host(&host));
            self.keep(|hindsight| hindsight.write(|recording| recording.host(&host)));
        }
        for ((id, reason), nanos) in std::mem::take(&mut self.host.starved) {
            self.write(|recording| recording.starved(id, now, reason, nanos));
            self.keep(|hindsight| {
                hindsight.write(|recording| recording.starved(id, now, reason, nanos))
            });
        }
    }

    /// A look at a GPU; `meter`: its meter, if it has one.
    pub(in crate::agent) fn telemetry(&mut self, meter: Option<MeterId>, telemetry: GpuTelemetry) {
        self.show(|live| live.add_telemetry(&telemetry));
        let told = meter.zip(telemetry.throttled);
        if let Some((meter, throttled)) = told.filter(|_| self.is_on_disk()) {
            let before = self.host.throttled.insert(meter, throttled);
            let at = telemetry.at;
            for (place, (reason, nanos)) in ThrottleReason::ALL.iter().zip(throttled).enumerate() {
                let was = before.and_then(|before| before.get(place).copied());
                let more = nanos.saturating_sub(was.unwrap_or(0));
                if was.is_none() || more > 0 {
                    let reason = reason.name();
                    self.write(|recording| recording.throttled(meter, at, reason, more));
                    self.keep(|hindsight| {
                        hindsight.write(|recording| recording.throttled(meter, at, reason, more))
                    });
                }
            }
        }
        self.metrics.record_gpu_telemetry(telemetry);
    }

    /// Tells what holds of this run, where it is kept.
    pub(in crate::agent) fn fact(&mut self, key: &str, value: &str) {
        if !self.is_on_disk() || self.facts.get(key).is_some_and(|told| told == value) {
            return;
        }
        self.facts.insert(key.to_owned(), value.to_owned());
        self.write(|recording| recording.fact(key, value));
        self.keep(|hindsight| hindsight.fact(key, value));
    }
}
