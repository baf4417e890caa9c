//! Probes at functions of libraries that services' processes have: found by the open file,
//! attached once a file, paid for by whoever calls, and taken off when that is too much.
//!
//! In: services' processes, and a [`Subject`]: which libraries, which programs. Out: programs that
//! run at their places. A file is probed for every process that has it: children are followed from
//! their first instruction, and a foreign process that shares the file pays for its stops too. The
//! guard counts them all.

mod libraries;
pub(super) mod prologue;
mod stop;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use aya::programs::uprobe::{UProbeLink, UProbeScope};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSegment as _};
use profiler_ebpf::cost::Program;

pub(super) use libraries::Sought;
pub use stop::StopCost;

use super::guard::{Guard, LIMIT, WINDOW};
use super::health::Verdict;
use super::load_error::ProbeError;
use super::loader::Loader;
use crate::clock::Timestamp;
use crate::ledger::ServiceId;
use libraries::{FileId, Found, Libraries};
use stop::Tried;

/// Nanoseconds between two looks at the probes' cost.
const CHECK: u64 = 1_000_000_000;
/// Files that are known to be refused; beyond, it is said of each again.
const MOST_REFUSED: usize = 1_024;

/// A place of a file where a program is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    /// The program.
    pub(super) program: &'static str,
    /// Of the instruction, in the file.
    pub(super) offset: u64,
    /// What the program learns of the function.
    pub(super) cookie: u64,
    /// True where the kernel carries the instruction out itself.
    pub(super) emulated: bool,
}

/// What one probe does with libraries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject {
    /// Which libraries.
    pub(super) sought: Sought,
    /// What the log says when a library is probed, before "for process 7".
    pub(super) begins: &'static str,
    /// The same when one cannot be probed.
    pub(super) lacks: &'static str,
    /// And when the probes are taken off.
    pub(super) ends: &'static str,
    /// Its programs; the first runs at a function's entry and may be tried on any.
    pub(super) entries: &'static [Program],
    /// A program at an entry and the one at the same function's return.
    pub(super) pair: (Program, Program),
}

impl Subject {
    fn programs(&self) -> impl Iterator<Item = Program> + use<> {
        let (entry, returned) = self.pair;
        let entries = self.entries.iter().copied();
        entries.chain([entry, returned])
    }
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

/// The running probes of one subject. The loader must live as long.
#[derive(Debug)]
pub(super) struct Uprobes {
    subject: Subject,
    libraries: Libraries,
    processes: BTreeMap<u32, ServiceId>,
    probed: HashMap<FileId, Library>,
    /// Files that the kernel would not probe: each is said once.
    refused: HashSet<FileId>,
    stop: StopCost,
    guard: Guard,
    checked: Timestamp,
    /// Nanoseconds of all runs, and the runs by program, at the last look.
    spent: u64,
    runs: Vec<(Program, u64)>,
    detached: bool,
}

impl Uprobes {
    /// Loads the programs and measures what a stop costs here. They run on no library yet.
    pub(super) fn attach(loader: &mut Loader, subject: Subject) -> Result<Self, ProbeError> {
        for program in subject.programs() {
            loader.load_uprobe(program.name())?;
        }
        let (entry, returned) = subject.pair;
        let tried = Tried {
            alone: subject.entries.first().copied().unwrap_or(entry),
            entry,
            returned,
        };
        let stop = match StopCost::measure(loader, tried) {
            Ok(stop) => stop,
            Err(error) => {
                for program in subject.programs() {
                    loader.mark(program.name(), error.verdict(), error.to_string());
                }
                return Err(error);
            }
        };
        let runs = subject.programs();
        Ok(Self {
            subject,
            libraries: Libraries::of(subject.sought),
            processes: BTreeMap::new(),
            probed: HashMap::new(),
            refused: HashSet::new(),
            stop,
            guard: Guard::default(),
            checked: Timestamp::now(),
            spent: 0,
            runs: runs
                .map(|program| (program, loader.cost(program).runs))
                .collect(),
            detached: false,
        })
    }

    /// What a stop costs on this machine.
    pub(super) const fn stop_cost(&self) -> StopCost {
        self.stop
    }

    /// True once the probes were taken off because they cost too much.
    pub(super) const fn is_detached(&self) -> bool {
        self.detached
    }

    /// The service has this process: its libraries are looked for.
    pub(super) fn join(&mut self, pid: u32, service: ServiceId) {
        if !self.detached {
            self.processes.insert(pid, service);
            self.libraries.joined(pid);
        }
    }

    /// The process has ended, or is another service's. A library that nobody uses any more is let
    /// go of. True if the process was one of a service's.
    pub(super) fn leave(&mut self, pid: u32) -> bool {
        if self.processes.remove(&pid).is_none() {
            return false;
        }
        self.libraries.left(pid);
        for library in self.probed.values_mut() {
            library.users.remove(&pid);
        }
        self.probed.retain(|_, library| !library.users.is_empty());
        true
    }

