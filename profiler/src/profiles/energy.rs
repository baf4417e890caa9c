//! Energy by stack: every microjoule that the ledger booked stands in exactly one place of the graph.
//!
//! In: booked intervals in the order of booking, samples of services' stacks, names. Out:
//! [`Placed`] energies, whose sum is the intervals' energy to the microjoule.
//!
//! What a CPU's interval gave a service is divided over the service's samples in that interval, by the
//! method of largest remainders. Where the timer caught none (at 49 Hz an interval of 100 ms holds five of a busy
//! CPU), it waits for the next samples, at most [`PATIENCE`]. A GPU has no stacks: its energy
//! stands in frames that say what the service's requests did.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::SEPARATOR;
use crate::clock::Timestamp;
use crate::ledger::{
    Accounts, BookedInterval, Component, GpuPhases, MeterId, ServiceId, ServiceShare, split,
};
use crate::units::Microjoules;

/// Energy without a sample goes to samples that come within this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// A part of an interval's energy, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// When: at its sample, else at the interval's end.
    pub at: Timestamp,
    /// Whose; `None` for accounts of nobody.
    pub service: Option<ServiceId>,
    /// What measured it.
    pub component: Component,
    /// The stack's text, the service's name or the account the outermost.
    pub stack: Arc<str>,
    /// How much.
    pub energy: Microjoules,
    /// Whether it stands on a sample of code.
    pub is_sampled: bool,
}

/// A sample of a service's stack.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When.
    pub at: Timestamp,
    /// Its text, without the service's name.
    pub stack: Arc<str>,
}

/// A service's CPU energy for which no sample was seen yet.
#[derive(Debug)]
struct Waiting {
    energy: u64,
    since: Timestamp,
    at: Timestamp,
    component: Component,
}

/// Places energy, interval by interval.
#[derive(Debug)]
pub struct Placer<'a> {
    names: &'a HashMap<ServiceId, String>,
    waiting: HashMap<(MeterId, ServiceId), Waiting>,
}

impl<'a> Placer<'a> {
    /// `names`: the services'.
    pub fn new(names: &'a HashMap<ServiceId, String>) -> Self {
        Self {
            names,
            waiting: HashMap::new(),
        }
    }

    /// Places an interval's energy. `samples` gives a service's samples in the interval; it is asked of
    /// CPUs alone, and `None` says that nothing was sampled at all.
    pub fn interval<E>(
        &mut self,
        component: Component,
        interval: &BookedInterval,
        mut samples: impl FnMut(ServiceId) -> Result<Option<Vec<Sample>>, E>,
        mut place: impl FnMut(Placed),
    ) -> Result<(), E> {
        let mut shared = 0;
        for share in &interval.services {
            let energy = share.requests.0 + share.overhead.0;
            if energy == 0 {
                continue;
            }
            shared += energy;
            let put = |frame: &str, energy: Microjoules, place: &mut dyn FnMut(Placed)| {
                let stack = self.stack(share.service, frame);
                place(placed(
                    component,
                    interval.to,
                    Some(share.service),
                    stack,
                    energy,
                ));
            };
            match component {
                Component::Gpu => gpu_frames(share, |frame, energy| put(frame, energy, &mut place)),
                Component::Dram => put("[DRAM]", Microjoules(energy), &mut place),
                Component::Cpu => match samples(share.service)? {
                    None => put("[CPU]", Microjoules(energy), &mut place),
                    Some(samples) => self.on_samples(interval, share, energy, &samples, &mut place),
                },
            }
        }
        for (name, energy) in unshared(&interval.accounts, shared) {
            if energy > Microjoules::ZERO {
                let stack = Arc::from(format!(
                    "[{name}]{SEPARATOR}[{}]",
                    component_name(component)
                ));
                place(placed(component, interval.to, None, stack, energy));
            }
        }
        Ok(())
    }

    /// Places what still waits for samples.
    pub fn finish(self, mut place: impl FnMut(Placed)) {
        let mut left: Vec<_> = self.waiting.iter().collect();
        left.sort_by_key(|((meter, service), _)| (meter.0, service.0));
        for ((_, service), waiting) in left {
            place(self.unsampled(*service, waiting));
        }
    }

