//! What services ask of their GPUs: kernels and graphs launched, and how long they wait for the
//! GPU, from the functions of CUDA's driver library. Opt-in: each call of a probed function stops
//! its process for a moment.
//!
//! In: services' processes. Out: [`CudaCalls`] by service. A library is probed once, by its file,
//! for every process that has it; [`super::uprobes`] takes the probes off when they cost too much.

mod functions;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use profiler_ebpf::cost::Program;
use profiler_ebpf::cuda::{Counts, THREADS};
use profiler_ebpf::owners::{FIRST_SERVICE, OWNERS, OwnerIndex};

use super::load_error::ProbeError;
use super::loader::{Loader, Options};
use super::owners::Owners;
use super::shared_memory::{SharedArray, Words};
use super::uprobes::{Sought, StopCost, Subject, Uprobes};
use crate::activity::CudaCalls;
use crate::clock::Timestamp;
use crate::ledger::{Owner, ServiceId};

const COUNTS: &str = "CUDA_COUNTS";

const SUBJECT: Subject = Subject {
    sought: Sought {
        what: "CUDA driver library",
        thread: "cuda-libraries",
        names: &["libcuda.so"],
        programs: false,
        // Loaded with the first call of the runtime library, which may be long after the start.
        looks: &[
            Duration::from_millis(250),
            Duration::from_millis(500),
            Duration::from_secs(1),
            Duration::from_secs(2),
            Duration::from_secs(5),
            Duration::from_secs(10),
        ],
        find: functions::find,
    },
    begins: "CUDA launches are counted",
    lacks: "CUDA launches are not counted",
    ends: "CUDA launches are no longer counted",
    entries: &[Program::CudaLaunch],
    pair: (Program::CudaSync, Program::CudaSyncReturn),
};

/// One owner's counts.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
struct OwnerCounts(Counts);

// SAFETY: `repr(C)`, `u64` fields only.
unsafe impl Words for OwnerCounts {}

/// The running probe. The loader must live as long.
#[derive(Debug)]
pub struct CudaProbe {
    counts: SharedArray<OwnerCounts>,
    uprobes: Uprobes,
    /// As read last, by the owner's index.
    read: Vec<Counts>,
    /// Services whose library is probed, and up to when their calls are told.
    watched: BTreeMap<ServiceId, Timestamp>,
    /// The probes were taken off, and every service was told so.
    ended: bool,
}

impl CudaProbe {
    /// What the probe needs of the loader, beside what [`Owners::configure`] adds. Leave it out if
    /// the probe will not be asked for: then nothing of it is in the kernel.
    pub fn configure(options: &mut Options) {
        options
            .map_entries(COUNTS, OWNERS as u32)
            .map_entries("CUDA_WAITS", THREADS);
    }

    /// Loads the programs and measures what a stop costs here. They run on no library yet.
    pub fn attach(loader: &mut Loader) -> Result<Self, ProbeError> {
        Ok(Self {
            counts: loader.shared_array(COUNTS)?,
            uprobes: Uprobes::attach(loader, SUBJECT)?,
            read: vec![Counts::default(); OWNERS],
            watched: BTreeMap::new(),
            ended: false,
        })
    }

    /// What a stop costs on this machine.
    pub const fn stop_cost(&self) -> StopCost {
        self.uprobes.stop_cost()
    }

    /// The service has this process: its library is looked for.
    pub fn join(&mut self, pid: u32, service: ServiceId) {
        self.uprobes.join(pid, service);
    }

    /// The process has ended, or is another service's.
    pub fn leave(&mut self, pid: u32) {
        self.uprobes.leave(pid);
    }

    /// Probes what was found since the last call, and once a second looks at the cost.
    pub fn poll(&mut self, loader: &mut Loader) {
        let now = Timestamp::now();
        if self.uprobes.follow(loader, |_| {}) {
            for service in self.uprobes.users() {
                self.watched.entry(service).or_insert(now);
            }
        }
        self.uprobes.check(loader);
    }

    /// Names of the libraries that are probed.
    pub fn libraries(&self) -> impl Iterator<Item = &str> {
        self.uprobes.libraries()
    }

    /// Waits so far that are in no figure: their beginning was forgotten.
    pub fn untimed(&self) -> u64 {
        let owners = (0..self.counts.len()).filter_map(|index| self.counts.get(index));
        owners.map(|OwnerCounts(counts)| counts.untimed).sum()
    }

    /// What services called since the last read: each whose library is probed, and each that
    /// called something. No system call.
    pub fn read(&mut self, owners: &Owners) -> Vec<CudaCalls> {
        let now = Timestamp::now();
        let users: BTreeSet<ServiceId> = self.uprobes.users().collect();
        let mut told = Vec::new();
        for index in FIRST_SERVICE as usize..owners.used() {
            let Some(OwnerCounts(counts)) = self.counts.get(index) else {
                continue;
            };
            let before = match self.read.get_mut(index) {
                Some(before) => std::mem::replace(before, counts),
                None => continue,
            };
            let Some(Owner::Service(service)) = owners.name(index as OwnerIndex) else {
                continue;
            };
            let called = counts != before;
            let ends = self.uprobes.is_detached() && !self.ended;
            let is_watched = users.contains(&service);
            if !(called || is_watched || ends && self.watched.contains_key(&service)) {
                continue;
            }
            // One that shares a probed file is seen calling before its library is found.
            let since = self.watched.entry(service).or_insert(now);
            let watched = now.since(*since);
            *since = now;
            told.push(CudaCalls {
                service,
                kernels: counts.kernels.wrapping_sub(before.kernels),
                graphs: counts.graphs.wrapping_sub(before.graphs),
                syncs: counts.syncs.wrapping_sub(before.syncs),
                sync_nanos: counts.sync_ns.wrapping_sub(before.sync_ns),
                watched_nanos: watched,
                complete: !self.uprobes.is_detached(),
            });
        }
        self.ended = self.uprobes.is_detached();
        // One whose last process has ended is watched anew if it comes back.
        self.watched.retain(|service, _| users.contains(service));
        told
    }
}
