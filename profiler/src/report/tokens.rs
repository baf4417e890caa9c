//! What an engine counted, and whether that is all of what its requests were given.

use crate::clock::Timestamp;
use crate::ledger::{Request, TokenDelta};

/// One in so many requests may lie partly outside the time that was counted.
const ONE_IN: u64 = 100;

/// One service's engine in one window.
#[derive(Debug, Default)]
pub(super) struct ServerTokens {
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    /// The time that was counted without a break.
    counted: Option<(Timestamp, Timestamp)>,
    /// There was a break: the server was restarted.
    broken: bool,
    requests: u64,
    /// Requests that began before the first read.
    early: u64,
    /// Ends of requests after the latest read.
    late: Vec<Timestamp>,
}

impl ServerTokens {
    pub(super) fn add(&mut self, delta: &TokenDelta) {
        let add = |sum: &mut Option<u64>, new: Option<u64>| {
            if let Some(new) = new {
                *sum.get_or_insert_default() += new;
            }
        };
        add(&mut self.input, delta.input);
        add(&mut self.output, delta.output);
        self.counted = match self.counted {
            None => Some((delta.from, delta.to)),
            Some((from, to)) => {
                self.broken |= delta.from != to;
                Some((from, delta.to))
            }
        };
        self.late.retain(|end| *end > delta.to);
    }

    /// A request that was booked.
    pub(super) fn serve(&mut self, request: &Request) {
        let end = request.end.map_or(request.start, |end| end.at);
        self.requests += 1;
        match self.counted {
            Some((from, _)) if request.start < from => self.early += 1,
            Some((_, to)) if end > to => self.late.push(end),
            Some(_) => {}
            None => self.early += 1,
        }
    }

    /// True if its counters were read at all.
    pub(super) const fn reads(&self) -> bool {
        self.counted.is_some()
    }

    /// True if the tokens of all but a hundredth of the requests are counted whole.
    pub(super) fn covers(&self) -> bool {
        let outside = self.early + self.late.len() as u64;
        !self.broken && outside * ONE_IN <= self.requests
    }
}
