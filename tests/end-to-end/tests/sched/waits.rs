//! What threads wait for, beside what the kernel itself counted of the same threads in the same
//! time.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use end_to_end::{is_root, scaled, slowness, stolen};
use profiler::probes::sched::Detail;
use profiler::waits::{Reason, Waits};

use super::{Running, SERVICE, SERVICE_ID, start_following};

/// A Python program that waits for a line before it does its work, and for another at its end, so
/// that what the kernel counted of its threads can still be read.
pub(super) struct Program(Child);

impl Program {
    pub(super) fn gated(body: &str) -> Self {
        let text = format!(
            "import os, sys, threading, time, socket, select\n\
             sys.stdin.readline()\n{body}\nprint('done', flush=True)\nsys.stdin.readline()\n"
        );
        let child = Command::new("python3")
            .args(["-c", &text])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let program = Self(child);
        // Its own start is not what is looked at.
        let deadline = std::time::Instant::now() + scaled(Duration::from_secs(10));
        while wait_channel_call(program.id()) != Some(libc::SYS_read) {
            assert!(std::time::Instant::now() < deadline, "it does not start");
            sleep(Duration::from_millis(5));
        }
        program
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Lets it work, and returns when it has.
    fn work(&mut self) {
        use std::io::{BufRead as _, BufReader};
        let stdin = self.0.stdin.as_mut().expect("piped");
        stdin.write_all(b"go\n").expect("it reads");
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().expect("piped"))
            .read_line(&mut line)
            .expect("it writes");
        assert_eq!(line, "done\n");
        // On its way to the read that ends it.
        sleep(scaled(Duration::from_millis(50)));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The system call in which a process's first thread blocks.
fn wait_channel_call(pid: u32) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok()?;
    // Of its own input, not of a file that it loads.
    (words.next()? == "0x0").then_some(number)
}

/// On-CPU time, time in the run queue, and how often the thread was put on a CPU, as the kernel
/// counts them.
fn schedstat(task: &str) -> [u64; 3] {
    let text = fs::read_to_string(format!("{task}/schedstat")).expect("schedstat");
    let mut numbers = text
        .split_whitespace()
        .map(|word| word.parse().expect("a number"));
    std::array::from_fn(|_| numbers.next().expect("three numbers"))
}

fn switches(task: &str, kind: &str) -> u64 {
    let text = fs::read_to_string(format!("{task}/status")).expect("status");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(kind))
        .expect("a count");
    line.trim_start_matches(':')
        .trim()
        .parse()
        .expect("a number")
}

fn tasks(pid: u32) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
    folder
        .map(|entry| entry.expect("a task").path().display().to_string())
        .collect()
}

/// What a program's work adds to a service's waits.
pub(super) fn waits_of(running: &mut Running, program: &mut Program) -> Waits {
    assert!(running.owners.set(program.id(), SERVICE));
    running.probe.follow(&running.owners, SERVICE_ID);
    running.probe.read_waits();
    program.work();
    let mut gained = running.probe.read_waits();
    assert_eq!(gained.len(), 1);
    gained.remove(0).1
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 * 1e-9
}

/// Busy threads, and some that sleep for less than a slice, on one CPU: most are preempted, some
/// of them on their way to sleep.
const CROWD: &str = "
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for i in range(4):
    if os.fork() == 0:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            if i < 2:
                for _ in range(1000): pass
            else:
                time.sleep(0.0003)
                for _ in range(20000): pass
        open('/tmp/perjoule-crowd-%d' % os.getpid(), 'w').write(
            open('/proc/self/schedstat').read() + open('/proc/self/status').read())
        os._exit(0)
for i in range(4): os.wait()
";

