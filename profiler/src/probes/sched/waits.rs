//! What the threads of services waited for, as the kernel side booked it: per service, and per
//! thread.
//!
//! In: counters of each CPU and slots of threads, in shared memory; no system call is made to read
//! them. Out: [`Waits`] since the last read, and [`ThreadTimes`]. A wait is in a service's counters
//! once it has ended; a thread's times also hold the one that lasts.

use std::path::Path;
use std::str::FromStr;

use profiler_ebpf::sched::waits::{
    BLOCKED, CELLS, CpuWaits, DISK_WAITS, INVOLUNTARY, MIGRATIONS, OFF_CPU, PUT_OFF, REASONS,
    REFUSED, ROWS, RUN_QUEUE, RUNNING, Reason, SLOTS, ThreadSlot, UNSEEN, VOLUNTARY, WAITS, WOKEN,
};
use serde::Deserialize;
use thiserror::Error;

use super::{field, monotonic};
use crate::ledger::ServiceId;
use crate::probes::load_error::ProbeError;
use crate::probes::loader::{Field, Loader, Options, possible_cpus};
use crate::probes::owners::Owners;
use crate::probes::shared_memory::{SharedArray, SharedMemory, Words};
use crate::waits::{ThreadTimes, Waits};

const THREADS: &str = "THREADS";
const ROW_TABLE: &str = "WAIT_ROWS";
const COUNTERS: &str = "WAITS_OF_CPU";

/// The field without which no thread is followed.
pub(super) const STATE: &str = "TASK_STATE";

/// Without the others than the first, reasons are told less finely.
const FIELDS: &[Field] = &[
    field(STATE, "task_struct", "__state"),
    field("TASK_THREAD_STATUS", "task_struct", "thread_info.status"),
    field("TASK_FILES", "task_struct", "files"),
    field("FILES_TABLE", "files_struct", "fdt"),
    field("TABLE_LENGTH", "fdtable", "max_fds"),
    field("TABLE_FILES", "fdtable", "fd"),
    field("FILE_INODE", "file", "f_inode"),
    field("INODE_MODE", "inode", "i_mode"),
];

// SAFETY: repr(C), u64 only.
unsafe impl Words for ThreadSlot {}

/// What is told of threads that do not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Detail {
    /// Nothing: only on-CPU time is booked.
    #[serde(rename = "off")]
    Nothing,
    /// The run queue, switches, migrations; of time off CPU only what is preempted, all else is
    /// `other`.
    RunQueue,
    /// Also why they block.
    Reasons,
}

/// What lies between two readings of a row.
fn between(before: &[u64; CELLS], after: &[u64; CELLS]) -> Waits {
    let gained = |cell: usize| {
        let at = |row: &[u64; CELLS]| row.get(cell).copied().unwrap_or(0);
        at(after).wrapping_sub(at(before))
    };
    Waits {
        run_queue: gained(RUN_QUEUE),
        histogram: std::array::from_fn(|bucket| gained(WAITS + bucket)),
        disk_histogram: std::array::from_fn(|bucket| gained(DISK_WAITS + bucket)),
        off_cpu: std::array::from_fn(|reason| gained(OFF_CPU + reason)),
        voluntary: gained(VOLUNTARY),
        involuntary: gained(INVOLUNTARY),
        migrations: gained(MIGRATIONS),
    }
}

/// What a slot tells up to `now`; `None` for a free one.
fn times_of(slot: &ThreadSlot, now: u64) -> Option<ThreadTimes> {
    let (tid, tgid) = (slot.holder as u32, (slot.holder >> 32) as u32);
    if tid == 0 {
        return None;
    }
    let mut times = ThreadTimes {
        tid,
        tgid,
        on_cpu: slot.on_cpu,
        run_queue: slot.run_queue,
        off_cpu: slot.off_cpu,
        voluntary: slot.voluntary,
        involuntary: slot.involuntary,
        migrations: slot.migrations,
    };
    let lasted = now.saturating_sub(slot.since);
    let mut off = |reason: usize| {
        if let Some(sum) = times.off_cpu.get_mut(reason) {
            *sum += lasted;
        }
    };
    match slot.state as u8 {
        RUNNING => times.on_cpu += lasted,
        WOKEN => times.run_queue += lasted,
        PUT_OFF => {
            off(Reason::Preempted as usize);
            times.run_queue += lasted;
        }
        BLOCKED => off((slot.state >> 8) as usize & (REASONS - 1)),
        _ => {}
    }
    Some(times)
}

