//! CUDA launches and waits of a service, on the real kernel, with a library that stands in for the
//! driver's. Root, and gcc.

#[path = "cuda/agent.rs"]
mod agent;
#[path = "tls/machine_code.rs"]
mod machine_code;
#[path = "cuda/programs.rs"]
mod programs;

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use end_to_end::Programs;
use profiler::activity::CudaCalls;
use profiler::ledger::{Owner, ServiceId};
use profiler::probes::cuda::CudaProbe;
use profiler::probes::health::Verdict;
use profiler::probes::loader::{Loader, Options};
use profiler::probes::owners::Owners;

use programs::{Built, LIBRARY, Program};

const SERVICE: ServiceId = ServiceId(7);

/// One test at a time: each measures what happens on this machine.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The probe, attached for one test. It goes before the loader.
struct Watch {
    probe: CudaProbe,
    owners: Owners,
    loader: Loader,
    _turn: MutexGuard<'static, ()>,
}

impl Watch {
    fn attach() -> Option<Self> {
        let turn = alone();
        if !end_to_end::is_root("CUDA") {
            return None;
        }
        let mut options = Options::default();
        Owners::configure(&mut options);
        CudaProbe::configure(&mut options);
        let mut loader =
            Loader::new(&options).unwrap_or_else(|error| panic!("{error}; {}", error.fix()));
        let owners = Owners::attach(&mut loader).expect("the owners' table");
        let probe = CudaProbe::attach(&mut loader).expect("the CUDA probe");
        Some(Self {
            probe,
            owners,
            loader,
            _turn: turn,
        })
    }

    fn join(&mut self, pid: u32) {
        assert!(self.owners.set(pid, Owner::Service(SERVICE)));
        self.probe.join(pid, SERVICE);
    }

    /// Waits until the library of some process is probed.
    fn until_probed(&mut self) {
        let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(20));
        while self.probe.libraries().count() == 0 {
            assert!(Instant::now() < give_up, "no library is found");
            std::thread::sleep(Duration::from_millis(10));
            self.probe.poll(&mut self.loader);
        }
        assert!(self.probe.libraries().all(|name| name.ends_with(LIBRARY)));
    }

    /// What was called since the last time.
    fn read(&mut self) -> CudaCalls {
        let told = self.probe.read(&self.owners);
        let [calls] = told.as_slice() else {
            panic!("one service calls, not {told:?}")
        };
        assert_eq!(calls.service, SERVICE);
        *calls
    }
}

#[test]
fn launches_are_counted_exactly_and_waits_to_a_twentieth() {
    let Some(built) = Built::get() else { return };
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let mut program = Program::start(built);
    let mut foreign = Program::start(built);
    program.load();
    foreign.load();
    watch.join(program.pid());
    watch.until_probed();
    let _ = watch.probe.read(&watch.owners);

    program.call("cuLaunchKernel", 1, 5_000);
    program.call("cuLaunchKernel_ptsz", 1, 700);
    program.call("cuLaunchKernelEx", 1, 60);
    program.call("cuGraphLaunch", 1, 400);
    program.call("cuGraphLaunch_ptsz", 1, 3);
    foreign.call("cuLaunchKernel", 1, 3_000);
    foreign.call("cuStreamSynchronize", 1_000_000, 5);
    let mut waited = Duration::ZERO;
    for (function, times) in [
        ("cuStreamSynchronize", 20),
        ("cuEventSynchronize", 10),
        // The same function under another name, and one that is made of another: once each.
        ("cuStreamSynchronize_ptsz", 5),
        ("cuCtxSynchronize", 5),
    ] {
        waited += program.call(function, 5_000_000, times);
    }

    let calls = watch.read();
    assert_eq!((calls.kernels, calls.graphs), (5_760, 403));
    assert_eq!(calls.syncs, 40);
    assert!(calls.complete);
    let seen = Duration::from_nanos(calls.sync_nanos);
    assert!(seen >= Duration::from_millis(200), "{seen:?}");
    assert!(seen <= waited, "{seen:?} of {waited:?}");
    assert!(seen >= waited.mul_f64(0.95), "{seen:?} of {waited:?}");
    assert_eq!(watch.probe.untimed(), 0);

    // Nothing more: counts are told once, and 0 is known while the library is probed.
    let calls = watch.read();
    assert_eq!((calls.kernels, calls.graphs, calls.syncs), (0, 0, 0));
}

