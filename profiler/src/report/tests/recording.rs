//! A recording's report: ten minutes of a machine whose every joule is known.
//!
//! GPU-0 serves nothing for two minutes, one request at a time for three, eight at a time for five;
//! GPU-1 is parked throughout.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;

use super::*;
use crate::recording::{RecordedEngine, Recording};

mod forms;
mod savings;
mod versions;

const START: u64 = 1_000;

/// One in flight from here on, and eight from there on, seconds since the start.
const ONE: u64 = 120;
const EIGHT: u64 = 300;
const END: u64 = 600;

fn at(second: u64) -> Timestamp {
    Timestamp((START + second) * SECOND)
}

fn joules(joules: u64) -> Microjoules {
    Microjoules(joules * 1_000_000)
}

/// A second of a meter.
fn second(meter: u32, second: u64, accounts: Accounts, services: Vec<ServiceShare>) -> Booked {
    Booked::Interval(BookedInterval {
        meter: MeterId(meter),
        from: at(second),
        to: at(second + 1),
        energy: accounts.total(),
        accounts,
        services,
        holders: Some(1),
    })
}

fn served(id: u64, from: u64, to: u64, tokens: u64, gpu: u64, cpu: u64) -> BookedRequest {
    let mut booked = request(0.0);
    booked.request.id = RequestId(id);
    booked.request.start = at(from);
    booked.request.first_data = Some(at(from));
    booked.request.last_data = Some(at(to));
    booked.request.chunks = tokens;
    booked.request.end = Some(End {
        at: at(to),
        outcome: Outcome::Done,
    });
    (booked.gpu, booked.cpu) = (Some(joules(gpu)), Some(joules(cpu)));
    booked
}

/// A version of what serves that is told in this second.
fn vllm(service: u32, version: &str, second: u64) -> RecordedEngine {
    RecordedEngine {
        service: ServiceId(service),
        at: at(second),
        engine: "vllm".to_owned(),
        version: Some(version.to_owned()),
        model: None,
    }
}

/// Writes the ten minutes; `change` may change or drop what is booked.
fn ten_minutes(file: &Path, change: impl Fn(Booked) -> Option<Booked>) {
    let mut recording = Recording::create(file, "run", true).unwrap();
    for (id, component, device) in [
        (0, Component::Gpu, "GPU-0"),
        (1, Component::Gpu, "GPU-1"),
        (2, Component::Cpu, "package-0"),
    ] {
        recording
            .meter(MeterId(id), &meter(component, device))
            .unwrap();
        let watts = Watts(if component == Component::Gpu {
            70.0
        } else {
            20.0
        });
        let source = FloorSource::Learned;
        recording
            .floor(MeterId(id), Some(Floor { watts, source }))
            .unwrap();
    }
    recording
        .service(ServiceId(0), "chat", Some("llama"))
        .unwrap();
    recording.engine(&vllm(0, "0.11.0", 0)).unwrap();
    let mut book = |booked: Booked| {
        if let Some(booked) = change(booked) {
            recording.book(&booked).unwrap();
        }
    };
    let parked = Accounts {
        idle: joules(70),
        context: joules(30),
        ..Accounts::default()
    };
    for now in 0..END {
        let (gpu, cpu) = if now < ONE {
            (0, 0)
        } else if now < EIGHT {
            (100, 10)
        } else {
            (160, 10)
        };
        let of = |energy: u64, phases| ServiceShare {
            phases,
            ..share(0, energy * 1_000_000, 0)
        };
        let wait = joules(if gpu == 100 { 5 } else { 0 });
        let phases = GpuPhases {
            prefill: joules(gpu / 5),
            decode: joules(gpu - gpu / 5) - wait,
            wait,
        };
        let busy = Accounts {
            requests: joules(gpu),
            ..parked
        };
        let host = Accounts {
            idle: joules(20),
            requests: joules(cpu),
            agent: joules(1),
            ..Accounts::default()
        };
        book(second(0, now, busy, vec![of(gpu, Some(phases))]));
        book(second(
            1,
            now,
            parked,
            vec![of(0, Some(GpuPhases::default()))],
        ));
        book(second(2, now, host, vec![of(cpu, None)]));
    }
    let alone = (ONE..EIGHT)
        .step_by(2)
        .map(|from| served(from, from, from + 2, 50, 200, 20));
    let together = (EIGHT..END).step_by(4).flat_map(|from| {
        (0..8).map(move |lane| served(1_000 * (lane + 1) + from, from, from + 4, 200, 80, 5))
    });
    alone
        .chain(together)
        .for_each(|request| book(Booked::Request(request)));
    recording.close().unwrap();
}

