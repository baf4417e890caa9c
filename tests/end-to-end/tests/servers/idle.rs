//! Whether the CPU was idle: times of two clocks in two processes agree only where nobody waits.

use std::fs;
use std::time::Instant;

/// The kernel's account of who waits for a CPU, else of idle time.
enum Account {
    /// Microseconds in which some process waited (`/proc/pressure/cpu`).
    Waited(f64, Instant),
    /// Ticks of all CPUs: idle, and all.
    Idle(f64, f64),
}

impl Account {
    fn now() -> Option<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let pressure = read("/proc/pressure/cpu");
        if let Some((_, total)) = pressure
            .lines()
            .next()
            .and_then(|line| line.split_once("total="))
        {
            return Some(Self::Waited(total.parse().ok()?, Instant::now()));
        }
        let all = read("/proc/stat");
        let ticks: Vec<f64> = all
            .lines()
            .next()?
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        Some(Self::Idle(*ticks.get(3)?, ticks.iter().sum()))
    }
}

/// Does `work`; beside its result the share of that time in which somebody waited for a CPU. Where
/// the kernel does not tell, the share in which no CPU was idle stands for it.
pub(crate) fn during<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let before = Account::now();
    let done = work();
    let share = match (before, Account::now()) {
        (Some(Account::Waited(before, since)), Some(Account::Waited(after, _))) => {
            (after - before) * 1e-6 / since.elapsed().as_secs_f64()
        }
        (Some(Account::Idle(idle, all)), Some(Account::Idle(idle_now, all_now))) => {
            1.0 - 2.0 * (idle_now - idle) / (all_now - all).max(1.0)
        }
        _ => 0.0,
    };
    (done, share.clamp(0.0, 1.0))
}
