//! Where energy goes that is nobody's request, and how figures are classed.

use profiler::ledger::*;
use profiler::units::{Microjoules, Watts};

use crate::world::{at, meter, reading, request};

/// Sums of the accounts of each meter's intervals.
fn accounts(booked: &[Booked], meter: MeterId) -> Accounts {
    let mut sum = Accounts::default();
    for booked in booked {
        if let Booked::Interval(interval) = booked
            && interval.meter == meter
        {
            let Accounts {
                idle,
                context,
                requests,
                overhead,
                other,
                agent,
                unattributed,
                gap,
            } = interval.accounts;
            sum.idle += idle;
            sum.context += context;
            sum.requests += requests;
            sum.overhead += overhead;
            sum.other += other;
            sum.agent += agent;
            sum.unattributed += unattributed;
            sum.gap += gap;
        }
    }
    sum
}

fn holders(meter: MeterId, millis: u64, services: &[u32], others: u32) -> Event {
    let services = services.iter().copied().map(ServiceId).collect();
    Event::Holders(Holders {
        meter,
        at: at(millis),
        services,
        others,
        instances: Vec::new(),
    })
}

fn shares(meter: MeterId, millis: u64, services: f64, others: f64) -> Event {
    Event::Shares(Shares {
        meter,
        at: at(millis),
        busy: Busy::Processes { services, others },
    })
}

fn gpu_only() -> Config {
    Config {
        cpu: false,
        ..Config::default()
    }
}

/// One GPU at a fixed floor of 50 W that draws 80 W for two seconds in which nothing is in
/// flight.
fn nothing_in_flight(more: impl Fn(MeterId) -> Vec<Event>) -> Accounts {
    let mut ledger = Ledger::new(gpu_only());
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    more(id).into_iter().for_each(|event| ledger.apply(event));
    (0..=20).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 8_000_000)));
    ledger.apply(Event::RequestsUntil(at(2_100)));
    accounts(&ledger.advance(at(2_100)), id)
}

const IDLE: Microjoules = Microjoules(100_000_000);
const ABOVE: Microjoules = Microjoules(60_000_000);

#[test]
fn with_nothing_in_flight_the_service_that_holds_the_gpu_pays_overhead() {
    let sum = nothing_in_flight(|id| vec![holders(id, 0, &[3], 1)]);
    assert_eq!(
        sum,
        Accounts {
            idle: IDLE,
            overhead: ABOVE,
            ..Accounts::default()
        }
    );
}

#[test]
fn with_nothing_in_flight_a_foreign_process_is_other() {
    let sum = nothing_in_flight(|id| vec![holders(id, 0, &[], 1)]);
    assert_eq!(
        sum,
        Accounts {
            idle: IDLE,
            other: ABOVE,
            ..Accounts::default()
        }
    );
}

#[test]
fn energy_with_no_known_user_is_unattributed() {
    let unattributed = Accounts {
        idle: IDLE,
        unattributed: ABOVE,
        ..Accounts::default()
    };
    assert_eq!(nothing_in_flight(|_| Vec::new()), unattributed);
    assert_eq!(
        nothing_in_flight(|id| vec![holders(id, 0, &[], 0)]),
        unattributed
    );
}

#[test]
fn energy_while_requests_were_lost_is_no_overhead() {
    let sum = nothing_in_flight(|id| {
        vec![
            holders(id, 0, &[3], 0),
            Event::RequestsLost {
                at: at(1_050),
                count: 1,
            },
        ]
    });
    assert!(sum.unattributed.0 >= 3_000_000, "{sum:?}");
    assert_eq!(sum.unattributed + sum.overhead, ABOVE);
}

#[test]
fn a_counter_that_nobody_looked_at_is_a_gap() {
    let mut ledger = Ledger::new(gpu_only());
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    ledger.apply(reading(id, 0, 0));
    ledger.apply(reading(id, 5_000, 400_000_000));
    ledger.apply(Event::RequestsUntil(at(6_000)));
    let sum = accounts(&ledger.advance(at(6_000)), id);
    assert_eq!(
        sum,
        Accounts {
            gap: Microjoules(400_000_000),
            ..Accounts::default()
        }
    );
}