fn inputs() -> Inputs {
    Inputs {
        price: Some(0.2),
        currency: Some("EUR".to_owned()),
        country: Some(Grid::of_country("DE").unwrap()),
        embodied_kg: Some(1_500.0),
        lifetime_years: Some(5.0),
        ..Inputs::default()
    }
}

fn report_of(
    change: impl Fn(Booked) -> Option<Booked>,
    full: FullEnergy,
    inputs: &Inputs,
) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    ten_minutes(&file, change);
    read(&file, full, inputs).unwrap()
}

fn plan_of(change: impl Fn(Booked) -> Option<Booked>) -> Plan {
    report_of(change, FullEnergy::default(), &inputs())
        .planner
        .unwrap()
}

fn plan() -> Plan {
    plan_of(Some)
}

fn near(seen: Option<f64>, exact: f64) {
    let seen = seen.unwrap_or(f64::NAN);
    assert!((seen / exact - 1.0).abs() < 0.006, "{seen} {exact}");
}

#[test]
fn totals_are_of_all_energy_and_of_what_requests_caused() {
    let plan = plan();
    let totals = &plan.totals;
    assert_eq!(totals.measured_j, Some(203_400.0));
    assert_eq!(
        (totals.gpu_j, totals.cpu_j, totals.dram_j),
        (Some(186_000.0), Some(17_400.0), None)
    );
    assert_eq!(totals.active_j, Some(70_800.0));
    assert_eq!(totals.total.energy_kwh, Some(0.0565));
    near(totals.total.cost, 0.0113);
    near(totals.total.carbon_g, 0.0565 * 380.95);
    near(totals.requests_per_kwh, 690.0 / 0.0565);
    near(totals.per_1000_requests.all.energy_kwh, 0.0565 / 0.69);
    near(
        totals.per_1000_requests.active.energy_kwh,
        70_800.0 / 3.6e6 / 0.69,
    );
    // 90 times 50 and 600 times 200 tokens.
    assert_eq!(plan.requests.output_tokens, Some(124_500));
    near(totals.per_million_output_tokens.all.cost, 0.0113 / 0.1245);
    near(plan.requests.j_per_request.mean, 70_800.0 / 690.0);
    near(plan.requests.j_per_request.p50, 85.0);
    near(plan.requests.j_per_request.p95, 220.0);
    near(plan.requests.j_per_output_token, 70_800.0 / 124_500.0);
    near(plan.requests.mean_output_tokens, 124_500.0 / 690.0);
    // One for 180 s and eight for 300 s.
    near(plan.requests.mean_in_flight, 2_580.0 / 480.0);
    assert_eq!(plan.requests.mean_input_tokens, None);
    near(plan.shares.gpu_idle, 84_000.0 / 186_000.0);
    near(plan.shares.gpu_parked, 36_000.0 / 186_000.0);
    near(plan.shares.host, 17_400.0 / 203_400.0);
    near(totals.gain_error_ratio, 0.05);
    assert_eq!(plan.services[0].engines, ["vllm 0.11.0"]);
    near(plan.services[0].mean_in_flight, 2_580.0 / 600.0);
    assert_eq!(plan.services[0].wait_j, Some(900.0));
}

#[test]
fn pue_is_in_what_the_site_pays_and_not_in_what_was_measured() {
    let full = FullEnergy {
        pue: 1.5,
        ..FullEnergy::default()
    };
    let plan = report_of(Some, full, &inputs()).planner.unwrap();
    assert_eq!(plan.totals.measured_j, Some(203_400.0));
    near(plan.totals.total.energy_kwh, 0.0565 * 1.5);
    near(plan.totals.total.cost, 0.0113 * 1.5);
    near(plan.carbon.operational_g, 0.0565 * 1.5 * 380.95);
}

