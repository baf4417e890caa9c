//! RAPL against trees of files as the kernel makes them.

use std::sync::mpsc;

use tempfile::TempDir;

use super::*;
use crate::meters::News;

const RANGE: u64 = 262_143_328_850;

/// A directory like `/sys/class/powercap`.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn zone(&self, directory: &str, name: &str, energy: u64) -> PathBuf {
        let path = self.0.path().join(directory);
        fs::create_dir_all(&path).expect("a directory can be made");
        for (file, content) in [
            ("name", format!("{name}\n")),
            ("energy_uj", format!("{energy}\n")),
            ("max_energy_range_uj", format!("{RANGE}\n")),
        ] {
            fs::write(path.join(file), content).expect("a file can be written");
        }
        path
    }
}

fn open(root: &Path) -> Result<Domains, Unavailable> {
    let nowhere = Path::new("/nonexistent");
    Domains::open(Places {
        powercap: root,
        pmu: nowhere,
        cpus: nowhere,
        proc: root,
    })
}

fn devices(zones: &Domains) -> Vec<(Component, String)> {
    zones
        .meters()
        .into_iter()
        .map(|meter| (meter.component, meter.device))
        .collect()
}

#[test]
fn packages_and_dram_are_metered_once_and_nested_zones_never() {
    let tree = Tree::new();
    tree.zone("intel-rapl", "control", 0);
    for (directory, name) in [
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:0:1", "uncore"),
        ("intel-rapl:0:2", "dram"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:1:0", "dram"),
        ("intel-rapl:2", "psys"),
        ("intel-rapl-mmio:0", "package-0"),
        ("intel-rapl-mmio:0:0", "dram"),
        ("dtpm", "package-9"),
    ] {
        tree.zone(directory, name, 1);
    }
    let zones = open(tree.0.path()).expect("zones exist");
    let cpu = |device: &str| (Component::Cpu, device.to_owned());
    let dram = |device: &str| (Component::Dram, device.to_owned());
    assert_eq!(
        devices(&zones),
        [
            dram("dram-0"),
            dram("dram-1"),
            cpu("package-0"),
            cpu("package-1")
        ]
    );
    assert!(
        zones
            .domains
            .iter()
            .all(|zone| !zone.counter.name().contains("mmio"))
    );
}

#[test]
fn a_package_only_known_through_mmio_is_still_metered() {
    let tree = Tree::new();
    tree.zone("intel-rapl-mmio:0", "package-0", 1);
    let zones = open(tree.0.path()).expect("a zone exists");
    assert_eq!(devices(&zones), [(Component::Cpu, "package-0".to_owned())]);
}

#[test]
fn the_limit_is_the_highest_constraint_and_unset_ones_do_not_count() {
    let tree = Tree::new();
    let zone = tree.zone("intel-rapl:0", "package-0", 1);
    for (file, microwatts) in [
        ("constraint_0_max_power_uw", 205_000_000_u64),
        ("constraint_1_max_power_uw", 0),
        ("constraint_1_power_limit_uw", 246_000_000),
        ("constraint_2_power_limit_uw", 4_294_967_000_000),
    ] {
        fs::write(zone.join(file), microwatts.to_string()).expect("a file can be written");
    }
    let zones = open(tree.0.path()).expect("a zone exists");
    assert_eq!(zones.meters()[0].limit, Some(Watts(246.0)));
}

#[test]
fn no_powercap_and_no_zones_are_absent_and_need_no_fix() {
    let tree = Tree::new();
    for root in [tree.0.path().to_owned(), tree.0.path().join("missing")] {
        let error = open(&root).expect_err("nothing is there");
        assert!(matches!(error, Unavailable::Absent { .. }), "{error}");
        assert_eq!(error.fix(), None);
    }
}

#[test]
fn a_refused_file_is_named_with_the_fix() {
    let error = Unavailable::reading(
        Path::new("/x/energy_uj"),
        ErrorKind::PermissionDenied.into(),
    );
    assert_eq!(error.to_string(), "no permission to read /x/energy_uj");
    assert!(
        error
            .fix()
            .is_some_and(|fix| fix.contains("CAP_DAC_READ_SEARCH"))
    );
}

#[derive(Debug)]
struct Nothing;

impl RawCounter for Nothing {
    fn read(&mut self) -> io::Result<u64> {
        Err(ErrorKind::NotFound.into())
    }

    fn name(&self) -> String {
        String::new()
    }
}

fn counter() -> Counter {
    Counter::new(Domain {
        component: Component::Cpu,
        device: "package-0".into(),
        limit: Some(Watts(300.0)),
        step: 1.0,
        range: Some(RANGE),
        counter: Box::new(Nothing),
    })
}

const fn second(seconds: u64) -> Timestamp {
    Timestamp((1_000 + seconds) * 1_000_000_000)
}

#[test]
fn a_wrap_of_the_counter_loses_nothing() {
    let mut counter = counter();
    assert_eq!(
        counter.take(second(0), RANGE - 30_000_000, false),
        Microjoules::ZERO
    );
    assert_eq!(
        counter.take(second(1), RANGE - 10_000_000, false),
        Microjoules(20_000_000)
    );
    assert_eq!(
        counter.take(second(2), 15_000_000, false),
        Microjoules(45_000_000)
    );
}

#[test]
fn a_hole_in_which_the_counter_may_have_wrapped_twice_starts_a_new_epoch() {
    let mut counter = counter();
    counter.take(second(0), 0, false);
    assert_eq!(
        counter.take(second(1), 100_000_000, false),
        Microjoules(100_000_000)
    );
    // 262 kJ at 300 W take 874 s.
    assert_eq!(
        counter.take(second(2_000), 200_000_000, false),
        Microjoules::ZERO
    );
    assert_eq!(
        counter.take(second(2_001), 250_000_000, false),
        Microjoules(50_000_000)
    );
}

#[test]
fn a_suspend_shorter_than_a_wrap_is_an_epoch_and_no_wrap() {
    let mut counter = counter();
    counter.take(second(0), 100_000_000_000, false);
    let before = counter.take(second(1), 100_100_000_000, false);
    assert_eq!(before, Microjoules(100_000_000));
    // Ten minutes later the counter stands at 1 kJ: taken for a wrap that were 163 kJ, which the
    // package might have drawn.
    assert_eq!(
        counter.take(second(600), 1_000_000_000, true),
        Microjoules::ZERO
    );
    let after = counter.take(second(601), 1_050_000_000, false);
    assert_eq!(after, Microjoules(50_000_000));
}

#[test]
fn a_suspend_voids_the_reads_on_both_sides_of_the_look_that_sees_it() {
    let mut sleep = Sleep::new(Duration::from_secs(7));
    let slept = |millis: u64| Duration::from_millis(7_000 + millis);
    // What two clocks differ by between two looks is no suspend.
    assert!(!sleep.parts(slept(20)));
    assert!(!sleep.parts(slept(0)));
    assert!(sleep.parts(slept(30_000)));
    assert!(sleep.parts(slept(30_000)));
    assert!(!sleep.parts(slept(30_000)));
    assert!(suspended() < Duration::from_nanos(Timestamp::now().0));
}

#[test]
fn dies_that_count_for_themselves_are_named_apart_and_mirrored_ones_are_one() {
    let tree = Tree::new();
    for (directory, name) in [
        ("intel-rapl:0", "package-0-die-0"),
        ("intel-rapl:0:0", "dram"),
        ("intel-rapl:1", "package-0-die-1"),
        ("intel-rapl:1:0", "dram"),
        ("intel-rapl:2", "package-1"),
    ] {
        tree.zone(directory, name, 1);
    }
    let names = |tree: &Tree| -> Vec<String> {
        let zones = open(tree.0.path()).expect("zones exist");
        zones
            .meters()
            .into_iter()
            .map(|meter| meter.device)
            .collect()
    };
    assert_eq!(
        names(&tree),
        [
            "dram-0-die-0",
            "dram-0-die-1",
            "package-0-die-0",
            "package-0-die-1",
            "package-1"
        ]
    );

    let tree = Tree::new();
    fs::write(tree.0.path().join("cpuinfo"), "vendor_id\t: AuthenticAMD\n").expect("writes");
    for (directory, name) in [
        ("intel-rapl:0", "package-0-die-0"),
        ("intel-rapl:1", "package-0-die-1"),
        ("intel-rapl:2", "package-1-die-0"),
    ] {
        tree.zone(directory, name, 1);
    }
    assert_eq!(names(&tree), ["package-0", "package-1"]);
}

#[test]
fn a_zone_that_cannot_be_read_does_not_hide_the_others() {
    let tree = Tree::new();
    tree.zone("intel-rapl:0", "package-0", 1);
    let dram = tree.zone("intel-rapl:0:0", "dram", 1);
    fs::write(dram.join("energy_uj"), "\n").expect("writes");
    let zones = open(tree.0.path()).expect("a zone exists");
    assert_eq!(devices(&zones), [(Component::Cpu, "package-0".to_owned())]);
    assert_eq!(zones.interface(), Interface::Powercap);
    let passed_over = zones.passed_over()[0].to_string();
    assert!(
        passed_over.contains("intel-rapl:0:0/energy_uj"),
        "{passed_over}"
    );
}

#[test]
fn readings_arrive_with_narrow_brackets_and_a_file_that_vanishes_is_told() {
    let tree = Tree::new();
    let zone = tree.zone("intel-rapl:0", "package-0", 5_000_000);
    let zones = open(tree.0.path()).expect("a zone exists");
    let (sender, receiver) = mpsc::channel();
    let mut running = Running::default();
    zones
        .start(&[MeterId(3)], &mut running, Feed(sender))
        .expect("the thread starts");
    let wait = Duration::from_secs(5);
    let mut energies = Vec::new();
    let mut failure = None;
    while let Ok(news) = receiver.recv_timeout(wait) {
        match news {
            News::Event(Event::Reading(reading)) => {
                assert_eq!(reading.meter, MeterId(3));
                assert!(reading.until.since(reading.after) < 100_000_000);
                energies.push(reading.energy);
                match energies.len() {
                    1 => {
                        // In place: the kernel's file, too, stays the same while it is open.
                        fs::write(zone.join("energy_uj"), "9000000\n").expect("can be written");
                    }
                    2 => fs::write(zone.join("energy_uj"), "broken\n").expect("can be written"),
                    _ => {}
                }
            }
            News::State(state) if state.error.is_some() => {
                failure = state.error;
                break;
            }
            _ => {}
        }
    }
    assert_eq!(energies, [Microjoules::ZERO, Microjoules(4_000_000)]);
    assert!(failure.is_some_and(|text| text.contains("energy_uj")));
    assert!(running.stop().is_empty());
}
