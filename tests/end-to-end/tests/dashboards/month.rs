//! The fleet's dashboard over thirty days of a fleet, as long-term storage has them: what the recording
//! rules make, a sample a minute.

use std::fs;
use std::time::{Duration, Instant};

use end_to_end::engine::{Engine, Range};
use end_to_end::history::{self, Series};
use serde_json::Value;

use crate::{dashboards, shipped, substituted};

const FLEET: &str = "fleet-efficiency.json";
const CLUSTERS: [&str; 3] = ["east", "west", "lab"];
const MODELS: usize = 10;
const GPU_TYPES: [&str; 3] = [
    "NVIDIA H100 80GB HBM3",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA L4",
];
const DAYS: u64 = 30;
/// Between two evaluations of the rules, seconds.
const EVERY: u64 = 60;
/// A graph's points, as many as pixels.
const POINTS: u64 = 1_100;
/// What a panel may take.
const MOST: Duration = Duration::from_secs(1);

/// The series that the fleet's recording rules make.
fn recorded() -> Vec<Series> {
    let rules = fs::read_to_string(dashboards().join("rules.yaml")).unwrap();
    let (_, fleet) = rules.split_once("name: perjoule-fleet").unwrap();
    let mut series = Vec::new();
    for name in fleet
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "))
    {
        let by: Vec<String> = match name {
            "cluster:perjoule_energy_kwh:increase1h" => ["gpu", "cpu", "dram"]
                .map(|component| format!(",component=\"{component}\""))
                .into(),
            name if name.starts_with("cluster:") => vec![String::new()],
            name if name.starts_with("model:") => (0..MODELS)
                .map(|model| format!(",model=\"org/model-{model}b\""))
                .collect(),
            name if name.starts_with("gpu_type:") => {
                GPU_TYPES.map(|of| format!(",name=\"{of}\"")).into()
            }
            name => panic!("by what is {name}?"),
        };
        for cluster in CLUSTERS {
            for by in &by {
                let first = (series.len() + 1) as f64;
                series.push(Series {
                    name: name.to_owned(),
                    labels: format!("cluster=\"{cluster}\"{by}"),
                    values: (0..977)
                        .map(|turn| first + f64::from(turn) / 100.0)
                        .collect(),
                    absent: 0,
                });
            }
        }
    }
    series
}

/// How long a question takes: the median of three times.
fn timed<T>(mut ask: impl FnMut() -> T) -> (T, Duration) {
    let mut times = Vec::new();
    let mut last = None;
    for _ in 0..3 {
        let asked = Instant::now();
        last = Some(ask());
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    (last.unwrap(), times[1])
}

/// Asks all that the dashboard asks, and gives the longest time that anything took.
fn draw(engine: &Engine, days: Range) -> (Duration, String) {
    let all = shipped();
    let (_, dashboard) = all.iter().find(|(file, _)| file == FLEET).unwrap();
    let mut took = Vec::new();
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else {
            continue;
        };
        let inner = query.strip_prefix("label_values(").unwrap();
        let (selector, label) = inner.trim_end_matches(')').rsplit_once(", ").unwrap();
        let selector = substituted(selector, &[]);
        let (values, time) = timed(|| engine.label_values(label, &selector, days).unwrap());
        let expected = if label == "model" {
            MODELS
        } else {
            CLUSTERS.len()
        };
        assert_eq!(values.len(), expected, "{query}: {values:?}");
        took.push((time, query.to_owned()));
    }
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = substituted(target["expr"].as_str().unwrap(), &[]);
            let is_instant = target["instant"] == Value::Bool(true);
            let (series, time) = timed(|| match is_instant {
                true => engine.query_at(&expr, days.end).unwrap(),
                false => engine.query_range(&expr, days).unwrap(),
            });
            assert!(!series.is_empty(), "nothing: {expr}");
            // VictoriaMetrics begins and ends at multiples of the step.
            let points = if is_instant { 1 } else { POINTS as usize - 2 };
            for values in &series {
                assert!(values.len() >= points, "{} points: {expr}", values.len());
                assert!(values.iter().all(|value| value.is_finite()), "{expr}");
            }
            took.push((time, format!("{} ({expr})", panel["title"])));
        }
    }
    assert!(took.len() >= 10, "{took:?}");
    took.into_iter().max().unwrap()
}

fn is_quick(what: &str, engine: &Engine, days: Range, filled: Duration) {
    let (longest, panel) = draw(engine, days);
    println!("{what}: filled in {filled:.1?}; at most {longest:.3?}: {panel}");
    assert!(longest <= MOST, "{longest:.3?}: {panel}");
}

/// What is written, and the range of a graph over it.
fn month() -> (Range, Range) {
    let samples = history::days(DAYS, EVERY);
    let step = (DAYS * 24 * 3_600 / POINTS).max(EVERY);
    (samples, Range { step, ..samples })
}

#[test]
fn thirty_days_of_a_fleet_are_drawn_within_a_second() {
    let (series, (samples, days)) = (recorded(), month());
    assert!(series.len() >= 150, "{} series", series.len());
    let began = Instant::now();
    let blocks = history::block(&series, samples);
    let filled = began.elapsed();
    is_quick("Prometheus", &Engine::prometheus_over(blocks), days, filled);
}

#[test]
fn thirty_days_of_a_fleet_are_drawn_within_a_second_in_victoria_metrics_too() {
    let (series, (samples, days)) = (recorded(), month());
    let engine = Engine::victoria_of_nobody();
    let began = Instant::now();
    history::import(&engine, &series, samples);
    let filled = began.elapsed();
    is_quick("VictoriaMetrics", &engine, days, filled);
}