impl FromStr for Detail {
    type Err = UnknownDetail;

    fn from_str(name: &str) -> Result<Self, UnknownDetail> {
        match name {
            "off" => Ok(Self::Nothing),
            "run-queue" => Ok(Self::RunQueue),
            "reasons" => Ok(Self::Reasons),
            _ => Err(UnknownDetail),
        }
    }
}

/// No [`Detail`] of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected off, run-queue or reasons")]
pub struct UnknownDetail;

/// What could not be followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WaitLosses {
    /// Looks for a thread's slot that found none free: its times are in no figure.
    pub no_slot: u64,
    /// Switches and wake-ups that were not seen, as what came next tells: a blocked thread that ran again
    /// counts as blocked until then, one in the run queue that left a CPU is told neither there nor on it.
    pub unseen: u64,
    /// Services for which there was no row.
    pub no_row: u64,
}

#[derive(Debug)]
struct Counted {
    service: ServiceId,
    row: u8,
    /// What the row held when it was read last.
    told: [u64; CELLS],
}

/// The reader of waits.
#[derive(Debug)]
pub(super) struct WaitReader {
    rows: SharedMemory,
    counters: SharedArray<CpuWaits>,
    threads: SharedArray<ThreadSlot>,
    counted: Vec<Counted>,
    no_row: u64,
}

/// Asks the loader for what following threads needs; for [`Detail::Nothing`] no map takes memory.
pub(super) fn configure(options: &mut Options, detail: Detail) {
    if detail == Detail::Nothing {
        return;
    }
    options
        .fields(FIELDS)
        .map_entries(THREADS, SLOTS as u32)
        .map_entries(COUNTERS, possible_cpus())
        .global("FOLLOW_THREADS", [1]);
    if detail == Detail::Reasons {
        options.global("BLOCK_REASONS", [1]);
    }
}

impl WaitReader {
    pub(super) fn new(loader: &Loader) -> Result<Self, ProbeError> {
        Ok(Self {
            rows: loader.shared_bytes(ROW_TABLE)?,
            counters: loader.shared_array(COUNTERS)?,
            // To write too: slots are freed here.
            threads: SharedArray::new(loader.shared_bytes(THREADS)?)
                .ok_or(ProbeError::MapShape { map: THREADS })?,
            counted: Vec::new(),
            no_row: 0,
        })
    }

    /// The threads of this service are followed from now on. One that has no process in `owners` is
    /// not yet.
    pub(super) fn follow(&mut self, owners: &Owners, service: ServiceId) {
        let Some(index) = owners.service_index(service) else {
            return;
        };
        if self
            .counted
            .iter()
            .any(|counted| counted.service == service)
        {
            return;
        }
        let free =
            (1..ROWS as u8).find(|row| self.counted.iter().all(|counted| counted.row != *row));
        let Some(row) = free else {
            self.no_row += 1;
            return;
        };
        self.counted.push(Counted {
            service,
            row,
            told: self.row(row),
        });
        self.rows.set_byte(index as usize, row);
    }

    /// The service has ended: its row is free. To be called while it still has its place in
    /// `owners`.
    pub(super) fn forget(&mut self, owners: &Owners, service: ServiceId) {
        if let Some(index) = owners.service_index(service) {
            self.rows.set_byte(index as usize, 0);
        }
        self.counted.retain(|counted| counted.service != service);
    }

    /// Frees the slots of threads whose end was not seen. Asks /proc for each that has been in one state
    /// for longer than `quiet` nanoseconds.
    pub(super) fn sweep(&mut self, quiet: u64) {
        let now = monotonic();
        for place in 0..self.threads.len() {
            let word = |word| self.threads.word(place, word).unwrap_or(0);
            let (holder, since) = (word(0), word(1));
            if holder == 0 || now.saturating_sub(since) < quiet {
                continue;
            }
            let (tid, tgid) = (holder as u32, (holder >> 32) as u32);
            if Path::new(&format!("/proc/{tgid}/task/{tid}")).exists() {
                continue;
            }
            self.threads.clear_first_word(place);
        }
    }

    /// What each followed service's threads did since the last read.
    pub(super) fn read(&mut self) -> Vec<(ServiceId, Waits)> {
        let mut counted = std::mem::take(&mut self.counted);
        let gains = counted
            .iter_mut()
            .map(|counted| {
                let now = self.row(counted.row);
                let before = std::mem::replace(&mut counted.told, now);
                (counted.service, between(&before, &now))
            })
            .collect();
        self.counted = counted;
        gains
    }

