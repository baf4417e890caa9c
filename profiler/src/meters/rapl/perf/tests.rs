//! The `power` PMU against trees of files as the kernel makes them, and a fake that opens events.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::super::{Domains, Interface, Places};
use super::*;
use crate::clock::Timestamp;
use crate::meters::rapl::Counter;
use crate::units::Microjoules;

/// A joule in steps of 2⁻³² J.
const JOULE: u64 = 1 << 32;

#[derive(Debug)]
struct Fixed(u64);

impl RawCounter for Fixed {
    fn read(&mut self) -> io::Result<u64> {
        Ok(self.0)
    }

    fn name(&self) -> String {
        String::new()
    }
}

/// Opens what it is asked for, or refuses.
#[derive(Default)]
struct Fake {
    opened: Mutex<Vec<Event>>,
    refusal: Option<ErrorKind>,
}

impl Pmu for Fake {
    fn open(&self, event: Event, _: String) -> io::Result<Box<dyn RawCounter>> {
        self.opened.lock().unwrap().push(event);
        match self.refusal {
            Some(kind) => Err(kind.into()),
            None => Ok(Box::new(Fixed(JOULE))),
        }
    }
}

/// A sysfs with a `power` PMU and a proc.
struct Machine(TempDir);

impl Machine {
    fn new(vendor: &str, mask: &str, events: &[(&str, &str)]) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine.write(
            "proc/cpuinfo",
            &format!("processor\t: 0\nvendor_id\t: {vendor}\n"),
        );
        machine.write("power/type", "28\n");
        machine.write("power/cpumask", mask);
        for (event, code) in events {
            machine.write(&format!("power/events/{event}"), &format!("event={code}\n"));
            machine.write(&format!("power/events/{event}.unit"), "Joules\n");
            let scale = "2.3283064365386962890625e-10\n";
            machine.write(&format!("power/events/{event}.scale"), scale);
        }
        machine
    }

    fn cpu(self, cpu: u32, package: u32, die: u32) -> Self {
        let topology = format!("cpu/cpu{cpu}/topology");
        self.write(
            &format!("{topology}/physical_package_id"),
            &package.to_string(),
        );
        self.write(&format!("{topology}/die_id"), &die.to_string());
        self
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn open(&self, pmu: &Fake) -> Result<Domains, Unavailable> {
        Domains::open_with(
            Places {
                powercap: &self.path("powercap"),
                pmu: &self.path("power"),
                cpus: &self.path("cpu"),
                proc: &self.path("proc"),
            },
            pmu,
        )
    }
}

fn devices(domains: &Domains) -> Vec<String> {
    domains
        .meters()
        .into_iter()
        .map(|meter| meter.device)
        .collect()
}

const BOTH: [(&str, &str); 2] = [("energy-pkg", "0x02"), ("energy-ram", "0x03")];

#[test]
fn without_powercap_each_package_and_memory_is_an_event_on_its_own_cpu() {
    let machine = Machine::new("GenuineIntel", "0,18\n", &BOTH)
        .cpu(0, 0, 0)
        .cpu(18, 1, 0);
    let pmu = Fake::default();
    let domains = machine.open(&pmu).unwrap();
    assert_eq!(domains.interface(), Interface::Perf);
    assert_eq!(
        devices(&domains),
        ["package-0", "package-1", "dram-0", "dram-1"]
    );
    let event = |config, cpu| Event {
        pmu: 28,
        config,
        cpu,
    };
    let opened = pmu.opened.lock().unwrap();
    assert_eq!(
        *opened,
        [event(2, 0), event(2, 18), event(3, 0), event(3, 18)]
    );
}

#[test]
fn intels_dies_are_named_apart_and_amds_show_one_counter() {
    let machine = |vendor| {
        Machine::new(vendor, "0-1,8\n", &BOTH[..1])
            .cpu(0, 0, 0)
            .cpu(1, 0, 1)
            .cpu(8, 1, 0)
    };
    let intel = machine("GenuineIntel").open(&Fake::default()).unwrap();
    assert_eq!(
        devices(&intel),
        ["package-0-die-0", "package-0-die-1", "package-1"]
    );
    let amd = machine("AuthenticAMD").open(&Fake::default()).unwrap();
    assert_eq!(devices(&amd), ["package-0", "package-1"]);
}

#[test]
fn steps_become_microjoules_without_drift() {
    let machine = Machine::new("GenuineIntel", "0", &BOTH[..1]).cpu(0, 0, 0);
    let mut domains = machine.open(&Fake::default()).unwrap();
    let mut counter = Counter::new(domains.domains.remove(0));
    let second = |seconds: u64| Timestamp(seconds * 1_000_000_000);
    assert_eq!(counter.take(second(1), 5 * JOULE, false), Microjoules::ZERO);
    // A third of a joule each time, cut to whole steps.
    let mut energy = Microjoules::ZERO;
    for count in 1..=3_000_000 {
        energy = counter.take(second(1 + count), 5 * JOULE + count * (JOULE / 3), false);
    }
    assert_eq!(energy, Microjoules(999_999_999_767));
    // The counter is no wrapping one: below its last value it began anew.
    assert_eq!(counter.take(second(3_000_002), 0, false), Microjoules::ZERO);
}

#[test]
fn a_refused_event_is_told_with_its_fix_and_a_machine_without_any_needs_none() {
    let machine = Machine::new("GenuineIntel", "0", &BOTH).cpu(0, 0, 0);
    let refused = Fake {
        refusal: Some(ErrorKind::PermissionDenied),
        ..Fake::default()
    };
    let error = machine.open(&refused).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no permission to open the perf event power/energy-pkg/ on CPU 0"
    );
    assert!(error.fix().is_some_and(|fix| fix.contains("CAP_PERFMON")));

    let error = Machine::new("GenuineIntel", "0", &[])
        .open(&Fake::default())
        .unwrap_err();
    assert!(matches!(error, Unavailable::Absent { .. }), "{error}");
}

#[test]
fn a_unit_that_is_not_the_joule_is_refused() {
    let machine = Machine::new("GenuineIntel", "0", &BOTH[..1]).cpu(0, 0, 0);
    machine.write("power/events/energy-pkg.unit", "furlongs\n");
    let error = machine.open(&Fake::default()).unwrap_err();
    assert!(
        error.to_string().contains("its unit is not the joule"),
        "{error}"
    );
}

#[test]
fn the_kernel_opens_and_counts_an_event_on_a_cpu() {
    // PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK: nanoseconds, where no PMU exists too.
    let event = Event {
        pmu: 1,
        config: 0,
        cpu: 0,
    };
    let mut counter = match Kernel.open(event, "cpu-clock".into()) {
        Ok(counter) => counter,
        Err(error) => {
            eprintln!("skipped: this kernel opens no system-wide event: {error}");
            return;
        }
    };
    let (start, first) = (Timestamp::now(), counter.read().unwrap());
    thread::sleep(Duration::from_millis(50));
    let (second, end) = (counter.read().unwrap(), Timestamp::now());
    let counted = second - first;
    assert!(
        counted >= 50_000_000 && counted <= end.since(start) + 1_000_000,
        "{counted} ns"
    );

    let missing = Event {
        pmu: u32::MAX,
        config: 0,
        cpu: 0,
    };
    assert!(Kernel.open(missing, String::new()).is_err());
}
