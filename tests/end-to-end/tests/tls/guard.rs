//! What TLS costs: nothing where nobody asked for it, and no more than it may where somebody did.

use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::http::get;

use crate::servers::{Client, Server};

fn metrics(agent: &Agent) -> String {
    get(agent.port(), "/metrics")
}

#[test]
fn without_the_switch_nothing_of_it_is_attached() {
    if !end_to_end::is_root("TLS off") {
        return;
    }
    let Some(server) = Server::start("python3", "asyncio_server.py", &[]) else {
        return;
    };
    let port = server.port.to_string();
    let mut agent = Agent::start(&["--port", &port]);
    Client::start(server.port, &["3*/plain", "stream"]).finish();
    std::thread::sleep(Duration::from_millis(1_500));
    let text = metrics(&agent);
    assert!(text.contains("sock_recv_length"), "{text}");
    assert!(!text.contains("ssl_"), "{text}");
    agent.end_with(libc::SIGTERM);
    assert_eq!(agent.requests().len(), 0);
}

#[test]
fn with_the_switch_the_agent_books_what_is_inside() {
    if !end_to_end::is_root("TLS on") {
        return;
    }
    let Some(server) = Server::start("python3", "asyncio_server.py", &[]) else {
        return;
    };
    let port = server.port.to_string();
    let mut agent = Agent::start(&["--port", &port, "--tls"]);
    until(&agent, "TLS is read");
    Client::start(server.port, &["3*/plain", "stream"]).finish();
    std::thread::sleep(Duration::from_millis(1_500));
    let text = metrics(&agent);
    assert!(
        text.contains("perjoule_probe_up{program=\"ssl_read\",tier=\"uprobe\"} 1"),
        "{text}"
    );
    agent.end_with(libc::SIGTERM);
    let requests = agent.requests();
    assert_eq!(requests.len(), 4, "{requests:?}");
}

#[test]
fn probes_that_cost_more_than_they_may_are_taken_off() {
    if !end_to_end::is_root("the guard") {
        return;
    }
    let Some(server) = Server::start("python3", "busy.py", &[]) else {
        return;
    };
    let pid = server.pid().to_string();
    let mut agent = Agent::start(&["--pid", &pid, "--tls"]);
    until(&agent, "TLS is no longer read");
    let log = agent.log();
    assert!(log.contains("1 % is the most"), "{log}");
    std::thread::sleep(Duration::from_millis(1_200));
    let text = metrics(&agent);
    for program in ["ssl_read", "ssl_write"] {
        let down = format!("perjoule_probe_up{{program=\"{program}\",tier=\"uprobe\"}} 0");
        assert!(text.contains(&down), "{text}");
    }
    let runs = || {
        let text = metrics(&agent);
        let line = text
            .lines()
            .find(|line| line.starts_with("perjoule_probe_runs_total{program=\"ssl_write\""));
        line.expect("it ran").to_owned()
    };
    let before = runs();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(runs(), before, "nothing runs any more");
    agent.end_with(libc::SIGTERM);
}

fn until(agent: &Agent, said: &str) {
    let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(20));
    while !agent.log().contains(said) {
        assert!(Instant::now() < give_up, "{}", agent.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}
