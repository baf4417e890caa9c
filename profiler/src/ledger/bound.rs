//! How far a request's figure can be trusted: half-width of a 95 % interval, and class.
//!
//! In: a booked request's energy by how it was shared, and what is doubtful of its meters. Out: class and
//! error ratios, of which one part cancels in a service's sum. Sensor gain is systematic, stated per meter,
//! and not mixed in.

use super::doubts::Doubts;
use super::flight::{ENERGIES, Flight, Mode};
use super::{Class, Component, ErrorRatios, Outcome};

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
/// What is shared by time in service errs at the cost of those beside it: of streams, and of others that
/// are shared so.
const STREAM_BESIDE_UNSTREAMED: f64 = 0.9;
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
    doubts: &Doubts,
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
    let (start, end) = (flight.request.start, flight.end());
    let seconds = end.seconds_since(start);

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
    let ends = if seconds > 0.0 {
        (std::f64::consts::SQRT_2 * doubts.edge / seconds).min(1.0)
    } else {
        1.0
    };
    // With how many others it was served, itself included: its part of the mean power.
    let company = (doubts.watts * seconds / (gpu * 1e-6)).max(1.0);
    let mut own = (prefill * prefill_error).powi(2)
        + (decode * decode_error).powi(2)
        + (time_shared * UNSTREAMED_ERROR).powi(2) * company
        + (gpu * ends).powi(2)
        + ((gpu - time_shared) * doubts.by_time * STREAM_BESIDE_UNSTREAMED).powi(2)
        + (time_shared * doubts.by_time * BESIDE_UNSTREAMED).powi(2);
    if let Some(tick) = doubts.integrated {
        let over = |seconds: f64| SAMPLING_ERROR * (tick / seconds.max(tick)).sqrt();
        own += (prefill * over(length)).powi(2) + ((gpu - prefill) * over(seconds)).powi(2);
    }
    let is_split = doubts.split_until > start;
    let mut common = (gpu * doubts.floor).powi(2)
        + (gpu * doubts.contended * CONTENDED_ERROR).powi(2)
        + (gpu * doubts.foreign * FOREIGN_ERROR).powi(2);
    if is_split {
        common += (gpu * doubts.misplaced).powi(2);
    }
    for (energy, component) in [(cpu, Component::Cpu), (dram, Component::Dram)] {
        let error = match doubts.is_estimate(component) {
            true => MODEL_ERROR,
            false => CPU_ERROR,
        };
        common += (energy * error).powi(2);
    }
    let floorless = doubts.floorless_until > start;
    if floorless {
        common += (total * FLOORLESS_ERROR).powi(2);
    }
    common += (total * doubts.in_hole(start, end)).powi(2);
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
            class = class.max(doubts.class(component));
        }
    }
    if gpu >= 0.1 * total && is_split {
        class = Class::C;
    }
    (class, Some(errors))
}

/// Two errors that have nothing to do with each other. Ratios need none of `hypot`'s care.
fn both(one: f64, other: f64) -> f64 {
    (one * one + other * other).sqrt()
}
