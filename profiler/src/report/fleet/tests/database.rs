//! Recorded series of two nodes: what a server would answer for any part of the period.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::END;
use super::server::{Asked, answer};

/// What each sample of a series is.
#[derive(Debug, Clone)]
pub(super) struct Recorded {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
    /// The first sample is after this.
    since: i64,
}

/// Series with one sample each `every` seconds.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pub(super) every: i64,
    pub(super) rows: Vec<Recorded>,
}

pub(super) fn series(name: &str, labels: &[(&str, &str)], value: f64) -> Recorded {
    let labels = labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Recorded {
        name: name.to_owned(),
        labels: labels.collect(),
        value,
        since: 0,
    }
}

impl Database {
    /// One since ever, the other since the middle of the month.
    pub(super) fn of_two_nodes() -> Self {
        let mut rows = Vec::new();
        for (cluster, instance, since) in
            [("a", "n1:27182", 0), ("b", "n2:27182", END - 15 * 86_400)]
        {
            let mut add = |name: &str, label: Option<(&str, &str)>, value: f64| {
                let mut labels = match name.split(':').next() {
                    Some("instance") => {
                        vec![
                            ("cluster", cluster),
                            ("job", "perjoule"),
                            ("instance", instance),
                        ]
                    }
                    _ => vec![("cluster", cluster)],
                };
                labels.extend(label);
                let mut row = series(&format!("{name}:increase5m"), &labels, value);
                row.since = since;
                rows.push(row);
            };
            let energy = "instance:perjoule_energy_joules";
            add(energy, Some(("component", "gpu")), 900.0);
            add(energy, Some(("component", "cpu")), 300.0);
            for (account, joules) in [
                ("idle", 350.0),
                ("context", 100.0),
                ("requests", 600.0),
                ("overhead", 40.0),
                ("other", 60.0),
                ("agent", 10.0),
                ("unattributed", 40.0),
                ("gap", 0.0),
            ] {
                add(
                    "instance:perjoule_account_joules",
                    Some(("account", account)),
                    joules,
                );
            }
            for (account, joules, quiet) in [("idle", 200.0, 90.0), ("context", 100.0, 50.0)] {
                let account = Some(("account", account));
                add("instance:perjoule_gpu_account_joules", account, joules);
                add("instance:perjoule_quiet_gpu_joules", account, quiet);
            }
            add("instance:perjoule_requests", None, 3.0);
            add("instance:perjoule_output_tokens", None, 300.0);
            add("instance:perjoule_token_joules", None, 600.0);
        }
        let add = |name: &str, labels: &[(&str, &str)], value: f64| {
            series(name, &[&[("cluster", "a")], labels].concat(), value)
        };
        let model = ("model", "org/model-8b");
        let gpu = ("name", "NVIDIA H100 80GB HBM3");
        rows.extend([
            add(
                "version:perjoule_service_joules:increase5m",
                &[model, ("part", "requests")],
                600.0,
            ),
            add(
                "version:perjoule_service_joules:increase5m",
                &[model, ("part", "overhead")],
                40.0,
            ),
            add("version:perjoule_requests:increase5m", &[model], 3.0),
            add("version:perjoule_output_tokens:increase5m", &[model], 300.0),
            add("version:perjoule_token_joules:increase5m", &[model], 600.0),
            add("version:perjoule_all_tokens:increase5m", &[model], 1_200.0),
            add(
                "version:perjoule_all_token_joules:increase5m",
                &[model],
                600.0,
            ),
            add("gpu_type:perjoule_energy_joules:increase5m", &[gpu], 900.0),
            add(
                "gpu_type:perjoule_account_joules:increase5m",
                &[gpu, ("account", "idle")],
                200.0,
            ),
            add(
                "gpu_type:perjoule_account_joules:increase5m",
                &[gpu, ("account", "context")],
                90.0,
            ),
            add("gpu_type:perjoule_gpus:count", &[gpu], 16.0),
        ]);
        Self { every: 300, rows }
    }

    /// The model is served by one version since ever, and by another one too since the middle of the month.
    pub(super) fn of_two_versions() -> Self {
        let mut database = Self::of_two_nodes();
        let of_nodes = |row: &Recorded| !row.name.starts_with("version:");
        database.rows.retain(of_nodes);
        for (version, since, requests, each) in [
            ("0.11.0", 0, 3.0, 200.0),
            ("0.12.0", END - 15 * 86_400, 2.0, 240.0),
        ] {
            for (name, part, value) in [
                (
                    "service_joules",
                    Some(("part", "requests")),
                    requests * each,
                ),
                ("service_joules", Some(("part", "overhead")), 40.0),
                ("requests", None, requests),
                ("output_tokens", None, requests * 100.0),
                ("token_joules", None, requests * each),
            ] {
                let mut labels = vec![
                    ("cluster", "a"),
                    ("model", "org/model-8b"),
                    ("engine", "vllm"),
                    ("version", version),
                ];
                labels.extend(part);
                let name = format!("version:perjoule_{name}:increase5m");
                database.rows.push(Recorded {
                    since,
                    ..series(&name, &labels, value)
                });
            }
        }
        database
    }

    /// The rows of an expression as the report writes it.
    pub(super) fn body(&self, asked: &Asked) -> String {
        let at: i64 = asked.form["time"].parse().unwrap();
        let mut result = Vec::new();
        for part in asked.query().split(" or ") {
            let word = |from: &str, to: &str| {
                let (_, rest) = part.split_once(from).unwrap();
                rest.split_once(to).unwrap().0.to_owned()
            };
            let by = word("max by (", ")");
            let (function, rest) = part.split_once(") (").unwrap().1.split_once('(').unwrap();
            let name = rest.split_once('{').unwrap().0;
            let window: i64 = word("[", "ms]").parse().unwrap();
            let called = word("\"series\", \"", "\"");
            for row in self.rows.iter().filter(|row| row.name == name) {
                let from = (at - (window + 1) / 1_000).max(row.since);
                let count = ((at - from).max(0) / self.every) as f64;
                if count == 0.0 {
                    continue;
                }
                let kept = |(label, _): &(&String, &String)| by.split(", ").any(|by| by == *label);
                let mut labels: BTreeMap<String, String> = row
                    .labels
                    .iter()
                    .filter(kept)
                    .map(|(label, value)| (label.clone(), value.clone()))
                    .collect();
                labels.insert("series".to_owned(), called.clone());
                let value = if function == "sum_over_time" {
                    count * row.value
                } else {
                    count
                };
                let told = json!({"metric": labels, "value": [at, value.to_string()]});
                // As max does where components have the same labels.
                if !result
                    .iter()
                    .any(|known: &Value| known["metric"] == told["metric"])
                {
                    result.push(told);
                }
            }
        }
        told(result)
    }

    pub(super) fn answers(self) -> impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static {
        move |asked| {
            answer(
                "200 OK",
                "Content-Type: application/json\r\n",
                self.body(asked),
            )
        }
    }
}

/// The API's answer.
pub(super) fn told(result: Vec<Value>) -> String {
    json!({"status": "success", "data": {"resultType": "vector", "result": result}}).to_string()
}
