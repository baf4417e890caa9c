//! What perjoule saw beside what the server logged, request by request.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use end_to_end::load::{Answer, number_of};
use serde::Deserialize;

use crate::run::ABORTED;
use crate::truth::Logged;

/// How far perjoule's times may be from the server's, at the median and at the 99th percentile.
pub(crate) const MEDIAN: f64 = 1e-3;
const P99: f64 = 5e-3;
/// No more of what is wrong is shown than this.
const SHOWN: usize = 4;

/// A request in perjoule's recording.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Seen {
    pub(crate) id: u64,
    pub(crate) status: u16,
    pub(crate) outcome: String,
    pub(crate) start_s: f64,
    pub(crate) first_token_s: Option<f64>,
    pub(crate) end_s: f64,
    pub(crate) streamed: bool,
    pub(crate) chunks: u64,
    pub(crate) input_bytes: Option<u64>,
    /// Its trace's id, where trace ids are asked for.
    #[serde(skip)]
    pub(crate) trace: Option<String>,
}

/// How a request of the recording is known in the server's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// By its length in bytes: each has its own.
    Length,
    /// By its trace, which is its number: in HTTP/2 the length depends on how headers are coded.
    /// Of health checks no trace is told; they are all alike, and taken in their order.
    Trace,
}

/// One load: what was sent, and what the server and perjoule say of it.
pub(crate) struct Stretch<'a> {
    pub(crate) server: &'a str,
    pub(crate) connections: u64,
    pub(crate) answers: &'a [Answer],
    pub(crate) logged: &'a HashMap<u64, Logged>,
    pub(crate) seen: &'a [Seen],
    pub(crate) key: Key,
}

/// A line of the table, and what is wrong in it.
pub(crate) struct Compared {
    pub(crate) row: String,
    pub(crate) wrong: Vec<String>,
    /// Times that are too far from the server's.
    pub(crate) late: Vec<String>,
}

pub(crate) const HEADER: &str = "server, connections: requests seen/logged, with another code, \
    chunks seen/logged, aborted seen/logged, time to first token and duration against the \
    server's: median, p99, time in which somebody waited for a CPU, late wakes";

/// Differences of times, in seconds.
#[derive(Default)]
struct Differences(Vec<f64>);

impl Differences {
    fn quantile(&self, part: f64) -> Option<f64> {
        let mut sorted: Vec<f64> = self.0.iter().map(|difference| difference.abs()).collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        sorted.get((last as f64 * part).ceil() as usize).copied()
    }

    fn judge(&self, what: &str, wrong: &mut Vec<String>) {
        for (part, name, bar) in [(0.5, "median", MEDIAN), (0.99, "p99", P99)] {
            if let Some(value) = self.quantile(part).filter(|value| *value > bar) {
                wrong.push(format!(
                    "{what}: the {name} is {:.2} ms from the server's",
                    value * 1e3
                ));
            }
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.quantile(0.5), self.quantile(0.99)) {
            (Some(median), Some(p99)) => {
                write!(f, "{:.3} {:.3} ms", median * 1e3, p99 * 1e3)
            }
            _ => f.write_str("-"),
        }
    }
}

