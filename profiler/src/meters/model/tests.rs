//! The estimate: what it takes from /proc, and how far it is off machines that can measure.

use std::sync::mpsc;

use super::*;
use crate::meters::News;

const STAT: &str = "cpu  100 10 40 800 50 5 15 20 7 0\ncpu0 50 5 20 400 25 2 8 10 3 0\n\
                    cpu1 50 5 20 400 25 3 7 10 4 0\nintr 12345\nctxt 99\n";

#[test]
fn utilisation_counts_work_and_neither_waiting_nor_stolen_time() {
    let first = Usage::parse(STAT).expect("a proper stat");
    assert_eq!(
        first,
        Usage {
            busy: 170,
            all: 1_040,
            threads: 2
        }
    );
    let later = Usage {
        busy: 220,
        all: 1_240,
        threads: 2,
    };
    assert!((later.since(first) - 0.25).abs() < 1e-9);
    assert_eq!(first.since(first), 0.0);
    assert_eq!(Usage::parse("intr 1\n"), None);
    assert_eq!(Usage::parse("cpu  1 2\ncpu0 1 2\n"), None);
}

#[test]
fn the_processor_family_chooses_the_coefficients() {
    let intel = |model: u32, stepping: u32| {
        format!(
            "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: {model}\n\
             model name\t: Intel(R) Xeon(R)\nstepping\t: {stepping}\n"
        )
    };
    assert_eq!(coefficients(&intel(85, 4)), SKYLAKE);
    assert_eq!(coefficients(&intel(85, 7)), CASCADE_LAKE);
    assert_eq!(coefficients(&intel(143, 8)), GENERIC);
    let amd = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n";
    assert_eq!(coefficients(amd), EPYC_3);
    assert_eq!(coefficients(""), GENERIC);
}

/// A machine's `cpuinfo`, its threads, and its packages' mean power by RAPL: percent of load
/// and watts.
type Machine = (&'static str, u32, [(f64, f64); 11]);

const MEASURED: [Machine; 4] = [
    // EPYC 8024P
    (
        "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 160\n",
        16,
        [
            (0.6, 18.3),
            (10.0, 29.2),
            (20.0, 38.6),
            (30.0, 41.7),
            (40.3, 43.1),
            (50.0, 47.6),
            (64.6, 48.7),
            (70.2, 49.2),
            (80.0, 50.9),
            (89.4, 46.1),
            (100.0, 46.2),
        ],
    ),
    // Two Xeon E5-2620 v3
    (
        "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 63\nstepping\t: 2\n",
        24,
        [
            (0.0, 15.9),
            (10.0, 30.7),
            (20.0, 38.2),
            (30.0, 44.7),
            (40.5, 62.2),
            (50.2, 61.5),
            (60.0, 75.8),
            (69.9, 111.8),
            (80.8, 115.8),
            (89.7, 117.4),
            (99.6, 105.0),
        ],
    ),
    // Xeon E3-1240 v2
    (
        "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 58\nstepping\t: 9\n",
        8,
        [
            (2.5, 5.5),
            (12.5, 6.8),
            (21.8, 8.1),
            (32.5, 9.4),
            (41.2, 14.1),
            (51.3, 24.0),
            (60.8, 29.5),
            (71.3, 44.5),
            (80.2, 47.2),
            (88.9, 48.4),
            (100.0, 49.4),
        ],
    ),
    // Threadripper 1950X
    (
        "vendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: 1\n",
        32,
        [
            (2.8, 42.7),
            (13.9, 62.0),
            (23.2, 78.3),
            (36.4, 105.6),
            (44.8, 127.6),
            (53.1, 143.3),
            (66.0, 172.5),
            (72.1, 170.4),
            (83.1, 169.2),
            (91.7, 166.9),
            (99.7, 167.1),
        ],
    ),
];

#[test]
fn on_machines_that_can_measure_it_errs_as_it_says() {
    let (mut lowest, mut highest) = (f64::MAX, f64::MIN);
    for (cpuinfo, threads, points) in MEASURED {
        let estimate = Estimate {
            proc: PathBuf::new(),
            coefficients: coefficients(cpuinfo),
            threads,
        };
        let power = |load: f64| estimate.power(load / 100.0).0;
        let estimated: f64 = points.iter().map(|(load, _)| power(*load)).sum();
        let measured: f64 = points.iter().map(|(_, watts)| watts).sum();
        let error = estimated / measured - 1.0;
        assert!(error.abs() < GAIN_ERROR, "{cpuinfo}: {error}");
        for (load, watts) in points {
            let error = power(load) / watts - 1.0;
            (lowest, highest) = (lowest.min(error), highest.max(error));
        }
    }
    assert!((lowest + 0.64).abs() < 0.01 && (highest - 1.87).abs() < 0.02);
}

#[test]
fn an_estimate_lies_between_the_idle_floor_and_full_power_and_says_that_it_is_one() {
    let estimate = Estimate::open(Path::new("/proc")).expect("this machine has CPUs");
    let meter = estimate.meter();
    assert_eq!(meter.source, Source::Model);
    let (idle, full) = (
        meter.idle.map_or(0.0, |w| w.0),
        meter.limit.map_or(0.0, |w| w.0),
    );
    assert!(idle > 0.0 && full > idle);

    let (sender, receiver) = mpsc::channel();
    let mut running = Running::default();
    estimate
        .start(MeterId(1), &mut running, Feed(sender))
        .expect("the thread starts");
    let mut readings = Vec::new();
    while let Ok(news) = receiver.recv_timeout(Duration::from_secs(5)) {
        if let News::Event(Event::Reading(reading)) = news {
            readings.push(reading);
        }
        if readings.len() == 3 {
            break;
        }
    }
    let (first, last) = (readings[0], readings[2]);
    let watts = last.energy.joules().0 / last.until.seconds_since(first.until);
    assert!(
        watts >= idle * 0.999 && watts <= full * 1.001,
        "{idle} {watts} {full}"
    );
    assert!(running.stop().is_empty());
}