    pub(super) fn losses(&self) -> WaitLosses {
        let sum = |cell: usize| {
            let rows =
                (0..ROWS).flat_map(|row| (0..self.counters.len()).map(move |cpu| (row, cpu)));
            rows.filter_map(|(row, cpu)| self.counters.word(cpu, row * CELLS + cell))
                .sum()
        };
        WaitLosses {
            no_slot: sum(REFUSED),
            unseen: sum(UNSEEN),
            no_row: self.no_row,
        }
    }

    fn row(&self, row: u8) -> [u64; CELLS] {
        let first = row as usize * CELLS;
        std::array::from_fn(|cell| {
            let of_cpu = |cpu| self.counters.word(cpu, first + cell).unwrap_or(0);
            (0..self.counters.len()).fold(0u64, |sum, cpu| sum.wrapping_add(of_cpu(cpu)))
        })
    }

    /// Every followed thread.
    pub(super) fn threads(&self) -> Vec<ThreadTimes> {
        (0..self.threads.len())
            .filter(|place| {
                self.threads
                    .word(*place, 0)
                    .is_some_and(|holder| holder != 0)
            })
            .filter_map(|place| self.slot(place))
            .collect()
    }

    /// The thread in this slot, if it is still `tid`.
    pub(super) fn thread_at(&self, place: usize, tid: u32) -> Option<ThreadTimes> {
        self.slot(place).filter(|times| times.tid == tid)
    }

    /// Where each thread's slot is, by thread id, of those that these processes have.
    pub(super) fn places_of(&self, is_wanted: impl Fn(u32) -> bool) -> Vec<(usize, ThreadTimes)> {
        let holder = |place| self.threads.word(place, 0).unwrap_or(0);
        (0..self.threads.len())
            .filter(|place| {
                let holder = holder(*place);
                holder != 0 && is_wanted((holder >> 32) as u32)
            })
            .filter_map(|place| Some((place, self.slot(place)?)))
            .collect()
    }

    /// A slot's times up to now. It is read again if its state changed in between; one that changes all
    /// the time is told as it was read last.
    fn slot(&self, place: usize) -> Option<ThreadTimes> {
        const TRIES: usize = 4;
        let mut slot = self.threads.get(place)?;
        for _ in 0..TRIES {
            let again = self.threads.get(place)?;
            if again == slot {
                break;
            }
            slot = again;
        }
        times_of(&slot, monotonic())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use profiler_ebpf::sched::waits::packed;

    fn slot(state: u64) -> ThreadSlot {
        ThreadSlot {
            holder: 7 << 32 | 9,
            since: 1_000,
            state,
            on_cpu: 10,
            run_queue: 20,
            voluntary: 1,
            involuntary: 2,
            migrations: 3,
            off_cpu: [0; REASONS],
        }
    }

    #[test]
    fn a_state_that_lasts_is_told_up_to_now() {
        let times = |state| times_of(&slot(state), 1_500).unwrap();
        let running = times(packed(RUNNING, 0, 3));
        assert_eq!((running.tid, running.tgid), (9, 7));
        assert_eq!((running.on_cpu, running.run_queue), (510, 20));
        let preempted = times(packed(PUT_OFF, Reason::Preempted as u8, 3));
        assert_eq!((preempted.on_cpu, preempted.run_queue), (10, 520));
        assert_eq!(preempted.off_cpu(Reason::Preempted), 500);
        let blocked = times(packed(BLOCKED, Reason::Futex as u8, 3));
        assert_eq!((blocked.on_cpu, blocked.run_queue), (10, 20));
        assert_eq!(blocked.off_cpu(Reason::Futex), 500);
    }

    #[test]
    fn a_free_slot_is_nobody() {
        let mut free = slot(0);
        free.holder = 0;
        assert_eq!(times_of(&free, 2_000), None);
    }

    #[test]
    fn a_read_tells_what_came_since_the_last() {
        let mut row = [0; CELLS];
        let before = row;
        row[RUN_QUEUE] = 5;
        row[WAITS + 3] = 2;
        row[DISK_WAITS + 20] = 1;
        row[OFF_CPU + Reason::Disk as usize] = 11;
        let gained = between(&before, &row);
        assert_eq!((gained.run_queue, gained.histogram[3]), (5, 2));
        assert_eq!(gained.disk_histogram[20], 1);
        assert_eq!(gained.off_cpu(Reason::Disk), 11);
        assert_eq!(between(&row, &row), Waits::default());
    }
}
