//! On-CPU time by owner, never older than one read: ended slices as the kernel side booked them,
//! and the slice that still runs on each CPU, up to now.
//!
//! In: each CPU's account in shared memory. Out: [`CpuWindow`], in which every nanosecond of
//! every CPU appears once: Σ owners + idle = CPUs × (to − from). Processes that came and went
//! between two reads are in it. Time is wall time on the CPU: interrupts and hypervisor steal in
//! a slice count to it.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::{IDLE, OWNERS, OwnerIndex};
use profiler_ebpf::sched::{CpuAccount, HEADER_WORDS};

use super::load_error::ProbeError;
use super::loader::{Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::{SharedArray, Words};
use crate::clock::Timestamp;
use crate::ledger::{CpuTime, Event, Owner};

mod cpu_reader;

use cpu_reader::CpuReader;

const PROGRAM: &str = "sched_switch";
const ACCOUNTS: &str = "CPU_ACCOUNTS";

// SAFETY: repr(C), u64 only.
unsafe impl Words for CpuAccount {}

/// On-CPU time of every owner between two reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuWindow {
    /// The window's start: the end of the one before.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
    /// Nanoseconds on CPU of each owner that had any.
    pub owners: Vec<(Owner, u64)>,
    /// Nanoseconds in which CPUs had nothing to run.
    pub idle: u64,
}

impl CpuWindow {
    /// What the ledger is told of it.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        let Self { from, to, .. } = *self;
        self.owners
            .iter()
            .map(move |(owner, on_cpu)| {
                Event::Cpu(CpuTime {
                    owner: *owner,
                    from,
                    to,
                    on_cpu: *on_cpu,
                })
            })
            .chain([Event::CpuUntil(to)])
    }
}

/// The running probe.
#[derive(Debug)]
pub struct SchedProbe {
    accounts: SharedArray<CpuAccount>,
    readers: Vec<CpuReader>,
    last: Timestamp,
}

impl SchedProbe {
    /// What the probe needs of the loader, beside what [`Owners::configure`] adds.
    pub fn configure(options: &mut Options) {
        let cpus = possible_cpus().unwrap_or(1);
        options.map_entries(ACCOUNTS, u32::try_from(cpus).unwrap_or(u32::MAX));
    }

    /// Attaches the probe, lets each CPU publish its first slice, and checks that it does.
    pub fn attach(loader: &mut Loader, owners: &Owners) -> Result<Self, ProbeError> {
        let accounts = loader.shared_array::<CpuAccount>(ACCOUNTS)?;
        loader.attach_btf_tracepoint(PROGRAM, PROGRAM)?;
        let cpus = accounts.len();
        switch_every_cpu(cpus).map_err(|source| ProbeError::Machine {
            what: "a thread to visit each CPU",
            source,
        })?;
        if loader
            .cost(Program::SchedSwitch)
            .is_some_and(|cost| cost.runs == 0)
        {
            let error = ProbeError::Silent { program: PROGRAM };
            loader.mark(PROGRAM, error.verdict(), error.to_string());
            return Err(error);
        }
        let mut probe = Self {
            accounts,
            readers: (0..cpus).map(|_| CpuReader::new(OWNERS)).collect(),
            last: Timestamp::now(),
        };
        // What lies before the first window is told to nobody.
        probe.read(owners);
        Ok(probe)
    }

    /// On-CPU time since the last read, by the owners of now. No system call but the clock's.
    pub fn read(&mut self, owners: &Owners) -> CpuWindow {
        let (to, now) = (Timestamp::now(), monotonic());
        let used = owners.used();
        let mut gains = [0u64; OWNERS];
        let mut booked = [0u64; OWNERS];
        for (cpu, reader) in self.readers.iter_mut().enumerate() {
            let Some((since, tgid)) = snapshot(&self.accounts, cpu, used, &mut booked) else {
                continue;
            };
            let index = owners.index_of_process(tgid);
            reader.advance(&booked[..used], since, index as usize, now, &mut gains);
        }
        let mut window = CpuWindow {
            from: self.last,
            to,
            owners: Vec::new(),
            idle: 0,
        };
        self.last = to;
        for (index, gain) in gains.into_iter().enumerate().filter(|(_, gain)| *gain > 0) {
            if index == IDLE as usize {
                window.idle = gain;
                continue;
            }
            // An index that was just forgotten is nobody's.
            let owner = owners.name(index as OwnerIndex).unwrap_or(Owner::Other);
            match window.owners.iter_mut().find(|(name, _)| *name == owner) {
                Some((_, sum)) => *sum += gain,
                None => window.owners.push((owner, gain)),
            }
        }
        window
    }

    /// CPUs whose account has begun. A CPU the agent may not visit begins at its next switch.
    pub fn cpus(&self) -> usize {
        (0..self.accounts.len())
            .filter(|cpu| {
                self.accounts
                    .word(*cpu, SINCE)
                    .is_some_and(|since| since != 0)
            })
            .count()
    }
}

const SINCE: usize = 0;
const TGID: usize = 1;

/// One CPU's account at one moment: start of the running slice, its process, and the first `used`
/// cells. `None` before the CPU's first switch. Read again if a switch came in between; a torn
/// account after many tries does no lasting harm, see [`CpuReader`].
fn snapshot(
    accounts: &SharedArray<CpuAccount>,
    cpu: usize,
    used: usize,
    booked: &mut [u64; OWNERS],
) -> Option<(u64, u32)> {
    const TRIES: usize = 8;
    let mut since = accounts.word(cpu, SINCE)?;
    let mut tgid = 0;
    for _ in 0..TRIES {
        tgid = accounts.word(cpu, TGID)?;
        for (index, cell) in booked.iter_mut().take(used).enumerate() {
            *cell = accounts.word(cpu, HEADER_WORDS + index)?;
        }
        let after = accounts.word(cpu, SINCE)?;
        if after == since {
            break;
        }
        since = after;
    }
    (since != 0).then_some((since, tgid as u32))
}

/// The clock of the kernel side's slices. It stands still in suspend, as every process does.
fn monotonic() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid to write; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Makes each CPU switch once, by visiting it with a thread: an undisturbed CPU (`nohz_full`)
/// would otherwise publish nothing for as long as its one thread runs. A CPU that does not let
/// the thread in within the time limit, or that the agent may not use, begins later.
fn switch_every_cpu(cpus: usize) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_millis(500);
    let (done, finished) = mpsc::channel();
    thread::Builder::new()
        .name("visit-cpus".to_owned())
        .spawn(move || {
            for cpu in 0..cpus.min(libc::CPU_SETSIZE as usize) {
                // SAFETY: a cpu_set_t is plain bits, for which zero is valid; `cpu` is below its
                // size; the call concerns this thread only and reads the set.
                unsafe {
                    let mut set: libc::cpu_set_t = std::mem::zeroed();
                    libc::CPU_SET(cpu, &mut set);
                    libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
                }
                // Leaves the CPU and comes back: two switches there.
                thread::sleep(Duration::from_micros(10));
            }
            // The receiver may have lost patience.
            let _ = done.send(());
        })?;
    let _ = finished.recv_timeout(PATIENCE);
    Ok(())
}
