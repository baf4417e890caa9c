//! The report's rules, on hand-made booked values.

use serde_json::{Value, json};

use super::*;
use crate::clock::Timestamp;
use crate::durations::Durations;
use crate::ledger::*;
use crate::units::{Microjoules, Watts};

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

fn summary() -> Summary {
    let mut summary = Summary::new(true);
    summary.describe_meter(MeterId(0), &meter(Component::Gpu, "GPU-1"));
    summary.describe_meter(MeterId(1), &meter(Component::Cpu, "package-0"));
    summary.describe_service(ServiceId(0), "vllm", Some("llama-3-8b"));
    summary.set_window(Timestamp(SECOND), Timestamp(11 * SECOND));
    summary
}

/// A streamed chat request of 2 s with 100 chunks, first data after 0.25 s.
fn request(joules: f64) -> BookedRequest {
    BookedRequest {
        request: Request {
            id: RequestId(1),
            service: ServiceId(0),
            route: Route::ChatCompletions,
            start: Timestamp(SECOND),
            first_data: Some(Timestamp(SECOND + SECOND / 4)),
            last_data: Some(Timestamp(3 * SECOND)),
            input: Input::Bytes(900),
            chunks: 100,
            streamed: true,
            status: 200,
            end: Some(End {
                at: Timestamp(3 * SECOND),
                outcome: Outcome::Done,
            }),
        },
        gpu: Some(Microjoules((joules * 1e6) as u64)),
        phases: None,
        cpu: Some(Microjoules(0)),
        dram: None,
        class: Class::A,
        errors: Some(ErrorRatios {
            own: 0.0,
            common: 0.04,
        }),
        tokens: None,
    }
}

fn interval(accounts: Accounts, services: Vec<ServiceShare>) -> Booked {
    Booked::Interval(BookedInterval {
        meter: MeterId(0),
        from: Timestamp(0),
        to: Timestamp(SECOND),
        energy: accounts.total(),
        accounts,
        services,
        holders: None,
    })
}

fn share(service: u32, requests: u64, overhead: u64) -> ServiceShare {
    ServiceShare {
        service: ServiceId(service),
        requests: Microjoules(requests),
        overhead: Microjoules(overhead),
        phases: None,
    }
}

fn held_by(holders: u32, booked: Booked) -> Booked {
    match booked {
        Booked::Interval(interval) => Booked::Interval(BookedInterval {
            holders: Some(holders),
            ..interval
        }),
        other => other,
    }
}

fn with(requests: impl IntoIterator<Item = BookedRequest>) -> Summary {
    let mut summary = summary();
    for request in requests {
        summary.add(&Booked::Request(request));
    }
    summary
}

fn only_service(summary: &Summary) -> ServiceReport {
    let mut services = summary.report(FullEnergy::default()).services;
    assert_eq!(services.len(), 1);
    services.remove(0)
}

