//! A board that is split (MIG): its energy goes to its instances, all of it, once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use profiler::ledger::*;
use profiler::units::Microjoules;

use crate::world::{at, meter, reading, request};

/// One instance with one service of its own number on it, or with processes that serve nothing.
#[derive(Debug, Clone)]
struct Slot {
    slices: u32,
    activity: Option<f64>,
    /// The service's stream, by when it starts and ends, ms; a foreign process if there is none.
    stream: Option<(u64, u64)>,
}

fn busy_for(slices: u32, activity: Option<f64>) -> Slot {
    Slot {
        slices,
        activity,
        stream: Some((0, 5_000)),
    }
}

fn foreign(slices: u32, activity: Option<f64>) -> Slot {
    Slot {
        slices,
        activity,
        stream: None,
    }
}

fn instances(slots: &[Slot]) -> Vec<Instance> {
    let told = (0..).zip(slots).map(|(id, slot)| Instance {
        id,
        slices: slot.slices,
        activity: slot.activity,
    });
    told.collect()
}

fn told(meter: MeterId, from: u64, to: u64, slots: &[Slot]) -> Event {
    Event::Shares(Shares {
        meter,
        at: at(to),
        busy: Busy::Instances {
            from: at(from),
            instances: instances(slots),
        },
    })
}

fn held(meter: MeterId, slots: &[Slot]) -> Event {
    let served = |place: usize| slots[place].stream.map(|_| ServiceId(place as u32));
    let on = (0..slots.len()).map(|place| InstanceHolders {
        instance: place as u32,
        services: served(place).into_iter().collect(),
        others: u32::from(served(place).is_none()),
    });
    Event::Holders(Holders {
        meter,
        at: at(0),
        services: (0..slots.len()).filter_map(served).collect(),
        others: slots.iter().filter(|slot| slot.stream.is_none()).count() as u32,
        instances: on.collect(),
    })
}

/// A token every 20 ms, prompts of no length.
fn stream(id: u64, from: u64, to: u64) -> Vec<(u64, Event)> {
    let mut told = request(id, id as u32, from);
    told.streamed = true;
    let mut facts = vec![(
        from,
        Event::Request {
            at: at(from),
            request: told,
        },
    )];
    for now in (from..=to).step_by(20) {
        told.first_data = Some(at(from));
        told.last_data = Some(at(now));
        told.chunks += 1;
        facts.push((
            now,
            Event::Request {
                at: at(now),
                request: told,
            },
        ));
    }
    told.end = told.last_data.map(|at| End {
        at,
        outcome: Outcome::Done,
    });
    facts.push((
        to,
        Event::Request {
            at: at(to),
            request: told,
        },
    ));
    facts
}

/// A board's accounts, and each service's part of them.
#[derive(Debug, Default, PartialEq)]
struct Sums {
    accounts: [u64; 8],
    services: BTreeMap<u32, u64>,
    classes: Vec<Class>,
    bounds: Vec<Option<f64>>,
}

impl Sums {
    fn account(&self, name: &str) -> u64 {
        let place = Accounts::NAMES.iter().position(|known| *known == name);
        place.map_or(0, |place| self.accounts[place])
    }
}

fn sum(booked: Vec<Booked>) -> Sums {
    let mut sums = Sums::default();
    for booked in booked {
        match booked {
            Booked::Interval(interval) => {
                assert_eq!(interval.accounts.total(), interval.energy);
                for (sum, more) in sums.accounts.iter_mut().zip(interval.accounts.values()) {
                    *sum += more.0;
                }
                for share in interval.services {
                    let both = share.requests + share.overhead;
                    *sums.services.entry(share.service.0).or_default() += both.0;
                }
            }
            Booked::Request(request) => {
                sums.classes.push(request.class);
                sums.bounds.push(request.error_ratio());
            }
            Booked::Hole { .. } => {}
        }
    }
    sums
}

/// Five seconds of a board with a floor of 50 W, whose samples are told `late` ms after they end.
fn run(slots: &[Slot], deltas: &[u64], late: Option<u64>) -> Sums {
    let mut ledger = Ledger::new(Config {
        cpu: false,
        ..Config::default()
    });
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    let mut facts = vec![(0, held(id, slots)), (0, told(id, 0, 1, slots))];
    let mut energy = 0;
    for (tick, delta) in (0..=50_u64).zip([&0].into_iter().chain(deltas.iter().cycle())) {
        energy += delta;
        facts.push((tick * 100, reading(id, tick * 100, energy)));
    }
    for second in (0..5_u64).filter(|_| late.is_some()) {
        let (from, to) = (second * 1_000, second * 1_000 + 1_000);
        facts.push((to + late.unwrap_or(0), told(id, from, to, slots)));
    }
    for (service, slot) in (0..).zip(slots) {
        if let Some((from, to)) = slot.stream {
            facts.extend(stream(service, from, to));
        }
    }
    facts.sort_by_key(|(heard, _)| *heard);
    let mut booked = Vec::new();
    let mut now = 0;
    for (heard, event) in facts {
        if heard >= now + 50 {
            now = heard;
            ledger.apply(Event::RequestsUntil(at(now)));
            booked.extend(ledger.advance(at(now)));
            assert_eq!(ledger.residual_microjoules(id), 0);
        }
        ledger.apply(event);
    }
    ledger.apply(Event::RequestsUntil(at(8_000)));
    booked.extend(ledger.advance(at(8_000)));
    booked.extend(ledger.finish(at(8_100)));
    assert_eq!(ledger.residual_microjoules(id), 0);
    sum(booked)
}

