//! One meter: how much of the period it saw, its power over seconds and minutes, and what it drew
//! while it had nothing to do.

use super::load::{BOOKED, MINUTE, SECOND, resolves};
use super::model::{Coverage, PowerOf};
use super::time::{Cuts, Spread};
use crate::clock::Timestamp;
use crate::ledger::{BookedInterval, Component, Meter};
use crate::report::quantiles::Quantiles;
use crate::units::Microjoules;

/// Quiet time shorter than this is between requests.
const QUIET: u64 = MINUTE;

/// A device whose other work is more than one part in so many of its energy is not quiet: power is never
/// still.
const OTHER_WORK: u64 = 10;

/// One meter's sums.
#[derive(Debug)]
pub(super) struct MeterPlan {
    pub(super) component: Component,
    pub(super) device: String,
    pub(super) limit: Option<f64>,
    gain_error_ratio: f64,
    pub(super) intervals: u64,
    /// Nanoseconds of its intervals.
    booked: u64,
    /// Of these, those in which nobody looked.
    unseen: u64,
    pub(super) energy: Microjoules,
    holes: u64,
    holes_nanos: u64,
    seconds: Powers,
    minutes: Powers,
    pub(super) quiet: Quiet,
}

/// Mean power over equal lengths of time.
#[derive(Debug)]
struct Powers {
    cuts: Cuts,
    /// The length that is not over yet.
    place: usize,
    energy: u64,
    booked: u64,
    /// Milliwatts.
    powers: Quantiles,
}

/// Stretches of more than a minute in which a meter booked nothing to requests, and little to other work.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    pub(super) stretches: u64,
    pub(super) nanos: u64,
    pub(super) idle: Microjoules,
    pub(super) context: Microjoules,
    current: Option<Stretch>,
}

#[derive(Debug, Clone, Copy)]
struct Stretch {
    from: Timestamp,
    to: Timestamp,
    idle: Microjoules,
    context: Microjoules,
}

impl MeterPlan {
    pub(super) fn new(meter: &Meter, device: String, (from, to): (Timestamp, Timestamp)) -> Self {
        Self {
            component: meter.component,
            device,
            limit: meter.limit.map(|limit| limit.0),
            gain_error_ratio: meter.gain_error_ratio,
            intervals: 0,
            booked: 0,
            unseen: 0,
            energy: Microjoules::ZERO,
            holes: 0,
            holes_nanos: 0,
            seconds: Powers::new(from, to, SECOND),
            minutes: Powers::new(from, to, MINUTE),
            quiet: Quiet::default(),
        }
    }

    pub(super) fn add(&mut self, interval: &BookedInterval) {
        self.intervals += 1;
        let length = interval.to.since(interval.from);
        self.booked += length;
        if interval.accounts.gap > Microjoules::ZERO {
            self.unseen += length;
        }
        self.energy += interval.energy;
        if self.component == Component::Gpu {
            self.seconds.add(interval);
            self.minutes.add(interval);
            self.quiet.add(interval);
        }
    }

    pub(super) const fn add_hole(&mut self, from: Timestamp, to: Timestamp) {
        self.holes += 1;
        self.holes_nanos += to.since(from);
    }

    /// The mean length of its intervals, nanoseconds.
    pub(super) fn interval(&self) -> Option<u64> {
        self.booked.checked_div(self.intervals)
    }

    /// All intervals were told.
    pub(super) fn finish(&mut self) {
        self.seconds.close();
        self.minutes.close();
        self.quiet.close();
    }

    /// Joules that its sensor's gain may be off by.
    pub(super) fn gain(&self) -> f64 {
        self.gain_error_ratio * self.energy.joules().0
    }

    pub(super) fn coverage(&self, period: f64) -> Coverage {
        let booked = (self.booked - self.unseen) as f64 / 1e9;
        Coverage {
            component: self.component,
            device: self.device.clone(),
            booked_s: booked,
            booked_ratio: (booked / period).min(1.0),
            intervals: self.intervals,
            holes: self.holes,
            holes_s: self.holes_nanos as f64 / 1e9,
            gain_error_ratio: self.gain_error_ratio,
        }
    }

