//! Which stack the kernel gives the programs, from the machine code it made of them.

use end_to_end::Programs;

use crate::TlsWatch;
use crate::machine_code::with_per_cpu_stacks;

#[test]
fn programs_that_can_be_preempted_run_on_the_threads_own_stack() {
    let before = Programs::now();
    let Some(_watch) = TlsWatch::attach() else {
        return;
    };
    let per_cpu = with_per_cpu_stacks(&before);
    println!("{per_cpu:?}");
    for name in ["ssl_read", "ssl_read_return", "ssl_write", "ssl_free"] {
        assert_eq!(per_cpu.get(name), Some(&false), "{per_cpu:?}");
    }
    // That this test can tell: a tracing program of that size has one, where kernels have them.
    if !per_cpu.values().any(|has| *has) {
        end_to_end::skipped("this kernel gives no program a per-CPU stack (6.13 and later do)");
    }
}
