//! On-CPU time by owner. A slice is booked when it ends; what runs now, and since when, is
//! published for the reader, which adds the slice that is still running.

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::cost::Program;
use profiler_ebpf::sched::CpuAccount;

use super::MMAPABLE;
use super::cost::Running;
use super::owners::{TASK_TGID, owner_of, task_field};

/// One account a CPU, sized by the loader. Not a per-CPU map: those cannot be read without a
/// system call.
#[map]
static CPU_ACCOUNTS: Array<CpuAccount> = Array::with_max_entries(1, MMAPABLE);

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, …)`
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SchedSwitch);
    // SAFETY: the helpers have no preconditions.
    let (now, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    let Some(account) = CPU_ACCOUNTS.get_ptr_mut(cpu) else {
        return 0;
    };
    let next: *const u8 = ctx.arg(2);
    // SAFETY: `account` is this CPU's own, and switches on one CPU do not nest; `next` is the
    // tracepoint's own argument; an owner index is below the number of cells by its type.
    unsafe {
        let next = task_field(next, &TASK_TGID);
        let (since, previous) = ((*account).since, (*account).tgid as u32);
        core::ptr::write_volatile(&raw mut (*account).since, now);
        core::ptr::write_volatile(&raw mut (*account).tgid, u64::from(next));
        (*account).switches += 1;
        // The fast clock may step back by a little when the kernel updates it.
        if since != 0 && now > since {
            let owner = owner_of(previous);
            let cell = (&raw mut (*account).on_cpu)
                .cast::<u64>()
                .add(owner as usize);
            core::ptr::write_volatile(cell, core::ptr::read_volatile(cell) + (now - since));
        }
    }
    0
}
