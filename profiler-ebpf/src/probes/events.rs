//! Counts what happens in services' processes: one program an event, each the same few
//! instructions. The event is the running process's, whatever it does to others.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::macros::{map, perf_event, raw_tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::{PerfEventContext, RawTracePointContext};
use profiler_ebpf::cost::Program;
use profiler_ebpf::events::{CpuEvents, FIRST_NAMED, KINDS, MAJOR_FAULTS, MINOR_FAULTS};
use profiler_ebpf::owners::FIRST_SERVICE;

use super::MMAPABLE;
use super::cost::Running;
use super::owners::owner_of;

/// One entry a CPU, sized by the loader. Each program writes its own kind only and does not
/// interrupt itself on a CPU, so plain adds do.
#[map]
static OWNER_EVENTS: Array<CpuEvents> = Array::with_max_entries(1, MMAPABLE);

/// One more event of this kind for the owner of the running process, if that is a service.
#[inline(always)]
fn count(kind: usize) {
    let owner = owner_of((bpf_get_current_pid_tgid() >> 32) as u32);
    if owner < FIRST_SERVICE {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let Some(events) = OWNER_EVENTS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() }) else {
        return;
    };
    // SAFETY: an owner is below the number of rows by its type, a kind below that of the cells.
    unsafe {
        let cell = events.cast::<u64>().add(owner as usize * KINDS + kind);
        *cell = (*cell).wrapping_add(1);
    }
}

/// The kernel's software event of its own account (`min_flt`): at the end of a fault.
#[perf_event]
fn page_fault_minor(_ctx: PerfEventContext) -> u32 {
    let _cost = Running::enter(Program::PageFaultMinor);
    count(MINOR_FAULTS);
    0
}

/// The same for `maj_flt`.
#[perf_event]
fn page_fault_major(_ctx: PerfEventContext) -> u32 {
    let _cost = Running::enter(Program::PageFaultMajor);
    count(MAJOR_FAULTS);
    0
}

/// A tracepoint's arguments are not read, so that one program fits each.
macro_rules! named {
    ($($program:ident $cost:ident $place:literal)*) => {$(
        #[raw_tracepoint]
        fn $program(_ctx: RawTracePointContext) -> i32 {
            let _cost = Running::enter(Program::$cost);
            count(FIRST_NAMED + $place);
            0
        }
    )*};
}

named! {
    named_event_0 NamedEvent0 0
    named_event_1 NamedEvent1 1
    named_event_2 NamedEvent2 2
    named_event_3 NamedEvent3 3
    named_event_4 NamedEvent4 4
    named_event_5 NamedEvent5 5
    named_event_6 NamedEvent6 6
    named_event_7 NamedEvent7 7
}