#[test]
fn an_open_context_is_told_from_the_bare_device() {
    let mut ledger = Ledger::new(gpu_only());
    let id = ledger.add_meter(meter(Component::Gpu, None));
    ledger.apply(holders(id, 0, &[], 0));
    ledger.apply(holders(id, 3_000, &[1], 0));
    let mut energy = 0;
    for tick in 0..=80_u64 {
        ledger.apply(reading(id, tick * 100, energy));
        energy += if tick < 30 { 5_000_000 } else { 9_000_000 };
    }
    ledger.apply(Event::RequestsUntil(at(8_100)));
    let booked = ledger.advance(at(8_100));
    let last = booked.iter().rev().find_map(|booked| match booked {
        Booked::Interval(interval) => Some(interval.accounts),
        _ => None,
    });
    let expected = Accounts {
        idle: Microjoules(5_000_000),
        context: Microjoules(4_000_000),
        ..Accounts::default()
    };
    assert_eq!(last, Some(expected));
    assert!(
        ledger
            .floor(id)
            .is_some_and(|floor| (floor.watts.0 - 50.0).abs() < 0.01)
    );
}

#[test]
fn a_quiet_device_teaches_its_floor_within_three_seconds() {
    let mut ledger = Ledger::new(gpu_only());
    let id = ledger.add_meter(meter(Component::Gpu, None));
    assert_eq!(ledger.floor(id), None);
    let mut energy = 0;
    for tick in 0..=30_u64 {
        ledger.apply(reading(id, tick * 100, energy));
        // 83 W, up and down by 8 W.
        energy += 8_300_000 + [800_000, 0, 0, 800_000][tick as usize % 4] - 400_000;
    }
    ledger.apply(Event::RequestsUntil(at(3_100)));
    ledger.advance(at(3_100));
    let floor = ledger.floor(id);
    assert!(
        floor.is_some_and(|floor| (floor.watts.0 - 83.0).abs() < 0.5),
        "{floor:?}"
    );
    assert_eq!(floor.map(|floor| floor.source), Some(FloorSource::Learned));
}

/// A package at 40 W above a floor of 10 W for one second; owners' on-CPU time as given.
fn package(owners: &[(Owner, u64)], source: Source) -> (Vec<Booked>, [MeterId; 2]) {
    let mut ledger = Ledger::new(Config::default());
    let [cpu, dram] = [Component::Cpu, Component::Dram].map(|part| {
        ledger.add_meter(Meter {
            source,
            ..meter(part, Some(10.0))
        })
    });
    for id in [cpu, dram] {
        (0..=10).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 5_000_000)));
    }
    let mut served = request(1, 0, 0);
    served.first_data = Some(at(500));
    served.last_data = Some(at(1_000));
    served.end = Some(End {
        at: at(1_000),
        outcome: Outcome::Done,
    });
    ledger.apply(Event::Request {
        at: at(1_000),
        request: served,
    });
    for &(owner, on_cpu) in owners {
        let time = CpuTime {
            owner,
            from: at(0),
            to: at(1_000),
            package: 0,
            on_cpu,
            cycles: None,
        };
        ledger.apply(Event::Cpu(time));
    }
    ledger.apply(Event::RequestsUntil(at(1_100)));
    ledger.apply(Event::CpuUntil(at(1_100)));
    (ledger.advance(at(1_100)), [cpu, dram])
}

#[test]
fn time_on_another_package_costs_nothing_on_this_one() {
    let mut ledger = Ledger::new(Config::default());
    let packages = [0, 1].map(|number| {
        let id = ledger.add_meter(meter(Component::Cpu, Some(10.0)));
        ledger.set_package(id, number);
        (0..=10).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 5_000_000)));
        id
    });
    for (owner, package, on_cpu) in [
        (Owner::Other, 0, 900_000_000),
        (Owner::Agent, 1, 100_000_000),
    ] {
        ledger.apply(Event::Cpu(CpuTime {
            owner,
            from: at(0),
            to: at(1_000),
            package,
            on_cpu,
            cycles: None,
        }));
    }
    ledger.apply(Event::RequestsUntil(at(1_100)));
    ledger.apply(Event::CpuUntil(at(1_100)));
    let booked = ledger.advance(at(1_100));
    let [first, second] = packages.map(|id| accounts(&booked, id));
    let above_idle = Microjoules(40_000_000);
    assert_eq!((first.other, first.agent), (above_idle, Microjoules::ZERO));
    assert_eq!(
        (second.other, second.agent),
        (Microjoules::ZERO, above_idle)
    );
}

