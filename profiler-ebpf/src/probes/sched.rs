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
use profiler_ebpf::ABSENT;
use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::OwnerIndex;
use profiler_ebpf::sched::CpuAccount;

use super::MMAPABLE;
use super::cost::Running;
use super::owners::{TASK_TGID, owner_of, task_field};

mod off_cpu;
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

/// Where a task keeps when it got its CPU, by the clock of its run queue.
#[unsafe(no_mangle)]
static TASK_ARRIVAL: Global<u32> = Global::new(ABSENT);

/// The way from a task to the clock of the run queue that it is on.
#[unsafe(no_mangle)]
static TASK_CFS_RQ: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static CFS_RQ_RQ: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static RQ_CLOCK: Global<u32> = Global::new(ABSENT);

/// The distance between the clocks grows by a 2048th of the time at most, nearly what NTP may slew
/// (500 ppm); the hook's least delay is what remains in it.
const SLEW_SHIFT: u32 = 11;
/// A hook that is later than this, in nanoseconds, was held up, or a clock was set: it counts as it is.
const HELD_UP: i64 = 100_000;

/// When the kernel began the switch that this hook is in, by our own clock, at which it is `now`: its own
/// times of threads are cut there. `now` where the kernel does not say.
///
/// # Safety
/// `next` must be the tracepoint's argument, and `account` this CPU's.
#[inline(always)]
unsafe fn cut_of(next: *const u8, account: *mut CpuAccount, now: u64) -> u64 {
    if TASK_CFS_RQ.load() == ABSENT || CFS_RQ_RQ.load() == ABSENT || RQ_CLOCK.load() == ABSENT {
        return now;
    }
    // SAFETY: the verifier follows kernel pointers from the tracepoint's own, at offsets that are
    // constants; the account by the caller's promise.
    unsafe {
        let cfs_rq = *next.add(TASK_CFS_RQ.load() as usize).cast::<*const u8>();
        let rq = *cfs_rq.add(CFS_RQ_RQ.load() as usize).cast::<*const u8>();
        let clock = *rq.add(RQ_CLOCK.load() as usize).cast::<u64>();
        let distance = now.wrapping_sub(clock);
        let since = now.wrapping_sub((*account).since);
        let mut lead = (*account).clock_lead.wrapping_add(since >> SLEW_SHIFT);
        let later = distance.wrapping_sub(lead) as i64;
        if later < 0 || later > HELD_UP {
            lead = distance;
        }
        (*account).clock_lead = lead;
        clock.wrapping_add(lead)
    }
}

/// When `prev`, whose arrival no program saw, got its CPU; 0 if that is not known to lie after `since`. (A
/// kernel that leaves the tracepoint out keeps this time all the same.)
///
/// # Safety
/// `prev` must be the tracepoint's argument.
#[inline(always)]
unsafe fn unseen_arrival(prev: *const u8, clock_lead: u64, since: u64, now: u64) -> u64 {
    if TASK_ARRIVAL.load() == ABSENT {
        return 0;
    }
    // SAFETY: the caller's promise; the verifier checks the offset, a constant.
    let arrival = unsafe { *prev.add(TASK_ARRIVAL.load() as usize).cast::<u64>() };
    let began = arrival.wrapping_add(clock_lead);
    if arrival == 0 || clock_lead == 0 || began <= since || began > now {
        0
    } else {
        began
    }
}

/// Adds to an owner's cell of this CPU's account.
///
/// # Safety
/// `first` must be the first of as many cells as there are owners, all of this CPU.
#[inline(always)]
unsafe fn book(first: *mut u64, owner: OwnerIndex, amount: u64) {
    // SAFETY: an owner's index is below the number of cells by its type.
    unsafe {
        let cell = first.add(owner as usize);
        core::ptr::write_volatile(cell, core::ptr::read_volatile(cell) + amount);
    }
}

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
    // tracepoint's own argument.
    unsafe {
        let (leaving, arriving) = (task_field(prev, &TASK_TGID), task_field(next, &TASK_TGID));
        let (since, previous) = ((*account).since, (*account).tgid as u32);
        let cut = cut_of(next, account, now);
        core::ptr::write_volatile(&raw mut (*account).since, cut);
        core::ptr::write_volatile(&raw mut (*account).tgid, u64::from(arriving));
        (*account).switches += 1;
        let owner = owner_of(leaving);
        // The fast clock may step back by a little when the kernel updates it.
        if since != 0 && cut > since {
            let on_cpu = (&raw mut (*account).on_cpu).cast::<u64>();
            let mut began = since;
            if leaving != previous {
                (*account).unseen += 1;
                let arrival = unseen_arrival(prev, (*account).clock_lead, since, cut);
                if arrival != 0 {
                    began = arrival;
                }
                book(on_cpu, owner_of(previous), began - since);
            }
            book(on_cpu, owner, cut - began);
            if CYCLES.load() != 0 {
                let (counter, before) = (cycles(), (*account).cycles_since);
                (*account).cycles_since = counter;
                if before != 0 && counter > before {
                    let cycles = (&raw mut (*account).cycles).cast::<u64>();
                    let mut own = counter - before;
                    if began > since {
                        // In proportion, in microseconds or so: the product must fit.
                        let (unseen, whole) = ((began - since) >> 10, ((cut - since) >> 10) + 1);
                        let others = own * unseen / whole;
                        own -= others;
                        book(cycles, owner_of(previous), others);
                    }
                    book(cycles, owner, own);
                }
            }
        }
        if threads::are_followed() {
            let preempted: u64 = ctx.arg(0);
            let lead = (*account).clock_lead;
            threads::leave(&ctx, owner, now, cpu, preempted & 1 != 0, lead);
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
