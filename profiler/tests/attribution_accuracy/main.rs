//! How close the ledger's figures come to known truth, when it sees what an agent sees: the
//! offline counterpart of the demo, with the same ceilings.

mod engine;
mod observer;
mod random;

use engine::Load;
use observer::{Run, observe};

fn show(name: &str, load: &Load, run: &Run) {
    println!(
        "{name} rate {:.1} {:.0} s seed {}: {} requests, sum {:+.2} %, median {:.2} %, p95 {:.2} %, \
         within bound {:.0} % (bound median {:.0} %), floor {:.2} W, kappa {:.2}",
        load.rate,
        load.seconds,
        load.seed,
        run.pairs.len(),
        100.0 * (run.ratio() - 1.0),
        100.0 * run.error(0.5),
        100.0 * run.error(0.95),
        100.0 * run.covered(),
        100.0 * run.bound(0.5),
        run.floor,
        run.kappa,
    );
}

fn holds(load: Load, median: f64, p95: f64) {
    for seconds in [20.0, 40.0] {
        for seed in 1..=6 {
            let load = Load {
                seconds,
                seed,
                ..load
            };
            let run = observe(load);
            show("streams", &load, &run);
            assert_eq!(run.residual, 0);
            assert!((run.ratio() - 1.0).abs() <= 0.02, "sum: {}", run.ratio());
            assert!(run.error(0.5) <= median, "median: {}", run.error(0.5));
            assert!(run.error(0.95) <= p95, "p95: {}", run.error(0.95));
        }
    }
}

#[test]
fn requests_at_a_low_rate_are_within_three_percent() {
    holds(
        Load {
            rate: 1.0,
            ..Load::default()
        },
        0.03,
        0.12,
    );
}

#[test]
fn requests_in_batches_of_eight_are_within_three_percent() {
    holds(
        Load {
            rate: 2.5,
            ..Load::default()
        },
        0.03,
        0.12,
    );
}

#[test]
fn requests_in_large_batches_are_within_five_percent() {
    holds(
        Load {
            rate: 5.0,
            ..Load::default()
        },
        0.05,
        0.20,
    );
}
