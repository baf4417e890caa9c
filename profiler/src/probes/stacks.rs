//! Stacks of services' threads: as a timer on each CPU finds them, and where they wait. Both opt-in: the
//! timer wakes CPUs that have nothing to do, and each switch by which a thread blocks takes a stack.
//!
//! In: the ring. Out: [`Sampled`], addresses with their moment, process and owner. Names are
//! `profiles`' business.
//!
//! The timer is the kernel's clock and not a counter of cycles: it is on every machine, virtual ones
//! too, and each of its samples stands for the same time. What runs with interrupts off is seen where they
//! are let in again.

use std::mem::offset_of;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use aya::programs::perf_event::{SamplePolicy, SoftwareEvent};
use profiler_ebpf::stacks::{CpuSamples, Head, WAITING};

use super::load_error::ProbeError;
use super::loader::{Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::{SharedArray, SharedMemory, Words};
use crate::clock::Timestamp;
use crate::ledger::Owner;
use crate::waits::Reason;

const PROGRAM: &str = "stack_sample";
const RING: &str = "STACK_RING";
const COUNTS: &str = "STACK_COUNTS";
const WAITING_STACKS: &str = "STACKS_OF_WAITING";
const OFF_CPU_SWITCH: &str = "OFF_CPU_ON";

/// Samples of 40 frames take 344 bytes: 1 MiB holds three thousand, a quarter of a second (after which
/// they are read) of 120 busy CPUs at 99 Hz. It counts twice in the agent's memory, as it is mapped twice.
const RING_BYTES: u32 = 1 << 20;

/// Samples a second on each CPU where nothing else is asked for: not a divisor of what programs do
/// 10 or 100 times a second.
pub const DEFAULT_HERTZ: u32 = 49;
/// The most that may be asked for.
pub const MOST_HERTZ: u32 = 999;

// SAFETY: repr(C), u64 only.
unsafe impl Words for CpuSamples {}

/// What is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Samples a second on each CPU, 1 to [`MOST_HERTZ`].
    pub on_cpu: Option<u32>,
    /// Stacks of waits that last so long at least. Threads must be followed for it, see
    /// `SchedProbe::follow_threads`.
    pub off_cpu: Option<Duration>,
}

impl Wanted {
    /// True if any is.
    pub const fn any(self) -> bool {
        self.on_cpu.is_some() || self.off_cpu.is_some()
    }
}

/// One sample: where a thread of a service was, or where it waited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampled {
    /// When; of a wait, its end.
    pub at: Timestamp,
    /// Why it waited, and nanoseconds; `None` for one that was on a CPU.
    pub waited: Option<(Reason, u64)>,
    /// The process.
    pub pid: u32,
    /// The CPU; of a wait, the one that woke it.
    pub cpu: u32,
    /// The service's index among the owners, see [`owner`].
    pub owner: u8,
    /// Addresses in the kernel, the innermost first.
    pub kernel: Vec<u64>,
    /// Addresses in the process, the innermost first.
    pub user: Vec<u64>,
}

/// Whose a sample is, by the owners of now.
pub fn owner(owners: &Owners, sampled: u8) -> Option<Owner> {
    owners.name(sampled)
}

/// What was sampled so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StackCounts {
    /// Samples of services' threads.
    pub taken: u64,
    /// Of these, lost because the ring was full.
    pub lost: u64,
    /// Of these, deeper than a sample holds.
    pub cut: u64,
    /// Waits that were long enough.
    pub waits: u64,
    /// Of these, lost because the ring was full or because another thread had taken the stack's place.
    pub waits_lost: u64,
}

/// The running probe.
#[derive(Debug)]
pub struct StackProbe {
    counts: SharedArray<CpuSamples>,
    /// Its first byte turns stacks of waits on.
    off_cpu: Option<SharedMemory>,
}

/// The end of the ring, for a thread of its own.
pub struct StackReader {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for StackReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StackReader").finish_non_exhaustive()
    }
}

impl StackProbe {
    /// Its programs.
    pub const PROGRAMS: &[&str] = &[PROGRAM];

    /// What the probe needs of the loader, beside what [`Owners::configure`] adds. Leave it out if the
    /// probe will not be asked for: its ring takes 1 MiB.
    pub fn configure(options: &mut Options, wanted: Wanted) {
        options
            .map_entries(RING, RING_BYTES)
            .map_entries(COUNTS, possible_cpus());
        if let Some(least) = wanted.off_cpu {
            let least = u64::try_from(least.as_nanos()).unwrap_or(u64::MAX).max(1);
            options
                .map_entries(WAITING_STACKS, WAITING as u32)
                .global("OFF_CPU_LEAST", least.to_ne_bytes());
        }
    }

