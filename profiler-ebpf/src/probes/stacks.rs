//! Stacks of services' threads, by a timer on each CPU. A sample is a record of its own and is not
//! summed up here: a CPU makes 49 a second, so that the ring has room for seconds of a large
//! machine; each keeps its moment, by which it is given the joules of its own interval; and the
//! kernel's table of stacks drops those whose hashes collide.
//!
//! Opt-in: a CPU that has nothing to do is woken by the timer.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_get_stack, bpf_ktime_get_boot_ns, bpf_ringbuf_output,
};
use aya_ebpf::macros::{map, perf_event};
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use aya_ebpf::programs::PerfEventContext;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::{FIRST_SERVICE, SELF_TEST};
use profiler_ebpf::stacks::{CpuSamples, FRAMES, Head, KERNEL_FRAMES, Sample, USER_FRAMES};

use super::MMAPABLE;
use super::cost::Running;
use super::owners::owner_of;

/// Sized by the loader.
#[map]
pub(super) static STACK_RING: RingBuf = RingBuf::with_byte_size(4096, 0);

/// One entry a CPU, sized by the loader.
#[map]
pub(super) static STACK_COUNTS: Array<CpuSamples> = Array::with_max_entries(1, MMAPABLE);

/// Where a sample is put together: too large for a program's own stack.
#[map]
static STACK_SAMPLE: PerCpuArray<Sample> = PerCpuArray::with_max_entries(1, 0);

/// `BPF_RB_NO_WAKEUP`: the agent comes by itself.
pub(super) const NO_WAKEUP: u64 = 1;

/// `length & MASK` that reaches the verifier, for which a helper's result may be anything.
#[inline(always)]
pub(super) fn masked<const MASK: i32>(length: u64) -> u64 {
    let mut value = length;
    // SAFETY: one register-only instruction.
    unsafe {
        core::arch::asm!("{value} &= {mask}", value = inout(reg) value, mask = const MASK,
            options(pure, nomem, nostack));
    }
    value
}

/// Bytes of a stack; 0 if there is none.
#[inline(always)]
pub(super) fn length(result: i64) -> u64 {
    let bytes = if result > 0 { result as u64 } else { 0 };
    masked::<1_023>(bytes)
}

/// Each time a CPU's timer fires.
#[perf_event]
fn stack_sample(ctx: PerfEventContext) -> i32 {
    let _cost = Running::enter(Program::StackSample);
    let tgid = ctx.tgid();
    let owner = owner_of(tgid);
    if owner < FIRST_SERVICE || owner == SELF_TEST {
        return 0;
    }
    // SAFETY: the helpers have no preconditions.
    let (at, cpu) = unsafe { (bpf_ktime_get_boot_ns(), bpf_get_smp_processor_id()) };
    let (Some(counts), Some(sample)) = (STACK_COUNTS.get_ptr_mut(cpu), STACK_SAMPLE.get_ptr_mut(0))
    else {
        return 0;
    };
    const KERNEL_BYTES: u32 = KERNEL_FRAMES as u32 * 8;
    const USER_BYTES: u32 = USER_FRAMES as u32 * 8;
    // SAFETY: the sample and the counters are this CPU's own and a timer does not interrupt itself; the
    // helper writes so many bytes at most, the second time behind what it wrote the first time, which
    // is less than 1,024 of 2,048 bytes.
    unsafe {
        (*counts).taken = (*counts).taken.wrapping_add(1);
        let frames = (&raw mut (*sample).frames).cast::<u8>();
        let kernel = length(bpf_get_stack(ctx.as_ptr(), frames.cast(), KERNEL_BYTES, 0));
        let user = length(bpf_get_stack(
            ctx.as_ptr(),
            frames.add(kernel as usize).cast(),
            USER_BYTES,
            u64::from(BPF_F_USER_STACK),
        ));
        if kernel == u64::from(KERNEL_BYTES) || user == u64::from(USER_BYTES) {
            (*counts).cut = (*counts).cut.wrapping_add(1);
        }
        (*sample).head = Head {
            at,
            waited: 0,
            tgid,
            cpu,
            owner,
            reason: 0,
            kernel_frames: (kernel / 8) as u8,
            user_frames: (user / 8) as u8,
            reserved: 0,
        };
        const MASK: i32 = FRAMES as i32 * 8 - 1;
        let bytes = size_of::<Head>() as u64 + masked::<MASK>(kernel + user);
        let failed = bpf_ringbuf_output(
            (&raw const STACK_RING).cast_mut().cast(),
            sample.cast(),
            bytes,
            NO_WAKEUP,
        );
        if failed != 0 {
            (*counts).lost = (*counts).lost.wrapping_add(1);
        }
    }
    0
}
