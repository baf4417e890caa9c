//! One module a subject; the agent's `probes` has the same names.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(_: BtfTracePointContext) -> i32 {
    0
}
