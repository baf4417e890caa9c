//! System calls of chosen services by class. Opt-in: attached, the hook slows every system call
//! of the machine a little, also of processes that nobody counts.

use profiler_ebpf::owners::{FIRST_SERVICE, OWNERS};
use profiler_ebpf::syscalls::{CLASS_CELLS, Class, CpuCounts, ROWS};

use super::health::Verdict;
use super::load_error::ProbeError;
use super::loader::{Field, Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::{SharedArray, SharedMemory, Words};
use crate::ledger::ServiceId;

const PROGRAM: &str = "sys_enter";
const ROW_TABLE: &str = "SYSCALL_ROWS";
const COUNTS: &str = "SYSCALL_COUNTS";

/// Where the kernel marks a 32-bit call. Without it 32-bit processes' calls may be in the wrong
/// class; kernels without 32-bit support lack it too.
const FIELDS: &[Field] = &[Field {
    global: "TASK_THREAD_STATUS",
    structure: "task_struct",
    member: "thread_info.status",
    programs: &[],
}];

// SAFETY: u64 only.
unsafe impl Words for CpuCounts {}

/// One service's calls since it was first counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyscallCounts {
    /// The service.
    pub service: ServiceId,
    by_class: [u64; CLASS_CELLS],
}

impl SyscallCounts {
    /// Calls of one class.
    pub fn of(&self, class: Class) -> u64 {
        self.by_class.get(class as usize).copied().unwrap_or(0)
    }

    /// Calls of each class.
    pub fn iter(&self) -> impl Iterator<Item = (Class, u64)> {
        Class::ALL.into_iter().zip(self.by_class)
    }
}

#[derive(Debug)]
struct Counted {
    service: ServiceId,
    row: u8,
    /// What the row held when the service got it.
    base: [u64; CLASS_CELLS],
}

/// The running probe.
#[derive(Debug)]
pub struct SyscallProbe {
    rows: SharedMemory,
    counts: SharedArray<CpuCounts>,
    counted: Vec<Counted>,
}

impl SyscallProbe {
    /// Services that can be counted at a time.
    pub const MOST_SERVICES: usize = ROWS - 1;

    /// What the probe needs of the loader, beside what [`Owners::configure`] adds. Leave it out
    /// if the probe will not be asked for: its counters take memory on each CPU.
    pub fn configure(options: &mut Options) {
        options.fields(FIELDS).map_entries(COUNTS, possible_cpus());
    }

    /// Attaches the probe; nothing is counted yet.
    pub fn attach(loader: &mut Loader) -> Result<Self, ProbeError> {
        if !cfg!(target_arch = "x86_64") {
            let error = ProbeError::Unsupported {
                program: PROGRAM,
                reason: "calls are classed for x86-64 only".to_owned(),
            };
            loader.mark(PROGRAM, Verdict::Unsupported, error.to_string());
            return Err(error);
        }
        let rows = loader.shared_bytes(ROW_TABLE)?;
        let counts = loader.shared_array(COUNTS)?;
        loader.attach_btf_tracepoint(PROGRAM, PROGRAM)?;
        Ok(Self {
            rows,
            counts,
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
            let base = self.row(row);
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
                for (now, base) in by_class.iter_mut().zip(counted.base) {
                    *now = now.wrapping_sub(base);
                }
                SyscallCounts {
                    service: counted.service,
                    by_class,
                }
            })
            .collect()
    }

    /// Takes the hook off; the machine's system calls cost what they did before.
    pub fn detach(self, loader: &mut Loader) {
        loader.detach(PROGRAM);
    }

    fn row(&self, row: u8) -> [u64; CLASS_CELLS] {
        let mut sums = [0u64; CLASS_CELLS];
        for cpu in 0..self.counts.len() {
            for (class, sum) in sums.iter_mut().enumerate() {
                let count = self
                    .counts
                    .word(cpu, row as usize * CLASS_CELLS + class)
                    .unwrap_or(0);
                *sum = sum.wrapping_add(count);
            }
        }
        sums
    }
}
