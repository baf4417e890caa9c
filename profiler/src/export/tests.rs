//! What a scrape shows of hand-made booked values.

mod formats;
mod pods;

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::activity::{CudaCalls, HardwareCounts};
use crate::clock::Timestamp;
use crate::durations::Durations;
use crate::ledger::*;
use crate::telemetry::{
    Activity, GpuTelemetry, Memory, MigInstance, Modes, PowerLimits, ThrottleReason, Traffic,
    Utilization,
};
use crate::units::{Celsius, Hertz, Microjoules, Ratio, Watts};

const SECOND: u64 = 1_000_000_000;

fn meter(component: Component, device: &str) -> Meter {
    Meter {
        component,
        device: device.to_owned(),
        source: Source::Counter,
        limit: Some(Watts(400.0)),
        tick: SECOND / 10,
        stale_after: SECOND,
        gain_error_ratio: 0.05,
        idle: None,
    }
}

fn metrics() -> Metrics {
    let mut metrics = Metrics::new("0.1.0");
    metrics.describe_meter(MeterId(0), &meter(Component::Gpu, "GPU-1"));
    metrics.describe_meter(MeterId(1), &meter(Component::Cpu, "package-0"));
    metrics.describe_service(ServiceId(0), "vllm", Some("llama"));
    metrics
}

fn interval(meter: u32, requests: u64, overhead: u64) -> Booked {
    let accounts = Accounts {
        idle: Microjoules(83_000_000),
        context: Microjoules(100_001),
        requests: Microjoules(requests),
        overhead: Microjoules(overhead),
        other: Microjoules(7),
        agent: Microjoules(300_000),
        unattributed: Microjoules(11),
        gap: Microjoules(0),
    };
    Booked::Interval(BookedInterval {
        meter: MeterId(meter),
        from: Timestamp(0),
        to: Timestamp(SECOND),
        energy: accounts.total(),
        accounts,
        services: vec![ServiceShare {
            service: ServiceId(0),
            requests: Microjoules(requests),
            overhead: Microjoules(overhead),
            phases: None,
        }],
        holders: Some(1),
    })
}

fn request(outcome: Outcome) -> BookedRequest {
    BookedRequest {
        request: Request {
            id: RequestId(1),
            service: ServiceId(0),
            route: Route::ChatCompletions,
            start: Timestamp(SECOND),
            first_data: Some(Timestamp(SECOND + SECOND / 4)),
            last_data: Some(Timestamp(3 * SECOND)),
            input: Input::Bytes(900),
            chunks: 140,
            streamed: true,
            status: 200,
            end: Some(End {
                at: Timestamp(3 * SECOND),
                outcome,
            }),
        },
        gpu: Some(Microjoules(41_300_000)),
        phases: None,
        cpu: Some(Microjoules(700_000)),
        dram: None,
        class: Class::A,
        errors: Some(ErrorRatios {
            own: 0.0,
            common: 0.04,
        }),
        tokens: None,
    }
}

/// The samples of a published snapshot, by full series name.
fn scrape(metrics: &mut Metrics) -> HashMap<String, f64> {
    let text = text(metrics);
    let samples: Vec<(String, f64)> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect();
    let count = samples.len();
    let samples: HashMap<String, f64> = samples.into_iter().collect();
    assert_eq!(samples.len(), count, "a series is shown twice:\n{text}");
    samples
}

fn text(metrics: &mut Metrics) -> String {
    metrics.publish(Timestamp(10 * SECOND), None);
    body(metrics, Format::Text)
}

/// The latest snapshot's.
pub(super) fn body(metrics: &Metrics, format: Format) -> String {
    let snapshot = metrics.exposition().latest().unwrap();
    let body = snapshot.body(format, Encoding::Identity);
    String::from_utf8(body.to_vec()).unwrap()
}

