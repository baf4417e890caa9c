//! Every expression that is shipped, against a real Prometheus and a real VictoriaMetrics that scrape the
//! real exporter.
//!
//! Needs Debian's packages `prometheus` and `victoria-metrics`; no root, no GPU.

mod agent;
mod live;
mod month;
mod shape;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use agent::Agent;
use end_to_end::engine::Engine;
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

/// The files of rules.
fn rules() -> [PathBuf; 2] {
    ["rules.yaml", "alerts.yaml"].map(|name| dashboards().join(name).canonicalize().unwrap())
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
    for variable in ["$cluster", "$model"] {
        expr = expr.replace(variable, ".*");
    }
    assert!(!expr.contains('$'), "an unknown variable: {expr}");
    expr
}

/// Asks until every expression answers with finite data; panics with those that never did.
fn all_answer(engine: &Engine, expressions: &[(String, String)], within: Duration) {
    let started = Instant::now();
    loop {
        let mut silent = Vec::new();
        for (title, expr) in expressions {
            match engine.query(expr) {
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
    every_expression_answers(Engine::prometheus);
}

#[test]
fn every_expression_answers_in_victoria_metrics_too() {
    every_expression_answers(Engine::victoria);
}

fn every_expression_answers(start: impl Fn(&[SocketAddr], &[PathBuf]) -> Engine) {
    let agents = [Agent::start(), Agent::start()];
    let addresses = agents.each_ref().map(|agent| agent.address);
    let engine = start(&addresses, &rules());

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
    all_answer(&engine, &asked, Duration::from_secs(60));

    variables_find_their_values(&engine);
    figures_are_those_that_were_booked(&engine, &addresses.map(|address| address.to_string()));
    rules_record_series(&engine);

    agents.iter().for_each(Agent::go_quiet);
    thread::sleep(Duration::from_secs(7));
    for (title, expr) in &asked {
        let series = engine.query(expr).unwrap();
        assert!(
            series.iter().all(|(_, value)| value.is_finite()),
            "{title} without traffic: {series:?}: {expr}"
        );
    }
}

fn variables_find_their_values(engine: &Engine) {
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
            let series = engine.query(&substituted(selector, &[])).unwrap();
            assert!(
                series.iter().any(|(labels, _)| labels[label].is_string()),
                "{file}: {query} finds nothing"
            );
        }
    }
}

fn figures_are_those_that_were_booked(engine: &Engine, agents: &[String]) {
    let all = shipped();
    let panel = |name: &str, title: &str| {
        let (_, dashboard) = all
            .iter()
            .find(|(file, _)| *file == format!("{name}.json"))
            .unwrap_or_else(|| panic!("no dashboard {name}"));
        let (_, expr) = expressions(dashboard)
            .into_iter()
            .find(|(of, _)| of == title)
            .unwrap_or_else(|| panic!("no panel {title}"));
        engine.query(&substituted(&expr, &[])).unwrap()
    };
    assert_eq!(panel("agent", "Ledger residual")[0].1, 0.0);
    // What is booked: 5 to 35 J a request, of which two in six carry 140 chunks each.
    let per_request = panel("inference-service", "Energy per request")[0].1;
    assert!((5.0..36.0).contains(&per_request), "{per_request}");
    let per_token = panel("inference-service", "Energy per output token")[0].1;
    assert!(
        (per_token / (per_request / 140.0) - 1.0).abs() < 0.01,
        "{per_token}"
    );
    let idle = panel("inference-service", "Idle share of the GPUs")[0].1;
    assert!((idle - 16.6 / 63.2).abs() < 0.001, "{idle}");
    // The agents' own processes, and not Prometheus, which is scraped too.
    for (labels, _) in panel("agent", "CPU") {
        let instance = labels["instance"].as_str().unwrap();
        assert!(agents.iter().any(|agent| agent == instance), "{instance}");
    }
}

fn rules_record_series(engine: &Engine) {
    let rules = engine.rules().unwrap();
    let mut names = Vec::new();
    for group in rules["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{rule}");
            let query = rule["query"].as_str().unwrap();
            if !query.starts_with("vector(") {
                shape::names_only_known_metrics(query);
            }
            // An alert is there only while it fires; its own tests say when.
            if rule["type"] == "recording" {
                let name = rule["name"].as_str().unwrap().to_owned();
                // Only where a GPU does nothing; report.test.yaml says when.
                if !name.contains("quiet_gpu") {
                    names.push((name.clone(), name));
                }
            }
        }
    }
    assert!(names.len() >= 15, "{names:?}");
    all_answer(engine, &names, Duration::from_secs(20));
}

/// What promtool says, having succeeded without a warning.
fn promtool(arguments: &[&str], files: &[PathBuf]) -> String {
    let ran = Command::new("promtool")
        .args(arguments)
        .args(files)
        .output()
        .unwrap_or_else(|error| panic!("cannot run promtool: {error}; apt-get install prometheus"));
    let said =
        String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert!(!said.to_lowercase().contains("warn"), "{said}");
    said
}

#[test]
fn promtool_accepts_the_rules() {
    promtool(&["check", "rules"], &rules());
}

#[test]
fn what_a_report_adds_up_is_what_the_counters_counted() {
    let tests = dashboards().join("report.test.yaml");
    let text = fs::read_to_string(&tests).unwrap();
    let rules = fs::read_to_string(&rules()[0]).unwrap();
    let (_, group) = rules.split_once("- name: perjoule-report\n").unwrap();
    let (group, _) = group.split_once("- name:").unwrap();
    assert!(group.starts_with("    interval: 5m\n"), "{group}");
    for name in group
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "))
    {
        assert!(
            text.contains(&format!("expr: {name}\n")),
            "{name} is not tested"
        );
    }
    promtool(&["test", "rules"], &[tests]);
}

#[test]
fn each_alert_fires_when_it_should_and_at_no_other_time() {
    let tests = ["alerts.test.yaml", "alerts-week.test.yaml"].map(|name| dashboards().join(name));
    let text: String = tests
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let alerts = fs::read_to_string(dashboards().join("alerts.yaml")).unwrap();
    let explained = fs::read_to_string(dashboards().join("../docs/alerts.md")).unwrap();
    let mut known = 0;
    for line in alerts.lines() {
        let Some(alert) = line.trim().strip_prefix("- alert: ") else {
            continue;
        };
        known += 1;
        let told = |wanted: &str| {
            let cases = text.split("alertname: ").skip(1);
            let own = cases.filter(|case| case.starts_with(&format!("{alert}\n")));
            own.filter(|case| case.lines().nth(1) == Some(wanted))
                .count()
        };
        assert!(
            told("        exp_alerts:") > 0,
            "{alert} is not seen firing"
        );
        assert!(
            told("        exp_alerts: []") > 0,
            "{alert} is not seen quiet"
        );
        assert!(
            explained.contains(&format!("### {alert}\n")),
            "docs/alerts.md: {alert}"
        );
        let link = format!("runbook: docs/alerts.md#{}", alert.to_lowercase());
        assert!(alerts.contains(&link), "{link}");
    }
    assert!(known >= 10, "{known} alerts");
    promtool(&["test", "rules"], &tests);
}
