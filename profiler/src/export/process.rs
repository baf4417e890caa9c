//! What the agent itself costs, under the names every Prometheus client uses.
//!
//! CPU time is read from the process clock, which counts nanoseconds: `/proc/self/stat` counts
//! ticks of 10 ms and would hide a cost of a tenth of a per cent for seconds.

use std::time::{SystemTime, UNIX_EPOCH};

use procfs::process::{LimitValue, Process};

use crate::clock::Timestamp;

/// The agent's own use of the machine; what cannot be read is absent.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessUse {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) open_fds: Option<usize>,
    pub(super) max_fds: Option<u64>,
    pub(super) start_seconds: Option<f64>,
}

/// When this process started, seconds since the Unix epoch; `None` without a readable /proc.
pub(super) fn start_seconds() -> Option<f64> {
    let ticks = Process::myself().ok()?.stat().ok()?.starttime;
    let after_boot = ticks as f64 / procfs::ticks_per_second() as f64;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.as_secs_f64() - Timestamp::now().0 as f64 / 1e9 + after_boot)
}

/// Reads the present use; `start_seconds` is read once at start, because a later change of the
/// system's clock must not look like a restart.
pub(super) fn read(start_seconds: Option<f64>) -> ProcessUse {
    let process = Process::myself().ok();
    let memory = process.as_ref().and_then(|process| process.statm().ok());
    let page = procfs::page_size();
    let limits = process.as_ref().and_then(|process| process.limits().ok());
    ProcessUse {
        cpu_seconds: cpu_seconds(),
        resident_bytes: memory.as_ref().map(|memory| memory.resident * page),
        virtual_bytes: memory.as_ref().map(|memory| memory.size * page),
        open_fds: process.as_ref().and_then(|process| process.fd_count().ok()),
        max_fds: limits.and_then(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(limit) => Some(limit),
            LimitValue::Unlimited => None,
        }),
        start_seconds,
    }
}

/// CPU time of this process so far, its system calls included.
pub(crate) fn cpu_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the call to write; the process clock of the caller
    // itself always exists on Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn cpu_time_is_finer_than_a_clock_tick() {
        let before = cpu_seconds();
        let since = Instant::now();
        while since.elapsed() < Duration::from_micros(200) {
            std::hint::spin_loop();
        }
        let used = cpu_seconds() - before;
        assert!(used > 0.0 && used < 5.0, "{used}");
    }

    #[test]
    fn this_process_started_a_short_while_ago_and_has_memory() {
        let start = start_seconds().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!((0.0..3600.0).contains(&(now.as_secs_f64() - start)));
        let seen = read(Some(start));
        assert!(seen.resident_bytes.unwrap() > 500_000);
        assert!(seen.virtual_bytes.unwrap() >= seen.resident_bytes.unwrap());
        assert!(seen.open_fds.unwrap() >= 3);
    }
}
