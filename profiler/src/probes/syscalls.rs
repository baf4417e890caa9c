//! System calls of chosen services by class: how many, and how long they take. Opt-in: attached,
//! the hooks slow every system call of the machine a little, also of processes that nobody counts.
//!
//! Every call is counted. Of [`Timing::Exact`] every one is timed too, of [`Timing::Sampled`] one
//! in [`SAMPLED_ONE_IN`], drawn by chance, so that no pattern of calls is favoured.

mod devices;

use std::str::FromStr;

use profiler_ebpf::owners::{FIRST_SERVICE, OWNERS};
use profiler_ebpf::syscalls::{
    CLASS_CELLS, Class, CpuCounts, CpuTimes, ROWS, STARTS, Start, TIME_WORDS,
};
use thiserror::Error;

use super::load_error::ProbeError;
use super::loader::{Field, Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::{SharedArray, SharedMemory, Words};
use crate::durations::Durations;
use crate::ledger::ServiceId;
pub use devices::GpuDevices;

const ENTER: &str = "sys_enter";
const EXIT: &str = "syscall_exit";
const ROW_TABLE: &str = "SYSCALL_ROWS";
const COUNTS: &str = "SYSCALL_COUNTS";
const TIMES: &str = "SYSCALL_TIMES";
const START_TABLE: &str = "SYSCALL_STARTS";

/// Of sampled calls, one in this many is timed; a power of two.
pub const SAMPLED_ONE_IN: u32 = 64;

#[cfg(not(target_arch = "aarch64"))]
const THREAD_STATUS: &str = "thread_info.status";
#[cfg(target_arch = "aarch64")]
const THREAD_STATUS: &str = "thread_info.flags";

const fn field(global: &'static str, structure: &'static str, member: &'static str) -> Field {
    Field {
        global,
        structure,
        member,
        programs: &[],
    }
}

/// Where the kernel marks a 32-bit call, and the way from a descriptor to its device. Without the
/// first 32-bit processes' calls may be in the wrong class (kernels without 32-bit support lack it
/// too); without the others the GPU's calls are among the other device control.
const FIELDS: &[Field] = &[
    field("TASK_THREAD_STATUS", "task_struct", THREAD_STATUS),
    field("TASK_FILES", "task_struct", "files"),
    field("FILES_TABLE", "files_struct", "fdt"),
    field("TABLE_LENGTH", "fdtable", "max_fds"),
    field("TABLE_FILES", "fdtable", "fd"),
    field("FILE_INODE", "file", "f_inode"),
    field("INODE_DEVICE", "inode", "i_rdev"),
];

// SAFETY: repr(C), u64 only.
unsafe impl Words for Start {}

/// Which calls are timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Timing {
    /// Every one.
    #[default]
    Exact,
    /// One in [`SAMPLED_ONE_IN`].
    Sampled,
}

impl Timing {
    /// Of so many calls one is timed.
    pub const fn one_in(self) -> u32 {
        match self {
            Self::Exact => 1,
            Self::Sampled => SAMPLED_ONE_IN,
        }
    }
}

/// Neither `exact` nor `sampled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("neither exact nor sampled")]
pub struct UnknownTiming;

impl FromStr for Timing {
    type Err = UnknownTiming;

    fn from_str(name: &str) -> Result<Self, UnknownTiming> {
        match name {
            "exact" => Ok(Self::Exact),
            "sampled" => Ok(Self::Sampled),
            _ => Err(UnknownTiming),
        }
    }
}

/// What a service's calls of one class came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClassCalls {
    /// Calls that began.
    pub calls: u64,
    /// Those that were timed and have ended.
    pub timed: Durations,
}

impl ClassCalls {
    /// What came since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            calls: self.calls.wrapping_sub(earlier.calls),
            timed: self.timed.since(&earlier.timed),
        }
    }
}

type Row = [ClassCalls; CLASS_CELLS];

/// One service's calls since it was first counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyscallCounts {
    /// The service.
    pub service: ServiceId,
    by_class: Row,
}

impl SyscallCounts {
    /// Calls of one class.
    pub fn of(&self, class: Class) -> u64 {
        self.class(class).calls
    }

