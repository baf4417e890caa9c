//! System calls by class: counts beside strace's and perf's, times beside the program's own.

use std::collections::BTreeMap;
use std::ptr;

use end_to_end::{is_root, skipped};
use profiler::ledger::Owner;
use profiler::probes::loader::{Loader, Options};
use profiler::probes::owners::Owners;
use profiler::probes::syscalls::{GpuDevices, SAMPLED_ONE_IN, SyscallCounts, SyscallProbe, Timing};
use profiler_ebpf::syscalls::Class;

use crate::peers::Follower;
use crate::program::{Program, Wire};
use crate::{SERVICE, machine};

/// A device that is on every machine, `/dev/zero`, stands for the GPU's.
const STAND_IN: GpuDevices = GpuDevices {
    control: 1,
    memory: None,
};

struct Probe {
    // Before the loader, which detaches.
    probe: SyscallProbe,
    owners: Owners,
    _loader: Loader,
}

impl Probe {
    fn start(timing: Timing, gpus: GpuDevices) -> Self {
        let mut options = Options::default();
        Owners::configure(&mut options);
        SyscallProbe::configure(&mut options, timing, gpus);
        let mut loader =
            Loader::new(&options).unwrap_or_else(|error| panic!("{error}; {}", error.fix()));
        let owners = Owners::attach(&mut loader).expect("the owners' table");
        let probe = SyscallProbe::attach(&mut loader).expect("the syscall probe");
        Self {
            probe,
            owners,
            _loader: loader,
        }
    }

    fn count(&mut self, program: &Program) {
        let known = self.owners.set(program.pid(), Owner::Service(SERVICE));
        assert!(known, "there is room");
        assert_eq!(self.probe.set_services(&self.owners, &[SERVICE]), 0);
    }

    fn read(&self) -> SyscallCounts {
        let counts = self.probe.read();
        counts.into_iter().next().expect("the service is counted")
    }
}

fn open(path: &std::ffi::CStr) -> libc::c_int {
    // SAFETY: a string that lives; no mode is read without O_CREAT.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_RDWR) };
    assert!(file >= 0, "{path:?}");
    file
}

