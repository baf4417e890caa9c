//! Cycles: a CPU's counters for the kernel side to read, and how many an owner's time is worth.
//!
//! The kernel side books the cycles of slices that have ended. A slice that still runs is taken to
//! spend as many a nanosecond as its owner's last ones on that CPU did.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::maps::{Map, MapData};

use crate::perf_event::{self, Counted};
use crate::probes::loader::Loader;

const COUNTERS: &str = "CPU_CYCLES";
/// `BPF_MAP_UPDATE_ELEM` of bpf(2).
const UPDATE: libc::c_int = 2;
/// Slices shorter than this together do not tell a rate.
const LEAST_NANOS: u64 = 20_000;

/// Open counters; the kernel side reads them as long as this lives.
#[derive(Debug)]
pub(super) struct CycleCounters {
    _open: Vec<(u32, OwnedFd)>,
    /// The program that is to be loaded refers to it, and the kernel empties it when it is closed here.
    _map: MapData,
}

impl CycleCounters {
    /// Opens a counter on each CPU that is online and hands it to the kernel side. `None` where there
    /// is no such counter, or it may not be opened. Before the program that reads them is loaded.
    pub(super) fn open(loader: &mut Loader, counted: Counted, cpus: usize) -> Option<Self> {
        let mut open = Vec::new();
        for cpu in 0..cpus as u32 {
            match perf_event::open(counted, cpu, true) {
                Ok(counter) => open.push((cpu, counter)),
                // It is offline: nothing runs there.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => {
                    log::debug!("no cycles are counted: {error}");
                    return None;
                }
            }
        }
        let Ok(Map::PerfEventArray(map)) = loader.take_map(COUNTERS) else {
            return None;
        };
        for (cpu, counter) in &open {
            if let Err(error) = put(map.fd().as_fd().as_raw_fd(), *cpu, counter.as_raw_fd()) {
                log::warn!("the cycles of CPU {cpu} are not counted: {error}");
            }
        }
        Some(Self {
            _open: open,
            _map: map,
        })
    }
}

/// Puts a counter at a CPU's place. The library has no call for counters that it did not open.
fn put(map: libc::c_int, cpu: u32, counter: libc::c_int) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let update = Update {
        map: map as u32,
        padding: 0,
        key: (&raw const cpu).addr() as u64,
        value: (&raw const counter).addr() as u64,
        flags: 0,
    };
    // SAFETY: the call reads `update` and, behind it, a key and a value of four bytes each, which
    // all live until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            UPDATE,
            &raw const update,
            size_of::<Update>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Cycles a nanosecond of each owner on one CPU.
#[derive(Debug)]
pub(super) struct CycleRates {
    nanos: Vec<u64>,
    cycles: Vec<u64>,
    rates: Vec<f64>,
}

impl CycleRates {
    pub(super) fn new(owners: usize) -> Self {
        Self {
            nanos: vec![0; owners],
            cycles: vec![0; owners],
            rates: vec![0.0; owners],
        }
    }

    /// Takes ended slices by owner, as the kernel side booked them so far.
    pub(super) fn learn(&mut self, nanos: &[u64], cycles: &[u64]) {
        let known = self.nanos.iter_mut().zip(&mut self.cycles);
        let booked = nanos.iter().zip(cycles);
        for (((nanos, cycles), rate), (nanos_now, cycles_now)) in
            known.zip(&mut self.rates).zip(booked)
        {
            let ran = nanos_now.saturating_sub(*nanos);
            if ran >= LEAST_NANOS {
                *rate = cycles_now.saturating_sub(*cycles) as f64 / ran as f64;
                (*nanos, *cycles) = (*nanos_now, *cycles_now);
            }
        }
    }

    /// What so much time of an owner is worth; `None` while no slice of it has told.
    pub(super) fn cycles(&self, owner: usize, nanos: u64) -> Option<f64> {
        let rate = self.rates.get(owner).copied().filter(|rate| *rate > 0.0)?;
        Some(rate * nanos as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_that_runs_on_is_worth_what_its_owners_last_ones_were() {
        let mut rates = CycleRates::new(2);
        assert_eq!(rates.cycles(0, 100), None);
        rates.learn(&[1_000_000, 500_000], &[3_000_000, 500_000]);
        assert_eq!(rates.cycles(0, 100), Some(300.0));
        assert_eq!(rates.cycles(1, 100), Some(100.0));
        // Too short to tell; it counts with what comes.
        rates.learn(&[1_010_000, 500_000], &[3_000_000, 500_000]);
        assert_eq!(rates.cycles(0, 100), Some(300.0));
        rates.learn(&[2_000_000, 500_000], &[5_000_000, 500_000]);
        assert_eq!(rates.cycles(0, 100), Some(200.0));
        assert_eq!(rates.cycles(1, 100), Some(100.0));
    }
}
