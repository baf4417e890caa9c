//! Page faults and named tracepoints, beside the kernel's own figures.

use std::fs;
use std::ptr;

use end_to_end::is_root;
use profiler::ledger::Owner;
use profiler::probes::events::{EventName, EventProbe, PageFaults, ServiceEvents};
use profiler::probes::health::Verdict;
use profiler::probes::loader::{Loader, Options};
use profiler::probes::owners::Owners;

use crate::peers::Follower;
use crate::program::Program;
use crate::{SERVICE, machine};

const PAGE: usize = 4096;

struct Probe {
    // Before the loader, which detaches.
    probe: EventProbe,
    owners: Owners,
    loader: Loader,
}

fn loaded() -> (Loader, Owners) {
    let mut options = Options::default();
    Owners::configure(&mut options);
    EventProbe::configure(&mut options);
    let mut loader =
        Loader::new(&options).unwrap_or_else(|error| panic!("{error}; {}", error.fix()));
    let owners = Owners::attach(&mut loader).expect("the owners' table");
    (loader, owners)
}

fn names(texts: &[&str]) -> Vec<EventName> {
    let name = |text: &&str| text.parse().expect("category:name");
    texts.iter().map(name).collect()
}

impl Probe {
    fn start(faults: bool, events: &[&str]) -> Self {
        let (mut loader, owners) = loaded();
        let probe = EventProbe::attach(&mut loader, faults, &names(events))
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            probe,
            owners,
            loader,
        }
    }

    fn count(&mut self, program: &Program) {
        let known = self.owners.set(program.pid(), Owner::Service(SERVICE));
        assert!(known, "there is room");
    }

    fn read(&mut self) -> ServiceEvents {
        let events = self.probe.read(&self.owners);
        events.into_iter().next().expect("the service has a place")
    }

    fn verdict(&self, program: &str) -> Verdict {
        let health = self.loader.health();
        let of = health.iter().find(|health| health.program == program);
        of.expect("listed").verdict
    }
}

/// The process's faults by the kernel's own account.
fn faults_of(pid: u32) -> PageFaults {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    let field = |at: usize| {
        let field = fields.split(' ').nth(at).expect("a field");
        field.parse::<u64>().expect("a number")
    };
    PageFaults {
        minor: field(7),
        major: field(9),
    }
}

#[test]
fn a_new_page_is_a_minor_fault_of_its_service() {
    const PAGES: usize = 5_000;
    if !is_root("a_new_page_is_a_minor_fault_of_its_service") {
        return;
    }
    let _machine = machine();
    let touch = |wire: crate::program::Wire| {
        wire.wait();
        // SAFETY: fresh memory of this process; only within its length is written.
        unsafe {
            let memory = libc::mmap(
                ptr::null_mut(),
                PAGES * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            libc::madvise(memory, PAGES * PAGE, libc::MADV_NOHUGEPAGE);
            for page in 0..PAGES {
                memory.cast::<u8>().add(page * PAGE).write_volatile(1);
            }
        }
        wire.tell(0);
        wire.wait();
    };
    let (mut program, mut foreign) = (Program::start(touch), Program::start(touch));
    let mut probe = Probe::start(true, &[]);
    assert_eq!(probe.verdict("page_fault_minor"), Verdict::Ok);
    assert_eq!(probe.verdict("named_event_0"), Verdict::Off);
    probe.count(&program);
    let before = (
        probe.read().faults.expect("counted"),
        faults_of(program.pid()),
    );
    for one in [&mut program, &mut foreign] {
        one.go();
        one.hear();
    }
    let after = (
        probe.read().faults.expect("counted"),
        faults_of(program.pid()),
    );
    for one in [&mut program, &mut foreign] {
        one.go();
    }
    program.end();
    foreign.end();

    let ours = after.0.minor - before.0.minor;
    let kernels = after.1.minor - before.1.minor;
    eprintln!("page faults: {ours}, the kernel's account {kernels}");
    assert!(ours >= PAGES as u64, "{ours}");
    // A fault between the two readings of either.
    assert!(ours.abs_diff(kernels) <= 5, "{ours}, the kernel {kernels}");
    assert_eq!(
        after.0.major - before.0.major,
        after.1.major - before.1.major
    );

    let Probe {
        probe,
        owners: _owners,
        mut loader,
    } = probe;
    probe.detach(&mut loader);
    let health = loader.health();
    assert!(
        health
            .iter()
            .filter(|health| health.program.starts_with("page_fault"))
            .all(|health| health.verdict == Verdict::Off)
    );
}

#[test]
fn a_page_that_must_be_read_is_a_major_fault() {
    const PAGES: usize = 64;
    if !is_root("a_page_that_must_be_read_is_a_major_fault") {
        return;
    }
    let _machine = machine();
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, &[7; PAGES * PAGE]).expect("room");
    file.sync_all().expect("written");
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&file);
    let mut program = Program::start(|wire| {
        wire.wait();
        // SAFETY: a mapping of the file's own length, read within it.
        unsafe {
            libc::posix_fadvise(descriptor, 0, 0, libc::POSIX_FADV_DONTNEED);
            let memory = libc::mmap(
                ptr::null_mut(),
                PAGES * PAGE,
                libc::PROT_READ,
                libc::MAP_SHARED,
                descriptor,
                0,
            );
            libc::madvise(memory, PAGES * PAGE, libc::MADV_RANDOM);
            for page in 0..PAGES {
                memory.cast::<u8>().add(page * PAGE).read_volatile();
            }
        }
        wire.tell(0);
        wire.wait();
    });
    let mut probe = Probe::start(true, &[]);
    probe.count(&program);
    let before = (
        probe.read().faults.expect("counted"),
        faults_of(program.pid()),
    );
    program.go();
    program.hear();
    let after = (
        probe.read().faults.expect("counted"),
        faults_of(program.pid()),
    );
    program.go();
    program.end();
    let (ours, kernels) = (
        after.0.major - before.0.major,
        after.1.major - before.1.major,
    );
    eprintln!("major faults: {ours}, the kernel's account {kernels}");
    assert_eq!(ours, kernels);
    if kernels == 0 {
        end_to_end::skipped("a_page_that_must_be_read_is_a_major_fault: files stay in memory here");
    }
}

