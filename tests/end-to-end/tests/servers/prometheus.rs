//! Debian's Prometheus, a server in Go. Its log are its own counters, which it shows itself: they
//! are read before the agent looks and after it has looked.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::Agent;
use end_to_end::load::http1::Http1;
use end_to_end::load::{Kind, Load};
use end_to_end::{http, is_root};

use crate::compare::MEDIAN;
use crate::idle;
use crate::run::{ATTEMPTS, LOADS, Size, TIMED, losses, recorded, show};
use crate::start::{Place, Server, installed};

/// What it serves: its own metrics, queries good and bad, checks.
const QUERIES: &[(u64, Kind)] = &[
    (40, Kind::get("/api/v1/query?query=vector(1)")),
    (
        10,
        Kind::get("/api/v1/query_range?query=vector(1)&start=0&end=9000&step=1"),
    ),
    (10, Kind::get("/api/v1/query")),
    (10, Kind::get("/api/v1/status/buildinfo")),
    (15, Kind::get("/metrics")),
    (10, Kind::get("/-/healthy")),
];

/// Requests by code, and the seconds that all of them took.
#[derive(Default)]
struct Counted {
    by_code: BTreeMap<u16, i64>,
    seconds: f64,
}

fn counted(server: &Server) -> Counted {
    let scrape = http::get(server.port, "/metrics");
    let mut counted = Counted::default();
    for line in http::body(&scrape).lines() {
        let value = || line.rsplit(' ').next()?.parse::<f64>().ok();
        if line.starts_with("prometheus_http_requests_total{") {
            let code = line
                .split_once("code=\"")
                .and_then(|(_, rest)| rest.get(..3)?.parse().ok());
            if let (Some(code), Some(value)) = (code, value()) {
                *counted.by_code.entry(code).or_default() += value as i64;
            }
        } else if line.starts_with("prometheus_http_request_duration_seconds_sum{") {
            counted.seconds += value().unwrap_or(0.0);
        }
    }
    counted
}

/// What was counted between two looks: without the first, which was itself counted after it.
fn between(first: &Counted, second: &Counted) -> Counted {
    let mut by_code = second.by_code.clone();
    for (code, count) in &first.by_code {
        *by_code.entry(*code).or_default() -= count;
    }
    *by_code.entry(200).or_default() -= 1;
    by_code.retain(|_, count| *count != 0);
    Counted {
        by_code,
        seconds: second.seconds - first.seconds,
    }
}

#[test]
fn prometheus_in_go() {
    if !is_root("prometheus") {
        return;
    }
    let Some(mut command) = installed("prometheus", "prometheus") else {
        return;
    };
    let place = Place::new();
    let configuration = place.path().join("prometheus.yml");
    std::fs::write(&configuration, "global: {}\n").expect("a file");
    let address = format!("127.0.0.1:{}", place.port);
    command.arg(format!("--config.file={}", configuration.display()));
    command.arg(format!(
        "--storage.tsdb.path={}",
        place.path().join("data").display()
    ));
    command.arg(format!("--web.listen-address={address}"));
    let server = place.start(&mut command);
    // It answers 503 until it has read its configuration.
    while !http::get(server.port, "/-/ready").starts_with("HTTP/1.1 200") {
        sleep(Duration::from_millis(50));
    }
    let mut table = String::from(
        "server, connections: requests seen by code, logged by code, mean duration seen, logged\n",
    );
    let mut wrong = Vec::new();
    let mut first = 0;
    for size in LOADS {
        let mut was_disturbed = false;
        for attempt in 1..=ATTEMPTS {
            let compared = compare(&server, *size, first);
            first += 10_000;
            table.push_str(&compared.row);
            wrong.extend(compared.wrong);
            was_disturbed |= compared.was_disturbed;
            let Some(apart) = compared.apart else { break };
            if attempt == ATTEMPTS && was_disturbed {
                end_to_end::skipped(&format!("prometheus: {apart}: the CPU is not idle"));
            } else if attempt == ATTEMPTS {
                wrong.push(apart);
            }
        }
    }
    show(&table);
    assert!(wrong.is_empty(), "{}\n{table}", wrong.join("\n"));
}

/// A line of the table, and what is wrong in it.
struct Compared {
    row: String,
    wrong: Vec<String>,
    /// Mean durations that are too far apart.
    apart: Option<String>,
    /// The CPU was not idle meanwhile.
    was_disturbed: bool,
}

/// Sends a load and compares what the agent saw with what the server counted.
fn compare(server: &Server, (connections, requests, think): Size, first: u64) -> Compared {
    let before = counted(server);
    let mut agent = Agent::start(&["--port", &server.port.to_string()]);
    let load = Load {
        connections,
        requests,
        think: think / 2..think * 3 / 2,
        mix: QUERIES,
        first,
    };
    let (_, disturbance) = idle::during(|| load.run(Http1 { port: server.port }));
    sleep(Duration::from_millis(300));
    let mut wrong = losses(&agent);
    agent.end_with(libc::SIGTERM);
    let mut logged = counted(server);
    // The first look's own duration is in the sum; it is as good as any other.
    let looks = 1.0;
    logged = between(&before, &logged);
    let seen = recorded(&agent);
    let mut by_code: BTreeMap<u16, i64> = BTreeMap::new();
    for seen in &seen {
        *by_code.entry(seen.status).or_default() += 1;
    }
    let took: f64 = seen.iter().map(|seen| seen.end_s - seen.start_s).sum();
    let mean = took / seen.len() as f64;
    let logged_mean = logged.seconds / (seen.len() as f64 + looks);
    let row = format!(
        "{:<24} {connections:>5}: {by_code:?}, {:?}, {:.3} ms, {:.3} ms, {disturbance}\n",
        "prometheus",
        logged.by_code,
        mean * 1e3,
        logged_mean * 1e3
    );
    let at = |what: String| format!("{connections} connections: {what}");
    if by_code != logged.by_code {
        wrong.push(at(format!(
            "codes {by_code:?}, logged {:?}",
            logged.by_code
        )));
    }
    let odd = seen
        .iter()
        .filter(|seen| seen.outcome != "done" || seen.chunks != 0);
    wrong.extend(odd.map(|seen| at(format!("{seen:?}"))));
    let is_apart = connections <= TIMED && (mean - logged_mean).abs() > MEDIAN;
    Compared {
        row,
        wrong,
        apart: is_apart.then(|| at(format!("mean duration {mean}, logged {logged_mean}"))),
        was_disturbed: !disturbance.is_none(),
    }
}
