//! The period cut in equal parts: does it get better, and does the total fall with it?

use super::model::{Change, Part, Trend};
use super::time::{Cuts, Spread};
use crate::clock::Timestamp;
use crate::ledger::BookedInterval;
use crate::report::model::AccountJoules;
use crate::units::Microjoules;

/// Parts are at least this long, nanoseconds.
const SHORTEST: u64 = 1_000_000_000;

/// As many parts as a chart shows; even, for the period has two halves.
pub(in crate::report) const MOST: u64 = 60;

/// Changes below this are none.
const NOTABLE: f64 = 0.01;

/// A half counts where so much of the meters' time in it was booked.
pub(in crate::report) const BOOKED: f64 = 0.9;

/// Energy and requests by part of the period.
#[derive(Debug)]
pub(super) struct Parts {
    cuts: Cuts,
    parts: Vec<Sums>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    /// µJ.
    accounts: [u64; 8],
    requests: u64,
    /// Nanoseconds, over all meters.
    booked: u64,
}

impl Parts {
    pub(super) fn new(from: Timestamp, to: Timestamp) -> Self {
        let count = (to.since(from) / SHORTEST).clamp(2, MOST) / 2 * 2;
        Self {
            cuts: Cuts {
                start: from.0,
                length: to.since(from).div_ceil(count).max(1),
                count: count as usize,
            },
            parts: vec![Sums::default(); count as usize],
        }
    }

    pub(super) fn add(&mut self, interval: &BookedInterval) {
        let spread = |energy: u64| Spread::new(energy, interval.from, interval.to);
        let mut accounts = interval.accounts.values().map(|energy| spread(energy.0));
        for piece in self.cuts.pieces(interval.from, interval.to) {
            let Some(part) = self.parts.get_mut(piece.place) else {
                continue;
            };
            if interval.accounts.gap == Microjoules::ZERO {
                part.booked += piece.nanos;
            }
            for (sum, account) in part.accounts.iter_mut().zip(&mut accounts) {
                *sum += account.part(piece);
            }
        }
    }

    pub(super) fn serve(&mut self, end: Timestamp) {
        if let Some(part) = self.parts.get_mut(self.cuts.place_of_end(end)) {
            part.requests += 1;
        }
    }

    /// The parts, of a period that `meters` meters measured.
    pub(super) fn trend(&self, meters: u64) -> Trend {
        let meters = meters.max(1);
        let seconds = |place: usize| (place as u64 * self.cuts.length) as f64 / 1e9;
        let shown = |(place, sums): (usize, &Sums)| Part {
            from_s: seconds(place),
            to_s: seconds(place + 1),
            energy_j: sums.energy() as f64 / 1e6,
            accounts_j: AccountJoules::of(sums.accounts.map(Microjoules)),
            requests: sums.requests,
            j_per_request: sums.j_per_request(),
            booked_ratio: self.booked(sums, meters),
        };
        Trend {
            parts: self.parts.iter().enumerate().map(shown).collect(),
            change: self.change(meters),
        }
    }

    fn booked(&self, sums: &Sums, meters: u64) -> f64 {
        (sums.booked as f64 / (self.cuts.length as f64 * meters as f64)).min(1.0)
    }

    fn change(&self, meters: u64) -> Option<Change> {
        let (first, second) = self.parts.split_at(self.parts.len() / 2);
        let half = |parts: &[Sums]| {
            let booked = parts
                .iter()
                .map(|part| self.booked(part, meters))
                .sum::<f64>();
            let sums = parts.iter().fold(Sums::default(), |sum, part| Sums {
                accounts: std::array::from_fn(|account| {
                    let of = |sums: &Sums| sums.accounts.get(account).copied().unwrap_or(0);
                    of(&sum) + of(part)
                }),
                requests: sum.requests + part.requests,
                booked: 0,
            });
            (booked >= parts.len() as f64 * BOOKED).then_some(sums)
        };
        let (first, second) = (half(first)?, half(second)?);
        let half = |sums: Sums| (sums.energy() as f64, sums.requests);
        Change::between(half(first), half(second))
    }
}

impl Sums {
    fn energy(&self) -> u64 {
        self.accounts.iter().sum()
    }

    fn j_per_request(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.energy() as f64 / 1e6 / self.requests as f64)
    }
}

impl Change {
    /// From one half's joules and requests to the other's.
    pub(in crate::report) fn between(first: (f64, u64), second: (f64, u64)) -> Option<Self> {
        let change = |from: f64, to: f64| to / from - 1.0;
        let each =
            |(energy, requests): (f64, u64)| (requests > 0).then(|| energy / requests as f64);
        let energy = change(first.0, second.0);
        let j_per_request = change(each(first)?, each(second)?);
        energy.is_finite().then(|| Self {
            energy,
            requests: change(first.1 as f64, second.1 as f64),
            j_per_request,
            rebound: j_per_request < -NOTABLE && energy > NOTABLE,
        })
    }

    /// In words.
    pub(crate) fn words(&self) -> String {
        let by = |change: f64, more: &str, less: &str| {
            if change.abs() < NOTABLE {
                format!("not {more} or {less} by 1 %")
            } else if change > 0.0 {
                format!("{:.1} % {more}", change * 100.0)
            } else {
                format!("{:.1} % {less}", -change * 100.0)
            }
        };
        let facts = format!(
            "From the first half of the period to the second the total energy was {}, the number of requests {}, and the \
             energy per request (all energy ÷ requests) {}.",
            by(self.energy, "higher", "lower"),
            by(self.requests, "higher", "lower"),
            by(self.j_per_request, "higher", "lower"),
        );
        let meaning = if self.rebound {
            " A rebound: each request became cheaper, and the total rose all the same."
        } else if self.j_per_request < -NOTABLE {
            " No rebound: requests became cheaper, and the total did not rise."
        } else {
            ""
        };
        facts + meaning
    }
}
