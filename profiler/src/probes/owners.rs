//! Which process belongs to whom, for the kernel side: the agent names a service's processes,
//! the kernel side lets their children inherit.

use std::collections::HashMap;

use profiler_ebpf::owners::{
    AGENT, FIRST_SERVICE, IDLE, OTHER, OWNERS, OwnerIndex, PROCESSES_PER_ENTRY, SELF_TEST,
    entries_for,
};

use super::load_error::ProbeError;
use super::loader::{Field, Loader, Options, pid_max};
use super::shared_memory::SharedMemory;
use crate::ledger::{Owner, ServiceId};

const TABLE: &str = "PROCESS_OWNERS";
/// Processes in a word of the table, and a word of processes of no service.
const WORD: usize = 8;
const NOBODYS: u64 = u64::from_ne_bytes([OTHER; WORD]);
const FORK: &str = "sched_process_fork";

/// Kernel fields for telling processes apart.
pub(super) const FIELDS: &[Field] = &[
    Field {
        global: "TASK_PID",
        structure: "task_struct",
        member: "pid",
        programs: &[FORK],
    },
    Field {
        global: "TASK_TGID",
        structure: "task_struct",
        member: "tgid",
        programs: &[FORK, "sched_switch"],
    },
];

/// The table of processes' owners.
#[derive(Debug)]
pub struct Owners {
    table: SharedMemory,
    /// Owner of each index; the first three and the last are fixed.
    names: Vec<Option<Owner>>,
    index: HashMap<ServiceId, OwnerIndex>,
    used: usize,
    refused: u64,
}

impl Owners {
    /// What the table needs of the loader. On a machine whose `pid_max` is not readable the
    /// kernel's largest is assumed.
    pub fn configure(options: &mut Options) {
        options
            .fields(FIELDS)
            .map_entries(TABLE, entries_for(pid_max().unwrap_or(1 << 22)));
    }

    /// Attaches the inheritance at fork and names this process the agent.
    ///
    /// If only the inheritance fails, its verdict says so and the table still works: a service's
    /// new children are then `Other` until the agent names them.
    pub fn attach(loader: &mut Loader) -> Result<Self, ProbeError> {
        let table = loader.shared_bytes(TABLE)?;
        let mut names = vec![None; OWNERS];
        let fixed = [
            (OTHER, Owner::Other),
            (AGENT, Owner::Agent),
            (SELF_TEST, Owner::Agent),
        ];
        for (index, owner) in fixed {
            if let Some(name) = names.get_mut(index as usize) {
                *name = Some(owner);
            }
        }
        let mut owners = Self {
            table,
            names,
            index: HashMap::new(),
            used: FIRST_SERVICE as usize,
            refused: 0,
        };
        owners.table.set_byte(0, IDLE);
        owners.set(std::process::id(), Owner::Agent);
        // Its verdict is kept by the loader.
        let _ = loader.attach_btf_tracepoint(FORK, FORK);
        Ok(owners)
    }

    /// The work is done with this process followed as a service is, so that a probe can see
    /// whether it sees.
    pub(super) fn with_self_followed<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let own = std::process::id() as usize;
        let before = self.table.byte(own).unwrap_or(OTHER);
        self.table.set_byte(own, SELF_TEST);
        let done = work();
        self.table.set_byte(own, before);
        done
    }

    /// True if some service has a place.
    pub(crate) fn has_services(&self) -> bool {
        !self.index.is_empty()
    }

    /// Process `tgid` belongs to `owner` from now on, and so do the children it makes (the
    /// agent's do not). False if there is no room for another service, or `tgid` lies above the
    /// `pid_max` of the start: then it stays what it was, and [`Self::refused`] counts it.
    pub fn set(&mut self, tgid: u32, owner: Owner) -> bool {
        let done = tgid != 0
            && match self.index_of(owner) {
                Some(index) => self.table.set_byte(tgid as usize, index),
                None => false,
            };
        if !done {
            self.refused += 1;
        }
        done
    }

    /// Who owns process `tgid` as the kernel side sees it, inheritance included.
    pub fn get(&self, tgid: u32) -> Owner {
        self.table
            .byte(tgid as usize)
            .and_then(|index| self.name(index))
            .unwrap_or(Owner::Other)
    }

    /// Processes that could not be named.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Forgets services that have ended: whatever process still carries their mark is `Other`, and
    /// their places are free for others. Reads the whole table (one byte a possible process).
    pub fn forget(&mut self, services: &[ServiceId]) {
        let mut free = [false; OWNERS];
        for index in services.iter().filter_map(|id| self.index.remove(id)) {
            if let Some(free) = free.get_mut(index as usize) {
                *free = true;
            }
        }
        if !free.contains(&true) {
            return;
        }
        let is_free = |index: OwnerIndex| free.get(index as usize) == Some(&true);
        // The second pass finds what was forked behind the first.
        for _ in 0..2 {
            for entry in 0..self.table.entries() {
                for word in 0..PROCESSES_PER_ENTRY / WORD {
                    // Nearly all are nobody's.
                    if self.table.word(entry, word) == Some(NOBODYS) {
                        continue;
                    }
                    let first = entry * PROCESSES_PER_ENTRY + word * WORD;
                    for at in first..first + WORD {
                        if self.table.byte(at).is_some_and(is_free) {
                            self.table.set_byte(at, OTHER);
                        }
                    }
                }
            }
        }
        for (name, _) in self.names.iter_mut().zip(free).filter(|(_, free)| *free) {
            *name = None;
        }
    }

    /// The owner behind an index; `None` for idle and for an index not in use.
    pub(super) fn name(&self, index: OwnerIndex) -> Option<Owner> {
        self.names.get(index as usize).copied().flatten()
    }

    /// Cells of a per-owner array that are or were in use: every index lies below it.
    pub(super) const fn used(&self) -> usize {
        self.used
    }

    /// The index of a service, if it has one.
    pub(super) fn service_index(&self, service: ServiceId) -> Option<OwnerIndex> {
        self.index.get(&service).copied()
    }

    /// The index of the process's owner as the kernel side sees it.
    pub(super) fn index_of_process(&self, tgid: u32) -> OwnerIndex {
        self.table.byte(tgid as usize).unwrap_or(OTHER)
    }

    fn index_of(&mut self, owner: Owner) -> Option<OwnerIndex> {
        let service = match owner {
            Owner::Other => return Some(OTHER),
            Owner::Agent => return Some(AGENT),
            Owner::Service(service) => service,
        };
        if let Some(index) = self.index.get(&service) {
            return Some(*index);
        }
        let free = (FIRST_SERVICE..SELF_TEST)
            .find(|index| self.names.get(*index as usize).is_some_and(Option::is_none))?;
        *self.names.get_mut(free as usize)? = Some(Owner::Service(service));
        self.index.insert(service, free);
        self.used = self.used.max(free as usize + 1);
        Some(free)
    }
}
