//! Counters of a service's threads, on the real kernel: counters of the kernel's own in the place of
//! the CPUs', which few virtual machines show, held against what the kernel says of the same
//! processes elsewhere. Needs root.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use end_to_end::agent::{Agent, perjoule};
use end_to_end::http::get;
use end_to_end::stolen;
use profiler::activity::HardwareCounts;
use profiler::ledger::ServiceId;
use profiler::perf_event::{CONTEXT_SWITCHES, PAGE_FAULTS, TASK_CLOCK};
use profiler::probes::pmc::{Events, HARDWARE, MOST_DESCRIPTORS, Pmc, PmcError};

const SERVICE: ServiceId = ServiceId(3);

/// In the place of cycles, instructions and cache misses.
const SOFTWARE: Events = [TASK_CLOCK, PAGE_FAULTS, CONTEXT_SWITCHES];

/// One test at a time: they count threads of this process, too.
static TURN: Mutex<()> = Mutex::new(());

fn turn(test: &str) -> Option<MutexGuard<'static, ()>> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    end_to_end::is_root(test).then_some(turn)
}

/// Children of each of the two shells.
const CHILDREN: u64 = 30;

/// A shell that waits, then makes children: work, page faults and switches, of its own and theirs.
fn family() -> Child {
    let work = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done";
    let children = format!("j=0; while [ $j -lt {CHILDREN} ]; do (:); j=$((j+1)); done");
    let script = format!("read go; {work}; ({work}; {children}) & {children}; wait; exit 0");
    let child = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh");
    // Until it stands in its read, twice in a row.
    let mut seen = 0;
    while seen < 2 {
        thread::sleep(Duration::from_millis(20));
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("/proc");
        let sleeps = stat.rsplit(')').next().expect("a state").starts_with(" S");
        seen = if sleeps { seen + 1 } else { 0 };
    }
    child
}

/// What the kernel itself says of a process and all its children that it has waited for.
#[derive(Debug, Clone, Copy)]
struct Used {
    nanos: u64,
    faults: u64,
    switches: u64,
}

fn used(process: &libc::rusage) -> Used {
    let nanos =
        |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1_000;
    Used {
        nanos: nanos(process.ru_utime) + nanos(process.ru_stime),
        faults: (process.ru_minflt + process.ru_majflt) as u64,
        switches: (process.ru_nvcsw + process.ru_nivcsw) as u64,
    }
}

/// Of one process that still runs.
fn used_by(pid: u32) -> Used {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).expect("/proc");
    let stat = read("stat");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .collect();
    let field = |number: usize| -> u64 { fields[number - 3].parse().expect("a number") };
    let status = read("status");
    let switches = status
        .lines()
        .filter(|line| line.contains("voluntary_ctxt_switches"))
        .filter_map(|line| line.rsplit('\t').next()?.parse::<u64>().ok());
    let schedstat = read("schedstat");
    let nanos = schedstat
        .split(' ')
        .next()
        .and_then(|nanos| nanos.parse().ok());
    Used {
        nanos: nanos.expect("nanoseconds"),
        faults: field(10) + field(12),
        switches: switches.sum(),
    }
}

/// Waits for a process as the kernel tells what it used.
fn ended(child: &Child) -> Used {
    let mut status = 0;
    // SAFETY: a rusage of zeros is one; both are valid to write.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let pid = child.id() as libc::pid_t;
        assert_eq!(libc::wait4(pid, &raw mut status, 0, &raw mut usage), pid);
        usage
    };
    assert_eq!(status, 0);
    used(&usage)
}

fn only(told: &[HardwareCounts]) -> HardwareCounts {
    let [counts] = told else {
        panic!("one service, not {told:?}")
    };
    assert_eq!(counts.service, SERVICE);
    *counts
}

fn near(seen: Option<u64>, truth: u64, ratio: f64, slack: u64, what: &str) {
    let seen = seen.expect("it is counted");
    let off = seen.abs_diff(truth);
    let may = (truth as f64 * ratio) as u64 + slack;
    assert!(off <= may, "{what}: {seen}, the kernel says {truth}");
}

