//! On-CPU time by owner, on the real kernel. Needs root.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::{scaled, slowness, stolen};
use profiler::ledger::{CpuTime, Owner, ServiceId};
use profiler::perf_event::{self, Counted};
use profiler::probes::health::{ProgramHealth, Verdict};
use profiler::probes::loader::{Loader, Options};
use profiler::probes::owners::Owners;
use profiler::probes::sched::{CpuWindow, Detail, SchedProbe};

#[path = "sched/peers.rs"]
mod peers;
#[path = "sched/waits.rs"]
mod waits;

const SERVICE_ID: ServiceId = ServiceId(7);
const SERVICE: Owner = Owner::Service(SERVICE_ID);

/// The machine has few CPUs: one busy test at a time.
static MACHINE: Mutex<()> = Mutex::new(());

struct Running {
    probe: SchedProbe,
    owners: Owners,
    loader: Loader,
    _machine: MutexGuard<'static, ()>,
}

fn start() -> Running {
    start_counting(perf_event::CYCLES)
}

/// Also follows threads.
fn start_following(detail: Detail) -> Running {
    start_with(perf_event::CYCLES, detail)
}

fn start_counting(counted: Counted) -> Running {
    start_with(counted, Detail::Nothing)
}

fn start_with(counted: Counted, detail: Detail) -> Running {
    let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut options = Options::default();
    Owners::configure(&mut options);
    SchedProbe::configure(&mut options, counted);
    SchedProbe::follow_threads(&mut options, detail);
    let mut loader =
        Loader::new(&options).unwrap_or_else(|error| panic!("{error}; {}", error.fix()));
    let owners = Owners::attach(&mut loader).expect("the owners' table");
    let mut probe = SchedProbe::attach(&mut loader, &owners, counted).expect("the scheduler probe");
    if detail != Detail::Nothing {
        probe.attach_threads(&mut loader).expect("threads");
    }
    Running {
        probe,
        owners,
        loader,
        _machine: machine,
    }
}

impl Running {
    fn read(&mut self) -> CpuWindow {
        self.probe.read(&self.owners)
    }
}

fn of(window: &CpuWindow, owner: Owner) -> u64 {
    window
        .owners
        .iter()
        .filter(|time| time.owner == owner)
        .map(|time| time.nanos)
        .sum()
}

/// A shell that waits for [`Shell::release`] before it runs its script; killed when dropped.
struct Shell(Child);

fn gated(script: &str) -> Shell {
    Shell(
        Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .spawn()
            .expect("sh"),
    )
}

impl Shell {
    fn id(&self) -> u32 {
        self.0.id()
    }

    fn release(&mut self) {
        let mut stdin = self.0.stdin.take().expect("piped");
        stdin.write_all(b"go\n").expect("the shell reads");
    }

