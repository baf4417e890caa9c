//! Tokens as the engine itself counts them, read from its metrics beside the requests.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::Agent;
use end_to_end::stack::Stack;
use end_to_end::{binary, http, is_root};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);

/// The value of the one series with this name and these labels.
fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut found = text.lines().filter(|line| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    });
    let line = found.next()?;
    assert_eq!(found.next(), None, "more than one {name} with {labels:?}");
    line.rsplit(' ').next()?.parse().ok()
}

fn recorded_report(agent: &Agent) -> Value {
    let output = Command::new(binary("perjoule"))
        .args(["report", "--format", "json"])
        .arg(agent.recording_path())
        .output()
        .expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn service(report: &Value) -> &Value {
    &report["services"][0]
}

#[test]
fn tokens_in_and_out_are_exactly_those_of_the_load_in_metrics_and_report() {
    if !is_root("tokens") {
        return;
    }
    let stack = Stack::start();
    // Counted before anybody looked: nobody's.
    stack.load_whole(5.0, 1);
    let before = stack.served();
    let mut agent = Agent::start_with(stack.perjoule(), &[]);
    sleep(2 * SECOND);
    let load = stack.load_whole(5.0, 4);
    assert_eq!((&load["aborted"], &load["failed"]), (&0.into(), &0.into()));
    sleep(2 * SECOND);
    let scrape = http::get(agent.port(), "/metrics");
    let text = http::body(&scrape);
    for (kind, truth) in [("input", "tokens_in"), ("output", "tokens_out")] {
        let kind = format!("kind=\"{kind}\"");
        let labels = [kind.as_str(), "source=\"server_metrics\""];
        assert_eq!(
            value(text, "perjoule_tokens_total", &labels),
            load[truth].as_f64(),
            "{kind}: {text}"
        );
    }
    let of = |source| value(text, "perjoule_tokens_total", &[source]);
    assert_eq!(
        of("source=\"chunks\""),
        None,
        "sources are not mixed: {text}"
    );
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    let info = [
        "engine=\"vllm\"",
        "model=\"simulated-8b\"",
        version.as_str(),
    ];
    assert_eq!(
        value(text, "perjoule_service_info", &info),
        Some(1.0),
        "{text}"
    );
    for state in ["state=\"running\"", "state=\"waiting\""] {
        assert_eq!(value(text, "perjoule_engine_requests", &[state]), Some(0.0));
    }
    let up = value(text, "perjoule_source_up", &["source=\"tokens\""]);
    assert_eq!(up, Some(1.0), "{text}");

    agent.end_with(libc::SIGTERM);
    let report = recorded_report(&agent);
    let told = service(&report);
    assert_eq!(told["tokens"]["input"], load["tokens_in"]);
    assert_eq!(told["tokens"]["output"], load["tokens_out"]);
    assert_eq!(told["tokens"]["source"], "server_metrics");
    assert_eq!(told["model"], "simulated-8b");
    let joules = told["energy_j"]["total"].as_f64().expect("energy");
    let tokens = |key: &str| load[key].as_f64().expect("tokens");
    let near = |value: &Value, truth: f64| {
        let value = value.as_f64().expect("a ratio");
        assert!((value / truth - 1.0).abs() < 1e-9, "{value} for {truth}");
    };
    near(&told["j_per_output_token"], joules / tokens("tokens_out"));
    near(
        &told["j_per_token"],
        joules / (tokens("tokens_in") + tokens("tokens_out")),
    );
    // The agent's own reads are nobody's requests.
    assert_eq!(told["requests"]["health"], 0);
    assert_eq!(agent.requests().len(), stack.served() - before);
}

#[test]
fn stat_counts_every_token_of_its_command_and_without_the_metrics_its_chunks() {
    if !is_root("stat tokens") {
        return;
    }
    let stack = Stack::start();
    let port = stack.port().to_string();
    let url = format!("http://127.0.0.1:{port}");
    let run = |flags: &[&str]| {
        let output = stack
            .perjoule()
            .args(["stat", "--json", "--port", &port])
            .args(flags)
            .arg("--")
            .arg(binary("inference-sim"))
            .args(["load", "--url", &url, "--rate", "6", "--seconds", "3"])
            .output()
            .expect("it can be started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines = text.lines().rev().map(serde_json::from_str::<Value>);
        let report = lines.next().expect("a report").expect("JSON");
        let load = lines.next().expect("a summary").expect("JSON");
        (report, load)
    };
    let (report, load) = run(&[]);
    let told = service(&report);
    assert_eq!(told["tokens"]["source"], "server_metrics", "{report}");
    assert_eq!(told["tokens"]["input"], load["tokens_in"], "{report}");
    assert_eq!(told["tokens"]["output"], load["tokens_out"]);
    assert_eq!(told["requests"]["total"], load["sent"]);

    let (report, load) = run(&["--no-engine-metrics"]);
    let told = service(&report);
    assert_eq!(told["tokens"]["source"], "chunks", "{report}");
    assert_eq!(told["tokens"]["input"], Value::Null);
    assert_eq!(told["j_per_token"], Value::Null);
    assert_eq!(told["tokens"]["output"], load["chunks"]);
}