    /// Probes what was found since the last call, telling `ahead` whose library comes next. True
    /// if processes use libraries that they did not use before.
    pub(super) fn follow(&mut self, loader: &mut Loader, ahead: impl Fn(ServiceId)) -> bool {
        let mut changed = false;
        while let Some(found) = self.libraries.next() {
            changed |= self.take(found, loader, &ahead);
        }
        changed
    }

    /// Once a second, adds what the programs cost since the last look, and takes them off if that
    /// is too much: then true.
    pub(super) fn check(&mut self, loader: &mut Loader) -> bool {
        let now = Timestamp::now();
        if self.detached || now.since(self.checked) < CHECK {
            return false;
        }
        self.checked = now;
        let (_, returned) = self.subject.pair;
        for (program, before) in &mut self.runs {
            let cost = loader.cost(*program);
            let runs = cost.runs.saturating_sub(*before);
            *before = cost.runs;
            let steps = |library: &Library| library.stepped.contains(program.name());
            let stop = if *program == returned {
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
            return false;
        };
        self.detached = true;
        self.probed.clear();
        let text = format!(
            "{}: its probes took {:.1} % of a core over {} s, {:.0} % is the most they may; \
             restart the agent to try again",
            self.subject.ends,
            share * 100.0,
            WINDOW.as_secs(),
            LIMIT * 100.0
        );
        for program in self.subject.programs() {
            loader.mark(program.name(), Verdict::Detached, text.clone());
        }
        true
    }

    /// Names of the libraries that are probed.
    pub(super) fn libraries(&self) -> impl Iterator<Item = &str> {
        self.probed.values().map(|library| library.name.as_str())
    }

    /// Services with a process that has a probed library; some more than once.
    pub(super) fn users(&self) -> impl Iterator<Item = ServiceId> {
        let users = self.probed.values().flat_map(|library| &library.users);
        users.filter_map(|pid| self.processes.get(pid).copied())
    }

    fn take(&mut self, found: Found, loader: &mut Loader, ahead: &impl Fn(ServiceId)) -> bool {
        let Found { pid, id, name, .. } = &found;
        let service = match self.processes.get(pid) {
            Some(service) if !self.detached => *service,
            _ => return false,
        };
        if let Some(library) = self.probed.get_mut(id) {
            return library.users.insert(*pid);
        }
        if self.refused.contains(id) {
            return false;
        }
        ahead(service);
        // By the open file: its name may lead elsewhere by now.
        let file = format!("/proc/self/fd/{}", found.file.as_raw_fd());
        let mut links = Vec::new();
        // What begins something comes last: the rest is then there to end it.
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
                    log::warn!("{name}: {}: {error}", self.subject.lacks);
                    if self.refused.len() >= MOST_REFUSED {
                        self.refused.clear();
                    }
                    self.refused.insert(*id);
                    return true;
                }
            }
        }
        let stepped = found.points.iter().filter(|point| !point.emulated);
        log::info!("{name}: {} for process {pid}", self.subject.begins);
        let library = Library {
            name: name.clone(),
            _links: links,
            stepped: stepped.map(|point| point.program).collect(),
            users: BTreeSet::from([*pid]),
        };
        self.probed.insert(*id, library);
        true
    }
}

/// The addresses of functions by name, `None` for those that are not there: what the file exports,
/// or, if it exports none of them, what a program may keep for itself.
pub(super) fn addresses<const N: usize>(
    elf: &ElfFile64<'_>,
    names: [&[u8]; N],
) -> [Option<u64>; N] {
    let mut found = [None; N];
    fn take<'data, const N: usize>(
        found: &mut [Option<u64>; N],
        names: &[&[u8]; N],
        symbols: impl Iterator<Item = impl object::ObjectSymbol<'data>>,
    ) {
        for symbol in symbols {
            let Ok(name) = symbol.name_bytes() else {
                continue;
            };
            let places = names.iter().zip(&mut *found);
            for (_, place) in places.filter(|(wanted, _)| **wanted == name) {
                let address = symbol.address();
                if address != 0 {
                    *place = Some(address);
                }
            }
        }
    }
    take(&mut found, &names, elf.dynamic_symbols());
    if !found.iter().any(Option::is_some) {
        take(&mut found, &names, elf.symbols());
    }
    found
}

/// Where the byte at `address` lies in the file.
pub(super) fn file_offset(elf: &ElfFile64<'_>, address: u64) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let (start, length) = segment.file_range();
        let inside = address.checked_sub(segment.address())?;
        (inside < length).then_some(start + inside)
    })
}
