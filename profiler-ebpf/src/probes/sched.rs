//! On-CPU time by owner, and cycles where the machine counts them. A slice is booked when it ends;
//! what runs now, and since when, is published for the reader, which adds the slice that is still
//! running. For the threads of services it also times what they wait for, see [`threads`].

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_CURRENT_CPU, bpf_perf_event_value};
use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_perf_event_read_value,
};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, PerfEventArray};
use aya_ebpf::programs::BtfTracePointContext;
use profiler_ebpf::cost::Program;
use profiler_ebpf::sched::CpuAccount;

use super::MMAPABLE;
use super::cost::Running;
use super::owners::{TASK_TGID, owner_of, task_field};

mod reasons;
mod threads;

/// One account a CPU, sized by the loader. Not a per-CPU map: those cannot be read without a
/// system call.
#[map]
static CPU_ACCOUNTS: Array<CpuAccount> = Array::with_max_entries(1, MMAPABLE);

/// Each CPU's cycle counter.
#[map]
static CPU_CYCLES: PerfEventArray<u64> = PerfEventArray::new(0);

/// 1 if cycles are counted; else the verifier removes what reads them.
#[unsafe(no_mangle)]
static CYCLES: Global<u8> = Global::new(0);

/// What this CPU's counter shows; 0 where it has none.
#[inline(always)]
fn cycles() -> u64 {
    let mut value = bpf_perf_event_value {
        counter: 0,
        enabled: 0,
        running: 0,
    };
    // SAFETY: the map is one of perf events; `value` has the size that is told.
    let failed = unsafe {
        bpf_perf_event_read_value(
            (&raw const CPU_CYCLES).cast_mut().cast(),
            BPF_F_CURRENT_CPU,
            &raw mut value,
            size_of::<bpf_perf_event_value>() as u32,
        )
    };
    if failed != 0 { 0 } else { value.counter }
}

/// `sched_switch(bool preempt, struct task_struct *prev, struct task_struct *next, …)`
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SchedSwitch);
    // SAFETY: the helpers have no preconditions.
    let (now, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    let Some(account) = CPU_ACCOUNTS.get_ptr_mut(cpu) else {
        return 0;
    };
    let (prev, next): (*const u8, *const u8) = (ctx.arg(1), ctx.arg(2));
    // SAFETY: `account` is this CPU's own, and switches on one CPU do not nest; `next` is the
    // tracepoint's own argument; an owner index is below the number of cells by its type.
    unsafe {
        let arriving = task_field(next, &TASK_TGID);
        let (since, previous) = ((*account).since, (*account).tgid as u32);
        core::ptr::write_volatile(&raw mut (*account).since, now);
        core::ptr::write_volatile(&raw mut (*account).tgid, u64::from(arriving));
        (*account).switches += 1;
        let owner = owner_of(previous);
        // The fast clock may step back by a little when the kernel updates it.
        if since != 0 && now > since {
            let cell = (&raw mut (*account).on_cpu)
                .cast::<u64>()
                .add(owner as usize);
            core::ptr::write_volatile(cell, core::ptr::read_volatile(cell) + (now - since));
            if CYCLES.load() != 0 {
                let (counter, before) = (cycles(), (*account).cycles_since);
                (*account).cycles_since = counter;
                if before != 0 && counter > before {
                    let cell = (&raw mut (*account).cycles)
                        .cast::<u64>()
                        .add(owner as usize);
                    core::ptr::write_volatile(
                        cell,
                        core::ptr::read_volatile(cell) + (counter - before),
                    );
                }
            }
        }
        if threads::are_followed() {
            let preempted: u64 = ctx.arg(0);
            threads::leave(prev, owner, now, cpu, preempted & 1 != 0);
            threads::arrive(next, arriving, now, cpu);
        }
    }
    0
}

/// `sched_wakeup(struct task_struct *p)`
#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SchedWakeup);
    // SAFETY: the tracepoint's own argument.
    unsafe { threads::wake(ctx.arg(0)) };
    0
}

/// `sched_wakeup_new(struct task_struct *p)`
#[btf_tracepoint(function = "sched_wakeup_new")]
fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let _cost = Running::enter(Program::SchedWakeupNew);
    // SAFETY: the tracepoint's own argument.
    unsafe { threads::wake(ctx.arg(0)) };
    0
}