pub(super) fn everything() -> Metrics {
    let mut metrics = metrics();
    metrics.set_aliases(Aliases::Otel);
    metrics.book(&interval(0, 50_000_000, 3));
    metrics.book(&interval(1, 2_000_000, 5));
    for outcome in [Outcome::Done, Outcome::Aborted, Outcome::Incomplete] {
        metrics.book(&Booked::Request(request(outcome)));
    }
    let mut upgrade = request(Outcome::Done);
    upgrade.request.status = 101;
    metrics.book(&Booked::Request(upgrade));
    metrics.book(&Booked::Hole {
        meter: MeterId(0),
        from: Timestamp(SECOND),
        to: Timestamp(3 * SECOND),
        reason: "reset",
    });
    metrics.record_cpu(&CpuTime {
        owner: Owner::Service(ServiceId(0)),
        from: Timestamp(0),
        to: Timestamp(SECOND),
        package: 0,
        on_cpu: 1_500_000_000,
        cycles: None,
    });
    metrics.record_syscalls(ServiceId(0), "read", 12);
    let mut durations = Durations {
        nanos: 90_000,
        ..Durations::default()
    };
    durations.counts[5] = 12;
    metrics.record_syscall_durations(ServiceId(0), "read", &durations);
    metrics.record_page_faults(ServiceId(0), "minor", 7);
    metrics.record_tracepoint(ServiceId(0), "sched:sched_migrate_task", 2);
    metrics.record_cuda(&CudaCalls {
        service: ServiceId(0),
        kernels: 900,
        graphs: 40,
        syncs: 8,
        sync_nanos: 250_000_000,
        watched_nanos: SECOND,
        complete: true,
    });
    metrics.record_hardware(&HardwareCounts {
        service: ServiceId(0),
        cycles: Some(3_000),
        instructions: Some(4_000),
        cache_misses: Some(5),
        wanted_nanos: 1_000,
        counted_nanos: 1_000,
    });
    pods::serve_in_a_pod(&mut metrics);
    metrics.record_waits(ServiceId(0), &crate::waits::Waits::default());
    metrics.record_starved(ServiceId(0), "run_queue", 5);
    metrics.record_gpu("GPU-1", "NVIDIA A100", "550.54");
    metrics.record_gpu_power("GPU-1", Some(Watts(285.5)));
    metrics.record_node("dcmi", node(Some(612.0), 9));
    metrics.record_gpu_idle("GPU-1", Some(floor(FloorSource::Learned)));
    metrics.record_gpu_telemetry(telemetry());
    metrics.record_gpu_errors("GPU-1", BTreeMap::from([(79, 1), (0, 3)]));
    let busy = BTreeMap::from([(ServiceId(0), Ratio(0.75))]);
    metrics.record_gpu_utilization("GPU-1", &busy, Timestamp(9 * SECOND));
    metrics.record_source("nvml", true, Some(Timestamp(9 * SECOND)));
    let calls = SourceCalls {
        count: 400,
        errors: 2,
        busy: Duration::from_millis(12),
        p50: Some(Duration::from_micros(30)),
        p99: Some(Duration::from_micros(90)),
    };
    metrics.record_source_calls("nvml", calls);
    metrics.record_probe("sched_switch", "tp_btf", true);
    metrics.record_thinned("syscalls");
    metrics.record_probe_cost("sched_switch", 1000, 100_000);
    metrics.record_dropped("ring_full", 3);
    metrics.describe_engine(&EngineInfo {
        service: ServiceId(0),
        engine: "vllm",
        counts: Counts::Step,
        version: Some("0.11.0".to_owned()),
        model: None,
    });
    metrics.record_tokens_per_chunk(ServiceId(0), 1.25);
    metrics.record_engine_load(&EngineLoad {
        service: ServiceId(0),
        asked: Timestamp(0),
        answered: Timestamp(0),
        running: Some(3),
        waiting: None,
    });
    metrics
}