#[test]
fn the_terms_of_sci_stand_apart_and_a_market_factor_is_in_none() {
    let market = Inputs {
        carbon_market: Some(10.0),
        ..inputs()
    };
    let carbon = |inputs: &Inputs| {
        let plan = report_of(Some, FullEnergy::default(), inputs)
            .planner
            .unwrap();
        (plan.carbon, plan.totals)
    };
    let (with, totals) = carbon(&market);
    let (operational, embodied) = (0.0565 * 380.95, 1.5e6 * 600.0 / (5.0 * 365.25 * 86_400.0));
    near(with.operational_g, operational);
    near(with.embodied_g, embodied);
    near(with.sci_g_per_request, (operational + embodied) / 690.0);
    near(
        with.sci_g_per_million_output_tokens,
        (operational + embodied) / 0.1245,
    );
    near(with.market_g, 0.565);
    near(totals.total.carbon_g, operational);
    let (without, _) = carbon(&Inputs {
        embodied_kg: None,
        lifetime_years: None,
        ..market
    });
    near(without.operational_g_per_request, operational / 690.0);
    assert_eq!(
        (without.embodied_g, without.sci_g_per_request),
        (None, None),
        "M is not known"
    );
}

#[test]
fn the_parts_of_the_period_add_up_and_a_rebound_is_said() {
    let trend = plan().trend;
    assert_eq!(trend.parts.len(), 60);
    let energy: f64 = trend.parts.iter().map(|part| part.energy_j).sum();
    assert_eq!(energy, 203_400.0);
    assert_eq!(
        trend.parts.iter().map(|part| part.requests).sum::<u64>(),
        690
    );
    assert!(trend.parts.iter().all(|part| part.booked_ratio == 1.0));
    assert_eq!(trend.parts[0].j_per_request, None, "no request ended");
    let change = trend.change.unwrap();
    // 86,100 J and 90 requests, then 117,300 J and 600.
    near(Some(change.energy), 117.3 / 86.1 - 1.0);
    near(Some(change.requests), 600.0 / 90.0 - 1.0);
    near(Some(change.j_per_request), 195.5 / (86_100.0 / 90.0) - 1.0);
    assert!(
        change.rebound && change.words().contains("A rebound"),
        "{}",
        change.words()
    );
}

#[test]
fn the_load_curve_has_the_points_that_were_measured_and_no_other() {
    let plan = plan();
    let points: Vec<(f64, f64, f64, f64)> = plan
        .load_curve
        .iter()
        .map(|point| {
            (
                point.mean_in_flight,
                point.time_s,
                point.gpu_w,
                point.requests_per_s,
            )
        })
        .collect();
    assert_eq!(
        points,
        [
            (0.0, 120.0, 200.0, 0.0),
            (1.0, 180.0, 300.0, 0.5),
            (8.0, 300.0, 360.0, 2.0)
        ]
    );
    let tokens: Vec<Option<f64>> = plan
        .load_curve
        .iter()
        .map(|point| point.j_per_output_token)
        .collect();
    assert_eq!(tokens[0], None);
    near(tokens[1], 12.0);
    near(tokens[2], 0.9);
}

#[test]
fn headroom_is_the_limit_less_the_busiest_seconds_and_the_busiest_minute_is_what_fits() {
    let power = plan().power;
    assert_eq!(power.gpus.len(), 2);
    assert_eq!(power.gpus[0].limit_w, Some(400.0));
    near(power.gpus[0].mean_w, 210.0);
    near(power.gpus[0].p99_1s_w, 260.0);
    near(power.gpus[0].stranded_w, 140.0);
    near(power.gpus[1].p99_1min_w, 100.0);
    let all = power.all.unwrap();
    assert_eq!(all.limit_w, Some(800.0));
    near(all.p99_1s_w, 360.0);
    let minute = power.busiest_minute.unwrap();
    assert_eq!(
        (minute.requests_per_s, minute.gpu_w, minute.from_s),
        (2.0, 360.0, 300.0)
    );
    near(Some(minute.more_requests_ratio), 2.0 / 1.15 - 1.0);
}