#[test]
fn time_in_the_run_queue_is_what_the_kernel_counted_under_heavy_preemption() {
    if !is_root("time in the run queue") {
        return;
    }
    let mut running = start_following(Detail::Reasons);
    let mut program = Program::gated(CROWD);
    let before = schedstat(&format!("/proc/{}", program.id()));
    let waits = waits_of(&mut running, &mut program);
    let after = schedstat(&format!("/proc/{}", program.id()));
    let (mut truth, mut voluntary, mut involuntary) = (after[1] - before[1], 0, 0);
    for entry in fs::read_dir("/tmp").expect("/tmp").flatten() {
        let path = entry.path();
        if !path.display().to_string().contains("perjoule-crowd-") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a figure");
        fs::remove_file(&path).expect("its own");
        let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok());
        truth += number(text.split_whitespace().nth(1)).expect("run delay");
        let count = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind));
            number(line.map(str::trim)).expect("a count")
        };
        voluntary += count("voluntary_ctxt_switches:");
        involuntary += count("nonvoluntary_ctxt_switches:");
    }
    let off = seconds(waits.run_queue) / seconds(truth) - 1.0;
    let counted: u64 = waits.histogram.iter().sum();
    println!(
        "run queue: {:.3} s told, {:.3} s by the kernel ({:+.2} %), {counted} waits; switches {} and \
         {} told, {voluntary} and {involuntary} by the kernel",
        seconds(waits.run_queue),
        seconds(truth),
        off * 100.0,
        waits.voluntary,
        waits.involuntary,
    );
    assert!(seconds(truth) > 4.0, "it was crowded: {truth}");
    // Emulated, a fifth of a millisecond lies between the kernel's look at its clock and the probe's.
    let bar = if slowness() == 1 { 0.01 } else { 0.03 };
    assert!(off.abs() <= bar, "{off}");
    let preempted = waits.off_cpu(Reason::Preempted);
    assert!(preempted > waits.run_queue / 4 && preempted <= waits.run_queue);
    let losses = running.probe.wait_losses().expect("followed");
    assert_eq!((losses.no_slot, losses.no_row), (0, 0));
    println!("not seen: {}", losses.unseen);
}

#[test]
fn switches_are_those_that_the_kernel_counts() {
    if !is_root("switches") {
        return;
    }
    let mut running = start_following(Detail::RunQueue);
    let mut program = Program::gated(
        "for i in range(300): time.sleep(0.001)\nfor i in range(200): os.sched_yield()",
    );
    let task = format!("/proc/{}", program.id());
    let before = [
        switches(&task, "voluntary_ctxt_switches"),
        switches(&task, "nonvoluntary_ctxt_switches"),
    ];
    let waits = waits_of(&mut running, &mut program);
    let voluntary = switches(&task, "voluntary_ctxt_switches") - before[0];
    let involuntary = switches(&task, "nonvoluntary_ctxt_switches") - before[1];
    println!(
        "switches: {} and {} told, {voluntary} and {involuntary} by the kernel",
        waits.voluntary, waits.involuntary
    );
    // A sleep may be over before it began.
    assert!(voluntary >= 280);
    // The kernel tells a switch before or after the probe does: one at either end; and where it skips the
    // hook, see docs/scheduler.md.
    assert!(waits.voluntary.abs_diff(voluntary) <= 2 + voluntary / 50);
    assert!(waits.involuntary.abs_diff(involuntary) <= 2);
}

/// Programs that block in one way for two seconds.
const BLOCKED: &[(Reason, &str)] = &[
    (Reason::Sleep, "time.sleep(2)"),
    (
        Reason::Futex,
        "l = threading.Lock(); l.acquire(); l.acquire(timeout=2)",
    ),
    (Reason::Poll, "select.select([], [], [], 2)"),
    (
        Reason::Socket,
        "a, b = socket.socketpair(); a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, \
         (2).to_bytes(8, sys.byteorder) + bytes(8))\n\
         try: a.recv(1)\nexcept OSError: pass",
    ),
    (
        Reason::Socket,
        "a, b = socket.socketpair(); a.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, \
         (2).to_bytes(8, sys.byteorder) + bytes(8))\n\
         try: os.read(a.fileno(), 1)\nexcept OSError: pass",
    ),
    (
        Reason::Other,
        "r, w = os.pipe()\nif os.fork() == 0:\n  time.sleep(2); os.write(w, b'x'); os._exit(0)\n\
         os.read(r, 1); os.wait()",
    ),
];

#[test]
fn a_thread_is_off_its_cpu_for_the_reason_that_its_program_has() {
    if !is_root("reasons") {
        return;
    }
    for (reason, body) in BLOCKED {
        let mut running = start_following(Detail::Reasons);
        let mut program = Program::gated(body);
        let waits = waits_of(&mut running, &mut program);
        let by_reason: BTreeMap<&str, f64> = Reason::ALL
            .into_iter()
            .map(|reason| (reason.name(), seconds(waits.off_cpu(reason))))
            .collect();
        println!("{}: {by_reason:?}", reason.name());
        let told = seconds(waits.off_cpu(*reason));
        assert!((1.99..4.0).contains(&told), "{}: {told}", reason.name());
    }
}

