//! The ledger adds up, whatever it is told and whenever it is asked.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use profiler::clock::Timestamp;
use profiler::ledger::*;

use crate::world::{World, at, world};

/// `between`: what happens to the ledger behind each advance, the number of which is told.
fn run(world: &World, between: impl Fn(&mut Ledger, u32)) -> Vec<Booked> {
    let mut ledger = Ledger::new(Config::default());
    let meters: Vec<MeterId> = world
        .meters()
        .into_iter()
        .map(|meter| ledger.add_meter(meter))
        .collect();
    let mut booked = Vec::new();
    let (mut now, mut advances) = (0, 0);
    for (heard, event) in world.facts() {
        if heard >= now + 100 {
            now = heard;
            booked.extend(ledger.advance(at(now)));
            advances += 1;
            between(&mut ledger, advances);
        }
        ledger.apply(event);
    }
    booked.extend(ledger.finish(at(now + 100)));
    between(&mut ledger, advances + 1);
    for meter in meters {
        assert_eq!(ledger.residual_microjoules(meter), 0);
    }
    assert!(
        ledger.finish(at(now + 200)).is_empty(),
        "nothing is left after the end"
    );
    booked
}

/// µJ that readings say the counter of each meter ran, holes left out: told independently of the
/// ledger, from the facts in the order in which it hears them.
fn counted(world: &World) -> HashMap<MeterId, i128> {
    let mut last: HashMap<MeterId, Reading> = HashMap::new();
    let mut sums = HashMap::new();
    for (_, event) in world.facts() {
        let Event::Reading(reading) = event else {
            continue;
        };
        let Some(before) = last.get(&reading.meter).copied() else {
            last.insert(reading.meter, reading);
            continue;
        };
        if reading.until <= before.until {
            continue;
        }
        last.insert(reading.meter, reading);
        let delta = i128::from(reading.energy.0) - i128::from(before.energy.0);
        let seconds = reading.until.seconds_since(before.until) + 0.1;
        if delta >= 0 && delta as f64 <= 1.2 * 700.0 * seconds * 1e6 {
            *sums.entry(reading.meter).or_insert(0) += delta;
        }
    }
    sums
}

fn by_phase(phases: Option<GpuPhases>) -> [i128; 3] {
    let GpuPhases {
        prefill,
        decode,
        wait,
    } = phases.unwrap_or_default();
    [prefill, decode, wait].map(|phase| i128::from(phase.0))
}

