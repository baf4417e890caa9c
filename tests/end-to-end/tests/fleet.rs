//! `perjoule report --prometheus` over thirty days of a fleet, in a real Prometheus and a real VictoriaMetrics.
//!
//! Needs Debian's packages `prometheus` and `victoria-metrics`; no root, no GPU. `PERJOULE_FLEET_NODES=128` is the
//! size that its thirty seconds are promised for; by default it is smaller, for filling the databases takes longer
//! than asking them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use end_to_end::agent::perjoule;
use end_to_end::engine::{Engine, Range};
use end_to_end::history::{self, Series};
use serde_json::Value;

/// What `interval` is in rules.yaml, seconds.
const EVERY: u64 = 300;
const DAYS: u64 = 30;
const SAMPLES: usize = (DAYS * 24 * 3_600 / EVERY) as usize;
const GPUS: f64 = 8.0;
const CLUSTERS: [&str; 3] = ["east", "west", "lab"];
const MODELS: usize = 10;
const GPU_TYPES: [&str; 2] = ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"];
/// What the report may take.
const MOST: Duration = Duration::from_secs(30);

fn nodes() -> usize {
    let told = std::env::var("PERJOULE_FLEET_NODES").ok();
    told.map_or(12, |told| told.parse().expect("a number of nodes"))
}

/// What rules.yaml records of a fleet of so many nodes, whole numbers. Of the last node the second half alone.
fn recorded(nodes: usize) -> Vec<Series> {
    let mut all = Vec::new();
    let mut add = |name: &str, labels: String, absent: usize, mean: f64| {
        // A day and a little, so that no two days are the same.
        let wave = |turn: usize| mean + (turn % 293) as f64;
        all.push(Series {
            name: name.to_owned(),
            labels,
            values: (0..293).map(wave).collect(),
            absent,
        });
    };
    let cluster = |number: usize| CLUSTERS[number % CLUSTERS.len()];
    let of_nodes: [(&str, &[&str]); 7] = [
        (
            "energy_joules",
            &[
                "component=\"gpu\"",
                "component=\"cpu\"",
                "component=\"dram\"",
            ],
        ),
        (
            "account_joules",
            &[
                "account=\"idle\"",
                "account=\"context\"",
                "account=\"requests\"",
                "account=\"overhead\"",
                "account=\"other\"",
                "account=\"agent\"",
                "account=\"unattributed\"",
                "account=\"gap\"",
            ],
        ),
        (
            "gpu_account_joules",
            &["account=\"idle\"", "account=\"context\""],
        ),
        (
            "quiet_gpu_joules",
            &["account=\"idle\"", "account=\"context\""],
        ),
        ("requests", &[""]),
        ("output_tokens", &[""]),
        ("token_joules", &[""]),
    ];
    let a_node: usize = of_nodes.iter().map(|(_, labels)| labels.len()).sum();
    assert!(a_node <= 20, "{a_node} series a node");
    // By name, as a file of OpenMetrics wants it.
    for (name, labels) in of_nodes {
        for node in 0..nodes {
            for label in labels {
                let absent = if node + 1 == nodes { SAMPLES / 2 } else { 0 };
                let comma = if label.is_empty() { "" } else { "," };
                let labels = format!(
                    "cluster=\"{}\",job=\"perjoule\",instance=\"node-{node:03}:27182\"{comma}{label}",
                    cluster(node)
                );
                let mean = match *label {
                    "component=\"gpu\"" => 300.0 * 350.0 * GPUS,
                    _ => 1_000.0 + node as f64,
                };
                add(
                    &format!("instance:perjoule_{name}:increase5m"),
                    labels,
                    absent,
                    mean,
                );
            }
        }
    }
    for (name, parts) in [
        (
            "service_joules",
            &[",part=\"requests\"", ",part=\"overhead\""][..],
        ),
        ("requests", &[""]),
        ("output_tokens", &[""]),
        ("token_joules", &[""]),
        ("all_tokens", &[""]),
        ("all_token_joules", &[""]),
    ] {
        for model in 0..MODELS {
            // The first model is served by another version too from the middle of the month on.
            let versions = [("0.8.0", 0), ("0.9.0", SAMPLES / 2)];
            let versions = versions.iter().take(if model == 0 { 2 } else { 1 });
            for ((version, absent), part) in
                versions.flat_map(|version| parts.iter().map(move |part| (*version, part)))
            {
                let labels = format!(
                    "cluster=\"{}\",model=\"org/model-{model}b\",engine=\"vllm\",version=\"{version}\"{part}",
                    cluster(model)
                );
                add(
                    &format!("version:perjoule_{name}:increase5m"),
                    labels,
                    absent,
                    5_000.0,
                );
            }
        }
    }
    for (name, accounts) in [
        ("energy_joules:increase5m", &[""][..]),
        (
            "account_joules:increase5m",
            &[",account=\"idle\"", ",account=\"context\""],
        ),
        ("gpus:count", &[""]),
    ] {
        for (number, gpu) in GPU_TYPES.iter().enumerate() {
            for account in accounts {
                let labels = format!("cluster=\"{}\",name=\"{gpu}\"{account}", cluster(number));
                add(&format!("gpu_type:perjoule_{name}"), labels, 0, 64.0);
            }
        }
    }
    all
}

/// The sum of all samples of series of this name with this label.
fn sum(series: &[Series], name: &str, label: &str) -> f64 {
    let of = |one: &&Series| one.name == name && one.labels.contains(label);
    let chosen = series.iter().filter(of);
    chosen.flat_map(|one| one.samples(SAMPLES)).sum()
}

