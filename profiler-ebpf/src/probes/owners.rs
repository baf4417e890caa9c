//! The table of processes' owners, and its inheritance at fork: a service's short-lived child is
//! the service's from its first instruction. A fork always writes the child's cell, so a reused
//! process id never keeps the owner of a process that has exited.

use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::BtfTracePointContext;
use aya_ebpf::{EbpfContext as _, Global};
use aya_log_ebpf::debug;
use profiler_ebpf::ABSENT;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::{AGENT, OTHER, OwnerIndex, PROCESSES_PER_ENTRY, SELF_TEST, entry_of};

use super::MMAPABLE;
use super::cost::Running;

/// Sized by the loader from `kernel.pid_max`.
#[map]
static PROCESS_OWNERS: Array<[OwnerIndex; PROCESSES_PER_ENTRY]> =
    Array::with_max_entries(1, MMAPABLE);

#[unsafe(no_mangle)]
pub(crate) static TASK_PID: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
pub(crate) static TASK_TGID: Global<u32> = Global::new(ABSENT);

/// The cell of `tgid`; `None` for an id above the `pid_max` the table was made for.
#[inline(always)]
fn cell(tgid: u32) -> Option<*mut OwnerIndex> {
    let entry = PROCESS_OWNERS.get_ptr_mut(entry_of(tgid))?;
    let place = (tgid % PROCESSES_PER_ENTRY as u32) as usize;
    // SAFETY: `place` is less than the entry's length.
    Some(unsafe { entry.cast::<OwnerIndex>().add(place) })
}

/// The owner of process `tgid`.
#[inline(always)]
pub(crate) fn owner_of(tgid: u32) -> OwnerIndex {
    match cell(tgid) {
        // SAFETY: the cell lies in the map; the agent writes single bytes.
        Some(cell) => unsafe { core::ptr::read_volatile(cell) },
        None => OTHER,
    }
}

/// A `u32` member of a task at an offset from the kernel's own types.
///
/// # Safety
/// `task` must be a trusted pointer to a `task_struct` from the program's arguments; then the
/// verifier itself checks the offset, which it knows as a constant.
#[inline(always)]
pub(crate) unsafe fn task_field(task: *const u8, offset: &Global<u32>) -> u32 {
    // SAFETY: see above.
    unsafe { *task.add(offset.load() as usize).cast::<u32>() }
}

/// `sched_process_fork(struct task_struct *parent, struct task_struct *child)`: runs before the
/// child does.
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SchedProcessFork);
    let child: *const u8 = ctx.arg(1);
    // SAFETY: both are the tracepoint's own arguments.
    let (pid, tgid) = unsafe { (task_field(child, &TASK_PID), task_field(child, &TASK_TGID)) };
    if pid == tgid {
        let parent = match owner_of(ctx.tgid()) {
            AGENT | SELF_TEST => OTHER,
            owner => owner,
        };
        match cell(tgid) {
            // SAFETY: the cell lies in the map; nobody else writes it before the child is known.
            Some(cell) => unsafe { core::ptr::write_volatile(cell, parent) },
            // Only after pid_max was raised under a running agent.
            None => debug!(&ctx, "process {} has no cell in the owners' table", tgid),
        }
    }
    0
}