fn node(power: Option<f64>, second: u64) -> NodeTotals {
    NodeTotals {
        at: Timestamp(second * SECOND),
        power: power.map(Watts),
        stale_after: Duration::from_secs(3),
        energy: Microjoules(4_200_000_000),
        gap: Duration::from_millis(1_500),
        gain_error_ratio: 0.1,
    }
}

/// A board that shows everything.
fn telemetry() -> GpuTelemetry {
    let mut throttled = [0; ThrottleReason::ALL.len()];
    throttled[1] = 1_500_000_000;
    GpuTelemetry {
        device: "GPU-1".to_owned(),
        at: Timestamp(9 * SECOND),
        limits: PowerLimits {
            enforced: Some(Watts(400.0)),
            min: Some(Watts(100.0)),
            max: Some(Watts(500.0)),
        },
        module_power: Some(Watts(600.0)),
        sm_clock: Some(Hertz::from_megahertz(1_410)),
        memory_clock: Some(Hertz::from_megahertz(1_593)),
        temperature: Some(Celsius(41.0)),
        memory: Some(Memory {
            used: 70 << 30,
            free: 9 << 30,
            reserved: 1 << 30,
        }),
        utilization: Some(Utilization {
            gpu: Ratio::from_percent(87),
            memory: Ratio::from_percent(40),
        }),
        throttled: Some(throttled),
        pcie: Traffic {
            sent: Some(1_000),
            received: None,
            sent_rate: None,
            received_rate: Some(5e6),
        },
        nvlink: Traffic {
            sent: Some(2_048),
            received: Some(4_096),
            ..Traffic::default()
        },
        modes: Modes {
            mig: Some(true),
            compute: Some("default"),
            virtualization: None,
        },
        activity: Some(Activity {
            sm: Some(Ratio(0.9)),
            ..Activity::default()
        }),
        instances: vec![MigInstance {
            id: 7,
            slices: 2,
            uuid: "MIG-1".to_owned(),
        }],
        field_latency: Some(Duration::from_micros(250)),
    }
}