#[test]
fn a_library_that_is_loaded_later_is_found_and_children_are_counted() {
    let Some(built) = Built::get() else { return };
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    // A shell that makes the program: a service's child, whose process nobody names.
    let script = format!(
        "{} {}; exit",
        built.program().display(),
        built.library().display()
    );
    let mut program = Program::start(built);
    let mut child = Program::of(Command::new("sh").args(["-c", &format!("read go; {script}")]));
    watch.join(program.pid());
    watch.join(child.pid());
    std::thread::sleep(Duration::from_millis(400));
    watch.probe.poll(&mut watch.loader);
    assert_eq!(watch.probe.libraries().count(), 0, "it is not loaded yet");
    assert!(
        watch.probe.read(&watch.owners).is_empty(),
        "nothing is known"
    );
    program.load();
    watch.until_probed();
    // The answer of the shell's child: its first line is the shell's.
    child.tell("go", 0, 1);
    child.load();
    child.call("cuLaunchKernel", 1, 250);
    program.call("cuLaunchKernel", 1, 750);
    assert_eq!(watch.read().kernels, 1_000);
}

#[test]
fn a_library_inside_a_containers_root_is_found() {
    let Some(built) = Built::get() else { return };
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let root = tempfile::tempdir().expect("a folder");
    let inside = root.path().join("only-here");
    let script = format!(
        "mount -t tmpfs none {root} && mkdir {inside} && cp {library} {inside} && \
         exec {program} {inside}/{LIBRARY}",
        root = root.path().display(),
        library = built.library().display(),
        inside = inside.display(),
        program = built.program().display(),
    );
    let mut unshare = Command::new("unshare");
    let mut program = Program::of(unshare.args(["-m", "sh", "-c", &script]));
    program.load();
    assert!(!inside.exists(), "it is in the container alone");
    watch.join(program.pid());
    watch.until_probed();
    let _ = watch.probe.read(&watch.owners);
    program.call("cuGraphLaunch", 1, 33);
    assert_eq!(watch.read().graphs, 33);
}

#[test]
fn programs_that_can_be_preempted_run_on_the_threads_own_stack() {
    let before = Programs::now();
    let Some(_watch) = Watch::attach() else {
        return;
    };
    let per_cpu = machine_code::with_per_cpu_stacks(&before);
    for name in ["cuda_launch", "cuda_sync", "cuda_sync_return"] {
        // The kernel keeps 15 letters of a name.
        let name = &name[..name.len().min(15)];
        assert_eq!(per_cpu.get(name), Some(&false), "{per_cpu:?}");
    }
}

#[test]
fn a_library_that_nobody_uses_any_more_is_let_go_of() {
    let Some(built) = Built::get() else { return };
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let mut program = Program::start(built);
    program.load();
    watch.join(program.pid());
    watch.until_probed();
    program.call("cuLaunchKernel", 1, 10);
    let runs = |watch: &Watch| {
        let health = watch.loader.health();
        let launches = health.iter().find(|health| health.program == "cuda_launch");
        let launches = launches.expect("listed");
        assert_eq!(launches.verdict, Verdict::Ok);
        launches.runs
    };
    let before = runs(&watch);
    watch.probe.leave(program.pid());
    assert_eq!(watch.probe.libraries().count(), 0);
    program.call("cuLaunchKernel", 1, 10);
    assert_eq!(runs(&watch), before);
    // What it did before is told all the same.
    assert_eq!(watch.read().kernels, 10);
}
