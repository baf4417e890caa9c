//! What the threads of services do while they do not run. A thread's state is kept in a slot of its
//! own: from its wake-up to its next run it is in the run queue, and so it is from losing its CPU
//! while runnable; else it is blocked, for a reason found where it blocks. Foreign threads cost one
//! look at their owner.
//!
//! The kernel calls each of these hooks under the lock of the run queue that the thread is on
//! (`__schedule`, `ttwu_do_wakeup`, `wake_up_new_task`), so no two CPUs write one slot at a time. The
//! exception, a thread that wakes itself, changes nothing here. Source: `kernel/sched/core.c`.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::ABSENT;
use profiler_ebpf::http1::mask;
use profiler_ebpf::owners::{FIRST_SERVICE, OWNERS, OwnerIndex, SELF_TEST};
use profiler_ebpf::sched::waits::{
    BLOCKED, CELLS, CpuWaits, DISK_WAITS, INVOLUNTARY, MIGRATIONS, NO_CPU, OFF_CPU, PUT_OFF, REACH,
    REASONS, REFUSED, ROWS, RUN_QUEUE, RUNNING, Reason, SLOTS, ThreadSlot, UNKNOWN, UNSEEN,
    VOLUNTARY, WAITS, WOKEN, bucket_of, home_of, packed,
};

use super::{off_cpu, reasons, unseen_arrival};
use crate::probes::MMAPABLE;
use crate::probes::owners::{TASK_PID, TASK_TGID, owner_of, task_field};

/// Sized by the loader.
#[map]
static THREADS: Array<ThreadSlot> = Array::with_max_entries(1, MMAPABLE);

/// Each owner's row in the counters, by its index; 0 = not counted.
#[map]
static WAIT_ROWS: Array<[u8; OWNERS]> = Array::with_max_entries(1, MMAPABLE);

/// One entry a CPU, sized by the loader.
#[map]
static WAITS_OF_CPU: Array<CpuWaits> = Array::with_max_entries(1, MMAPABLE);

/// 1 if threads are followed; else the verifier removes what follows them.
#[unsafe(no_mangle)]
static FOLLOW_THREADS: Global<u8> = Global::new(0);

#[unsafe(no_mangle)]
static TASK_STATE: Global<u32> = Global::new(ABSENT);

/// The thread has run for the last time.
const TASK_DEAD: u32 = 0x80;

/// Whether the agent wants it and this kernel's threads say their state.
#[inline(always)]
pub(super) fn are_followed() -> bool {
    FOLLOW_THREADS.load() != 0 && TASK_STATE.load() != ABSENT && TASK_PID.load() != ABSENT
}

/// A service's counters on this CPU.
#[derive(Clone, Copy)]
struct Row(*mut u64);

impl Row {
    /// Of an owner that is counted.
    #[inline(always)]
    fn of(owner: OwnerIndex) -> Option<Self> {
        if !(FIRST_SERVICE..SELF_TEST).contains(&owner) {
            return None;
        }
        let rows = WAIT_ROWS.get_ptr(0)?;
        // SAFETY: an owner's index is below the number of rows by its type.
        let row = unsafe { read_volatile(rows.cast::<u8>().add(owner as usize)) };
        if row == 0 {
            return None;
        }
        // SAFETY: the helper has no preconditions.
        let counters = WAITS_OF_CPU.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })?;
        let first = mask::<{ ROWS as i32 - 1 }>(u64::from(row)) as usize * CELLS;
        // SAFETY: masked below the number of rows.
        Some(Self(unsafe { counters.cast::<u64>().add(first) }))
    }

    /// Adds to a cell below [`CELLS`], which is this CPU's own.
    #[inline(always)]
    fn add(self, cell: usize, value: u64) {
        // SAFETY: callers name cells of a row.
        unsafe {
            let cell = self.0.add(cell);
            write_volatile(cell, read_volatile(cell).wrapping_add(value));
        }
    }

    #[inline(always)]
    fn add_off_cpu(self, slot: *mut ThreadSlot, reason: u64, nanos: u64) {
        let reason = mask::<{ REASONS as i32 - 1 }>(reason) as usize;
        self.add(OFF_CPU + reason, nanos);
        // SAFETY: masked below the slot's reasons.
        unsafe { add((&raw mut (*slot).off_cpu).cast::<u64>().add(reason), nanos) };
    }
}

/// # Safety
/// `cell` must lie in a map, and nobody else may write it meanwhile.
#[inline(always)]
unsafe fn add(cell: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { write_volatile(cell, read_volatile(cell).wrapping_add(value)) };
}

