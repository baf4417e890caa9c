//! What other tools would say of the same requests, each with the true idle power taken off, so
//! that only the way of sharing differs.

use crate::engine::{History, IDLE};
use crate::observer::TICK;

/// Joules of one request above idle, by other methods.
#[derive(Clone, Copy, Debug)]
pub struct Others {
    /// The counter as it stood at the request's end, less as it stood at its start, less idle.
    pub snapshot: f64,
    /// The energy of each 100 ms above idle, divided by time in flight among the requests in it.
    pub residency: f64,
    /// Mean power above idle over the last second before the response's end × its duration.
    pub last_second: f64,
}

/// For every request.
pub fn others(history: &History) -> Vec<Others> {
    let gpus = history.gpus();
    let idle = IDLE * gpus as f64;
    let energy = |time| -> f64 { (0..gpus).map(|gpu| history.energy_at(gpu, time)).sum() };
    let tick = |time: f64| (time / TICK) as usize;
    let shown = |time: f64| energy(tick(time) as f64 * TICK);
    // Seconds in flight of all requests in each tick, and joules above idle for each of them.
    let overlap = |tick: usize, start: f64, end: f64| {
        let from = tick as f64 * TICK;
        (end.min(from + TICK) - start.max(from)).max(0.0)
    };
    let mut in_flight = vec![0.0; tick(history.end) + 1];
    for served in &history.requests {
        for (place, sum) in in_flight.iter_mut().enumerate().skip(tick(served.start)) {
            if place > tick(served.last()) {
                break;
            }
            *sum += overlap(place, served.start, served.last());
        }
    }
    let price = |(place, seconds): (usize, &f64)| {
        let from = place as f64 * TICK;
        let above = (energy(from + TICK) - energy(from) - idle * TICK).max(0.0);
        if *seconds > 0.0 { above / seconds } else { 0.0 }
    };
    let price: Vec<f64> = in_flight.iter().enumerate().map(price).collect();
    let one = |served: &crate::engine::Served| {
        let (start, end) = (served.start, served.last());
        let resident =
            (tick(start)..=tick(end)).map(|tick| overlap(tick, start, end) * price[tick]);
        Others {
            snapshot: shown(end) - shown(start) - idle * (end - start),
            residency: resident.sum(),
            last_second: (history.mean_power(end, 1.0) - idle) * (end - start),
        }
    };
    history.requests.iter().map(one).collect()
}