    fn kill(&mut self) {
        self.0.kill().expect("running");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have ended, or been waited for by the test itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// On-CPU nanoseconds of a process as the scheduler itself counts them, up to now: what `schedstat` says is
/// as old as the last tick, which comes late where CPUs are emulated.
fn cpu_time(pid: u32) -> u64 {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both are valid to write.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid as i32, &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    assert!(!failed, "process {pid} has no CPU clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Waits for `pid`; the CPU time of it and of all its waited-for descendants, nanoseconds.
fn waited_cpu_time(pid: u32) -> u64 {
    let mut status = 0;
    // SAFETY: rusage is plain integers, for which zero is valid; both are valid to write.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(
            libc::wait4(pid as i32, &raw mut status, 0, &raw mut usage),
            pid as i32
        );
        usage
    };
    let nanos = |time: libc::timeval| (time.tv_sec * 1_000_000 + time.tv_usec) as u64 * 1_000;
    nanos(usage.ru_utime) + nanos(usage.ru_stime)
}

/// The scheduler brings its own count up to date at its tick.
const TICK: Duration = Duration::from_millis(10);

/// True if `measured` is between `least` and `most`, or off by no more than a tick and `ratio`.
fn within(measured: u64, least: u64, most: u64, ratio: f64) -> bool {
    let off = least
        .saturating_sub(measured)
        .max(measured.saturating_sub(most));
    // Ticks of an emulated timer come late.
    off as f64 <= most as f64 * ratio + scaled(TICK).as_nanos() as f64
}

#[test]
fn a_busy_thread_is_seen_at_every_read_though_it_never_leaves_the_cpu() {
    let mut running = start();
    let mut child = gated("while :; do :; done");
    assert!(running.owners.set(child.id(), SERVICE));
    running.read();
    let (before, taken) = (cpu_time(child.id()), stolen());
    child.release();
    let mut total = 0;
    for _ in 0..10 {
        sleep(Duration::from_millis(100));
        // This test may be kept off the CPU between two looks, so the truth is a bracket.
        let least = cpu_time(child.id()) - before;
        let seen = of(&running.read(), SERVICE);
        let most = cpu_time(child.id()) - before + (stolen() - taken);
        total += seen;
        assert!(seen > 10_000_000, "it was busy: {seen}");
        assert!(
            within(total, least, most, 0.01),
            "{total} seen, {least} to {most} true"
        );
    }
}

#[test]
fn short_lived_children_of_a_service_lose_nothing() {
    let mut running = start();
    let mut child = gated("i=0; while [ $i -lt 500 ]; do /bin/true; i=$((i+1)); done");
    assert!(running.owners.set(child.id(), SERVICE));
    let mut seen = of(&running.read(), SERVICE);
    let idle_child = seen;
    let taken = stolen();
    child.release();
    let truth = waited_cpu_time(child.id());
    // Its last slice may end a moment after it was waited for.
    sleep(Duration::from_millis(20));
    seen += of(&running.read(), SERVICE);
    // The shell's own start.
    assert!(u128::from(idle_child) < scaled(TICK).as_nanos());
    assert!(truth > 20_000_000, "500 processes ran: {truth}");
    let taken = stolen() - taken;
    assert!(
        within(seen, truth, truth + taken, 0.05),
        "seen {seen}, the kernel accounted {truth}, the host took {taken}"
    );
}

#[test]
fn a_killed_process_keeps_its_time() {
    let mut running = start();
    let mut child = gated("while :; do :; done");
    assert!(running.owners.set(child.id(), SERVICE));
    running.read();
    let taken = stolen();
    child.release();
    sleep(Duration::from_millis(300));
    child.kill();
    let truth = waited_cpu_time(child.id());
    sleep(Duration::from_millis(20));
    let seen = of(&running.read(), SERVICE);
    let taken = stolen() - taken;
    assert!(
        within(seen, truth, truth + taken, 0.02),
        "{seen} beside {truth}, the host took {taken}"
    );
}

#[test]
fn a_process_named_while_it_runs_counts_for_its_owner_from_then_on() {
    let mut running = start();
    let mut child = gated("while :; do :; done");
    child.release();
    sleep(Duration::from_millis(100));
    // A slice is whoever's its process is at its end, from the last read on. This test may be kept off the CPU
    // anywhere here, so the truth is a bracket.
    let (before, taken) = (cpu_time(child.id()), stolen());
    assert_eq!(of(&running.read(), SERVICE), 0);
    assert_eq!(running.owners.get(child.id()), Owner::Other);
    assert!(running.owners.set(child.id(), SERVICE));
    let named = cpu_time(child.id());
    sleep(Duration::from_millis(200));
    let least = cpu_time(child.id()) - named;
    let seen = of(&running.read(), SERVICE);
    let most = cpu_time(child.id()) - before + (stolen() - taken);
    assert!(
        within(seen, least, most, 0.01),
        "{seen} seen, {least} to {most} true"
    );
}

#[test]
fn every_cpu_nanosecond_is_owned_or_idle() {
    let mut running = start();
    let mut child = gated("while :; do /bin/true; done");
    child.release();
    let cpus = running.probe.cpus() as u64;
    assert_eq!(
        cpus,
        std::thread::available_parallelism().expect("cpus").get() as u64
    );
    let (mut accounted, mut wall) = (0, 0);
    for _ in 0..20 {
        sleep(Duration::from_millis(25));
        let window = running.read();
        accounted += window.idle + window.owners.iter().map(|time| time.nanos).sum::<u64>();
        wall += window.to.since(window.from);
    }
    // The window's two clocks are read one after the other.
    assert!(
        accounted.abs_diff(cpus * wall) < cpus * 2_000_000,
        "accounted {accounted} of {}",
        cpus * wall
    );
}

/// A timer's nanoseconds stand in for cycles, which virtual machines seldom have: each owner's then
/// are its time on the CPU.
#[test]
fn cycles_are_those_of_the_slices_that_spent_them() {
    let mut running = start_counting(perf_event::CPU_CLOCK);
    let mut child = gated("while :; do /bin/true; done");
    assert!(running.owners.set(child.id(), SERVICE));
    child.release();
    sleep(Duration::from_millis(300));
    running.read();
    for _ in 0..5 {
        sleep(Duration::from_millis(100));
        let window = running.read();
        for time in &window.owners {
            let cycles = time.cycles.expect("counted") as f64;
            let off = (cycles - time.nanos as f64).abs();
            assert!(
                off < 0.1 * time.nanos as f64 + 2e6 * f64::from(slowness()),
                "{time:?} in {} ns",
                window.to.since(window.from)
            );
        }
        assert!(of(&window, SERVICE) > 20_000_000);
    }
}

#[test]
fn a_machine_without_such_a_counter_has_time_and_no_cycles() {
    let nothing = Counted {
        kind: u32::MAX,
        config: 0,
    };
    let mut running = start_counting(nothing);
    sleep(Duration::from_millis(50));
    let window = running.read();
    assert!(!window.owners.is_empty());
    assert!(window.owners.iter().all(|time| time.cycles.is_none()));
}

#[test]
fn a_command_the_agent_starts_is_not_the_agent() {
    let mut running = start();
    let mut child = gated("while :; do :; done");
    child.release();
    running.read();
    sleep(Duration::from_millis(200));
    let window = running.read();
    assert_eq!(running.owners.get(std::process::id()), Owner::Agent);
    assert_eq!(running.owners.get(child.id()), Owner::Other);
    assert!(of(&window, Owner::Agent) < 50_000_000);
    assert!(of(&window, Owner::Other) > 50_000_000);
}

#[test]
fn a_forgotten_service_makes_room_and_its_processes_are_others() {
    let mut running = start();
    let child = gated("exit");
    assert!(running.owners.set(child.id(), SERVICE));
    running.owners.forget(&[ServiceId(7)]);
    assert_eq!(running.owners.get(child.id()), Owner::Other);
    for id in 100..400 {
        assert!(
            running
                .owners
                .set(child.id(), Owner::Service(ServiceId(id)))
        );
        running.owners.forget(&[ServiceId(id)]);
    }
    for id in 1_000..1_252 {
        assert!(
            running
                .owners
                .set(child.id(), Owner::Service(ServiceId(id)))
        );
    }
    assert!(
        !running
            .owners
            .set(child.id(), Owner::Service(ServiceId(2_000)))
    );
    assert_eq!(running.owners.refused(), 1);
}

#[test]
fn the_ledger_is_told_each_owner_and_how_far() {
    let mut running = start();
    sleep(Duration::from_millis(30));
    let window = running.read();
    let times: Vec<CpuTime> = window.times().collect();
    assert!(!times.is_empty());
    assert_eq!(times.len(), window.owners.len());
    for time in times {
        assert_eq!((time.from, time.to), (window.from, window.to));
        assert!(running.probe.knows_package(time.package));
    }
}

#[test]
fn the_programs_are_healthy_and_know_their_cost() {
    let running = start();
    let deadline = Instant::now() + scaled(Duration::from_secs(5));
    // One run in 1,024 is timed.
    let health = loop {
        sleep(Duration::from_millis(200));
        let health = running.loader.health();
        let timed = |it: &ProgramHealth| it.program == "sched_switch" && it.seconds.is_some();
        if health.iter().any(timed) || Instant::now() > deadline {
            break health;
        }
    };
    let switch = health
        .iter()
        .find(|health| health.program == "sched_switch")
        .expect("listed");
    assert_eq!(switch.verdict, Verdict::Ok, "{}", switch.text);
    assert!(switch.runs > 0);
    let each = switch.seconds.expect("timed") / switch.runs as f64;
    let most = 100e-6 * f64::from(slowness());
    assert!((10e-9..most).contains(&each), "{each} s a run");
    let syscalls = health
        .iter()
        .find(|health| health.program == "sys_enter")
        .expect("listed");
    assert_eq!((syscalls.verdict, syscalls.runs), (Verdict::Off, 0));
}
