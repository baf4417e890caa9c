//! What the CPUs' own counters say of services: cycles, instructions, cache misses. Opt-in: the
//! kernel keeps the counters of counted threads at each of their switches.
//!
//! In: services' processes. Out: [`HardwareCounts`] by service. A group of counters is opened for
//! each thread that a process has when it joins; what these threads make afterwards, threads and
//! processes, the kernel counts with them (`inherit`, include/uapi/linux/perf_event.h). So a process
//! that was made by a counted one is not opened again: whoever tells it says so.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;

use thiserror::Error;

use crate::activity::HardwareCounts;
use crate::finding::{Finding, Status};
use crate::ledger::ServiceId;
use crate::perf_event::{self, Counted, Group, GroupCounts};

/// What is counted: cycles, instructions, cache misses, or something in their place.
pub type Events = [Counted; Group::MOST];

/// The CPUs' own.
pub const HARDWARE: Events = [
    perf_event::CYCLES,
    perf_event::INSTRUCTIONS,
    perf_event::CACHE_MISSES,
];

const NAMES: [&str; Group::MOST] = ["cycles", "instructions", "cache misses"];

/// Descriptors in all; a thread takes one a counter.
pub const MOST_DESCRIPTORS: usize = 1_024;

/// Why nothing is counted.
#[derive(Debug, Error)]
pub enum PmcError {
    /// The machine has no such counters.
    #[error("<not supported>: this machine's CPUs show no counters (as most virtual machines)")]
    Absent,
    /// They may not be opened.
    #[error("they may not be opened: {0}")]
    Refused(io::Error),
}

/// A thread's counters.
#[derive(Debug)]
struct Counters {
    service: ServiceId,
    pid: u32,
    group: Group,
    read: GroupCounts,
    /// Parts of counts that are less than one, by scaling.
    rest: [f64; Group::MOST],
}

/// The open counters.
#[derive(Debug)]
pub struct Pmc {
    /// What the machine counts, and where in the figures it belongs.
    counted: Vec<(usize, Counted)>,
    /// Processes that run, and whose they are.
    processes: HashMap<u32, ServiceId>,
    counters: Vec<Counters>,
    refused: u64,
}

impl Pmc {
    /// Tries which of `events` the machine counts.
    ///
    /// # Errors
    /// It counts none of them.
    pub fn start(events: Events) -> Result<Self, PmcError> {
        let mut counted = Vec::new();
        let mut refused = None;
        for (place, event) in events.into_iter().enumerate() {
            match Group::open(&[event], 0) {
                Ok(_) => counted.push((place, event)),
                Err(error) if is_forbidden(&error) => refused = Some(error),
                Err(error) => log::debug!("{event:?}: {error}"),
            }
        }
        if counted.is_empty() {
            return Err(refused.map_or(PmcError::Absent, PmcError::Refused));
        }
        // Beside its counters an agent has some dozens of descriptors.
        allow_descriptors(2 * MOST_DESCRIPTORS as u64);
        Ok(Self {
            counted,
            processes: HashMap::new(),
            counters: Vec::new(),
            refused: 0,
        })
    }

    /// The service has this process. `inherited`: a process of the service made it after that one
    /// had joined, so that it is counted already.
    pub fn join(&mut self, pid: u32, service: ServiceId, inherited: bool) {
        if self.processes.insert(pid, service) == Some(service) || inherited {
            return;
        }
        let events: Vec<Counted> = self.counted.iter().map(|(_, event)| *event).collect();
        for thread in threads(pid) {
            if (self.counters.len() + 1) * events.len() > MOST_DESCRIPTORS {
                self.refuse(pid, "there are too many threads");
                continue;
            }
            match Group::open(&events, thread) {
                Ok(group) => self.counters.push(Counters {
                    service,
                    pid,
                    group,
                    read: GroupCounts::default(),
                    rest: [0.0; Group::MOST],
                }),
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => self.refuse(pid, &error.to_string()),
            }
        }
    }

