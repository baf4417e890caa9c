//! The idle levels of a meter: *bare* (nobody holds the device) and *parked* (a process holds a
//! context, nothing runs). An open context costs 26–66 W on data-centre GPUs, so they differ.
//!
//! In: energy and length of quiet intervals. Out: watts, with their uncertainty.
//!
//! A level is the mean over recent quiet intervals, less those far above the others: the mean
//! because the counter's noise is symmetric and its edges' errors cancel in the sum; less those
//! above because what a quiet device does now and then (a model being loaded, clocks that have not
//! come down yet) only ever adds. How far is far is told by the spread of the lower half, which
//! such additions do not touch.

use std::collections::VecDeque;

use crate::units::{Microjoules, Watts};

/// Where a floor comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloorSource {
    /// The user or a model gave it.
    Fixed,
    /// Learned when quiet.
    Learned,
    /// An agent before this one learned it.
    State,
    /// What boards of its model draw.
    Table,
}

impl FloorSource {
    /// As a label has it; `None` is a floor that is not known.
    pub const fn name(source: Option<Self>) -> &'static str {
        match source {
            Some(Self::Fixed) => "user",
            Some(Self::Learned) => "learned",
            Some(Self::State) => "state",
            Some(Self::Table) => "table",
            None => "none",
        }
    }

    /// The source of this name; `None` for `none` and what is no source's name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Fixed, Self::Learned, Self::State, Self::Table]
            .into_iter()
            .find(|source| Self::name(Some(*source)) == name)
    }
}

/// What the device, or devices of its model, drew when idle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TypicalIdle {
    /// Who says so.
    pub source: FloorSource,
    /// Nobody holds it.
    pub bare: Watts,
    /// A process holds a context.
    pub parked: Watts,
    /// Standard error of the parked level for this device at present.
    pub error: Watts,
}

/// A meter's idle floor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// How much.
    pub watts: Watts,
    /// How it is known.
    pub source: FloorSource,
}

/// Quiet intervals are joined until they are this long: within a stretch the errors of a counter's
/// edges cancel, and a single tick's mean power tells little.
const STRETCH: f64 = 0.5;
/// So long after a context was opened or closed the device is between two levels, seconds.
const BETWEEN: f64 = 0.3;
/// Stretches that are remembered: the last minute of quiet time.
const REMEMBERED: usize = 120;
/// Fewer quiet intervals than this say nothing.
const FEWEST: usize = 3;
/// Fewer than this do not say that a level is steady.
const STEADY: usize = 10;
/// Two low quantiles, and where they lie in a normal distribution, in standard deviations.
const LOW: (f64, f64) = (0.05, -1.645);
const MIDDLE: (f64, f64) = (0.3, -0.524);
/// Stretches further from the level than this many standard deviations are something else.
const FAR: f64 = 2.5;
/// Nearer than this share of the level is never far.
const NEAR: f64 = 0.05;
/// With fewer stretches their spread is not known, and this takes its place.
const SPREAD_KNOWN: usize = 20;
const SPREAD: f64 = 0.06;

#[derive(Debug, Clone, Copy, Default)]
struct Quiet {
    joules: f64,
    seconds: f64,
}

impl Quiet {
    fn watts(self) -> f64 {
        self.joules / self.seconds
    }
}

/// One level, learned.
#[derive(Debug, Default)]
struct Level {
    stretches: VecDeque<Quiet>,
    /// The stretch that is not yet long enough.
    growing: Quiet,
    added: usize,
    watts: Option<f64>,
    error: f64,
}

impl Level {
    fn add(&mut self, energy: Microjoules, nanos: u64, fewest: usize) {
        if nanos == 0 {
            return;
        }
        self.added += 1;
        self.growing.joules += energy.joules().0;
        self.growing.seconds += nanos as f64 * 1e-9;
        let whole = self.growing.seconds >= STRETCH;
        if whole {
            if self.stretches.len() == REMEMBERED {
                self.stretches.pop_front();
            }
            self.stretches.push_back(std::mem::take(&mut self.growing));
        }
        if self.added < fewest {
            return;
        }
        if self.stretches.is_empty() {
            self.watts = Some(self.growing.watts());
            self.error = self.growing.watts() * SPREAD;
        } else if whole {
            self.fit();
        }
    }

    fn fit(&mut self) {
        let mut watts: Vec<f64> = self.stretches.iter().map(|quiet| quiet.watts()).collect();
        let mut quantile = |share: f64| {
            let place = ((watts.len() - 1) as f64 * share).round() as usize;
            *watts.select_nth_unstable_by(place, f64::total_cmp).1
        };
        let (centre, spread) = if self.stretches.len() < SPREAD_KNOWN {
            let centre = quantile(0.5);
            (centre, centre * SPREAD)
        } else {
            let (low, middle) = (quantile(LOW.0), quantile(MIDDLE.0));
            let spread = (middle - low) / (MIDDLE.1 - LOW.1);
            (middle - MIDDLE.1 * spread, spread)
        };
        // The second pass takes what the first one's centre left out on one side.
        let mean = self.mean_near(centre, spread).map_or(centre, |near| near.0);
        if let Some((mean, error)) = self.mean_near(mean, spread) {
            self.watts = Some(mean);
            self.error = error;
        }
    }

