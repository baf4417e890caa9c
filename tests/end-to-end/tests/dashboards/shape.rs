//! What Grafana and its linter ask of a dashboard, beyond that its expressions answer.

use std::collections::HashSet;

use profiler::export::{FAMILIES, Family, Kind};
use serde_json::Value;

use crate::{expressions, rules, shipped};

/// The words of an expression that are not inside quotes or braces.
fn words(expr: &str) -> Vec<(usize, &str)> {
    let (mut found, mut start, mut quoted) = (Vec::new(), None, false);
    for (at, character) in expr.char_indices().chain([(expr.len(), ' ')]) {
        if character == '"' {
            quoted = !quoted;
        }
        let inside = character.is_ascii_alphanumeric() || character == '_' || character == ':';
        match (inside && !quoted, start) {
            (true, None) => start = Some(at),
            (false, Some(from)) => {
                found.push((from, &expr[from..at]));
                start = None;
            }
            _ => {}
        }
    }
    found
}

/// The family a series name belongs to.
fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| {
        let suffix = name.strip_prefix(family.name);
        match family.kind {
            Kind::Histogram => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
            Kind::Counter | Kind::Gauge => suffix == Some(""),
        }
    })
}

/// The metrics of an expression: (where, series name, family).
fn metrics(expr: &str) -> Vec<(usize, &str, &'static Family)> {
    words(expr)
        .into_iter()
        .filter(|(_, word)| word.starts_with("perjoule_") || word.starts_with("process_"))
        .map(|(at, word)| match family(word) {
            Some(family) => (at, word, family),
            None => panic!("the agent has no metric {word}: {expr}"),
        })
        .collect()
}

/// The recorded series of an expression, which have a colon in their names.
fn recorded(expr: &str) -> Vec<&str> {
    let all = words(expr).into_iter().map(|(_, word)| word);
    all.filter(|word| word.contains(":perjoule_") || word.starts_with("perjoule:"))
        .collect()
}

/// Panics if an expression names a metric that the agent does not have, a series that no rule records, or
/// neither.
pub(crate) fn names_only_known_metrics(expr: &str) {
    let [rules, _] = rules().map(|file| std::fs::read_to_string(file).unwrap());
    let recorded = recorded(expr);
    for name in &recorded {
        let rule = format!("- record: {name}\n");
        assert!(rules.contains(&rule), "no rule records {name}: {expr}");
    }
    let own = metrics(expr).len();
    assert!(own + recorded.len() > 0, "no metric in {expr}");
}

#[test]
fn expressions_name_known_metrics_and_counters_stand_in_rates() {
    for (file, dashboard) in shipped() {
        for (title, expr) in expressions(&dashboard) {
            names_only_known_metrics(&expr);
            for (at, name, family) in metrics(&expr) {
                if family.kind != Kind::Gauge {
                    assert!(
                        expr[..at].ends_with("rate(") || expr[..at].ends_with("increase("),
                        "{file}, {title}: the counter {name} is not in a rate"
                    );
                }
                let selector = &expr[at + name.len()..];
                assert!(
                    name == "perjoule_build_info"
                        || selector.starts_with("{job=~\"$job\",instance=~\"$instance\""),
                    "{file}, {title}: {name} without job and instance"
                );
                let by_service = selector.split('}').next().unwrap().contains("service=~");
                assert_eq!(
                    by_service,
                    family.labels.contains(&"service"),
                    "{file}, {title}: the service variable and {name}"
                );
            }
        }
    }
}

#[test]
fn every_panel_says_what_it_shows_and_in_which_unit() {
    for (file, dashboard) in shipped() {
        let mut ids = HashSet::new();
        let mut taken = HashSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(!title.is_empty() && ids.insert(panel["id"].as_u64().unwrap()));
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(place("x") + place("w") <= 24, "{file}, {title}");
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    assert!(taken.insert((x, y)), "{file}: {title} overlaps");
                }
            }
            let kind = panel["type"].as_str().unwrap();
            if kind == "row" {
                continue;
            }
            assert!(
                matches!(kind, "timeseries" | "stat"),
                "{file}, {title}: {kind}"
            );
            let description = panel["description"].as_str().unwrap_or_default();
            assert!(description.len() > 20, "{file}: {title} has no description");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
            assert!(unit.is_some_and(|unit| !unit.is_empty()), "{file}, {title}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{file}, {title}");
            let sources = targets.iter().map(|target| &target["datasource"]);
            for source in sources.chain([&panel["datasource"]]) {
                assert_eq!(source["uid"], "${datasource}", "{file}, {title}");
            }
        }
    }
}

#[test]
fn dashboards_load_from_files_and_from_the_import_page_alike() {
    for (file, dashboard) in shipped() {
        assert!(dashboard.get("__inputs").is_none(), "{file}");
        assert!(dashboard.get("id").is_none_or(Value::is_null), "{file}");
        let version = dashboard["schemaVersion"].as_u64().unwrap();
        assert!((39..=42).contains(&version), "{file}: {version}");
        let uid = dashboard["uid"].as_str().unwrap();
        assert!(!uid.is_empty() && uid.len() <= 40, "{file}: {uid}");
        assert_eq!(dashboard["editable"], false, "{file}");
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let named = |name: &str| variables.iter().find(|variable| variable["name"] == name);
        assert_eq!(named("datasource").unwrap()["type"], "datasource", "{file}");
        // A cluster's label may be missing, and then it matches nothing too.
        for (name, all) in [
            ("job", ".+"),
            ("instance", ".+"),
            ("service", ".+"),
            ("cluster", ".*"),
            ("model", ".*"),
        ] {
            let used = expressions(&dashboard)
                .iter()
                .any(|(_, expr)| expr.contains(&format!("${name}")));
            let Some(variable) = named(name) else {
                assert!(!used, "{file}: no variable {name}");
                continue;
            };
            assert_eq!(variable["multi"], true, "{file}: {name}");
            assert_eq!(variable["allValue"], all, "{file}: {name}");
            assert_eq!(
                variable["refresh"], 2,
                "{file}: {name} follows the time range"
            );
        }
    }
}

#[test]
fn every_dashboard_leads_to_every_other() {
    let all = shipped();
    assert_eq!(all.len(), 5);
    let address = |dashboard: &Value| format!("/d/{}", dashboard["uid"].as_str().unwrap());
    let addresses: HashSet<String> = all
        .iter()
        .map(|(_, dashboard)| address(dashboard))
        .collect();
    for (file, dashboard) in &all {
        let links = dashboard["links"].as_array().unwrap().iter();
        let mut leads: HashSet<String> = links
            .map(|link| link["url"].as_str().unwrap().to_owned())
            .collect();
        assert!(leads.insert(address(dashboard)), "{file} leads to itself");
        assert_eq!(leads, addresses, "{file}");
    }
}
