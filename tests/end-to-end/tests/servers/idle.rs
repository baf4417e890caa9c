//! Whether the CPU was idle: times of two clocks in two processes agree only where nobody waits.

use std::fs;
use std::time::Instant;

/// The share of the time in which some process may wait for a CPU.
const WAITING: f64 = 0.10;
/// The share of the CPUs' time that must be idle, where the kernel does not tell who waits.
const IDLE: f64 = 0.60;

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

/// Does `work`; true beside its result if the CPU was idle most of that time.
pub(crate) fn during<T>(work: impl FnOnce() -> T) -> (T, bool) {
    let before = Account::now();
    let done = work();
    let idle = match (before, Account::now()) {
        (Some(Account::Waited(before, since)), Some(Account::Waited(after, _))) => {
            (after - before) * 1e-6 < WAITING * since.elapsed().as_secs_f64()
        }
        (Some(Account::Idle(idle, all)), Some(Account::Idle(idle_now, all_now))) => {
            idle_now - idle > IDLE * (all_now - all)
        }
        _ => false,
    };
    (done, idle)
}
