//! Counts a program's runs and times one in 1,024: `let _cost = Running::enter(Program::X);` as a
//! program's first statement.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use profiler_ebpf::cost::{Cost, Program, SAMPLE_EVERY};

/// Each program writes its own cell only and cannot interrupt itself on a CPU, so plain adds do.
#[map]
static PROGRAM_COST: PerCpuArray<Cost> =
    PerCpuArray::with_max_entries(Program::ALL.len() as u32, 0);

/// A run of a program, from [`Running::enter`] to its drop.
pub(crate) struct Running {
    program: u32,
    started: u64,
}

impl Running {
    /// Counts this run of `program`, and takes the time if it is one that is timed.
    #[inline(always)]
    pub(crate) fn enter(program: Program) -> Self {
        let program = program as u32;
        let mut started = 0;
        if let Some(cost) = PROGRAM_COST.get_ptr_mut(program) {
            // SAFETY: the cell belongs to this CPU and this program, which does not nest.
            let runs = unsafe {
                let runs = (*cost).runs.wrapping_add(1);
                (*cost).runs = runs;
                runs
            };
            // The first run is timed, so that a rare program has a figure too.
            if runs % SAMPLE_EVERY == 1 {
                // SAFETY: the helper has no preconditions.
                started = unsafe { bpf_ktime_get_ns() };
            }
        }
        Self { program, started }
    }
}

impl Drop for Running {
    #[inline(always)]
    fn drop(&mut self) {
        if self.started != 0 {
            // SAFETY: the helper has no preconditions.
            let took = unsafe { bpf_ktime_get_ns() }.wrapping_sub(self.started);
            if let Some(cost) = PROGRAM_COST.get_ptr_mut(self.program) {
                // SAFETY: as in `enter`.
                unsafe {
                    (*cost).timed = (*cost).timed.wrapping_add(1);
                    (*cost).timed_ns = (*cost).timed_ns.wrapping_add(took);
                }
            }
        }
    }
}
