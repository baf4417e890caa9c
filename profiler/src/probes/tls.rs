//! Plaintext of TLS sessions, from the functions of the TLS libraries that services use. Opt-in:
//! each call of a probed function stops its process for a moment.
//!
//! In: services' processes. Out: nothing of its own: requests come out of the request probe, on
//! their sockets. A library is probed once, by its file, for every process that has it: children
//! are followed from their first instruction, and a foreign process that shares the file pays
//! for its stops too. [`super::uprobes`] takes the probes off when they cost too much.

mod functions;

use std::collections::BTreeSet;
use std::time::Duration;

use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::OWNERS;
use profiler_ebpf::request::SLOTS;
use profiler_ebpf::tls::{BUFFERS_PER_CPU, Counters, THREADS};

use super::health::Verdict;
use super::load_error::ProbeError;
use super::loader::{Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::{SharedArray, SharedMemory, Words};
use super::uprobes::{Sought, StopCost, Subject, Uprobes};
use crate::ledger::ServiceId;

const SUBJECT: Subject = Subject {
    sought: Sought {
        what: "TLS library",
        thread: "tls-libraries",
        names: &["ssl", "grpc", "netty_tcnative"],
        programs: true,
        // A process loads its library before it listens, or with its first connection.
        looks: &[
            Duration::from_secs(1),
            Duration::from_secs(2),
            Duration::from_secs(10),
            Duration::from_secs(60),
        ],
        find: functions::find,
    },
    begins: "TLS is read",
    lacks: "TLS is not seen",
    ends: "TLS is no longer read",
    entries: &[Program::SslFree, Program::SslWrite],
    pair: (Program::SslRead, Program::SslReadReturn),
};

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

/// The running probe. The loader must live as long.
#[derive(Debug)]
pub struct TlsProbe {
    owners: SharedMemory,
    counters: SharedArray<CpuCounters>,
    uprobes: Uprobes,
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
        if !cfg!(target_arch = "x86_64") {
            let error = ProbeError::Unsupported {
                program: functions::READ,
                reason: "TLS libraries are probed on x86-64 only".to_owned(),
            };
            loader.mark(functions::READ, Verdict::Unsupported, error.to_string());
            return Err(error);
        }
        Ok(Self {
            owners: loader.shared_bytes("TLS_OWNERS")?,
            counters: loader.shared_array("TLS_COUNTERS")?,
            uprobes: Uprobes::attach(loader, SUBJECT)?,
        })
    }

    /// What a stop costs on this machine.
    pub const fn stop_cost(&self) -> StopCost {
        self.uprobes.stop_cost()
    }

    /// The service has this process: its libraries are looked for.
    pub fn join(&mut self, pid: u32, service: ServiceId) {
        self.uprobes.join(pid, service);
    }

    /// The process has ended, or is another service's.
    pub fn leave(&mut self, pid: u32, owners: &Owners) {
        if self.uprobes.leave(pid) {
            self.tell_owners(owners);
        }
    }

    /// Probes what was found since the last call, and once a second looks at the cost.
    pub fn poll(&mut self, loader: &mut Loader, owners: &Owners) {
        let Self {
            owners: flags,
            uprobes,
            ..
        } = self;
        // Its sockets are noted before its sessions are.
        let ahead = |service| {
            if let Some(index) = owners.service_index(service) {
                flags.set_byte(usize::from(index), 1);
            }
        };
        let changed = uprobes.follow(loader, ahead);
        if uprobes.check(loader) || changed {
            self.tell_owners(owners);
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
        self.uprobes.libraries()
    }

    /// Tells the kernel side which services use a TLS library.
    fn tell_owners(&self, owners: &Owners) {
        let users = self.uprobes.users();
        let using: BTreeSet<u8> = users
            .filter_map(|service| owners.service_index(service))
            .collect();
        for index in 0..OWNERS {
            let uses = using.contains(&(index as u8));
            self.owners.set_byte(index, u8::from(uses));
        }
    }
}
