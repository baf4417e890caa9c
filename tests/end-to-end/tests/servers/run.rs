//! One server under all loads, with one agent that watches it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::http;
use end_to_end::load::{Answer, Kind, Load};
use profiler::clock::Timestamp;

use crate::compare::{HEADER, Key, Seen, Stretch};
use crate::idle::{self, Disturbance};
use crate::start::Server;
use crate::truth::{self, Logged};

/// Connections held, requests on each, and milliseconds between two.
pub(crate) type Size = (u64, u64, u64);

/// At the first two loads the CPU is idle most of the time, and times must agree; they have so
/// many requests that a 99th percentile is not one request's.
pub(crate) const LOADS: &[Size] = &[(1, 300, 5), (8, 40, 40), (100, 8, 400), (1_000, 2, 2_500)];
pub(crate) const TIMED: u64 = 8;
/// Before the agent starts: what a server compiles or imports at its first requests takes time
/// between the socket and the application. So many connections reach every worker.
const WARM_UP: Size = (32, 8, 10);
/// A load whose times disagree is sent so often at most.
pub(crate) const ATTEMPTS: usize = 3;
/// Between two loads, so that a request's start tells which it belongs to.
const QUIET: Duration = Duration::from_millis(200);

/// How the recording says that a client has left.
pub(crate) const ABORTED: &str = "aborted";

/// A server and how it is asked.
pub(crate) struct Case<'a> {
    pub(crate) name: &'a str,
    /// Whom the agent follows: `--port` or `--pid` with its value, and more flags.
    pub(crate) agent: &'a [&'a str],
    pub(crate) loads: &'static [Size],
    pub(crate) mix: &'static [(u64, Kind)],
    pub(crate) key: Key,
    /// The server's own log, as of now.
    pub(crate) log: fn(&Server) -> Vec<Logged>,
}

/// The log that the servers of `servers/` write.
pub(crate) fn own_log(server: &Server) -> Vec<Logged> {
    truth::lines(&server.read("log.jsonl"))
}

/// A load that has run.
struct Run {
    size: Size,
    answers: Vec<Answer>,
    /// Requests that began before are of this load or of one before it.
    until: f64,
    disturbance: Disturbance,
}

/// What a server was asked, and what came out.
#[derive(Default)]
struct Outcome {
    table: String,
    wrong: Vec<String>,
    /// Loads whose times disagree.
    late: Vec<Late>,
}

/// A load whose times disagree.
struct Late {
    size: Size,
    what: Vec<String>,
    /// The CPU was not idle meanwhile.
    was_disturbed: bool,
}

