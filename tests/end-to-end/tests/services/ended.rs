//! Services that come and go: what they used stays in the sums, and nothing grows with their number.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::cgroup::Cgroup;
use end_to_end::stack::Stack;
use end_to_end::{http, is_root, scaled};
use gpu_state::{GpuState, Process};

const SECOND: Duration = Duration::from_secs(1);
/// What `series_budget` is by default.
const BUDGET: usize = 2_000;
/// Servers of containers that live at once; a GPU has room for 64 processes.
const ALIVE: usize = 40;
/// So long containers come and go.
const CHURN: Duration = Duration::from_secs(36);
/// What an agent may grow by once a third of them has come.
const GROWTH_MB: f64 = 3.0;

/// One scrape: value by series.
type Seen = BTreeMap<String, f64>;

/// Scrapes an agent, and holds each sum against the one before.
struct Scrapes<'a> {
    agent: &'a Agent,
    sums: BTreeMap<String, f64>,
    count: usize,
    most_series: usize,
}

impl<'a> Scrapes<'a> {
    const fn of(agent: &'a Agent) -> Self {
        Self {
            agent,
            sums: BTreeMap::new(),
            count: 0,
            most_series: 0,
        }
    }

    fn scrape(&mut self) -> Seen {
        let answer = http::get(self.agent.port(), "/metrics");
        let lines = http::body(&answer).lines();
        let series = lines.filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            (series.to_owned(), value.parse().expect("a number"))
        });
        let seen: Seen = series.collect();
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        for (series, value) in &seen {
            let name = series.split('{').next().unwrap_or_default();
            if name.starts_with("perjoule_") && name.ends_with("_total") {
                *sums.entry(name.to_owned()).or_default() += value;
            }
        }
        for (name, before) in &self.sums {
            let now = sums.get(name).copied().unwrap_or(0.0);
            assert!(
                now >= before - 1e-6,
                "{name} fell from {before} to {now}\n{}",
                self.agent.log()
            );
        }
        assert_eq!(seen.get("perjoule_ledger_residual_joules"), Some(&0.0));
        self.sums = sums;
        self.count += 1;
        self.most_series = self.most_series.max(seen.len());
        seen
    }
}

/// The sum of all series of a name with these labels.
fn sum(seen: &Seen, name: &str, labels: &[&str]) -> f64 {
    seen.iter()
        .filter(|(series, _)| series.starts_with(&format!("{name}{{")))
        .filter(|(series, _)| labels.iter().all(|label| series.contains(label)))
        .map(|(_, value)| value)
        .sum()
}

fn resident_mb(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.expect("VmRSS") / 1024.0
}

#[test]
fn a_container_that_has_ended_leaves_and_what_it_used_stays() {
    if !is_root("ended containers") {
        return;
    }
    let Some((cgroup, name)) = Cgroup::container(71) else {
        return;
    };
    // One goes on, on a GPU of its own.
    let stays = Stack::start_on(&[0], "[[device]]\n[[device]]");
    let ends = stays.start_beside(&["--devices", "1"]);
    ends.pids().into_iter().for_each(|pid| cgroup.take(pid));
    let agent = Agent::start_with(stays.perjoule(), &[]);
    let mut scrapes = Scrapes::of(&agent);
    sleep(2 * SECOND);
    scrapes.scrape();
    assert!(ends.load(4.0, 4).wait().expect("a load").success());
    let served = ends.served() as f64;
    sleep(2 * SECOND);
    let own = format!("service=\"{name}\"");
    let requests = |seen: &Seen, of: &str| sum(seen, "perjoule_requests_total", &[of]);
    let joules = |seen: &Seen, of: &str| {
        let energy = "perjoule_service_energy_joules_total";
        sum(seen, energy, &[of, "component=\"gpu\""])
    };
    drop(ends);
    let ended = Instant::now();
    let mut last = scrapes.scrape();
    // The last of it is booked some seconds later.
    let (gone, left) = loop {
        sleep(SECOND);
        let seen = scrapes.scrape();
        if !seen.keys().any(|series| series.contains(&own)) {
            break (seen, ended.elapsed());
        }
        assert!(ended.elapsed() < scaled(90 * SECOND), "{}", agent.log());
        last = seen;
    };
    let (was, is) = (&own, "service=\"finished-1\"");
    println!(
        "{} requests, {:.3} J, gone after {:.0} s and {} scrapes",
        requests(&last, was),
        joules(&last, was),
        left.as_secs_f64(),
        scrapes.count
    );
    assert!(left >= 60 * SECOND, "a service may be started again");
    assert_eq!(requests(&last, was), served);
    assert!(joules(&last, was) > 0.0);
    assert_eq!(requests(&gone, is), requests(&last, was));
    let kept = joules(&gone, is) - joules(&last, was);
    assert!(kept.abs() < 1e-6, "{kept} J");
    let folded = "perjoule_series_dropped_total";
    assert_eq!(sum(&gone, folded, &["reason=\"finished\""]), 1.0);
    // The one that goes on is the only one that is left.
    assert!(stays.load(2.0, 1).wait().expect("a load").success());
    sleep(2 * SECOND);
    let seen = scrapes.scrape();
    assert_eq!(sum(&seen, "perjoule_service_info", &[]), 1.0);
    assert_eq!(requests(&seen, is), served);
}

