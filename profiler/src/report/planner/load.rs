//! How much was going on, second by second, and what the GPUs drew meanwhile.

use super::model::{BusiestMinute, LoadPoint};
use super::time::{Cuts, Spread};
use crate::clock::Timestamp;
use crate::ledger::{BookedInterval, BookedRequest};
use crate::report::quantiles::Quantiles;
use crate::units::Microjoules;

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const MINUTE: u64 = 60 * SECOND;

/// More slots than this are not kept: longer periods have longer ones.
const SLOTS: u64 = 500_000;

/// A point of the curve has at least this much time.
const LEAST_TIME: f64 = 5.0;

/// A length of time counts where so much of it was booked on every GPU.
pub(super) const BOOKED: f64 = 0.99;

/// True if intervals of this length say what was drawn in each `length`.
pub(super) const fn resolves(interval: u64, length: u64) -> bool {
    interval <= length + length / 4
}

/// The period in seconds, or in longer slots where there are too many.
#[derive(Debug)]
pub(super) struct Load {
    cuts: Cuts,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// All GPUs, µJ.
    energy: u64,
    /// Their booked time together, ns.
    booked: u64,
    /// Requests × ns.
    in_flight: u64,
    ended: u64,
    output_tokens: f64,
}

impl Load {
    pub(super) fn new(from: Timestamp, to: Timestamp) -> Self {
        let seconds = to.since(from).div_ceil(SECOND).max(1);
        let length = seconds.div_ceil(SLOTS) * SECOND;
        let count = to.since(from).div_ceil(length).max(1) as usize;
        Self {
            cuts: Cuts {
                start: from.0,
                length,
                count,
            },
            slots: vec![Slot::default(); count],
        }
    }

    /// A request that ended at `end`; both are in the period.
    pub(super) fn serve(&mut self, booked: &BookedRequest, start: Timestamp, end: Timestamp) {
        for piece in self.cuts.pieces(start, end) {
            if let Some(slot) = self.slots.get_mut(piece.place) {
                slot.in_flight += piece.nanos;
            }
        }
        if let Some(slot) = self.slots.get_mut(self.cuts.place_of_end(end)) {
            slot.ended += 1;
        }
        let Some(tokens) = booked.token_count().and_then(|count| count.output) else {
            return;
        };
        let first = booked.request.first_data.unwrap_or(start);
        let first = Timestamp(first.0.clamp(start.0, end.0));
        let span = end.since(first).max(1) as f64;
        for piece in self.cuts.pieces(first, end) {
            if let Some(slot) = self.slots.get_mut(piece.place) {
                slot.output_tokens += tokens as f64 * piece.nanos.max(1) as f64 / span;
            }
        }
    }

    /// What a GPU drew, unless nobody looked meanwhile.
    pub(super) fn draw(&mut self, interval: &BookedInterval) {
        if interval.accounts.gap > Microjoules::ZERO {
            return;
        }
        let mut spread = Spread::new(interval.energy.0, interval.from, interval.to);
        for piece in self.cuts.pieces(interval.from, interval.to) {
            if let Some(slot) = self.slots.get_mut(piece.place) {
                slot.energy += spread.part(piece);
                slot.booked += piece.nanos;
            }
        }
    }

    /// Requests in flight, on average over the slots in which any was.
    pub(super) fn mean_in_flight(&self) -> Option<f64> {
        let busy = self.slots.iter().filter(|slot| slot.in_flight > 0);
        let (count, sum) = busy.fold((0u64, 0u128), |(count, sum), slot| {
            (count + 1, sum + u128::from(slot.in_flight))
        });
        (count > 0).then(|| sum as f64 / (count * self.cuts.length) as f64)
    }

    /// Slots put together to at least `length`, those that were booked whole: their first one's
    /// place, their seconds, and their sums.
    fn whole(&self, gpus: u64, length: u64) -> impl Iterator<Item = (usize, f64, Slot)> {
        let group = length.div_ceil(self.cuts.length).max(1) as usize;
        let nanos = self.cuts.length * group as u64;
        let least = nanos as f64 * gpus as f64 * BOOKED;
        let sum = |slots: &[Slot]| {
            slots.iter().fold(Slot::default(), |sum, slot| Slot {
                energy: sum.energy + slot.energy,
                booked: sum.booked + slot.booked,
                in_flight: sum.in_flight + slot.in_flight,
                ended: sum.ended + slot.ended,
                output_tokens: sum.output_tokens + slot.output_tokens,
            })
        };
        let groups = self.slots.chunks_exact(group).enumerate();
        groups.filter_map(move |(number, slots)| {
            let sum = sum(slots);
            let whole = gpus > 0 && sum.booked as f64 >= least;
            whole.then_some((number * group, nanos as f64 / 1e9, sum))
        })
    }

