//! Stacks of services' threads on the real kernel, with names. Needs root and a C compiler, which a Rust
//! toolchain has.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::{Programs, is_root, scaled, skipped, slowness};
use profiler::ledger::{Owner, ServiceId};
use profiler::perf_event;
use profiler::probes::health::Verdict;
use profiler::probes::loader::{Loader, Options};
use profiler::probes::owners::Owners;
use profiler::probes::sched::{Detail, SchedProbe};
use profiler::probes::stacks::{self, Sampled, StackCounts, StackProbe, StackReader, Wanted};
use profiler::profiles::symbols::{Addresses, Symbols};
use profiler::waits::Reason;

const SERVICE: ServiceId = ServiceId(1);
const HERTZ: u32 = 199;
/// So much CPU time of the program is waited for: a thousand samples, of which a share of three
/// quarters is known to 1.4 % (one standard deviation).
const WORK: Duration = Duration::from_secs(5);

static MACHINE: Mutex<()> = Mutex::new(());

fn machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program that is killed at its end.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdout(Stdio::null())
                .spawn()
                .expect("it can be started"),
        )
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// What it has had of CPUs, by the kernel's own count.
    fn on_cpu(&self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.pid())).expect("it runs");
        let nanos = text.split_whitespace().next().expect("a number");
        Duration::from_nanos(nanos.parse().expect("a number"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The busy program, in this folder under this name.
fn build(folder: &Path, name: &str) -> PathBuf {
    program_of("busy", folder, name)
}

/// A C program of this folder's: built, or taken from where the built binaries are (`cargo xtask vm` has no
/// compiler in its machines).
fn program_of(source: &str, folder: &Path, name: &str) -> PathBuf {
    let program = folder.join(name);
    let ready = std::env::var_os("PERJOULE_TEST_BINARIES").map(PathBuf::from);
    if let Some(ready) = ready.map(|binaries| binaries.join(format!("{source}-program")))
        && ready.is_file()
    {
        fs::copy(ready, &program).expect("a copy");
        return program;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/stacks/{source}.c"));
    let built = Command::new("cc")
        // Optimised, a function that calls none has no frame, and its caller is not seen.
        .args(["-O0", "-fno-omit-frame-pointer", "-o"])
        .arg(&program)
        .arg(source)
        .status()
        .expect("a C compiler");
    assert!(built.success());
    program
}

struct Probe {
    loader: Loader,
    owners: Owners,
    probe: StackProbe,
    reader: StackReader,
}

impl Probe {
    fn attach(more: impl FnOnce(&mut Options), hertz: u32) -> Self {
        let mut options = Options::default();
        Owners::configure(&mut options);
        let wanted = Wanted {
            on_cpu: Some(hertz),
            off_cpu: None,
        };
        StackProbe::configure(&mut options, wanted);
        more(&mut options);
        let mut loader =
            Loader::new(&options).unwrap_or_else(|error| panic!("{error}; {}", error.fix()));
        let owners = Owners::attach(&mut loader).expect("the owners' table");
        let attached = StackProbe::attach(&mut loader, wanted);
        let (probe, reader) = attached.unwrap_or_else(|error| panic!("{error}"));
        Self {
            loader,
            owners,
            probe,
            reader,
        }
    }

    fn follow(&mut self, pid: u32) {
        assert!(self.owners.set(pid, Owner::Service(SERVICE)));
    }

    fn read_all(&mut self) -> Vec<Sampled> {
        std::iter::from_fn(|| self.reader.read()).collect()
    }

    /// Samples while a program works for so long, and what of it the kernel counted meanwhile.
    fn watch(&mut self, program: &Running, work: Duration) -> (Vec<Sampled>, Duration) {
        self.read_all();
        let begun = program.on_cpu();
        let start = Instant::now();
        let mut samples = Vec::new();
        while program.on_cpu() - begun < work {
            assert!(
                start.elapsed() < scaled(Duration::from_secs(60)),
                "it gets no CPU"
            );
            sleep(Duration::from_millis(100));
            samples.extend(self.read_all());
        }
        let worked = program.on_cpu() - begun;
        samples.extend(self.read_all());
        (samples, worked)
    }
}

fn named(symbols: &mut Symbols, samples: &[Sampled]) -> Vec<String> {
    let addresses: Vec<Addresses<'_>> = samples
        .iter()
        .map(|sample| Addresses {
            pid: sample.pid,
            kernel: &sample.kernel,
            user: &sample.user,
        })
        .collect();
    symbols.name(&addresses)
}

fn with_frame(stacks: &[String], name: &str) -> usize {
    let has = |stack: &&String| stack.lines().any(|frame| frame == name);
    stacks.iter().filter(has).count()
}

#[test]
fn a_function_has_the_samples_of_the_time_it_takes_and_nobody_else_has_any() {
    if !is_root("stacks") {
        return;
    }
    let _machine = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let service = Running::start(&mut Command::new(build(folder.path(), "busy")));
    let foreign = Running::start(&mut Command::new(build(folder.path(), "foreign")));
    let mut probe = Probe::attach(|_| {}, HERTZ);
    probe.follow(service.pid());
    let (samples, worked) = probe.watch(&service, WORK);

    assert!(
        samples.iter().all(|sample| sample.pid == service.pid()),
        "not {}",
        foreign.pid()
    );
    assert!(samples.iter().all(|sample| {
        stacks::owner(&probe.owners, sample.owner) == Some(Owner::Service(SERVICE))
    }));
    // The timer is no clock of the process: where it falls beside a switch is chance. An emulated one that is late
    // leaves some out.
    let expected = worked.as_secs_f64() * f64::from(HERTZ);
    let taken = samples.len() as f64;
    let far = if slowness() == 1 { 0.1 } else { 0.2 };
    assert!(
        (taken / expected - 1.0).abs() < far,
        "{taken} samples, {expected:.0} expected"
    );

    let stacks = named(&mut Symbols::default(), &samples);
    let (hot, cold) = (
        with_frame(&stacks, "hot_function"),
        with_frame(&stacks, "cold_function"),
    );
    let share = hot as f64 / (hot + cold) as f64;
    println!(
        "{} samples, hot {hot}, cold {cold}: {share:.3}",
        samples.len()
    );
    assert!((share - 0.75).abs() < 0.06, "hot {hot}, cold {cold}");
    let whole = stacks.iter().filter(|stack| {
        let frames: Vec<&str> = stack.lines().collect();
        let main = frames.iter().position(|frame| *frame == "main");
        let hot = frames.iter().position(|frame| *frame == "hot_function");
        frames.first() == Some(&"busy") && main.is_some() && main < hot
    });
    assert_eq!(
        whole.count(),
        hot,
        "the program's name, main, then what main calls"
    );
    let in_kernel = stacks.iter().filter(|stack| {
        let mut frames = stack.lines();
        frames.any(|frame| frame == "main") && frames.any(|frame| frame.ends_with("_[k]"))
    });
    let in_kernel = in_kernel.count();
    println!("{in_kernel} in the kernel");
    assert!(in_kernel > 0, "{:?}", stacks.first());
    let counts = probe.probe.counts();
    assert_eq!((counts.lost, counts.cut), (0, 0));
    assert!(counts.taken >= samples.len() as u64);
}

#[test]
fn samples_that_find_the_ring_full_are_counted() {
    if !is_root("full ring of stacks") {
        return;
    }
    let _machine = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let service = Running::start(&mut Command::new(build(folder.path(), "busy")));
    // A page.
    let small = |options: &mut Options| {
        options.map_entries("STACK_RING", 4_096);
    };
    let mut probe = Probe::attach(small, 999);
    probe.follow(service.pid());
    let begun = service.on_cpu();
    let start = Instant::now();
    while service.on_cpu() - begun < Duration::from_secs(1) {
        assert!(
            start.elapsed() < scaled(Duration::from_secs(60)),
            "it gets no CPU"
        );
        sleep(Duration::from_millis(50));
    }
    probe.probe.detach(&mut probe.loader);
    let samples = probe.read_all();
    let StackCounts {
        taken, lost, cut, ..
    } = probe.probe.counts();
    println!("{taken} taken, {lost} lost, {} read", samples.len());
    assert!(lost > 0, "a page holds not {taken} samples");
    assert_eq!(taken, lost + samples.len() as u64);
    assert_eq!(cut, 0);
}

#[test]
fn without_the_probe_no_timer_runs_and_after_it_none_is_left() {
    if !is_root("stacks off") {
        return;
    }
    let _machine = machine();
    let before = Programs::now();
    let mut options = Options::default();
    Owners::configure(&mut options);
    let mut loader = Loader::new(&options).expect("the object");
    let _owners = Owners::attach(&mut loader).expect("the owners' table");
    let verdict = |loader: &Loader| {
        let health = loader.health().into_iter();
        let mut sample = health.filter(|health| health.program == "stack_sample");
        sample.next().map(|health| (health.verdict, health.runs))
    };
    sleep(Duration::from_millis(200));
    assert_eq!(verdict(&loader), Some((Verdict::Off, 0)));
    drop(loader);

    let mut probe = Probe::attach(|_| {}, HERTZ);
    sleep(Duration::from_millis(200));
    let Some((Verdict::Ok, runs)) = verdict(&probe.loader) else {
        panic!("attached")
    };
    assert!(runs > 0);
    probe.probe.detach(&mut probe.loader);
    let Some((Verdict::Off, runs)) = verdict(&probe.loader) else {
        panic!("detached")
    };
    sleep(Duration::from_millis(200));
    assert_eq!(verdict(&probe.loader), Some((Verdict::Off, runs)));
    drop(probe);
    before.assert_nothing_left();
}

/// Waits of the program below: as many, and as long.
const WAITS: usize = 20;
const WAIT: Duration = Duration::from_millis(50);

#[test]
fn a_wait_is_told_once_with_its_length_its_reason_and_where_it_was() {
    if !is_root("stacks of waits") {
        return;
    }
    let _machine = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let program = program_of("waits", folder.path(), "waits");
    let wanted = Wanted {
        on_cpu: None,
        off_cpu: Some(Duration::from_millis(10)),
    };
    let mut options = Options::default();
    Owners::configure(&mut options);
    SchedProbe::configure(&mut options, perf_event::CYCLES);
    SchedProbe::follow_threads(&mut options, Detail::Reasons);
    StackProbe::configure(&mut options, wanted);
    let mut loader =
        Loader::new(&options).unwrap_or_else(|error| panic!("{error}; {}", error.fix()));
    let mut owners = Owners::attach(&mut loader).expect("the owners' table");
    let mut sched =
        SchedProbe::attach(&mut loader, &owners, perf_event::CYCLES).expect("the scheduler probe");
    sched.attach_threads(&mut loader).expect("threads");
    let (probe, mut reader) = StackProbe::attach(&mut loader, wanted).expect("stacks");

    let foreign = Running::start(&mut Command::new(program_of(
        "waits",
        folder.path(),
        "other",
    )));
    let mut service = Command::new(program)
        .stdin(Stdio::piped())
        .spawn()
        .expect("it can be started");
    assert!(owners.set(service.id(), Owner::Service(SERVICE)));
    sched.follow(&owners, SERVICE);
    // It waits for this line before it begins, and for the end of its input when it is done.
    let mut input = service.stdin.take().expect("piped");
    input.write_all(b"go\n").expect("it reads");
    sleep(WAIT * (WAITS as u32 + 4));
    let mut samples: Vec<Sampled> = std::iter::from_fn(|| reader.read()).collect();
    let stacks = named(&mut Symbols::default(), &samples);
    drop(input);
    service.wait().expect("it ends");
    drop(foreign);

    assert!(samples.iter().all(|sample| sample.pid == service.id()));
    let slept = |sample: &Sampled| {
        let waited = sample.waited.filter(|(reason, _)| *reason == Reason::Sleep);
        waited.map(|(_, nanos)| nanos)
    };
    let counts = probe.counts();
    println!("{counts:?}, {:?}", stacks.first());
    assert_eq!(counts.waits_lost, 0);
    assert_eq!(samples.iter().filter_map(slept).count(), WAITS);
    let seconds: f64 = samples.iter().filter_map(slept).sum::<u64>() as f64 * 1e-9;
    let all = WAIT.as_secs_f64() * WAITS as f64;
    assert!(seconds >= all && seconds < 1.2 * all, "{seconds} of {all}");
    let there = stacks.iter().zip(&samples).filter(|(stack, sample)| {
        let frames: Vec<&str> = stack.lines().collect();
        let place = |name| frames.iter().position(|frame| *frame == name);
        slept(sample).is_some() && place("main").is_some() && place("main") < place("wait_here")
    });
    assert_eq!(there.count(), WAITS, "{:?}", stacks.first());

    // Off, nothing is taken any more.
    probe.take_waits(false);
    while reader.read().is_some() {}
    samples.clear();
    let mut sleeper = Command::new("sleep").arg("0.1").spawn().expect("sleep");
    assert!(owners.set(sleeper.id(), Owner::Service(SERVICE)));
    sleeper.wait().expect("it ends");
    samples.extend(std::iter::from_fn(|| reader.read()));
    assert_eq!(samples.len(), 0);
}

#[test]
fn code_that_only_a_containers_files_hold_has_its_names() {
    if !is_root("stacks of containers") {
        return;
    }
    let _machine = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let program = build(folder.path(), "busy");
    let hidden = tempfile::tempdir().expect("a folder");
    let script = format!(
        "mount -t tmpfs none {hidden} && cp {program} {hidden}/inside && exec {hidden}/inside",
        hidden = hidden.path().display(),
        program = program.display(),
    );
    let mut command = Command::new("unshare");
    let service = Running::start(command.args(["--mount", "sh", "-c", &script]));
    let mut probe = Probe::attach(|_| {}, HERTZ);
    probe.follow(service.pid());
    let exe = PathBuf::from(format!("/proc/{}/comm", service.pid()));
    let start = Instant::now();
    while fs::read_to_string(&exe).expect("it runs") != "inside\n" {
        assert!(
            start.elapsed() < scaled(Duration::from_secs(10)),
            "it does not start"
        );
        sleep(Duration::from_millis(10));
    }
    assert!(
        !hidden.path().join("inside").exists(),
        "nobody outside sees it"
    );
    let (samples, _) = probe.watch(&service, Duration::from_secs(1));
    let stacks = named(&mut Symbols::default(), &samples);
    let hot = with_frame(&stacks, "hot_function");
    assert!(
        hot * 4 > stacks.len(),
        "{hot} of {}: {:?}",
        stacks.len(),
        stacks.first()
    );
}

#[test]
fn pythons_functions_have_their_names_where_it_writes_a_perf_map() {
    if !is_root("stacks of Python") {
        return;
    }
    let _machine = machine();
    let probe_version =
        "import sys; sys.exit(0 if hasattr(sys, 'activate_stack_trampoline') else 1)";
    let has_trampolines = Command::new("python3").args(["-c", probe_version]).status();
    if !has_trampolines.is_ok_and(|status| status.success()) {
        skipped("stacks of Python: no python3 of 3.12 or later");
        return;
    }
    let program =
        "def tokenise():\n    sum(i * i for i in range(3000))\nwhile True:\n    tokenise()\n";
    let mut command = Command::new("python3");
    let service = Running::start(command.args(["-X", "perf", "-c", program]));
    let mut probe = Probe::attach(|_| {}, HERTZ);
    probe.follow(service.pid());
    let (samples, _) = probe.watch(&service, Duration::from_secs(2));
    let stacks = named(&mut Symbols::default(), &samples);
    let named = stacks.iter().filter(|stack| stack.contains("py::tokenise"));
    let named = named.count();
    println!("{named} of {} in py::tokenise", stacks.len());
    assert!(
        named * 2 > stacks.len(),
        "{named} of {}: {:?}",
        stacks.len(),
        stacks.last()
    );
}
