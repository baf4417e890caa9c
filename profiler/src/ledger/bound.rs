//! How far a request's figure can be trusted: half-width of a 95 % interval, and class.
//!
//! In: a booked request's energy by how it was shared, and its meters. Out: class and
//! error ratios, of which one part cancels in a service's sum. Sensor gain is systematic, stated per meter,
//! and not mixed in.

use super::flight::{ENERGIES, Flight, Mode};
use super::meter::MeterState;
use super::{Class, Component, ErrorRatios, Outcome, Source};

/// How far the energy of the intervals at a request's two ends may be misplaced within them, as
/// part of a tick at the request's mean power; calibrated against known truth.
const TICK_PART: f64 = 0.15;
/// Prefill energy that κ and the windows beside it may have moved, as part of it.
const PREFILL_ERROR: f64 = 0.08;
/// Decode energy that the neighbours' prefill windows may have moved, as part of it.
const DECODE_ERROR: f64 = 0.05;
/// The same where the engine reads prompts in parts, beside decode steps.
const MIXED_DECODE_ERROR: f64 = 0.2;
/// Chunks that a request may be off by: its first and last count as whole ones, however many
/// tokens are in them, and all belong to the interval in which they go out.
const CHUNK_ERROR: f64 = 4.0;
/// Time in service stands in for prefill and tokens that are not seen: alone that errs by this
/// part, in company by its root (measured 0.1, 0.28, 0.72, 1.32 at 0.2, 1.4, 8 and 35 together).
const UNSTREAMED_ERROR: f64 = 0.4;
/// What is shared by time in service errs at the cost of those beside it.
const BESIDE_UNSTREAMED: f64 = 0.5;
/// Services that take turns on a GPU: when each one's steps ran, their outputs tell only roughly.
const CONTENDED_ERROR: f64 = 0.2;
/// Time in which a process kept a GPU busy stands in for what it drew there.
const FOREIGN_ERROR: f64 = 0.5;
/// Power that is read for a part of each tick only, and the trapezoid between: what one tick's
/// energy may be off by, as part of it.
const SAMPLING_ERROR: f64 = 0.4;
/// On-CPU time stands in for cycles, and time in flight for work.
const CPU_ERROR: f64 = 0.3;
/// The same where the meter itself is an estimate.
const MODEL_ERROR: f64 = 0.6;
/// With no floor known, idle energy is in the figure.
const FLOORLESS_ERROR: f64 = 0.4;

/// Judges a request by its energies (µJ, by how they were shared).
pub(super) fn judge(
    flight: &Flight,
    energies: &[f64; ENERGIES],
    meters: &[MeterState],
) -> (Class, Option<ErrorRatios>) {
    if flight.mode == Mode::Free {
        let none = ErrorRatios {
            own: 0.0,
            common: 0.0,
        };
        return (Class::A, Some(none));
    }
    let total: f64 = energies.iter().sum();
    if total <= 0.0 {
        return (Class::C, None);
    }
    let [prefill, decode, unstreamed, resident, cpu, dram] = *energies;
    let time_shared = unstreamed + resident;
    let gpu = prefill + decode + time_shared;
    let of = |component| {
        meters
            .iter()
            .filter(move |meter| meter.meter.component == component)
    };

    let (length, uncertainty) = flight.prefill;
    let prefill_error = if length > 0.0 {
        uncertainty / length
    } else {
        1.0
    };
    let prefill_error = both(prefill_error, PREFILL_ERROR).min(1.0);
    let decode_error = match flight.is_mixed {
        true => MIXED_DECODE_ERROR,
        false => DECODE_ERROR,
    };
    let decode_error = both(
        decode_error,
        CHUNK_ERROR / flight.request.chunks.max(1) as f64,
    );
    let mut own = (prefill * prefill_error).powi(2)
        + (decode * decode_error).powi(2)
        + (time_shared * UNSTREAMED_ERROR).powi(2) * company(flight, gpu, meters)
        + (gpu * worst(of(Component::Gpu), |meter| ends(flight, meter))).powi(2)
        + (gpu * worst(of(Component::Gpu), MeterState::by_time_part) * BESIDE_UNSTREAMED).powi(2);
    own += sampled(flight, prefill, gpu - prefill, of(Component::Gpu));
    let mut common = (gpu * worst(of(Component::Gpu), floor_error)).powi(2)
        + (gpu * worst(of(Component::Gpu), MeterState::contended_part) * CONTENDED_ERROR).powi(2)
        + (gpu * worst(of(Component::Gpu), MeterState::foreign_part) * FOREIGN_ERROR).powi(2);
    let split = || of(Component::Gpu).filter(|meter| is_split(flight, meter));
    common += (gpu * worst(split(), MeterState::misplaced_part)).powi(2);
    let host = |energy: f64, component| {
        let model = of(component).any(|meter| meter.meter.source == Source::Model);
        energy * if model { MODEL_ERROR } else { CPU_ERROR }
    };
    common += host(cpu, Component::Cpu).powi(2) + host(dram, Component::Dram).powi(2);
    let floorless = meters
        .iter()
        .any(|meter| meter.floorless_until > flight.request.start);
    if floorless {
        common += (total * FLOORLESS_ERROR).powi(2);
    }
    let concerned = meters.iter().filter(|meter| concerns(flight, meter));
    common += (total * worst(concerned, |meter| in_hole(flight, meter))).powi(2);
    let errors = ErrorRatios {
        own: own.sqrt() / total,
        common: common.sqrt() / total,
    };
    let error = errors.total();

    let streamed = flight.mode == Mode::Streaming && flight.request.chunks > 0;
    let whole = flight
        .request
        .end
        .is_some_and(|end| end.outcome != Outcome::Incomplete);
    let mut class = if error > 0.5 {
        Class::C
    } else if error > 0.1 || floorless || !streamed || !whole || time_shared > 0.1 * gpu {
        Class::B
    } else {
        Class::A
    };
    for (component, energy) in [
        (Component::Gpu, gpu),
        (Component::Cpu, cpu),
        (Component::Dram, dram),
    ] {
        if energy >= 0.1 * total {
            let worst_source = of(component).map(|meter| match meter.meter.source {
                Source::Counter if component == Component::Gpu => Class::A,
                Source::Counter | Source::Integrated => Class::B,
                Source::Model => Class::C,
            });
            class = worst_source.fold(class, Class::max);
        }
    }
    if gpu >= 0.1 * total && split().next().is_some() {
        class = Class::C;
    }
    (class, Some(errors))
}

