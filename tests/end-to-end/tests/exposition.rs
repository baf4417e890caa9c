//! What a live agent serves, read by those who will read it: Python's strict OpenMetrics parser and a
//! Prometheus that keeps exemplars.

use std::collections::HashSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::engine::Engine;
use end_to_end::stack::Stack;
use end_to_end::{http, is_root, python, scaled, skipped};
use serde_json::Value;

const OPENMETRICS: &str = "Accept: application/openmetrics-text;version=1.0.0\r\n";

/// Prints families with kind and unit, and every exemplar.
const PARSE: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
families = list(text_string_to_metric_families(sys.stdin.read()))
json.dump({
    'families': {family.name: [family.type, family.unit] for family in families},
    'exemplars': [
        [family.name, sample.exemplar.labels, sample.exemplar.value]
        for family in families for sample in family.samples if sample.exemplar
    ],
}, sys.stdout)
";

/// An agent and a stack that has served for five seconds.
fn under_load(stack: &Stack) -> Agent {
    let agent = Agent::start_with(stack.perjoule(), &["--aliases", "otel"]);
    sleep(Duration::from_secs(2));
    let status = stack.load(4.0, 5).wait().expect("a load");
    assert!(status.success());
    sleep(Duration::from_secs(3));
    agent
}

fn parsed(text: &str) -> Option<Value> {
    let mut command = python::program("python3")?;
    let mut parser = command
        .args(["-c", PARSE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it can be started");
    let mut input = parser.stdin.take().expect("a pipe");
    // It may end before it has read all.
    let _ = input.write_all(text.as_bytes());
    drop(input);
    let said = parser.wait_with_output().expect("it ends");
    let error = String::from_utf8_lossy(&said.stderr);
    if error.contains("No module named 'prometheus_client'") {
        skipped("prometheus_client: it is not in target/python (`cargo xtask test` puts it there)");
        return None;
    }
    assert!(said.status.success(), "{error}\n{text}");
    Some(serde_json::from_slice(&said.stdout).expect("JSON"))
}

#[test]
fn pythons_strict_parser_accepts_what_a_live_agent_serves() {
    if !is_root("the OpenMetrics parser") {
        return;
    }
    let stack = Stack::start();
    let mut agent = under_load(&stack);
    let answer = http::get_with(agent.port(), "/metrics", OPENMETRICS);
    let (head, text) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let Some(parsed) = parsed(text) else { return };
    for (family, kind, unit) in [
        ("perjoule_meter_energy_joules", "counter", "joules"),
        ("perjoule_request_energy_joules", "histogram", "joules"),
        ("perjoule_run_queue_latency_seconds", "histogram", "seconds"),
        ("perjoule_gpu_power_watts", "gauge", "watts"),
        ("perjoule_build_info", "gauge", ""),
        ("process_cpu_seconds", "counter", "seconds"),
        ("hw_energy_joules", "counter", "joules"),
        (
            "gen_ai_server_request_duration_seconds",
            "histogram",
            "seconds",
        ),
    ] {
        let said = &parsed["families"][family];
        assert_eq!(said[0], kind, "{family}: {said}");
        assert_eq!(said[1], unit, "{family}: {said}");
    }
    agent.end_with(libc::SIGTERM);
    let recorded = recorded(&agent);
    let exemplars = parsed["exemplars"].as_array().expect("a list");
    assert!(!exemplars.is_empty(), "{text}");
    for exemplar in exemplars {
        let labels = exemplar[1].as_object().expect("labels");
        assert_eq!(labels.len(), 1, "{exemplar}");
        let id = labels["request_id"].as_str().expect("an id");
        assert!(recorded.contains(id), "{exemplar} is not in the recording");
    }
}

/// The ids of the requests that were recorded.
fn recorded(agent: &Agent) -> HashSet<String> {
    let requests = agent.requests();
    requests
        .iter()
        .map(|request| request["id"].to_string())
        .collect()
}

#[test]
fn prometheus_gives_an_exemplar_back_by_which_the_request_is_found() {
    if !is_root("exemplars") {
        return;
    }
    let stack = Stack::start();
    let mut agent = under_load(&stack);
    let prometheus = Engine::prometheus(&[SocketAddr::from(([127, 0, 0, 1], agent.port()))], &[]);
    let start = Instant::now();
    let found = loop {
        let found = prometheus.exemplars("perjoule_request_energy_joules_bucket");
        let found = found.expect("an answer");
        if found.as_array().is_some_and(|found| !found.is_empty()) {
            break found;
        }
        assert!(start.elapsed() < scaled(Duration::from_secs(20)), "none");
        sleep(Duration::from_millis(200));
    };
    // It was scraped as OpenMetrics, and its bounds are those of that format.
    let buckets = prometheus.query("perjoule_request_energy_joules_bucket{le=\"100.0\"}");
    assert!(!buckets.expect("series").is_empty());
    agent.end_with(libc::SIGTERM);
    let recorded = recorded(&agent);
    for series in found.as_array().expect("series") {
        assert_eq!(
            series["seriesLabels"]["route"], "chat_completions",
            "{series}"
        );
        for exemplar in series["exemplars"].as_array().expect("exemplars") {
            let id = exemplar["labels"]["request_id"].as_str().expect("an id");
            assert!(recorded.contains(id), "{exemplar} is not in the recording");
            let joules: f64 = exemplar["value"]
                .as_str()
                .expect("a value")
                .parse()
                .expect("joules");
            let mut requests = agent.requests().into_iter();
            let request = requests.find(|request| request["id"].as_u64() == id.parse().ok());
            let request = request.expect("the request");
            let of = |key: &str| request[key].as_f64().unwrap_or(0.0);
            let booked = (of("gpu_uj") + of("cpu_uj") + of("dram_uj")) / 1e6;
            assert!((joules - booked).abs() < 1e-6, "{joules} J, {request}");
        }
    }
}
