//! The rules by which energy is shared: symmetry, null player, additivity.

use std::collections::HashMap;

use proptest::prelude::*;

use profiler::clock::Timestamp;
use profiler::ledger::*;

use crate::world::{at, meter, reading, request};

/// A streamed request as it has ended, its chunks told one by one.
#[derive(Debug, Clone)]
struct Stream {
    id: u64,
    service: u32,
    start: u64,
    first: u64,
    chunks_at: Vec<u64>,
}

fn tell(ledger: &mut Ledger, stream: &Stream) {
    let mut told = request(stream.id, stream.service, stream.start);
    ledger.apply(Event::Request {
        at: at(stream.start),
        request: told,
    });
    told.streamed = true;
    told.first_data = Some(at(stream.first));
    for (sent, &chunk) in std::iter::once(&stream.first)
        .chain(&stream.chunks_at)
        .enumerate()
    {
        told.last_data = Some(at(chunk));
        told.chunks = sent as u64 + 1;
        ledger.apply(Event::Request {
            at: at(chunk),
            request: told,
        });
    }
    let end = stream.chunks_at.last().copied().unwrap_or(stream.first);
    told.end = Some(End {
        at: at(end),
        outcome: Outcome::Done,
    });
    ledger.apply(Event::Request {
        at: at(end),
        request: told,
    });
}

fn config() -> Config {
    Config {
        cpu: false,
        ..Config::default()
    }
}

/// µJ of each request, on GPUs with readings (ms, µJ).
fn energies(streams: &[Stream], gpus: &[Vec<(u64, u64)>]) -> HashMap<u64, u64> {
    let mut ledger = Ledger::new(config());
    for readings in gpus {
        let id = ledger.add_meter(meter(Component::Gpu, Some(0.0)));
        for &(millis, energy) in readings {
            ledger.apply(reading(id, millis, energy));
        }
    }
    streams.iter().for_each(|stream| tell(&mut ledger, stream));
    ledger.apply(Event::RequestsUntil(at(60_000)));
    let mut booked = ledger.advance(at(60_000));
    booked.extend(ledger.finish(at(60_001)));
    booked
        .into_iter()
        .filter_map(|booked| match booked {
            Booked::Request(booked) => Some((booked.request.id.0, booked.gpu?.0)),
            _ => None,
        })
        .collect()
}

fn chunk_times() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(1..60_u64, 1..40).prop_map(|gaps| {
        let mut now = 500;
        gaps.into_iter()
            .map(|gap| {
                now += gap;
                now
            })
            .collect()
    })
}

fn counter(deltas: &[u64], every: u64) -> Vec<(u64, u64)> {
    let mut energy = 1_000_000;
    let mut readings = vec![(0, energy)];
    for (tick, delta) in deltas.iter().enumerate() {
        energy += delta;
        readings.push(((tick as u64 + 1) * every, energy));
    }
    readings
}

