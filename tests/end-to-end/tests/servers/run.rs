//! One server under all loads, with one agent that watches it.

use std::fs::File;
use std::io::Write as _;
use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::Agent;
use end_to_end::http;
use end_to_end::load::{Answer, Client, Kind, Load};
use profiler::clock::Timestamp;

use crate::compare::{HEADER, Key, Seen, Stretch};
use crate::start::Server;
use crate::truth::{self, Logged};

/// Connections held, requests on each, and milliseconds between two. At the first two loads the
/// CPU is idle most of the time, and times must agree.
const LOADS: [(u64, u64, u64); 4] = [(1, 60, 8), (8, 40, 40), (100, 10, 500), (1_000, 2, 2_500)];
const TIMED: u64 = 8;
/// Between two loads, so that a request's start tells which it belongs to.
const QUIET: Duration = Duration::from_millis(200);

/// A server and how it is asked.
pub(crate) struct Case<'a> {
    pub(crate) name: &'a str,
    /// Whom the agent follows: `--port` or `--pid` with its value, and more flags.
    pub(crate) agent: &'a [&'a str],
    pub(crate) mix: &'static [(u64, Kind)],
    pub(crate) key: Key,
    /// The server's own log, as of now.
    pub(crate) log: fn(&Server) -> Vec<Logged>,
}

/// The log that the servers of `servers/` write.
pub(crate) fn own_log(server: &Server) -> Vec<Logged> {
    truth::lines(&server.read("log.jsonl"))
}

impl Case<'_> {
    /// Runs the loads over `client` and compares.
    pub(crate) fn check<C: Client + Clone>(&self, server: &Server, client: &C) {
        let mut agent = Agent::start(self.agent);
        // The agent looks for processes, listeners and connections once a second.
        sleep(Duration::from_millis(300));
        let mut stretches: Vec<(u64, Vec<Answer>, Timestamp)> = Vec::new();
        let mut first = 0;
        for (connections, requests, think) in LOADS {
            let load = Load {
                connections,
                requests,
                think: think / 2..think * 3 / 2,
                mix: self.mix,
                first,
            };
            first += connections * requests;
            let answers = load.run(client.clone());
            truth::wait(server, first as usize, self.log);
            sleep(QUIET);
            stretches.push((connections, answers, Timestamp::now()));
        }
        let logged = truth::wait(server, first as usize, self.log);
        sleep(Duration::from_millis(300));
        let losses = losses(&agent);
        agent.end_with(libc::SIGTERM);
        let mut seen: Vec<Seen> = agent
            .requests()
            .into_iter()
            .map(|entry| serde_json::from_value(entry).expect("a request"))
            .collect();

        let mut wrong = Vec::new();
        let mut table = format!("{HEADER}\n");
        for (connections, answers, until) in &stretches {
            let until = until.0 as f64 * 1e-9;
            let (here, later) = seen.into_iter().partition(|seen| seen.start_s < until);
            seen = later;
            let compared = Stretch {
                server: self.name,
                connections: *connections,
                answers,
                logged: &logged,
                seen: &here,
                key: self.key,
                timed: *connections <= TIMED,
            }
            .compare();
            table.push_str(&compared.row);
            table.push('\n');
            let at = |what| format!("{connections} connections: {what}");
            wrong.extend(compared.wrong.into_iter().map(at));
        }
        wrong.extend(
            seen.iter()
                .map(|bogus| format!("bogus, after all loads: {bogus:?}")),
        );
        show(&table);
        assert!(
            wrong.is_empty(),
            "{}\n{table}losses: {losses:?}\n{}",
            wrong.join("\n"),
            agent.log()
        );
        assert!(losses.is_empty(), "{losses:?}");
    }
}

/// What the agent says it has lost.
fn losses(agent: &Agent) -> Vec<String> {
    let scrape = http::get(agent.port(), "/metrics");
    http::body(&scrape)
        .lines()
        .filter(|line| line.starts_with("perjoule_events_dropped_total") && !line.ends_with(" 0"))
        .map(str::to_owned)
        .collect()
}

/// Prints a table, also to the file that `PERJOULE_TEST_TABLE` names: the test harness hides what
/// a passing test prints.
fn show(table: &str) {
    eprint!("{table}");
    if let Some(path) = std::env::var_os("PERJOULE_TEST_TABLE")
        && let Ok(mut file) = File::options().create(true).append(true).open(path)
    {
        // The table is for people; a test is not failed for it.
        let _ = file.write_all(table.as_bytes());
    }
}