    /// Mean and standard error over the stretches that are not far from `centre`.
    fn mean_near(&self, centre: f64, spread: f64) -> Option<(f64, f64)> {
        let reach = (FAR * spread).max(NEAR * centre);
        let (mut joules, mut seconds, mut count, mut squares) = (0.0, 0.0, 0.0, 0.0);
        for quiet in &self.stretches {
            if (quiet.watts() - centre).abs() <= reach {
                joules += quiet.joules;
                seconds += quiet.seconds;
                count += 1.0;
                squares += (quiet.watts() - centre).powi(2);
            }
        }
        (seconds > 0.0).then(|| (joules / seconds, (squares / count / count).sqrt()))
    }
}

/// What an interval's length costs before anybody's work.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Base {
    /// The device alone.
    pub(super) idle: Microjoules,
    /// What an open context adds.
    pub(super) context: Microjoules,
}

/// A meter's idle levels.
#[derive(Debug, Default)]
pub(super) struct Levels {
    fixed: Option<Watts>,
    /// Used while nothing is learned.
    typical: Option<TypicalIdle>,
    bare: Level,
    parked: Level,
    /// Whether a context was open in the latest quiet interval.
    held: Option<bool>,
    /// Quiet time that still lies between two levels, seconds.
    between: f64,
}

impl Levels {
    /// `fixed` switches learning off.
    pub(super) fn new(fixed: Option<Watts>) -> Self {
        Self {
            fixed,
            ..Self::default()
        }
    }

    /// What is typical, until something is learned; what is fixed goes before both.
    pub(super) fn set_typical(&mut self, typical: TypicalIdle) {
        self.typical = Some(typical);
    }

    /// Bare and parked level as they were learned, or as they are typical while nothing was.
    fn known(&self) -> (Option<f64>, Option<f64>) {
        match (self.bare.watts, self.parked.watts, self.typical) {
            (None, None, Some(typical)) => (Some(typical.bare.0), Some(typical.parked.0)),
            (bare, parked, _) => (bare, parked),
        }
    }

    /// What was learned, for another agent.
    pub(super) fn learned(&self) -> Option<TypicalIdle> {
        let (bare, parked) = (self.bare.watts, self.parked.watts);
        Some(TypicalIdle {
            source: FloorSource::State,
            bare: Watts(bare.or(parked)?),
            parked: Watts(parked.or(bare)?),
            error: Watts(self.error()),
        })
    }

    fn is_learned(&self) -> bool {
        self.bare.watts.is_some() || self.parked.watts.is_some()
    }

    /// Learns from an interval in which nothing was in flight; `held` tells whether a process
    /// holds the device, or may hold it.
    pub(super) fn learn(&mut self, held: bool, energy: Microjoules, nanos: u64) {
        if self.fixed.is_some() {
            return;
        }
        if self.held.replace(held).is_some_and(|before| before != held) {
            self.between = BETWEEN;
            // What was growing ended in between.
            self.bare.growing = Quiet::default();
            self.parked.growing = Quiet::default();
        }
        if self.between > 0.0 {
            self.between -= nanos as f64 * 1e-9;
            return;
        }
        if !held {
            self.bare.add(energy, nanos, FEWEST);
        } else {
            // Beside a bare level the first parked intervals may be a model being loaded.
            let fewest = if self.bare.watts.is_some() {
                STEADY
            } else {
                FEWEST
            };
            self.parked.add(energy, nanos, fewest);
        }
    }

    /// The floor: the bare level, else the parked one.
    pub(super) fn floor(&self) -> Option<Floor> {
        if let Some(watts) = self.fixed {
            return Some(Floor {
                watts,
                source: FloorSource::Fixed,
            });
        }
        let (bare, parked) = self.known();
        Some(Floor {
            watts: Watts(bare.or(parked)?),
            source: match self.typical {
                Some(typical) if !self.is_learned() => typical.source,
                _ => FloorSource::Learned,
            },
        })
    }

    /// Standard error of the level under load, watts.
    pub(super) fn error(&self) -> f64 {
        match self.fixed {
            Some(_) => 0.0,
            None if !self.is_learned() => self.typical.map_or(0.0, |typical| typical.error.0),
            None if self.parked.watts.is_some() => self.parked.error,
            None => self.bare.error,
        }
    }

    /// What `nanos` cost before anybody's work; `None` while no level is known.
    pub(super) fn base(&self, held: bool, nanos: u64) -> Option<Base> {
        let floor = self.floor()?.watts;
        let above = match (self.fixed, self.known()) {
            (None, (Some(bare), Some(parked))) if held => parked - bare,
            _ => 0.0,
        };
        Some(Base {
            idle: floor.over(nanos),
            context: Watts(above).over(nanos),
        })
    }
}

#[cfg(test)]
mod tests;
