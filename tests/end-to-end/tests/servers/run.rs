//! One server under all loads, with one agent that watches it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::Agent;
use end_to_end::http;
use end_to_end::load::{Answer, Kind, Load};
use profiler::clock::Timestamp;

use crate::compare::{HEADER, Key, Seen, Stretch};
use crate::idle;
use crate::start::Server;
use crate::truth::{self, Logged};

/// Connections held, requests on each, and milliseconds between two. At the first two loads the
/// CPU is idle most of the time, and times must agree.
pub(crate) const LOADS: [(u64, u64, u64); 4] =
    [(1, 60, 8), (8, 40, 40), (100, 10, 500), (1_000, 2, 2_500)];
pub(crate) const TIMED: u64 = 8;
/// The share of the time in which somebody waits for a CPU, from which on it is not idle.
pub(crate) const BUSY: f64 = 0.10;
/// Before the agent starts: what a server compiles or imports at its first requests takes time
/// between the socket and the application.
const WARM_UP: u64 = 40;
/// Times are compared where nobody else keeps the CPU busy: a load is sent so often at most.
const ATTEMPTS: usize = 3;
/// Between two loads, so that a request's start tells which it belongs to.
const QUIET: Duration = Duration::from_millis(200);

/// How the journal says that a client has left.
pub(crate) const ABORTED: &str = "aborted";

/// A server and how it is asked.
pub(crate) struct Case<'a> {
    pub(crate) name: &'a str,
    /// Whom the agent follows: `--port` or `--pid` with its value, and more flags.
    pub(crate) agent: &'a [&'a str],
    pub(crate) mix: &'static [(u64, Kind)],
    pub(crate) key: Key,
    /// How the journal says that a client has left.
    pub(crate) aborted: &'a str,
    /// The server's own log, as of now.
    pub(crate) log: fn(&Server) -> Vec<Logged>,
}

/// The log that the servers of `servers/` write.
pub(crate) fn own_log(server: &Server) -> Vec<Logged> {
    truth::lines(&server.read("log.jsonl"))
}

/// A load: connections, requests on each, milliseconds between two.
type Size = (u64, u64, u64);

/// A load that has run.
struct Run {
    size: Size,
    answers: Vec<Answer>,
    /// Requests that began before are of this load or of one before it.
    until: f64,
    /// The share of the time in which somebody waited for a CPU.
    waiting: f64,
}

/// What a server was asked, and what came out.
#[derive(Default)]
struct Outcome {
    table: String,
    wrong: Vec<String>,
    /// Loads whose times disagree while the CPU was busy.
    again: Vec<Size>,
}

impl Case<'_> {
    /// Has `send` send the loads, and compares. A load whose times disagree while something else
    /// keeps the CPU busy is sent again.
    pub(crate) fn check(&self, server: &Server, send: impl Fn(&Load) -> Vec<Answer>) {
        let mut sent = 0;
        let warm_up = self.send((1, WARM_UP, 2), &mut sent, server, &send);
        drop(warm_up);
        let mut table = format!("{HEADER}\n");
        let mut sizes = LOADS.to_vec();
        for _ in 0..ATTEMPTS {
            let mut agent = Agent::start(self.agent);
            let runs: Vec<Run> = sizes
                .iter()
                .map(|size| self.send(*size, &mut sent, server, &send))
                .collect();
            let logged = truth::wait(server, sent as usize, self.log);
            let losses = losses(&agent);
            agent.end_with(libc::SIGTERM);
            let mut outcome = self.compare(&runs, &logged, journal(&agent));
            table.push_str(&outcome.table);
            outcome.wrong.extend(losses);
            if !outcome.wrong.is_empty() {
                show(&table);
                panic!("{}\n{table}{}", outcome.wrong.join("\n"), agent.log());
            }
            sizes = outcome.again;
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
        let (answers, waiting) = idle::during(|| send(&load));
        truth::wait(server, *sent as usize, self.log);
        sleep(QUIET);
        Run {
            size,
            answers,
            until: Timestamp::now().0 as f64 * 1e-9,
            waiting,
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
                aborted: self.aborted,
            }
            .compare();
            let busy = run.waiting * 100.0;
            outcome
                .table
                .push_str(&format!("{}, {busy:.0} %\n", compared.row));
            let mut wrong = compared.wrong;
            if connections <= TIMED && run.waiting < BUSY {
                wrong.extend(compared.late);
            } else if connections <= TIMED && !compared.late.is_empty() {
                outcome.again.push(run.size);
            }
            let at = |what| format!("{connections} connections: {what}");
            outcome.wrong.extend(wrong.into_iter().map(at));
        }
        let bogus = seen
            .iter()
            .map(|bogus| format!("bogus, after all loads: {bogus:?}"));
        outcome.wrong.extend(bogus);
        outcome
    }
}

/// The requests in the journal of an agent that has ended.
pub(crate) fn journal(agent: &Agent) -> Vec<Seen> {
    let entries = agent.requests().into_iter();
    entries
        .map(|entry| serde_json::from_value(entry).expect("a request"))
        .collect()
}

/// What the agent says it has lost.
pub(crate) fn losses(agent: &Agent) -> Vec<String> {
    let scrape = http::get(agent.port(), "/metrics");
    http::body(&scrape)
        .lines()
        .filter(|line| line.starts_with("perjoule_events_dropped_total") && !line.ends_with(" 0"))
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
