//! Where services' threads wait: the stack is taken where a thread blocks and told once it wakes up, if
//! it waited for long enough. Opt-in: each switch by which such a thread blocks walks its stack.
//!
//! Both ends run under the lock of the thread's run queue, see [`super::threads`]; another thread of
//! the same place, whose id differs by a multiple of [`WAITING`], may come between them, which is found.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_get_stack, bpf_ktime_get_boot_ns, bpf_ringbuf_output,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::owners::OwnerIndex;
use profiler_ebpf::stacks::{Head, WAITING, WAITING_KERNEL_FRAMES, WAITING_USER_FRAMES, Waiting};

use crate::probes::MMAPABLE;
use crate::probes::stacks::{NO_WAKEUP, STACK_COUNTS, STACK_RING, length, masked};

/// Sized by the loader.
#[map]
static STACKS_OF_WAITING: Array<Waiting> = Array::with_max_entries(1, 0);

/// 1 while stacks are wanted: the program that takes them serves others too and stays.
#[map]
static OFF_CPU_ON: Array<u64> = Array::with_max_entries(1, MMAPABLE);

/// Waits that are shorter, in nanoseconds, are not told; 0 = no stack is taken, and the verifier removes
/// what takes them.
#[unsafe(no_mangle)]
static OFF_CPU_LEAST: Global<u64> = Global::new(0);

#[inline(always)]
fn place(tid: u32) -> Option<*mut Waiting> {
    STACKS_OF_WAITING.get_ptr_mut(tid & (WAITING as u32 - 1))
}

/// The current thread blocks: keeps its stack.
#[inline(always)]
pub(super) fn begin(ctx: &BtfTracePointContext, tid: u32, now: u64) {
    if OFF_CPU_LEAST.load() == 0 {
        return;
    }
    let Some(on) = OFF_CPU_ON.get_ptr(0) else {
        return;
    };
    // SAFETY: an entry of the map.
    if unsafe { read_volatile(on) } == 0 {
        return;
    }
    let Some(waiting) = place(tid) else {
        return;
    };
    const KERNEL_BYTES: u32 = WAITING_KERNEL_FRAMES as u32 * 8;
    const USER_BYTES: u32 = WAITING_USER_FRAMES as u32 * 8;
    // SAFETY: an entry of the map; the helper writes so many bytes at most, the second time behind what it
    // wrote the first time.
    unsafe {
        let frames = (&raw mut (*waiting).frames).cast::<u8>();
        let kernel = masked::<255>(length(bpf_get_stack(
            ctx.as_ptr(),
            frames.cast(),
            KERNEL_BYTES,
            0,
        )));
        let user = length(bpf_get_stack(
            ctx.as_ptr(),
            frames.add(kernel as usize).cast(),
            USER_BYTES,
            u64::from(BPF_F_USER_STACK),
        ));
        (*waiting).head.kernel_frames = (kernel / 8) as u8;
        (*waiting).head.user_frames = (user / 8) as u8;
        write_volatile(&raw mut (*waiting).tid, u64::from(tid));
        write_volatile(&raw mut (*waiting).since, now);
    }
}

/// A thread that blocked at `since` wakes up.
#[inline(always)]
pub(super) fn end(thread: (u32, u32), owner: OwnerIndex, reason: u64, since: u64, waited: u64) {
    let least = OFF_CPU_LEAST.load();
    if least == 0 || waited < least {
        return;
    }
    let Some(on) = OFF_CPU_ON.get_ptr(0) else {
        return;
    };
    // SAFETY: an entry of the map.
    if unsafe { read_volatile(on) } == 0 {
        return;
    }
    let (tid, tgid) = thread;
    // SAFETY: the helpers have no preconditions.
    let (at, cpu) = unsafe { (bpf_ktime_get_boot_ns(), bpf_get_smp_processor_id()) };
    let (Some(counts), Some(waiting)) = (STACK_COUNTS.get_ptr_mut(cpu), place(tid)) else {
        return;
    };
    // SAFETY: entries of maps; a timer that counts on this CPU meanwhile writes other words.
    unsafe {
        (*counts).waits = (*counts).waits.wrapping_add(1);
        if read_volatile(&raw const (*waiting).tid) != u64::from(tid)
            || read_volatile(&raw const (*waiting).since) != since
        {
            (*counts).waits_replaced = (*counts).waits_replaced.wrapping_add(1);
            return;
        }
        let head = &raw mut (*waiting).head;
        let frames = u64::from((*head).kernel_frames) + u64::from((*head).user_frames);
        (*head).at = at;
        (*head).waited = waited;
        (*head).tgid = tgid;
        (*head).cpu = cpu;
        (*head).owner = owner;
        (*head).reason = reason as u8;
        let bytes = size_of::<Head>() as u64 + masked::<1_023>(frames * 8);
        let failed = bpf_ringbuf_output(
            (&raw const STACK_RING).cast_mut().cast(),
            head.cast(),
            bytes,
            NO_WAKEUP,
        );
        if failed != 0 {
            (*counts).waits_lost = (*counts).waits_lost.wrapping_add(1);
        }
    }
}