    /// Starts what is wanted.
    pub fn attach(loader: &mut Loader, wanted: Wanted) -> Result<(Self, StackReader), ProbeError> {
        let counts = loader.shared_array(COUNTS)?;
        if let Some(hertz) = wanted.on_cpu {
            let often = SamplePolicy::Frequency(hertz.clamp(1, MOST_HERTZ).into());
            loader.attach_software_event(PROGRAM, SoftwareEvent::CpuClock, often)?;
        }
        let off_cpu = wanted.off_cpu.map(|_| loader.shared_bytes(OFF_CPU_SWITCH));
        let ring = RingBuf::try_from(loader.take_map(RING)?)
            .map_err(|_| ProbeError::MapShape { map: RING })?;
        let probe = Self {
            counts,
            off_cpu: off_cpu.transpose()?,
        };
        probe.take_waits(true);
        Ok((probe, StackReader { ring }))
    }

    /// Stops the timers, and takes no stacks of waits any more. What is in the ring can still be read.
    pub fn detach(&self, loader: &mut Loader) {
        loader.detach(PROGRAM);
        self.take_waits(false);
    }

    /// Turns stacks of waits on or off, if they were asked for.
    pub fn take_waits(&self, on: bool) {
        if let Some(switch) = &self.off_cpu {
            switch.set_byte(0, on.into());
        }
    }

    /// What was sampled so far. No system call.
    pub fn counts(&self) -> StackCounts {
        let mut sum = StackCounts::default();
        for cpu in 0..self.counts.len() {
            let word = |at| self.counts.word(cpu, at).unwrap_or(0);
            sum.taken = sum.taken.wrapping_add(word(0));
            sum.lost = sum.lost.wrapping_add(word(1));
            sum.cut = sum.cut.wrapping_add(word(2));
            sum.waits = sum.waits.wrapping_add(word(3));
            sum.waits_lost = sum.waits_lost.wrapping_add(word(4).wrapping_add(word(5)));
        }
        sum
    }
}

impl StackReader {
    /// The oldest sample that was not read yet.
    pub fn read(&mut self) -> Option<Sampled> {
        loop {
            // One that is not whole is none.
            if let Some(sampled) = parse(&self.ring.next()?) {
                return Some(sampled);
            }
        }
    }
}

fn parse(record: &[u8]) -> Option<Sampled> {
    let (head, frames) = record.split_at_checked(size_of::<Head>())?;
    let number = |at: usize| {
        let bytes = head.get(at..at + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let word = |at: usize| {
        let bytes = head.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let byte = |at: usize| head.get(at).copied();
    let nanos = number(offset_of!(Head, waited))?;
    let reason = usize::from(byte(offset_of!(Head, reason))?);
    let reason = Reason::ALL.get(reason).copied();
    let kernel = byte(offset_of!(Head, kernel_frames))?.into();
    let user = byte(offset_of!(Head, user_frames))?.into();
    let mut addresses = frames
        .chunks_exact(8)
        .map(|bytes| bytes.try_into().map(u64::from_ne_bytes).unwrap_or_default());
    Some(Sampled {
        at: Timestamp(number(offset_of!(Head, at))?),
        waited: reason.filter(|_| nanos > 0).map(|reason| (reason, nanos)),
        pid: word(offset_of!(Head, tgid))?,
        cpu: word(offset_of!(Head, cpu))?,
        owner: byte(offset_of!(Head, owner))?,
        kernel: addresses.by_ref().take(kernel).collect(),
        user: addresses.take(user).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_apart_as_the_kernel_side_put_it_together() {
        let head = Head {
            at: 0x1_0000_0002,
            waited: 5_000,
            tgid: 7,
            cpu: 3,
            owner: 4,
            reason: Reason::Futex as u8,
            kernel_frames: 1,
            user_frames: 2,
            reserved: 0,
        };
        // SAFETY: repr(C), integers only, no padding.
        let bytes: [u8; size_of::<Head>()] = unsafe { std::mem::transmute(head) };
        let mut record = bytes.to_vec();
        for address in [0xffff_u64, 0x10, 0x20] {
            record.extend(address.to_ne_bytes());
        }
        let sampled = parse(&record).unwrap();
        assert_eq!(sampled.at, Timestamp(0x1_0000_0002));
        assert_eq!((sampled.pid, sampled.cpu, sampled.owner), (7, 3, 4));
        assert_eq!(sampled.waited, Some((Reason::Futex, 5_000)));
        assert_eq!(sampled.kernel, [0xffff]);
        assert_eq!(sampled.user, [0x10, 0x20]);
        assert_eq!(parse(&record[..20]), None);
    }
}
