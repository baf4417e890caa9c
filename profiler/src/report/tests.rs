//! The report's rules, on hand-made booked values.

mod forms;
mod recording;
mod stat;
mod tokens;

use serde_json::{Value, json};

use super::carbon::Grid;
use super::*;
use crate::clock::Timestamp;
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
    assert_eq!(report.ledger.residual_microjoules, Some(0));
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
        Some(5)
    );
}