/// 100 W above the floor, for five seconds.
const ABOVE: [u64; 1] = [15_000_000];
const ABOVE_SUM: u64 = 500_000_000;

fn slot() -> impl Strategy<Value = Slot> {
    let stream = prop::option::weighted(0.7, (0..4_000_u64, 20..3_000_u64));
    let activity = prop::option::weighted(0.9, prop_oneof![Just(0.0), 0.0..1.0_f64]);
    (1..5_u32, activity, stream).prop_map(|(slices, activity, stream)| Slot {
        slices,
        activity,
        stream: stream.map(|(from, length)| (from, (from + length).min(5_000))),
    })
}

/// To a microjoule an interval.
fn assert_near(sum: u64, expected: u64) {
    assert!(sum.abs_diff(expected) <= 50, "{sum} {expected}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn instances_add_up_to_their_board_whatever_is_told_of_them(
        slots in prop::collection::vec(slot(), 1..8),
        deltas in prop::collection::vec(0..60_000_000_u64, 1..50),
        late in prop::option::of(0..4_000_u64),
    ) {
        let sums = run(&slots, &deltas, late);
        let counted: u64 = deltas.iter().cycle().take(50).sum();
        prop_assert_eq!(sums.accounts.iter().sum::<u64>(), counted);
        let services: u64 = sums.services.values().sum();
        prop_assert_eq!(services, sums.account("requests") + sums.account("overhead"));
        prop_assert!(sums.classes.iter().all(|class| *class == Class::C), "{:?}", sums.classes);
    }

    #[test]
    fn equal_instances_get_equal_parts_and_one_that_does_nothing_gets_none(
        slices in 1..3_u32,
        activity in 0.05..1.0_f64,
        copies in 1..4_usize,
        deltas in prop::collection::vec(6_000_000..60_000_000_u64, 1..50),
    ) {
        let mut slots = vec![busy_for(slices, Some(activity)); copies];
        slots.push(foreign(slices, Some(0.0)));
        slots.push(busy_for(slices, Some(0.0)));
        let sums = run(&slots, &deltas, Some(100));
        let parts: Vec<u64> =
            (0..copies).map(|place| sums.services[&(place as u32)]).collect();
        let (least, most) = (parts.iter().min(), parts.iter().max());
        // One microjoule an interval, at most.
        prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 50), "{:?}", parts);
        prop_assert_eq!(sums.services[&(copies as u32 + 1)], 0);
        prop_assert_eq!(sums.account("other"), 0);
    }
}

#[test]
fn a_board_is_divided_by_slices_and_activity_and_then_by_requests() {
    let slots = [
        busy_for(1, Some(0.9)),
        busy_for(3, Some(0.3)),
        foreign(2, Some(0.1)),
    ];
    let sums = run(&slots, &ABOVE, Some(100));
    assert_eq!(sums.account("idle"), 250_000_000);
    assert_near(sums.services[&0], ABOVE_SUM * 9 / 20);
    assert_near(sums.services[&1], ABOVE_SUM * 9 / 20);
    assert_near(sums.account("other"), ABOVE_SUM * 2 / 20);
    // Of a half and more each is in doubt.
    let bound = sums.bounds[0].expect("below 1");
    assert!((0.4..0.7).contains(&bound), "{bound}");
}

#[test]
fn within_a_sample_an_instances_energy_lies_where_its_requests_were() {
    // Half of the time, so half as busy over each second as when it is at work.
    let mut half = busy_for(1, Some(0.4));
    half.stream = Some((500, 1_000));
    let slots = [half, busy_for(1, Some(0.8))];
    let sums = run(&slots, &ABOVE, Some(100));
    // In its half second it weighs as much as the other; in the seconds after it, it was as busy
    // with nothing in flight, which is overhead.
    let alone = ABOVE_SUM / 50 * 5;
    let beside = ABOVE_SUM / 50 * 5 / 2 + ABOVE_SUM / 50 * 40 / 3;
    let service = sums.services[&0];
    assert!(service.abs_diff(beside) < alone / 50, "{service} {beside}");
}

