//! What the agent may still do once it runs: exactly what its features need, in every thread, and it
//! goes on working with that.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::{Agent, perjoule};
use end_to_end::server::{Server, free_port};
use end_to_end::stack::Stack;
use end_to_end::{binary, http, is_root, scaled};

const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const SYSLOG: u64 = 1 << 34;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;
const CHECKPOINT_RESTORE: u64 = 1 << 40;
/// What every agent that sees requests keeps.
const USUAL: u64 = BPF | PERFMON | SYS_PTRACE | DAC_READ_SEARCH;

/// The fields of a `/proc/…/status`.
fn status(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

fn set(status: &BTreeMap<String, String>, name: &str) -> u64 {
    u64::from_str_radix(&status[name], 16).expect("a set of capabilities")
}

/// The status of each thread that has not ended meanwhile.
fn threads(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let tasks = tasks.filter_map(|task| Some(task.ok()?.path().join("status")));
    tasks
        .map(|path| status(&path.display().to_string()))
        .filter(|status| status.contains_key("CapEff"))
        .collect()
}

/// Checks every thread: those that answer HTTP have nothing, the others `kept` and no more. Returns how
/// many of each there are.
fn check(pid: u32, kept: u64) -> (usize, usize) {
    let own = status("/proc/self/status");
    let (mut serving, mut others) = (0, 0);
    for thread in threads(pid) {
        let name = thread["Name"].as_str();
        let serves = name == "http";
        let expected = if serves { 0 } else { kept };
        for sets in ["CapPrm", "CapEff"] {
            assert_eq!(set(&thread, sets), expected, "{name} {sets}: {thread:?}");
        }
        for sets in ["CapInh", "CapAmb", "CapBnd"] {
            assert_eq!(set(&thread, sets), 0, "{name} {sets}: {thread:?}");
        }
        assert_eq!(thread["NoNewPrivs"], "1", "{name}");
        if serves {
            serving += 1;
            assert_eq!(thread["Seccomp"], "2", "{name}");
        } else {
            others += 1;
            assert_eq!(thread["Seccomp"], own["Seccomp"], "{name}");
        }
    }
    (serving, others)
}

#[test]
fn every_thread_keeps_what_the_features_need_and_no_more() {
    if !is_root("capabilities") {
        return;
    }
    let stack = Stack::start();
    let stacks = CHECKPOINT_RESTORE | SYSLOG;
    for (arguments, more) in [
        (&[] as &[&str], 0),
        (&["--syscalls", "--faults", "--pmc"], 0),
        (&["--stacks", "--cpu-budget", "none"], stacks),
        (&["--off-cpu"], stacks),
        (&["--cuda"], SYS_ADMIN),
        (&["--tls"], SYS_ADMIN),
    ] {
        let mut command = stack.perjoule();
        command.env("PERJOULE_ENGINE_METRICS", "off");
        let mut agent = Agent::start_with(command, arguments);
        sleep(scaled(Duration::from_millis(1_500)));
        let metrics = http::get(agent.port(), "/metrics");
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        let (serving, others) = check(agent.pid(), USUAL | more);
        // The connection's thread and the one that made the text; the loop, services, GPU, CPU.
        assert!(
            serving >= 2 && others >= 4,
            "{arguments:?}: {serving}, {others}"
        );
        let log = agent.log();
        assert!(!log.contains("was started before"), "{log}");
        assert!(!log.contains("not confined"), "{log}");
        agent.end_with(libc::SIGTERM);
    }
}

/// A server of another user than the agent's; ends with this value.
struct Nobodys(Child);

impl Drop for Nobodys {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server_of_nobody(port: u16) -> Nobodys {
    let server = Command::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1"])
        .arg(port.to_string())
        .current_dir("/")
        .uid(65_534)
        .gid(65_534)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 is installed");
    Nobodys(server)
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < scaled(Duration::from_secs(20)), "{what}");
        sleep(Duration::from_millis(50));
    }
}

