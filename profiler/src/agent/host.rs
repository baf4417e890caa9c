//! What the host did for each service beside its requests: system calls, page faults, tracepoints.
//! The probes tell sums since a service was first followed; the sinks get what is new.

use std::collections::HashMap;

use profiler_ebpf::syscalls::Class;

use super::probes::Probes;
use super::sinks::Sinks;
use crate::ledger::ServiceId;
use crate::probes::events::ServiceEvents;
use crate::probes::syscalls::ClassCalls;

/// What was already told.
#[derive(Debug, Default)]
pub(super) struct Host {
    calls: HashMap<(ServiceId, Class), ClassCalls>,
    events: HashMap<ServiceId, ServiceEvents>,
}

impl Host {
    /// Tells what is new, and counts the services that are alive from now on.
    pub(super) fn publish(&mut self, probes: &mut Probes, alive: &[ServiceId], sinks: &mut Sinks) {
        let counted = probes.read_syscalls(alive);
        // One that comes back is counted from 0.
        self.calls
            .retain(|(id, _), _| counted.iter().any(|counts| counts.service == *id));
        for counts in &counted {
            for (class, calls) in counts.iter() {
                let told = self.calls.entry((counts.service, class)).or_default();
                let new = calls.since(told);
                *told = *calls;
                sinks.syscalls(counts.service, class.name(), &new);
            }
        }
        if let Some(untimed) = probes.untimed_syscalls() {
            sinks.metrics.record_dropped("syscall_untimed", untimed);
        }

        let (happened, names) = probes.read_events();
        self.events
            .retain(|id, _| happened.iter().any(|events| events.service == *id));
        for events in happened {
            let told = self.events.get(&events.service);
            if let Some(faults) = events.faults {
                let before = told.and_then(|told| told.faults);
                let of = |now: u64, before: Option<u64>| now.wrapping_sub(before.unwrap_or(0));
                let minor = of(faults.minor, before.map(|before| before.minor));
                let major = of(faults.major, before.map(|before| before.major));
                sinks.page_faults(events.service, "minor", minor);
                sinks.page_faults(events.service, "major", major);
            }
            for (place, (name, count)) in names.iter().zip(&events.named).enumerate() {
                let before = told.and_then(|told| told.named.get(place).copied());
                let new = count.wrapping_sub(before.unwrap_or(0));
                sinks.tracepoint(events.service, &name.to_string(), new);
            }
            self.events.insert(events.service, events);
        }
    }
}