#[test]
fn cpu_energy_goes_by_on_cpu_time_and_memory_follows() {
    let owners = [
        (Owner::Service(ServiceId(0)), 400_000_000),
        (Owner::Service(ServiceId(9)), 200_000_000),
        (Owner::Other, 150_000_000),
        (Owner::Agent, 50_000_000),
    ];
    let (booked, meters) = package(&owners, Source::Counter);
    for id in meters {
        let sum = accounts(&booked, id);
        let expected = Accounts {
            idle: Microjoules(10_000_000),
            requests: Microjoules(20_000_000),
            overhead: Microjoules(10_000_000),
            other: Microjoules(7_500_000),
            agent: Microjoules(2_500_000),
            ..Accounts::default()
        };
        assert_eq!(sum, expected);
    }
    let request = booked.iter().find_map(|booked| match booked {
        Booked::Request(booked) => Some(*booked),
        _ => None,
    });
    let parts = request.map(|request| (request.gpu, request.cpu, request.dram, request.class));
    let each = Some(Microjoules(20_000_000));
    assert_eq!(parts, Some((None, each, each, Class::B)));
}

#[test]
fn cpu_energy_without_on_cpu_time_is_unattributed() {
    let (booked, [cpu, _]) = package(&[], Source::Counter);
    let sum = accounts(&booked, cpu);
    assert_eq!(
        (sum.unattributed, sum.requests),
        (Microjoules(40_000_000), Microjoules(0))
    );
}

#[test]
fn a_figure_that_rests_on_an_estimate_is_class_c() {
    let (booked, _) = package(&[(Owner::Service(ServiceId(0)), 1_000)], Source::Model);
    let class = booked.iter().find_map(|booked| match booked {
        Booked::Request(booked) => Some(booked.class),
        _ => None,
    });
    assert_eq!(class, Some(Class::C));
}

#[test]
fn a_silent_meter_keeps_no_request_from_being_booked() {
    let mut ledger = Ledger::new(gpu_only());
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    (0..=5).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 8_000_000)));
    let mut served = request(1, 0, 200);
    served.first_data = Some(at(800));
    served.last_data = Some(at(900));
    served.end = Some(End {
        at: at(900),
        outcome: Outcome::Done,
    });
    ledger.apply(Event::Request {
        at: at(900),
        request: served,
    });
    let mut booked_at = None;
    for now in (1_000..9_000).step_by(100) {
        ledger.apply(Event::RequestsUntil(at(now)));
        let booked = ledger.advance(at(now));
        if booked
            .iter()
            .any(|booked| matches!(booked, Booked::Request(_)))
        {
            booked_at = Some(now);
            break;
        }
    }
    assert!(booked_at.is_some_and(|now| now <= 3_000), "{booked_at:?}");
    // Back again: what it ran in between is a gap.
    ledger.apply(reading(id, 9_000, 900_000_000));
    ledger.apply(Event::RequestsUntil(at(9_100)));
    let sum = accounts(&ledger.advance(at(9_100)), id);
    assert_eq!(sum.gap, Microjoules(900_000_000 - 40_000_000));
}

