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
    looks: Vec<Look>,
    last: Timestamp,
}

impl SchedProbe {
    /// What the probe needs of the loader, beside what [`Owners::configure`] adds.
    pub fn configure(options: &mut Options) {
        options.map_entries(ACCOUNTS, possible_cpus());
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
        if loader.cost(Program::SchedSwitch).runs == 0 {
            let error = ProbeError::Silent { program: PROGRAM };
            loader.mark(PROGRAM, error.verdict(), error.to_string());
            return Err(error);
        }
        let mut probe = Self {
            accounts,
            readers: (0..cpus).map(|_| CpuReader::new(OWNERS)).collect(),
            looks: vec![Look::new(); cpus],
            last: Timestamp::now(),
        };
        // What lies before the first window is told to nobody.
        probe.read(owners);
        Ok(probe)
    }

    /// On-CPU time since the last read, by the owners of now. No system call but the clock's.
    pub fn read(&mut self, owners: &Owners) -> CpuWindow {
        let used = owners.used();
        let (to, now) = self.look(used);
        let mut gains = [0u64; OWNERS];
        for (reader, look) in self.readers.iter_mut().zip(&self.looks) {
            if look.since != 0 {
                let running = owners.index_of_process(look.tgid) as usize;
                let booked = look.booked.get(..used).unwrap_or(&look.booked);
                reader.advance(booked, look.since, running, now, &mut gains);
            }
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

    /// Looks at every CPU's account at one moment, which it returns. If the agent lost the CPU
    /// meanwhile it looks again: else slices that ended after that moment would have to be told
    /// apart by guess.
    fn look(&mut self, used: usize) -> (Timestamp, u64) {
        const TRIES: usize = 4;
        const QUICK: u64 = 200_000;
        let mut tries = 0;
        loop {
            let moment = (Timestamp::now(), monotonic());
            for (cpu, look) in self.looks.iter_mut().enumerate() {
                look.take(&self.accounts, cpu, used);
            }
            tries += 1;
            if tries == TRIES || monotonic().saturating_sub(moment.1) < QUICK {
                return moment;
            }
        }
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

/// One CPU's account at one moment.
#[derive(Debug, Clone)]
struct Look {
    /// Start of the running slice; 0 before the CPU's first switch.
    since: u64,
    /// Its process.
    tgid: u32,
    /// Ended slices by owner.
    booked: Vec<u64>,
}

impl Look {
    fn new() -> Self {
        Self {
            since: 0,
            tgid: 0,
            booked: vec![0; OWNERS],
        }
    }

    /// Reads the first `used` cells; reads again if a switch came in between. A torn account
    /// after many tries does no lasting harm, see [`CpuReader`].
    fn take(&mut self, accounts: &SharedArray<CpuAccount>, cpu: usize, used: usize) {
        const TRIES: usize = 8;
        let since = || accounts.word(cpu, SINCE).unwrap_or(0);
        self.since = since();
        for _ in 0..TRIES {
            self.tgid = accounts.word(cpu, TGID).unwrap_or(0) as u32;
            for (index, cell) in self.booked.iter_mut().take(used).enumerate() {
                if let Some(booked) = accounts.word(cpu, HEADER_WORDS + index) {
                    *cell = booked;
                }
            }
            let before = std::mem::replace(&mut self.since, since());
            if before == self.since {
                break;
            }
        }
    }
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
