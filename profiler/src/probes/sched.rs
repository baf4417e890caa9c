//! On-CPU time by owner, and cycles where the machine counts them, never older than one read: ended
//! slices as the kernel side booked them, and the slice that still runs on each CPU, up to now.
//!
//! In: each CPU's account in shared memory. Out: [`CpuWindow`], in which every nanosecond of
//! every CPU appears once: Σ owners + idle = CPUs × (to − from). Processes that came and went
//! between two reads are in it. Time is wall time on the CPU: interrupts and hypervisor steal in
//! a slice count to it. What threads of services wait for is in [`waits`].

use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use profiler_ebpf::cost::Program;
use profiler_ebpf::owners::{IDLE, OWNERS, OwnerIndex};
use profiler_ebpf::sched::{CpuAccount, HEADER_WORDS};

use super::load_error::ProbeError;
use super::loader::{Field, Loader, Options, possible_cpus};
use super::owners::Owners;
use super::shared_memory::{SharedArray, Words};
use crate::clock::Timestamp;
use crate::ledger::{CpuTime, Owner, ServiceId};
use crate::perf_event::{self, Counted};
use crate::waits::{ThreadTimes, Waits};

mod cpu_reader;
mod cycles;
mod waits;

use cpu_reader::CpuReader;
use cycles::{CycleCounters, CycleRates};
use waits::WaitReader;
pub use waits::{Detail, UnknownDetail, WaitLosses};

const PROGRAM: &str = "sched_switch";
/// What follows threads, beside the program at the switch.
const WAKE_UPS: [&str; 2] = ["sched_wakeup", "sched_wakeup_new"];
const ACCOUNTS: &str = "CPU_ACCOUNTS";
const CPUS: &str = "/sys/devices/system/cpu";

/// Without the first, the time around a switch that no program saw is the next thread's; without the
/// others, slices are cut where the hook stands.
const FIELDS: [Field; 4] = [
    field("TASK_ARRIVAL", "task_struct", "sched_info.last_arrival"),
    field("TASK_CFS_RQ", "task_struct", "se.cfs_rq"),
    field("CFS_RQ_RQ", "cfs_rq", "rq"),
    field("RQ_CLOCK", "rq", "clock"),
];

/// One that no program needs.
const fn field(global: &'static str, structure: &'static str, member: &'static str) -> Field {
    Field {
        global,
        structure,
        member,
        programs: &[],
    }
}

// SAFETY: repr(C), u64 only.
unsafe impl Words for CpuAccount {}

/// An owner's time on the CPUs of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnCpu {
    /// Whose.
    pub owner: Owner,
    /// The package, by the kernel's number; 0 where it tells none.
    pub package: u32,
    /// Nanoseconds.
    pub nanos: u64,
    /// Cycles, where they are counted.
    pub cycles: Option<u64>,
}

/// On-CPU time of every owner between two reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuWindow {
    /// The window's start: the end of the one before.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
    /// Time on CPU of each owner that had any, by package.
    pub owners: Vec<OnCpu>,
    /// Nanoseconds in which CPUs had nothing to run.
    pub idle: u64,
}

impl CpuWindow {
    /// As the ledger and the sinks take it.
    pub fn times(&self) -> impl Iterator<Item = CpuTime> {
        let Self { from, to, .. } = *self;
        self.owners.iter().map(move |time| CpuTime {
            owner: time.owner,
            from,
            to,
            package: time.package,
            on_cpu: time.nanos,
            cycles: time.cycles,
        })
    }
}

/// The running probe.
#[derive(Debug)]
pub struct SchedProbe {
    accounts: SharedArray<CpuAccount>,
    readers: Vec<CpuReader>,
    /// Where cycles are counted.
    cycles: Option<(CycleCounters, Vec<CycleRates>)>,
    looks: Vec<Look>,
    /// The place of each CPU's package.
    places: Vec<usize>,
    /// Numbers of the packages.
    packages: Vec<u32>,
    last: Timestamp,
    /// Where threads are followed.
    waits: Option<WaitReader>,
}