#[inline(always)]
fn slot_at(tid: u32, step: u32) -> Option<*mut ThreadSlot> {
    THREADS.get_ptr_mut(home_of(tid).wrapping_add(step) & (SLOTS as u32 - 1))
}

/// The thread's slot, if it has one.
#[inline(always)]
fn find(tid: u32) -> Option<*mut ThreadSlot> {
    let mut step = 0;
    while step < REACH {
        let slot = slot_at(tid, step)?;
        // SAFETY: an entry of the map.
        if unsafe { read_volatile(&raw const (*slot).holder) } as u32 == tid {
            return Some(slot);
        }
        step += 1;
    }
    None
}

/// The thread's slot: its own, else one that is free or whose process is no service's any more.
#[inline(always)]
fn find_or_claim(tid: u32, tgid: u32) -> Option<*mut ThreadSlot> {
    let holder = u64::from(tgid) << 32 | u64::from(tid);
    if let Some(slot) = find(tid) {
        // SAFETY: an entry of the map, and this thread's.
        unsafe {
            if read_volatile(&raw const (*slot).holder) != holder {
                clear(slot);
                write_volatile(&raw mut (*slot).holder, holder);
            }
        }
        return Some(slot);
    }
    claim(tid, holder)
}

/// Seldom: once in a thread's life.
#[inline(never)]
fn claim(tid: u32, holder: u64) -> Option<*mut ThreadSlot> {
    let mut step = 0;
    while step < REACH {
        let slot = slot_at(tid, step)?;
        // SAFETY: an entry of the map; it is this CPU's from the exchange on.
        unsafe {
            let at = &raw mut (*slot).holder;
            let other = read_volatile(at);
            let is_free =
                other == 0 || !(FIRST_SERVICE..SELF_TEST).contains(&owner_of((other >> 32) as u32));
            if is_free && exchange_if(at, other, holder) == other {
                clear(slot);
                return Some(slot);
            }
        }
        step += 1;
    }
    None
}

/// # Safety
/// `slot` must be an entry of the map that nobody else writes.
#[inline(always)]
unsafe fn clear(slot: *mut ThreadSlot) {
    let mut word = 1;
    while word < size_of::<ThreadSlot>() / 8 {
        // SAFETY: a word of the slot.
        unsafe { write_volatile(slot.cast::<u64>().add(word), 0) };
        word += 1;
    }
}

/// Writes `new` if `expected` is there, in one step of all CPUs; what was there.
///
/// # Safety
/// `at` must be an aligned word of a map's value.
#[inline(always)]
unsafe fn exchange_if(at: *mut u64, expected: u64, new: u64) -> u64 {
    let mut found = expected;
    // SAFETY: one instruction; the caller's promise.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inout("r0") found,
        );
    }
    found
}

/// Begins a state.
///
/// # Safety
/// `slot` must be the thread's.
#[inline(always)]
unsafe fn begin(slot: *mut ThreadSlot, now: u64, state: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        write_volatile(&raw mut (*slot).since, now);
        write_volatile(&raw mut (*slot).state, state);
    }
}

/// The state of a slot, its reason, the last CPU, and how long the state has lasted.
///
/// # Safety
/// `slot` must be the thread's.
#[inline(always)]
unsafe fn state_of(slot: *mut ThreadSlot, now: u64) -> (u8, u64, u32, u64) {
    // SAFETY: the caller's promise.
    let (state, since) = unsafe {
        (
            read_volatile(&raw const (*slot).state),
            read_volatile(&raw const (*slot).since),
        )
    };
    // Another CPU's clock may be ahead by a little.
    let lasted = if now > since { now - since } else { 0 };
    (state as u8, state >> 8 & 0xff, (state >> 32) as u32, lasted)
}