    fn refuse(&mut self, pid: u32, why: &str) {
        if self.refused == 0 {
            log::warn!("hardware counters: not all threads of process {pid} are counted: {why}");
        }
        self.refused += 1;
    }

    /// The process has ended, or is another service's. What one that has ended made may still run,
    /// and is counted with it: its counters stay as long as its service has a process.
    pub fn leave(&mut self, pid: u32) {
        self.processes.remove(&pid);
        if fs::exists(format!("/proc/{pid}/task/{pid}")).unwrap_or(false) {
            self.counters.retain(|counters| counters.pid != pid);
        }
    }

    /// Threads so far whose counters could not be opened.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// What was counted since the last read. A system call for each thread.
    pub fn read(&mut self) -> Vec<HardwareCounts> {
        let mut sums: BTreeMap<ServiceId, Sums> = BTreeMap::new();
        for counters in &mut self.counters {
            // One that cannot be read now tells all next time.
            if let Ok(now) = counters.group.read() {
                sums.entry(counters.service).or_default().add(counters, now);
            }
        }
        self.counters.retain(|counters| {
            let mut services = self.processes.values();
            services.any(|service| *service == counters.service)
        });
        let told = sums.into_iter();
        told.map(|(service, sums)| sums.counts(service, &self.counted))
            .collect()
    }
}

/// What a service's threads counted since the last read.
#[derive(Debug, Default)]
struct Sums {
    enabled: u64,
    running: u64,
    counts: [u64; Group::MOST],
}

impl Sums {
    fn add(&mut self, counters: &mut Counters, now: GroupCounts) {
        let before = std::mem::replace(&mut counters.read, now);
        let enabled = now.enabled.saturating_sub(before.enabled);
        let running = now.running.saturating_sub(before.running);
        self.enabled += enabled;
        self.running += running;
        let places = self.counts.iter_mut().zip(&mut counters.rest);
        for (place, (sum, rest)) in places.enumerate() {
            let count = |read: &GroupCounts| read.counts.get(place).copied().unwrap_or(0);
            let counted = count(&now).saturating_sub(count(&before));
            if running >= enabled {
                *sum += counted;
            } else if running > 0 {
                // For the rest of the time the counters were others'.
                let scaled = counted as f64 * (enabled as f64 / running as f64) + *rest;
                *sum += scaled as u64;
                *rest = scaled.fract();
            }
        }
    }

    fn counts(self, service: ServiceId, counted: &[(usize, Counted)]) -> HardwareCounts {
        let of = |wanted: usize| {
            let at = counted.iter().position(|(place, _)| *place == wanted)?;
            // Counters that never ran say nothing.
            let ran = self.running > 0 || self.enabled == 0;
            self.counts.get(at).copied().filter(|_| ran)
        };
        HardwareCounts {
            service,
            cycles: of(0),
            instructions: of(1),
            cache_misses: of(2),
            wanted_nanos: self.enabled,
            counted_nanos: self.running,
        }
    }
}

/// What `--pmc` would count here.
pub fn examine(events: Events) -> Finding {
    const ID: &str = "pmc";
    match Pmc::start(events) {
        Ok(pmc) => {
            let names = pmc
                .counted
                .iter()
                .filter_map(|(place, _)| NAMES.get(*place));
            let names: Vec<&str> = names.copied().collect();
            Finding::pass(ID, format!("the CPUs count {}", names.join(", ")))
        }
        Err(error @ PmcError::Absent) => Finding::pass(ID, error.to_string()),
        Err(error) => {
            let fix = "run as root, or with CAP_PERFMON";
            Finding::of(ID, Status::Warn, error.to_string(), fix)
        }
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

fn threads(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Raises this process's limit of open descriptors to `wanted`, as far as it may.
fn allow_descriptors(wanted: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: it writes the limit, which lives until it returns.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return;
    }
    if limit.rlim_cur < wanted {
        limit.rlim_cur = wanted.min(limit.rlim_max);
        // SAFETY: it reads the limit, which lives until it returns.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}