impl Case<'_> {
    /// Has `send` send the loads, and compares. A load whose times disagree is sent again: one
    /// stall of the machine is enough for a 99th percentile. It is wrong if they disagree each
    /// time while the CPU is idle.
    pub(crate) fn check(&self, server: &Server, send: impl Fn(&Load) -> Vec<Answer>) {
        let mut sent = 0;
        let warm_up = self.send(WARM_UP, &mut sent, server, &send);
        drop(warm_up);
        let mut table = format!("{HEADER}\n");
        let mut sizes = self.loads.to_vec();
        let mut disturbed: Vec<Size> = Vec::new();
        for attempt in 1..=ATTEMPTS {
            let mut agent = Agent::start(self.agent);
            if self.agent.contains(&"--tls") {
                wait_for_tls(&agent);
            }
            let runs: Vec<Run> = sizes
                .iter()
                .map(|size| self.send(*size, &mut sent, server, &send))
                .collect();
            let logged = truth::wait(server, sent as usize, self.log);
            let losses = losses(&agent);
            agent.end_with(libc::SIGTERM);
            let was_disturbed = runs.iter().any(|run| !run.disturbance.is_none());
            if was_disturbed && agent.log().contains("TLS is no longer read") {
                show(&table);
                end_to_end::skipped(&format!(
                    "{}: a stop of the TLS probes costs too much while the CPU is not idle",
                    self.name
                ));
                return;
            }
            let mut outcome = self.compare(&runs, &logged, recorded(&agent));
            table.push_str(&outcome.table);
            outcome.wrong.extend(losses);
            sizes = outcome.late.iter().map(|late| late.size).collect();
            for late in outcome.late {
                if late.was_disturbed {
                    disturbed.push(late.size);
                }
                if attempt == ATTEMPTS && !disturbed.contains(&late.size) {
                    outcome.wrong.extend(late.what);
                }
            }
            if !outcome.wrong.is_empty() {
                show(&table);
                panic!("{}\n{table}{}", outcome.wrong.join("\n"), agent.log());
            }
            if sizes.is_empty() {
                break;
            }
        }
        show(&table);
        for (connections, ..) in sizes {
            end_to_end::skipped(&format!(
                "times of {} at {connections} connections: the CPU is not idle",
                self.name
            ));
        }
    }

    fn send(
        &self,
        size: Size,
        sent: &mut u64,
        server: &Server,
        send: impl Fn(&Load) -> Vec<Answer>,
    ) -> Run {
        let (connections, requests, think) = size;
        let load = Load {
            connections,
            requests,
            think: think / 2..think * 3 / 2,
            mix: self.mix,
            first: *sent,
        };
        *sent += connections * requests;
        let (answers, disturbance) = idle::during(|| send(&load));
        truth::wait(server, *sent as usize, self.log);
        sleep(QUIET);
        Run {
            size,
            answers,
            until: Timestamp::now().0 as f64 * 1e-9,
            disturbance,
        }
    }

    fn compare(&self, runs: &[Run], logged: &HashMap<u64, Logged>, mut seen: Vec<Seen>) -> Outcome {
        let mut outcome = Outcome::default();
        for run in runs {
            let (connections, ..) = run.size;
            let (here, later) = seen.into_iter().partition(|seen| seen.start_s < run.until);
            seen = later;
            let compared = Stretch {
                server: self.name,
                connections,
                answers: &run.answers,
                logged,
                seen: &here,
                key: self.key,
            }
            .compare();
            outcome
                .table
                .push_str(&format!("{}, {}\n", compared.row, run.disturbance));
            let at = |what: String| format!("{connections} connections: {what}");
            outcome.wrong.extend(compared.wrong.into_iter().map(at));
            if connections <= TIMED && !compared.late.is_empty() {
                outcome.late.push(Late {
                    size: run.size,
                    what: compared.late.into_iter().map(at).collect(),
                    was_disturbed: !run.disturbance.is_none(),
                });
            }
        }
        let bogus = seen
            .iter()
            .map(|bogus| format!("bogus, after all loads: {bogus:?}"));
        outcome.wrong.extend(bogus);
        outcome
    }
}

/// The requests in the recording of an agent that has ended, with their traces.
pub(crate) fn recorded(agent: &Agent) -> Vec<Seen> {
    let entries = agent.requests().into_iter();
    let mut seen: Vec<Seen> = entries
        .map(|entry| serde_json::from_value(entry).expect("a request"))
        .collect();
    let mut traces = agent.traces();
    for seen in &mut seen {
        seen.trace = traces.remove(&seen.id);
    }
    seen
}

/// Libraries are looked for and probed behind the start: what comes before is not seen.
fn wait_for_tls(agent: &Agent) {
    let start = Instant::now();
    while !agent.log().contains("TLS is read for process") {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", agent.log());
        sleep(Duration::from_millis(50));
    }
}

/// What the agent says it has lost of requests. Switches that the scheduler's hook was not told of
/// are no request's; their own tests look at them.
pub(crate) fn losses(agent: &Agent) -> Vec<String> {
    let scrape = http::get(agent.port(), "/metrics");
    http::body(&scrape)
        .lines()
        .filter(|line| line.starts_with("perjoule_events_dropped_total") && !line.ends_with(" 0"))
        .filter(|line| !line.contains("switch_unseen"))
        .map(str::to_owned)
        .collect()
}

/// Prints a table, also to the file that `PERJOULE_TEST_TABLE` names: the test harness hides what
/// a passing test prints.
pub(crate) fn show(table: &str) {
    eprint!("{table}");
    if let Some(path) = std::env::var_os("PERJOULE_TEST_TABLE")
        && let Ok(mut file) = File::options().create(true).append(true).open(path)
    {
        // The table is for people; a test is not failed for it.
        let _ = file.write_all(table.as_bytes());
    }
}