/// Context switches of the process by the kernel's own account.
fn switches_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let counts = status.lines().filter_map(|line| {
        let (name, count) = line.split_once(':')?;
        name.ends_with("ctxt_switches")
            .then(|| count.trim().parse::<u64>().ok())?
    });
    counts.sum()
}

#[test]
fn a_named_tracepoint_is_counted_as_the_kernel_and_perf_count_it() {
    const TEST: &str = "a_named_tracepoint_is_counted_as_the_kernel_and_perf_count_it";
    const SLEEPS: u64 = 300;
    if !is_root(TEST) {
        return;
    }
    let _machine = machine();
    let mut program = Program::start(|wire| {
        wire.wait();
        for _ in 0..SLEEPS {
            // SAFETY: nothing is written.
            unsafe { libc::usleep(100) };
        }
        wire.tell(0);
        wire.wait();
    });
    let perf = Follower::perf_stat("sched:sched_switch", program.pid(), TEST);
    let mut probe = Probe::start(false, &["sched:sched_switch"]);
    probe.count(&program);
    let before = switches_of(program.pid());
    program.go();
    program.hear();
    let events = probe.read();
    let kernels = switches_of(program.pid()) - before;
    program.go();
    program.end();
    let last = probe.read();
    assert_eq!(events.faults, None);
    let (ours, at_end) = (events.named[0], last.named[0]);
    eprintln!("context switches: {ours}, the kernel's account {kernels}; at the end {at_end}");
    assert!(
        // A sleep may be over before it began.
        kernels >= SLEEPS * 9 / 10 && ours.abs_diff(kernels) <= 4,
        "{ours}, {kernels}"
    );
    if let Some(theirs) = perf.and_then(|perf| perf.count(TEST)) {
        eprintln!("context switches: perf {theirs}");
        // perf began a little before.
        assert!(at_end.abs_diff(theirs) <= 4, "{at_end}, perf {theirs}");
    }
}

#[test]
fn a_tracepoints_events_are_those_of_the_processes_that_run_and_of_no_foreign_one() {
    const CHILDREN: u64 = 40;
    if !is_root("a_tracepoints_events_are_those_of_the_processes_that_run_and_of_no_foreign_one") {
        return;
    }
    let _machine = machine();
    let fork = |wire: crate::program::Wire| {
        wire.wait();
        for _ in 0..CHILDREN {
            // SAFETY: the child ends at once; the parent waits for it.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    libc::_exit(0);
                }
                libc::waitpid(child, ptr::null_mut(), 0);
            }
        }
    };
    let (mut program, mut foreign) = (Program::start(fork), Program::start(fork));
    let mut probe = Probe::start(false, &["task:task_newtask", "sched:sched_process_exit"]);
    probe.count(&program);
    for one in [&mut program, &mut foreign] {
        one.go();
    }
    program.end();
    foreign.end();
    // The children are the service's too, and so is the program's own end.
    assert_eq!(probe.read().named, [CHILDREN, CHILDREN + 1]);
}

#[test]
fn a_misspelt_tracepoint_is_one_error_with_the_right_name() {
    if !is_root("a_misspelt_tracepoint_is_one_error_with_the_right_name") {
        return;
    }
    let _machine = machine();
    let (mut loader, _owners) = loaded();
    let wrong = names(&["sched:sched_migrat_task"]);
    let error = EventProbe::attach(&mut loader, false, &wrong).expect_err("there is none");
    let said = error.to_string();
    assert!(
        said.contains("no tracepoint sched:sched_migrat_task"),
        "{said}"
    );
    assert!(said.contains("sched_migrate_task"), "{said}");
    assert!(!said.contains('\n'), "{said}");

    let many = vec!["sched:sched_switch"; 9];
    let error = EventProbe::attach(&mut loader, false, &names(&many)).expect_err("too many");
    assert!(error.to_string().contains("at most 8"), "{error}");
}