    fn on_samples(
        &mut self,
        interval: &BookedInterval,
        share: &ServiceShare,
        energy: u64,
        samples: &[Sample],
        place: &mut dyn FnMut(Placed),
    ) {
        let key = (interval.meter, share.service);
        let mut waited = self.waiting.remove(&key);
        if let Some(waiting) = &waited
            && interval.from > waiting.since.plus(PATIENCE)
        {
            place(self.unsampled(share.service, waiting));
            waited = None;
        }
        let all = energy + waited.as_ref().map_or(0, |waiting| waiting.energy);
        if samples.is_empty() {
            let since = waited.map_or(interval.from, |waiting| waiting.since);
            let waiting = Waiting {
                energy: all,
                since,
                at: interval.to,
                component: Component::Cpu,
            };
            self.waiting.insert(key, waiting);
            return;
        }
        for (sample, energy) in samples.iter().zip(split(all, &vec![1.0; samples.len()])) {
            place(Placed {
                at: sample.at,
                service: Some(share.service),
                component: Component::Cpu,
                stack: self.stack(share.service, &sample.stack),
                energy: Microjoules(energy),
                is_sampled: true,
            });
        }
    }

    fn unsampled(&self, service: ServiceId, waiting: &Waiting) -> Placed {
        let stack = self.stack(service, "[CPU, no sample]");
        let energy = Microjoules(waiting.energy);
        placed(waiting.component, waiting.at, Some(service), stack, energy)
    }

    fn stack(&self, service: ServiceId, frames: &str) -> Arc<str> {
        let name = self
            .names
            .get(&service)
            .map_or("[unknown service]", |name| name);
        Arc::from(format!("{name}{SEPARATOR}{frames}"))
    }
}

/// Text of a service's stack, as [`Placed`] has it.
pub fn stack_of(service: &str, frames: &str) -> String {
    format!("{service}{SEPARATOR}{frames}")
}

fn placed(
    component: Component,
    at: Timestamp,
    service: Option<ServiceId>,
    stack: Arc<str>,
    energy: Microjoules,
) -> Placed {
    Placed {
        at,
        service,
        component,
        stack,
        energy,
        is_sampled: false,
    }
}

const fn component_name(component: Component) -> &'static str {
    match component {
        Component::Gpu => "GPU",
        Component::Cpu => "CPU",
        Component::Dram => "DRAM",
    }
}

fn gpu_frames(share: &ServiceShare, mut put: impl FnMut(&str, Microjoules)) {
    let mut left = share.requests;
    if let Some(GpuPhases {
        prefill,
        decode,
        wait,
    }) = share.phases
    {
        for (frame, energy) in [
            ("[GPU prefill]", prefill),
            ("[GPU decode]", decode),
            ("[GPU wait]", wait),
        ] {
            let energy = energy.min(left);
            left -= energy;
            if energy > Microjoules::ZERO {
                put(frame, energy);
            }
        }
    }
    // Of responses that do not stream the phases are not seen; older recordings do not tell any.
    let rest = match share.phases {
        Some(_) => "[GPU not streamed]",
        None => "[GPU]",
    };
    for (frame, energy) in [(rest, left), ("[GPU overhead]", share.overhead)] {
        if energy > Microjoules::ZERO {
            put(frame, energy);
        }
    }
}

/// The accounts that no service's part holds. `shared`: what the services' parts hold; the rest of
/// their two accounts, which the ledger leaves empty, would be nobody's.
fn unshared(accounts: &Accounts, shared: u64) -> Vec<(&'static str, Microjoules)> {
    let services = (accounts.requests + accounts.overhead).0;
    let mut all: Vec<(&'static str, Microjoules)> = Accounts::NAMES
        .into_iter()
        .zip(accounts.values())
        .filter(|(name, _)| !matches!(*name, "requests" | "overhead"))
        .collect();
    all.push(("services", Microjoules(services.saturating_sub(shared))));
    all
}

#[cfg(test)]
mod tests;