impl Stretch<'_> {
    /// Compares all of it.
    pub(crate) fn compare(&self) -> Compared {
        let mut wrong = Vec::new();
        let logged: Vec<(&Answer, &Logged)> = self
            .answers
            .iter()
            .filter_map(|answer| Some((answer, self.logged.get(&answer.ask.n)?)))
            .collect();
        if logged.len() != self.answers.len() {
            wrong.push(format!(
                "{} of {} are logged",
                logged.len(),
                self.answers.len()
            ));
        }
        if self.seen.len() != logged.len() {
            wrong.push(format!(
                "{} requests seen, {} logged",
                self.seen.len(),
                logged.len()
            ));
        }
        let pairs = self.pairs(&logged, &mut wrong);
        let (mut first, mut whole) = (Differences::default(), Differences::default());
        let mut codes = 0;
        let mut complain = |what: &str, seen: &Seen, logged: &Logged| {
            wrong.push(format!("{what}: {seen:?} is {logged:?}"));
        };
        for (seen, answer, logged) in &pairs {
            if seen.status != logged.status {
                codes += 1;
                complain("code", seen, logged);
            }
            let came = answer.events..;
            if !logged.may_have_sent(seen.chunks) || !came.contains(&seen.chunks) {
                complain("chunks", seen, logged);
            }
            // A client may leave as the last bytes are written: then the application does not
            // learn of it.
            let left = logged.aborted || (answer.ask.kind.cut && seen.outcome == "aborted");
            if seen.outcome != if left { ABORTED } else { "done" } {
                complain("outcome", seen, logged);
            }
            whole
                .0
                .push((seen.end_s - seen.start_s) - (logged.end_s - logged.read_s));
            if let (true, Some(token), Some(sent)) =
                (seen.streamed, seen.first_token_s, logged.first_s)
            {
                first
                    .0
                    .push((token - seen.start_s) - (sent - logged.read_s));
            }
        }
        let mut late = Vec::new();
        first.judge("time to first token", &mut late);
        whole.judge("duration", &mut late);
        let aborted = |outcome: &str| {
            self.seen
                .iter()
                .filter(|seen| seen.outcome == outcome)
                .count()
        };
        let row = format!(
            "{:<24} {:>5}: {}/{}, {codes}, {}/{}, {}/{}, {first}, {whole}",
            self.server,
            self.connections,
            self.seen.len(),
            logged.len(),
            self.seen.iter().map(|seen| seen.chunks).sum::<u64>(),
            logged.iter().map(|(_, logged)| logged.chunks).sum::<u64>(),
            aborted(ABORTED),
            logged.iter().filter(|(_, logged)| logged.aborted).count(),
        );
        let more = wrong.len().saturating_sub(SHOWN);
        wrong.truncate(SHOWN);
        if more > 0 {
            wrong.push(format!("and {more} more"));
        }
        Compared { row, wrong, late }
    }

    /// Brings each request of the recording together with its line in the log; what is on one side
    /// only is wrong.
    fn pairs<'a>(
        &'a self,
        logged: &[(&'a Answer, &'a Logged)],
        wrong: &mut Vec<String>,
    ) -> Vec<(&'a Seen, &'a Answer, &'a Logged)> {
        let key_of_seen = |seen: &Seen| match self.key {
            Key::Length => seen.input_bytes,
            Key::Trace => number_of(seen.trace.as_ref()?),
        };
        let mut seen: Vec<&Seen> = self.seen.iter().collect();
        seen.sort_by(|a, b| b.start_s.total_cmp(&a.start_s));
        let mut seen_by_key: BTreeMap<Option<u64>, Vec<&Seen>> = BTreeMap::new();
        for seen in seen {
            seen_by_key.entry(key_of_seen(seen)).or_default().push(seen);
        }
        let mut logged = logged.to_vec();
        logged.sort_by(|a, b| a.1.read_s.total_cmp(&b.1.read_s));
        let mut pairs = Vec::new();
        for (answer, logged) in logged {
            let key = match self.key {
                Key::Length => Some(answer.ask.length as u64),
                Key::Trace if answer.ask.kind.path == "/health" => None,
                Key::Trace => Some(answer.ask.n),
            };
            // The first to begin is the last of its kind.
            match seen_by_key.get_mut(&key).and_then(Vec::pop) {
                Some(seen) => pairs.push((seen, answer, logged)),
                None => wrong.push(format!("not seen: {answer:?}, {logged:?}")),
            }
        }
        for bogus in seen_by_key.into_values().flatten() {
            wrong.push(format!("bogus: {bogus:?}"));
        }
        pairs
    }
}
