//! The same figures by other tools, and what many short-lived processes leave behind.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::{is_root, scaled, skipped, slowness, stolen};
use profiler::probes::sched::Detail;

use super::waits::{Program, waits_of};
use super::{SERVICE, SERVICE_ID, cpu_time, gated, of, start_following, waited_cpu_time};

const RUNQLAT: &str = "/usr/sbin/runqlat";

/// A running runqlat of one process.
struct Runqlat(Child);

impl Runqlat {
    fn of(pid: u32) -> Self {
        let child = Command::new(RUNQLAT)
            .args(["-p", &pid.to_string(), "600", "1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("runqlat");
        // It says that it traces before its programs are attached, if at all: they are by then.
        sleep(scaled(Duration::from_secs(3)));
        Self(child)
    }

    /// Waits by power of two of microseconds: the first holds 0 and 1.
    fn end(mut self) -> BTreeMap<u32, u64> {
        use std::io::Read as _;
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        unsafe { libc::kill(self.0.id() as libc::pid_t, libc::SIGINT) };
        let mut text = String::new();
        let stdout = self.0.stdout.as_mut().expect("piped");
        stdout.read_to_string(&mut text).expect("text");
        self.0.wait().expect("it ends");
        let rows = text.lines().filter_map(|line| {
            let (range, counts) = line.split_once(':')?;
            let (start, _) = range.split_once("->")?;
            let start: u64 = start.trim().parse().ok()?;
            let count: u64 = counts.split_whitespace().next()?.parse().ok()?;
            Some((start.checked_ilog2().unwrap_or(0), count))
        });
        rows.collect()
    }
}

/// The power of two in which the quantile of all counts lies.
fn power_of(counts: &BTreeMap<u32, u64>, quantile: f64) -> u32 {
    let all: u64 = counts.values().sum();
    let mut left = (all as f64 * quantile).ceil() as u64;
    for (power, count) in counts {
        if left <= *count {
            return *power;
        }
        left -= count;
    }
    panic!("no counts");
}

#[test]
fn waits_are_spread_as_runqlat_sees_them() {
    if !is_root("runqlat") {
        return;
    }
    if !std::path::Path::new(RUNQLAT).exists() {
        skipped("the run queue's histogram beside runqlat: no libbpf-tools");
        return;
    }
    let mut running = start_following(Detail::RunQueue);
    let mut program = Program::gated(
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n\
         def work(n):\n  end = time.monotonic() + 4\n  while time.monotonic() < end:\n    \
         for _ in range(n): pass\n    time.sleep(0.0005)\n\
         ts = [threading.Thread(target=work, args=(n,)) for n in (10, 100, 20000, 90000)]\n\
         for t in ts: t.start()\n\
         for t in ts: t.join()",
    );
    let peer = Runqlat::of(program.id());
    let waits = waits_of(&mut running, &mut program);
    let theirs = peer.end();
    let mut ours: BTreeMap<u32, u64> = BTreeMap::new();
    for (power, count) in (0..).zip(waits.histogram) {
        // 2^10 ns is a microsecond.
        *ours.entry(u32::saturating_sub(power, 10)).or_default() += count;
    }
    let (all, peers): (u64, u64) = (ours.values().sum(), theirs.values().sum());
    ours.retain(|_, count| *count > 0);
    println!("ours {all}: {ours:?}\nrunqlat {peers}: {theirs:?}");
    assert!(peers > 50, "{peers}");
    // It has no time of a wait that began before it was there, and counts as it is ended.
    assert!(
        all.abs_diff(peers) as f64 <= 0.01 * peers as f64 + 5.0,
        "{all} {peers}"
    );
    for quantile in [0.05, 0.25, 0.5, 0.75, 0.95, 0.99] {
        let (one, other) = (power_of(&ours, quantile), power_of(&theirs, quantile));
        assert!(
            one.abs_diff(other) <= 1,
            "{quantile}: 2^{one} and 2^{other} µs"
        );
    }
}

#[test]
fn a_busy_threads_time_on_cpu_is_the_kernels_to_half_a_percent() {
    if !is_root("on-CPU time") {
        return;
    }
    let mut running = start_following(Detail::Reasons);
    let mut child = gated("while :; do :; done");
    assert!(running.owners.set(child.id(), SERVICE));
    running.probe.follow(&running.owners, SERVICE_ID);
    running.read();
    let (before, taken) = (cpu_time(child.id()), stolen());
    child.release();
    sleep(Duration::from_secs(6));
    let least = cpu_time(child.id()) - before;
    let seen = of(&running.read(), SERVICE);
    let most = cpu_time(child.id()) - before + (stolen() - taken);
    println!("{seen} told, {least} to {most} by the kernel");
    // The kernel's own count is as old as its last tick.
    let tick = 10_000_000.0;
    assert!(seen as f64 >= least as f64 * 0.995 - tick, "{seen} {least}");
    assert!(seen as f64 <= most as f64 * 1.005 + tick, "{seen} {most}");
}

/// Of one shell, each waited for before the next.
const PROCESSES: u32 = 100_000;

#[test]
fn a_hundred_thousand_short_lived_processes_lose_no_time_and_leave_nothing() {
    if !is_root("short-lived processes") {
        return;
    }
    let count = PROCESSES / slowness();
    let mut running = start_following(Detail::Reasons);
    let script = format!("i=0; while [ $i -lt {count} ]; do (:); i=$((i+1)); done");
    let mut child = gated(&script);
    assert!(running.owners.set(child.id(), SERVICE));
    running.probe.follow(&running.owners, SERVICE_ID);
    running.read();
    let (memory, taken, begun) = (map_bytes(), stolen(), Instant::now());
    child.release();
    // Read all along, as an agent does.
    let mut seen = 0;
    let pid = child.id();
    let waiter = std::thread::spawn(move || waited_cpu_time(pid));
    while !waiter.is_finished() {
        sleep(Duration::from_millis(100));
        seen += of(&running.read(), SERVICE);
    }
    let truth = waiter.join().expect("it ends");
    sleep(Duration::from_millis(50));
    seen += of(&running.read(), SERVICE);
    let taken = stolen() - taken;
    println!(
        "{count} processes in {:.1} s: {:.3} s told, {:.3} s by the kernel ({:+.2} %), the host took {:.3} s",
        begun.elapsed().as_secs_f64(),
        seen as f64 * 1e-9,
        truth as f64 * 1e-9,
        (seen as f64 / truth as f64 - 1.0) * 100.0,
        taken as f64 * 1e-9,
    );
    // Cut where the kernel cuts. What the host takes, a clock counts and the kernel does not; emulated, the
    // hook may come too late to be told from one that was held up.
    let (short, long, later) = match slowness() {
        1 => (0.005, 0.005, 0),
        slow => (0.01, 0.02, 25_000 * u64::from(count) * u64::from(slow)),
    };
    let least = truth as f64 * (1.0 - short) - later as f64;
    assert!(seen as f64 >= least, "{seen} {truth}");
    let most = (truth + taken) as f64 * (1.0 + long);
    assert!(seen as f64 <= most, "{seen} {truth} {taken}");
    assert_eq!(map_bytes(), memory, "maps do not grow");
    let losses = running.probe.wait_losses().expect("followed");
    assert_eq!(losses.no_slot, 0, "{losses:?}");
    running.probe.sweep_threads(Duration::ZERO);
    assert_eq!(running.probe.threads(), [], "nobody is left");
}

/// Bytes of kernel memory of all maps of this process.
fn map_bytes() -> u64 {
    let folder = std::fs::read_dir("/proc/self/fdinfo").expect("descriptors");
    let texts = folder
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let bytes = texts
        .filter(|text| text.contains("map_type:"))
        .filter_map(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok())
        });
    bytes.sum()
}
