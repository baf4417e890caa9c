//! Counts a program's runs and times one in 1,024: `let _cost = Running::enter(Program::X);` as a
//! program's first statement.

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use profiler_ebpf::cost::{Cost, CpuCosts, Program, SAMPLE_EVERY};

use super::MMAPABLE;

/// One entry a CPU, sized by the loader. Each program writes its own cell only and cannot
/// interrupt itself on a CPU, so plain adds do.
#[map]
static PROGRAM_COST: Array<CpuCosts> = Array::with_max_entries(1, MMAPABLE);

/// A run of a program, from [`Running::enter`] to its drop.
pub(crate) struct Running {
    program: Program,
    started: u64,
}

#[inline(always)]
fn cell(program: Program) -> Option<*mut Cost> {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let costs = PROGRAM_COST.get_ptr_mut(cpu)?;
    // SAFETY: there are at least as many cells as programs.
    Some(unsafe { costs.cast::<Cost>().add(program as usize) })
}

impl Running {
    /// Counts this run of `program`, and takes the time if it is one that is timed.
    #[inline(always)]
    pub(crate) fn enter(program: Program) -> Self {
        let mut started = 0;
        if let Some(cost) = cell(program) {
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
        if self.started == 0 {
            return;
        }
        // SAFETY: the helper has no preconditions.
        let took = unsafe { bpf_ktime_get_ns() }.wrapping_sub(self.started);
        if let Some(cost) = cell(self.program) {
            // SAFETY: as in `enter`.
            unsafe {
                (*cost).timed = (*cost).timed.wrapping_add(1);
                (*cost).timed_ns = (*cost).timed_ns.wrapping_add(took);
            }
        }
    }
}
