//! Which thread feeds a GPU, and what it waits for while requests are in flight.
//!
//! The engine is the process of a service that holds the GPU; its thread is the one that had most CPU
//! time of late. Both are looked for once a second, the thread's waits at every read of CPU time.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::probes::Probes;
use super::starvation::{Interval, Starvation, Starved};
use crate::clock::Timestamp;
use crate::ledger::{MeterId, Reading, Request, RequestId, ServiceId};
use crate::meters::GpuProcess;
use crate::services::Service;
use crate::waits::ThreadTimes;

/// Between two looks for the thread.
const LOOK_NS: u64 = 1_000_000_000;
/// What of a second's CPU time counts a second later: half of it is forgotten after four.
const REMEMBERED: f64 = 0.85;

/// A thread of a process that holds a GPU.
#[derive(Debug, Clone, Copy)]
struct Thread {
    tgid: u32,
    place: usize,
    /// As read last.
    on_cpu: u64,
    /// CPU time of late, nanoseconds.
    recent: f64,
}

/// Every GPU's engine.
#[derive(Debug, Default)]
pub(super) struct Engines {
    /// By thread id.
    threads: HashMap<u32, Thread>,
    looked: Option<Timestamp>,
    /// The thread that feeds each GPU for each service: its place and id.
    chosen: HashMap<(ServiceId, MeterId), (usize, u32)>,
    starvation: HashMap<(ServiceId, MeterId), Starvation>,
    in_flight: HashMap<ServiceId, HashSet<RequestId>>,
    /// Each GPU's latest reading.
    readings: HashMap<MeterId, (Timestamp, u64)>,
}

impl Engines {
    /// A request as it stands.
    pub(super) fn request(&mut self, request: &Request) {
        if request.end.is_none() {
            let flying = self.in_flight.entry(request.service).or_default();
            flying.insert(request.id);
        } else if let Some(flying) = self.in_flight.get_mut(&request.service) {
            flying.remove(&request.id);
        }
    }

    /// Requests of a service that are in flight.
    pub(super) fn in_flight(&self, service: ServiceId) -> u64 {
        let flying = self.in_flight.get(&service);
        flying.map_or(0, |flying| flying.len() as u64)
    }

    /// Ends of requests may have been lost: whoever is in flight will move again.
    pub(super) fn requests_lost(&mut self) {
        self.in_flight.clear();
    }

    /// The service has ended.
    pub(super) fn forget(&mut self, service: ServiceId) {
        self.in_flight.remove(&service);
        self.chosen.retain(|(of, _), _| *of != service);
        self.starvation.retain(|(of, _), _| *of != service);
    }

    /// A GPU's counter changed; `idle_watts` is its floor, 0 if it is not known.
    pub(super) fn reading(&mut self, reading: &Reading, idle_watts: f64) {
        // The change lies somewhere in the bracket.
        let half = reading.until.since(reading.after) / 2;
        let at = reading.after.plus(std::time::Duration::from_nanos(half));
        let before = self.readings.insert(reading.meter, (at, reading.energy.0));
        let Some((from, energy)) = before else {
            return;
        };
        let (Some(gained), length) = (reading.energy.0.checked_sub(energy), at.since(from)) else {
            return;
        };
        if length == 0 {
            return;
        }
        let interval = Interval {
            from,
            to: at,
            watts: gained as f64 * 1e3 / length as f64,
            idle_watts,
        };
        for ((_, meter), starvation) in &mut self.starvation {
            if *meter == reading.meter {
                starvation.add(interval);
            }
        }
    }

    /// Looks at each engine's thread; `holders` is who holds which GPU.
    pub(super) fn look(
        &mut self,
        probes: &Probes,
        services: &[Service],
        holders: &BTreeMap<MeterId, Vec<GpuProcess>>,
    ) {
        let now = Timestamp::now();
        if self
            .looked
            .is_none_or(|looked| now.since(looked) >= LOOK_NS)
        {
            self.looked = Some(now);
            self.choose(probes, services, holders);
        }
        for (key, (place, tid)) in &self.chosen {
            if let Some(times) = probes.thread_at(*place, *tid) {
                let flies = self
                    .in_flight
                    .get(&key.0)
                    .is_some_and(|flying| !flying.is_empty());
                let starvation = self.starvation.entry(*key).or_default();
                starvation.look(Timestamp::now(), &times, flies);
            }
        }
    }

    fn choose(
        &mut self,
        probes: &Probes,
        services: &[Service],
        holders: &BTreeMap<MeterId, Vec<GpuProcess>>,
    ) {
        let holds = |pid| holders.values().flatten().any(|process| process.pid == pid);
        let seen = probes.places_of(holds);
        let before = std::mem::take(&mut self.threads);
        for (place, times) in seen {
            let ThreadTimes {
                tid, tgid, on_cpu, ..
            } = times;
            let known = before.get(&tid).filter(|thread| thread.tgid == tgid);
            let recent = known.map_or(0.0, |thread| {
                thread.recent * REMEMBERED + on_cpu.saturating_sub(thread.on_cpu) as f64
            });
            let thread = Thread {
                tgid,
                place,
                on_cpu,
                recent,
            };
            self.threads.insert(tid, thread);
        }
        self.chosen.clear();
        for (meter, processes) in holders {
            for service in services {
                let of_engine = |thread: &Thread| {
                    service.pids.contains(&thread.tgid)
                        && processes.iter().any(|process| process.pid == thread.tgid)
                };
                let busiest = self
                    .threads
                    .iter()
                    .filter(|(_, thread)| of_engine(thread) && thread.recent > 0.0)
                    .max_by(|(_, one), (_, other)| one.recent.total_cmp(&other.recent));
                if let Some((tid, thread)) = busiest {
                    let key = (service.id, *meter);
                    self.chosen.insert(key, (thread.place, *tid));
                }
            }
        }
    }

    /// What each service's GPUs starved since the last call, of those whose base is known.
    pub(super) fn take(&mut self) -> Vec<(ServiceId, Starved)> {
        self.starvation
            .iter_mut()
            .filter_map(|((service, _), starvation)| Some((*service, starvation.take()?)))
            .collect()
    }
}
