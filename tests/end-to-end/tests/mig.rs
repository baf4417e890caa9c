//! A board that is split into instances (MIG), with a service on each of some of them: the board is
//! counted once, and its energy goes to who used which instance.

use std::collections::{BTreeMap, HashMap};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::stack::Stack;
use end_to_end::{http, is_root, scaled};
use gpu_state::{GpuState, Process, Segment, boottime_ns};

const SECOND: Duration = Duration::from_secs(1);
/// The counter changes at multiples of this.
const TICK_NS: u64 = 100_000_000;
/// The instance that a process which serves nothing holds.
const FOREIGN: usize = 6;

/// One board that can be split into seven; each simulated engine draws as a whole GPU does.
fn board(more: &str) -> String {
    let instances: String = (0..7)
        .map(|place| {
            let id = place + 7;
            format!("[[device.instance]]\nid = {id}\nslices = 1\nengines = [{place}]\n")
        })
        .collect();
    format!(
        "[[device]]\nuuid = \"GPU-split\"\nlimit_watts = 2500\nmax_limit_watts = 2500\n{more}{instances}"
    )
}

/// A process that holds an instance, serves nothing and draws `watts` above idle.
struct Job {
    process: Child,
    ends: Arc<AtomicBool>,
    /// µJ that it has drawn at its end.
    works: Option<thread::JoinHandle<u64>>,
}

impl Job {
    fn start(stack: &Stack, watts: u64) -> Self {
        let process = Command::new("sleep").arg("600").spawn().expect("a process");
        let pid = process.id();
        let state = GpuState::open_or_create(&stack.gpu_state()).expect("a state");
        let state = Arc::new(state);
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let works = thread::spawn(move || {
            let holds = Process {
                pid,
                memory_bytes: 1 << 30,
            };
            let _context = state.open_context(FOREIGN, holds).expect("room");
            let mut writer = state.writer(FOREIGN).expect("a writer");
            let mut start_ns = boottime_ns() + 20_000_000;
            while !told.load(Ordering::Relaxed) {
                let end_ns = start_ns + 50_000_000;
                let energy_uj = watts * 50_000;
                let segment = Segment {
                    start_ns,
                    end_ns,
                    energy_uj,
                };
                writer.publish(segment).expect("in order");
                start_ns = end_ns;
                let left = start_ns.saturating_sub(boottime_ns() + 20_000_000);
                sleep(Duration::from_nanos(left));
            }
            writer.total_uj()
        });
        Self {
            process,
            ends,
            works: Some(works),
        }
    }