proptest! {
    #[test]
    fn equal_requests_get_equal_energy(
        chunks_at in chunk_times(),
        others in chunk_times(),
        deltas in prop::collection::vec(0..60_000_000_u64, 30),
        copies in 2..6_u64,
        services in 1..3_u32,
    ) {
        let mut streams: Vec<Stream> = (0..copies)
            .map(|id| Stream { id, service: 0, start: 400, first: 500, chunks_at: chunks_at.clone() })
            .collect();
        streams.push(Stream { id: 99, service: services - 1, start: 100, first: 200, chunks_at: others });
        let energies = energies(&streams, &[counter(&deltas, 100)]);
        let copies: Vec<u64> = (0..copies).map(|id| energies[&id]).collect();
        let (least, most) = (copies.iter().min(), copies.iter().max());
        prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{:?}", copies);
    }

    #[test]
    fn who_only_waits_beside_others_gets_nothing(
        chunks_at in chunk_times(),
        deltas in prop::collection::vec(0..60_000_000_u64, 40),
    ) {
        // The second queues while the first decodes in every interval, and is read afterwards.
        let mut dense: Vec<u64> = (11..=50).map(|step| step * 50).collect();
        dense.extend(chunks_at.iter().map(|at| at + 2_000));
        dense.sort_unstable();
        let last = dense.last().copied().unwrap_or(0);
        let first = Stream { id: 0, service: 0, start: 450, first: 500, chunks_at: dense };
        let waits = Stream {
            id: 1, service: 1, start: 600, first: last + 5_000, chunks_at: Vec::new(),
        };
        let quiet_later = counter(&deltas, 100);
        let energies = energies(&[first, waits], &[quiet_later[..24].to_vec()]);
        prop_assert_eq!(energies[&1], 0);
        let all: u64 = deltas[..23].iter().sum();
        // Before anything is in flight nobody pays.
        prop_assert!(energies[&0] <= all);
        prop_assert_eq!(energies[&0], deltas[4..23].iter().sum::<u64>());
    }

    #[test]
    fn energy_of_two_counters_is_shared_as_the_energy_of_one(
        chunks_at in chunk_times(),
        others in chunk_times(),
        one in prop::collection::vec(0..20_000_000_u64, 30),
        two in prop::collection::vec(0..20_000_000_u64, 30),
    ) {
        let streams = [
            Stream { id: 0, service: 0, start: 400, first: 500, chunks_at },
            Stream { id: 1, service: 0, start: 300, first: 450, chunks_at: others },
        ];
        let both: Vec<u64> = one.iter().zip(&two).map(|(one, two)| one + two).collect();
        // κ is learned per meter and would differ.
        let apart = energies(&streams, &[counter(&one, 100), counter(&two, 100)]);
        let together = energies(&streams, &[counter(&both, 100)]);
        let sum = |energies: &HashMap<u64, u64>| energies.values().sum::<u64>();
        prop_assert_eq!(sum(&apart), sum(&together));
        for id in 0..2 {
            let (apart, together) = (apart[&id] as f64, together[&id] as f64);
            prop_assert!((apart - together).abs() <= 0.2 * together + 2_000_000.0);
        }
    }

    #[test]
    fn steady_decode_may_be_cut_into_intervals_anywhere(
        cuts in prop::collection::btree_set(1..200_u64, 0..20),
        speeds in (1..6_u64, 1..6_u64),
    ) {
        // Both stream steadily from before the first reading to after the last: 5 ms grid, power
        // constant, so the shares are those of the whole, wherever it is cut at a common step.
        let stream = |id, speed: u64| Stream {
            id, service: 0, start: 0, first: 100,
            chunks_at: (1..=400).flat_map(|step| vec![100 + step * 20; speed as usize]).collect(),
        };
        let streams = [stream(0, speeds.0), stream(1, speeds.1)];
        let edge = |cut: u64| 500 + cut * 20 + 10;
        let mut readings = vec![(edge(0), 1_000_000)];
        readings.extend(cuts.iter().map(|&cut| (edge(cut), 1_000_000 + cut * 4_000_000)));
        readings.push((edge(200), 1_000_000 + 200 * 4_000_000));
        let whole = [(edge(0), 1_000_000), (edge(200), 1_000_000 + 200 * 4_000_000)];
        let cut = energies_unstale(&streams, &readings);
        let whole = energies_unstale(&streams, &whole);
        for id in 0..2 {
            prop_assert!(cut[&id].abs_diff(whole[&id]) <= 30, "{:?} {:?}", cut, whole);
        }
        let exact = 800_000_000.0 * speeds.0 as f64 / (speeds.0 + speeds.1) as f64;
        prop_assert!((whole[&0] as f64 - exact).abs() < 10.0);
    }
}

/// The same where nothing goes stale.
fn energies_unstale(streams: &[Stream], readings: &[(u64, u64)]) -> HashMap<u64, u64> {
    let mut ledger = Ledger::new(config());
    let slow = Meter {
        stale_after: 60_000_000_000,
        ..meter(Component::Gpu, Some(0.0))
    };
    let id = ledger.add_meter(slow);
    readings
        .iter()
        .for_each(|&(millis, energy)| ledger.apply(reading(id, millis, energy)));
    streams.iter().for_each(|stream| tell(&mut ledger, stream));
    ledger.apply(Event::RequestsUntil(at(60_000)));
    let booked = ledger.finish(at(60_000));
    let requests = booked.into_iter().filter_map(|booked| match booked {
        Booked::Request(booked) => Some((booked.request.id.0, booked.gpu?.0)),
        _ => None,
    });
    requests.collect()
}

