//! The CPU rule: energy above the floor by cycles, where they are counted, or on-CPU time; inside a service over its requests in
//! flight, by time in flight. Memory follows the same shares.
//!
//! In: [`CpuTime`] windows of every owner on each package. Out: accounts, and energy per service. A meter
//! of one package looks at time on that package alone.

use std::collections::VecDeque;

use super::floor::Base;
use super::gpu::{Division, ServiceShareParts, above};
use super::split::split;
use super::walk::Stretch;
use super::work::{KINDS, Kind, Timeline};
use super::{CpuTime, Owner};
use crate::clock::Timestamp;
use crate::units::Microjoules;

/// Whose time, with a service by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Service(u32),
    Other,
    Agent,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    whose: Whose,
    from: Timestamp,
    to: Timestamp,
    package: u32,
    /// Cycles, or nanoseconds where they are not counted.
    work: f64,
}

/// On-CPU time that is still needed.
#[derive(Debug, Default)]
pub(super) struct CpuTimes {
    windows: VecDeque<Window>,
}

impl CpuTimes {
    /// Takes a window; `place` finds a service's place.
    pub(super) fn add(&mut self, time: CpuTime, place: impl FnOnce(super::ServiceId) -> u32) {
        let whose = match time.owner {
            Owner::Service(id) => Whose::Service(place(id)),
            Owner::Other => Whose::Other,
            Owner::Agent => Whose::Agent,
        };
        if time.on_cpu > 0 && time.from < time.to {
            let CpuTime {
                from,
                to,
                package,
                on_cpu,
                cycles,
                ..
            } = time;
            self.windows.push_back(Window {
                whose,
                from,
                to,
                package,
                work: cycles.unwrap_or(on_cpu) as f64,
            });
        }
    }

    /// The places of services that it speaks of.
    pub(super) fn places(&self) -> impl Iterator<Item = u32> {
        self.windows.iter().filter_map(|window| match window.whose {
            Whose::Service(place) => Some(place),
            Whose::Other | Whose::Agent => None,
        })
    }

    /// Forgets windows that end by `until`.
    pub(super) fn forget(&mut self, until: Timestamp) {
        while self
            .windows
            .front()
            .is_some_and(|window| window.to <= until)
        {
            self.windows.pop_front();
        }
    }

    /// Each owner's cycles or nanoseconds in (from, to], a window's taken as even; on all packages or
    /// on one.
    fn between(&self, from: Timestamp, to: Timestamp, package: Option<u32>) -> Vec<(Whose, f64)> {
        let mut sums: Vec<(Whose, f64)> = Vec::new();
        for window in &self.windows {
            let overlap = window.to.min(to).since(window.from.max(from));
            let elsewhere = package.is_some_and(|package| package != window.package);
            if overlap == 0 || elsewhere {
                continue;
            }
            let part = overlap as f64 / window.to.since(window.from) as f64;
            let work = window.work * part;
            match sums.iter_mut().find(|(whose, _)| *whose == window.whose) {
                Some((_, sum)) => *sum += work,
                None => sums.push((window.whose, work)),
            }
        }
        // The order in which windows were told must not decide a remainder.
        sums.sort_by_key(|(whose, _)| match whose {
            Whose::Service(place) => u64::from(*place),
            Whose::Other => u64::MAX - 1,
            Whose::Agent => u64::MAX,
        });
        sums
    }
}

/// Divides an interval.
pub(super) fn divide(
    energy: Microjoules,
    base: Base,
    stretch: &Stretch,
    timeline: &Timeline,
    times: &CpuTimes,
    package: Option<u32>,
) -> Division {
    let (mut accounts, left) = above(energy, base);
    let owners = times.between(stretch.from, stretch.to, package);
    let weights: Vec<f64> = owners.iter().map(|(_, time)| *time).collect();
    let parts = split(left, &weights);
    let mut energies = vec![[0; KINDS]; stretch.amounts.len()];
    let mut shares = Vec::new();
    let mut placed = 0;
    for ((whose, _), part) in owners.into_iter().zip(parts) {
        placed += part;
        let energy = Microjoules(part);
        match whose {
            Whose::Other => accounts.other += energy,
            Whose::Agent => accounts.agent += energy,
            Whose::Service(_) if part == 0 => {}
            Whose::Service(service) if stretch.amount(service, Kind::Residency) > 0 => {
                accounts.requests += energy;
                if let Some(energies) = energies.get_mut(service as usize) {
                    energies[Kind::Residency as usize] = part;
                }
                shares.push((
                    service,
                    ServiceShareParts {
                        requests: part,
                        overhead: 0,
                    },
                ));
            }
            Whose::Service(service) => {
                accounts.overhead += energy;
                shares.push((
                    service,
                    ServiceShareParts {
                        requests: 0,
                        overhead: part,
                    },
                ));
            }
        }
    }
    accounts.unattributed = Microjoules(left - placed);
    let services: Vec<u32> = (0..stretch.amounts.len() as u32).collect();
    let busy = stretch.busy(timeline, &services) as f64 * 1e-9;
    Division {
        accounts,
        shares,
        energies,
        busy,
        ..Division::default()
    }
}
