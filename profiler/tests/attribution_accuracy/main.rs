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
#[test]
fn zz_explore() {
    let base = Load::default();
    for (name, load) in [
        ("base", base),
        ("slow prefill 4000", Load { prefill_speed: 4_000.0, ..base }),
        ("fast prefill 40000", Load { prefill_speed: 40_000.0, ..base }),
        ("prefill 350 W", Load { prefill_watts: 350.0, ..base }),
        ("prefill 700 W", Load { prefill_watts: 700.0, ..base }),
        ("30 % unstreamed", Load { unstreamed: 0.3, ..base }),
        ("100 % unstreamed", Load { unstreamed: 1.0, ..base }),
    ] {
    for rate in [1.0, 2.5, 5.0] {
        if load.prefill_speed < 5000.0 && rate > 3.0 { continue }
        let (mut m, mut p, mut c, mut b, mut s) = (0.0, 0.0, 0.0, 0.0, 0.0);
        let mut k = 0.0;
        for seed in 11..=20 {
            let run = observe(Load { rate, seed, ..load });
            m += run.error(0.5) / 10.0;
            p += run.error(0.95) / 10.0;
            c += run.covered() / 10.0;
            b += run.bound(0.5) / 10.0;
            s += (run.ratio() - 1.0).abs() / 10.0;
            k += run.kappa/10.0;
        }
        println!("EXPLORE {name} rate {rate}: sum {:.2} median {:.2} % p95 {:.2} % covered {:.1} % bound {:.1} % k {k:.2}", s * 100.0, m * 100.0, p * 100.0, c * 100.0, b * 100.0);
    }
    }
}

#[test]
fn zz_debug() {
    let run = observe(Load { prefill_speed: 4_000.0, rate: 1.0, seed: 11, ..Load::default() });
    for pair in &run.pairs { println!("PAIR {:.1} {:.1} {:.3}", pair.estimate, pair.truth, pair.estimate/pair.truth-1.0); }
}
