//! One request's joules taken apart.
//!
//! In: a recording, and which requests. Out: an [`Explanation`], and from it JSON (schema 1) and text.
//! What is its own comes from its row: parts that sum to its energy to the microjoule. What is known of
//! its service only, in its time, says so. Idle energy is in no request's.

mod class;
mod company;
mod model;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

pub use model::{
    Base, Bound, Company, EnergyParts, Explained, Explanation, Moments, Position, ServiceWaits,
    TokensOf, WaitsSource,
};

use company::Gathering;

use crate::clock::Timestamp;
use crate::export::labels::clean;
use crate::ledger::{Booked, Component, Floor, Meter, MeterId, ServiceId};
use crate::recording::{Recorded, RecordedRequest, RecordingError};
use crate::waits::Reason;

/// Takes these requests of a recording apart.
///
/// # Errors
/// If the recording cannot be read.
pub fn explain(
    recorded: &Recorded,
    requests: &[RecordedRequest],
) -> Result<Explanation, RecordingError> {
    let mut names: HashMap<ServiceId, String> = HashMap::new();
    recorded.services(|id, name, _| {
        names.insert(id, clean(name));
    })?;
    let name = |id: ServiceId| names.get(&id).map_or_else(|| clean(""), String::clone);
    let mut meters: BTreeMap<MeterId, (Meter, Option<Floor>)> = BTreeMap::new();
    recorded.meters(|id, meter| {
        meters.insert(id, (meter, None));
    })?;
    recorded.floors(|id, floor| {
        if let Some((_, known)) = meters.get_mut(&id) {
            *known = floor;
        }
    })?;

    let mut gatherings: Vec<Gathering<'_>> = requests
        .iter()
        .map(|request| Gathering::of(request, name(request.booked.request.service)))
        .collect();
    let _all: ControlFlow<()> = recorded.requests(|other| {
        let service = &other.booked.request.service;
        if let Some(service) = names.get(service) {
            for gathering in &mut gatherings {
                gathering.meet(other, service);
            }
        }
        ControlFlow::Continue(())
    })?;
    recorded.intervals(|booked| {
        if let Booked::Interval(interval) = &booked
            && let Some((meter, _)) = meters.get(&interval.meter)
            && meter.component == Component::Gpu
        {
            for gathering in &mut gatherings {
                gathering.rest_on(interval);
            }
        }
    })?;

    let mut explained = Vec::with_capacity(gatherings.len());
    for gathering in gatherings {
        let request = gathering.request;
        let booked = &request.booked;
        let trace = recorded.trace(booked.request.id)?;
        let waits = waits(recorded, request)?;
        let mut one = gathering.explained(waits);
        one.trace = trace;
        one.class_because = class::because(booked, meters.values());
        explained.push(one);
    }
    Ok(Explanation {
        schema: 1,
        simulated: recorded.simulated,
        requests: explained,
    })
}

/// What the threads of its service waited for while it was in flight.
fn waits(
    recorded: &Recorded,
    request: &RecordedRequest,
) -> Result<Option<ServiceWaits>, RecordingError> {
    let service = request.booked.request.service;
    let window = window(request);
    if let Some(waits) = seconds(recorded, service, window)? {
        return Ok(Some(waits));
    }
    let mut waits = ServiceWaits {
        source: WaitsSource::Stacks,
        ..ServiceWaits::default()
    };
    let has_waits = recorded.has_waits()?;
    if has_waits {
        let mut reasons = BTreeMap::new();
        recorded.waits_in(service, window, |reason, nanos| {
            reasons.insert(reason.to_owned(), nanos as f64 * 1e-9);
        })?;
        waits.off_cpu_s = Some(reasons);
        let least = recorded.fact("off_cpu_least_ns")?;
        waits.least_s = least.and_then(|least| Some(least.parse::<f64>().ok()? * 1e-9));
    }
    let hertz = recorded.fact("stacks_hertz")?;
    let hertz = hertz.and_then(|hertz| hertz.parse::<f64>().ok());
    if let Some(hertz) = hertz.filter(|hertz| *hertz > 0.0)
        && recorded.has_samples()?
    {
        let mut samples = 0_u64;
        recorded.samples(service, window, None, |_, _| samples += 1)?;
        waits.on_cpu_s = Some(samples as f64 / hertz);
    }
    Ok((waits.off_cpu_s.is_some() || waits.on_cpu_s.is_some()).then_some(waits))
}

/// The same from the rows of each second, if there are any of that time.
fn seconds(
    recorded: &Recorded,
    service: ServiceId,
    window: (Timestamp, Timestamp),
) -> Result<Option<ServiceWaits>, RecordingError> {
    let mut sums: Option<ServiceWaits> = None;
    recorded.host_in(service, window, |host, part| {
        let sums = sums.get_or_insert_default();
        let share = |nanos: u64| nanos as f64 * part * 1e-9;
        if let Some(on_cpu) = host.on_cpu {
            *sums.on_cpu_s.get_or_insert(0.0) += share(on_cpu);
        }
        if let Some(waits) = &host.waits {
            *sums.run_queue_s.get_or_insert(0.0) += share(waits.run_queue);
            let blocked = sums.off_cpu_s.get_or_insert_default();
            // To be put off is to be in the run queue.
            let reasons = Reason::ALL
                .iter()
                .filter(|reason| **reason != Reason::Preempted);
            for reason in reasons {
                let nanos = waits.off_cpu(*reason);
                if nanos > 0 {
                    *blocked.entry(reason.name().to_owned()).or_default() += share(nanos);
                }
            }
        }
    })?;
    Ok(sums)
}

/// From its start to its end, or to what was seen of it last.
fn window(request: &RecordedRequest) -> (Timestamp, Timestamp) {
    let request = &request.booked.request;
    let end = request.end.map(|end| end.at).or(request.last_data);
    (
        request.start,
        end.unwrap_or(request.start).max(request.start),
    )
}

impl Explanation {
    /// One compact line.
    ///
    /// # Errors
    /// None in practice: every key is a string and every figure finite.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }
}
