//! Counts launches and waits at the functions of CUDA's driver library, by owner. Opt-in: each call
//! of a probed function stops its process for a moment.
//!
//! Programs of this kind can be preempted, also by each other: what they add up they add in one
//! step each. They use less than 64 bytes of stack, so that no kernel gives them a per-CPU one,
//! which a program that preempts another would write over.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_ktime_get_ns,
};
use aya_ebpf::macros::{map, uprobe, uretprobe};
use aya_ebpf::maps::{Array, LruHashMap};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use core::ptr::{read_volatile, write_volatile};
use profiler_ebpf::cost::Program;
use profiler_ebpf::cuda::{Counts, GRAPH};
use profiler_ebpf::owners::FIRST_SERVICE;

use super::MMAPABLE;
use super::cost::Running;
use super::owners::owner_of;

/// One entry an owner, by its index. Sized by the loader.
#[map]
static CUDA_COUNTS: Array<Counts> = Array::with_max_entries(1, MMAPABLE);

/// When each thread's latest wait began; 0 once it has ended. Sized by the loader.
#[map]
static CUDA_WAITS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(1, 0);

/// The thread that runs, and its service's counts; `None` if nobody counts it.
#[inline(always)]
fn counted() -> Option<(u64, *mut Counts)> {
    // SAFETY: the helper has no preconditions.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    let owner = owner_of((thread >> 32) as u32);
    if owner < FIRST_SERVICE {
        return None;
    }
    Some((thread, CUDA_COUNTS.get_ptr_mut(u32::from(owner))?))
}

/// Adds to a word in one step, whatever runs beside.
///
/// # Safety
/// `at` must be a word of a map.
#[inline(always)]
unsafe fn add(at: *mut u64, value: u64) {
    // SAFETY: one instruction; the caller's promise.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({at} + 0) += {value}",
            at = in(reg) at,
            value = in(reg) value,
        );
    }
}

/// `cuLaunchKernel` and its like, `cuGraphLaunch`: begins. The cookie says which kind.
#[uprobe]
fn cuda_launch(ctx: ProbeContext) -> u32 {
    let _cost = Running::enter(Program::CudaLaunch);
    let Some((_, counts)) = counted() else {
        return 0;
    };
    // SAFETY: the program's own context; the words are an entry's of the array.
    unsafe {
        if bpf_get_attach_cookie(ctx.as_ptr()) == GRAPH {
            add(&raw mut (*counts).graphs, 1);
        } else {
            add(&raw mut (*counts).kernels, 1);
        }
    }
    0
}

/// `cuStreamSynchronize` and its like: begins.
#[uprobe]
fn cuda_sync(_ctx: ProbeContext) -> u32 {
    let _cost = Running::enter(Program::CudaSync);
    let Some((thread, _)) = counted() else {
        return 0;
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(since) = CUDA_WAITS.get_ptr_mut(thread) {
        // SAFETY: this thread's own entry.
        unsafe { write_volatile(since, now) };
    } else {
        // One that is not remembered is counted as such when it returns.
        let _ = CUDA_WAITS.insert(thread, now, 0);
    }
    0
}

/// It returns.
#[uretprobe]
fn cuda_sync_return(_ctx: RetProbeContext) -> u32 {
    let _cost = Running::enter(Program::CudaSyncReturn);
    let Some((thread, counts)) = counted() else {
        return 0;
    };
    // SAFETY: the words are an entry's of the array; the other entry is this thread's own.
    unsafe {
        let Some(since) = CUDA_WAITS.get_ptr_mut(thread) else {
            add(&raw mut (*counts).untimed, 1);
            return 0;
        };
        let began = read_volatile(since);
        // One that called another of them, which was counted when it returned.
        if began == 0 {
            return 0;
        }
        write_volatile(since, 0);
        add(&raw mut (*counts).syncs, 1);
        add(
            &raw mut (*counts).sync_ns,
            bpf_ktime_get_ns().wrapping_sub(began),
        );
    }
    0
}
