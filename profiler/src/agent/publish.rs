//! What the agent shows, once a second: the sinks are told all that is read only then.

use super::Agent;
use crate::clock::Timestamp;
use crate::ledger::{Component, ServiceId};
use crate::probes::health::{ProgramHealth, Verdict};

impl Agent {
    pub(super) fn publish(&mut self, now: Timestamp) {
        self.keep_budget(now);
        self.tokens.publish(&mut self.sinks, &self.services);
        for (id, meter) in &self.meters {
            if meter.component == Component::Gpu {
                self.sinks.gpu_idle(*id, meter, self.ledger.floor(*id));
            }
        }
        let metrics = &mut self.sinks.metrics;
        for (id, read) in &self.power_read {
            if let Some(meter) = self.meters.get(id)
                && now.since(*read) > meter.stale_after
            {
                metrics.record_gpu_power(&meter.device, None);
            }
        }
        self.publish_waits(now);
        if let Some(probes) = &mut self.probes {
            // One that nobody asked for is not down.
            let wanted = |program: &ProgramHealth| program.verdict != Verdict::Off;
            for program in probes.health().into_iter().filter(wanted) {
                let (tier, is_up) = (program.tier.name(), program.verdict == Verdict::Ok);
                self.sinks
                    .metrics
                    .record_probe(program.program, tier, is_up);
                let fact = if is_up { tier } else { "down" };
                self.sinks.fact(&format!("probe {}", program.program), fact);
                if let Some(seconds) = program.seconds {
                    let nanos = (seconds * 1e9) as u64;
                    let metrics = &mut self.sinks.metrics;
                    metrics.record_probe_cost(program.program, program.runs, nanos);
                }
            }
            let alive = self
                .services
                .iter()
                .filter(|service| !service.pids.is_empty());
            let alive: Vec<ServiceId> = alive.map(|service| service.id).collect();
            self.host.publish(probes, &alive, &mut self.sinks);
            for calls in probes.read_cuda() {
                self.sinks.cuda(&calls);
            }
            let hardware = probes.read_pmc();
            for counts in hardware.iter().flat_map(|(counts, _)| counts) {
                self.sinks.hardware(counts);
            }
            let metrics = &mut self.sinks.metrics;
            if let Some((_, refused)) = hardware {
                metrics.record_dropped("pmc_refused", refused);
            }
            if let Some(untimed) = probes.cuda_untimed() {
                metrics.record_dropped("cuda_sync_untimed", untimed);
            }
            metrics.record_dropped("process_no_place", probes.refused());
            let losses = probes.losses();
            for (reason, count) in losses.by_reason() {
                metrics.record_dropped(reason, count);
            }
            if let Some(lost) = probes.tls_losses() {
                metrics.record_dropped("tls_unbound", lost.unbound);
                metrics.record_dropped("tls_busy", lost.busy);
            }
            if let Some(counts) = probes.stack_counts() {
                let wanted = self.config.wanted_stacks();
                if wanted.on_cpu.is_some() {
                    metrics.record_dropped("stack_ring_full", counts.lost);
                }
                if wanted.off_cpu.is_some() {
                    metrics.record_dropped("off_cpu_stack_lost", counts.waits_lost);
                }
                self.sinks.stack_counts(wanted, counts);
            }
            self.sinks.losses(losses.events(), losses.requests());
            if probes.sees_requests() {
                for service in &self.services {
                    let count = self.engines.in_flight(service.id);
                    self.sinks
                        .show(|live| live.set_in_flight(service.id, count));
                }
            }
        }
        let residual = self.ledger.total_residual_microjoules();
        self.sinks.show(|live| live.set_residual(residual));
        let metrics = &mut self.sinks.metrics;
        // A counter's jump beyond what its device can draw; facts that came after their request
        // was booked.
        metrics.record_dropped("reading_refused", self.ledger.refused());
        metrics.record_dropped("request_fact_late", self.ledger.ignored());
        let before_shown = self
            .state
            .as_ref()
            .map(|keeper| keeper.before_shown(now, self.known()));
        self.sinks.publish(now, before_shown);
    }
}
