//! Quantities added up over nodes and time. What was never added is not known.

use std::collections::BTreeMap;

use crate::ledger::Component;

/// What is added up: joules, unless it says something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Quantity {
    Energy(Component),
    /// Of all components.
    Account(&'static str),
    GpuIdle,
    GpuParked,
    /// Energy of GPUs whose idle floor is known.
    GpuWithFloor,
    /// Of GPUs that did nothing.
    QuietIdle,
    QuietParked,
    /// A number.
    Requests,
    /// A number.
    OutputTokens,
    /// Of the requests whose output tokens are counted.
    TokenJoules,
    /// Input and output, where both are known; a number.
    AllTokens,
    AllTokenJoules,
    /// A number.
    Gpus,
    /// A number: five minutes each.
    Samples,
}

/// Sums by quantity.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums(BTreeMap<Quantity, f64>);

impl Sums {
    pub(super) fn add(&mut self, quantity: Quantity, value: f64) {
        *self.0.entry(quantity).or_default() += value;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (quantity, value) in &other.0 {
            self.add(*quantity, *value);
        }
    }

    pub(super) fn get(&self, quantity: Quantity) -> Option<f64> {
        self.0.get(&quantity).copied()
    }

    /// A whole number.
    pub(super) fn count(&self, quantity: Quantity) -> Option<u64> {
        self.get(quantity)
            .map(|value| value.round().max(0.0) as u64)
    }

    /// Of all components.
    pub(super) fn energy(&self) -> Option<f64> {
        let known = Component::ALL
            .into_iter()
            .filter_map(|component| self.get(Quantity::Energy(component)));
        known.reduce(|sum, energy| sum + energy)
    }

    /// One by the other, where the other is not 0.
    pub(super) fn ratio(&self, of: Quantity, by: Quantity) -> Option<f64> {
        let by = self.get(by).filter(|by| *by > 0.0)?;
        Some(self.get(of)? / by)
    }

    /// Where nobody knows the floor, the account idle is 0.
    pub(super) fn note_floor(&mut self) {
        let idle = self.get(Quantity::GpuIdle).filter(|idle| *idle > 0.0);
        let energy = self.get(Quantity::Energy(Component::Gpu));
        if let Some((_, energy)) = idle.zip(energy) {
            self.add(Quantity::GpuWithFloor, energy);
        }
    }
}