    /// Calls of one class and their times.
    pub fn class(&self, class: Class) -> ClassCalls {
        self.by_class
            .get(class as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Each class.
    pub fn iter(&self) -> impl Iterator<Item = (Class, &ClassCalls)> {
        Class::ALL.into_iter().zip(&self.by_class)
    }
}

#[derive(Debug)]
struct Counted {
    service: ServiceId,
    row: u8,
    /// What the row held when the service got it.
    base: Box<Row>,
}

/// The running probe.
#[derive(Debug)]
pub struct SyscallProbe {
    rows: SharedMemory,
    counts: SharedArray<CpuCounts>,
    times: SharedArray<CpuTimes>,
    counted: Vec<Counted>,
}

impl SyscallProbe {
    /// Services that can be counted at a time.
    pub const MOST_SERVICES: usize = ROWS - 1;

    /// Its programs.
    pub const PROGRAMS: &[&str] = &[ENTER, EXIT];

    /// What the probe needs of the loader, beside what [`Owners::configure`] adds. Leave it out
    /// if the probe will not be asked for: its counters take 132 KiB on each CPU.
    pub fn configure(options: &mut Options, timing: Timing, gpus: GpuDevices) {
        let cpus = possible_cpus();
        options
            .fields(FIELDS)
            .map_entries(COUNTS, cpus)
            .map_entries(TIMES, cpus)
            .map_entries(START_TABLE, STARTS)
            .global("SYSCALL_UNTIMED", (timing.one_in() - 1).to_ne_bytes())
            .global("GPU_MAJOR", gpus.control.to_ne_bytes())
            .global("GPU_MEMORY_MAJOR", gpus.memory.unwrap_or(0).to_ne_bytes());
    }

    /// Attaches the probe; nothing is counted yet. Where only the calls' ends are not seen, calls
    /// are counted and not timed.
    pub fn attach(loader: &mut Loader) -> Result<Self, ProbeError> {
        let rows = loader.shared_bytes(ROW_TABLE)?;
        let counts = loader.shared_array(COUNTS)?;
        let times = loader.shared_array(TIMES)?;
        loader.attach_btf_tracepoint(ENTER, "sys_enter")?;
        // Its verdict is kept by the loader.
        let _ = loader.attach_btf_tracepoint(EXIT, "sys_exit");
        Ok(Self {
            rows,
            counts,
            times,
            counted: Vec::new(),
        })
    }

    /// Counts the calls of `services` from now on, and of no others. A service that was counted
    /// goes on; one that has no process in `owners` yet is left out until the next call. Returns
    /// how many there was no room for.
    pub fn set_services(&mut self, owners: &Owners, services: &[ServiceId]) -> usize {
        self.counted
            .retain(|counted| services.contains(&counted.service));
        let mut refused = 0;
        for service in services {
            if owners.service_index(*service).is_none()
                || self
                    .counted
                    .iter()
                    .any(|counted| counted.service == *service)
            {
                continue;
            }
            let free =
                (1..ROWS as u8).find(|row| self.counted.iter().all(|counted| counted.row != *row));
            let Some(row) = free else {
                refused += 1;
                continue;
            };
            let base = Box::new(self.row(row));
            self.counted.push(Counted {
                service: *service,
                row,
                base,
            });
        }
        for index in FIRST_SERVICE as usize..OWNERS {
            let row = self
                .counted
                .iter()
                .find(|counted| owners.service_index(counted.service) == Some(index as u8))
                .map_or(0, |counted| counted.row);
            self.rows.set_byte(index, row);
        }
        refused
    }

    /// Every counted service's calls since it was first counted. No system call.
    pub fn read(&self) -> Vec<SyscallCounts> {
        self.counted
            .iter()
            .map(|counted| {
                let mut by_class = self.row(counted.row);
                for (now, base) in by_class.iter_mut().zip(counted.base.iter()) {
                    *now = now.since(base);
                }
                SyscallCounts {
                    service: counted.service,
                    by_class,
                }
            })
            .collect()
    }

    /// Calls that were not timed because another thread needed the place of their start, at most:
    /// threads that were killed in a call are among them.
    pub fn untimed(&self) -> u64 {
        let of = |cpu| self.counts.word(cpu, 0).unwrap_or(0);
        (0..self.counts.len()).map(of).sum()
    }

    /// Takes the hooks off; the machine's system calls cost what they did before.
    pub fn detach(self, loader: &mut Loader) {
        for program in Self::PROGRAMS {
            loader.detach(program);
        }
    }

    fn row(&self, row: u8) -> Row {
        let mut sums = Row::default();
        for (class, sum) in sums.iter_mut().enumerate().take(Class::ALL.len()) {
            let cell = row as usize * CLASS_CELLS + class;
            for cpu in 0..self.counts.len() {
                let count = self.counts.word(cpu, cell).unwrap_or(0);
                sum.calls = sum.calls.wrapping_add(count);
                let word = |at| self.times.word(cpu, cell * TIME_WORDS + at).unwrap_or(0);
                sum.timed.nanos = sum.timed.nanos.wrapping_add(word(0));
                for (bucket, count) in sum.timed.counts.iter_mut().enumerate() {
                    *count = count.wrapping_add(word(1 + bucket));
                }
            }
        }
        sums
    }
}