/// Starts containers' servers: each answers one request, and ends.
struct Engine {
    child: Child,
    tell: ChildStdin,
    told: BufReader<ChildStdout>,
}

impl Engine {
    fn start() -> Self {
        let script = r#"
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
for line in sys.stdin:
    servers = []
    for _ in range(int(line)):
        listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(8)
        port = listener.getsockname()[1]
        pid = os.fork()
        if pid == 0:
            client, _ = listener.accept()
            client.recv(65536); client.sendall(OK); client.close()
            os._exit(0)
        listener.close()
        servers.append(f"{pid}:{port}")
    print(*servers, flush=True)
"#;
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let tell = child.stdin.take().expect("its input is ours");
        let told = child.stdout.take().expect("its output is ours");
        Self {
            child,
            tell,
            told: BufReader::new(told),
        }
    }

    /// The process and port of each of so many servers.
    fn run(&mut self, count: usize) -> Vec<(u32, u16)> {
        writeln!(self.tell, "{count}").expect("it reads");
        let mut line = String::new();
        self.told.read_line(&mut line).expect("it says a line");
        let servers = line.split_whitespace().map(|server| {
            let (pid, port) = server.split_once(':').expect("a pid and a port");
            let (pid, port) = (pid.parse().expect("a pid"), port.parse());
            (pid, port.expect("a port"))
        });
        servers.collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn containers_that_live_for_a_moment_leave_no_memory_behind() {
    if !is_root("short-lived containers") {
        return;
    }
    let Some((cgroup, _)) = Cgroup::container(72) else {
        return;
    };
    drop(cgroup);
    let stack = Stack::start();
    let state = GpuState::open_or_create(&stack.gpu_state()).expect("a state");
    let state = Arc::new(state);
    let mut engine = Engine::start();
    let mut command = stack.perjoule();
    // A server answers the first who asks.
    command.env("PERJOULE_ENGINE_METRICS", "off");
    let agent = Agent::start_with(command, &[]);
    let mut scrapes = Scrapes::of(&agent);
    let mut load = stack.load(1.0, CHURN.as_secs());

    let (mut servers, mut unserved, mut number) = (0_u32, 0_u32, 100_u32);
    let mut early = 0.0_f64;
    let mut late = 0.0_f64;
    let begun = Instant::now();
    while begun.elapsed() < CHURN {
        // On the GPU, and long enough there to be found.
        let mut alive = Vec::new();
        for (pid, port) in engine.run(ALIVE) {
            number += 1;
            let (cgroup, _) = Cgroup::container(number).expect("one more");
            cgroup.take(pid);
            let process = Process {
                pid,
                memory_bytes: 1 << 20,
            };
            let context = state.open_context(0, process).expect("room");
            alive.push((cgroup, context, port));
        }
        // Beside them those that nobody has time to look at.
        let found = Instant::now() + 2 * SECOND;
        while Instant::now() < found {
            number += 1;
            let (cgroup, _) = Cgroup::container(number).expect("one more");
            let mut moment = Command::new("true").spawn().expect("a process");
            // It may have ended.
            let _ = fs::write(cgroup.processes(), moment.id().to_string());
            moment.wait().expect("it ends");
            unserved += 1;
            sleep(Duration::from_millis(10));
        }
        for (_, _, port) in &alive {
            assert!(http::get(*port, "/v1/completions").ends_with("ok"));
            servers += 1;
        }
        drop(alive);
        scrapes.scrape();
        let resident = resident_mb(agent.pid());
        if begun.elapsed() < CHURN / 3 {
            early = early.max(resident);
        } else {
            late = late.max(resident);
        }
    }
    load.wait().expect("a load");
    sleep(3 * SECOND);
    let seen = scrapes.scrape();
    let counted = sum(&seen, "perjoule_requests_total", &[]) - stack.served() as f64;
    let refused = sum(
        &seen,
        "perjoule_events_dropped_total",
        &["process_no_place"],
    );
    println!(
        "{servers} containers with a server and {unserved} without in {:.0} s: {counted} of their \
         requests seen, {refused} processes not followed; at most {} series in {} scrapes; \
         {early:.1} MB at most in the first third, {late:.1} MB later, {:.1} MB at the end",
        CHURN.as_secs_f64(),
        scrapes.most_series,
        scrapes.count,
        resident_mb(agent.pid())
    );
    assert!(scrapes.most_series <= BUDGET, "{}", scrapes.most_series);
    assert!(late < early + GROWTH_MB, "{early:.1} MB, {late:.1} MB");
    // What is not followed is counted.
    let missing = f64::from(servers) - counted;
    assert!(
        missing <= refused + 0.02 * f64::from(servers),
        "{missing} not seen"
    );
    let energy = "perjoule_service_energy_joules_total";
    let accounts = "perjoule_energy_account_joules_total";
    for part in ["requests", "overhead"] {
        let services = sum(&seen, energy, &[&format!("part=\"{part}\"")]);
        let account = sum(&seen, accounts, &[&format!("account=\"{part}\"")]);
        assert!(
            (services - account).abs() <= 1e-6 * account.max(1.0),
            "{part}: {services} J of services, {account} J in the account"
        );
    }
}
