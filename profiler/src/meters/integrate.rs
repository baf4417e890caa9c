//! Energy from power readings, for devices without an energy counter: the trapezoid between two
//! readings. Pure.
//!
//! In: when a power was read and what it was. Out: cumulative energy. Power that changes faster
//! than it is read is not seen: what comes out is labelled `integrated`.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::units::{Microjoules, Watts};

/// Energy under the line between two readings.
pub fn between(
    (before, earlier): (Timestamp, Watts),
    (at, power): (Timestamp, Watts),
) -> Microjoules {
    Watts((earlier.0 + power.0) / 2.0).over(at.since(before))
}

/// Cumulative energy under a power curve.
#[derive(Debug)]
pub struct Integrator {
    longest: Duration,
    last: Option<(Timestamp, Watts)>,
    energy: Microjoules,
}

impl Integrator {
    /// Readings further apart than `longest` are not joined: nobody knows what lay between.
    pub fn new(longest: Duration) -> Self {
        Self {
            longest,
            last: None,
            energy: Microjoules::ZERO,
        }
    }

    /// Adds a reading; returns the energy so far. After a hole it starts again from zero, which
    /// tells the ledger that the time in between has no known energy.
    pub fn add(&mut self, at: Timestamp, power: Watts) -> Microjoules {
        match self.last.replace((at, power)) {
            Some((before, _)) if at.since(before) > self.longest.as_nanos() as u64 => {
                self.energy = Microjoules::ZERO;
            }
            Some(before) => self.energy += between(before, (at, power)),
            None => {}
        }
        self.energy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Timestamp {
        Timestamp(5_000_000_000 + milliseconds * 1_000_000)
    }

    #[test]
    fn a_ramp_is_integrated_exactly() {
        let mut integrator = Integrator::new(Duration::from_secs(2));
        assert_eq!(integrator.add(at(0), Watts(100.0)), Microjoules::ZERO);
        assert_eq!(
            integrator.add(at(100), Watts(200.0)),
            Microjoules(15_000_000)
        );
        assert_eq!(
            integrator.add(at(300), Watts(200.0)),
            Microjoules(55_000_000)
        );
    }

    #[test]
    fn energy_of_a_hole_is_not_invented() {
        let mut integrator = Integrator::new(Duration::from_secs(2));
        integrator.add(at(0), Watts(100.0));
        integrator.add(at(1_000), Watts(100.0));
        assert_eq!(integrator.add(at(9_000), Watts(100.0)), Microjoules::ZERO);
        assert_eq!(
            integrator.add(at(9_100), Watts(100.0)),
            Microjoules(10_000_000)
        );
    }
}
