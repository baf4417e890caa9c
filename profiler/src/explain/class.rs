//! Why a request's figure is of its class: the ledger's rules, as far as the recording holds what they
//! look at.

use crate::ledger::{BookedRequest, Class, Component, Floor, Meter, Outcome, Source};

/// What carries less of a figure does not decide its class.
const DECIDING: f64 = 0.1;

/// The reasons for which it is no better; of class A, what makes it that.
pub(super) fn because<'a>(
    booked: &BookedRequest,
    meters: impl Iterator<Item = &'a (Meter, Option<Floor>)>,
) -> Vec<String> {
    let mut reasons = all(booked, meters);
    let worst = reasons.iter().map(|(class, _)| *class).max();
    if booked.class == Class::A {
        return vec![
            "energy counters, first data and chunks were seen, and the bound is 10 % or less"
                .to_owned(),
        ];
    }
    if worst.is_none_or(|worst| worst < booked.class) {
        return vec![
            "for something that the recording does not hold, as a GPU split into instances, or an idle \
             floor that was not known yet"
                .to_owned(),
        ];
    }
    reasons.retain(|(class, _)| *class >= booked.class);
    reasons.into_iter().map(|(_, reason)| reason).collect()
}

fn all<'a>(
    booked: &BookedRequest,
    meters: impl Iterator<Item = &'a (Meter, Option<Floor>)>,
) -> Vec<(Class, String)> {
    let mut reasons = Vec::new();
    let mut give = |class, reason: &str| reasons.push((class, reason.to_owned()));
    let request = &booked.request;
    match booked.errors.map(|errors| errors.total()) {
        None => give(Class::C, "nobody knows its bound"),
        Some(error) if error > 0.5 => give(Class::C, "its bound is above 50 %"),
        Some(error) if error > 0.1 => give(Class::B, "its bound is above 10 %"),
        Some(_) => {}
    }
    if !request.streamed || request.chunks == 0 {
        give(
            Class::B,
            "no chunks of its response were seen: its part is by time",
        );
    }
    if request
        .end
        .is_none_or(|end| end.outcome == Outcome::Incomplete)
    {
        give(Class::B, "its end was not seen");
    }
    if let (Some(gpu), Some(phases)) = (booked.gpu, booked.phases) {
        let by_time = gpu.0.saturating_sub(phases.prefill.0 + phases.decode.0);
        if by_time as f64 > DECIDING * gpu.0 as f64 {
            give(
                Class::B,
                "more than a tenth of its GPU energy is shared by time in flight",
            );
        }
    }
    let total = booked.active().map_or(0.0, |energy| energy.0 as f64);
    for (meter, floor) in meters {
        let part = booked
            .energy(meter.component)
            .map_or(0.0, |energy| energy.0 as f64);
        if part < DECIDING * total || total <= 0.0 {
            continue;
        }
        let name = meter.component.name();
        match meter.source {
            Source::Counter if meter.component == Component::Gpu => {}
            Source::Counter => give(
                Class::B,
                &format!("a tenth or more of it is {name} energy, which is shared by time on CPU"),
            ),
            Source::Integrated => give(
                Class::B,
                &format!(
                    "{name} {} has no counter: its power was integrated",
                    meter.device
                ),
            ),
            Source::Model => give(
                Class::C,
                &format!(
                    "{name} {} has no meter: its energy is an estimate",
                    meter.device
                ),
            ),
        }
        if floor.is_none() {
            give(
                Class::B,
                &format!("the idle floor of {name} {} is not known", meter.device),
            );
        }
    }
    reasons
}
