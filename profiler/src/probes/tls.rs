//! Plaintext of TLS sessions, from the functions of the TLS libraries that services use. Opt-in:
//! each call of a probed function stops its process for a moment.
//!
//! In: services' processes. Out: nothing of its own: requests come out of the request probe, on
//! their sockets. A library is probed once, by its file, for every process that has it: children
//! are followed from their first instruction, and a foreign process that shares the file pays
//! for its stops too. [`guard`] counts them all, and takes the probes off when they cost too much.

mod functions;
mod guard;
mod libraries;
mod prologue;
mod stop;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use aya::programs::uprobe::{UProbeLink, UProbeScope};
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::OWNERS;
use profiler_ebpf::request::SLOTS;
use profiler_ebpf::tls::{BUFFERS_PER_CPU, Counters, THREADS};

pub use guard::{LIMIT, WINDOW};
pub use stop::StopCost;

use super::health::Verdict;
use super::load_error::ProbeError;
use super::loader::{Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::{SharedArray, SharedMemory, Words};
use crate::clock::Timestamp;
use crate::ledger::ServiceId;
use functions::{FREE, READ, READ_RETURN, WRITE};
use guard::Guard;
use libraries::{FileId, Found, Libraries};

const PROGRAMS: [(&str, Program); 4] = [
    (READ, Program::SslRead),
    (READ_RETURN, Program::SslReadReturn),
    (WRITE, Program::SslWrite),
    (FREE, Program::SslFree),
];

/// Nanoseconds between two looks at the probes' cost.
const CHECK: u64 = 1_000_000_000;

/// A copy of one CPU's counters.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct CpuCounters(Counters);

// SAFETY: `repr(C)`, `u64` fields only.
unsafe impl Words for CpuCounters {}

/// Plaintext that was lost since the probe was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TlsLosses {
    /// Reads of sessions whose socket is not known.
    pub unbound: u64,
    /// Reads and writes for which there was no buffer.
    pub busy: u64,
}

/// A probed library.
#[derive(Debug)]
struct Library {
    name: String,
    _links: Vec<UProbeLink>,
    /// Programs that stand at an instruction the kernel steps through.
    stepped: BTreeSet<&'static str>,
    users: BTreeSet<u32>,
}

/// The running probe. The loader must live as long.
#[derive(Debug)]
pub struct TlsProbe {
    owners: SharedMemory,
    counters: SharedArray<CpuCounters>,
    libraries: Libraries,
    processes: BTreeMap<u32, ServiceId>,
    probed: HashMap<FileId, Library>,
    stop: StopCost,
    guard: Guard,
    checked: Timestamp,
    /// Nanoseconds of all runs, and the runs, at the last look.
    spent: u64,
    runs: [u64; PROGRAMS.len()],
    detached: bool,
}

impl TlsProbe {
    /// What the probe needs of the loader, beside what the request probe does. Leave it out if
    /// the probe will not be asked for: then nothing of it is in the kernel.
    pub fn configure(options: &mut Options) {
        options
            .global("TLS", 1u8.to_ne_bytes())
            .map_entries("TLS_THREADS", THREADS)
            .map_entries("TLS_SESSIONS", SLOTS)
            .map_entries("TLS_SOCKETS", SLOTS)
            .map_entries("TLS_BUFFERS", possible_cpus() * BUFFERS_PER_CPU)
            .map_entries("TLS_COUNTERS", possible_cpus());
    }

    /// Loads the programs and measures what a stop costs here. They run on no library yet.
    pub fn attach(loader: &mut Loader) -> Result<Self, ProbeError> {
        let owners = loader.shared_bytes("TLS_OWNERS")?;
        let counters = loader.shared_array("TLS_COUNTERS")?;
        for (program, _) in PROGRAMS {
            loader.load_uprobe(program)?;
        }
        let stop = match StopCost::measure(loader) {
            Ok(stop) => stop,
            Err(error) => {
                for (program, _) in PROGRAMS {
                    loader.mark(program, error.verdict(), error.to_string());
                }
                return Err(error);
            }
        };
        let libraries = Libraries::start().map_err(|source| ProbeError::Machine {
            what: "a thread",
            source,
        })?;
        let runs = PROGRAMS.map(|(_, program)| loader.cost(program).runs);
        Ok(Self {
            owners,
            counters,
            libraries,
            processes: BTreeMap::new(),
            probed: HashMap::new(),
            stop,
            guard: Guard::default(),
            checked: Timestamp::now(),
            spent: 0,
            runs,
            detached: false,
        })
    }

    /// What a stop costs on this machine.
    pub const fn stop_cost(&self) -> StopCost {
        self.stop
    }

    /// The service has this process: its libraries are looked for.
    pub fn join(&mut self, pid: u32, service: ServiceId) {
        if !self.detached {
            self.processes.insert(pid, service);
            self.libraries.joined(pid);
        }
    }

