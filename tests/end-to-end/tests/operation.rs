//! The agent in the hands of a service manager: ready, alive, reloading, stopping; its log for programs;
//! its configuration looked at before it is used.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::{Agent, perjoule, perjoule_behind};
use end_to_end::{binary, http, scaled};
use serde_json::Value;

/// Listens as a service manager does.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket option");
        Self {
            socket,
            heard: Vec::new(),
        }
    }

    /// Waits until it hears something that begins so, and forgets all up to it.
    fn hears(&mut self, start: &str) -> String {
        let began = Instant::now();
        loop {
            if let Some(at) = self.heard.iter().position(|text| text.starts_with(start)) {
                return self.heard.drain(..=at).next_back().expect("it was found");
            }
            let mut text = [0; 512];
            if let Ok(length) = self.socket.recv(&mut text) {
                let text = String::from_utf8_lossy(&text[..length]).into_owned();
                self.heard.push(text);
            }
            let patience = scaled(Duration::from_secs(10));
            assert!(began.elapsed() < patience, "no {start}: {:?}", self.heard);
        }
    }
}

fn wait_for(agent: &Agent, text: &str) {
    let began = Instant::now();
    while !agent.log().contains(text) {
        let patience = scaled(Duration::from_secs(10));
        assert!(began.elapsed() < patience, "no `{text}`: {}", agent.log());
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_service_manager_hears_when_it_is_ready_alive_reloading_and_stopping() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("notify");
    let mut manager = Manager::at(&place);
    let file = folder.path().join("perjoule.toml");
    fs::write(&file, "log_level = \"info\"\n").expect("a file");
    let mut command = Command::new(binary("perjoule"));
    command
        .env("NOTIFY_SOCKET", &place)
        .env("WATCHDOG_USEC", "5000000")
        .env("PERJOULE_ENGINE_METRICS", "off");
    let mut agent = Agent::start_with(command, &["--config", &file.display().to_string()]);
    manager.hears("READY=1");
    manager.hears("STATUS=0 services, ");
    // Each snapshot feeds the watchdog; one that is stopped feeds it no more.
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");

    fs::write(
        &file,
        "log_level = \"debug\"\nmodel = \"m\"\n[intervals]\npublish_ms = 200\n",
    )
    .expect("a file");
    agent.signal(libc::SIGHUP);
    assert!(manager.hears("RELOADING=1").contains("\nMONOTONIC_USEC="));
    manager.hears("READY=1");
    wait_for(&agent, "log_level, intervals.publish_ms changed");
    wait_for(&agent, "change with a restart: model");

    fs::write(&file, "log_level = \"loud\"\n").expect("a file");
    agent.signal(libc::SIGHUP);
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    wait_for(&agent, "the configuration stays as it was");
    let metrics = http::get(agent.port(), "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");

    agent.end_with(libc::SIGTERM);
    manager.hears("STOPPING=1");
}

#[test]
fn each_line_of_the_log_is_an_object_where_that_is_asked_for() {
    let mut command = Command::new(binary("perjoule"));
    command.env("PERJOULE_ENGINE_METRICS", "off");
    let mut agent = Agent::start_with(command, &["--log-format", "json"]);
    agent.end_with(libc::SIGTERM);
    let log = agent.log();
    assert!(log.lines().count() >= 3, "{log}");
    for line in log.lines() {
        let line: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {log}"));
        for key in ["time", "level", "target", "message"] {
            assert!(line[key].is_string(), "{key}: {line}");
        }
    }
    // Also why it cannot start.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let ended = perjoule(&["run", "--log-format", "json", "--listen", &address]);
    assert!(!ended.status.success());
    let last: Value = serde_json::from_str(ended.log.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    assert_eq!(last["level"], "error");
    assert!(
        last["message"]
            .as_str()
            .is_some_and(|text| text.contains(&address))
    );
}

#[test]
fn config_check_tells_all_that_is_wrong_and_its_exit_code_agrees() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("perjoule.toml");
    let check = |text: &str| {
        fs::write(&file, text).expect("a file");
        // The tests have variables of their own.
        perjoule_behind(
            &["env", "-i"],
            &["config", "check", &file.display().to_string()],
        )
    };
    let right = check("model = \"m\"\n");
    assert_eq!(right.status.code(), Some(0), "{right:?}");
    assert!(right.out.contains("all is understood"), "{right:?}");
    let surprising = check("nvml_library = \"/nonexistent/libnvidia-ml.so.1\"\n");
    assert_eq!(surprising.status.code(), Some(1), "{surprising:?}");
    let wrong = check("lisen = \"1.2.3.4:5\"\n[services]\nports = [70000]\n");
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    for told in [
        "FAIL  lisen",
        "line 1",
        "did you mean `listen`?",
        "FAIL  services.ports",
        "line 3",
    ] {
        assert!(wrong.out.contains(told), "{told}: {wrong:?}");
    }
    // The file that --config names is the one that is looked at.
    let named = perjoule(&["--config", &file.display().to_string(), "config", "check"]);
    assert_eq!(named.status.code(), Some(2), "{named:?}");
}
