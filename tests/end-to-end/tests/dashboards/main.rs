//! Every expression that is shipped, against a real Prometheus that scrapes the real exporter.
//!
//! Needs Debian's package `prometheus`; no root, no GPU.

mod agent;
mod prometheus;
mod shape;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use agent::Agent;
use prometheus::Prometheus;
use serde_json::Value;

/// What stands for `$__rate_interval` and `$__range`: enough scrapes, and soon over.
const WINDOW: &str = "5s";

/// The folder that is shipped.
fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboards")
}

/// All dashboards, by file name.
fn shipped() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dashboards()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push((name, serde_json::from_str(&text).unwrap()));
        }
    }
    assert!(
        !found.is_empty(),
        "no dashboard in {}",
        dashboards().display()
    );
    found
}

fn rules() -> PathBuf {
    dashboards().join("rules.yaml").canonicalize().unwrap()
}

/// The expressions of a dashboard's panels, as (panel title, expression).
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((
                panel["title"].as_str().unwrap().to_owned(),
                target["expr"].as_str().unwrap().to_owned(),
            ));
        }
    }
    found
}

/// Substitutes as Grafana does: `choices` for the variables, everything else All.
fn substituted(expr: &str, choices: &[(&str, &str)]) -> String {
    let mut expr = expr
        .replace("$__rate_interval", WINDOW)
        .replace("$__range", WINDOW);
    for (variable, choice) in choices {
        expr = expr.replace(&format!("${variable}"), choice);
    }
    for variable in ["$job", "$instance", "$service"] {
        expr = expr.replace(variable, ".+");
    }
    assert!(!expr.contains('$'), "an unknown variable: {expr}");
    expr
}

/// Asks until every expression answers with finite data; panics with those that never did.
fn all_answer(prometheus: &Prometheus, expressions: &[(String, String)], within: Duration) {
    let started = Instant::now();
    loop {
        let mut silent = Vec::new();
        for (title, expr) in expressions {
            match prometheus.query(expr) {
                Ok(series) if series.is_empty() => silent.push(format!("{title}: empty: {expr}")),
                Ok(series) if series.iter().all(|(_, value)| value.is_finite()) => {}
                Ok(series) => silent.push(format!("{title}: {series:?}: {expr}")),
                Err(error) => panic!("{title}: {error}: {expr}"),
            }
        }
        if silent.is_empty() {
            return;
        }
        assert!(started.elapsed() < within, "{}", silent.join("\n"));
        thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn every_expression_answers_under_load_and_none_divides_by_zero_when_quiet() {
    let agents = [Agent::start(), Agent::start()];
    let addresses = agents.each_ref().map(|agent| agent.address);
    let prometheus = Prometheus::start(&addresses, &rules());

    let one_node = addresses[0].to_string().replace('.', "\\\\.");
    let panels: Vec<(String, String)> = shipped()
        .iter()
        .flat_map(|(_, dashboard)| expressions(dashboard))
        .collect();
    let mut asked = Vec::new();
    for (title, expr) in &panels {
        for choices in [
            &[][..],
            &[("service", "(vllm|tgi)"), ("job", "perjoule")],
            &[("service", "tgi"), ("instance", one_node.as_str())],
        ] {
            asked.push((title.clone(), substituted(expr, choices)));
        }
    }
    all_answer(&prometheus, &asked, Duration::from_secs(60));

    variables_find_their_values(&prometheus);
    figures_are_those_that_were_booked(&prometheus, &addresses.map(|address| address.to_string()));
    rules_record_series(&prometheus);

    agents.iter().for_each(Agent::go_quiet);
    thread::sleep(Duration::from_secs(7));
    for (title, expr) in &asked {
        let series = prometheus.query(expr).unwrap();
        assert!(
            series.iter().all(|(_, value)| value.is_finite()),
            "{title} without traffic: {series:?}: {expr}"
        );
    }
}

fn variables_find_their_values(prometheus: &Prometheus) {
    for (file, dashboard) in shipped() {
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            if variable["type"] != "query" {
                continue;
            }
            let query = variable["query"]["query"].as_str().unwrap();
            let inner = query
                .strip_prefix("label_values(")
                .and_then(|query| query.strip_suffix(')'))
                .unwrap_or_else(|| panic!("{file}: {query}"));
            let (selector, label) = inner.rsplit_once(", ").unwrap();
            let series = prometheus.query(&substituted(selector, &[])).unwrap();
            assert!(
                series.iter().any(|(labels, _)| labels[label].is_string()),
                "{file}: {query} finds nothing"
            );
        }
    }
}

fn figures_are_those_that_were_booked(prometheus: &Prometheus, agents: &[String]) {
    let panel = |title: &str| {
        let (_, dashboard) = shipped()
            .into_iter()
            .find(|(file, _)| file == "inference-service.json")
            .unwrap();
        let (_, expr) = expressions(&dashboard)
            .into_iter()
            .find(|(of, _)| of == title)
            .unwrap_or_else(|| panic!("no panel {title}"));
        prometheus.query(&substituted(&expr, &[])).unwrap()
    };
    assert_eq!(panel("Ledger residual")[0].1, 0.0);
    // What is booked: 5 to 35 J a request, of which two in six carry 140 chunks each.
    let per_request = panel("Energy per request")[0].1;
    assert!((5.0..36.0).contains(&per_request), "{per_request}");
    let per_token = panel("Energy per output token")[0].1;
    assert!(
        (per_token / (per_request / 140.0) - 1.0).abs() < 0.01,
        "{per_token}"
    );
    let idle = panel("Idle share of the GPUs")[0].1;
    assert!((idle - 16.6 / 63.2).abs() < 0.001, "{idle}");
    // The agents' own processes, and not Prometheus, which is scraped too.
    for (labels, _) in panel("What the agent costs") {
        let instance = labels["instance"].as_str().unwrap();
        assert!(agents.iter().any(|agent| agent == instance), "{instance}");
    }
}

fn rules_record_series(prometheus: &Prometheus) {
    let rules = prometheus.api("/api/v1/rules").unwrap();
    let mut names = Vec::new();
    for group in rules["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{rule}");
            shape::names_only_known_metrics(rule["query"].as_str().unwrap());
            let name = rule["name"].as_str().unwrap().to_owned();
            names.push((name.clone(), name));
        }
    }
    assert!(names.len() >= 4, "{names:?}");
    all_answer(prometheus, &names, Duration::from_secs(20));
}

#[test]
fn promtool_accepts_the_rules() {
    let checked = Command::new("promtool")
        .arg("check")
        .arg("rules")
        .arg(rules())
        .output()
        .unwrap_or_else(|error| panic!("cannot run promtool: {error}; apt-get install prometheus"));
    let said = String::from_utf8_lossy(&checked.stdout).into_owned()
        + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    assert!(!said.to_lowercase().contains("warn"), "{said}");
}
