//! The idle levels of a meter: *bare* (nobody holds the device) and *parked* (a process holds a
//! context, nothing runs). An open context costs 26–66 W on data-centre GPUs, so they differ.
//!
//! In: energy and length of quiet intervals. Out: watts, with their uncertainty.
//!
//! A level is the mean over recent quiet intervals that lie near their lower quantile: the mean
//! because the counter's noise is symmetric and its edges' errors cancel in the sum; near a low
//! quantile because what a quiet device does now and then (a model being loaded, clocks that have
//! not come down yet) only ever adds.

use std::collections::VecDeque;

use crate::units::{Microjoules, Watts};

/// Where a floor comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloorSource {
    /// The user or a model gave it.
    Fixed,
    /// Learned when quiet.
    Learned,
}

/// A meter's idle floor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// How much.
    pub watts: Watts,
    /// How it is known.
    pub source: FloorSource,
}

/// Quiet intervals that are remembered: at a tick of 100 ms, the last minute of quiet time.
const REMEMBERED: usize = 600;
/// Fewer quiet intervals than this say nothing.
const FEWEST: usize = 3;
/// Fewer than this do not say that a level is steady.
const STEADY: usize = 10;
/// The share of quiet intervals below which the level is sought.
const QUANTILE: f64 = 0.3;
/// Quiet intervals further than this from the quantile are something else.
const NEAR: f64 = 0.15;

#[derive(Debug, Clone, Copy)]
struct Quiet {
    watts: f64,
    joules: f64,
    seconds: f64,
}

/// One level, learned.
#[derive(Debug, Default)]
struct Level {
    quiet: VecDeque<Quiet>,
    added: usize,
    watts: Option<f64>,
    error: f64,
}

impl Level {
    fn add(&mut self, energy: Microjoules, nanos: u64, fewest: usize) {
        if nanos == 0 {
            return;
        }
        let (joules, seconds) = (energy.joules().0, nanos as f64 * 1e-9);
        if self.quiet.len() == REMEMBERED {
            self.quiet.pop_front();
        }
        self.quiet.push_back(Quiet {
            watts: joules / seconds,
            joules,
            seconds,
        });
        self.added += 1;
        // A long memory changes slowly: looking at it now and then bounds the work per interval.
        if self.quiet.len() >= fewest && (self.quiet.len() < 64 || self.added.is_multiple_of(16)) {
            self.fit();
        }
    }

    fn fit(&mut self) {
        let mut watts: Vec<f64> = self.quiet.iter().map(|quiet| quiet.watts).collect();
        let place = ((watts.len() - 1) as f64 * QUANTILE) as usize;
        let (_, &mut centre, _) = watts.select_nth_unstable_by(place, f64::total_cmp);
        let near = self
            .quiet
            .iter()
            .filter(|quiet| (quiet.watts - centre).abs() <= NEAR * centre);
        let (mut joules, mut seconds, mut count, mut squares) = (0.0, 0.0, 0.0, 0.0);
        for quiet in near {
            joules += quiet.joules;
            seconds += quiet.seconds;
            count += 1.0;
            squares += (quiet.watts - centre).powi(2);
        }
        if seconds > 0.0 {
            self.watts = Some(joules / seconds);
            self.error = (squares / count / count).sqrt();
        }
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
    bare: Level,
    parked: Level,
}

impl Levels {
    /// `fixed` switches learning off.
    pub(super) fn new(fixed: Option<Watts>) -> Self {
        Self {
            fixed,
            ..Self::default()
        }
    }

    /// Learns from an interval in which nothing was in flight; `held` tells whether a process
    /// holds the device, or may hold it.
    pub(super) fn learn(&mut self, held: bool, energy: Microjoules, nanos: u64) {
        if self.fixed.is_some() {
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
        let watts = self.bare.watts.or(self.parked.watts)?;
        Some(Floor {
            watts: Watts(watts),
            source: FloorSource::Learned,
        })
    }

    /// Standard error of the level under load, watts.
    pub(super) fn error(&self) -> f64 {
        match self.fixed {
            Some(_) => 0.0,
            None if self.parked.watts.is_some() => self.parked.error,
            None => self.bare.error,
        }
    }

    /// What `nanos` cost before anybody's work; `None` while no level is known.
    pub(super) fn base(&self, held: bool, nanos: u64) -> Option<Base> {
        let floor = self.floor()?.watts;
        let above = match (self.fixed, self.bare.watts, self.parked.watts) {
            (None, Some(bare), Some(parked)) if held => parked - bare,
            _ => 0.0,
        };
        Some(Base {
            idle: floor.over(nanos),
            context: Watts(above).over(nanos),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 100_000_000;

    fn quiet(levels: &mut Levels, held: bool, watts: f64, times: usize) {
        for _ in 0..times {
            levels.learn(held, Watts(watts).over(TICK), TICK);
        }
    }

    #[test]
    fn a_floor_is_not_known_before_it_was_quiet() {
        let mut levels = Levels::new(None);
        assert_eq!(levels.floor(), None);
        quiet(&mut levels, true, 83.0, 2);
        assert_eq!(levels.floor(), None);
        quiet(&mut levels, true, 83.0, 1);
        assert!(
            levels
                .floor()
                .is_some_and(|floor| (floor.watts.0 - 83.0).abs() < 1e-6)
        );
    }

    #[test]
    fn a_model_load_does_not_raise_the_floor() {
        let mut levels = Levels::new(None);
        quiet(&mut levels, true, 83.0, 30);
        quiet(&mut levels, true, 190.0, 30);
        quiet(&mut levels, true, 83.0, 30);
        assert!(
            levels
                .floor()
                .is_some_and(|floor| (floor.watts.0 - 83.0).abs() < 0.01)
        );
    }

    #[test]
    fn a_floor_that_was_learned_too_high_comes_down() {
        let mut levels = Levels::new(None);
        quiet(&mut levels, true, 190.0, 60);
        quiet(&mut levels, true, 83.0, 60);
        assert!(
            levels
                .floor()
                .is_some_and(|floor| (floor.watts.0 - 83.0).abs() < 0.01)
        );
    }

    #[test]
    fn a_parked_context_is_its_own_account_once_both_levels_are_known() {
        let mut levels = Levels::new(None);
        quiet(&mut levels, false, 50.0, 20);
        quiet(&mut levels, true, 90.0, 20);
        let base = levels.base(true, TICK).unwrap_or_default();
        assert_eq!((base.idle.0, base.context.0), (5_000_000, 4_000_000));
        let alone = levels.base(false, TICK).unwrap_or_default();
        assert_eq!((alone.idle.0, alone.context.0), (5_000_000, 0));
    }

    #[test]
    fn a_fixed_floor_is_never_learned_over() {
        let mut levels = Levels::new(Some(Watts(60.0)));
        quiet(&mut levels, true, 90.0, 50);
        assert_eq!(
            levels.floor(),
            Some(Floor {
                watts: Watts(60.0),
                source: FloorSource::Fixed
            })
        );
    }
}