impl SchedProbe {
    /// What the probe needs of the loader, beside what [`Owners::configure`] adds.
    /// `counted` is what cycles are: [`perf_event::CYCLES`], or something in their place. Where the
    /// machine has no such counter, none are counted.
    pub fn configure(options: &mut Options, counted: Counted) {
        options.map_entries(ACCOUNTS, possible_cpus());
        options.fields(&FIELDS);
        if perf_event::open(counted, 0, true).is_ok() {
            options.global("CYCLES", [1]);
        }
    }

    /// Also follows the threads of services while they do not run; beside [`Self::configure`].
    pub fn follow_threads(options: &mut Options, detail: Detail) {
        waits::configure(options, detail);
    }

    /// Attaches the probe, lets each CPU publish its first slice, and checks that it does.
    pub fn attach(
        loader: &mut Loader,
        owners: &Owners,
        counted: Counted,
    ) -> Result<Self, ProbeError> {
        let accounts = loader.shared_array::<CpuAccount>(ACCOUNTS)?;
        let cpus = accounts.len();
        // Before the first switch, so that each slice has its beginning.
        let counters = CycleCounters::open(loader, counted, cpus);
        loader.attach_btf_tracepoint(PROGRAM, PROGRAM)?;
        switch_every_cpu(cpus).map_err(|source| ProbeError::Machine {
            what: "a thread to visit each CPU",
            source,
        })?;
        if loader.cost(Program::SchedSwitch).runs == 0 {
            let error = ProbeError::Silent { program: PROGRAM };
            loader.mark(PROGRAM, error.verdict(), error.to_string());
            return Err(error);
        }
        let (packages, places) = packages(cpus, Path::new(CPUS));
        let mut probe = Self {
            accounts,
            packages,
            places,
            cycles: counters.map(|counters| {
                let rates = (0..cpus).map(|_| CycleRates::new(OWNERS)).collect();
                (counters, rates)
            }),
            readers: (0..cpus).map(|_| CpuReader::new(OWNERS)).collect(),
            looks: vec![Look::new(); cpus],
            last: Timestamp::now(),
            waits: None,
        };
        // What lies before the first window is told to nobody.
        probe.read(owners);
        Ok(probe)
    }

    /// Attaches what follows threads, as asked for with [`Self::follow_threads`]; of no service yet.
    /// Where that fails on-CPU time is told all the same.
    pub fn attach_threads(&mut self, loader: &mut Loader) -> Result<(), ProbeError> {
        let reader = WaitReader::new(loader)?;
        let missing = loader
            .missing_fields()
            .find(|(field, _)| field.global == waits::STATE)
            .map(|(field, reason)| ProbeError::MissingField {
                program: PROGRAM,
                structure: field.structure,
                member: field.member,
                reason: reason.to_owned(),
            });
        if let Some(error) = missing {
            for program in WAKE_UPS {
                loader.mark(program, error.verdict(), error.to_string());
            }
            return Err(error);
        }
        for program in WAKE_UPS {
            if let Err(error) = loader.attach_btf_tracepoint(program, program) {
                // One without the other would time half of the waits.
                for program in WAKE_UPS {
                    loader.release(program);
                }
                loader.mark(program, error.verdict(), error.to_string());
                return Err(error);
            }
        }
        self.waits = Some(reader);
        Ok(())
    }

    /// The threads of this service, which has a process in `owners`, are followed from now on.
    pub fn follow(&mut self, owners: &Owners, service: ServiceId) {
        if let Some(waits) = &mut self.waits {
            waits.follow(owners, service);
        }
    }

    /// The service has ended, and is still in `owners`.
    pub fn forget(&mut self, owners: &Owners, service: ServiceId) {
        if let Some(waits) = &mut self.waits {
            waits.forget(owners, service);
        }
    }

