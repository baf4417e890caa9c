//! The one clock of everything that is joined: `CLOCK_BOOTTIME`, which goes on through suspend
//! and is what `bpf_ktime_get_boot_ns` reads in the kernel.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

/// How long the machine has been suspended since it was started: what this clock has run beyond
/// the one that stops meanwhile. The two are read one after the other: a change of milliseconds
/// between two calls means nothing.
pub fn suspended() -> Duration {
    let all = Timestamp::now().0;
    Duration::from_nanos(all.saturating_sub(read(libc::CLOCK_MONOTONIC)))
}

/// When this clock was zero, in milliseconds since the Unix epoch, by the system's clock as it is
/// set now; 0 if that is set to a time before.
pub fn unix_zero_millis() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = unix.map_or(0, |unix| unix.as_millis() as u64);
    millis.saturating_sub(Timestamp::now().0 / 1_000_000)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec for the call to write; both clocks that are asked for
    // exist on every kernel this agent supports, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Timestamp {
    /// The present moment.
    pub fn now() -> Self {
        Self(read(libc::CLOCK_BOOTTIME))
    }

    /// Nanoseconds since `earlier`; 0 if `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Seconds since `earlier`; 0 if `earlier` is later.
    pub const fn seconds_since(self, earlier: Self) -> f64 {
        self.since(earlier) as f64 * 1e-9
    }

    /// This moment and `duration` on.
    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_nanos() as u64))
    }

    /// This moment less `duration`.
    pub const fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_nanos() as u64))
    }
}
