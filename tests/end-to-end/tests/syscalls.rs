//! System calls of a service by class, on the real kernel. Needs root, x86-64.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use profiler::ledger::{Owner, ServiceId};
use profiler::probes::health::Verdict;
use profiler::probes::loader::{Loader, Options};
use profiler::probes::owners::Owners;
use profiler::probes::syscalls::{GpuDevices, SyscallProbe, Timing};
use profiler_ebpf::syscalls::Class;

const COUNTED: ServiceId = ServiceId(1);
const IGNORED: ServiceId = ServiceId(2);

static MACHINE: Mutex<()> = Mutex::new(());

/// `dd`, held by a closed gate, that copies `count` single bytes: one read and one write each.
fn copies(count: u32) -> Child {
    let script =
        format!("read go; exec dd if=/dev/zero of=/dev/null bs=1 count={count} status=none");
    Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh")
}

fn run(mut child: Child) {
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"go\n").expect("the shell reads");
    assert!(child.wait().expect("dd").success());
}

fn verdict(loader: &Loader) -> Verdict {
    loader
        .health()
        .iter()
        .find(|health| health.program == "sys_enter")
        .expect("listed")
        .verdict
}

#[test]
fn a_counted_services_calls_are_counted_by_class_and_nobody_elses() {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut options = Options::default();
    Owners::configure(&mut options);
    SyscallProbe::configure(&mut options, Timing::Exact, GpuDevices::find());
    let mut loader =
        Loader::new(&options).unwrap_or_else(|error| panic!("{error}; {}", error.fix()));
    let mut owners = Owners::attach(&mut loader).expect("the owners' table");
    assert_eq!(verdict(&loader), Verdict::Off);
    let mut probe = SyscallProbe::attach(&mut loader).expect("the syscall probe");
    assert_eq!(verdict(&loader), Verdict::Ok);

    let (counted, ignored) = (copies(5_000), copies(20_000));
    assert!(owners.set(counted.id(), Owner::Service(COUNTED)));
    assert!(owners.set(ignored.id(), Owner::Service(IGNORED)));
    assert_eq!(probe.set_services(&owners, &[COUNTED]), 0);
    run(counted);
    run(ignored);

    let counts = probe.read();
    let [counts] = counts.as_slice() else {
        panic!("one service is counted, not {counts:?}")
    };
    assert_eq!(counts.service, COUNTED);
    // Beside the copies: the shell's and the dynamic loader's few.
    for class in [Class::Read, Class::Write] {
        let count = counts.of(class);
        assert!((5_000..5_050).contains(&count), "{class:?}: {count}");
    }
    // A static program has no libraries to map.
    assert!(counts.of(Class::Memory) < 200, "{counts:?}");
    assert!((1..2_000).contains(&counts.of(Class::File)), "{counts:?}");
    assert_eq!(counts.of(Class::Network), 0);

    // Counted anew, the service starts from 0, whatever its row held before.
    assert_eq!(probe.set_services(&owners, &[IGNORED]), 0);
    let again = copies(300);
    assert!(owners.set(again.id(), Owner::Service(IGNORED)));
    run(again);
    let counts = probe.read();
    assert!(
        counts
            .iter()
            .all(|counts| (300..350).contains(&counts.of(Class::Write))),
        "{counts:?}"
    );

    probe.detach(&mut loader);
    assert_eq!(verdict(&loader), Verdict::Off);
    SyscallProbe::attach(&mut loader).expect("it can be asked for again");
}