#[test]
fn what_a_blind_gpu_did_not_measure_is_unknown_and_not_zero_and_is_no_other_services_error() {
    let mut ledger = Ledger::new(gpu_only());
    let [blind, seeing] = [(); 2].map(|()| ledger.add_meter(meter(Component::Gpu, Some(50.0))));
    ledger.apply(holders(blind, 0, &[0], 0));
    ledger.apply(holders(seeing, 0, &[1], 0));
    (0..=5).for_each(|tick| ledger.apply(reading(blind, tick * 100, tick * 8_000_000)));
    (0..=60).for_each(|tick| ledger.apply(reading(seeing, tick * 100, tick * 8_000_000)));
    for service in [0, 1] {
        let mut served = request(u64::from(service), service, 1_000);
        served.first_data = Some(at(3_000));
        served.last_data = Some(at(3_000));
        served.end = Some(End {
            at: at(3_000),
            outcome: Outcome::Done,
        });
        ledger.apply(Event::Request {
            at: at(3_000),
            request: served,
        });
    }
    ledger.apply(Event::RequestsUntil(at(6_000)));
    let booked = ledger.advance(at(6_000));
    let told: Vec<_> = booked
        .iter()
        .filter_map(|booked| match booked {
            Booked::Request(booked) => Some((booked.gpu, booked.error_ratio())),
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 2, "{booked:?}");
    assert_eq!(told[0], (None, None));
    // Two seconds at 30 W above idle.
    assert_eq!(told[1].0, Some(Microjoules(60_000_000)));
    assert!(told[1].1.is_some(), "{told:?}");
}

#[test]
fn what_services_contend_for_on_another_gpu_is_not_this_ones_doubt() {
    let error_beside = |others: &[u32]| {
        let mut ledger = Ledger::new(gpu_only());
        let [one, other] = [(); 2].map(|()| ledger.add_meter(meter(Component::Gpu, Some(50.0))));
        ledger.apply(holders(one, 0, &[0], 0));
        ledger.apply(holders(other, 0, others, 0));
        for id in [one, other] {
            (0..=50).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 30_000_000)));
        }
        for service in [&[0], others].concat() {
            let served = Request {
                first_data: Some(at(400)),
                last_data: Some(at(4_000)),
                streamed: true,
                chunks: 200,
                end: Some(End {
                    at: at(4_000),
                    outcome: Outcome::Done,
                }),
                ..request(u64::from(service), service, 200)
            };
            ledger.apply(Event::Request {
                at: at(4_000),
                request: served,
            });
        }
        ledger.apply(Event::RequestsUntil(at(5_000)));
        let booked = ledger.advance(at(5_000));
        let errors = booked.iter().filter_map(|booked| match booked {
            Booked::Request(booked) => Some((booked.request.service.0, booked.error_ratio()?)),
            _ => None,
        });
        errors.collect::<std::collections::BTreeMap<u32, f64>>()
    };
    let (alone, beside) = (error_beside(&[1]), error_beside(&[1, 2]));
    assert_eq!(alone[&0], beside[&0]);
    assert!(
        beside[&1] > alone[&1],
        "these contend: {beside:?} {alone:?}"
    );
}

#[test]
fn a_meter_that_is_added_under_load_shares_from_then_on() {
    let mut ledger = Ledger::new(gpu_only());
    let told = request(1, 0, 0);
    ledger.apply(Event::Request {
        at: at(100),
        request: told,
    });
    ledger.apply(Event::RequestsUntil(at(500)));
    ledger.advance(at(500));
    let id = ledger.add_meter(meter(Component::Gpu, Some(0.0)));
    (0..=5).for_each(|tick| ledger.apply(reading(id, 600 + tick * 100, tick * 8_000_000)));
    let mut served = told;
    served.first_data = Some(at(1_400));
    served.last_data = Some(at(1_400));
    served.end = Some(End {
        at: at(1_400),
        outcome: Outcome::Done,
    });
    ledger.apply(Event::Request {
        at: at(1_400),
        request: served,
    });
    ledger.apply(Event::RequestsUntil(at(1_500)));
    let mut booked = ledger.advance(at(1_500));
    booked.extend(ledger.finish(at(1_600)));
    let energy = booked.iter().find_map(|booked| match booked {
        Booked::Request(booked) => booked.gpu,
        _ => None,
    });
    assert_eq!(energy, Some(Microjoules(40_000_000)));
    assert_eq!(ledger.residual_microjoules(id), 0);
}

#[test]
fn a_limit_below_the_real_power_refuses_and_counts() {
    let mut ledger = Ledger::new(gpu_only());
    let low = Meter {
        limit: Some(Watts(10.0)),
        ..meter(Component::Gpu, Some(0.0))
    };
    let id = ledger.add_meter(low);
    (0..=5).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 8_000_000)));
    assert_eq!(ledger.refused(), 5);
    assert_eq!(ledger.residual_microjoules(id), 0);
}

#[test]
fn requests_of_a_service_that_is_not_mapped_yet_do_not_raise_the_floor() {
    let mut ledger = Ledger::new(gpu_only());
    let id = ledger.add_meter(meter(Component::Gpu, None));
    ledger.apply(holders(id, 0, &[], 1));
    ledger.apply(Event::Request {
        at: at(10),
        request: request(1, 0, 0),
    });
    (0..=20).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 30_000_000)));
    ledger.apply(Event::RequestsUntil(at(9_000)));
    ledger.advance(at(9_000));
    assert_eq!(ledger.floor(id), None);
}

