//! How often `perjoule diff` is wrong: pairs of runs of a simulated engine, equal and not.

mod runs;
mod verbs;

use profiler::compare::{Comparison, Figure, Load, Options, Side, Verdict, compare};
use profiler::recording::Recorded;

use runs::{Run, Runs};

/// A pair's seeds: equal loads of the same one, with other noise.
struct Pair {
    load: [u64; 2],
    /// What the second run draws, times the first.
    gain: f64,
}

fn compared(run: Run, number: u64, pair: &Pair) -> Comparison {
    let runs = Runs::new();
    let [a, b] = [0, 1].map(|side| {
        let gain = if side == 1 { pair.gain } else { 1.0 };
        let noise = 2 * number + side as u64 + 1;
        let file = runs.record(run, pair.load[side], noise, gain);
        Recorded::open(&file).unwrap()
    });
    let side = |name, recorded| Side {
        name,
        recorded,
        stacks: None,
    };
    let options = Options {
        alpha: 0.01,
        service: None,
        conditions: &[],
        regardless: false,
    };
    compare(side("a", &a), side("b", &b), options).unwrap()
}

/// Of so many pairs: those with any verdict of a change, those that find J/request higher, those that are
/// of one load.
#[derive(Debug, Default)]
struct Found {
    changed: usize,
    higher: usize,
    same_load: usize,
}

fn found(run: Run, pairs: u64, pair: impl Fn(u64) -> Pair) -> Found {
    let mut found = Found::default();
    for number in 0..pairs {
        let comparison = compared(run, number, &pair(number));
        let service = &comparison.services[0];
        let is_change = |verdict| matches!(verdict, Verdict::Higher | Verdict::Lower);
        let mut any = false;
        for change in &service.figures {
            assert_ne!(
                change.verdict,
                Verdict::NotEnoughData,
                "{run:?}: {service:?}"
            );
            any |= is_change(change.verdict);
        }
        found.changed += usize::from(any);
        let deciding = &service.figures[0];
        assert_eq!(deciding.figure, Figure::JPerRequest);
        found.higher += usize::from(deciding.verdict == Verdict::Higher);
        found.same_load += usize::from(service.load == Some(Load::Same));
    }
    eprintln!("{run:?}: {found:?} of {pairs}");
    found
}

fn one_load(gain: f64) -> impl Fn(u64) -> Pair {
    move |number| Pair {
        load: [number; 2],
        gain,
    }
}

fn two_loads(gain: f64) -> impl Fn(u64) -> Pair {
    move |number| Pair {
        load: [2 * number, 2 * number + 1],
        gain,
    }
}

/// As `cargo xtask demo` runs by default, and longer and busier.
const DEMOS: [Run; 2] = [
    Run {
        rate: 2.5,
        seconds: 40.0,
        drift: 0.01,
    },
    Run {
        rate: 5.0,
        seconds: 60.0,
        drift: 0.01,
    },
];

#[test]
fn two_equal_runs_of_one_load_are_called_equal() {
    for run in DEMOS {
        let found = found(run, 100, one_load(1.0));
        assert_eq!(found.same_load, 100);
        assert!(found.changed <= 5, "{run:?}: {found:?}");
    }
}

#[test]
fn two_equal_runs_of_two_loads_are_called_equal() {
    for run in DEMOS {
        let found = found(run, 100, two_loads(1.0));
        assert_eq!(found.same_load, 0);
        assert!(found.changed <= 5, "{run:?}: {found:?}");
    }
}

#[test]
fn a_fifth_more_is_found_in_a_demo_of_the_same_load() {
    for run in DEMOS {
        let found = found(run, 50, one_load(1.2));
        assert!(found.higher >= 48, "{run:?}: {found:?}");
    }
}

#[test]
fn a_fifth_more_is_found_between_two_loads_when_they_last_for_long() {
    let run = Run {
        rate: 5.0,
        seconds: 600.0,
        drift: 0.01,
    };
    let found = found(run, 20, two_loads(1.2));
    assert!(found.higher >= 18, "{found:?}");
}
