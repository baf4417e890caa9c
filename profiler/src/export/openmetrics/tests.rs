//! The encoder on families made by hand.

use super::super::catalog::*;
use super::super::exemplars::{Moment, Sampled};
use super::super::families::Families;
use super::super::histogram::{ENERGY, Histogram, WAIT};
use super::*;
use crate::ledger::RequestId;

fn encoded(build: impl Fn(&mut Families)) -> String {
    let mut families = Families::build();
    build(&mut families);
    encode(&families.finish())
}

#[test]
fn a_counter_is_named_without_total_and_its_samples_with_it() {
    let text = encoded(|out| {
        out.number(&METER_ENERGY, &["gpu", "GPU-1", "counter"], 8.3);
        out.number(&METER_ENERGY, &["gpu", "GPU-2", "counter"], 0.0);
    });
    let expected = "# TYPE perjoule_meter_energy_joules counter\n\
        # UNIT perjoule_meter_energy_joules joules\n\
        # HELP perjoule_meter_energy_joules Energy of one meter since the agent's first reading; summing over components is right.\n\
        perjoule_meter_energy_joules_total{component=\"gpu\",device=\"GPU-1\",source=\"counter\"} 8.3\n\
        perjoule_meter_energy_joules_total{component=\"gpu\",device=\"GPU-2\",source=\"counter\"} 0\n\
        # EOF\n";
    assert_eq!(text, expected);
}

#[test]
fn a_gauge_without_labels_and_unit_has_neither_braces_nor_a_unit() {
    let text = encoded(|out| {
        out.number(&PROCESS_OPEN_FDS, &[], 12.0);
        out.number(&GPU_POWER, &["GPU-1"], f64::INFINITY);
        out.number(&GPU_IDLE, &["GPU-1"], f64::NEG_INFINITY);
        out.number(&GPU_CLOCK, &["GPU-1", "sm"], f64::NAN);
    });
    assert!(text.contains("# TYPE process_open_fds gauge\n# HELP process_open_fds "));
    assert!(text.contains("\nprocess_open_fds 12\n"), "{text}");
    assert!(text.contains("# UNIT perjoule_gpu_power_watts watts\n"));
    assert!(text.contains("perjoule_gpu_power_watts{device=\"GPU-1\"} +Inf\n"));
    assert!(text.contains("perjoule_gpu_idle_watts{device=\"GPU-1\"} -Inf\n"));
    assert!(text.contains("clock=\"sm\"} NaN\n"));
}

#[test]
fn labels_and_help_are_escaped() {
    let hostile = "a\\b\"c\nd\u{e9}";
    let text = encoded(|out| out.number(&SESSIONS, &[hostile], 1.0));
    let line = "perjoule_sessions_total{service=\"a\\\\b\\\"c\\nd\u{e9}\"} 1\n";
    assert!(text.contains(line), "{text}");
    let mut help = String::new();
    push_escaped(&mut help, "says \"other\"\nand \\");
    assert_eq!(help, "says \\\"other\\\"\\nand \\\\");
}

#[test]
fn a_histogram_has_canonical_bounds_an_infinite_bucket_sum_and_count() {
    let mut energy = Histogram::default();
    energy.observe(&ENERGY, 42_000_000);
    energy.observe(&ENERGY, 200_000_000_000);
    let mut waits = Histogram::default();
    waits.observe(&WAIT, 1_000);
    let text = encoded(|out| {
        out.histogram(&SYSCALL_DURATION, &["vllm", "read"], &ENERGY, &energy, 1e6);
        out.histogram(&RUN_QUEUE, &["vllm"], &WAIT, &waits, 1e9);
    });
    let of = |rest: &str| {
        let line = format!("perjoule_syscall_duration_seconds{rest}\n");
        assert!(text.contains(&line), "{line}{text}");
    };
    of("_bucket{service=\"vllm\",class=\"read\",le=\"0.25\"} 0");
    of("_bucket{service=\"vllm\",class=\"read\",le=\"50.0\"} 1");
    of("_bucket{service=\"vllm\",class=\"read\",le=\"100000.0\"} 1");
    of("_bucket{service=\"vllm\",class=\"read\",le=\"+Inf\"} 2");
    of("_sum{service=\"vllm\",class=\"read\"} 200042");
    of("_count{service=\"vllm\",class=\"read\"} 2");
    assert!(text.contains("latency_seconds_bucket{service=\"vllm\",le=\"1.024e-06\"} 1\n"));
    assert!(text.contains("latency_seconds_bucket{service=\"vllm\",le=\"1.073741824\"} 1\n"));
    assert!(!text.contains("_created"));
}

#[test]
fn bounds_are_written_as_go_writes_them() {
    for (bound, written) in [
        (0.0, "0.0"),
        (0.1, "0.1"),
        (0.0001, "0.0001"),
        (0.000_099, "9.9e-05"),
        (1.0, "1.0"),
        (999_999.5, "999999.5"),
        (1e6, "1e+06"),
        (2.5e6, "2.5e+06"),
        (1e100, "1e+100"),
        (f64::INFINITY, "+Inf"),
    ] {
        let mut text = String::new();
        push_canonical(&mut text, bound);
        assert_eq!(text, written);
    }
}

#[test]
fn a_bucket_carries_the_latest_request_that_fell_into_it() {
    let mut sampled = Sampled::default();
    for (id, micros, millis) in [
        (7, 41_000_000, 5_000),
        (9, 43_000_000, 6_042),
        (8, 44_000_000, 5_500),
        (10, 300_000_000_000, 7_000),
    ] {
        let moment = Moment {
            request: RequestId(id),
            unix_millis: millis,
        };
        sampled.observe(&ENERGY, micros, moment);
    }
    let text = encoded(|out| {
        out.sampled(
            &REQUEST_ENERGY,
            &["vllm", "other", "A"],
            &ENERGY,
            &sampled,
            1e6,
        );
        out.sampled(
            &REQUEST_ENERGY,
            &["tgi", "other", "A"],
            &ENERGY,
            &Sampled::default(),
            1e6,
        );
    });
    let with: Vec<&str> = text.lines().filter(|line| line.contains(" # {")).collect();
    assert_eq!(
        with,
        [
            "perjoule_request_energy_joules_bucket{service=\"vllm\",route=\"other\",class=\"A\",le=\"50.0\"} 3 # {request_id=\"9\"} 43 6.042",
            "perjoule_request_energy_joules_bucket{service=\"vllm\",route=\"other\",class=\"A\",le=\"+Inf\"} 4 # {request_id=\"10\"} 300000 7.000",
        ]
    );
}
