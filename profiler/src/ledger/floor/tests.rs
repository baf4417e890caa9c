//! How levels are learned, and what goes before what.

use super::*;

const TICK: u64 = 100_000_000;

fn quiet(levels: &mut Levels, held: bool, watts: f64, times: usize) {
    for _ in 0..times {
        levels.learn(held, Watts(watts).over(TICK), TICK);
    }
}

#[test]
fn a_floor_is_not_known_before_it_was_quiet() {
    let mut levels = Levels::new(None);
    assert_eq!(levels.floor(), None);
    quiet(&mut levels, true, 83.0, 2);
    assert_eq!(levels.floor(), None);
    quiet(&mut levels, true, 83.0, 1);
    assert!(
        levels
            .floor()
            .is_some_and(|floor| (floor.watts.0 - 83.0).abs() < 1e-6)
    );
}

#[test]
fn three_seconds_of_noisy_quiet_give_the_floor_to_a_watt() {
    // The counter lies within ±0.8 J or so of the truth at each tick, so that a tick's mean
    // power is 11 W off, and many ticks' hardly.
    let mut state = 7u64;
    let mut noise = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let uniform = (state >> 33) as f64 / f64::from(1u32 << 31);
        (uniform - 0.5) * 2.8
    };
    let mut worst: f64 = 0.0;
    for _ in 0..50 {
        let mut levels = Levels::new(None);
        let mut before = noise();
        for _ in 0..30 {
            let after = noise();
            let joules = 8.3 + after - before;
            before = after;
            levels.learn(true, Microjoules((joules * 1e6) as u64), TICK);
        }
        let floor = levels.floor().map_or(0.0, |floor| floor.watts.0);
        worst = worst.max((floor - 83.0).abs());
    }
    assert!(worst < 1.0, "{worst} W off");
}

#[test]
fn a_model_load_does_not_raise_the_floor() {
    let mut levels = Levels::new(None);
    quiet(&mut levels, true, 83.0, 30);
    quiet(&mut levels, true, 190.0, 30);
    quiet(&mut levels, true, 83.0, 30);
    assert!(
        levels
            .floor()
            .is_some_and(|floor| (floor.watts.0 - 83.0).abs() < 0.01)
    );
}

#[test]
fn a_floor_that_was_learned_too_high_comes_down() {
    let mut levels = Levels::new(None);
    quiet(&mut levels, true, 190.0, 60);
    quiet(&mut levels, true, 83.0, 60);
    assert!(
        levels
            .floor()
            .is_some_and(|floor| (floor.watts.0 - 83.0).abs() < 0.01)
    );
}

#[test]
fn a_parked_context_is_its_own_account_once_both_levels_are_known() {
    let mut levels = Levels::new(None);
    quiet(&mut levels, false, 50.0, 20);
    quiet(&mut levels, true, 90.0, 20);
    let base = levels.base(true, TICK).unwrap_or_default();
    assert_eq!((base.idle.0, base.context.0), (5_000_000, 4_000_000));
    let alone = levels.base(false, TICK).unwrap_or_default();
    assert_eq!((alone.idle.0, alone.context.0), (5_000_000, 0));
}

const TYPICAL: TypicalIdle = TypicalIdle {
    source: FloorSource::Table,
    bare: Watts(70.0),
    parked: Watts(108.0),
    error: Watts(15.0),
};

#[test]
fn the_user_goes_before_what_is_learned_and_that_before_the_table() {
    let source = |levels: &Levels| FloorSource::name(levels.floor().map(|floor| floor.source));
    let mut levels = Levels::new(None);
    assert_eq!(source(&levels), "none");
    assert_eq!(levels.base(true, TICK).map(|base| base.idle), None);

    levels.set_typical(TYPICAL);
    assert_eq!(source(&levels), "table");
    assert_eq!(levels.floor().map(|floor| floor.watts), Some(Watts(70.0)));
    let base = levels.base(true, TICK).unwrap_or_default();
    assert_eq!((base.idle.0, base.context.0), (7_000_000, 3_800_000));
    let base = levels.base(false, TICK).unwrap_or_default();
    assert_eq!((base.idle.0, base.context.0), (7_000_000, 0));
    assert_eq!(
        levels.error(),
        15.0,
        "another board's level is not this one's"
    );

    quiet(&mut levels, true, 90.0, 50);
    assert_eq!(source(&levels), "learned");
    let base = levels.base(true, TICK).unwrap_or_default();
    assert_eq!((base.idle.0, base.context.0), (9_000_000, 0));
    assert!(levels.error() < 1.0);

    let mut another = Levels::new(None);
    assert_eq!(another.learned(), None);
    another.set_typical(TYPICAL);
    another.set_typical(levels.learned().expect("it was quiet"));
    assert_eq!(source(&another), "state");
    assert_eq!(another.floor().map(|floor| floor.watts), Some(Watts(90.0)));

    let mut levels = Levels::new(Some(Watts(60.0)));
    levels.set_typical(TYPICAL);
    quiet(&mut levels, true, 90.0, 50);
    assert_eq!(source(&levels), "user");
    let base = levels.base(true, TICK).unwrap_or_default();
    assert_eq!((base.idle.0, base.context.0), (6_000_000, 0));
    assert_eq!(levels.error(), 0.0);
}

#[test]
fn a_fixed_floor_is_never_learned_over() {
    let mut levels = Levels::new(Some(Watts(60.0)));
    quiet(&mut levels, true, 90.0, 50);
    assert_eq!(
        levels.floor(),
        Some(Floor {
            watts: Watts(60.0),
            source: FloorSource::Fixed
        })
    );
}
