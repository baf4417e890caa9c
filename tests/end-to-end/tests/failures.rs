//! Each thing that can be missing or wrong: one clear message with cause and fix, and nothing left
//! behind.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::{Agent, Ended, perjoule, perjoule_behind};
use end_to_end::server::{Server, free_port};
use end_to_end::{Programs, binary, http, is_root};

const NOT_ROOT: &[&str] = &[
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
];
const NO_CAPABILITY: &[&str] = &[
    "setpriv",
    "--bounding-set=-bpf,-sys_admin",
    "--inh-caps=-bpf,-sys_admin",
];
const NO_BTF: &[&str] = &[
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"",
];
const NO_TRACEFS: &[&str] = &[
    "unshare",
    "--mount",
    "sh",
    "-c",
    "mount -t tmpfs none /sys/kernel/tracing && mount -t tmpfs none /sys/kernel/debug && exec \"$0\" \"$@\"",
];

/// `stat` fails, its message says `cause` and `fix`, and no program is left.
fn stat_fails(ended: &Ended, cause: &str, fix: &str) {
    assert!(!ended.status.success(), "{ended:?}");
    let message: Vec<_> = ended
        .log
        .lines()
        .filter(|line| line.starts_with("perjoule: "))
        .collect();
    assert_eq!(message.len(), 1, "one message: {ended:?}");
    assert!(message[0].contains(cause), "cause {cause}: {ended:?}");
    assert!(message[0].contains(fix), "fix {fix}: {ended:?}");
    assert!(!ended.log.contains("panicked"), "{ended:?}");
}

fn stat(wrapper: &[&str]) -> Ended {
    let server = Server::python();
    let port = server.port().to_string();
    let arguments = ["stat", "--port", &port, "--", "true"];
    // A user who is not root cannot enter the build folder: the binary goes where all may read.
    let folder = tempfile::tempdir().expect("a folder");
    let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), mode).expect("a mode");
    let copy = folder.path().join("perjoule");
    fs::copy(binary("perjoule"), &copy).expect("a copy");
    let (program, rest) = wrapper.split_first().expect("a wrapper");
    let output = Command::new(program)
        .args(rest)
        .arg(&copy)
        .args(arguments)
        .output()
        .expect("it starts");
    Ended {
        status: output.status,
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn without_root_stat_says_which_capabilities_it_needs() {
    if !is_root("dropping privileges") {
        return;
    }
    let before = Programs::now();
    stat_fails(&stat(NOT_ROOT), "CAP_BPF", "run as root, or grant both");
    before.assert_nothing_left();
}

#[test]
fn without_one_capability_stat_names_it() {
    if !is_root("dropping capabilities") {
        return;
    }
    stat_fails(&stat(NO_CAPABILITY), "CAP_BPF", "CAP_BPF");
}

#[test]
fn without_btf_stat_says_what_the_kernel_lacks() {
    if !is_root("mount namespace") {
        return;
    }
    let before = Programs::now();
    stat_fails(
        &stat(NO_BTF),
        "/sys/kernel/btf/vmlinux",
        "CONFIG_DEBUG_INFO_BTF",
    );
    before.assert_nothing_left();
}

#[test]
fn without_tracefs_nothing_is_missing() {
    if !is_root("mount namespace") {
        return;
    }
    let server = Server::python();
    let port = server.port();
    let ended = perjoule_behind(
        NO_TRACEFS,
        &[
            "stat",
            "--port",
            &port.to_string(),
            "--json",
            "--",
            "python3",
            "-c",
            &format!("import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/').read()"),
        ],
    );
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(
        ended.json()["services"][0]["requests"]["total"],
        1,
        "{ended:?}"
    );
}

#[test]
fn without_root_run_goes_on_with_its_meters_and_says_what_is_off() {
    if !is_root("dropping privileges") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), mode).expect("a mode");
    let copy = folder.path().join("perjoule");
    fs::copy(binary("perjoule"), &copy).expect("a copy");
    // The recording's folder belongs to root; the capability to write there is all that is kept.
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    ]);
    command.arg(&copy);
    let mut agent = Agent::start_with(command, &[]);
    sleep(Duration::from_secs(2));
    let log = agent.log();
    assert!(
        log.contains("CAP_BPF") && log.contains("requests are not seen"),
        "{log}"
    );
    let metrics = http::get(agent.port(), "/metrics");
    assert!(
        metrics.contains("perjoule_meter_energy_joules_total{"),
        "{metrics}"
    );
    assert!(!metrics.contains("perjoule_requests_total{"), "{metrics}");
    agent.end_with(libc::SIGTERM);
}