    pub(super) fn power(&self) -> PowerOf {
        let interval = self.interval();
        let p99 = |powers: &Powers| {
            let long_enough =
                interval.is_some_and(|interval| resolves(interval, powers.cuts.length));
            let power = powers.powers.quantile(0.99).filter(|_| long_enough);
            power.map(|milliwatts| milliwatts / 1e3)
        };
        let mean = (self.booked > 0).then(|| self.energy.0 as f64 * 1e3 / self.booked as f64);
        PowerOf::new(
            self.device.clone(),
            self.limit,
            mean,
            [p99(&self.seconds), p99(&self.minutes)],
        )
    }
}

impl PowerOf {
    /// `p99`: of means over a second, and over a minute.
    pub(super) fn new(
        device: String,
        limit_w: Option<f64>,
        mean_w: Option<f64>,
        [p99_1s_w, p99_1min_w]: [Option<f64>; 2],
    ) -> Self {
        Self {
            device,
            limit_w,
            mean_w,
            p99_1s_w,
            p99_1min_w,
            stranded_w: limit_w
                .zip(p99_1s_w)
                .map(|(limit, p99)| (limit - p99).max(0.0)),
        }
    }
}

impl Powers {
    fn new(from: Timestamp, to: Timestamp, length: u64) -> Self {
        Self {
            cuts: Cuts {
                start: from.0,
                length,
                count: to.since(from).div_ceil(length).max(1) as usize,
            },
            place: 0,
            energy: 0,
            booked: 0,
            powers: Quantiles::default(),
        }
    }

    /// One that is too long, or in which nobody looked, says nothing of single lengths.
    fn add(&mut self, interval: &BookedInterval) {
        let length = interval.to.since(interval.from);
        if !resolves(length, self.cuts.length) || interval.accounts.gap > Microjoules::ZERO {
            return self.close();
        }
        let mut spread = Spread::new(interval.energy.0, interval.from, interval.to);
        for piece in self.cuts.pieces(interval.from, interval.to) {
            if piece.place != self.place {
                self.close();
                self.place = piece.place;
            }
            self.energy += spread.part(piece);
            self.booked += piece.nanos;
        }
    }

    fn close(&mut self) {
        if self.booked as f64 >= self.cuts.length as f64 * BOOKED {
            // Microjoules a nanosecond are kilowatts.
            let milliwatts = self.energy as f64 * 1e6 / self.booked as f64;
            self.powers.add(milliwatts as u64);
        }
        (self.energy, self.booked) = (0, 0);
    }
}

impl Quiet {
    fn add(&mut self, interval: &BookedInterval) {
        let accounts = &interval.accounts;
        let used = accounts.requests + accounts.gap;
        let other = accounts.overhead + accounts.other + accounts.unattributed;
        let is_quiet = used == Microjoules::ZERO && other.0 <= interval.energy.0 / OTHER_WORK;
        let goes_on = is_quiet
            && self
                .current
                .is_some_and(|stretch| stretch.to == interval.from);
        if !goes_on {
            self.close();
        }
        if is_quiet {
            let stretch = self.current.get_or_insert(Stretch {
                from: interval.from,
                to: interval.to,
                idle: Microjoules::ZERO,
                context: Microjoules::ZERO,
            });
            stretch.to = interval.to;
            stretch.idle += accounts.idle;
            stretch.context += accounts.context;
        }
    }

    fn close(&mut self) {
        if let Some(stretch) = self.current.take()
            && stretch.to.since(stretch.from) > QUIET
        {
            self.stretches += 1;
            self.nanos += stretch.to.since(stretch.from);
            self.idle += stretch.idle;
            self.context += stretch.context;
        }
    }
}
