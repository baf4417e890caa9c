//! What threads waited for, to the sinks: per service at each publishing, and the starvation of GPUs.

use super::Agent;
use crate::clock::Timestamp;
use crate::ledger::{Component, Reading};

use super::starvation;

/// Between two looks for slots of threads whose end was not seen.
const SWEEP_NS: u64 = 10_000_000_000;

impl Agent {
    /// Tells all sinks what was waited for since the last call.
    pub(super) fn publish_waits(&mut self, now: Timestamp) {
        let Some(probes) = &mut self.probes else {
            return;
        };
        if now.since(self.swept) >= SWEEP_NS {
            self.swept = now;
            probes.sweep_threads();
        }
        for (service, waits) in probes.read_waits() {
            self.sinks.waits(service, &waits);
        }
        if let Some(threads) = &mut self.threads {
            threads.look(probes, &self.services);
        }
        let metrics = &mut self.sinks.metrics;
        if let Some(unseen) = probes.unseen_switches() {
            metrics.record_dropped("switch_unseen", unseen);
        }
        if let Some(losses) = probes.wait_losses() {
            metrics.record_dropped("thread_no_slot", losses.no_slot);
            metrics.record_dropped("thread_service_no_row", losses.no_row);
            metrics.record_dropped("thread_switch_unseen", losses.unseen);
        }
        for (service, starved) in self.engines.take() {
            for (reason, nanos) in starvation::REASONS.into_iter().zip(starved) {
                self.sinks.starved(service, reason, nanos);
            }
        }
    }

    /// A GPU's interval closes: what its engine waited in it is looked at later.
    pub(super) fn feed_engines(&mut self, reading: &Reading) {
        let is_gpu = self
            .meters
            .get(&reading.meter)
            .is_some_and(|meter| meter.component == Component::Gpu);
        if is_gpu {
            let floor = self.ledger.floor(reading.meter);
            self.engines
                .reading(reading, floor.map_or(0.0, |floor| floor.watts.0));
        }
    }

    /// Each thread's part in the report, where it was asked for.
    pub(super) fn report_threads(&mut self) {
        if let Some(threads) = &self.threads {
            for thread in threads.all() {
                let (service, name) = (thread.service, &thread.name);
                self.sinks
                    .sum_up(|summary| summary.add_thread(service, name, thread.times));
            }
        }
    }
}