    /// What the threads of each service that is followed did since the last read. No system call.
    pub fn read_waits(&mut self) -> Vec<(ServiceId, Waits)> {
        self.waits.as_mut().map_or_else(Vec::new, WaitReader::read)
    }

    /// Every followed thread's times up to now.
    pub fn threads(&self) -> Vec<ThreadTimes> {
        self.waits
            .as_ref()
            .map_or_else(Vec::new, WaitReader::threads)
    }

    /// The threads of the processes that are wanted, each with the place where
    /// [`Self::thread_at`] finds it again.
    pub fn places_of(&self, is_wanted: impl Fn(u32) -> bool) -> Vec<(usize, ThreadTimes)> {
        self.waits
            .as_ref()
            .map_or_else(Vec::new, |waits| waits.places_of(is_wanted))
    }

    /// One thread's times up to now; `None` once it has ended.
    pub fn thread_at(&self, place: usize, tid: u32) -> Option<ThreadTimes> {
        self.waits.as_ref()?.thread_at(place, tid)
    }

    /// Frees the slots of threads whose end was not seen, of those that have been in one state for
    /// longer than `quiet`. Asks /proc for each.
    pub fn sweep_threads(&mut self, quiet: Duration) {
        if let Some(waits) = &mut self.waits {
            waits.sweep(quiet.as_nanos() as u64);
        }
    }

    /// What could not be followed; `None` where threads are not.
    pub fn wait_losses(&self) -> Option<WaitLosses> {
        self.waits.as_ref().map(WaitReader::losses)
    }

