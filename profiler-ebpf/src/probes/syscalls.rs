//! Counts the system calls of chosen services by class, and takes how long they last. The hooks
//! slow every system call of the machine, so the agent attaches them only when somebody asks.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns,
};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::ABSENT;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::{FIRST_SERVICE, OWNERS};
use profiler_ebpf::syscalls::{
    CELLS, CLASS_CELLS, Class, CpuCounts, CpuTimes, NUMBERS, STARTS, Start, TIME_WORDS, bucket_of,
};

#[cfg(bpf_target_arch = "aarch64")]
use profiler_ebpf::syscalls::arm64::{CLASSES, NO_RETURN};
#[cfg(not(bpf_target_arch = "aarch64"))]
use profiler_ebpf::syscalls::x86_64::{CLASSES, NO_RETURN};

use super::MMAPABLE;
use super::cost::Running;
use super::owners::{owner_of, task_field};
use super::registers::argument;
use super::requests::descriptors::device_of;
use super::requests::socket::read_kernel;

/// Each owner's row in the counters, by its index; 0 = not counted.
#[map]
static SYSCALL_ROWS: Array<[u8; OWNERS]> = Array::with_max_entries(1, MMAPABLE);

/// One entry a CPU, sized by the loader.
#[map]
static SYSCALL_COUNTS: Array<CpuCounts> = Array::with_max_entries(1, MMAPABLE);

/// One entry a CPU, sized by the loader.
#[map]
static SYSCALL_TIMES: Array<CpuTimes> = Array::with_max_entries(1, MMAPABLE);

/// When running calls began, by thread; sized by the loader.
#[map]
static SYSCALL_STARTS: Array<Start> = Array::with_max_entries(1, MMAPABLE);

/// Calls are timed whose random number has none of these bits: 0 for every call.
#[unsafe(no_mangle)]
static SYSCALL_UNTIMED: Global<u32> = Global::new(0);

/// Major device numbers of the GPU's driver; 0 for none.
#[unsafe(no_mangle)]
static GPU_MAJOR: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static GPU_MEMORY_MAJOR: Global<u32> = Global::new(0);

#[unsafe(no_mangle)]
static TASK_THREAD_STATUS: Global<u32> = Global::new(ABSENT);

/// The task is in a 32-bit system call, whose numbers mean something else: x86's `TS_COMPAT`.
#[cfg(not(bpf_target_arch = "aarch64"))]
const IN_32_BIT: u32 = 2;
/// The same on arm64: `_TIF_32BIT`.
#[cfg(bpf_target_arch = "aarch64")]
const IN_32_BIT: u32 = 1 << 22;

/// `sys_enter(struct pt_regs *regs, long id)`
#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SysEnter);
    let current = bpf_get_current_pid_tgid();
    let owner = owner_of((current >> 32) as u32);
    if owner < FIRST_SERVICE {
        return 0;
    }
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
    if class == Class::Ioctl as u8 && is_gpus(ctx.arg(0)) {
        class = Class::GpuIoctl as u8;
    }
    let cell = u64::from(row) * CLASS_CELLS as u64 + u64::from(class);
    // SAFETY: masked below the cells' number; the counters are this CPU's own.
    unsafe {
        let cell = counts
            .cast::<u64>()
            .add(masked::<{ CELLS as i32 - 1 }>(cell));
        *cell = (*cell).wrapping_add(1);
    }
    // SAFETY: the helper has no preconditions.
    let timed = SYSCALL_UNTIMED.load() == 0
        || unsafe { bpf_get_prandom_u32() } & SYSCALL_UNTIMED.load() == 0;
    if timed && number != NO_RETURN[0] && number != NO_RETURN[1] {
        begin(current as u32, class, row, counts);
    }
    0
}

/// Keeps when the thread's call began.
#[inline(always)]
fn begin(thread: u32, class: u8, row: u8, counts: *mut CpuCounts) {
    let Some(start) = SYSCALL_STARTS.get_ptr_mut(thread % STARTS) else {
        return;
    };
    // SAFETY: the place lies in the map, whose threads write it word by word; the counters are
    // this CPU's own, and their first cell is nobody's.
    unsafe {
        let before = core::ptr::read_volatile(&raw const (*start).mark);
        if before != 0 && Start::thread(before) != thread {
            let lost = counts.cast::<u64>();
            *lost = (*lost).wrapping_add(1);
        }
        let now = bpf_ktime_get_ns();
        core::ptr::write_volatile(&raw mut (*start).at, now);
        let mark = Start::mark(thread, class, row, now);
        core::ptr::write_volatile(&raw mut (*start).mark, mark);
    }
}

/// `sys_exit(struct pt_regs *regs, long ret)`: only a counted service's thread has left a start.
#[btf_tracepoint(function = "sys_exit")]
fn syscall_exit(_ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SyscallExit);
    let thread = bpf_get_current_pid_tgid() as u32;
    let Some(start) = SYSCALL_STARTS.get_ptr_mut(thread % STARTS) else {
        return 0;
    };
    // SAFETY: the place lies in the map.
    let mark = unsafe { core::ptr::read_volatile(&raw const (*start).mark) };
    if mark == 0 || Start::thread(mark) != thread {
        return 0;
    }
    // SAFETY: as above; the place is this thread's.
    let at = unsafe {
        core::ptr::write_volatile(&raw mut (*start).mark, 0);
        core::ptr::read_volatile(&raw const (*start).at)
    };
    // SAFETY: the helpers have no preconditions.
    let (now, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    let Some(times) = SYSCALL_TIMES.get_ptr_mut(cpu) else {
        return 0;
    };
    if !Start::fits(mark, at) || now < at {
        return 0;
    }
    let took = now - at;
    let first = Start::cell(mark) * TIME_WORDS as u64;
    // SAFETY: masked below the words' number; the times are this CPU's own.
    unsafe {
        let words = times.cast::<u64>();
        let sum = words.add(masked::<{ (CELLS * TIME_WORDS) as i32 - 1 }>(first));
        *sum = (*sum).wrapping_add(took);
        let count = first + 1 + bucket_of(took);
        let count = words.add(masked::<{ (CELLS * TIME_WORDS) as i32 - 1 }>(count));
        *count = (*count).wrapping_add(1);
    }
    0
}

/// Whether the call whose registers lie here controls the GPU's driver.
#[inline(always)]
fn is_gpus(registers: u64) -> bool {
    if GPU_MAJOR.load() == 0 {
        return false;
    }
    let Some(device) = read_kernel(registers, argument(0) as u32).and_then(device_of) else {
        return false;
    };
    // `MAJOR()` of include/linux/kdev_t.h
    let major = device >> 20;
    major != 0 && (major == GPU_MAJOR.load() || major == GPU_MEMORY_MAJOR.load())
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
    status & IN_32_BIT != 0
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
