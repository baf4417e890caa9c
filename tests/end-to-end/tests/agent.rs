//! The agent as its users run it: beside another, under load, and how it ends.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::Agent;
use end_to_end::server::Server;
use end_to_end::stack::Stack;
use end_to_end::{Programs, http, is_root};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_signal_ends_it_within_a_second_with_the_last_request_told_and_no_program_left() {
    if !is_root("signals") {
        return;
    }
    let before = Programs::now();
    let server = Server::python();
    let port = server.port().to_string();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut agent = Agent::start(&["--port", &port]);
        assert!(before.new_ones() >= 4, "{}", agent.log());
        // Its record is still in the ring when the signal comes.
        http::get(server.port(), "/file.txt");
        let took = agent.end_with(signal);
        assert!(took < SECOND, "{took:?}");
        assert_eq!(agent.requests().len(), 1, "{}", agent.log());
        before.assert_nothing_left();
    }
}

#[test]
fn a_second_agent_beside_the_first_gives_the_same_answers() {
    if !is_root("two agents") {
        return;
    }
    let stack = Stack::start();
    let mut agents = [(); 2].map(|()| Agent::start_with(stack.perjoule(), &[]));
    sleep(2 * SECOND);
    let status = stack.load(4.0, 6).wait().expect("a load");
    assert!(status.success());
    sleep(3 * SECOND);
    let figures = agents.each_mut().map(|agent| {
        agent.end_with(libc::SIGTERM);
        let mut requests = agent.requests();
        // Each sees the other read the engine's metrics, as it sees Prometheus do.
        requests.retain(|request| request["route"] != "health");
        let microjoules: u64 = requests
            .iter()
            .filter_map(|request| request["gpu_uj"].as_u64())
            .sum();
        (requests.len(), microjoules)
    });
    let [(first, first_uj), (second, second_uj)] = figures;
    assert_eq!(first, stack.served());
    assert_eq!(second, stack.served());
    let ratio = first_uj as f64 / second_uj as f64;
    // Each learns its own floor from the same noisy idle.
    assert!(
        (0.98..1.02).contains(&ratio),
        "{first_uj} µJ and {second_uj} µJ"
    );
}

#[test]
fn a_scrape_under_load_is_what_prometheus_expects() {
    if !is_root("promtool") {
        return;
    }
    let stack = Stack::start();
    let agent = Agent::start_with(stack.perjoule(), &["--syscalls"]);
    let ready = || http::get(agent.port(), "/-/ready");
    let start = std::time::Instant::now();
    while !ready().starts_with("HTTP/1.1 200") {
        assert!(
            start.elapsed() < 3 * SECOND,
            "no interval booked: {}",
            agent.log()
        );
        sleep(Duration::from_millis(20));
    }
    sleep(SECOND);
    let mut load = stack.load(6.0, 5);
    sleep(5 * SECOND);
    let scrape = http::get(agent.port(), "/metrics");
    let _ = load.wait();
    let text = http::body(&scrape);
    for name in [
        "perjoule_meter_energy_joules_total{",
        "perjoule_energy_account_joules_total{",
        "perjoule_request_energy_joules_bucket{",
        "perjoule_requests_total{",
        "perjoule_time_to_first_token_seconds_bucket{",
        "perjoule_tokens_total{",
        "perjoule_cpu_seconds_total{",
        "perjoule_syscalls_total{",
        "perjoule_gpu_power_watts{",
        "perjoule_gpu_info{",
        "perjoule_probe_up{",
        "perjoule_probe_runs_total{",
        "perjoule_source_up{",
        "perjoule_service_info{",
        "perjoule_ledger_residual_joules 0\n",
        "process_cpu_seconds_total ",
    ] {
        assert!(text.contains(name), "no {name} in\n{text}");
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (package prometheus)");
    promtool
        .stdin
        .take()
        .expect("a pipe")
        .write_all(text.as_bytes())
        .expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&said)
    );
    assert_eq!(String::from_utf8_lossy(&said), "");
}

#[test]
fn it_finds_the_serving_stack_by_its_gpu_context_and_keeps_health_checks_apart() {
    if !is_root("discovery") {
        return;
    }
    let stack = Stack::start();
    let mut agent = Agent::start_with(stack.perjoule(), &[]);
    sleep(2 * SECOND);
    assert!(http::get(stack.port(), "/health").starts_with("HTTP/1.1 200"));
    let status = stack.load(5.0, 2).wait().expect("a load");
    assert!(status.success());
    sleep(3 * SECOND);
    agent.end_with(libc::SIGTERM);
    let requests = agent.requests();
    let health: Vec<_> = requests
        .iter()
        .filter(|request| request["route"] == "health")
        .collect();
    assert_eq!(health.len(), 1);
    assert!(health[0]["gpu_uj"].is_null());
    assert_eq!(requests.len() - health.len(), stack.served());
}

