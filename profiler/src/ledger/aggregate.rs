//! What is true of a sum of booked requests: its energy, how it was made, and its bound.
//!
//! - Class: the worst class that, with all classes below it, carries at least a tenth of the sum.
//! - Bound: what is common to a service's requests adds up; what one may owe to another one adds up
//!   as if each erred by itself, which is still too much, since what one has too much another
//!   has too little.
//! - A part of unknown bound counts as wholly unknown; where such parts carry a tenth or more, so
//!   does the sum.

use super::{BookedRequest, Class, Component, ErrorRatios, Request, Route};
use crate::units::Microjoules;

impl BookedRequest {
    /// The energy of one component; `None` if it has no meter.
    pub const fn energy(&self, component: Component) -> Option<Microjoules> {
        match component {
            Component::Gpu => self.gpu,
            Component::Cpu => self.cpu,
            Component::Dram => self.dram,
        }
    }

    /// Half-width of a 95 % interval ÷ value; `None` above 1 or unknown: then its energy is no
    /// figure by itself, and only counts in sums.
    pub fn error_ratio(&self) -> Option<f64> {
        self.errors
            .map(ErrorRatios::total)
            .filter(|ratio| *ratio <= 1.0)
    }

    /// Active energy: the sum of the known components, `None` if none is known or the route
    /// costs nobody energy.
    pub fn active(&self) -> Option<Microjoules> {
        if !self.request.route.costs_energy() {
            return None;
        }
        Component::ALL
            .into_iter()
            .filter_map(|component| self.energy(component))
            .reduce(|sum, energy| sum + energy)
    }
}

impl Request {
    /// True for the exchange that made its connection a session of another protocol (101): what
    /// it asked for comes behind it, so it is no request and nobody pays for it.
    pub const fn begins_session(&self) -> bool {
        self.status == 101
    }
}

impl Route {
    /// False for health and metrics paths: they are counted, and nobody pays for them.
    pub const fn costs_energy(self) -> bool {
        !matches!(self, Self::Health)
    }
}

/// A running sum of booked requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Aggregate {
    components: [Option<Microjoules>; 3],
    classes: [u64; 3],
    unbounded: u64,
    /// Half-widths that all point the same way, µJ.
    common: f64,
    /// Squares of those that do not, µJ².
    own_squares: f64,
}

impl Aggregate {
    /// Adds a request; one without energy changes nothing.
    pub fn add(&mut self, booked: &BookedRequest) {
        let Some(active) = booked.active() else {
            return;
        };
        for (sum, component) in self.components.iter_mut().zip(Component::ALL) {
            if let Some(energy) = booked.energy(component) {
                *sum = Some(sum.unwrap_or_default() + energy);
            }
        }
        let class = match booked.class {
            Class::A => &mut self.classes[0],
            Class::B => &mut self.classes[1],
            Class::C => &mut self.classes[2],
        };
        *class += active.0;
        let energy = active.0 as f64;
        match booked.errors {
            Some(errors) if errors.total().is_finite() => {
                self.common += errors.common * energy;
                self.own_squares += (errors.own * energy).powi(2);
            }
            _ => {
                self.unbounded += active.0;
                self.common += energy;
            }
        }
    }