    /// On-CPU time since the last read, by the owners of now. No system call but the clock's.
    pub fn read(&mut self, owners: &Owners) -> CpuWindow {
        let used = owners.used();
        let (to, now) = self.look(used);
        let mut gains = vec![Gains::new(); self.packages.len()];
        let cpus = self.readers.iter_mut().zip(&self.looks).zip(&self.places);
        for (cpu, ((reader, look), place)) in cpus.enumerate() {
            let (true, Some(package)) = (look.since != 0, gains.get_mut(*place)) else {
                continue;
            };
            let running = owners.index_of_process(look.tgid) as usize;
            let booked = look.booked.get(..used).unwrap_or(&look.booked);
            let mut gained = [0; OWNERS];
            reader.advance(booked, look.since, running, now, &mut gained);
            let rates = self
                .cycles
                .as_mut()
                .and_then(|(_, rates)| rates.get_mut(cpu));
            if let Some(rates) = rates {
                rates.learn(&look.booked, &look.cycles);
                package.add(&gained, |owner, nanos| rates.cycles(owner, nanos));
            } else {
                package.add(&gained, |_, _| None);
            }
        }
        let mut window = CpuWindow {
            from: self.last,
            to,
            owners: Vec::new(),
            idle: 0,
        };
        self.last = to;
        for (package, gains) in self.packages.iter().zip(gains) {
            let package = *package;
            let first = window.owners.len();
            let cycles = gains.cycles();
            let gained = gains.nanos.into_iter().enumerate();
            for (index, nanos) in gained.filter(|(_, nanos)| *nanos > 0) {
                let cycles = cycles
                    .and_then(|cycles| cycles.get(index))
                    .map(|of| *of as u64);
                if index == IDLE as usize {
                    window.idle += nanos;
                    continue;
                }
                // An index that was just forgotten is nobody's.
                let owner = owners.name(index as OwnerIndex).unwrap_or(Owner::Other);
                let known = window.owners.iter_mut().skip(first);
                match known.into_iter().find(|time| time.owner == owner) {
                    Some(time) => {
                        time.nanos += nanos;
                        time.cycles = time.cycles.zip(cycles).map(|(one, other)| one + other);
                    }
                    None => window.owners.push(OnCpu {
                        owner,
                        package,
                        nanos,
                        cycles,
                    }),
                }
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

    /// Switches to other processes at which no program ran, as the next switch tells.
    pub fn unseen_switches(&self) -> u64 {
        (0..self.accounts.len())
            .filter_map(|cpu| self.accounts.word(cpu, UNSEEN))
            .sum()
    }

    /// Whether CPUs of this package are looked at.
    pub fn knows_package(&self, package: u32) -> bool {
        self.packages.contains(&package)
    }
}

/// What owners got on one package.
#[derive(Debug, Clone)]
struct Gains {
    nanos: [u64; OWNERS],
    cycles: [f64; OWNERS],
    /// Time of owners other than idle whose cycles are not known.
    untold: u64,
    told: u64,
}

impl Gains {
    const fn new() -> Self {
        Self {
            nanos: [0; OWNERS],
            cycles: [0.0; OWNERS],
            untold: 0,
            told: 0,
        }
    }

    fn add(&mut self, gained: &[u64; OWNERS], cycles: impl Fn(usize, u64) -> Option<f64>) {
        let sums = self.nanos.iter_mut().zip(&mut self.cycles);
        for (owner, (nanos, (sum, sum_of_cycles))) in gained.iter().zip(sums).enumerate() {
            *sum += nanos;
            if owner == IDLE as usize {
                continue;
            }
            match cycles(owner, *nanos) {
                Some(cycles) => {
                    *sum_of_cycles += cycles;
                    self.told += nanos;
                }
                None => self.untold += nanos,
            }
        }
    }

    /// Each owner's cycles, if those of nearly all time are known.
    fn cycles(&self) -> Option<&[f64; OWNERS]> {
        (self.told > 0 && self.untold * 100 <= self.told).then_some(&self.cycles)
    }
}

/// Numbers of the packages, and for each CPU the place of its own among them. A CPU that tells none
/// (offline, or a machine without) is taken for one of package 0.
fn packages(cpus: usize, root: &Path) -> (Vec<u32>, Vec<usize>) {
    let number = |cpu: usize| {
        let file = root.join(format!("cpu{cpu}/topology/physical_package_id"));
        let text = fs::read_to_string(file).ok()?;
        text.trim().parse().ok()
    };
    let of_cpus: Vec<u32> = (0..cpus).map(|cpu| number(cpu).unwrap_or(0)).collect();
    let mut packages = of_cpus.clone();
    packages.sort_unstable();
    packages.dedup();
    let place = |number| packages.partition_point(|known| known < number);
    let places = of_cpus.iter().map(place).collect();
    (packages, places)
}

const SINCE: usize = 0;
const TGID: usize = 1;
const UNSEEN: usize = 4;

/// One CPU's account at one moment.
#[derive(Debug, Clone)]
struct Look {
    /// Start of the running slice; 0 before the CPU's first switch.
    since: u64,
    /// Its process.
    tgid: u32,
    /// Ended slices by owner.
    booked: Vec<u64>,
    /// Their cycles.
    cycles: Vec<u64>,
}

impl Look {
    fn new() -> Self {
        Self {
            since: 0,
            tgid: 0,
            booked: vec![0; OWNERS],
            cycles: vec![0; OWNERS],
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
            let cells = self.booked.iter_mut().zip(&mut self.cycles);
            for (index, (booked, cycles)) in cells.take(used).enumerate() {
                let word = |at| accounts.word(cpu, at);
                *booked = word(HEADER_WORDS + index).unwrap_or(*booked);
                *cycles = word(HEADER_WORDS + OWNERS + index).unwrap_or(*cycles);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cpu_has_its_package_and_one_that_tells_none_is_of_package_0() {
        let root = tempfile::tempdir().unwrap();
        for (cpu, package) in [(0, "0\n"), (1, "3\n"), (2, "-1\n"), (4, "3\n")] {
            let folder = root.path().join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("physical_package_id"), package).unwrap();
        }
        let (numbers, places) = packages(5, root.path());
        assert_eq!(numbers, [0, 3]);
        assert_eq!(places, [0, 1, 0, 0, 1]);
    }
}
