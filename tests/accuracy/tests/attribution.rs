//! How close the ledger's figures come to known truth, when it sees what an agent sees: the
//! offline counterpart of the demo, with the same ceilings.

use accuracy::engine::Load;
use accuracy::observer::{Run, Sight, observe};
use profiler::ledger::Class;

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
        for seed in 1..=4 {
            let load = Load {
                seconds,
                seed,
                ..load
            };
            let run = observe(load, Sight::default());
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
fn engines_unlike_the_starting_values_are_learned() {
    let base = Load::default();
    for load in [
        Load {
            prefill_speed: 4_000.0,
            rate: 1.0,
            ..base
        },
        // Nearly all of the engine's time is prefill: prompts queue for seconds.
        Load {
            prefill_speed: 4_000.0,
            ..base
        },
        Load {
            prefill_speed: 40_000.0,
            ..base
        },
        Load {
            prefill_watts: 350.0,
            ..base
        },
        Load {
            prefill_watts: 700.0,
            ..base
        },
    ] {
        for seed in 1..=3 {
            let load = Load { seed, ..load };
            let run = observe(load, Sight::default());
            show("other engine", &load, &run);
            assert!((run.ratio() - 1.0).abs() <= 0.02, "sum: {}", run.ratio());
            assert!(run.error(0.5) <= 0.03, "median: {}", run.error(0.5));
            assert!(run.error(0.95) <= 0.12, "p95: {}", run.error(0.95));
        }
    }
}

#[test]
fn nine_in_ten_requests_lie_within_their_bound() {
    for rate in [1.0, 2.5, 5.0] {
        let runs = (21..=24).map(|seed| {
            let load = Load {
                rate,
                seed,
                ..Load::default()
            };
            observe(load, Sight::default())
        });
        let covered: Vec<f64> = runs.map(|run| run.covered()).collect();
        let mean = covered.iter().sum::<f64>() / covered.len() as f64;
        println!(
            "rate {rate}: {:.1} % of requests within their bound",
            100.0 * mean
        );
        assert!(mean >= 0.9, "{mean}");
    }
}

#[test]
fn responses_that_do_not_stream_are_never_class_a_and_still_add_up() {
    for (unstreamed, rate) in [(0.3, 1.0), (0.3, 2.5), (1.0, 1.0), (1.0, 2.5)] {
        let load = Load {
            unstreamed,
            rate,
            ..Load::default()
        };
        let run = observe(load, Sight::default());
        show(
            &format!("{:.0} % unstreamed,", 100.0 * unstreamed),
            &load,
            &run,
        );
        assert!((run.ratio() - 1.0).abs() <= 0.02, "sum: {}", run.ratio());
        assert!(run.covered() >= 0.85, "within bound: {}", run.covered());
        if unstreamed == 1.0 {
            assert!(run.pairs.iter().all(|pair| pair.class > Class::A));
        } else {
            assert!(run.error(0.5) <= 0.08, "median: {}", run.error(0.5));
        }
    }
}

#[test]
fn a_full_batch_misplaces_little_and_reading_the_engines_queue_never_harms() {
    let base = Load::default();
    for (name, load, least) in [
        (
            "full batch",
            Load {
                rate: 3.5,
                most: 6,
                ..base
            },
            1.001,
        ),
        (
            "prompts queue",
            Load {
                prefill_speed: 4_000.0,
                ..base
            },
            1.001,
        ),
    ] {
        let mut errors = [[0.0; 2]; 3];
        let gauges = [(None, false), (Some(1.0), false), (Some(1.0), true)];
        for seed in 1..=2 {
            for ((gauges, counts_prompts), errors) in gauges.into_iter().zip(&mut errors) {
                let sight = Sight {
                    gauges,
                    counts_prompts,
                    ..Sight::default()
                };
                let run = observe(Load { seed, ..load }, sight);
                assert_eq!(run.residual, 0);
                errors[0] += run.error(0.5) / 2.0;
                errors[1] += run.error(0.95) / 2.0;
            }
        }
        let [without, with, late] = errors;
        println!(
            "{name}: median and p95 {without:.4?} without, {with:.4?} with, {late:.4?} where it \
             counts requests until their first tokens"
        );
        for with in [with, late] {
            assert!(
                with[0] <= least * without[0] && with[1] <= least * without[1],
                "{name}"
            );
            assert!(with[0] <= 0.03 && with[1] <= 0.12, "{name}");
        }
    }
}
