//! What happens in services' processes, counted in the kernel: page faults (by the kernel's own
//! account, on every architecture) and tracepoints that the user names.
//!
//! Opt-in: nothing is attached that nobody asked for. An event is counted for the process that
//! runs when it happens, as `perf stat -p` has it: `sched:sched_migrate_task` is the waker's.

mod names;

use std::collections::BTreeMap;

use aya::programs::perf_event::{SamplePolicy, SoftwareEvent};
use profiler_ebpf::events::{CpuEvents, FIRST_NAMED, KINDS, MAJOR_FAULTS, MINOR_FAULTS, NAMED};
use profiler_ebpf::owners::FIRST_SERVICE;
use thiserror::Error;

use super::load_error::ProbeError;
use super::loader::{Hook, Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::SharedArray;
use crate::ledger::{Owner, ServiceId};
pub use names::{EventName, InvalidEventName};

const EVENTS: &str = "OWNER_EVENTS";
const MINOR: &str = "page_fault_minor";
const MAJOR: &str = "page_fault_major";
const FAULTS: [(&str, SoftwareEvent); 2] = [
    (MINOR, SoftwareEvent::PageFaultsMin),
    (MAJOR, SoftwareEvent::PageFaultsMaj),
];
const PROGRAMS: [&str; FAULTS.len() + NAMED] = [
    MINOR,
    MAJOR,
    "named_event_0",
    "named_event_1",
    "named_event_2",
    "named_event_3",
    "named_event_4",
    "named_event_5",
    "named_event_6",
    "named_event_7",
];

/// Tracepoints that can be named.
pub const MOST_NAMED: usize = NAMED;

/// Why a tracepoint that the user named is not counted.
#[derive(Debug, Error)]
pub enum EventError {
    /// More than there is room for.
    #[error("{given} tracepoints are named, and at most {MOST_NAMED} can be counted at a time")]
    TooMany {
        /// How many.
        given: usize,
    },
    /// The kernel has none of this name.
    #[error("this kernel has no tracepoint {event}{}", names::advice(near))]
    Unknown {
        /// As it was named.
        event: EventName,
        /// What it may have been meant for, the most likely first.
        near: Vec<String>,
    },
    /// The kernel lists it, and a program cannot be attached to it.
    #[error(
        "{event} is an event, but no tracepoint of the kernel's own code; system calls are \
         counted with --syscalls"
    )]
    NotRaw {
        /// As it was named.
        event: EventName,
    },
    /// Anything else.
    #[error("tracepoint {event} cannot be counted: {source}")]
    Probe {
        /// As it was named.
        event: EventName,
        /// Why.
        source: ProbeError,
    },
    /// The counters cannot be read.
    #[error(transparent)]
    Counters(#[from] ProbeError),
}

/// A service's page faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFaults {
    /// Without input.
    pub minor: u64,
    /// With.
    pub major: u64,
}

/// What happened in a service's processes since it was first followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEvents {
    /// The service.
    pub service: ServiceId,
    /// `None` where they are not counted.
    pub faults: Option<PageFaults>,
    /// By the event's place among those that were named.
    pub named: Vec<u64>,
}

type Counts = [u64; KINDS];

/// An owner's place in the counters.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    owner: Option<Owner>,
    /// What it held when its owner got it.
    base: Counts,
    /// What it held at the latest look.
    latest: Counts,
}

/// The running probe.
#[derive(Debug)]
pub struct EventProbe {
    counts: SharedArray<CpuEvents>,
    faults: bool,
    named: Vec<EventName>,
    places: BTreeMap<usize, Place>,
}

impl EventProbe {
    /// Its programs.
    pub const PROGRAMS: &[&str] = &PROGRAMS;

    /// What the probe needs of the loader, beside what [`Owners::configure`] adds. Leave it out
    /// if the probe will not be asked for: its counters take 32 KiB on each CPU.
    pub fn configure(options: &mut Options) {
        options.map_entries(EVENTS, possible_cpus());
    }

    /// Attaches what was asked for: page faults, and the tracepoints named.
    ///
    /// # Errors
    /// A tracepoint cannot be counted: the user named it, so that nothing is attached without it.
    /// Page faults that cannot be counted are no error; their verdict is kept by the loader.
    pub fn attach(
        loader: &mut Loader,
        faults: bool,
        named: &[EventName],
    ) -> Result<Self, EventError> {
        if named.len() > MOST_NAMED {
            return Err(EventError::TooMany { given: named.len() });
        }
        let counts = loader.shared_array(EVENTS)?;
        for (event, program) in named.iter().zip(PROGRAMS.into_iter().skip(FAULTS.len())) {
            names::check(event)?;
            match loader.attach(program, Hook::RawTracepoint(event.name())) {
                Ok(()) => {}
                Err(ProbeError::NoHook { .. }) => return Err(names::unknown(event)),
                Err(source) => {
                    let event = event.clone();
                    return Err(EventError::Probe { event, source });
                }
            }
        }
        let mut are_counted = faults;
        for (program, event) in FAULTS {
            let every = SamplePolicy::Period(1);
            let counted = loader.attach_software_event(program, event, every);
            are_counted = are_counted && counted.is_ok();
        }
        Ok(Self {
            counts,
            faults: are_counted,
            named: named.to_vec(),
            places: BTreeMap::new(),
        })
    }

    /// The tracepoints that are counted, as [`ServiceEvents::named`] has them.
    pub fn named(&self) -> &[EventName] {
        &self.named
    }

    /// What happened so far in each service that has a place in `owners`. No system call.
    pub fn read(&mut self, owners: &Owners) -> Vec<ServiceEvents> {
        let mut events = Vec::new();
        for index in FIRST_SERVICE as usize..owners.used() {
            let now = self.count(index);
            let owner = owners.name(index as u8);
            let place = self.places.entry(index).or_default();
            if place.owner != owner {
                // Nothing is counted at a place that is nobody's.
                (place.owner, place.base) = (owner, place.latest);
            }
            place.latest = now;
            let Some(Owner::Service(service)) = owner else {
                continue;
            };
            let mut since = now;
            for (count, base) in since.iter_mut().zip(place.base) {
                *count = count.wrapping_sub(base);
            }
            let named = since.iter().skip(FIRST_NAMED).take(self.named.len());
            events.push(ServiceEvents {
                service,
                faults: self.faults.then(|| PageFaults {
                    minor: since[MINOR_FAULTS],
                    major: since[MAJOR_FAULTS],
                }),
                named: named.copied().collect(),
            });
        }
        events
    }

    /// Takes every hook off.
    pub fn detach(self, loader: &mut Loader) {
        for program in Self::PROGRAMS {
            loader.detach(program);
        }
    }

    fn count(&self, index: usize) -> Counts {
        let mut sums = [0_u64; KINDS];
        for cpu in 0..self.counts.len() {
            for (kind, sum) in sums.iter_mut().enumerate() {
                let word = self.counts.word(cpu, index * KINDS + kind);
                *sum = sum.wrapping_add(word.unwrap_or(0));
            }
        }
        sums
    }
}
