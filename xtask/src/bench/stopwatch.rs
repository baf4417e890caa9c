//! Stopwatches between the programs of a hook: each notes the time that has passed since the one
//! before it, so that what lies between two of them is timed call by call, for one process and
//! for all others apart. Programs of a tracepoint run in the order in which they were attached,
//! with preemption off.
//!
//! Raw tracepoint programs, written out as instructions: no compiler is needed for a bench.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use super::bpf::{Attributes, Runs, attach, bpf, call, load};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;

const MAP_LOOKUP_ELEM: i32 = 1;
const KTIME_GET_NS: i32 = 5;
const GET_CURRENT_PID_TGID: i32 = 14;

/// The most stopwatches at one hook.
const LAPS: usize = 4;

/// Per CPU: the last stamp, which stopwatch made it, and of each lap {runs, nanoseconds} of the
/// watched process and of all others.
const WORDS: usize = 2 + 4 * LAPS;

/// A longer run was interrupted: by a device, or by the machine below this one.
const INTERRUPTED_NS: i32 = 20_000;

/// What lies between two stopwatches.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lap {
    /// Calls of the watched process that moved bytes.
    pub(super) tracked: Runs,
    /// All calls of other processes.
    pub(super) foreign: Runs,
}

impl Lap {
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            tracked: self.tracked.since(earlier.tracked),
            foreign: self.foreign.since(earlier.foreign),
        }
    }
}

/// The stopwatches of one hook.
#[derive(Debug)]
pub(super) struct Stopwatches {
    hook: &'static str,
    process: u32,
    map: OwnedFd,
    attached: Vec<[OwnedFd; 2]>,
}

impl Stopwatches {
    /// Attaches the first. What is attached to the hook from now on is timed by [`Self::lap`].
    /// The hook's second argument must be the bytes moved, an `int`.
    pub(super) fn start(hook: &'static str, process: u32) -> Result<Self> {
        let attributes = Attributes::default()
            .word(0, BPF_MAP_TYPE_PERCPU_ARRAY)
            .word(4, 4)
            .word(8, (WORDS * 8) as u32)
            .word(12, 1);
        let map = bpf(BPF_MAP_CREATE, &attributes).context("cannot make a stopwatch's map")?;
        let mut watches = Self {
            hook,
            process,
            map,
            attached: Vec::new(),
        };
        watches.lap()?;
        Ok(watches)
    }

    /// Attaches one more: what was attached since the one before is a lap.
    pub(super) fn lap(&mut self) -> Result<()> {
        let code = instructions(
            self.attached.len() as i32,
            self.map.as_raw_fd(),
            self.process as i32,
        );
        let program = load(&code).context("cannot load a stopwatch")?;
        let link = attach(self.hook, &program)?;
        self.attached.push([program, link]);
        Ok(())
    }

    /// The totals of each lap so far.
    pub(super) fn read(&self) -> Result<Vec<Lap>> {
        let cpus = possible_cpus()?;
        let mut words = vec![0_u64; WORDS * cpus];
        let key = 0_u32;
        let attributes = Attributes::default()
            .word(0, self.map.as_raw_fd() as u32)
            .long(8, std::ptr::from_ref(&key) as u64)
            .long(16, words.as_mut_ptr() as u64);
        call(BPF_MAP_LOOKUP_ELEM, &attributes).context("cannot read a stopwatch")?;
        let mut laps = vec![Lap::default(); self.attached.len() - 1];
        for cpu in words.chunks_exact(WORDS) {
            for (lap, cell) in laps.iter_mut().zip(cpu[2..].chunks_exact(4)) {
                let runs = |runs, nanoseconds| Runs { runs, nanoseconds };
                lap.tracked = lap.tracked.plus(runs(cell[0], cell[1]));
                lap.foreign = lap.foreign.plus(runs(cell[2], cell[3]));
            }
        }
        Ok(laps)
    }
}

/// By which the kernel lays out per-CPU values.
fn possible_cpus() -> Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit(['-', ',']).next().unwrap_or_default();
    let last: usize = last.parse().context("the kernel states no CPUs")?;
    Ok(last + 1)
}

/// One instruction of 64 bits.
const fn op(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (value as u32 as u64) << 32
}

/// The stopwatch at `place`, 0 for the first. Jumps count the instructions behind them.
fn instructions(place: i32, map: i32, process: i32) -> Vec<u64> {
    let call = |helper| op(0x85, 0, 0, 0, helper);
    let (r0, r1, r2, r6, r7, r8, r9, r10) = (0, 1, 2, 6, 7, 8, 9, 10);
    let (load, store, copy, add) = (0x79, 0x7b, 0xbf, 0x07);
    let mut code = vec![
        op(copy, r6, r1, 0, 0), // r6 = the hook's arguments
        call(KTIME_GET_NS),
        op(copy, r9, r0, 0, 0), // r9 = now
        call(GET_CURRENT_PID_TGID),
        op(copy, r7, r0, 0, 0),
        op(0x77, r7, 0, 0, 32),  // r7 = the process
        op(0x62, r10, 0, -4, 0), // key 0
        op(0x18, r1, 1, 0, map), // the map, in two instructions
        op(0, 0, 0, 0, 0),
        op(copy, r2, r10, 0, 0),
        op(add, r2, 0, 0, -4),
        call(MAP_LOOKUP_ELEM),
        op(0x55, r0, 0, 2, 0), // if it is there, go on
        op(0xb7, r0, 0, 0, 0),
        op(0x95, 0, 0, 0, 0),
        op(copy, r8, r0, 0, 0), // r8 = this CPU's value
    ];
    if place > 0 {
        let cell = 16 + 32 * (place - 1);
        code.extend([
            op(load, r1, r8, 8, 0),
            op(0x55, r1, 0, 18, place), // the one before did not run: stamp
            op(load, r1, r8, 0, 0),
            op(0x1f, r9, r1, 0, 0),              // r9 = now - stamp
            op(0x25, r9, 0, 15, INTERRUPTED_NS), // interrupted: stamp
            op(copy, r2, r8, 0, 0),
            op(add, r2, 0, 0, cell),     // r2 = the watched process's cell
            op(0x55, r7, 0, 5, process), // another process: its cell
            op(load, r1, r6, 8, 0),      // bytes moved, an int
            op(0x67, r1, 0, 0, 32),
            op(0xc7, r1, 0, 0, 32),
            op(0x65, r1, 0, 2, 0),  // more than 0: count
            op(0x05, 0, 0, 7, 0),   // nothing moved: stamp
            op(add, r2, 0, 0, 16),  // others' cell
            op(load, r1, r2, 0, 0), // count
            op(add, r1, 0, 0, 1),
            op(store, r2, r1, 0, 0),
            op(load, r1, r2, 8, 0),
            op(0x0f, r1, r9, 0, 0),
            op(store, r2, r1, 8, 0),
        ]);
    }
    code.extend([
        call(KTIME_GET_NS), // stamp: what is timed next begins here
        op(store, r8, r0, 0, 0),
        op(0x7a, r8, 0, 8, place + 1),
        op(0xb7, r0, 0, 0, 0),
        op(0x95, 0, 0, 0, 0),
    ]);
    code
}