#[test]
fn time_in_which_nobody_looked_is_not_covered_and_no_half_with_it_is_compared() {
    let blind = |booked: Booked| match booked {
        Booked::Interval(mut interval) if interval.from < at(100) => {
            interval.accounts = Accounts {
                gap: interval.accounts.total(),
                ..Accounts::default()
            };
            Some(Booked::Interval(interval))
        }
        other => Some(other),
    };
    let plan = plan_of(blind);
    near(Some(plan.coverage[0].booked_ratio), 500.0 / 600.0);
    assert_eq!(plan.trend.change, None);
    assert_eq!(plan.totals.measured_j, Some(203_400.0), "the counter ran");
    assert_eq!(
        plan.load_curve[0].time_s, 20.0,
        "what it drew at which load is not known"
    );
    let quiet = plan
        .savings
        .iter()
        .find(|saving| saving.name == "quiet_gpus")
        .unwrap();
    near(quiet.amount.energy_kwh, 70.0 * 500.0 / 3.6e6);
}

#[test]
fn without_an_idle_floor_there_is_no_idle_share() {
    let floorless = |booked: Booked| match booked {
        Booked::Interval(mut interval) => {
            interval.accounts.unattributed += interval.accounts.idle;
            interval.accounts.idle = Microjoules::ZERO;
            Some(Booked::Interval(interval))
        }
        other => Some(other),
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    ten_minutes(&file, floorless);
    let writer = Connection::open(&file).unwrap();
    writer
        .execute_batch("UPDATE floors SET watts = NULL, source = 'none'")
        .unwrap();
    drop(writer);
    let report = read(&file, FullEnergy::default(), &Inputs::default()).unwrap();
    assert_eq!(report.planner.unwrap().shares.gpu_idle, None);
}

#[test]
fn what_the_host_did_what_held_clocks_down_and_what_was_lost_is_in_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    ten_minutes(&file, Some);
    let before = read(&file, FullEnergy::default(), &Inputs::default()).unwrap();
    assert_eq!(before.losses.requests, None);
    assert!(before.planner.unwrap().throttled_s.is_empty());
    assert_eq!(before.services[0].cpu_s, None);

    let writer = Connection::open(&file).unwrap();
    writer
        .execute_batch(
            "INSERT INTO host VALUES
                (0, 0, 1, 2000000000, 500000000, 0, 0, 0, 3000000000, 0, 0, 0, 8, 9),
                (0, 1, 2, 1000000000, 500000000, 0, 0, 0, 0, 0, 0, 0, 1, 1);
            INSERT INTO starved VALUES (0, 1, 'run_queue', 0), (0, 1, 'futex', 250000000);
            INSERT INTO throttled VALUES (0, 1, 'sw_power_cap', 1500000000), (0, 2, 'sw_power_cap', 500000000),
                (0, 1, 'hw_thermal', 0);
            INSERT INTO meta VALUES ('events_lost', '3'), ('requests_lost', '2'), ('kernel', '6.1.0')",
        )
        .unwrap();
    drop(writer);
    let report = read(&file, FullEnergy::default(), &Inputs::default()).unwrap();
    let service = &report.services[0];
    assert_eq!((service.cpu_s, service.run_queue_s), (Some(3.0), Some(1.0)));
    assert_eq!(service.off_cpu_s.as_ref().unwrap()["futex"], 3.0);
    let starved = service.gpu_starved_s.clone().unwrap();
    assert_eq!((starved["run_queue"], starved["futex"]), (0.0, 0.25));
    assert_eq!(
        (report.losses.events, report.losses.requests),
        (Some(3), Some(2))
    );
    let plan = report.planner.as_ref().unwrap();
    assert_eq!(plan.throttled_s["GPU-0"]["sw_power_cap"], 2.0);
    assert_eq!(plan.environment["kernel"], "6.1.0");
    let page = report.to_markdown("a.pj");
    assert!(page.contains(r"| GPU-0 sw\_power\_cap | 2.000 |"), "{page}");
    assert!(!page.contains("thermal"), "{page}");
}