/// A client's half-close and an idle time-out tell an end that lies behind what was told and
/// booked; a slot that was being written is told one poll late.
#[test]
fn what_is_told_behind_the_watermark_is_still_booked_once_and_adds_up() {
    let mut ledger = Ledger::new(gpu_only());
    let id = ledger.add_meter(meter(Component::Gpu, Some(0.0)));
    ledger.apply(holders(id, 0, &[0], 0));
    (0..=50).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 8_000_000)));
    let stalled = Request {
        first_data: Some(at(300)),
        last_data: Some(at(400)),
        streamed: true,
        chunks: 3,
        ..request(1, 0, 200)
    };
    let tell = |ledger: &mut Ledger, at, request| ledger.apply(Event::Request { at, request });
    tell(&mut ledger, at(400), stalled);
    let mut booked = Vec::new();
    for now in (500..=4_000).step_by(500) {
        ledger.apply(Event::RequestsUntil(at(now)));
        booked.extend(ledger.advance(at(now)));
    }
    let ended = |request: Request, millis, outcome| Request {
        end: Some(End {
            at: at(millis),
            outcome,
        }),
        ..request
    };
    // The time-out of the one that stalled.
    let given_up = ended(stalled, 400, Outcome::Incomplete);
    tell(&mut ledger, at(400), given_up);
    // Never seen alive, and over before the watermark.
    let unseen = ended(request(2, 0, 1_000), 1_200, Outcome::Done);
    tell(&mut ledger, at(1_200), unseen);
    // Seen alive too late, which is ignored; its end is not.
    tell(&mut ledger, at(3_500), request(3, 0, 3_500));
    assert_eq!(ledger.ignored(), 1);
    tell(
        &mut ledger,
        at(3_900),
        ended(request(3, 0, 3_500), 3_900, Outcome::Aborted),
    );
    ledger.apply(Event::RequestsUntil(at(4_500)));
    booked.extend(ledger.advance(at(4_500)));
    booked.extend(ledger.finish(at(5_000)));

    let requests = || {
        booked.iter().filter_map(|booked| match booked {
            Booked::Request(request) => Some(request),
            _ => None,
        })
    };
    let mut ids: Vec<u64> = requests().map(|booked| booked.request.id.0).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
    let given: Microjoules = requests().filter_map(|booked| booked.gpu).sum();
    assert_eq!(given, accounts(&booked, id).requests);
    assert!(given > Microjoules(0));
    assert_eq!(ledger.residual_microjoules(id), 0);
}

/// Attached to a busy node: every interval has the same request in it.
fn never_quiet(typical: Option<TypicalIdle>) -> (Vec<Booked>, MeterId, FloorSource) {
    let mut ledger = Ledger::new(gpu_only());
    let id = ledger.add_meter(meter(Component::Gpu, None));
    if let Some(typical) = typical {
        ledger.set_typical_idle(id, typical);
    }
    ledger.apply(holders(id, 0, &[0], 0));
    (0..=50).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 30_000_000)));
    let served = Request {
        first_data: Some(at(200)),
        last_data: Some(at(4_900)),
        streamed: true,
        chunks: 400,
        end: Some(End {
            at: at(4_900),
            outcome: Outcome::Done,
        }),
        ..request(1, 0, 0)
    };
    ledger.apply(Event::Request {
        at: at(4_900),
        request: served,
    });
    ledger.apply(Event::RequestsUntil(at(5_000)));
    let mut booked = ledger.advance(at(5_000));
    let source = ledger.floor(id).map(|floor| floor.source);
    booked.extend(ledger.finish(at(9_000)));
    assert_eq!(ledger.residual_microjoules(id), 0);
    (booked, id, source.unwrap_or(FloorSource::Fixed))
}