    fn end(&mut self) -> u64 {
        self.ends.store(true, Ordering::Relaxed);
        let works = self.works.take().expect("ended once");
        works.join().expect("it has drawn")
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn scrape(agent: &Agent) -> HashMap<String, f64> {
    let answer = http::get(agent.port(), "/metrics");
    let lines = http::body(&answer).lines();
    lines
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

fn wait_for(agent: &Agent, is: impl Fn(&HashMap<String, f64>) -> bool) {
    let begun = Instant::now();
    loop {
        let seen = scrape(agent);
        if is(&seen) {
            return;
        }
        let waited = begun.elapsed();
        assert!(waited < scaled(20 * SECOND), "{}\n{seen:#?}", agent.log());
        sleep(SECOND / 5);
    }
}

fn instances(seen: &HashMap<String, f64>) -> usize {
    let of = |name: &&String| name.starts_with("perjoule_gpu_instance_info{device=\"GPU-split\"");
    seen.keys().filter(of).count()
}

/// The service on each stack's port, by what the agent said when it found it: id and name.
fn services(agent: &Agent, stacks: &[&Stack]) -> Vec<(i64, String)> {
    let (log, known) = (
        agent.log(),
        agent.rows("SELECT service, name FROM services"),
    );
    let names: BTreeMap<&str, i64> = known
        .iter()
        .filter_map(|row| Some((row["name"].as_str()?, row["service"].as_i64()?)))
        .collect();
    let id = |stack: &&Stack| {
        let port = stack.port().to_string();
        let mut lines = log.lines();
        let found = lines.find(|line| {
            let ports = line.split_once("ports ").map(|(_, ports)| ports);
            ports.is_some_and(|ports| ports.contains(&port))
        });
        let line = found.unwrap_or_else(|| panic!("{port}: {log}"));
        let name = line
            .split("service ")
            .nth(1)
            .and_then(|rest| rest.split(':').next());
        let name = name.expect("a name");
        (names[name], name.to_owned())
    };
    stacks.iter().map(id).collect()
}

/// A sum over the recording, µJ.
fn sum(agent: &Agent, sql: &str) -> i64 {
    agent.rows(sql)[0]["uj"].as_i64().unwrap_or(0)
}

/// Three services and a job on four of seven instances, for fifteen seconds.
fn seven(more: &str, ceiling: f64) {
    let first = Stack::start_on(&[0], &board(more));
    let [second, third] = ["1", "4"].map(|device| first.start_beside(&["--devices", device]));
    let stacks = [&first, &second, &third];
    let mut agent = Agent::start_with(first.perjoule(), &[]);
    wait_for(&agent, |seen| instances(seen) == 7);
    sleep(4 * SECOND);
    let mut job = Job::start(&first, 150);
    let loads = [(&first, 4.0), (&second, 2.0), (&third, 0.7)];
    let loads: Vec<Child> = loads
        .iter()
        .map(|(stack, rate)| stack.load(*rate, 15))
        .collect();
    for mut load in loads {
        assert!(load.wait().expect("a load").success());
    }
    let job_truth = job.end();
    sleep(4 * SECOND);
    let seen = scrape(&agent);
    agent.end_with(libc::SIGTERM);

    let boards = seen
        .keys()
        .filter(|name| name.starts_with("perjoule_meter_energy_joules_total{component=\"gpu\""));
    assert_eq!(boards.count(), 1, "a board is counted once");
    assert_eq!(seen["perjoule_ledger_residual_joules"], 0.0);

    let gpu = "FROM intervals JOIN meters USING (meter) WHERE component = 'gpu'";
    let times = &agent.rows(&format!("SELECT min(from_ns) AS a, max(to_ns) AS b {gpu}"))[0];
    let tick = |edge: &str| {
        let moment = times[edge].as_u64().expect("intervals");
        let nearest = (moment + TICK_NS / 2) / TICK_NS * TICK_NS;
        1_000 * first.counter_mj(0, nearest)
    };
    let accounts = "idle_uj + context_uj + requests_uj + overhead_uj + other_uj + agent_uj \
                    + unattributed_uj + gap_uj";
    let accounted = sum(&agent, &format!("SELECT sum({accounts}) AS uj {gpu}"));
    assert_eq!(
        accounted.cast_unsigned(),
        tick("b") - tick("a"),
        "to the microjoule"
    );

    let of_services = "FROM interval_services JOIN intervals USING (interval) \
                    JOIN meters USING (meter) WHERE component = 'gpu'";
    let mut given = 0;
    for (stack, (id, name)) in stacks.into_iter().zip(services(&agent, &stacks)) {
        let of = |column: &str| {
            let sum_of = format!("SELECT sum(interval_services.{column}) AS uj {of_services}");
            sum(&agent, &format!("{sum_of} AND service = {id}"))
        };
        let (requests, overhead) = (of("requests_uj"), of("overhead_uj"));
        given += requests + overhead;
        let truth: u64 = stack
            .truths()
            .iter()
            .map(|request| request.energy_uj[0])
            .sum();
        let error = (requests + overhead) as f64 / truth as f64 - 1.0;
        println!(
            "service {id}: {} requests, true {:.1} J, requests {:.1} J, overhead {:.1} J, {:+.1} %",
            stack.served(),
            truth as f64 * 1e-6,
            requests as f64 * 1e-6,
            overhead as f64 * 1e-6,
            error * 100.0
        );
        assert!(error.abs() < ceiling, "service {id}: {error}");
        // Beyond 100 % there is none.
        let bound = format!("perjoule_attribution_error_ratio{{service=\"{name}\"}}");
        let bound = seen.get(&bound).copied();
        println!("  bound {bound:.2?}");
        assert!(
            bound.is_none_or(|bound| error.abs() < bound),
            "service {id}: {error} {bound:?}"
        );
    }
    let account = |name: &str| sum(&agent, &format!("SELECT sum({name}_uj) AS uj {gpu}"));
    let [idle, context, requests, overhead, other, unattributed] = [
        "idle",
        "context",
        "requests",
        "overhead",
        "other",
        "unattributed",
    ]
    .map(account);
    assert_eq!(given, requests + overhead);
    let rest = idle + context + other + account("agent") + unattributed + account("gap");
    assert_eq!(given + rest, accounted);
    let error = other as f64 / job_truth as f64 - 1.0;
    println!(
        "job: true {:.1} J, other {:.1} J, {:+.1} %; idle {:.1}, context {:.1}, unattributed {:.1} J",
        job_truth as f64 * 1e-6,
        other as f64 * 1e-6,
        error * 100.0,
        idle as f64 * 1e-6,
        context as f64 * 1e-6,
        unattributed as f64 * 1e-6
    );
    assert!(error.abs() < ceiling, "the job: {error}");

    let mut booked = agent.requests();
    booked.retain(|request| request["route"] != "health");
    let served: usize = stacks.iter().map(|stack| stack.served()).sum();
    assert_eq!(booked.len(), served);
    assert!(
        booked.iter().all(|request| request["class"] == "C"),
        "{booked:#?}"
    );
}

#[test]
fn seven_instances_add_up_to_their_board_and_services_get_what_they_used() {
    if is_root("a board of seven instances") {
        seven("mig = true\ngpm = true\n", 0.3);
    }
}

#[test]
fn without_monitors_instances_still_add_up_to_their_board() {
    if is_root("a board of seven instances without monitors") {
        seven("mig = true\n", 0.3);
    }
}

#[test]
fn a_board_that_is_split_and_joined_again_while_the_agent_runs_is_followed() {
    if !is_root("a change of the mode") {
        return;
    }
    // From split to whole, and another from whole to split.
    for (mode, before) in [("true", 7), ("false", 0)] {
        let more = format!("gpm = true\nmig = {mode}\nmig_changes_at_s = 14\n");
        let changes = boottime_ns() as f64 * 1e-9 + 14.0;
        let stack = Stack::start_with_scenario(&board(&more));
        let begun = Instant::now();
        let mut agent = Agent::start_with(stack.perjoule(), &[]);
        wait_for(&agent, |seen| instances(seen) == before);
        sleep(3 * SECOND);
        assert!(stack.load(4.0, 4).wait().expect("a load").success());
        sleep((14 * SECOND).saturating_sub(begun.elapsed()) + SECOND);
        wait_for(&agent, |seen| instances(seen) == 7 - before);
        sleep(2 * SECOND);
        let changed = boottime_ns() as f64 * 1e-9;
        assert!(stack.load(4.0, 4).wait().expect("a load").success());
        sleep(4 * SECOND);
        let seen = scrape(&agent);
        agent.end_with(libc::SIGTERM);
        assert_eq!(seen["perjoule_ledger_residual_joules"], 0.0);
        let mut booked = agent.requests();
        booked.retain(|request| request["route"] != "health");
        assert_eq!(booked.len(), stack.served());
        let mut judged = [0, 0];
        for request in booked {
            let moment = |key: &str| request[key].as_f64().expect("a moment");
            let is_late = moment("start_s") >= changed;
            // A slow machine may still be serving when the mode changes.
            if is_late || moment("end_s") < changes {
                judged[usize::from(is_late)] += 1;
                let was_split = (before == 7) != is_late;
                assert_eq!(request["class"] == "C", was_split, "{before}: {request}");
            }
        }
        assert!(judged.iter().all(|count| *count > 3), "{judged:?}");
        let given: i64 = sum(
            &agent,
            "SELECT sum(gpu_uj) AS uj FROM requests WHERE route <> 'health'",
        );
        let truth: u64 = stack
            .truths()
            .iter()
            .map(|request| request.energy_uj[0])
            .sum();
        let error = given as f64 / truth as f64 - 1.0;
        println!("split {mode} before: {:+.1} %", error * 100.0);
        assert!(error.abs() < 0.05, "{error}");
    }
}
