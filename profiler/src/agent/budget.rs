//! The agent's own CPU time, held against what it may take: above that, optional probes are taken
//! off, one at a time.
//!
//! In: the CPU time of this process and of its kernel programs (their own timing of one run in
//! 1,024). Out: when one more probe must go. Which, and how, is [`super::probes`]' business.

use std::time::Duration;

use super::Agent;
use super::config::CpuBudget;
use crate::clock::Timestamp;
use crate::export::cpu_seconds;

/// Time over which the use is averaged.
const WINDOW: Duration = Duration::from_secs(5);

/// So many windows in a row must be above the budget: a burst of work is not a costly probe.
const WINDOWS: u32 = 2;

/// CPU time used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Used {
    /// By this process, its system calls included, seconds.
    pub(super) process: f64,
    /// By its programs in the kernel, seconds; those that were never timed are left out.
    pub(super) programs: f64,
}

/// More than the budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Excess {
    /// The process's share of a core in the latest window.
    pub(super) process: f64,
    /// The programs' share.
    pub(super) programs: f64,
    /// What both may be.
    pub(super) budget: f64,
}

/// Watches the use.
#[derive(Debug)]
pub(super) struct Budget {
    budget: f64,
    began: Option<(Timestamp, Used)>,
    above: u32,
}

impl Budget {
    /// `None` without a limit: then nothing has to be looked at.
    pub(super) fn new(budget: CpuBudget) -> Option<Self> {
        match budget {
            CpuBudget::Share(budget) => Some(Self {
                budget,
                began: None,
                above: 0,
            }),
            CpuBudget::Unlimited => None,
        }
    }

    /// True if [`Self::look`] wants the use.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.began
            .is_none_or(|(began, _)| now.since(began) >= WINDOW.as_nanos() as u64)
    }

    /// Ends the window, if there was one. `Some` if a probe must go; the next one goes after as
    /// many windows again.
    pub(super) fn look(&mut self, now: Timestamp, used: Used) -> Option<Excess> {
        let (began, before) = self.began.replace((now, used))?;
        let seconds = now.since(began) as f64 / 1e9;
        if seconds <= 0.0 {
            return None;
        }
        let process = (used.process - before.process) / seconds;
        let programs = (used.programs - before.programs).max(0.0) / seconds;
        if process + programs <= self.budget {
            self.above = 0;
            return None;
        }
        self.above += 1;
        if self.above < WINDOWS {
            return None;
        }
        self.above = 0;
        Some(Excess {
            process,
            programs,
            budget: self.budget,
        })
    }
}

impl Agent {
    /// Takes one optional probe off if the agent has cost more than it may, and says so.
    pub(super) fn keep_budget(&mut self, now: Timestamp) {
        let (Some(budget), Some(probes)) = (&mut self.budget, &mut self.probes) else {
            return;
        };
        if !budget.is_due(now) {
            return;
        }
        let health = probes.health();
        let programs = health.iter().filter_map(|program| program.seconds).sum();
        let used = Used {
            process: cpu_seconds(),
            programs,
        };
        let Some(excess) = budget.look(now, used) else {
            return;
        };
        let Excess {
            process,
            programs,
            budget: allowed,
        } = excess;
        let cost = format!(
            "perjoule takes {:.2} % of a core ({:.2} % of it in the kernel), above its budget of \
             {:.2} %",
            (process + programs) * 100.0,
            programs * 100.0,
            allowed * 100.0
        );
        match probes.thin(&cost) {
            Some(probe) => self.sinks.metrics.record_thinned(probe),
            None => {
                // Nothing is left to take off: once is enough.
                log::warn!("{cost}; no optional probe runs that could be taken off");
                self.budget = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1_000_000_000)
    }

    /// The outcome of each window, of this many seconds of CPU time each.
    fn windows(budget: f64, used: &[f64]) -> Vec<bool> {
        let mut guard = Budget::new(CpuBudget::Share(budget)).unwrap();
        assert!(guard.is_due(at(0)));
        assert_eq!(guard.look(at(0), Used::default()), None);
        let mut sum = 0.0;
        let mut outcomes = Vec::new();
        for (index, seconds) in used.iter().enumerate() {
            let now = at(5 * (index as u64 + 1));
            assert!(guard.is_due(now));
            sum += seconds;
            // A third of it in the kernel.
            let used = Used {
                process: sum * 2.0 / 3.0,
                programs: sum / 3.0,
            };
            outcomes.push(guard.look(now, used).is_some());
        }
        outcomes
    }

    #[test]
    fn two_windows_above_the_budget_cost_a_probe_and_two_more_the_next() {
        let outcomes = windows(0.01, &[0.04, 0.06, 0.06, 0.06, 0.06, 0.04, 0.06]);
        assert_eq!(outcomes, [false, false, true, false, true, false, false]);
    }

    #[test]
    fn a_burst_of_one_window_costs_nothing() {
        assert_eq!(windows(0.01, &[0.5, 0.01, 0.5, 0.01]), [false; 4]);
    }

    #[test]
    fn what_was_used_before_the_first_look_is_not_held_against_the_agent() {
        let mut guard = Budget::new(CpuBudget::Share(0.01)).unwrap();
        let start = Used {
            process: 3.0,
            programs: 0.0,
        };
        assert_eq!(guard.look(at(0), start), None);
        assert!(!guard.is_due(at(4)));
        assert_eq!(guard.look(at(5), start), None);
        assert_eq!(guard.look(at(10), start), None);
    }
}