#[test]
fn a_process_and_all_it_makes_are_counted_as_the_kernel_itself_counts_them() {
    let Some(_turn) = turn("counters of a process") else {
        return;
    };
    let mut pmc = Pmc::start(SOFTWARE).expect("the kernel counts by itself");
    let mut counted = family();
    let mut foreign = family();
    // A counter of time runs on while the host takes the CPU; the kernel's account does not.
    let taken = stolen();
    let before = used_by(counted.id());
    pmc.join(counted.id(), SERVICE, false);
    for child in [&mut counted, &mut foreign] {
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(b"go\n").expect("it reads");
    }
    // A child that the agent learns of is counted already.
    thread::sleep(Duration::from_millis(30));
    let first = pmc.read();
    pmc.join(counted.id() + 1_000_000, SERVICE, true);
    let after = ended(&counted);
    ended(&foreign);
    // Its children's counters outlive it.
    pmc.leave(counted.id());
    let last = pmc.read();
    let sum = |of: fn(&HardwareCounts) -> Option<u64>| Some(of(&only(&first))? + of(&only(&last))?);
    println!("{before:?} {after:?} {first:?} {last:?}");
    near(
        sum(|told| told.cycles),
        after.nanos - before.nanos,
        0.03,
        10_000_000 + (stolen() - taken),
        "CPU time",
    );
    near(
        sum(|told| told.instructions),
        after.faults - before.faults,
        0.03,
        40,
        "page faults",
    );
    // A process's last switch is in no counter: they are closed by then.
    let ends = 2 * CHILDREN + 2;
    near(
        sum(|told| told.cache_misses),
        after.switches - before.switches - ends,
        0.03,
        20,
        "switches",
    );
    assert!(
        after.faults - before.faults > 1_000,
        "the test makes page faults"
    );
    assert_eq!(
        only(&last).counted_nanos,
        only(&last).wanted_nanos,
        "nothing is extrapolated"
    );
    assert_eq!(pmc.refused(), 0);
}