#[test]
fn a_device_that_is_never_quiet_has_the_floor_of_its_model_and_the_bound_says_so() {
    let typical = |error| TypicalIdle {
        source: FloorSource::Table,
        bare: Watts(70.0),
        parked: Watts(108.0),
        error: Watts(error),
    };
    let bound = |booked: &[Booked]| {
        booked.iter().find_map(|booked| match booked {
            Booked::Request(request) => request.error_ratio(),
            _ => None,
        })
    };
    let (booked, id, source) = never_quiet(Some(typical(15.0)));
    assert_eq!(source, FloorSource::Table);
    let sums = accounts(&booked, id);
    // 300 W for five seconds.
    assert_eq!(sums.idle, Microjoules(350_000_000));
    assert_eq!(sums.context, Microjoules(190_000_000));
    let known = bound(&booked).unwrap_or_default();
    // Twice 15 W of the 192 W that the request drew.
    assert!((0.15..0.3).contains(&known), "{known}");
    let exact = bound(&never_quiet(Some(typical(0.0))).0).unwrap_or_default();
    assert!(exact < 0.1, "{exact}");

    let (unknown, id, _) = never_quiet(None);
    assert_eq!(accounts(&unknown, id).idle, Microjoules(0));
    assert!(bound(&unknown).is_none_or(|bound| bound > known));
}

#[test]
fn a_process_that_serves_nothing_gets_its_part_by_how_busy_it_kept_the_gpu() {
    // Told as a driver does: once a second, of the time before.
    let told = |id, foreign| {
        [500, 1_500, 2_500]
            .map(|millis| shares(id, millis, 0.6, foreign))
            .to_vec()
    };
    let beside = |foreign: Option<f64>| {
        let mut ledger = Ledger::new(gpu_only());
        let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
        ledger.apply(holders(id, 0, &[0], 1));
        let told = foreign.map(|foreign| told(id, foreign)).unwrap_or_default();
        told.into_iter().for_each(|event| ledger.apply(event));
        (0..=20).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 8_000_000)));
        let whole = Request {
            first_data: Some(at(2_000)),
            last_data: Some(at(2_000)),
            end: Some(End {
                at: at(2_000),
                outcome: Outcome::Done,
            }),
            ..request(1, 0, 0)
        };
        ledger.apply(Event::Request {
            at: at(2_000),
            request: whole,
        });
        ledger.apply(Event::RequestsUntil(at(2_600)));
        let mut booked = ledger.advance(at(2_600));
        booked.extend(ledger.finish(at(2_700)));
        assert_eq!(ledger.residual_microjoules(id), 0);
        accounts(&booked, id)
    };
    let alone = beside(None);
    assert_eq!((alone.requests, alone.other), (ABOVE, Microjoules(0)));
    let shared = beside(Some(0.2));
    assert_eq!(shared.requests, Microjoules(45_000_000), "three quarters");
    assert_eq!(shared.other, Microjoules(15_000_000));
    assert_eq!(shared.idle, IDLE);

    let quiet = nothing_in_flight(|id| {
        let mut facts = vec![holders(id, 0, &[3], 1)];
        facts.extend(told(id, 0.2));
        facts
    });
    assert_eq!(quiet.overhead, Microjoules(45_000_000));
    assert_eq!(quiet.other, Microjoules(15_000_000));
}

#[test]
fn a_gpu_that_a_foreign_process_keeps_busy_is_not_quiet() {
    let floor = |foreign| {
        let mut ledger = Ledger::new(gpu_only());
        let id = ledger.add_meter(meter(Component::Gpu, None));
        ledger.apply(holders(id, 0, &[0], 1));
        for second in 0..=4 {
            ledger.apply(shares(id, second * 1_000 + 100, 0.0, foreign));
        }
        (0..=30).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 8_000_000)));
        ledger.apply(Event::RequestsUntil(at(3_100)));
        ledger.advance(at(3_100));
        ledger.floor(id)
    };
    assert!(floor(0.0).is_some());
    assert_eq!(floor(0.3), None);
}

#[test]
fn an_interval_waits_for_how_busy_the_gpu_was_kept_and_no_longer_than_for_first_data() {
    let mut ledger = Ledger::new(gpu_only());
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    ledger.apply(holders(id, 0, &[0], 1));
    ledger.apply(shares(id, 50, 0.5, 0.5));
    (0..=5).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 8_000_000)));
    ledger.apply(Event::RequestsUntil(at(600)));
    assert!(ledger.advance(at(600)).is_empty());
    ledger.apply(shares(id, 320, 0.5, 0.5));
    assert_eq!(ledger.advance(at(610)).len(), 3);
    // The driver has fallen silent.
    assert_eq!(ledger.advance(at(2_600)).len(), 2);
}