#[test]
fn a_client_that_leaves_early_is_aborted_and_still_charged() {
    let mut ledger = Ledger::new(config());
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    for tick in 0..20_u64 {
        ledger.apply(reading(id, tick * 100, tick * 30_000_000));
    }
    let mut left = request(1, 0, 500);
    left.end = Some(End {
        at: at(900),
        outcome: Outcome::Aborted,
    });
    ledger.apply(Event::Request {
        at: at(950),
        request: left,
    });
    ledger.apply(Event::RequestsUntil(at(3_000)));
    let booked = ledger.advance(at(3_000));
    let joules: Vec<u64> = booked
        .iter()
        .filter_map(|booked| match booked {
            Booked::Request(booked) => booked.gpu.map(|gpu| gpu.0),
            _ => None,
        })
        .collect();
    // Four intervals of 30 J, less 5 J of idle each.
    assert_eq!(joules, [4 * 25_000_000]);
}

#[test]
fn an_interval_waits_two_seconds_for_first_data_and_no_longer() {
    let mut ledger = Ledger::new(config());
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    ledger.apply(reading(id, 0, 0));
    ledger.apply(reading(id, 100, 20_000_000));
    ledger.apply(Event::Request {
        at: at(60),
        request: request(1, 0, 50),
    });
    let closes = |ledger: &mut Ledger, millis: u64| {
        ledger.apply(Event::RequestsUntil(at(millis)));
        ledger.advance(at(millis)).len()
    };
    assert_eq!(closes(&mut ledger, 150), 0);
    assert_eq!(closes(&mut ledger, 2_099), 0);
    assert_eq!(closes(&mut ledger, 2_100), 1);
}

#[test]
fn with_nothing_in_flight_an_interval_closes_at_once() {
    let mut ledger = Ledger::new(config());
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    ledger.apply(reading(id, 0, 0));
    ledger.apply(reading(id, 100, 20_000_000));
    ledger.apply(Event::RequestsUntil(at(101)));
    assert_eq!(ledger.advance(at(101)).len(), 1);
}

#[test]
fn a_request_is_charged_only_on_gpus_that_its_service_holds() {
    let mut ledger = Ledger::new(config());
    let ids = [0, 1].map(|_| ledger.add_meter(meter(Component::Gpu, Some(0.0))));
    for (id, services) in ids
        .into_iter()
        .zip([vec![ServiceId(0)], vec![ServiceId(1)]])
    {
        ledger.apply(Event::Holders(Holders {
            meter: id,
            at: at(0),
            services,
            others: 0,
            instances: Vec::new(),
        }));
        for tick in 0..20_u64 {
            ledger.apply(reading(id, tick * 100, tick * 10_000_000));
        }
    }
    tell(
        &mut ledger,
        &Stream {
            id: 5,
            service: 0,
            start: 200,
            first: 300,
            chunks_at: vec![400, 500],
        },
    );
    ledger.apply(Event::RequestsUntil(at(5_000)));
    let mut overhead = [0; 2];
    let mut requests = [0; 2];
    for booked in ledger.advance(at(5_000)) {
        if let Booked::Interval(interval) = booked {
            overhead[interval.meter.0 as usize] += interval.accounts.overhead.0;
            requests[interval.meter.0 as usize] += interval.accounts.requests.0;
        }
    }
    assert_eq!(requests, [30_000_000, 0]);
    assert_eq!(overhead, [160_000_000, 190_000_000]);
}

#[test]
fn a_reset_and_an_absurd_jump_are_holes_and_never_energy() {
    let mut ledger = Ledger::new(config());
    let id = ledger.add_meter(meter(Component::Gpu, Some(0.0)));
    for (millis, energy) in [
        (0, 9_000_000),
        (100, 10_000_000),
        (200, 5_000_000),
        (300, 6_000_000),
        (400, u64::MAX),
    ] {
        ledger.apply(reading(id, millis, energy));
    }
    ledger.apply(Event::RequestsUntil(Timestamp(u64::MAX)));
    let booked = ledger.advance(at(1_000));
    let reasons: Vec<&str> = booked
        .iter()
        .filter_map(|booked| match booked {
            Booked::Hole { reason, .. } => Some(*reason),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, ["reset", "refused"]);
    assert_eq!((ledger.refused(), ledger.residual_microjoules(id)), (1, 0));
}