    /// The process has ended, or is another service's.
    pub fn leave(&mut self, pid: u32, owners: &Owners) {
        if self.processes.remove(&pid).is_none() {
            return;
        }
        self.libraries.left(pid);
        for library in self.probed.values_mut() {
            library.users.remove(&pid);
        }
        // A library that nobody uses any more is let go of.
        self.probed.retain(|_, library| !library.users.is_empty());
        self.tell_owners(owners);
    }

    /// Probes what was found since the last call, and once a second looks at the cost.
    pub fn poll(&mut self, loader: &mut Loader, owners: &Owners) {
        let mut changed = false;
        while let Some(found) = self.libraries.next() {
            changed |= self.take(found, loader, owners);
        }
        if changed {
            self.tell_owners(owners);
        }
        let now = Timestamp::now();
        if !self.detached && now.since(self.checked) >= CHECK {
            self.checked = now;
            self.check(now, loader);
        }
    }

    /// What was lost so far.
    pub fn losses(&self) -> TlsLosses {
        let cpus = (0..self.counters.len()).filter_map(|cpu| self.counters.get(cpu));
        cpus.fold(TlsLosses::default(), |sum, CpuCounters(cpu)| TlsLosses {
            unbound: sum.unbound + cpu.unbound,
            busy: sum.busy + cpu.busy,
        })
    }

    /// Names of the libraries that are probed.
    pub fn libraries(&self) -> impl Iterator<Item = &str> {
        self.probed.values().map(|library| library.name.as_str())
    }

    fn take(&mut self, found: Found, loader: &mut Loader, owners: &Owners) -> bool {
        let Found { pid, id, name, .. } = &found;
        let service = match self.processes.get(pid) {
            Some(service) if !self.detached => *service,
            _ => return false,
        };
        if let Some(library) = self.probed.get_mut(id) {
            return library.users.insert(*pid);
        }
        // Its sockets are noted before its sessions are.
        if let Some(index) = owners.service_index(service) {
            self.owners.set_byte(usize::from(index), 1);
        }
        // By the open file: its name may lead elsewhere by now.
        let file = format!("/proc/self/fd/{}", found.file.as_raw_fd());
        let mut links = Vec::new();
        // What begins requests comes last: the rest is then there to end them.
        for point in found.points.iter().rev() {
            let link = loader.attach_uprobe(
                point.program,
                Path::new(&file),
                point.offset,
                point.cookie,
                UProbeScope::AllProcesses,
            );
            match link {
                Ok(link) => links.push(link),
                Err(error) => {
                    log::warn!("{name}: TLS is not seen: {error}");
                    return true;
                }
            }
        }
        let stepped = found.points.iter().filter(|point| !point.emulated);
        log::info!("{name}: TLS is read for process {pid}");
        let library = Library {
            name: name.clone(),
            _links: links,
            stepped: stepped.map(|point| point.program).collect(),
            users: BTreeSet::from([*pid]),
        };
        self.probed.insert(*id, library);
        true
    }

    /// Tells the kernel side which services use a TLS library.
    fn tell_owners(&self, owners: &Owners) {
        let users = self.probed.values().flat_map(|library| &library.users);
        let using: BTreeSet<u8> = users
            .filter_map(|pid| owners.service_index(*self.processes.get(pid)?))
            .collect();
        for index in 0..OWNERS {
            let uses = using.contains(&(index as u8));
            self.owners.set_byte(index, u8::from(uses));
        }
    }

    /// Adds what the programs cost since the last look; takes them off if that is too much.
    fn check(&mut self, now: Timestamp, loader: &mut Loader) {
        for ((name, program), before) in PROGRAMS.into_iter().zip(&mut self.runs) {
            let cost = loader.cost(program);
            let runs = cost.runs.saturating_sub(*before);
            *before = cost.runs;
            let steps = |library: &Library| library.stepped.contains(name);
            let stop = if program == Program::SslReadReturn {
                self.stop.returned
            } else if !self.probed.values().any(steps) {
                self.stop.emulated
            } else {
                self.stop.stepped
            };
            let own = cost.timed_ns.checked_div(cost.timed).unwrap_or(0);
            self.spent += runs * (stop + own);
        }
        let Some(share) = self.guard.exceeded(now, self.spent) else {
            return;
        };
        self.detached = true;
        self.probed.clear();
        for index in 0..OWNERS {
            self.owners.set_byte(index, 0);
        }
        let text = format!(
            "TLS is no longer read: its probes took {:.1} % of a core over {} s, {:.0} % is the \
             most they may; restart the agent to try again",
            share * 100.0,
            WINDOW.as_secs(),
            LIMIT * 100.0
        );
        for (program, _) in PROGRAMS {
            loader.mark(program, Verdict::Detached, text.clone());
        }
    }
}
