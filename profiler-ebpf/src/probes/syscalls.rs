//! Counts the system calls of chosen services by class. The hook slows every system call of the
//! machine, so the agent attaches it only when somebody asks.

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_get_smp_processor_id};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::BtfTracePointContext;
use aya_ebpf::{EbpfContext as _, Global};
use profiler_ebpf::ABSENT;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::OWNERS;
use profiler_ebpf::syscalls::{CELLS, CLASS_CELLS, CLASSES, Class, CpuCounts, NUMBERS};

use super::MMAPABLE;
use super::cost::Running;
use super::owners::{owner_of, task_field};

/// Each owner's row in the counters, by its index; 0 = not counted.
#[map]
static SYSCALL_ROWS: Array<[u8; OWNERS]> = Array::with_max_entries(1, MMAPABLE);

/// One entry a CPU, sized by the loader.
#[map]
static SYSCALL_COUNTS: Array<CpuCounts> = Array::with_max_entries(1, MMAPABLE);

#[unsafe(no_mangle)]
static TASK_THREAD_STATUS: Global<u32> = Global::new(ABSENT);

/// x86: the task is in a 32-bit system call, whose numbers mean something else.
const TS_COMPAT: u32 = 2;

/// `sys_enter(struct pt_regs *regs, long id)`
#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SysEnter);
    let owner = owner_of(ctx.tgid());
    let Some(rows) = SYSCALL_ROWS.get_ptr(0) else {
        return 0;
    };
    // SAFETY: an owner's index is below the number of rows by its type.
    let row = unsafe { core::ptr::read_volatile(rows.cast::<u8>().add(owner as usize)) };
    if row == 0 {
        return 0;
    }
    // SAFETY: the helper has no preconditions.
    let Some(counts) = SYSCALL_COUNTS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() }) else {
        return 0;
    };
    let number: u64 = ctx.arg(1);
    let mut class = Class::Other as u8;
    if number < NUMBERS as u64 && !is_32_bit() {
        // SAFETY: masked below the table's length.
        class = unsafe {
            core::ptr::read_volatile(
                CLASSES
                    .as_ptr()
                    .add(masked::<{ NUMBERS as i32 - 1 }>(number)),
            )
        };
    }
    let cell = u64::from(row) * CLASS_CELLS as u64 + u64::from(class);
    // SAFETY: masked below the cells' number; the counters are this CPU's own.
    unsafe {
        let cell = counts
            .cast::<u64>()
            .add(masked::<{ CELLS as i32 - 1 }>(cell));
        *cell = (*cell).wrapping_add(1);
    }
    0
}

#[inline(always)]
pub(super) fn is_32_bit() -> bool {
    if TASK_THREAD_STATUS.load() == ABSENT {
        return false;
    }
    // SAFETY: the helper has no preconditions and returns a trusted pointer to this task.
    let status = unsafe {
        let task = bpf_get_current_task_btf() as *const u8;
        task_field(task, &TASK_THREAD_STATUS)
    };
    status & TS_COMPAT != 0
}

/// `value & MASK` that reaches the verifier: the compiler may find it redundant and drop it, and
/// the verifier cannot follow why.
#[inline(always)]
fn masked<const MASK: i32>(value: u64) -> usize {
    let mut value = value;
    // SAFETY: one register-only instruction.
    unsafe {
        core::arch::asm!("{value} &= {mask}", value = inout(reg) value, mask = const MASK,
            options(pure, nomem, nostack));
    }
    value as usize
}
