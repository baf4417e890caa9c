//! One request that is not booked yet: how its work is seen, and what it has been given.

use super::service::Service;
use super::work::{Edge, Worker};
use super::{GpuPhases, Request};
use crate::clock::Timestamp;
use crate::units::Microjoules;

/// Where a request keeps its energy: GPU by kind of work, then CPU, then DRAM.
pub(super) const ENERGIES: usize = 6;

/// How a request's work is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// No first data yet, or not resolved yet.
    Waiting,
    /// It was not to be waited for any longer; true: taken as one that does not stream.
    Presumed(bool),
    /// Chunks are seen.
    Streaming,
    /// Only its time in service is seen.
    Unstreamed,
    /// It costs nobody energy.
    Free,
}

/// One request that is not booked yet.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) request: Request,
    pub(super) service: u32,
    pub(super) mode: Mode,
    /// 2⁻⁶⁴ µJ, as [`super::work`] keeps it.
    pub(super) energies: [u128; ENERGIES],
    /// Length of its prefill window and half-width of that, seconds.
    pub(super) prefill: (f64, f64),
    /// Its engine reads prompts in parts, beside decode steps.
    pub(super) is_mixed: bool,
    /// The latest look at it.
    pub(super) told_at: Timestamp,
    /// The engine's queue held it until then, if ever.
    pub(super) queued_until: Timestamp,
    chunks: u64,
    chunks_until: Timestamp,
}

impl Flight {
    /// A request that was first looked at at `at`; `free` if it costs nobody energy.
    pub(super) fn new(at: Timestamp, request: Request, service: u32, free: bool) -> Self {
        Self {
            request: Request {
                first_data: None,
                last_data: None,
                end: None,
                ..request
            },
            service,
            mode: if free { Mode::Free } else { Mode::Waiting },
            energies: [0; ENERGIES],
            prefill: (0.0, 0.0),
            is_mixed: false,
            told_at: request.start.min(at),
            queued_until: request.start,
            chunks: 0,
            chunks_until: request.start,
        }
    }

    /// When it ended; its start while it has not.
    pub(super) fn end(&self) -> Timestamp {
        self.request.end.map_or(self.request.start, |end| end.at)
    }

    /// What it did with `whole`, its GPU energy: in proportion to its energies by kind of work, of which
    /// the largest takes what rounding leaves.
    pub(super) fn phases(&self, whole: Microjoules) -> GpuPhases {
        let [prefill, decode, unstreamed, wait, ..] = self.energies.map(|energy| energy as f64);
        let parts = [prefill, decode, wait, unstreamed];
        let exact: f64 = parts.iter().sum();
        let largest = parts.into_iter().fold(0.0, f64::max);
        let mut left = whole.0;
        let mut shares = parts.map(|part| {
            let share = if exact > 0.0 { part / exact } else { 0.0 };
            let share = ((whole.0 as f64 * share) as u64).min(left);
            left -= share;
            Microjoules(share)
        });
        if let Some(place) = parts.iter().position(|part| *part >= largest)
            && let Some(share) = shares.get_mut(place)
        {
            *share += Microjoules(left);
        }
        let [prefill, decode, wait, _] = shares;
        GpuPhases {
            prefill,
            decode,
            wait,
        }
    }

    /// Turns the chunks that are new since the look at `looked` into work.
    pub(super) fn follow_chunks(
        &mut self,
        looked: Timestamp,
        worker: Worker,
        service: &mut Service,
        edges: &mut Vec<Edge>,
    ) {
        let Request {
            streamed: true,
            first_data: Some(first),
            chunks,
            ..
        } = self.request
        else {
            return;
        };
        let last = self.request.last_data.unwrap_or(first).max(first);
        if chunks == 0 || chunks <= self.chunks {
            return;
        }
        if self.chunks == 0 {
            // What goes out at the instant of first data comes from the prefill step.
            self.chunks = if last == first { chunks } else { 1 };
            self.chunks_until = first;
        }
        let new = chunks.saturating_sub(self.chunks);
        if new > 0 {
            worker.chunks(self.chunks_until, looked, last, new, edges);
            service
                .speed
                .chunk_spacing(last.seconds_since(self.chunks_until) / new as f64);
            self.chunks = chunks;
            self.chunks_until = last;
        }
    }
}

/// The request with its moments in order, whatever its source says.
pub(super) fn in_order(mut request: Request) -> Request {
    request.first_data = request.first_data.map(|first| first.max(request.start));
    let least = request.first_data.unwrap_or(request.start);
    request.last_data = request.last_data.map(|last| last.max(least));
    if let Some(end) = &mut request.end {
        end.at = end.at.max(request.last_data.unwrap_or(least));
    }
    request
}
