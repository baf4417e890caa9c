//! What is asked of the server: one expression for a part of the period, and what its rows are.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::source::Matcher;
use super::sums::Quantity;
use crate::export::labels::clean;
use crate::ledger::{Accounts, Component};

/// Without it there is no report; its samples say how much of the time was recorded.
pub(super) const ENERGY: &str = "instance:perjoule_energy_joules:increase5m";
const REQUESTS: &str = "instance:perjoule_requests:increase5m";

/// The labels of a version.
const VERSION: &str = "model, engine, version";
/// The label that says which series a row is of.
const SERIES: &str = "series";
/// Rows with the number of samples of [`ENERGY`].
const SAMPLES: &str = "samples";

/// A recorded series.
struct Series {
    name: &'static str,
    /// The labels that it has beside `cluster`; others are replicas, of which one counts.
    by: &'static str,
    /// Without it something in the report is not known.
    expected: bool,
}

const fn series(name: &'static str, by: &'static str) -> Series {
    Series {
        name,
        by,
        expected: true,
    }
}

const RECORDED: [Series; 16] = [
    series(ENERGY, "job, instance, component"),
    series(
        "instance:perjoule_account_joules:increase5m",
        "job, instance, account",
    ),
    series(
        "instance:perjoule_gpu_account_joules:increase5m",
        "job, instance, account",
    ),
    Series {
        name: "instance:perjoule_quiet_gpu_joules:increase5m",
        by: "job, instance, account",
        // Where every GPU is always busy.
        expected: false,
    },
    series(REQUESTS, "job, instance"),
    series(
        "instance:perjoule_output_tokens:increase5m",
        "job, instance",
    ),
    series("instance:perjoule_token_joules:increase5m", "job, instance"),
    series(
        "version:perjoule_service_joules:increase5m",
        "model, engine, version, part",
    ),
    series("version:perjoule_requests:increase5m", VERSION),
    series("version:perjoule_output_tokens:increase5m", VERSION),
    series("version:perjoule_token_joules:increase5m", VERSION),
    series("version:perjoule_all_tokens:increase5m", VERSION),
    series("version:perjoule_all_token_joules:increase5m", VERSION),
    series("gpu_type:perjoule_energy_joules:increase5m", "name"),
    series(
        "gpu_type:perjoule_account_joules:increase5m",
        "name, account",
    ),
    series("gpu_type:perjoule_gpus:count", "name"),
];

/// The expression for the `seconds` before the time it is asked for.
pub(super) fn of(seconds: i64, matchers: &[Matcher]) -> String {
    let selector: Vec<&str> = matchers.iter().map(Matcher::text).collect();
    // The first millisecond is the part's before it: Prometheus 2 counts a sample at either end.
    let window = format!("{{{}}}[{}ms]", selector.join(","), seconds * 1_000 - 1);
    let mut asked = String::new();
    let mut add = |function: &str, name: &str, by: &str, called: &str| {
        let or = if asked.is_empty() { "" } else { " or " };
        // Writing to a String cannot fail.
        let _ = write!(
            asked,
            "{or}label_replace(max by (cluster, {by}) ({function}({name}{window})), \"{SERIES}\", \"{called}\", \"\", \"\")"
        );
    };
    add("count_over_time", ENERGY, "job, instance", SAMPLES);
    // Versions and types of GPUs are no part of a node.
    let nodes_alone = matchers.iter().any(Matcher::is_of_nodes);
    for series in &RECORDED {
        if !nodes_alone || series.by.contains("instance") {
            add("sum_over_time", series.name, series.by, series.name);
        }
    }
    asked
}

/// Series that should have been in the answers, and were not.
pub(super) fn missing(seen: impl Fn(&str) -> bool) -> Vec<String> {
    let expected = RECORDED.iter().filter(|series| series.expected);
    expected
        .filter(|series| !seen(series.name))
        .map(|series| series.name.to_owned())
        .collect()
}

/// Of whom a row tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Node {
        cluster: String,
        job: String,
        instance: String,
    },
    Version {
        model: String,
        /// With its version.
        engine: String,
    },
    GpuType(String),
}

/// Its series, whose it is, and what.
pub(super) fn understood(
    labels: &BTreeMap<String, String>,
) -> (String, Option<(Subject, Quantity)>) {
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let series = label(SERIES);
    let of = || {
        if series == SAMPLES {
            return Some(Quantity::Samples);
        }
        let (_, named) = series.split_once(":perjoule_")?;
        let account = Accounts::NAMES
            .into_iter()
            .find(|name| *name == label("account"));
        Some(match (named.split(':').next()?, account) {
            ("energy_joules", _) if series == ENERGY => {
                let component = label("component");
                let known = Component::ALL.into_iter();
                Quantity::Energy(known.clone().find(|known| known.name() == component)?)
            }
            ("energy_joules", _) => Quantity::Energy(Component::Gpu),
            ("account_joules", Some("idle")) if series.starts_with("gpu_type") => Quantity::GpuIdle,
            ("account_joules", Some("context")) if series.starts_with("gpu_type") => {
                Quantity::GpuParked
            }
            ("account_joules", account) => Quantity::Account(account?),
            ("gpu_account_joules", Some("idle")) => Quantity::GpuIdle,
            ("gpu_account_joules", Some("context")) => Quantity::GpuParked,
            ("quiet_gpu_joules", Some("idle")) => Quantity::QuietIdle,
            ("quiet_gpu_joules", Some("context")) => Quantity::QuietParked,
            ("service_joules", _) => match label("part").as_str() {
                "requests" => Quantity::Account("requests"),
                "overhead" => Quantity::Account("overhead"),
                _ => return None,
            },
            ("requests", _) => Quantity::Requests,
            ("output_tokens", _) => Quantity::OutputTokens,
            ("token_joules", _) => Quantity::TokenJoules,
            ("all_tokens", _) => Quantity::AllTokens,
            ("all_token_joules", _) => Quantity::AllTokenJoules,
            ("gpus", _) => Quantity::Gpus,
            _ => return None,
        })
    };
    let subject = match series.split(':').next() {
        Some("version") => Subject::Version {
            model: label("model"),
            engine: clean(&format!("{} {}", label("engine"), label("version"))),
        },
        Some("gpu_type") => Subject::GpuType(label("name")),
        _ => Subject::Node {
            cluster: label("cluster"),
            job: label("job"),
            instance: label("instance"),
        },
    };
    let understood = of().map(|quantity| (subject, quantity));
    (series, understood)
}