/// Whether the meter's energy was divided over instances while the request, which it was for, ran.
fn is_split(flight: &Flight, meter: &MeterState) -> bool {
    let start = flight.request.start;
    let end = flight.request.end.map_or(start, |end| end.at);
    let held = meter.holding.held_at(end);
    meter.split_until > start && held.is_none_or(|held| held.services.contains(&flight.service))
}

/// Two errors that have nothing to do with each other. Ratios need none of `hypot`'s care.
fn both(one: f64, other: f64) -> f64 {
    (one * one + other * other).sqrt()
}

/// With how many others a request was served, itself included: its part of the mean power.
fn company(flight: &Flight, microjoules: f64, meters: &[MeterState]) -> f64 {
    let end = flight
        .request
        .end
        .map_or(flight.request.start, |end| end.at);
    let seconds = end.seconds_since(flight.request.start);
    let gpus = meters
        .iter()
        .filter(|meter| meter.meter.component == Component::Gpu);
    let watts: f64 = gpus.filter_map(MeterState::busy_watts).sum();
    (watts * seconds / (microjoules * 1e-6)).max(1.0)
}

fn worst<'a>(
    meters: impl Iterator<Item = &'a MeterState>,
    error: impl Fn(&MeterState) -> f64,
) -> f64 {
    meters.map(error).fold(0.0, f64::max)
}

/// What the two intervals at a request's ends may have misplaced, as part of its energy.
fn ends(flight: &Flight, meter: &MeterState) -> f64 {
    let end = flight
        .request
        .end
        .map_or(flight.request.start, |end| end.at);
    let seconds = end.seconds_since(flight.request.start);
    let each = meter.edge_error + TICK_PART * meter.meter.tick as f64 * 1e-9;
    if seconds > 0.0 {
        (std::f64::consts::SQRT_2 * each / seconds).min(1.0)
    } else {
        1.0
    }
}

/// What integrated power may have missed: errors of a tick each, which add up like noise.
fn sampled<'a>(
    flight: &Flight,
    prefill: f64,
    rest: f64,
    mut meters: impl Iterator<Item = &'a MeterState>,
) -> f64 {
    let Some(meter) = meters.find(|meter| meter.meter.source == Source::Integrated) else {
        return 0.0;
    };
    let tick = meter.meter.tick as f64 * 1e-9;
    let request = &flight.request;
    let end = request.end.map_or(request.start, |end| end.at);
    let over = |seconds: f64| SAMPLING_ERROR * (tick / seconds.max(tick)).sqrt();
    let (window, _) = flight.prefill;
    (prefill * over(window)).powi(2) + (rest * over(end.seconds_since(request.start))).powi(2)
}

fn floor_error(meter: &MeterState) -> f64 {
    meter
        .busy_watts()
        .map_or(0.0, |watts| (2.0 * meter.levels.error() / watts).min(1.0))
}

fn concerns(flight: &Flight, meter: &MeterState) -> bool {
    let request = &flight.request;
    meter.concerns(
        flight.service,
        request.end.map_or(request.start, |end| end.at),
    )
}

/// False if all meters of the component that the request may have run on were blind for all of its
/// time.
pub(super) fn is_measured(flight: &Flight, component: Component, meters: &[MeterState]) -> bool {
    let of = |meter: &&MeterState| meter.meter.component == component && concerns(flight, meter);
    let mut concerned = meters.iter().filter(of).peekable();
    concerned.peek().is_none() || concerned.any(|meter| in_hole(flight, meter) < 1.0)
}

/// The part of a request's time that lies in a hole of the meter.
fn in_hole(flight: &Flight, meter: &MeterState) -> f64 {
    let Some((from, to)) = meter.hole else {
        return 0.0;
    };
    let start = flight.request.start;
    let end = flight.request.end.map_or(start, |end| end.at);
    let overlap = to.min(end).seconds_since(from.max(start));
    let seconds = end.seconds_since(start);
    if seconds > 0.0 {
        overlap / seconds
    } else {
        0.0
    }
}