/// The thread that runs leaves its CPU.
///
/// # Safety
/// `ctx` must be of `sched_switch`.
#[inline(always)]
pub(super) unsafe fn leave(
    ctx: &BtfTracePointContext,
    owner: OwnerIndex,
    now: u64,
    cpu: u32,
    preempted: bool,
    clock_lead: u64,
) {
    let Some(row) = Row::of(owner) else {
        return;
    };
    let task: *const u8 = ctx.arg(1);
    // SAFETY: the caller's promise; the slot is this thread's.
    unsafe {
        let (tid, state) = (task_field(task, &TASK_PID), task_field(task, &TASK_STATE));
        // One that is preempted on its way out runs once more.
        if state & TASK_DEAD != 0 && !preempted {
            if let Some(slot) = find(tid) {
                write_volatile(&raw mut (*slot).holder, 0);
            }
            return;
        }
        let Some(slot) = find_or_claim(tid, task_field(task, &TASK_TGID)) else {
            row.add(REFUSED, 1);
            return;
        };
        let (before, _, _, lasted) = state_of(slot, now);
        if before == RUNNING {
            add(&raw mut (*slot).on_cpu, lasted);
        } else if before != UNKNOWN {
            // Its arrival was not seen.
            row.add(UNSEEN, 1);
            let since = now - lasted;
            let began = unseen_arrival(task, clock_lead, since, now);
            if began != 0 {
                add(&raw mut (*slot).on_cpu, now - began);
                if before != BLOCKED {
                    arrived(slot, row, before, began - since);
                }
            }
        }
        // One that is preempted on its way to sleep stays in the run queue, whatever its state says;
        // and one that a signal keeps from sleeping has been set to running again (0).
        if preempted || state == 0 {
            add(&raw mut (*slot).involuntary, 1);
            row.add(INVOLUNTARY, 1);
            begin(slot, now, packed(PUT_OFF, Reason::Preempted as u8, cpu));
        } else {
            add(&raw mut (*slot).voluntary, 1);
            row.add(VOLUNTARY, 1);
            let reason = reasons::of_current(state);
            begin(slot, now, packed(BLOCKED, reason, cpu));
            off_cpu::begin(ctx, tid, now);
        }
    }
}

/// Books a wait in the run queue, which has ended.
///
/// # Safety
/// `slot` must be the thread's.
#[inline(always)]
unsafe fn arrived(slot: *mut ThreadSlot, row: Row, before: u8, waited: u64) {
    // SAFETY: the caller's promise.
    unsafe { add(&raw mut (*slot).run_queue, waited) };
    row.add(RUN_QUEUE, waited);
    row.add(WAITS + bucket_of(waited), 1);
    if before == PUT_OFF {
        row.add_off_cpu(slot, Reason::Preempted as u64, waited);
    }
}

/// A thread gets a CPU.
///
/// # Safety
/// `task` must be the tracepoint's argument.
#[inline(always)]
pub(super) unsafe fn arrive(task: *const u8, tgid: u32, now: u64, cpu: u32) {
    let Some(row) = Row::of(owner_of(tgid)) else {
        return;
    };
    // SAFETY: the caller's promise; the slot is this thread's.
    unsafe {
        let Some(slot) = find_or_claim(task_field(task, &TASK_PID), tgid) else {
            row.add(REFUSED, 1);
            return;
        };
        let (before, reason, last_cpu, lasted) = state_of(slot, now);
        if before == WOKEN || before == PUT_OFF {
            arrived(slot, row, before, lasted);
        } else if before == BLOCKED {
            row.add_off_cpu(slot, reason, lasted);
            row.add(UNSEEN, 1);
        }
        if before != UNKNOWN && last_cpu != NO_CPU && last_cpu != cpu {
            add(&raw mut (*slot).migrations, 1);
            row.add(MIGRATIONS, 1);
        }
        begin(slot, now, packed(RUNNING, 0, cpu));
    }
}

/// A thread becomes runnable.
///
/// # Safety
/// `task` must be the tracepoint's argument.
#[inline(always)]
pub(super) unsafe fn wake(task: *const u8) {
    if !are_followed() {
        return;
    }
    // SAFETY: the caller's promise; the slot is this thread's.
    unsafe {
        let (tid, tgid) = (task_field(task, &TASK_PID), task_field(task, &TASK_TGID));
        let owner = owner_of(tgid);
        let Some(row) = Row::of(owner) else {
            return;
        };
        let Some(slot) = find_or_claim(tid, tgid) else {
            row.add(REFUSED, 1);
            return;
        };
        let now = bpf_ktime_get_ns();
        let (before, reason, cpu, lasted) = state_of(slot, now);
        if before == BLOCKED {
            row.add_off_cpu(slot, reason, lasted);
            if reason == Reason::Disk as u64 {
                row.add(DISK_WAITS + bucket_of(lasted), 1);
            }
            off_cpu::end((tid, tgid), owner, reason, now - lasted, lasted);
            begin(slot, now, packed(WOKEN, 0, cpu));
        } else if before == UNKNOWN {
            // New, or never seen before: its first run is no migration.
            begin(slot, now, packed(WOKEN, 0, NO_CPU));
        }
        // One that still runs, or still waits, was woken on its way to sleep.
    }
}