#[test]
fn a_port_that_is_taken_is_named_and_nothing_is_attached() {
    if !is_root("run") {
        return;
    }
    let before = Programs::now();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let ended = perjoule(&["run", "--listen", &address]);
    assert!(!ended.status.success(), "{ended:?}");
    assert!(
        ended.log.contains(&address) && ended.log.contains("--listen"),
        "{ended:?}"
    );
    before.assert_nothing_left();
}

#[test]
fn a_broken_configuration_is_named_with_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("perjoule.toml");
    fs::write(&path, "model = \"m\"\nlissten = \"127.0.0.1:1\"\n").expect("a file");
    let ended = perjoule(&["--config", &path.display().to_string(), "run"]);
    assert_eq!(ended.status.code(), Some(64), "{ended:?}");
    assert!(
        ended.log.contains("line 2") && ended.log.contains("lissten"),
        "{ended:?}"
    );
    assert_eq!(ended.log.lines().count(), 1, "{ended:?}");
}

#[test]
fn a_library_that_is_missing_is_named_and_run_goes_on() {
    if !is_root("run") {
        return;
    }
    let mut agent = Agent::start(&["--nvml-library", "/nonexistent/libnvidia-ml.so.1"]);
    sleep(Duration::from_secs(2));
    let log = agent.log();
    assert!(log.contains("/nonexistent/libnvidia-ml.so.1"), "{log}");
    let metrics = http::get(agent.port(), "/metrics");
    assert!(!metrics.contains("component=\"gpu\""), "{metrics}");
    assert!(
        metrics.contains("perjoule_meter_energy_joules_total{component=\"cpu\""),
        "{metrics}"
    );
    agent.end_with(libc::SIGTERM);
}

#[test]
fn stat_says_so_when_nothing_listens_on_the_port() {
    if !is_root("stat") {
        return;
    }
    let port = free_port().to_string();
    let ended = perjoule(&["stat", "--port", &port, "--", "true"]);
    stat_fails(&ended, &port, "start the server");
}

#[test]
fn doctor_says_what_works_and_its_exit_code_agrees() {
    if !is_root("doctor") {
        return;
    }
    let ended = perjoule(&["doctor", "--json"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let report = ended.json();
    assert_eq!(report["schema"], 1);
    let checks = report["checks"].as_array().expect("checks");
    let status = |id: &str| {
        let check = checks.iter().find(|check| check["id"] == id);
        check
            .map(|check| check["status"].clone())
            .unwrap_or_default()
    };
    for id in [
        "kernel",
        "btf",
        "privileges",
        "nvml",
        "rapl",
        "requests.tier",
        "probe.sock_recv_length",
    ] {
        assert_eq!(status(id), "pass", "{id}: {ended:?}");
    }
    // The last tier works and says what it costs.
    let ended = perjoule(&["doctor", "--request-tier", "raw_tp"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(
        ended.out.contains("WARN  requests.tier") && ended.out.contains("tier raw_tp, as told"),
        "{ended:?}"
    );
    let ended = perjoule_behind(NO_BTF, &["doctor"]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(
        ended.out.contains("FAIL  btf") && ended.out.contains("fix: "),
        "{ended:?}"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(binary("perjoule"))
        .args(["doctor", "--json"])
        .stdout(writer)
        .output()
        .expect("it starts");
    // Its own code: 101 would be a panic.
    assert!(
        output.status.code().is_some_and(|code| code <= 2),
        "{output:?}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
