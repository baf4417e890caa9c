//! Loading programs one by one, and what is said when that cannot be. Needs root.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::thread;

use profiler::perf_event;
use profiler::probes::health::Verdict;
use profiler::probes::load_error::{LoadError, ProbeError};
use profiler::probes::loader::{Field, Loader, Options};
use profiler::probes::owners::Owners;
use profiler::probes::sched::SchedProbe;

/// Descriptors are counted, and the log is one for all.
static ALONE: Mutex<()> = Mutex::new(());

const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

fn options() -> Options {
    let mut options = Options::default();
    Owners::configure(&mut options);
    SchedProbe::configure(&mut options, perf_event::CYCLES);
    options
}

/// Runs `work` on a thread that holds only `capabilities` of this process's.
fn with_capabilities<T: Send>(capabilities: u64, work: impl FnOnce() -> T + Send) -> T {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let header = Header {
                version: VERSION_3,
                pid: 0,
            };
            let (low, high) = (capabilities as u32, (capabilities >> 32) as u32);
            // Effective, permitted, inheritable; low words first.
            let data = [low, low, 0, high, high, 0];
            // SAFETY: both have the layout of capset(2), version 3; it concerns this thread only.
            let result =
                unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
            assert_eq!(result, 0, "a thread may give capabilities away");
            work()
        });
        thread.join().expect("no panic")
    })
}

fn bpf_descriptors() -> usize {
    fs::read_dir("/proc/self/fd")
        .expect("/proc")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("bpf"))
        .count()
}

fn verdict(loader: &Loader, program: &str) -> Verdict {
    let health = loader.health();
    let health = health.iter().find(|health| health.program == program);
    health.expect("listed").verdict
}

#[test]
fn without_privileges_the_missing_capabilities_and_the_fix_are_named() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (capabilities, missing) in [
        (0, "lacks CAP_BPF and CAP_PERFMON"),
        (CAP_BPF, "lacks CAP_PERFMON"),
    ] {
        let error = with_capabilities(capabilities, || Loader::new(&options()).map(|_| ()))
            .expect_err("nothing can be loaded");
        assert!(matches!(error, LoadError::Requirement(_)));
        assert!(error.to_string().contains(missing), "{error}");
        assert!(error.fix().contains("run as root"), "{}", error.fix());
    }
}

#[test]
fn two_capabilities_are_enough() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    with_capabilities(CAP_BPF | CAP_PERFMON, || {
        let mut loader =
            Loader::new(&options()).unwrap_or_else(|error| panic!("{error}; {}", error.fix()));
        let owners = Owners::attach(&mut loader).expect("the owners' table");
        let mut probe = SchedProbe::attach(&mut loader, &owners, perf_event::CYCLES)
            .expect("the scheduler probe");
        assert!(probe.read(&owners).to.0 > 0);
        assert_eq!(verdict(&loader, "sched_switch"), Verdict::Ok);
        assert_eq!(verdict(&loader, "sched_process_fork"), Verdict::Ok);
    });
}

#[test]
fn a_program_that_cannot_run_leaves_the_others_running() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut options = options();
    options.fields(&[Field {
        global: "TASK_THREAD_STATUS",
        structure: "task_struct",
        member: "no_such_member",
        programs: &["sys_enter"],
    }]);
    let mut loader =
        Loader::new(&options).unwrap_or_else(|error| panic!("{error}; {}", error.fix()));

    let error = loader
        .attach_btf_tracepoint("sys_enter", "sys_enter")
        .expect_err("it lacks a field");
    assert!(matches!(error, ProbeError::MissingField { .. }));
    assert!(error.to_string().contains("no_such_member"), "{error}");
    let error = loader
        .attach_btf_tracepoint("sched_process_fork", "no_such_hook")
        .expect_err("there is no such hook");
    assert!(matches!(error, ProbeError::NoHook { .. }), "{error}");
    let error = loader
        .attach_btf_tracepoint("no_such_program", "sched_switch")
        .expect_err("there is no such program");
    assert!(matches!(error, ProbeError::NoProgram { .. }), "{error}");
    loader
        .attach_btf_tracepoint("sched_switch", "sched_switch")
        .expect("nothing is wrong with this one");

    assert_eq!(verdict(&loader, "sys_enter"), Verdict::Unsupported);
    assert_eq!(verdict(&loader, "sched_process_fork"), Verdict::Unsupported);
    assert_eq!(verdict(&loader, "sched_switch"), Verdict::Ok);
    assert_eq!(verdict(&loader, "sock_recv_length"), Verdict::Off);
    let missing: Vec<_> = loader.missing_fields().collect();
    assert_eq!(missing.len(), 1, "{missing:?}");
}

#[test]
fn a_dropped_loader_leaves_nothing_in_the_kernel() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // The first load probes the kernel's features once per process.
    drop(Loader::new(&options()));
    let before = bpf_descriptors();
    let mut loader = Loader::new(&options()).expect("it loaded a moment ago");
    let owners = Owners::attach(&mut loader).expect("the owners' table");
    let probe =
        SchedProbe::attach(&mut loader, &owners, perf_event::CYCLES).expect("the scheduler probe");
    assert!(bpf_descriptors() > before);
    drop((probe, owners, loader));
    assert_eq!(bpf_descriptors(), before);
}

#[test]
fn the_largest_pid_max_takes_a_few_megabytes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut options = options();
    options.map_entries(
        "PROCESS_OWNERS",
        profiler_ebpf::owners::entries_for(1 << 22),
    );
    let mut loader = Loader::new(&options).expect("it has room");
    let mut owners = Owners::attach(&mut loader).expect("the owners' table");
    let bytes: u64 = loader.map_bytes().iter().map(|(_, bytes)| bytes).sum();
    assert!(bytes > 4 << 20, "the table has a byte a process: {bytes}");
    assert!(bytes < 6 << 20, "{:?}", loader.map_bytes());
    assert!(owners.set((1 << 22) - 1, profiler::ledger::Owner::Agent));
    assert!(!owners.set(1 << 22, profiler::ledger::Owner::Agent));
}

#[test]
fn what_the_kernel_side_says_reaches_the_log() {
    static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    struct Lines;
    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            LINES
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(record.args().to_string());
        }
        fn flush(&self) {}
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    log::set_logger(&Lines).expect("only this test sets it");
    log::set_max_level(log::LevelFilter::Debug);

    for (level, said) in [
        (log::LevelFilter::Debug, true),
        (log::LevelFilter::Warn, false),
    ] {
        let mut options = options();
        options.log_level = level;
        // A table of 64 processes: whoever forks now lies above it.
        options.map_entries("PROCESS_OWNERS", 1);
        let mut loader = Loader::new(&options).expect("it loads");
        let _owners = Owners::attach(&mut loader).expect("the owners' table");
        LINES.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let id = child.id();
        child.wait().expect("true ends");
        loader.poll_log();
        let expected = format!("process {id} has no cell");
        let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(
            lines.iter().any(|line| line.contains(&expected)),
            said,
            "{level}: {lines:?}"
        );
    }
}