/// All that was booked is what was counted, and a request's energy is its service's.
fn adds_up(world: &World, booked: &[Booked]) -> Result<(), TestCaseError> {
    let components: Vec<Component> = world
        .meters()
        .into_iter()
        .map(|meter| meter.component)
        .collect();
    let mut intervals: HashMap<MeterId, i128> = HashMap::new();
    let mut until: HashMap<MeterId, Timestamp> = HashMap::new();
    let mut to_requests: HashMap<(Component, ServiceId), i128> = HashMap::new();
    let mut seen = HashSet::new();
    // Of each service, what its intervals had of each phase, less what its requests had.
    let mut phases: HashMap<ServiceId, [i128; 3]> = HashMap::new();
    let mut roundings = 0;
    for booked in booked {
        match booked {
            Booked::Interval(interval) => {
                prop_assert_eq!(interval.accounts.total(), interval.energy);
                prop_assert!(interval.from < interval.to);
                let before = until.insert(interval.meter, interval.to);
                prop_assert!(before.is_none_or(|before| before <= interval.from));
                let requests: u64 = interval.services.iter().map(|s| s.requests.0).sum();
                let overhead: u64 = interval.services.iter().map(|s| s.overhead.0).sum();
                prop_assert_eq!(requests, interval.accounts.requests.0);
                prop_assert_eq!(overhead, interval.accounts.overhead.0);
                *intervals.entry(interval.meter).or_default() += i128::from(interval.energy.0);
                let component = components[interval.meter.0 as usize];
                for share in &interval.services {
                    *to_requests.entry((component, share.service)).or_default() +=
                        i128::from(share.requests.0);
                    roundings += 1;
                    let left = phases.entry(share.service).or_default();
                    for (left, phase) in left.iter_mut().zip(by_phase(share.phases)) {
                        *left += phase;
                    }
                }
            }
            Booked::Request(request) => {
                prop_assert!(seen.insert(request.request.id), "booked twice");
                let parts = [
                    (Component::Gpu, request.gpu),
                    (Component::Cpu, request.cpu),
                    (Component::Dram, request.dram),
                ];
                for (component, part) in parts {
                    let part = part.map_or(0, |part| i128::from(part.0));
                    *to_requests
                        .entry((component, request.request.service))
                        .or_default() -= part;
                    if request.request.route == Route::Health {
                        prop_assert_eq!(part, 0);
                    }
                }
                prop_assert_eq!(request.gpu.is_some(), request.phases.is_some());
                let parts = by_phase(request.phases);
                let whole = request.gpu.map_or(0, |gpu| i128::from(gpu.0));
                prop_assert!(parts.iter().sum::<i128>() <= whole, "{request:?}");
                roundings += 1;
                let left = phases.entry(request.request.service).or_default();
                for (left, phase) in left.iter_mut().zip(parts) {
                    *left -= phase;
                }
                prop_assert!(
                    request
                        .error_ratio()
                        .is_none_or(|ratio| (0.0..=1.0).contains(&ratio))
                );
            }
            Booked::Hole { from, to, .. } => prop_assert!(from < to),
        }
    }
    for (whose, left) in to_requests {
        prop_assert_eq!(left, 0, "{:?}", whose);
    }
    for (whose, left) in phases {
        for phase in left {
            prop_assert!(
                phase.abs() <= 4 * roundings,
                "{whose:?}: {left:?}, {roundings}"
            );
        }
    }
    let counted: HashMap<MeterId, i128> = counted(world)
        .into_iter()
        .filter(|(_, sum)| *sum > 0)
        .collect();
    intervals.retain(|_, sum| *sum > 0);
    prop_assert_eq!(intervals, counted);
    let mut told: HashSet<RequestId> = HashSet::new();
    for (_, event) in world.facts() {
        if let Event::Request { request, .. } = event {
            told.insert(request.id);
        }
    }
    if world.any_order.is_none() {
        prop_assert_eq!(seen, told, "every request that was told is booked once");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_account_and_every_request_adds_up(world in world()) {
        let booked = run(&world, |ledger, _| assert_eq!(ledger.total_residual_microjoules(), 0));
        adds_up(&world, &booked)?;
    }

    #[test]
    fn services_that_are_forgotten_at_any_moment_lose_nothing(world in world(), seed in 0..7_u32) {
        let booked = run(&world, |ledger, advances| {
            ledger.forget_service(ServiceId((advances + seed) % 3));
            assert_eq!(ledger.total_residual_microjoules(), 0);
        });
        adds_up(&world, &booked)?;
    }

    #[test]
    fn when_sources_are_heard_does_not_matter(world in world()) {
        // Within what an interval waits for, only the facts count. On a board that is split that is a
        // sample's second, too.
        let (wait, late) = if world.split.is_some() { (400, 500) } else { (900, 1_000) };
        let on_time = World {
            late: [0; 4], any_order: None, told: 1.0,
            lives: world.lives.iter().cloned().map(|mut life| {
                life.wait %= wait;
                life.streamed = true;
                life
            }).collect(),
            ticks: world.ticks.iter().map(|ticks| {
                ticks.iter().copied().filter(|tick| {
                    !matches!(tick, crate::world::Tick::Unseen(_))
                }).collect()
            }).collect(),
            on_cpu: vec![(2, 7_000_000); 60],
            losses: Vec::new(),
            ..world.clone()
        };
        let late = World { late: world.late.map(|by| by % late), ..on_time.clone() };
        let sum = |world: &World| {
            let mut sums: Vec<(RequestId, i64)> = run(world, |_, _| {}).iter().filter_map(|booked| {
                match booked {
                    Booked::Request(booked) => Some((
                        booked.request.id,
                        booked.gpu.map_or(0, |gpu| gpu.0 as i64),
                    )),
                    _ => None,
                }
            }).collect();
            sums.sort();
            sums
        };
        let (on_time, late) = (sum(&on_time), sum(&late));
        prop_assert_eq!(on_time.len(), late.len());
        for (a, b) in on_time.into_iter().zip(late) {
            prop_assert_eq!(a.0, b.0);
            // How far chunks have been told when a prefill step is resolved moves the learned
            // decode step a little.
            prop_assert!((a.1 - b.1).abs() as f64 <= 20.0 + 0.01 * a.1 as f64, "{:?} {:?}", a, b);
        }
    }
}