/// All keys with their paths; an array's first element stands for all.
fn keys(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let path = format!("{path}.{key}");
                found.push(path.clone());
                keys(inner, &path, found);
            }
        }
        Value::Array(items) => {
            if let Some(first) = items.first() {
                keys(first, &format!("{path}[]"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn a_meters_idle_floor_says_where_it_comes_from_and_null_where_nobody_told() {
    let shown = |tell: Option<Option<Floor>>| {
        let mut summary = summary();
        if let Some(floor) = tell {
            summary.set_floor(MeterId(0), floor);
        }
        let report: Value =
            serde_json::from_str(&summary.report(FullEnergy::default()).to_json().unwrap())
                .unwrap();
        let meter = report["meters"][0].clone();
        (meter["idle_w"].clone(), meter["idle_source"].clone())
    };
    assert_eq!(shown(None), (Value::Null, Value::Null));
    assert_eq!(shown(Some(None)), (Value::Null, json!("none")));
    let table = Floor {
        watts: Watts(70.0),
        source: FloorSource::Table,
    };
    assert_eq!(shown(Some(Some(table))), (json!(70.0), json!("table")));
}

#[test]
fn json_has_exactly_the_keys_of_schema_1() {
    let json = with([request(10.0)])
        .report(FullEnergy::default())
        .to_json()
        .unwrap();
    assert!(!json.contains('\n'), "one compact line");
    let value: Value = serde_json::from_str(&json).unwrap();
    let mut found = Vec::new();
    keys(&value, "", &mut found);
    found.sort();
    let mut expected: Vec<String> = [
        "schema",
        "simulated",
        "duration_s",
        "idle_policy",
        "pue",
        "services",
        "meters",
        "ledger",
        "losses",
        "ledger.residual_microjoules",
        "losses.events",
        "losses.requests",
    ]
    .map(|key| format!(".{key}"))
    .to_vec();
    for key in [
        "service",
        "model",
        "requests",
        "requests.total",
        "requests.aborted",
        "requests.incomplete",
        "requests.health",
        "requests.by_code",
        "requests.by_code.2xx",
        "chunks",
        "tokens",
        "tokens.input",
        "tokens.output",
        "tokens.source",
        "tokens.calibrated",
        "tokens.by_source",
        "tokens.by_source.chunks",
        "tokens.by_source.chunks.requests",
        "tokens.by_source.chunks.input",
        "tokens.by_source.chunks.output",
        "ttft_s",
        "ttft_s.p50",
        "ttft_s.p99",
        "duration_s",
        "duration_s.p50",
        "duration_s.p99",
        "energy_j",
        "energy_j.gpu",
        "energy_j.cpu",
        "energy_j.dram",
        "energy_j.total",
        "energy_full_j",
        "j_per_request",
        "j_per_request.mean",
        "j_per_request.p50",
        "j_per_request.p95",
        "j_per_output_token",
        "j_per_token",
        "class",
        "error_ratio",
        "cpu_s",
        "run_queue_s",
        "cuda",
        "pmc",
        "run_queue_wait_s",
        "run_queue_wait_s.p50",
        "run_queue_wait_s.p99",
        "off_cpu_s",
        "switches",
        "migrations",
        "gpu_starved_s",
    ] {
        expected.push(format!(".services[].{key}"));
    }
    for key in [
        "component",
        "device",
        "source",
        "energy_j",
        "idle_w",
        "idle_source",
        "accounts_j",
    ] {
        expected.push(format!(".meters[].{key}"));
    }
    for account in Accounts::NAMES {
        expected.push(format!(".meters[].accounts_j.{account}"));
    }
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn json_reads_back_and_all_forms_show_the_same_figures() {
    let report = busy();
    let read: Report = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(read.to_table(), report.to_table());
    assert_eq!(read.to_markdown("x"), report.to_markdown("x"));
}

#[test]
fn what_is_unknown_is_null_and_never_zero() {
    let mut summary = Summary::new(false);
    summary.describe_service(ServiceId(0), "nginx", None);
    let mut plain = request(0.0);
    plain.gpu = None;
    plain.cpu = None;
    plain.errors = None;
    plain.request.streamed = false;
    plain.request.chunks = 0;
    summary.add(&Booked::Request(plain));
    let json: Value =
        serde_json::from_str(&summary.report(FullEnergy::default()).to_json().unwrap()).unwrap();
    assert_eq!(
        json["services"][0],
        json!({
            "service": "nginx",
            "model": null,
            "requests": {"total": 1, "aborted": 0, "incomplete": 0, "health": 0,
                "by_code": {"2xx": 1}},
            "chunks": 0,
            "tokens": {"input": null, "output": null, "source": null, "calibrated": null,
                "by_source": {}},
            "ttft_s": {"p50": null, "p99": null},
            "duration_s": {"p50": 2.0, "p99": 2.0},
            "energy_j": {"gpu": null, "cpu": null, "dram": null, "total": null},
            "energy_full_j": null,
            "j_per_request": {"mean": null, "p50": null, "p95": null},
            "j_per_output_token": null,
            "j_per_token": null,
            "class": null,
            "error_ratio": null,
            "cpu_s": null,
            "run_queue_s": null,
            "cuda": null,
            "pmc": null,
            "run_queue_wait_s": {"p50": null, "p99": null},
            "off_cpu_s": null,
            "switches": null,
            "migrations": null,
            "gpu_starved_s": null,
        })
    );
    assert_eq!(json["duration_s"], Value::Null);
    assert_eq!(json["losses"], json!({"events": null, "requests": null}));
}

#[test]
fn a_figure_whose_bound_exceeds_100_percent_is_not_shown() {
    let vague = |own, common| {
        let mut request = request(2.0);
        request.errors = Some(ErrorRatios { own, common });
        request
    };
    let alone = only_service(&with([vague(1.3, 0.1)]));
    assert_eq!(alone.energy_j.total, None);
    assert_eq!(alone.energy_full_j, None);
    assert_eq!(alone.j_per_request, JoulesPerRequest::default());
    assert_eq!((alone.j_per_output_token, alone.error_ratio), (None, None));
    assert_eq!(alone.requests.total, 1, "it was served all the same");

    let many = only_service(&with((0..400).map(|_| vague(1.3, 0.1))));
    assert_eq!(many.energy_j.total, Some(800.0), "their sum is known");
    assert_eq!(many.j_per_request.mean, Some(2.0));
    assert_eq!(many.j_per_request.p50, None, "which of them took it is not");
    assert!((many.error_ratio.unwrap() - 0.1_f64.hypot(1.3 / 20.0)).abs() < 1e-9);
}

#[test]
fn ratios_are_sums_over_sums_and_quantiles_are_of_single_requests() {
    let service = only_service(&with((1..=100).map(|joules| request(f64::from(joules)))));
    assert_eq!(service.energy_j.gpu, Some(5050.0));
    assert_eq!(service.energy_j.cpu, Some(0.0));
    assert_eq!(service.energy_j.dram, None);
    assert_eq!(service.energy_j.total, Some(5050.0));
    assert_eq!(service.j_per_request.mean, Some(50.5));
    let near = |seen: Option<f64>, exact: f64| (seen.unwrap() / exact - 1.0).abs() < 0.005;
    assert!(near(service.j_per_request.p50, 50.5), "{service:?}");
    assert!(near(service.j_per_request.p95, 95.05), "{service:?}");
    assert_eq!(service.j_per_output_token, Some(0.505));
    assert_eq!(service.chunks, 10_000);
    assert_eq!(service.tokens.output, Some(10_000));
    assert!(near(service.ttft_s.p50, 0.25));
    assert!(near(service.duration_s.p99, 2.0));
    assert_eq!(service.class, Some(Class::A));
    assert!((service.error_ratio.unwrap() - 0.04).abs() < 1e-9);
}

#[test]
fn a_client_that_left_is_charged_and_one_whose_end_is_unknown_has_no_duration() {
    let mut aborted = request(5.0);
    aborted.request.end = Some(End {
        at: Timestamp(2 * SECOND),
        outcome: Outcome::Aborted,
    });
    let mut incomplete = request(3.0);
    incomplete.request.end = Some(End {
        at: Timestamp(9 * SECOND),
        outcome: Outcome::Incomplete,
    });
    incomplete.request.status = 0;
    let service = only_service(&with([aborted, incomplete]));
    assert_eq!(service.requests.total, 2);
    assert_eq!(service.requests.aborted, 1);
    assert_eq!(service.requests.incomplete, 1);
    assert_eq!(service.requests.by_code.get("2xx"), Some(&1));
    assert_eq!(service.energy_j.total, Some(8.0));
    assert_eq!(service.duration_s.p99, Some(1.0));
}

#[test]
fn a_change_of_protocol_is_no_request() {
    let mut upgrade = request(0.0);
    upgrade.request.status = 101;
    let service = only_service(&with([request(10.0), upgrade]));
    assert_eq!(service.requests.total, 1);
    assert_eq!(service.duration_s.p50, Some(2.0));
}

#[test]
fn health_paths_are_counted_and_change_no_figure_of_a_request() {
    let mut health = request(0.0);
    health.request.route = Route::Health;
    health.request.streamed = false;
    health.request.end = Some(End {
        at: Timestamp(SECOND + 1),
        outcome: Outcome::Done,
    });
    let service = only_service(&with([request(10.0), health, health]));
    assert_eq!(service.requests.total, 3);
    assert_eq!(service.requests.health, 2);
    assert_eq!(service.requests.by_code.get("2xx"), Some(&3));
    assert_eq!(service.j_per_request.mean, Some(10.0));
    assert_eq!(service.duration_s.p50, Some(2.0));
}

#[test]
fn joules_per_token_are_of_the_requests_whose_tokens_are_known() {
    let mut whole = request(90.0);
    whole.request.streamed = false;
    whole.request.chunks = 0;
    let service = only_service(&with([request(10.0), whole]));
    assert_eq!(service.energy_j.total, Some(100.0));
    assert_eq!(service.j_per_output_token, Some(0.1));
    assert_eq!(service.ttft_s.p50, Some(0.25));
}

/// What the engine counted in these tenths of a second.
fn counted(from: u64, to: u64, input: u64, output: u64) -> TokenDelta {
    TokenDelta {
        service: ServiceId(0),
        from: Timestamp(from * SECOND / 10),
        to: Timestamp(to * SECOND / 10),
        input: Some(input),
        output: Some(output),
    }
}

#[test]
fn the_engines_own_count_is_taken_where_it_covers_the_requests() {
    let plain = || {
        let mut plain = request(90.0);
        plain.request.streamed = false;
        plain.request.chunks = 0;
        plain
    };
    let requests = || vec![request(10.0), plain()];
    // The requests last from 1 s to 3 s.
    let whole = [
        counted(5, 5, 0, 0),
        counted(5, 15, 60, 0),
        counted(15, 31, 0, 140),
    ];
    let before = only_service(&{
        let mut summary = summary();
        whole.iter().for_each(|delta| summary.add_tokens(delta));
        for request in requests() {
            summary.add(&Booked::Request(request));
        }
        summary
    });
    let after = only_service(&{
        let mut summary = summary();
        summary.add_tokens(&whole[0]);
        for request in requests() {
            summary.add(&Booked::Request(request));
        }
        whole[1..]
            .iter()
            .for_each(|delta| summary.add_tokens(delta));
        summary
    });
    assert_eq!(before, after, "requests and counts come in any order");
    let Tokens {
        input,
        output,
        source,
        by_source,
        ..
    } = before.tokens;
    let sources: Vec<&str> = by_source.keys().map(String::as_str).collect();
    assert_eq!(sources, ["server_metrics"], "nothing is counted twice");
    assert_eq!((input, output), (Some(60), Some(140)));
    assert_eq!(source.as_deref(), Some("server_metrics"));
    assert_eq!(before.j_per_output_token, Some(100.0 / 140.0));
    assert_eq!(before.j_per_token, Some(0.5));

    for (why, partial) in [
        (
            "first read late",
            vec![counted(11, 11, 0, 0), counted(11, 31, 60, 140)],
        ),
        (
            "last read early",
            vec![counted(5, 5, 0, 0), counted(5, 29, 60, 140)],
        ),
        (
            "a restart in between",
            vec![
                counted(5, 5, 0, 0),
                counted(16, 16, 0, 0),
                counted(16, 31, 1, 1),
            ],
        ),
        ("no read", vec![]),
    ] {
        let mut summary = summary();
        partial.iter().for_each(|delta| summary.add_tokens(delta));
        for request in requests() {
            summary.add(&Booked::Request(request));
        }
        let service = only_service(&summary);
        assert_eq!(service.tokens.source.as_deref(), Some("chunks"), "{why}");
        assert_eq!(service.tokens.output, Some(100), "{why}");
        assert_eq!(service.tokens.input, None, "{why}");
        assert_eq!(service.j_per_output_token, Some(0.1), "{why}");
        assert_eq!(service.j_per_token, None, "{why}");
    }

    // One request in a hundred may have begun before the first read.
    let mut summary = summary();
    summary.add_tokens(&counted(5, 31, 6_000, 14_000));
    let mut early = request(1.0);
    early.request.start = Timestamp(SECOND / 3);
    for request in std::iter::repeat_n(request(1.0), 99).chain([early]) {
        summary.add(&Booked::Request(request));
    }
    let service = only_service(&summary);
    assert_eq!(service.tokens.source.as_deref(), Some("server_metrics"));
    assert_eq!(service.j_per_token, Some(100.0 / 20_000.0));

    // Nothing streamed: what was counted is shown, and no energy divided by it.
    let mut summary = with([plain()]);
    summary.add_tokens(&counted(20, 31, 60, 140));
    let service = only_service(&summary);
    assert_eq!(service.tokens.output, Some(140));
    assert_eq!(service.j_per_output_token, None);
    assert_eq!(service.j_per_token, None);
}

#[test]
fn what_servers_say_of_single_requests_and_chunks_are_summed_and_kept_apart() {
    let with_usage = |input, output| {
        let mut booked = request(10.0);
        booked.tokens = Some(Usage { input, output }.into());
        booked
    };
    // All known: J per token too.
    let all = [
        with_usage(Some(30), Some(110)),
        with_usage(Some(40), Some(120)),
    ];
    let service = only_service(&with(all));
    assert_eq!(service.tokens.input, Some(70));
    assert_eq!(service.tokens.output, Some(230));
    assert_eq!(service.tokens.source.as_deref(), Some("usage"));
    assert_eq!(service.tokens.calibrated, None);
    assert_eq!(service.j_per_output_token, Some(20.0 / 230.0));
    assert_eq!(service.j_per_token, Some(20.0 / 300.0));

    // A client that left early got no counts; the embedding has no output; one did not stream
    // and said nothing.
    let mut embedding = with_usage(Some(8), None);
    embedding.request.streamed = false;
    embedding.request.chunks = 0;
    let mut silent = request(50.0);
    silent.request.streamed = false;
    silent.request.chunks = 0;
    let mixed = [
        with_usage(Some(30), Some(110)),
        request(10.0),
        embedding,
        silent,
    ];
    let service = only_service(&with(mixed));
    let tokens = &service.tokens;
    assert_eq!(tokens.input, None, "one prompt is not known");
    assert_eq!(tokens.output, Some(210));
    assert_eq!(tokens.source.as_deref(), Some("chunks"));
    assert_eq!(tokens.calibrated, Some(false));
    let part = |requests, input, output| SourceTokens {
        requests,
        input,
        output,
    };
    assert_eq!(tokens.by_source["usage"], part(2, Some(38), Some(110)));
    assert_eq!(tokens.by_source["chunks"], part(1, None, Some(100)));
    assert_eq!(service.j_per_output_token, Some(20.0 / 210.0));
    assert_eq!(
        service.j_per_token,
        Some(20.0 / 148.0),
        "where both are known"
    );
    assert!(service.energy_j.total == Some(80.0));
}

#[test]
fn full_energy_adds_overhead_and_an_equal_part_of_the_context() {
    let accounts = Accounts {
        idle: Microjoules(83_000_000),
        context: Microjoules(7),
        requests: Microjoules(10_000_000),
        overhead: Microjoules(4_000_000),
        ..Accounts::default()
    };
    let services = vec![share(0, 10_000_000, 4_000_000), share(1, 0, 0)];
    let mut summary = with([request(10.0)]);
    summary.describe_service(ServiceId(1), "tgi", None);
    summary.add(&held_by(3, interval(accounts, services.clone())));
    let report = summary.report(FullEnergy::default());
    let full = |name: &str| {
        let mut services = report.services.iter();
        services
            .find(|service| service.service == name)
            .unwrap()
            .energy_full_j
    };
    // 7 µJ over two services and one other process: 3, 2, 2.
    assert_eq!(full("vllm"), Some(14.000_003));
    assert_eq!(full("tgi"), Some(0.000_002));

    let mut nobody_said = with([request(10.0)]);
    nobody_said.add(&interval(accounts, vec![services[0]]));
    assert_eq!(only_service(&nobody_said).energy_full_j, None);
    assert_eq!(only_service(&nobody_said).energy_j.total, Some(10.0));
}

#[test]
fn idle_energy_is_shared_as_the_policy_says_and_full_energy_is_the_sites() {
    let accounts = Accounts {
        idle: Microjoules(80_000_000),
        requests: Microjoules(40_000_000),
        ..Accounts::default()
    };
    let mut summary = with([request(30.0)]);
    summary.describe_service(ServiceId(1), "tgi", None);
    let mut second = request(10.0);
    second.request.service = ServiceId(1);
    summary.add(&Booked::Request(second));
    let services = vec![share(0, 30_000_000, 0), share(1, 10_000_000, 0)];
    summary.add(&held_by(2, interval(accounts, services)));
    let full = |idle_policy, pue| {
        let report = summary.report(FullEnergy { idle_policy, pue });
        assert_eq!((report.idle_policy, report.pue), (idle_policy, pue));
        // By name: tgi, vllm.
        let full = report.services.iter().map(|service| service.energy_full_j);
        full.collect::<Option<Vec<f64>>>().unwrap()
    };
    assert_eq!(full(IdlePolicy::None, 1.0), [10.0, 30.0]);
    assert_eq!(full(IdlePolicy::Even, 1.0), [50.0, 70.0]);
    assert_eq!(full(IdlePolicy::Proportional, 1.0), [30.0, 90.0]);
    assert_eq!(full(IdlePolicy::Proportional, 1.5), [45.0, 135.0]);
}

#[test]
fn a_service_without_requests_cost_nothing_only_if_a_meter_ran() {
    let mut summary = summary();
    assert_eq!(only_service(&summary).energy_j.total, None);
    summary.add(&interval(Accounts::default(), vec![]));
    let service = only_service(&summary);
    assert_eq!(service.energy_j.gpu, Some(0.0));
    assert_eq!(service.energy_j.cpu, None, "that meter never ticked");
    assert_eq!(service.j_per_request.mean, None);
    assert_eq!(service.requests.total, 0);
}

#[test]
fn meters_show_their_accounts_and_the_residual_is_from_the_integers() {
    let accounts = Accounts {
        idle: Microjoules(300_000),
        requests: Microjoules(123),
        ..Accounts::default()
    };
    let mut summary = summary();
    summary.add(&interval(accounts, vec![]));
    let report = summary.report(FullEnergy::default());
    assert_eq!(report.ledger.residual_microjoules, 0);
    assert_eq!(report.meters[0].energy_j, Some(0.300_123));
    assert_eq!(report.meters[0].accounts_j.idle, Some(0.3));
    assert_eq!(report.meters[0].accounts_j.gap, Some(0.0));
    assert_eq!(report.meters[1].energy_j, None);
    assert_eq!(report.meters[1].accounts_j.gap, None);

    let Booked::Interval(mut broken) = interval(accounts, vec![]) else {
        unreachable!()
    };
    broken.energy += Microjoules(5);
    summary.add(&Booked::Interval(broken));
    assert_eq!(
        summary
            .report(FullEnergy::default())
            .ledger
            .residual_microjoules,
        5
    );
}

fn busy() -> Report {
    let mut summary = with((1..=250).map(|joules| request(f64::from(joules))));
    let accounts = Accounts {
        idle: Microjoules(830_000_000),
        context: Microjoules(260_000_000),
        requests: Microjoules(31_375_000_000),
        unattributed: Microjoules(12_000_000),
        ..Accounts::default()
    };
    let all = share(0, 31_375_000_000, 0);
    summary.add(&held_by(1, interval(accounts, vec![all])));
    summary.add_cpu(&CpuTime {
        owner: Owner::Service(ServiceId(0)),
        from: Timestamp(0),
        to: Timestamp(SECOND),
        package: 0,
        on_cpu: 12 * SECOND,
        cycles: None,
    });
    summary.set_losses(0, 2);
    summary.report(FullEnergy::default())
}

#[test]
fn the_table_is_aligned_and_says_what_is_not_supported() {
    let table = busy().to_table();
    let expected = "
 Energy over 10.00 s   SIMULATED GPU

 service vllm, model llama-3-8b

               250    requests                # 25.00 /s
                                              # 250 2xx
            25,000    output tokens           # 2,500 /s, from chunks
                                              # a chunk is taken for a token
            31,375 J  energy, active          # ± 4.0 %, class A
            31,375 J    gpu
                 0 J    cpu
   <not supported>      dram
            31,635 J  with overhead, context
             125.5 J  per request             # p50 125.4, p95 237.2
             1.255 J  per output token
            0.2500 s  to first token, p50     # p99 0.2500
             2.000 s  request duration, p50   # p99 2.000
             12.00 s  on CPU                  # 1.200 CPUs used
   <not supported>    in run queue

 meter gpu GPU-1 (counter)

            32,477 J  energy                  # 3,248 W
             830.0 J    idle                  # 2.6 %
             260.0 J    context               # 0.8 %
            31,375 J    requests              # 96.6 %
             12.00 J    unattributed          # 0.0 %

 meter cpu package-0 (counter)

   <not supported>    energy

                 0 µJ ledger residual
                 2    requests lost
                 0    events lost
";
    assert_eq!(table.trim_end(), expected.trim_end(), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn the_planners_summary_carries_the_same_figures_and_lets_no_name_become_markup() {
    let mut report = busy();
    let markdown = report.to_markdown("Energy report");
    for shown in [
        "# Energy report",
        "**Simulated:**",
        "| vllm (llama-3-8b) | 250 | 125.5 | 125.4 | 237.2 | 1.255 | 28,685 |",
        "± 4.0 %, A",
        "| | idle | 830.0 | 2.6 % | 83.00 |",
        "2.6 % is idle draw",
        "Lost: 2 request records, 0 events",
    ] {
        assert!(markdown.contains(shown), "{shown}\n{markdown}");
    }
    assert!(!markdown.contains("<not supported>"), "reads as a tag");
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let lines: Vec<&str> = markdown.lines().collect();
    for pair in lines.windows(2) {
        if pair.iter().all(|line| line.starts_with('|')) {
            assert_eq!(columns(pair[0]), columns(pair[1]), "{pair:?}");
        }
    }
    report.services[0].service = "a|b<script>".to_owned();
    let markdown = report.to_markdown("x");
    assert!(markdown.contains("a\\|b&lt;script>"), "{markdown}");
}

#[test]
fn what_the_host_did_is_in_the_json_and_in_the_table_once_it_is_asked_for() {
    let mut summary = with([request(10.0)]);
    let mut timed = Durations {
        nanos: 2_000_000,
        ..Durations::default()
    };
    // Between 8.2 and 16.4 µs.
    timed.counts[7] = 100;
    summary.add_syscalls(ServiceId(0), "gpu_ioctl", 6_400, &timed);
    summary.add_syscalls(ServiceId(0), "poll", 0, &Durations::default());
    summary.add_page_faults(ServiceId(0), "minor", 12);
    summary.add_tracepoint(ServiceId(0), "sched:sched_migrate_task", 3);
    let report = summary.report(FullEnergy::default());
    let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    let host = &json["services"][0]["host"];
    let calls = &host["syscalls"]["gpu_ioctl"];
    assert_eq!(
        (&calls["calls"], &calls["timed"]),
        (&json!(6_400), &json!(100))
    );
    assert_eq!(calls["time_s"], 0.002);
    let p99 = calls["p99_s"].as_f64().unwrap();
    assert!((8.192e-6..=16.384e-6).contains(&p99), "{p99}");
    assert!(
        host["syscalls"].get("poll").is_none(),
        "never called: {host}"
    );
    assert_eq!(host["page_faults"], json!({"minor": 12}));
    assert_eq!(host["tracepoints"], json!({"sched:sched_migrate_task": 3}));
    let table = report.to_table();
    for words in [
        "6,400",
        "gpu_ioctl calls",
        "100 timed",
        "p99 16",
        "minor page faults",
        "sched:sched_migrate_task",
    ] {
        assert!(table.contains(words), "no {words} in {table}");
    }
}
