//! Firefox Profiler's format: a track of power for each meter, and samples whose weights are microjoules.

use std::collections::BTreeMap;
use std::sync::Arc;

use fxprof_processed_profile::{
    CategoryHandle, CounterHandle, CpuDelta, Frame, FrameFlags, FrameInfo, ProcessHandle, Profile,
    ReferenceTimestamp, SamplingInterval, ThreadHandle, Timestamp as At, WeightType,
};
use serde::Serialize;

use super::SEPARATOR;
use super::energy::Placed;
use crate::clock::Timestamp;
use crate::ledger::{Component, MeterId};
use crate::units::Microjoules;

/// What a track of power counts in: picowatt-hours.
const PICOWATT_HOURS_PER_MICROJOULE: f64 = 1e12 * 1e-6 / 3600.0;

/// A meter's energy in an interval.
#[derive(Debug, Clone, Copy)]
pub struct Drawn {
    /// Which meter.
    pub meter: MeterId,
    /// The interval's beginning.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
    /// How much.
    pub energy: Microjoules,
}

/// A profile that is put together.
#[derive(Debug, Default)]
pub struct Tracks {
    placed: Vec<Placed>,
    drawn: Vec<Drawn>,
    meters: BTreeMap<u32, String>,
}

impl Tracks {
    /// Names a meter.
    pub fn meter(&mut self, meter: MeterId, name: String) {
        self.meters.insert(meter.0, name);
    }

    /// Adds what a meter measured.
    pub fn draw(&mut self, drawn: Drawn) {
        self.drawn.push(drawn);
    }

    /// Adds energy on a stack.
    pub fn place(&mut self, placed: Placed) {
        self.placed.push(placed);
    }

    /// The profile, ready to be written as JSON. `interval_nanos`: between two samples of a CPU.
    pub fn profile(mut self, title: &str, interval_nanos: u64) -> impl Serialize + use<> {
        // Within one moment in any order.
        self.placed.sort_by_key(|placed| placed.at);
        self.drawn.sort_by_key(|drawn| drawn.to);
        let first_drawn = self.drawn.iter().map(|drawn| drawn.from).min();
        let first_placed = self.placed.first().map(|placed| placed.at);
        let begin = first_drawn
            .min(first_placed)
            .or(first_placed)
            .unwrap_or(Timestamp(0));
        let since = |at: Timestamp| At::from_nanos_since_reference(at.since(begin));
        // A recording's clock is the machine's: of the date it knows nothing.
        let epoch = ReferenceTimestamp::from_millis_since_unix_epoch(0.0);
        let interval = SamplingInterval::from_nanos(interval_nanos);
        let mut profile = Profile::new(title, epoch, interval);
        profile.set_symbolicated(true);

        let meters = profile.add_process("meters", 0, since(begin));
        profile.add_thread(meters, 0, since(begin), true);
        let mut tracks: BTreeMap<u32, CounterHandle> = BTreeMap::new();
        for drawn in &self.drawn {
            let track = *tracks.entry(drawn.meter.0).or_insert_with(|| {
                let name = self.meters.get(&drawn.meter.0).map_or("meter", |name| name);
                let track = profile.add_counter(meters, name, "power", "Energy of the meter");
                // What it counts from.
                profile.add_counter_sample(track, since(drawn.from), 0.0, 0);
                track
            });
            let energy = drawn.energy.0 as f64 * PICOWATT_HOURS_PER_MICROJOULE;
            profile.add_counter_sample(track, since(drawn.to), energy, 1);
        }

        let mut processes: BTreeMap<String, ProcessHandle> = BTreeMap::new();
        let mut threads: BTreeMap<(String, &'static str), ThreadHandle> = BTreeMap::new();
        for placed in self.placed {
            let (service, rest) = match (placed.service, placed.stack.split_once(SEPARATOR)) {
                (Some(_), Some((service, rest))) => (service.to_owned(), Arc::<str>::from(rest)),
                _ => ("no service".to_owned(), Arc::clone(&placed.stack)),
            };
            let next = processes.len() as u32 + 1;
            let process = *processes
                .entry(service.clone())
                .or_insert_with(|| profile.add_process(&service, next, since(begin)));
            let name = thread_name(placed.component);
            let number = threads.len() as u32 + 1;
            let thread = *threads.entry((service, name)).or_insert_with(|| {
                let thread = profile.add_thread(process, number, since(begin), false);
                profile.set_thread_name(thread, name);
                profile.set_thread_samples_weight_type(thread, WeightType::Samples);
                thread
            });
            let frames: Vec<FrameInfo> = rest
                .split(SEPARATOR)
                .map(|frame| FrameInfo {
                    frame: Frame::Label(profile.intern_string(frame)),
                    category_pair: CategoryHandle::OTHER.into(),
                    flags: FrameFlags::empty(),
                })
                .collect();
            let stack = profile.intern_stack_frames(thread, frames.into_iter());
            // A weight has 31 bits: 2,147 J.
            let mut left = placed.energy.0;
            while left > 0 {
                let weight = i32::try_from(left).unwrap_or(i32::MAX);
                profile.add_sample(thread, since(placed.at), stack, CpuDelta::ZERO, weight);
                left -= u64::from(weight.unsigned_abs());
            }
        }
        profile
    }
}

const fn thread_name(component: Component) -> &'static str {
    match component {
        Component::Gpu => "GPU, microjoules",
        Component::Cpu => "CPU, microjoules",
        Component::Dram => "DRAM, microjoules",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::ServiceId;

    #[test]
    fn a_profile_has_a_track_of_power_and_weights_that_are_microjoules() {
        let mut tracks = Tracks::default();
        tracks.meter(MeterId(0), "gpu GPU-1".to_owned());
        for (from, to) in [(0, 100), (100, 200)] {
            tracks.draw(Drawn {
                meter: MeterId(0),
                from: Timestamp(from * 1_000_000),
                to: Timestamp(to * 1_000_000),
                energy: Microjoules(36_000_000),
            });
        }
        let energy = 5_000_000_000;
        tracks.place(Placed {
            at: Timestamp(100_000_000),
            service: Some(ServiceId(1)),
            component: Component::Gpu,
            stack: "vllm\n[GPU decode]".into(),
            energy: Microjoules(energy),
            is_sampled: false,
        });
        let json = serde_json::to_value(tracks.profile("a.pj", 20_408_163)).unwrap();
        let counter = &json["counters"][0];
        assert_eq!(counter["category"], "power");
        let counted: f64 = counter["samples"]["count"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(serde_json::Value::as_f64)
            .sum();
        // 72 J are 20 mWh.
        assert!((counted - 0.02e12).abs() < 1.0, "{counted}");
        let threads = json["threads"].as_array().unwrap();
        let gpu = threads
            .iter()
            .find(|thread| thread["name"] == "GPU, microjoules")
            .unwrap();
        assert_eq!(gpu["processName"], "vllm");
        let weights = gpu["samples"]["weight"].as_array().unwrap();
        let sum: u64 = weights.iter().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(sum, energy);
    }
}