#[test]
fn late_samples_are_waited_for_and_lost_ones_are_not() {
    let slots = [busy_for(1, Some(0.9)), busy_for(1, Some(0.1))];
    let soon = run(&slots, &ABOVE, Some(0));
    let late = run(&slots, &ABOVE, Some(1_000));
    assert_near(soon.services[&0], ABOVE_SUM * 9 / 10);
    assert_near(late.services[&0], ABOVE_SUM * 9 / 10);
    // Only the first is ever told: it holds for three seconds, and requests tell from then on.
    let lost = run(&slots, &ABOVE, None);
    let first = lost.services[&0];
    assert!(
        (ABOVE_SUM * 7 / 10..ABOVE_SUM * 8 / 10).contains(&first),
        "{first}"
    );
}

#[test]
fn without_monitors_slices_and_requests_tell_and_a_foreign_process_counts_as_busy() {
    let slots = [busy_for(2, None), busy_for(1, None), foreign(1, None)];
    let sums = run(&slots, &ABOVE, Some(0));
    assert!(
        sums.services[&0].abs_diff(ABOVE_SUM / 2) < 5_000_000,
        "{sums:?}"
    );
    assert!(
        sums.services[&1].abs_diff(ABOVE_SUM / 4) < 3_000_000,
        "{sums:?}"
    );
    assert!(
        sums.account("other").abs_diff(ABOVE_SUM / 4) < 3_000_000,
        "{sums:?}"
    );
    assert!(sums.classes.iter().all(|class| *class == Class::C));
}

#[test]
fn a_service_whose_instance_is_not_known_is_on_all_and_an_instance_nobody_holds_is_nobodys() {
    let mut ledger = Ledger::new(Config {
        cpu: false,
        ..Config::default()
    });
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    let slots = [busy_for(1, Some(0.5)), busy_for(1, Some(0.5))];
    ledger.apply(told(id, 0, 1_000, &slots));
    ledger.apply(Event::Holders(Holders {
        meter: id,
        at: at(0),
        services: vec![ServiceId(0)],
        others: 0,
        instances: Vec::new(),
    }));
    (0..=10).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 15_000_000)));
    for (_, event) in stream(0, 0, 1_000) {
        ledger.apply(event);
    }
    ledger.apply(Event::RequestsUntil(at(1_100)));
    let sums = sum(ledger.advance(at(1_100)));
    assert_eq!(sums.account("requests"), 100_000_000);

    let mut ledger = Ledger::new(Config {
        cpu: false,
        ..Config::default()
    });
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    ledger.apply(told(id, 0, 1_000, &slots));
    ledger.apply(held(id, &slots[..1]));
    (0..=10).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 15_000_000)));
    for (_, event) in stream(0, 0, 1_000) {
        ledger.apply(event);
    }
    ledger.apply(Event::RequestsUntil(at(1_100)));
    let sums = sum(ledger.advance(at(1_100)));
    assert_eq!(sums.account("requests"), 50_000_000);
    assert_eq!(sums.account("unattributed"), 50_000_000);
}

#[test]
fn a_split_board_whose_holders_are_not_known_is_one_and_its_figures_say_how_little_they_are_worth()
{
    let mut ledger = Ledger::new(Config {
        cpu: false,
        ..Config::default()
    });
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    let slots = [busy_for(1, Some(0.5)), busy_for(1, Some(0.5))];
    ledger.apply(told(id, 0, 1_000, &slots));
    (0..=10).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 15_000_000)));
    for (_, event) in stream(0, 0, 1_000) {
        ledger.apply(event);
    }
    ledger.apply(Event::RequestsUntil(at(1_100)));
    let mut booked = ledger.advance(at(1_100));
    booked.extend(ledger.finish(at(1_200)));
    let sums = sum(booked);
    assert_eq!(sums.account("requests"), 100_000_000);
    assert_eq!(sums.classes, [Class::C]);
    assert!(sums.bounds[0].is_none_or(|bound| bound > 0.7), "{sums:?}");
}

#[test]
fn when_the_mode_is_switched_off_the_board_is_one_again() {
    let mut ledger = Ledger::new(Config {
        cpu: false,
        ..Config::default()
    });
    let id = ledger.add_meter(meter(Component::Gpu, Some(50.0)));
    let slots = [busy_for(1, Some(0.5)), foreign(1, Some(0.5))];
    ledger.apply(held(id, &slots));
    ledger.apply(told(id, 0, 1_000, &slots));
    ledger.apply(told(id, 1_000, 1_050, &[]));
    (0..=20).for_each(|tick| ledger.apply(reading(id, tick * 100, tick * 15_000_000)));
    for (_, event) in stream(0, 0, 2_000) {
        ledger.apply(event);
    }
    ledger.apply(Event::RequestsUntil(at(2_100)));
    let sums = sum(ledger.advance(at(2_100)));
    // One second shared by two, one for it alone.
    assert_eq!(sums.account("other"), 50_000_000);
    assert_eq!(sums.account("requests"), 150_000_000);
    let total: Microjoules = Microjoules(sums.accounts.iter().sum());
    assert_eq!(total, Microjoules(300_000_000));
}