/// The series of a scrape that only grow, by name and labels.
fn totals(agent: &Agent) -> BTreeMap<String, f64> {
    let scrape = http::get(agent.port(), "/metrics");
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let name = series.split('{').next()?;
        let is_total = ["_total", "_bucket", "_count", "_sum"]
            .iter()
            .any(|ending| name.ends_with(ending));
        // What the agent itself costs begins with it, and so does what it looks at beside energy.
        let is_own = [
            "process_",
            "perjoule_probe_",
            "perjoule_source_",
            "perjoule_gpu_",
        ]
        .iter()
        .any(|beginning| name.starts_with(beginning));
        (is_total && !is_own).then(|| Some((series.to_owned(), value.parse().ok()?)))?
    };
    http::body(&scrape).lines().filter_map(sample).collect()
}

fn sum(totals: &BTreeMap<String, f64>, of: &[&str]) -> f64 {
    let matches = |series: &(&String, &f64)| of.iter().all(|part| series.0.contains(part));
    totals.iter().filter(matches).map(|(_, value)| value).sum()
}

#[test]
fn an_agent_that_is_started_again_goes_on_from_its_totals_and_the_hole_is_gap() {
    const REQUESTS: &[&str] = &["perjoule_requests_total{", "chat_completions"];
    const METER: &[&str] = &["meter_energy_joules_total{", "gpu"];
    const GAP: &[&str] = &["energy_account_joules_total{", "gpu", "\"gap\""];
    if !is_root("restarts") {
        return;
    }
    let stack = Stack::start();
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state.json");
    let arguments = ["--state", state.to_str().expect("UTF-8")];
    let start = || Agent::start_with(stack.perjoule(), &arguments);

    let mut agent = start();
    sleep(2 * SECOND);
    let status = stack.load(4.0, 3).wait().expect("a load");
    assert!(status.success());
    sleep(3 * SECOND);
    let before = totals(&agent);
    assert_eq!(sum(&before, REQUESTS), stack.served() as f64);
    assert_eq!(sum(&before, GAP), 0.0);
    agent.end_with(libc::SIGTERM);
    assert!(state.exists(), "{}", agent.log());

    // Shorter than what makes a meter stale.
    sleep(SECOND);
    let mut agent = start();
    sleep(3 * SECOND);
    let after = totals(&agent);
    for (series, value) in &before {
        let now = after
            .get(series)
            .unwrap_or_else(|| panic!("{series} is gone"));
        assert!(now >= value, "{series} fell from {value} to {now}");
    }
    assert_eq!(sum(&after, REQUESTS), stack.served() as f64);
    let (hole, grown) = (sum(&after, GAP), sum(&after, METER) - sum(&before, METER));
    // The GPU idles at 83 W; some four to six seconds lie between the scrapes.
    println!("{hole} J of {grown} J were measured while no agent looked");
    assert!((80.0..250.0).contains(&hole), "{hole} J");
    assert!((200.0..800.0).contains(&grown), "{grown} J");

    // Killed, with requests that nobody scraped.
    let status = stack.load(4.0, 2).wait().expect("a load");
    assert!(status.success());
    sleep(2 * SECOND);
    let before = totals(&agent);
    let shown = stack.served() as f64;
    assert_eq!(sum(&before, REQUESTS), shown);
    let status = stack.load(4.0, 2).wait().expect("a load");
    assert!(status.success());
    sleep(SECOND);
    agent.kill();
    let agent = start();
    sleep(3 * SECOND);
    let after = totals(&agent);
    for (series, value) in &before {
        let now = after
            .get(series)
            .unwrap_or_else(|| panic!("{series} is gone"));
        assert!(now >= value, "{series} fell from {value} to {now}");
    }
    assert_eq!(sum(&after, REQUESTS), shown, "nothing is counted twice");
    let hole = sum(&after, GAP) - sum(&before, GAP);
    let grown = sum(&after, METER) - sum(&before, METER);
    println!("{hole} J of {grown} J were booked by no agent that was scraped");
    assert!(hole > 300.0 && hole < grown, "{hole} J of {grown} J");
}