#[test]
fn a_node_meter_has_its_own_series_and_an_old_power_is_not_shown() {
    let mut metrics = metrics();
    metrics.book(&interval(0, 50_000_000, 3));
    let parts = |seen: &HashMap<String, f64>| {
        let of = |name: &&String| name.starts_with("perjoule_meter_energy_joules_total");
        seen.keys().filter(of).count()
    };
    let before = parts(&scrape(&mut metrics));
    metrics.record_node("dcmi", node(Some(612.0), 9));
    let seen = scrape(&mut metrics);
    assert_eq!(parts(&seen), before, "a node is never among the parts");
    assert_eq!(
        seen[r#"perjoule_node_energy_joules_total{device="dcmi"}"#],
        4_200.0
    );
    let power = r#"perjoule_node_power_watts{device="dcmi"}"#;
    assert_eq!(seen[power], 612.0);
    let of = |name: &str| seen[&format!(r#"perjoule_{name}{{component="node",device="dcmi"}}"#)];
    assert_eq!(of("meter_gain_error_ratio"), 0.1);
    assert_eq!(of("gap_seconds_total"), 1.5);

    // The snapshot is of second 10.
    metrics.record_node("dcmi", node(Some(612.0), 6));
    assert!(!scrape(&mut metrics).contains_key(power));
    metrics.record_node("dcmi", node(None, 10));
    assert!(!scrape(&mut metrics).contains_key(power));
}

fn floor(source: FloorSource) -> Floor {
    Floor {
        watts: Watts(70.0),
        source,
    }
}

#[test]
fn an_idle_floor_says_where_it_comes_from_and_an_unknown_one_has_no_watts() {
    let mut metrics = metrics();
    let mut shown = |floor| {
        metrics.record_gpu_idle("GPU-1", floor);
        let seen = scrape(&mut metrics);
        let sources: Vec<String> = seen
            .keys()
            .filter_map(|name| name.strip_prefix("perjoule_gpu_idle_info"))
            .map(str::to_owned)
            .collect();
        let watts = seen
            .get(r#"perjoule_gpu_idle_watts{device="GPU-1"}"#)
            .copied();
        (sources.concat(), watts)
    };
    let info = |source: &str| format!(r#"{{device="GPU-1",idle_source="{source}"}}"#);
    assert_eq!(shown(None), (info("none"), None));
    assert_eq!(
        shown(Some(floor(FloorSource::Table))),
        (info("table"), Some(70.0))
    );
    assert_eq!(
        shown(Some(floor(FloorSource::Fixed))),
        (info("user"), Some(70.0))
    );
}

#[test]
fn a_source_that_asks_seldom_is_not_down_between_two_asks() {
    let mut metrics = metrics();
    metrics.record_source("ipmi", true, Some(Timestamp(3 * SECOND)));
    let up = |metrics: &mut Metrics| scrape(metrics)[r#"perjoule_source_up{source="ipmi"}"#];
    assert_eq!(up(&mut metrics), 0.0, "its latest reading is 7 s old");
    metrics.record_source_pace("ipmi", Duration::from_secs(5));
    assert_eq!(up(&mut metrics), 1.0);
    metrics.record_source("ipmi", true, Some(Timestamp(SECOND)));
    assert_eq!(up(&mut metrics), 0.0);
}

#[test]
fn a_gpu_shows_what_it_tells_and_nothing_else() {
    let mut metrics = metrics();
    metrics.record_gpu_telemetry(GpuTelemetry {
        device: "GPU-1".to_owned(),
        at: Timestamp(9 * SECOND),
        temperature: Some(Celsius(0.0)),
        ..GpuTelemetry::default()
    });
    let seen = scrape(&mut metrics);
    let of_gpus: Vec<_> = seen
        .iter()
        .filter(|(name, _)| name.starts_with("perjoule_gpu_"))
        .collect();
    // A reading of 0 is one; what is not told has no series.
    let series = r#"perjoule_gpu_temperature_celsius{device="GPU-1"}"#.to_owned();
    assert_eq!(of_gpus, [(&series, &0.0)]);

    metrics.record_gpu_telemetry(telemetry());
    let seen = scrape(&mut metrics);
    for (series, value) in [
        (r#"power_limit_watts{device="GPU-1",limit="max"}"#, 500.0),
        (r#"clock_hertz{device="GPU-1",clock="sm"}"#, 1.41e9),
        (r#"utilization_ratio{device="GPU-1",unit="gpu"}"#, 0.87),
        (
            r#"throttle_seconds_total{device="GPU-1",reason="sw_power_cap"}"#,
            1.5,
        ),
        (
            r#"throttle_seconds_total{device="GPU-1",reason="hw_thermal"}"#,
            0.0,
        ),
        (
            r#"pcie_bytes_total{device="GPU-1",direction="sent"}"#,
            1_000.0,
        ),
        (
            r#"pcie_bytes_per_second{device="GPU-1",direction="received"}"#,
            5e6,
        ),
        (
            r#"nvlink_bytes_total{device="GPU-1",direction="received"}"#,
            4_096.0,
        ),
        (
            r#"mode_info{device="GPU-1",mig="enabled",compute="default",virtualization=""}"#,
            1.0,
        ),
        (r#"activity_ratio{device="GPU-1",part="sm"}"#, 0.9),
        (
            r#"instance_info{device="GPU-1",instance="7",slices="2",uuid="MIG-1"}"#,
            1.0,
        ),
        (r#"field_latency_seconds{device="GPU-1"}"#, 250e-6),
    ] {
        assert_eq!(
            seen.get(&format!("perjoule_gpu_{series}")),
            Some(&value),
            "{series}"
        );
    }
    let bytes = r#"perjoule_gpu_pcie_bytes_total{device="GPU-1",direction="received"}"#;
    assert!(!seen.contains_key(bytes));
}

#[test]
fn a_gpu_that_tells_no_more_keeps_its_counters_and_loses_its_readings() {
    let mut metrics = metrics();
    let busy = BTreeMap::from([(ServiceId(0), Ratio(0.75))]);
    let told = Timestamp(4 * SECOND);
    metrics.record_gpu_utilization("GPU-1", &busy, told);
    metrics.record_gpu_telemetry(GpuTelemetry {
        at: told,
        ..telemetry()
    });
    let seen = scrape(&mut metrics);
    let names: Vec<&str> = seen
        .keys()
        .filter(|name| name.contains("_gpu_"))
        .filter_map(|name| name.split('{').next())
        .collect();
    assert!(!names.is_empty());
    assert!(
        names.iter().all(|name| name.ends_with("_total")),
        "{names:?}"
    );
}

fn counted(input: Option<u64>, output: Option<u64>) -> TokenDelta {
    TokenDelta {
        service: ServiceId(0),
        from: Timestamp(0),
        to: Timestamp(SECOND),
        input,
        output,
    }
}

#[test]
fn every_token_is_counted_under_one_source() {
    let mut metrics = metrics();
    let series = |kind: &str, source: &str| {
        format!(r#"perjoule_tokens_total{{service="vllm",kind="{kind}",source="{source}"}}"#)
    };
    let usage = |input, output| {
        let mut booked = request(Outcome::Done);
        booked.tokens = Some(Usage { input, output }.into());
        Booked::Request(booked)
    };
    metrics.book(&usage(Some(30), Some(150)));
    metrics.book(&usage(Some(8), None));
    metrics.book(&Booked::Request(request(Outcome::Aborted)));
    let seen = scrape(&mut metrics);
    assert_eq!(seen[&series("input", "usage")], 38.0);
    assert_eq!(seen[&series("output", "usage")], 150.0);
    assert_eq!(seen[&series("output", "chunks")], 140.0);
    assert!(!seen.contains_key(&series("input", "chunks")));
    let energy = |source: &str| {
        seen[&format!(r#"perjoule_token_energy_joules_total{{service="vllm",source="{source}"}}"#)]
    };
    assert_eq!(energy("usage"), 42.0, "only with a known output");
    assert_eq!(energy("chunks"), 42.0);
    let ratio = r#"perjoule_tokens_per_chunk{service="vllm"}"#;
    assert!(!seen.contains_key(ratio), "not learned");

    // The engine counts prompts alone: these are its, and output goes on as before.
    metrics.record_tokens(&counted(Some(5), None));
    metrics.book(&usage(Some(30), Some(150)));
    metrics.record_tokens_per_chunk(ServiceId(0), 1.5);
    let seen = scrape(&mut metrics);
    assert_eq!(seen[&series("input", "usage")], 38.0);
    assert_eq!(seen[&series("input", "server_metrics")], 5.0);
    assert_eq!(seen[&series("output", "usage")], 300.0);
    assert_eq!(seen[ratio], 1.5);

    metrics.record_tokens(&counted(Some(40), Some(160)));
    metrics.book(&usage(Some(30), Some(150)));
    let seen = scrape(&mut metrics);
    assert_eq!(
        seen[&series("output", "usage")],
        300.0,
        "the engine has counted it"
    );
    assert_eq!(seen[&series("output", "server_metrics")], 160.0);
}

#[test]
fn chunks_stand_still_while_the_engines_own_counter_is_read() {
    let mut metrics = metrics();
    let chunks = r#"kind="output",source="chunks""#;
    let output = r#"kind="output",source="server_metrics""#;
    let input = r#"kind="input",source="server_metrics""#;
    let tokens = |seen: &HashMap<String, f64>, labels: &str| {
        let series = format!(r#"perjoule_tokens_total{{service="vllm",{labels}}}"#);
        seen.get(&series).copied()
    };
    let energy = |seen: &HashMap<String, f64>, source: &str| {
        seen[&format!(r#"perjoule_token_energy_joules_total{{service="vllm",source="{source}"}}"#)]
    };
    let one = || Booked::Request(request(Outcome::Done));
    metrics.book(&one());
    // An engine that counts prompts alone does not tell how many tokens it made.
    metrics.record_tokens(&counted(Some(5), None));
    metrics.book(&one());
    let seen = scrape(&mut metrics);
    assert_eq!(tokens(&seen, chunks), Some(280.0));
    assert_eq!(tokens(&seen, input), Some(5.0));
    assert_eq!(tokens(&seen, output), None);

    metrics.record_tokens(&counted(Some(0), Some(0)));
    metrics.book(&one());
    metrics.record_tokens(&counted(Some(900), Some(150)));
    let seen = scrape(&mut metrics);
    assert_eq!(tokens(&seen, chunks), Some(280.0));
    assert_eq!(tokens(&seen, input), Some(905.0));
    assert_eq!(tokens(&seen, output), Some(150.0));
    assert_eq!(energy(&seen, "chunks"), 84.0);
    assert_eq!(energy(&seen, "server_metrics"), 42.0);

    metrics.record_tokens_lost(ServiceId(0));
    metrics.book(&one());
    let seen = scrape(&mut metrics);
    assert_eq!(tokens(&seen, chunks), Some(420.0));
    assert_eq!(tokens(&seen, output), Some(150.0), "no sum falls");
}

#[test]
fn a_source_that_has_fallen_silent_is_down_whatever_it_said_last() {
    let mut metrics = everything();
    let mut up = |now| {
        metrics.publish(Timestamp(now * SECOND), None);
        let text = body(&metrics, Format::Text);
        text.contains("perjoule_source_up{source=\"nvml\"} 1")
    };
    assert!(up(13), "its latest reading is 4 s old");
    assert!(!up(15));
}

#[test]
fn accounts_add_up_to_the_meter_and_the_residual_is_zero() {
    let mut metrics = metrics();
    for joules in 0..1_000 {
        metrics.book(&interval(0, joules * 333_333, joules));
    }
    let seen = scrape(&mut metrics);
    let meter = seen[r#"perjoule_meter_energy_joules_total{component="gpu",device="GPU-1",source="counter"}"#];
    let accounts: f64 = Accounts::NAMES
        .iter()
        .map(|account| {
            seen[&format!(
                r#"perjoule_energy_account_joules_total{{component="gpu",device="GPU-1",account="{account}"}}"#
            )]
        })
        .sum();
    assert!(
        (meter - accounts).abs() < meter * 1e-14,
        "{meter} {accounts}"
    );
    assert_eq!(seen["perjoule_ledger_residual_joules"], 0.0);
}

#[test]
fn a_broken_ledger_shows_in_the_residual_even_if_two_meters_errors_cancel() {
    let mut metrics = metrics();
    for (meter, energy) in [(0, 4_000_000), (1, 6_000_000)] {
        metrics.book(&Booked::Interval(BookedInterval {
            meter: MeterId(meter),
            from: Timestamp(0),
            to: Timestamp(SECOND),
            energy: Microjoules(energy),
            accounts: Accounts {
                idle: Microjoules(5_000_000),
                ..Accounts::default()
            },
            services: vec![],
            holders: None,
        }));
    }
    assert_eq!(scrape(&mut metrics)["perjoule_ledger_residual_joules"], 2.0);
}

#[test]
fn a_request_is_counted_and_its_energy_and_times_are_placed_in_buckets() {
    let seen = scrape(&mut everything());
    let counted = |outcome: &str| {
        seen[&format!(
            r#"perjoule_requests_total{{service="vllm",route="chat_completions",code="2xx",outcome="{outcome}"}}"#
        )]
    };
    assert_eq!(
        [counted("done"), counted("aborted"), counted("incomplete")],
        [1.0; 3]
    );
    let energy = |suffix: &str, le: &str| {
        seen[&format!(
            r#"perjoule_request_energy_joules{suffix}{{service="vllm",route="chat_completions",class="A"{le}}}"#
        )]
    };
    assert_eq!(energy("_bucket", r#",le="25""#), 0.0);
    assert_eq!(energy("_bucket", r#",le="50""#), 3.0);
    assert_eq!(energy("_bucket", r#",le="+Inf""#), 3.0);
    assert_eq!(energy("_sum", ""), 126.0);
    let time = |name: &str| {
        seen[&format!(r#"perjoule_{name}{{service="vllm",route="chat_completions"}}"#)]
    };
    // The end of an incomplete request is not known, so neither is its duration.
    assert_eq!(time("request_duration_seconds_count"), 2.0);
    assert_eq!(time("request_duration_seconds_sum"), 4.0);
    assert_eq!(time("time_to_first_token_seconds_sum"), 0.75);
    assert_eq!(
        seen[r#"perjoule_tokens_total{service="vllm",kind="output",source="chunks"}"#],
        420.0
    );
    assert_eq!(
        seen[r#"perjoule_token_energy_joules_total{service="vllm",source="chunks"}"#],
        126.0
    );
    let error = seen[r#"perjoule_attribution_error_ratio{service="vllm"}"#];
    assert!((error - 0.04).abs() < 1e-9);
}

#[test]
fn health_paths_are_counted_and_cost_nobody_energy() {
    let mut metrics = metrics();
    let mut health = request(Outcome::Done);
    health.request.route = Route::Health;
    health.request.streamed = false;
    metrics.book(&Booked::Request(health));
    let seen = scrape(&mut metrics);
    assert_eq!(
        seen[r#"perjoule_requests_total{service="vllm",route="health",code="2xx",outcome="done"}"#],
        1.0
    );
    assert!(
        !seen
            .keys()
            .any(|series| series.contains("request_energy") || series.contains("token"))
    );
}

#[test]
fn a_change_of_protocol_is_a_session_and_no_request() {
    let mut metrics = metrics();
    let mut upgrade = request(Outcome::Done);
    upgrade.request.status = 101;
    metrics.book(&Booked::Request(upgrade));
    let seen = scrape(&mut metrics);
    assert_eq!(seen[r#"perjoule_sessions_total{service="vllm"}"#], 1.0);
    assert!(!seen.keys().any(|series| series.contains("request")));
}

#[test]
fn a_request_whose_bound_exceeds_100_percent_counts_in_sums_alone() {
    let mut metrics = metrics();
    let mut vague = request(Outcome::Done);
    vague.errors = Some(ErrorRatios {
        own: 1.3,
        common: 0.0,
    });
    metrics.book(&Booked::Request(vague));
    let seen = scrape(&mut metrics);
    let shown = |name: &str| seen.keys().any(|series| series.starts_with(name));
    assert!(!shown("perjoule_request_energy_joules"));
    assert!(!shown("perjoule_attribution_error_ratio"));
    assert!(shown("perjoule_requests_total"));
    assert!(shown("perjoule_tokens_total"));
}

#[test]
fn what_is_unknown_has_no_series() {
    let mut metrics = Metrics::new("0.1.0");
    metrics.describe_service(ServiceId(0), "nginx", None);
    let mut plain = request(Outcome::Done);
    plain.gpu = None;
    plain.cpu = None;
    plain.errors = None;
    plain.request.streamed = false;
    plain.request.chunks = 0;
    metrics.book(&Booked::Request(plain));
    let seen = scrape(&mut metrics);
    for name in [
        "joules",
        "tokens",
        "error_ratio",
        "watts",
        "time_to_first_token",
        "perjoule_cpu_seconds",
    ] {
        let shown: Vec<&String> = seen.keys().filter(|series| series.contains(name)).collect();
        assert!(shown.is_empty(), "{shown:?}");
    }
}

#[test]
fn a_service_that_comes_back_goes_on_with_its_sums() {
    let mut metrics = metrics();
    metrics.book(&interval(0, 50_000_000, 0));
    metrics.describe_service(ServiceId(7), "vllm", None);
    let mut later = interval(0, 25_000_000, 0);
    if let Booked::Interval(interval) = &mut later {
        interval.services[0].service = ServiceId(7);
    }
    metrics.book(&later);
    assert_eq!(
        scrape(&mut metrics)[r#"perjoule_service_energy_joules_total{service="vllm",component="gpu",part="requests"}"#],
        75.0
    );
}

#[test]
fn a_stale_power_reading_disappears_and_the_source_ages() {
    let mut metrics = everything();
    assert_eq!(
        scrape(&mut metrics)[r#"perjoule_gpu_power_watts{device="GPU-1"}"#],
        285.5
    );
    metrics.record_gpu_power("GPU-1", None);
    let seen = scrape(&mut metrics);
    assert!(!seen.contains_key(r#"perjoule_gpu_power_watts{device="GPU-1"}"#));
    assert_eq!(seen[r#"perjoule_source_age_seconds{source="nvml"}"#], 1.0);
}

#[test]
fn a_snapshot_does_not_change_while_the_agent_goes_on() {
    let mut metrics = everything();
    for format in [Format::Text, Format::OpenMetrics] {
        for encoding in [Encoding::Identity, Encoding::Gzip] {
            metrics.publish(Timestamp(SECOND), None);
            let snapshot = metrics.exposition().latest().unwrap();
            metrics.book(&interval(0, 1_000_000, 0));
            let first = snapshot.body(format, encoding);
            assert_eq!(first, snapshot.body(format, encoding));
            assert_eq!(
                first.as_ptr(),
                snapshot.body(format, encoding).as_ptr(),
                "made once"
            );
            metrics.publish(Timestamp(2 * SECOND), None);
            let next = metrics.exposition().latest().unwrap();
            assert_ne!(first, next.body(format, encoding));
        }
    }
}

#[test]
fn every_family_of_the_catalog_is_shown_with_its_labels() {
    let text = text(&mut everything());
    for family in FAMILIES {
        let kind = format!("{:?}", family.kind).to_lowercase();
        assert!(
            text.contains(&format!("# TYPE {} {kind}\n", family.name)),
            "{}",
            family.name
        );
        let labels = |line: &&str| {
            family
                .labels
                .iter()
                .all(|label| line.contains(&format!("{label}=\"")))
        };
        assert!(
            text.lines()
                .filter(|line| line.starts_with(family.name))
                .any(|line| labels(&line)),
            "{}",
            family.name
        );
    }
}

#[test]
fn promtool_finds_nothing_to_say() {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match promtool {
        Ok(promtool) => promtool,
        Err(error) => panic!("promtool: {error}; it is in Debian's package `prometheus`"),
    };
    let mut input = promtool.stdin.take().unwrap();
    input.write_all(text(&mut everything()).as_bytes()).unwrap();
    drop(input);
    let said = promtool.wait_with_output().unwrap();
    let words = [said.stdout, said.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&words), "");
    assert!(said.status.success());
}

#[test]
fn what_agents_before_lost_stays_in_the_sums() {
    let mut first = Metrics::new("1.0.0");
    first.record_dropped("ring_full", 3);
    let mut second = Metrics::new("1.0.0");
    second.resume(first.save());
    second.record_dropped("ring_full", 0);
    second.record_dropped("ring_full", 2);
    let text = text(&mut second);
    let line = "perjoule_events_dropped_total{reason=\"ring_full\"} 5\n";
    assert!(text.contains(line), "{text}");
}
