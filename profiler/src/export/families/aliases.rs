//! The families that are shown under others' names too.

use std::collections::BTreeMap;

use super::super::aliases::{Aliases, hardware_type, operation};
use super::super::catalog::*;
use super::super::exemplars::Sampled;
use super::super::histogram::{DURATION, Histogram};
use super::super::totals::{ServiceTotals, Totals};
use super::{Families, NANOS};
use crate::ledger::Route;
use crate::units::Microjoules;

pub(super) fn meters(out: &mut Families, totals: &Totals) {
    if totals.aliases != Aliases::Otel {
        return;
    }
    for ((component, device), meter) in &totals.meters {
        let energy: Microjoules = meter.energy.iter().map(|(_, energy)| *energy).sum();
        let gpu = totals.gpus.get(device);
        let name = gpu.map_or("", |gpu| gpu.name.as_str());
        if !meter.energy.is_empty() {
            let labels = [device, hardware_type(*component), name];
            out.number(&HW_ENERGY, &labels, energy.joules().0);
        }
    }
}

pub(super) fn service(out: &mut Families, aliases: Aliases, name: &str, service: &ServiceTotals) {
    if aliases != Aliases::Otel {
        return;
    }
    let engine = service.engine.as_deref().unwrap_or_default();
    let model = service.model.as_deref().unwrap_or_default();
    for (family, by_route) in [
        (&GEN_AI_DURATION, &service.duration),
        (&GEN_AI_FIRST_TOKEN, &service.first_token),
    ] {
        for (operation, histogram) in by_operation(by_route) {
            let labels = [name, operation, engine, model];
            out.histogram(family, &labels, &DURATION, &histogram, NANOS);
        }
    }
}

/// Several routes are one operation.
fn by_operation<const N: usize>(
    by_route: &BTreeMap<Route, Sampled<N>>,
) -> BTreeMap<&'static str, Histogram<N>> {
    let mut sums: BTreeMap<&'static str, Histogram<N>> = BTreeMap::new();
    for (route, sampled) in by_route {
        if let Some(operation) = operation(*route) {
            sums.entry(operation)
                .or_default()
                .absorb(&sampled.histogram);
        }
    }
    sums
}
