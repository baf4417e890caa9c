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
/// Before the agent starts: what a server compiles or imports at its first requests takes time
/// between the socket and the application.
const WARM_UP: u64 = 40;
/// A load during which something else kept the CPU busy is run so often, then its times are not
/// compared.
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

/// A load that has run.
struct Run {
    connections: u64,
    answers: Vec<Answer>,
    /// Requests that began before are of this load or of one before it.
    until: f64,
    /// True if times are to be compared.
    timed: bool,
}

impl Case<'_> {
    /// Has `send` send the loads, and compares.
    pub(crate) fn check(&self, server: &Server, send: impl Fn(&Load) -> Vec<Answer>) {
        let mut first = 0;
        let mut run = |connections, requests, think: u64| {
            let load = Load {
                connections,
                requests,
                think: think / 2..think * 3 / 2,
                mix: self.mix,
                first,
            };
            first += connections * requests;
            let (answers, idle) = idle::during(|| send(&load));
            truth::wait(server, first as usize, self.log);
            sleep(QUIET);
            let until = Timestamp::now().0 as f64 * 1e-9;
            let timed = connections <= TIMED && idle;
            Run {
                connections,
                answers,
                until,
                timed,
            }
        };
        run(1, WARM_UP, 2);
        let mut agent = Agent::start(self.agent);
        let mut runs = Vec::new();
        for (connections, requests, think) in LOADS {
            for attempt in 1..=ATTEMPTS {
                let done = run(connections, requests, think);
                let again = connections <= TIMED && !done.timed;
                runs.push(done);
                if !again {
                    break;
                }
                if attempt == ATTEMPTS {
                    end_to_end::skipped(&format!(
                        "times of {} at {connections} connections: the CPU is not idle",
                        self.name
                    ));
                }
            }
        }
        let logged = truth::wait(server, first as usize, self.log);
        sleep(QUIET);
        let losses = losses(&agent);
        agent.end_with(libc::SIGTERM);
        let seen = journal(&agent);
        let (table, mut wrong) = self.compare(&runs, &logged, seen);
        wrong.extend(losses);
        show(&table);
        assert!(
            wrong.is_empty(),
            "{}\n{table}{}",
            wrong.join("\n"),
            agent.log()
        );
    }

    fn compare(
        &self,
        runs: &[Run],
        logged: &HashMap<u64, Logged>,
        mut seen: Vec<Seen>,
    ) -> (String, Vec<String>) {
        let mut wrong = Vec::new();
        let mut table = format!("{HEADER}\n");
        for run in runs {
            let (here, later) = seen.into_iter().partition(|seen| seen.start_s < run.until);
            seen = later;
            let compared = Stretch {
                server: self.name,
                connections: run.connections,
                answers: &run.answers,
                logged,
                seen: &here,
                key: self.key,
                aborted: self.aborted,
                timed: run.timed,
            }
            .compare();
            table.push_str(&compared.row);
            table.push('\n');
            let at = |what| format!("{} connections: {what}", run.connections);
            wrong.extend(compared.wrong.into_iter().map(at));
        }
        wrong.extend(
            seen.iter()
                .map(|bogus| format!("bogus, after all loads: {bogus:?}")),
        );
        (table, wrong)
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