    /// Adds the requests of another sum.
    pub fn merge(&mut self, other: &Self) {
        for (sum, more) in self.components.iter_mut().zip(other.components) {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or_default() + more);
            }
        }
        for (sum, more) in self.classes.iter_mut().zip(other.classes) {
            *sum += more;
        }
        self.unbounded += other.unbounded;
        self.common += other.common;
        self.own_squares += other.own_squares;
    }

    /// The sum of one component; `None` if no request had it.
    pub const fn energy(&self, component: Component) -> Option<Microjoules> {
        let [gpu, cpu, dram] = self.components;
        match component {
            Component::Gpu => gpu,
            Component::Cpu => cpu,
            Component::Dram => dram,
        }
    }

    /// The sum of the known components; `None` if none is known.
    pub fn active(&self) -> Option<Microjoules> {
        self.components
            .into_iter()
            .flatten()
            .reduce(|sum, energy| sum + energy)
    }

    /// How the sum was made; `None` without energy.
    pub fn class(&self) -> Option<Class> {
        let [a, b, c] = self.classes;
        let total = a + b + c;
        if total == 0 {
            None
        } else if c * 10 >= total {
            Some(Class::C)
        } else if (b + c) * 10 >= total {
            Some(Class::B)
        } else {
            Some(Class::A)
        }
    }

    /// Half-width of a 95 % interval ÷ value; `None` above 1, unknown, or without energy.
    pub fn error_ratio(&self) -> Option<f64> {
        let total: u64 = self.classes.iter().sum();
        if total == 0 || self.unbounded * 10 >= total {
            return None;
        }
        // Not `hypot`, whose care sums of microjoules do not need: it alone would ask for glibc 2.35.
        let bound = (self.common * self.common + self.own_squares).sqrt();
        let ratio = bound / total as f64;
        (ratio <= 1.0).then_some(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::ledger::{Input, RequestId, ServiceId};

    fn booked(joules: u64, class: Class, common: Option<f64>) -> BookedRequest {
        BookedRequest {
            request: Request {
                id: RequestId(1),
                service: ServiceId(0),
                route: Route::Completions,
                start: Timestamp(0),
                first_data: None,
                last_data: None,
                input: Input::Bytes(1),
                chunks: 0,
                streamed: false,
                status: 200,
                end: None,
            },
            gpu: Some(Microjoules(joules * 1_000_000)),
            phases: None,
            cpu: None,
            dram: None,
            class,
            errors: common.map(|common| ErrorRatios { own: 0.0, common }),
            tokens: None,
        }
    }

    fn sum(parts: &[(u64, Class, Option<f64>)]) -> Aggregate {
        let mut sum = Aggregate::default();
        for &(joules, class, error) in parts {
            sum.add(&booked(joules, class, error));
        }
        sum
    }

    #[test]
    fn a_sum_takes_the_worst_class_that_carries_a_tenth() {
        let known = Some(0.1);
        assert_eq!(
            sum(&[(91, Class::A, known), (9, Class::C, known)]).class(),
            Some(Class::A)
        );
        assert_eq!(
            sum(&[(90, Class::A, known), (10, Class::B, known)]).class(),
            Some(Class::B)
        );
        assert_eq!(
            sum(&[(90, Class::A, known), (10, Class::C, known)]).class(),
            Some(Class::C)
        );
        assert_eq!(
            sum(&[
                (84, Class::A, known),
                (8, Class::B, known),
                (8, Class::C, known)
            ])
            .class(),
            Some(Class::B),
            "two small worse parts make a tenth together"
        );
        assert_eq!(sum(&[]).class(), None);
    }

    #[test]
    fn what_one_request_owes_another_cancels_in_their_sum() {
        let mut sum = Aggregate::default();
        let each = BookedRequest {
            errors: Some(ErrorRatios {
                own: 1.2,
                common: 0.03,
            }),
            ..booked(2, Class::C, None)
        };
        assert_eq!(each.error_ratio(), None, "no figure of its own");
        sum.add(&each);
        assert_eq!(sum.error_ratio(), None, "nor of it alone");
        for _ in 1..900 {
            sum.add(&each);
        }
        let bound = sum.error_ratio().unwrap();
        assert!((bound - 0.03_f64.hypot(1.2 / 30.0)).abs() < 1e-9, "{bound}");
    }

    #[test]
    fn what_is_common_adds_up_and_unknown_parts_widen_or_void_the_bound() {
        let bound = sum(&[(30, Class::A, Some(0.02)), (10, Class::A, Some(0.10))]).error_ratio();
        assert!((bound.unwrap() - 0.04).abs() < 1e-12);
        let widened = sum(&[(95, Class::A, Some(0.0)), (5, Class::C, None)]).error_ratio();
        assert!((widened.unwrap() - 0.05).abs() < 1e-12);
        assert_eq!(
            sum(&[(90, Class::A, Some(0.0)), (10, Class::C, None)]).error_ratio(),
            None
        );
    }

    #[test]
    fn two_sums_put_together_are_the_sum_of_all() {
        let parts = [
            (30, Class::A, Some(0.02)),
            (10, Class::B, Some(0.10)),
            (2, Class::C, None),
        ];
        let whole = sum(&parts);
        let mut merged = sum(&parts[..1]);
        merged.merge(&sum(&parts[1..]));
        assert_eq!(merged.active(), whole.active());
        assert_eq!(merged.class(), whole.class());
        assert_eq!(merged.error_ratio(), whole.error_ratio());
    }

    #[test]
    fn energy_is_the_sum_of_known_components_and_unknown_ones_stay_unknown() {
        let mut both = booked(3, Class::A, None);
        both.cpu = Some(Microjoules(500_000));
        assert_eq!(both.active(), Some(Microjoules(3_500_000)));
        let mut aggregate = Aggregate::default();
        aggregate.add(&both);
        aggregate.add(&booked(1, Class::A, None));
        assert_eq!(
            aggregate.energy(Component::Gpu),
            Some(Microjoules(4_000_000))
        );
        assert_eq!(aggregate.energy(Component::Dram), None);
        assert_eq!(aggregate.active(), Some(Microjoules(4_500_000)));
        let mut none = booked(0, Class::C, None);
        none.gpu = None;
        assert_eq!(none.active(), None);
        let mut health = booked(3, Class::A, None);
        health.request.route = Route::Health;
        assert_eq!(health.active(), None);
    }
}