/// Nanoseconds for which this thread has run.
fn own_nanos() -> u64 {
    nanos_of(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn nanos_of(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is valid to write.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn works_for(nanos: u64) {
    let began = own_nanos();
    while own_nanos() - began < nanos {
        std::hint::black_box(own_nanos());
    }
}

#[test]
fn threads_that_were_there_and_threads_that_come_later_are_counted() {
    let Some(_turn) = turn("counters of threads") else {
        return;
    };
    const WORK: u64 = 150_000_000;
    let mut pmc = Pmc::start(SOFTWARE).expect("the kernel counts by itself");
    let gate = Arc::new(Barrier::new(3));
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let gate = Arc::clone(&gate);
            thread::spawn(move || {
                gate.wait();
                works_for(WORK);
                // One that is made by a thread that was there.
                thread::spawn(|| works_for(WORK)).join().expect("no panic");
            })
        })
        .collect();
    pmc.join(std::process::id(), SERVICE, false);
    let before = nanos_of(libc::CLOCK_PROCESS_CPUTIME_ID);
    gate.wait();
    for worker in workers {
        worker.join().expect("no panic");
    }
    let counts = only(&pmc.read());
    let truth = nanos_of(libc::CLOCK_PROCESS_CPUTIME_ID) - before;
    assert!(truth >= 4 * WORK, "four threads have worked");
    near(counts.cycles, truth, 0.03, 20_000_000, "four threads' time");
}

#[test]
fn what_there_is_no_room_for_is_counted_as_lost() {
    let Some(_turn) = turn("too many threads") else {
        return;
    };
    const THREADS: usize = 400;
    let gate = Arc::new(Barrier::new(THREADS + 1));
    let waiting: Vec<_> = (0..THREADS)
        .map(|_| {
            let gate = Arc::clone(&gate);
            let build = thread::Builder::new().stack_size(64 << 10);
            build.spawn(move || gate.wait()).expect("a thread")
        })
        .collect();
    let descriptors = || fs::read_dir("/proc/self/fd").expect("/proc").count();
    let before = descriptors();
    let mut pmc = Pmc::start(SOFTWARE).expect("the kernel counts by itself");
    pmc.join(std::process::id(), SERVICE, false);
    let opened = descriptors() - before;
    assert!(
        opened <= MOST_DESCRIPTORS && opened > MOST_DESCRIPTORS - 3,
        "{opened}"
    );
    // The main thread and the harness's are threads too.
    let lost = pmc.refused() as usize;
    let threads = fs::read_dir("/proc/self/task").expect("/proc").count();
    assert_eq!(opened / 3 + lost, threads);
    gate.wait();
    for thread in waiting {
        thread.join().expect("no panic");
    }
    // With the service's last process its counters go.
    pmc.leave(std::process::id());
    pmc.read();
    assert_eq!(descriptors(), before);
}

#[test]
fn a_machine_without_counters_says_so_and_one_with_them_shows_figures() {
    let Some(_turn) = turn("hardware counters") else {
        return;
    };
    let absent = matches!(Pmc::start(HARDWARE), Err(PmcError::Absent));
    let mut busy = Command::new("sh")
        .args(["-c", "while :; do :; done"])
        .spawn()
        .expect("sh");
    let pid = busy.id().to_string();
    let table = perjoule(&["stat", "--pmc", "--duration", "2", "--pid", &pid]);
    let json = perjoule(&["stat", "--pmc", "--json", "--duration", "2", "--pid", &pid]);
    let off = perjoule(&["stat", "--json", "--duration", "1", "--pid", &pid]);
    let mut agent = Agent::start(&["--pid", &pid, "--pmc"]);
    thread::sleep(Duration::from_millis(2_500));
    let text = get(agent.port(), "/metrics");
    agent.end_with(libc::SIGTERM);
    busy.kill().expect("it runs");
    busy.wait().expect("it ends");
    assert!(off.json()["services"][0]["pmc"].is_null());
    assert!(!off.out.contains("instructions"), "{off:?}");

    let row = |what: &str| {
        let line = table.out.lines().find(|line| line.contains(what));
        line.unwrap_or_else(|| panic!("{what}: {table:?}"))
            .trim()
            .to_owned()
    };
    let pmc = &json.json()["services"][0]["pmc"];
    let doctor = perjoule(&["doctor", "--json"]).json();
    let checks = doctor["checks"].as_array().expect("checks");
    let check = checks
        .iter()
        .find(|check| check["id"] == "pmc")
        .expect("a check");
    assert_eq!(check["status"], "pass", "absent hardware is fine: {check}");
    if absent {
        for what in ["cycles", "instructions", "cache misses", "per instruction"] {
            assert!(row(what).starts_with("<not supported>"), "{}", row(what));
        }
        for key in [
            "cycles",
            "instructions",
            "cache_misses",
            "j_per_instruction",
        ] {
            assert!(pmc[key].is_null() && pmc.get(key).is_some(), "{pmc}");
        }
        for family in [
            "perjoule_cpu_cycles",
            "perjoule_cpu_instr",
            "perjoule_cache_misses",
        ] {
            assert!(!text.contains(family), "{text}");
        }
        let found = check["found"].as_str().expect("text");
        assert!(found.contains("<not supported>"), "{found}");
        let log = agent.log();
        assert!(log.contains("hardware counters: <not supported>"), "{log}");
    } else {
        assert!(
            pmc["cycles"].as_u64().is_some_and(|cycles| cycles > 0),
            "{pmc}"
        );
        assert!(text.contains("perjoule_cpu_cycles_total{"), "{text}");
    }
}

/// How long a read of many threads keeps the agent's loop.
#[test]
fn a_read_of_all_threads_takes_no_longer_than_a_tick() {
    let Some(_turn) = turn("the cost of a read") else {
        return;
    };
    let gate = Arc::new(Barrier::new(301));
    let waiting: Vec<_> = (0..300)
        .map(|_| {
            let gate = Arc::clone(&gate);
            thread::spawn(move || gate.wait())
        })
        .collect();
    let mut pmc = Pmc::start(SOFTWARE).expect("the kernel counts by itself");
    pmc.join(std::process::id(), SERVICE, false);
    let best = (0..20).map(|_| {
        let began = Instant::now();
        pmc.read();
        began.elapsed()
    });
    let best = best.min().expect("twenty");
    println!("a read of 300 threads: {best:?}");
    assert!(
        best < end_to_end::scaled(Duration::from_millis(20)),
        "{best:?}"
    );
    gate.wait();
    for thread in waiting {
        thread.join().expect("no panic");
    }
}
