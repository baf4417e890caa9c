//! An agent that costs more than it may takes optional probes off, and says so.

use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::{Agent, perjoule};
use end_to_end::server::Server;
use end_to_end::{http, is_root};

const THINNED: &str = "perjoule_probes_thinned_total{probe=\"syscalls\"} 1\n";

/// Two windows of five seconds, twice over.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn above_its_budget_the_agent_takes_optional_probes_off_and_says_so_in_metric_and_log() {
    if !is_root("the budget") {
        return;
    }
    let server = Server::python();
    let port = server.port().to_string();
    // A thousandth of a per cent is less than a tick costs.
    let arguments = ["--port", &port, "--syscalls", "--cpu-budget", "0.001"];
    let mut agent = Agent::start(&arguments);
    let up = |agent: &Agent, is: u8| {
        let text = metrics(agent);
        text.contains(&format!(
            "perjoule_probe_up{{program=\"sys_enter\",tier=\"tp_btf\"}} {is}\n"
        ))
    };
    assert!(up(&agent, 1), "{}", metrics(&agent));
    assert!(!metrics(&agent).contains("perjoule_probes_thinned_total"));
    let start = Instant::now();
    while !metrics(&agent).contains(THINNED) {
        assert!(start.elapsed() < PATIENCE, "{}", agent.log());
        sleep(Duration::from_millis(200));
    }
    assert!(up(&agent, 0), "{}", metrics(&agent));
    // What is not optional goes on.
    http::get(server.port(), "/file.txt");
    agent.end_with(libc::SIGTERM);
    assert_eq!(agent.requests().len(), 1, "{}", agent.log());
    let log = agent.log();
    assert!(log.contains("above its budget of 0.00 %"), "{log}");
    assert!(log.contains("syscalls are no longer seen"), "{log}");
}

#[test]
fn stacks_of_waits_are_the_first_that_are_given_up() {
    if !is_root("the budget of stacks") {
        return;
    }
    let server = Server::python();
    let port = server.port().to_string();
    let arguments = ["--port", &port, "--off-cpu", "--cpu-budget", "0.001"];
    let agent = Agent::start(&arguments);
    let start = Instant::now();
    while !metrics(&agent).contains("perjoule_probes_thinned_total{probe=\"off_cpu_stacks\"} 1\n") {
        assert!(start.elapsed() < PATIENCE, "{}", agent.log());
        sleep(Duration::from_millis(200));
    }
    let recorded = || agent.rows("SELECT * FROM off_cpu").len();
    // What the thread that finds names still had.
    sleep(Duration::from_secs(1));
    let before = recorded();
    assert!(before > 0, "it waits for requests");
    for _ in 0..5 {
        http::get(server.port(), "/file.txt");
        sleep(Duration::from_millis(100));
    }
    sleep(Duration::from_secs(1));
    assert_eq!(recorded(), before, "{}", agent.log());
}

#[test]
fn a_budget_that_is_none_is_refused_in_one_line() {
    let ended = perjoule(&["run", "--cpu-budget", "lots"]);
    assert_eq!(ended.status.code(), Some(2), "{}", ended.log);
    let why = "not per cent of a core, as in 1 or 0.5, nor `none`";
    assert!(ended.log.contains(why), "{}", ended.log);
}

fn metrics(agent: &Agent) -> String {
    let scrape = http::get(agent.port(), "/metrics");
    http::body(&scrape).to_owned()
}