fn connect(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn with_the_rest_given_up_it_finds_a_service_that_comes_later_and_tells_its_energy() {
    if !is_root("capabilities") {
        return;
    }
    // No GPU, and nobody serves yet: the hooks are off, and must be put on again.
    let port = free_port();
    let mut agent = Agent::start(&["--port", &port.to_string()]);
    assert!(agent.log().contains("nothing listens"), "{}", agent.log());
    check(agent.pid(), USUAL);
    for _ in 0..2 {
        let server = server_of_nobody(port);
        wait_for("the server listens", || connect(port));
        let found = format!("ports {{{port}}}");
        wait_for("it is found", || agent.log().contains(&found));
        // Known by its socket, which is nobody's; what it serves before that is not seen.
        sleep(scaled(Duration::from_secs(2)));
        let before = agent.requests().len();
        for _ in 0..50 {
            http::get(port, "/bin/");
        }
        wait_for("its requests are told", || {
            agent.requests().len() >= before + 50
        });
        drop(server);
    }
    agent.end_with(libc::SIGTERM);
    let energy: u64 = agent
        .requests()
        .iter()
        .filter_map(|request| request["cpu_uj"].as_u64())
        .sum();
    assert!(energy > 0, "{:?}", agent.requests());
}

/// Serves a file over TLS, as another user.
fn tls_server_of_nobody(folder: &Path, port: u16) -> Nobodys {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
    let pem = certified.cert.pem() + &certified.signing_key.serialize_pem();
    fs::write(folder.join("both.pem"), pem).expect("a file");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("a mode");
    let script = format!(
        "import http.server, ssl\n\
         server = http.server.ThreadingHTTPServer(('127.0.0.1', {port}), \
         http.server.SimpleHTTPRequestHandler)\n\
         context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
         context.load_cert_chain('{}')\n\
         server.socket = context.wrap_socket(server.socket, server_side=True)\n\
         server.serve_forever()",
        folder.join("both.pem").display()
    );
    let server = Command::new("/usr/bin/python3")
        .args(["-c", &script])
        .current_dir(folder)
        .uid(65_534)
        .gid(65_534)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("python3 is installed");
    Nobodys(server)
}

#[test]
fn with_the_rest_given_up_it_probes_the_library_of_a_process_that_comes_later() {
    if !is_root("capabilities") {
        return;
    }
    let port = free_port();
    let mut agent = Agent::start(&["--port", &port.to_string(), "--tls"]);
    let folder = tempfile::tempdir().expect("a folder");
    let _server = tls_server_of_nobody(folder.path(), port);
    wait_for("its library is probed", || {
        agent.log().contains("TLS is read")
    });
    let client = format!(
        "import ssl, urllib.request\n\
         for _ in range(5): urllib.request.urlopen('https://127.0.0.1:{port}/', \
         context=ssl._create_unverified_context()).read()"
    );
    let asked = Command::new("/usr/bin/python3")
        .args(["-c", &client])
        .status();
    assert!(asked.expect("a client").success());
    wait_for("its requests are told", || agent.requests().len() == 5);
    agent.end_with(libc::SIGTERM);
}

#[test]
fn nobody_with_the_capabilities_sees_what_root_sees() {
    if !is_root("capabilities") {
        return;
    }
    let server = Server::python();
    let port = server.port().to_string();
    // A user who is not root cannot enter the build folder: the binary goes where all may read.
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let copy = folder.path().join("perjoule");
    fs::copy(binary("perjoule"), &copy).expect("a copy");
    let capabilities = "+bpf,+perfmon,+sys_ptrace,+dac_read_search,+dac_override";
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(format!("--inh-caps={capabilities}"))
        .arg(format!("--ambient-caps={capabilities}"))
        .arg(&copy);
    command.env("PERJOULE_ENGINE_METRICS", "off");
    let mut agent = Agent::start_with(command, &["--port", &port]);
    // The recording's folder is root's: the right to write there is kept, for there is no other way.
    for thread in threads(agent.pid()) {
        let kept = if thread["Name"] == "http" {
            0
        } else {
            USUAL | DAC_OVERRIDE
        };
        assert_eq!(set(&thread, "CapEff"), kept, "{thread:?}");
        assert_eq!(set(&thread, "CapPrm"), kept, "{thread:?}");
        assert_eq!(set(&thread, "CapAmb"), 0, "{thread:?}");
        assert_eq!(set(&thread, "CapInh"), 0, "{thread:?}");
        assert_eq!(thread["NoNewPrivs"], "1");
    }
    for _ in 0..20 {
        http::get(server.port(), "/file.txt");
    }
    wait_for("its requests are told", || agent.requests().len() == 20);
    let metrics = http::get(agent.port(), "/metrics");
    assert!(metrics.contains("perjoule_requests_total{"), "{metrics}");
    assert!(metrics.contains("process_open_fds "), "{metrics}");
    agent.end_with(libc::SIGTERM);
}

#[test]
fn doctor_names_each_capability_that_is_missing_and_what_it_gives() {
    if !is_root("capabilities") {
        return;
    }
    let ended = end_to_end::agent::perjoule_behind(
        &[
            "setpriv",
            "--bounding-set=-sys_ptrace,-sys_admin",
            "--inh-caps=-all",
        ],
        &["doctor", "--json"],
    );
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let report = ended.json();
    let checks = report["checks"].as_array().expect("checks");
    let of = |id: &str| {
        let check = checks.iter().find(|check| check["id"] == id);
        check.unwrap_or_else(|| panic!("{id}: {ended:?}"))
    };
    assert_eq!(of("capability.bpf")["status"], "pass");
    let missing = of("capability.sys_ptrace");
    assert_eq!(missing["status"], "warn", "{missing}");
    let says = |check: &serde_json::Value, key: &str, text: &str| {
        check[key].as_str().is_some_and(|said| said.contains(text))
    };
    assert!(
        says(missing, "found", "services of other users"),
        "{missing}"
    );
    assert!(says(missing, "fix", "CAP_SYS_PTRACE"), "{missing}");
    // The one that nobody should grant without need.
    let admin = of("capability.sys_admin");
    assert_eq!(admin["status"], "pass", "{admin}");
    assert!(says(admin, "found", "engines in containers"), "{admin}");
}

#[test]
fn the_process_that_enters_containers_networks_keeps_two_capabilities_and_ends_with_the_agent() {
    if !is_root("capabilities") {
        return;
    }
    let server = Server::python();
    let command = Command::new(binary("perjoule"));
    let mut agent = Agent::start_with(command, &["--port", &server.port().to_string()]);
    let child = |pid: u32| -> Option<u32> {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    let broker = child(agent.pid()).expect("a process beside it");
    let told = status(&format!("/proc/{broker}/status"));
    assert_eq!(told["Name"], "perjoule-netns");
    assert_eq!(set(&told, "CapEff"), SYS_ADMIN | SYS_PTRACE, "{told:?}");
    assert_eq!(set(&told, "CapPrm"), SYS_ADMIN | SYS_PTRACE, "{told:?}");
    assert_eq!(told["NoNewPrivs"], "1");
    let open = fs::read_dir(format!("/proc/{broker}/fd")).expect("its descriptors");
    // Standard input, output and error, its socket, its own namespace.
    assert!(open.count() <= 5);
    check(agent.pid(), USUAL);
    let broker = format!("/proc/{broker}");
    agent.kill();
    wait_for("it ends with the agent", || !Path::new(&broker).exists());
}

#[test]
fn a_command_of_stat_runs_with_what_its_user_has() {
    if !is_root("capabilities") {
        return;
    }
    let server = Server::python();
    let port = server.port().to_string();
    let own = status("/proc/self/status");
    let names = [
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
    ];
    let tell = ["cat", "/proc/self/status"];
    let with_target = [&["stat", "--json", "--port", &port, "--"][..], &tell].concat();
    let alone = [&["stat", "--json", "--"][..], &tell].concat();
    for arguments in [with_target, alone] {
        let ended = perjoule(&arguments);
        assert!(ended.status.success(), "{ended:?}");
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(ended.out.as_bytes()).expect("its output");
        let told = status(&file.path().display().to_string());
        for name in names {
            assert_eq!(told.get(name), own.get(name), "{name}: {arguments:?}");
        }
    }
}