#[test]
fn what_a_disk_takes_is_told_as_disk() {
    if !is_root("disk waits") {
        return;
    }
    let mut running = start_following(Detail::Reasons);
    // Of /var/tmp, which is no memory.
    let mut program = Program::gated(
        "p = '/var/tmp/perjoule-disk-%d' % os.getpid()\nf = os.open(p, os.O_CREAT | os.O_RDWR)\n\
         t = time.monotonic()\n\
         for i in range(40):\n  os.pwrite(f, bytes(1 << 20), i << 20); os.fsync(f)\n\
         os.unlink(p)",
    );
    let task = format!("/proc/{}", program.id());
    let waits = waits_of(&mut running, &mut program);
    let text = fs::read_to_string(format!("{task}/stat")).expect("stat");
    // delayacct_blkio_ticks, in hundredths, where the kernel accounts delays; else 0.
    let after_name = text.rsplit(')').next().expect("a name");
    let kernel: f64 = after_name
        .split_whitespace()
        .nth(39)
        .and_then(|ticks| ticks.parse().ok())
        .unwrap_or(0.0)
        / 100.0;
    let told = seconds(waits.off_cpu(Reason::Disk));
    println!("disk: {told:.3} s told, {kernel:.2} s by the kernel's delay accounting");
    if waits.voluntary < 20 {
        end_to_end::skipped("disk waits: this disk needs no waiting");
        return;
    }
    assert!(told > 0.0);
    assert!(told >= 0.9 * kernel, "{told} {kernel}");
}

#[test]
fn each_threads_times_are_what_the_kernel_counted_of_it() {
    if !is_root("per thread") {
        return;
    }
    let mut running = start_following(Detail::Reasons);
    let mut program = Program::gated(
        "stop = threading.Event()\n\
         def work(n):\n  end = time.monotonic() + 2\n  while time.monotonic() < end:\n    \
         for _ in range(n): pass\n    time.sleep(0.001)\n\
         ts = [threading.Thread(target=lambda n=n: (work(n), stop.wait())) for n in (1000, 20000, 60000)]\n\
         for t in ts: t.daemon = True; t.start()\n\
         time.sleep(3)",
    );
    assert!(running.owners.set(program.id(), SERVICE));
    running.probe.follow(&running.owners, SERVICE_ID);
    let taken = stolen();
    program.work();
    let threads = running.probe.threads();
    // The kernel counts for nobody what the machine's host takes.
    let taken = stolen() - taken;
    let mut seen = 0;
    for task in tasks(program.id()) {
        let tid: u32 = task
            .rsplit('/')
            .next()
            .and_then(|tid| tid.parse().ok())
            .expect("a tid");
        if tid == program.id() {
            // It was there before it was followed.
            continue;
        }
        let [on_cpu, run_queue, _] = schedstat(&task);
        let times = threads
            .iter()
            .find(|times| times.tid == tid)
            .unwrap_or_else(|| panic!("thread {tid} is not told: {threads:?}"));
        println!(
            "thread {tid}: on CPU {:.4} told, {:.4} s by the kernel; run queue {:.4}, {:.4}",
            seconds(times.on_cpu),
            seconds(on_cpu),
            seconds(times.run_queue),
            seconds(run_queue)
        );
        assert_eq!(times.tgid, program.id());
        let close = |told: u64, truth: u64| {
            // At each switch the probe looks at its clock some microseconds after the kernel.
            let late = 20e3 * times.voluntary as f64;
            let slack = 0.02 * truth as f64 + late + 25e6 * f64::from(slowness());
            told.abs_diff(truth) as f64 <= slack + taken as f64
        };
        assert!(
            close(times.on_cpu, on_cpu),
            "on CPU {} {on_cpu}",
            times.on_cpu
        );
        assert!(
            close(times.run_queue, run_queue),
            "run queue {} {run_queue}",
            times.run_queue
        );
        let voluntary = switches(&task, "voluntary_ctxt_switches");
        println!(
            "voluntary: {} told, {voluntary} by the kernel",
            times.voluntary
        );
        // The kernel does not call a tracepoint's programs for every switch (docs/scheduler.md).
        assert!(times.voluntary.abs_diff(voluntary) <= 3 + voluntary / 20);
        assert!(
            times.off_cpu(Reason::Futex) > 500_000_000,
            "it waits for the end"
        );
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn a_thread_that_ends_gives_its_slot_back() {
    if !is_root("slots of threads") {
        return;
    }
    let mut running = start_following(Detail::RunQueue);
    let mut program = Program::gated(
        "def nothing(): pass\n\
         for i in range(3000):\n  t = threading.Thread(target=nothing); t.start(); t.join()",
    );
    let waits = waits_of(&mut running, &mut program);
    assert!(waits.voluntary >= 3_000, "{}", waits.voluntary);
    let left = running.probe.threads().len();
    println!("{left} slots of 3,000 threads are left");
    assert!(left <= 60, "{left}");
    // The kernel does not call a tracepoint's programs for every switch.
    running.probe.sweep_threads(Duration::ZERO);
    let left = running.probe.threads();
    assert_eq!(left.len(), 1, "{left:?}");
}