    /// Mean power of all GPUs over each `length`, mW; none where slots or intervals are longer.
    pub(super) fn powers(&self, gpus: u64, interval: u64, length: u64) -> Quantiles {
        let mut powers = Quantiles::default();
        if self.cuts.length <= length && resolves(interval, length) {
            for (_, seconds, slot) in self.whole(gpus, length) {
                powers.add((slot.energy as f64 / seconds / 1e3) as u64);
            }
        }
        powers
    }

    /// The minute that served most while the GPUs drew less than their limits.
    pub(super) fn busiest_minute(
        &self,
        gpus: u64,
        interval: u64,
        limit: f64,
    ) -> Option<BusiestMinute> {
        if !resolves(interval, MINUTE) || self.cuts.length > MINUTE {
            return None;
        }
        let (mut time, mut served) = (0.0, 0u64);
        let mut best: Option<(usize, f64, f64)> = None;
        for (place, seconds, slot) in self.whole(gpus, MINUTE) {
            time += seconds;
            served += slot.ended;
            let (rate, watts) = (
                slot.ended as f64 / seconds,
                slot.energy as f64 / 1e6 / seconds,
            );
            if watts < limit && best.is_none_or(|(_, fastest, _)| rate > fastest) {
                best = Some((place, rate, watts));
            }
        }
        let (place, requests_per_s, gpu_w) = best?;
        let mean = served as f64 / time;
        // One minute is no comparison.
        (served > 0 && time > 100.0).then(|| BusiestMinute {
            from_s: (place as u64 * self.cuts.length) as f64 / 1e9,
            requests_per_s,
            gpu_w,
            mean_requests_per_s: mean,
            more_requests_ratio: requests_per_s / mean - 1.0,
        })
    }

    /// Power and energy per token by requests in flight: none, up to 1, up to 2, up to 4 and so on.
    pub(super) fn curve(&self, gpus: u64, interval: u64, tokens_known: bool) -> Vec<LoadPoint> {
        let mut points: Vec<(f64, Slot)> = Vec::new();
        let length = interval.max(self.cuts.length);
        for (_, seconds, slot) in self.whole(gpus, length) {
            let in_flight = slot.in_flight as f64 / 1e9 / seconds;
            let place = if slot.in_flight == 0 {
                0
            } else {
                1 + in_flight.log2().ceil().max(0.0) as usize
            };
            if points.len() <= place {
                points.resize(place + 1, (0.0, Slot::default()));
            }
            if let Some((time, sum)) = points.get_mut(place) {
                *time += seconds;
                sum.energy += slot.energy;
                sum.in_flight += slot.in_flight;
                sum.ended += slot.ended;
                sum.output_tokens += slot.output_tokens;
            }
        }
        let long = points.iter().enumerate();
        long.filter(|(_, (time, _))| *time >= LEAST_TIME)
            .map(|(place, (time, sum))| {
                let joules = sum.energy as f64 / 1e6;
                let tokens = sum.output_tokens;
                let tokens = (tokens_known && place > 0 && tokens >= 1.0).then_some(tokens);
                let edge = |place: i32| 2f64.powi(place - 1);
                LoadPoint {
                    above: if place < 2 {
                        0.0
                    } else {
                        edge(place as i32 - 1)
                    },
                    up_to: if place == 0 { 0.0 } else { edge(place as i32) },
                    mean_in_flight: sum.in_flight as f64 / 1e9 / time,
                    time_s: *time,
                    gpu_w: joules / time,
                    requests_per_s: sum.ended as f64 / time,
                    output_tokens_per_s: tokens.map(|tokens| tokens / time),
                    j_per_output_token: tokens.map(|tokens| joules / tokens),
                }
            })
            .collect()
    }
}
