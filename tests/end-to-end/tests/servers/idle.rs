//! Whether the CPU was idle: times of two clocks in two processes agree only where nobody waits.

use std::fmt;
use std::fs;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// The share of the time in which somebody waits for a CPU, from which on it is not idle.
const BUSY: f64 = 0.10;
/// A sleeper is to wake after this long, and is late when it wakes so much later.
const SLEEP: Duration = Duration::from_millis(1);
const LATE: Duration = Duration::from_millis(2);
/// The share of late wakes above which the machine itself stood still: a guest cannot see that its
/// host gave the CPU to another.
const STALLED: f64 = 0.005;

/// What kept the CPU from those who wanted it while something was done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disturbance {
    /// The share of the time in which somebody waited for a CPU.
    waiting: f64,
    /// The share of a sleeper's wakes that were late.
    late: f64,
}

impl Disturbance {
    /// True if times must agree.
    pub(crate) fn is_none(&self) -> bool {
        self.waiting < BUSY && self.late <= STALLED
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waiting, late } = self;
        write!(f, "{:.0} %, {:.2} %", waiting * 100.0, late * 100.0)
    }
}

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

    /// The share of the time since then in which somebody waited. Where the kernel does not tell,
    /// the share in which no CPU was idle stands for it.
    fn since(before: Option<Self>) -> f64 {
        let share = match (before, Self::now()) {
            (Some(Self::Waited(before, since)), Some(Self::Waited(after, _))) => {
                (after - before) * 1e-6 / since.elapsed().as_secs_f64()
            }
            (Some(Self::Idle(idle, all)), Some(Self::Idle(idle_now, all_now))) => {
                1.0 - 2.0 * (idle_now - idle) / (all_now - all).max(1.0)
            }
            _ => 0.0,
        };
        share.clamp(0.0, 1.0)
    }
}

/// Sleeps and wakes until `ended` says so; returns the share of late wakes.
fn late_wakes(ended: &Receiver<()>) -> f64 {
    let (mut wakes, mut late) = (0u32, 0u32);
    loop {
        let start = Instant::now();
        if ended.recv_timeout(SLEEP) != Err(RecvTimeoutError::Timeout) {
            return f64::from(late) / f64::from(wakes.max(1));
        }
        wakes += 1;
        late += u32::from(start.elapsed() > SLEEP + LATE);
    }
}

/// Does `work`; says beside its result what disturbed it.
pub(crate) fn during<T>(work: impl FnOnce() -> T) -> (T, Disturbance) {
    thread::scope(|scope| {
        let before = Account::now();
        // It ends with its sender, also if `work` panics.
        let (running, ended) = mpsc::channel();
        let sleeper = scope.spawn(move || late_wakes(&ended));
        let done = work();
        drop(running);
        let disturbance = Disturbance {
            waiting: Account::since(before),
            late: sleeper.join().expect("it only sleeps"),
        };
        (done, disturbance)
    })
}
