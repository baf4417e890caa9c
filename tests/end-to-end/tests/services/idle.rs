//! What nobody needs is not attached.

use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::server::free_port;
use end_to_end::{http, is_root};

use crate::script::Script;

#[test]
fn no_hook_sees_requests_before_there_is_a_service() {
    if !is_root("hooks without a service") {
        return;
    }
    let port = free_port();
    let agent = Agent::start(&["--port", &port.to_string()]);
    // Programs that are not asked for have no series.
    let attached = || {
        let scrape = http::get(agent.port(), "/metrics");
        let text = http::body(&scrape);
        assert!(text.contains("perjoule_probe_up{program=\"sched_switch\""));
        let hooks = [
            "sock_recv_length",
            "inet_recvmsg",
            "receive_entry",
            "sys_exit",
        ];
        hooks
            .iter()
            .filter(|hook| text.contains(&format!("perjoule_probe_up{{program=\"{hook}\"")))
            .count()
    };
    sleep(Duration::from_millis(2_500));
    assert_eq!(attached(), 0, "{}", agent.log());
    assert!(agent.log().contains("self-test passed"), "{}", agent.log());
    let server = Script::start(&format!(
        "front = listen({port}); background(front)\nready({port})"
    ));
    let start = Instant::now();
    while attached() == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", agent.log());
        sleep(Duration::from_millis(100));
    }
    drop(server);
}