/// Calls of many classes, so many of each.
fn calls_of_many_classes(zero: libc::c_int, times: u64) {
    let mut buffer = [0_u8; 8];
    for _ in 0..times {
        // SAFETY: plain calls on live memory and descriptors; the mapping is unmapped at once.
        unsafe {
            libc::read(zero, buffer.as_mut_ptr().cast(), 8);
            libc::read(zero, buffer.as_mut_ptr().cast(), 1);
            libc::write(zero, buffer.as_ptr().cast(), 8);
            libc::lseek(zero, 0, libc::SEEK_SET);
            libc::syscall(libc::SYS_getppid);
            libc::ppoll(
                ptr::null_mut(),
                0,
                &libc::timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                ptr::null(),
            );
            libc::ioctl(zero, libc::FIONREAD, buffer.as_mut_ptr());
            let page = libc::mmap(
                ptr::null_mut(),
                4096,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            libc::munmap(page, 4096);
            let word = 0_u32;
            libc::syscall(libc::SYS_futex, &raw const word, libc::FUTEX_WAKE, 1);
            libc::kill(libc::getpid(), 0);
            libc::syscall(libc::SYS_getrandom, buffer.as_mut_ptr(), 8, 0);
        }
    }
}

#[test]
fn counts_equal_straces_and_perfs_class_by_class() {
    const TEST: &str = "counts_equal_straces_and_perfs_class_by_class";
    const TIMES: u64 = 2_000;
    if !is_root(TEST) {
        return;
    }
    let _machine = machine();
    let zero = open(c"/dev/zero");
    let mut program = Program::start(|wire| {
        wire.wait();
        calls_of_many_classes(zero, TIMES);
    });
    let perf = Follower::perf_stat("raw_syscalls:sys_enter", program.pid(), TEST);
    let strace = Follower::strace(program.pid(), TEST);
    let mut probe = Probe::start(Timing::Exact, GpuDevices::find());
    probe.count(&program);
    program.go();
    program.end();
    let counts = probe.read();

    let known = [
        (Class::Read, 2),
        (Class::Write, 1),
        (Class::File, 1),
        (Class::Poll, 1),
        (Class::Ioctl, 1),
        (Class::Memory, 2),
        (Class::Futex, 1),
        (Class::Signal, 1),
        (Class::Other, 1),
    ];
    for (class, each) in known {
        assert_eq!(counts.of(class), each * TIMES, "{class:?}");
    }
    assert_eq!(counts.of(Class::GpuIoctl), 0);
    let all: u64 = counts.iter().map(|(_, calls)| calls.calls).sum();
    // Each call was timed; the last, exit, does not come back.
    let timed: u64 = counts.iter().map(|(_, calls)| calls.timed.count()).sum();
    assert_eq!(timed, all - 1, "{counts:?}");

    if let Some(strace) = strace {
        let theirs = strace.calls_by_class();
        let ours: BTreeMap<Class, u64> = counts
            .iter()
            .map(|(class, calls)| (class, calls.calls))
            .collect();
        for class in Class::ALL {
            let (our, their) = (ours[&class], theirs.get(&class).copied().unwrap_or(0));
            // strace interrupted the read at the gate and counts it anew; it does not count exit.
            assert!(our.abs_diff(their) <= 2, "{class:?}: {our}, strace {their}");
        }
    }
    if let Some(count) = perf.and_then(|perf| perf.count(TEST)) {
        assert!(all.abs_diff(count) <= 4, "{all}, perf {count}");
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, without a system call.
fn monotonic() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid to write.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sleeps, and tells how long it slept.
fn sleep_often(wire: Wire, times: u64) {
    wire.wait();
    let mut slept = 0;
    for _ in 0..times {
        let begin = monotonic();
        // SAFETY: nothing is written.
        unsafe {
            let time = libc::timespec {
                tv_sec: 0,
                tv_nsec: 5_000_000,
            };
            libc::nanosleep(&raw const time, ptr::null_mut());
        }
        slept += monotonic() - begin;
    }
    wire.tell(slept);
}

#[test]
fn a_sleepers_times_are_what_it_measured_itself() {
    const TIMES: u64 = 100;
    if !is_root("a_sleepers_times_are_what_it_measured_itself") {
        return;
    }
    let _machine = machine();
    let mut program = Program::start(|wire| sleep_often(wire, TIMES));
    let mut probe = Probe::start(Timing::Exact, GpuDevices::find());
    probe.count(&program);
    program.go();
    let slept = program.hear();
    program.end();

    let sleeps = probe.read().class(Class::Time);
    if sleeps.calls == 3 * TIMES {
        skipped("a sleeper's times: its own look at the clock is a system call here");
        return;
    }
    assert_eq!((sleeps.calls, sleeps.timed.count()), (TIMES, TIMES));
    let ratio = sleeps.timed.nanos as f64 / slept as f64;
    eprintln!("sleeper: the kernel side's time is {ratio:.5} of its own");
    assert!((0.95..=1.0).contains(&ratio), "{ratio}");
    // No sleep was shorter than 5 ms.
    let shortest = sleeps.timed.quantile(0.0).expect("sleeps");
    assert!(shortest >= 4_194_304.0, "{shortest} ns");
    assert_eq!(probe.probe.untimed(), 0);
}

#[test]
fn sampled_calls_are_all_counted_and_one_in_64_is_timed() {
    const TIMES: u64 = 64_000;
    if !is_root("sampled_calls_are_all_counted_and_one_in_64_is_timed") {
        return;
    }
    let _machine = machine();
    let mut program = Program::start(|wire| {
        wire.wait();
        for _ in 0..TIMES {
            // SAFETY: no arguments.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
    });
    let mut probe = Probe::start(Timing::Sampled, GpuDevices::find());
    probe.count(&program);
    program.go();
    program.end();

    let calls = probe.read().class(Class::Process);
    assert_eq!(calls.calls, TIMES + 1, "and its exit");
    // Drawn by chance: six standard deviations.
    let (mean, spread) = (TIMES / u64::from(SAMPLED_ONE_IN), 190);
    let timed = calls.timed.count();
    assert!(timed.abs_diff(mean) <= spread, "{timed} of {TIMES}");
}

#[test]
fn device_control_of_the_gpu_is_a_class_of_its_own() {
    const TIMES: u64 = 500;
    if !is_root("device_control_of_the_gpu_is_a_class_of_its_own") {
        return;
    }
    let _machine = machine();
    let zero = open(c"/dev/zero");
    // A terminal's multiplexer is a device of another number.
    let other = open(c"/dev/ptmx");
    let mut program = Program::start(|wire| {
        wire.wait();
        let mut bytes = 0_u64;
        for _ in 0..TIMES {
            // SAFETY: the calls write an integer at most.
            unsafe {
                libc::ioctl(zero, libc::FIONREAD, &raw mut bytes);
                libc::ioctl(other, libc::FIONREAD, &raw mut bytes);
                libc::ioctl(-1, libc::FIONREAD, &raw mut bytes);
                libc::read(zero, (&raw mut bytes).cast(), 8);
            }
        }
    });
    let mut probe = Probe::start(Timing::Exact, STAND_IN);
    probe.count(&program);
    program.go();
    program.end();

    let counts = probe.read();
    assert_eq!(counts.of(Class::GpuIoctl), TIMES);
    assert_eq!(counts.of(Class::Ioctl), 2 * TIMES);
    assert_eq!(counts.class(Class::GpuIoctl).timed.count(), TIMES);
    assert_eq!(counts.of(Class::Read), TIMES);
}