/// The report in a form, and how long it took.
fn report(engine: &Engine, times: Range, more: &[&str]) -> (String, Duration) {
    let address = format!("http://{}", engine.address());
    // Parts begin and end where samples are.
    let (from, to) = ((times.start - EVERY).to_string(), times.end.to_string());
    let period = [
        "report",
        "--prometheus",
        &address,
        "--from",
        &from,
        "--to",
        &to,
    ];
    let inputs = [
        "--pue",
        "1.3",
        "--price",
        "0.2",
        "--currency",
        "EUR",
        "--country",
        "DE",
    ];
    let began = Instant::now();
    let ended = perjoule(&[&period[..], &inputs, more].concat());
    let took = began.elapsed();
    assert!(ended.status.success(), "{}", ended.log);
    (ended.out, took)
}

/// Of CSV, all figures; without the server's own name.
fn figures(csv: &str) -> Vec<&str> {
    let own = |line: &&str| !line.starts_with("environment,server,");
    csv.lines().filter(own).collect()
}

#[test]
fn both_databases_give_the_same_report_of_a_month_in_time() {
    let nodes = nodes();
    let (series, times) = (recorded(nodes), history::days(DAYS, EVERY));
    let count: usize = series.iter().map(|one| SAMPLES - one.absent).sum();
    println!("{nodes} nodes, {} series, {count} samples", series.len());
    let began = Instant::now();
    let prometheus = Engine::prometheus_over(history::block(&series, times));
    println!("Prometheus filled in {:.1?}", began.elapsed());
    let began = Instant::now();
    let victoria = Engine::victoria_of_nobody();
    history::import(&victoria, &series, times);
    println!("VictoriaMetrics filled in {:.1?}", began.elapsed());

    let mut reports = Vec::new();
    for (engine, name) in [(&prometheus, "Prometheus"), (&victoria, "VictoriaMetrics")] {
        let (csv, took) = report(engine, times, &["--format", "csv"]);
        println!("{name}: the report in {took:.2?}");
        assert!(took <= MOST, "{name}: {took:.2?}");
        reports.push(csv);
    }
    assert_eq!(figures(&reports[0]), figures(&reports[1]));

    let (json, _) = report(&prometheus, times, &["--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    let (totals, fleet) = (&json["planner"]["totals"], &json["fleet"]);
    let energy = sum(&series, "instance:perjoule_energy_joules:increase5m", "");
    assert_eq!(totals["measured_j"], energy);
    let requests = sum(&series, "instance:perjoule_requests:increase5m", "");
    assert_eq!(json["planner"]["requests"]["count"], requests as u64);
    assert_eq!(fleet["nodes"], nodes);
    let covered = (nodes as f64 - 0.5) / nodes as f64;
    assert_eq!(fleet["coverage_ratio"], covered);
    assert!(fleet["missing"].as_array().unwrap().is_empty(), "{fleet}");
    for (number, list) in [
        (CLUSTERS.len(), "clusters"),
        (MODELS, "models"),
        (GPU_TYPES.len(), "gpu_types"),
        (nodes, "by_node"),
    ] {
        assert_eq!(fleet[list].as_array().unwrap().len(), number, "{list}");
    }
    let versions = json["planner"]["versions"].as_array().unwrap();
    let told: Vec<String> = versions
        .iter()
        .map(|version| format!("{} {}", version["service"], version["engine"]))
        .collect();
    let both = ["0.8.0", "0.9.0"].map(|version| format!("\"org/model-0b\" \"vllm {version}\""));
    assert_eq!(told, both, "{versions:?}");
    let kwh = totals["total"]["energy_kwh"].as_f64().unwrap();
    let told = format!("answers,all,total_kwh,{kwh},kWh");
    assert!(figures(&reports[0]).contains(&told.as_str()), "{told}");

    // Part of a fleet, and each form.
    let (east, _) = report(
        &victoria,
        times,
        &["--format", "json", "--match", "cluster=\"east\""],
    );
    let east: Value = serde_json::from_str(&east).unwrap();
    let energy = sum(
        &series,
        "instance:perjoule_energy_joules:increase5m",
        "cluster=\"east\"",
    );
    assert_eq!(east["planner"]["totals"]["measured_j"], energy);
    assert_eq!(east["fleet"]["clusters"].as_array().unwrap().len(), 1);
    let (html, _) = report(&prometheus, times, &["--format", "html"]);
    assert!(html.len() < 1 << 20, "{} bytes", html.len());
    // The last node was there for half of the time, so the one before it drew most.
    let first = format!("node-{:03}:27182", nodes - 2);
    for form in ["md", "table"] {
        let (text, _) = report(&prometheus, times, &["--format", form]);
        assert!(
            text.contains("org/model-3b") && text.contains(&first),
            "{text}"
        );
    }
}

#[test]
fn the_recorded_series_are_those_of_the_shipped_rules() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboards/rules.yaml");
    let rules = fs::read_to_string(file).unwrap();
    let (_, group) = rules.split_once("- name: perjoule-report\n").unwrap();
    let (group, _) = group.split_once("- name:").unwrap();
    let mut shipped: Vec<&str> = group
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "))
        .collect();
    shipped.sort_unstable();
    let series = recorded(1);
    let mut filled: Vec<&str> = series.iter().map(|one| one.name.as_str()).collect();
    filled.sort_unstable();
    filled.dedup();
    assert_eq!(filled, shipped);
}
