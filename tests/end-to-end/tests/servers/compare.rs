//! What perjoule saw beside what the server logged, request by request.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use end_to_end::load::Answer;
use serde::Deserialize;

use crate::truth::Logged;

/// How far perjoule's times may be from the server's, at the median and at the 99th percentile.
pub(crate) const MEDIAN: f64 = 1e-3;
const P99: f64 = 5e-3;
/// No more of what is wrong is shown than this.
const SHOWN: usize = 4;

/// A request in perjoule's journal.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) outcome: String,
    pub(crate) start_s: f64,
    pub(crate) first_token_s: Option<f64>,
    pub(crate) end_s: f64,
    pub(crate) streamed: bool,
    pub(crate) chunks: u64,
    pub(crate) input_bytes: Option<u64>,
}

/// How a request of the journal is known in the server's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// By its length in bytes: each has its own.
    Length,
    /// By the order in which requests of one kind of answer begin.
    Order,
}

/// One load: what was sent, and what the server and perjoule say of it.
pub(crate) struct Stretch<'a> {
    pub(crate) server: &'a str,
    pub(crate) connections: u64,
    pub(crate) answers: &'a [Answer],
    pub(crate) logged: &'a HashMap<u64, Logged>,
    pub(crate) seen: &'a [Seen],
    pub(crate) key: Key,
    /// How a request ends whose client has left.
    pub(crate) aborted: &'a str,
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
    server's: median, p99, time in which somebody waited for a CPU";

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
            if !logged.may_have_sent(seen.chunks) {
                complain("chunks", seen, logged);
            }
            // A client may leave as the last bytes are written: then the application does not
            // learn of it.
            let left = logged.aborted || (answer.ask.kind.cut && seen.outcome == "aborted");
            if seen.outcome != if left { self.aborted } else { "done" } {
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
            logged
                .iter()
                .filter_map(|(_, logged)| logged.chunks)
                .sum::<u64>(),
            aborted(self.aborted),
            logged.iter().filter(|(_, logged)| logged.aborted).count(),
        );
        let more = wrong.len().saturating_sub(SHOWN);
        wrong.truncate(SHOWN);
        if more > 0 {
            wrong.push(format!("and {more} more"));
        }
        Compared { row, wrong, late }
    }

    /// Brings each request of the journal together with its line in the log; what is on one side
    /// only is wrong.
    fn pairs<'a>(
        &'a self,
        logged: &[(&'a Answer, &'a Logged)],
        wrong: &mut Vec<String>,
    ) -> Vec<(&'a Seen, &'a Answer, &'a Logged)> {
        let key_of_seen = |seen: &Seen| match self.key {
            Key::Length => (seen.input_bytes.unwrap_or(0), 0),
            Key::Order => (u64::from(seen.status), seen.chunks),
        };
        let key_of_logged = |answer: &Answer, logged: &Logged| match self.key {
            Key::Length => (answer.ask.length as u64, 0),
            Key::Order => (u64::from(logged.status), logged.chunks.unwrap_or(0)),
        };
        let mut seen_by_key: BTreeMap<(u64, u64), Vec<&Seen>> = BTreeMap::new();
        for seen in self.seen {
            seen_by_key.entry(key_of_seen(seen)).or_default().push(seen);
        }
        let mut logged_by_key: BTreeMap<(u64, u64), Vec<&(&Answer, &Logged)>> = BTreeMap::new();
        for pair in logged {
            let here = logged_by_key.entry(key_of_logged(pair.0, pair.1));
            here.or_default().push(pair);
        }
        let mut pairs = Vec::new();
        for (key, mut logged) in logged_by_key {
            let mut seen = seen_by_key.remove(&key).unwrap_or_default();
            seen.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
            logged.sort_by(|a, b| a.1.read_s.total_cmp(&b.1.read_s));
            for missed in logged.iter().skip(seen.len()) {
                wrong.push(format!("not seen: {missed:?}"));
            }
            for bogus in seen.iter().skip(logged.len()) {
                wrong.push(format!("bogus: {bogus:?}"));
            }
            let both = seen.into_iter().zip(logged);
            pairs.extend(both.map(|(seen, (answer, logged))| (seen, *answer, *logged)));
        }
        for bogus in seen_by_key.into_values().flatten() {
            wrong.push(format!("bogus: {bogus:?}"));
        }
        pairs
    }
}
