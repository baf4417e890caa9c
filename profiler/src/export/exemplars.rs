//! Which request a bucket's latest value was: a histogram that can be followed to a recording.
//!
//! An exemplar is a request's number, as `script` and the recording have it, and its value. No path,
//! header or body. There is at most one a bucket.

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use crate::ledger::RequestId;

/// A histogram of requests, and the latest request in each bucket. Of the two only the first is
/// kept over restarts: request numbers are the agent's own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Sampled<const N: usize> {
    pub(super) histogram: Histogram<N>,
    #[serde(skip)]
    exemplars: Vec<Exemplar>,
}

/// One request that fell into a bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exemplar {
    /// Its bucket's place; that of the infinite one is behind all bounds'.
    pub(super) bucket: usize,
    /// In the bounds' unit.
    pub(super) value: u64,
    pub(super) moment: Moment,
}

/// Which request, and when it ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) request: RequestId,
    /// Milliseconds since the Unix epoch.
    pub(super) unix_millis: u64,
}

impl<const N: usize> Default for Sampled<N> {
    fn default() -> Self {
        Self {
            histogram: Histogram::default(),
            exemplars: Vec::new(),
        }
    }
}

impl<const N: usize> Sampled<N> {
    pub(super) fn observe(&mut self, bounds: &[u64; N], value: u64, moment: Moment) {
        let bucket = self.histogram.observe(bounds, value);
        let new = Exemplar {
            bucket,
            value,
            moment,
        };
        let known = self
            .exemplars
            .iter_mut()
            .find(|known| known.bucket == bucket);
        match known {
            // Requests are not booked in the order of their ends.
            Some(known) if known.moment.unix_millis <= moment.unix_millis => *known = new,
            Some(_) => {}
            None => self.exemplars.push(new),
        }
    }

    pub(super) fn exemplars(&self) -> &[Exemplar] {
        &self.exemplars
    }

    /// Takes in another's values; its requests are not shown any more.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.histogram.absorb(&other.histogram);
    }
}
