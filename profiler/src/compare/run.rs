//! One run of a comparison, read from its recording in one pass.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::blocks::{Blocks, Span};
use crate::export::labels::clean;
use crate::ids::Ids;
use crate::ledger::{Component, GpuPhases, ServiceId, Source};
use crate::recording::{Recorded, RecordingError};
use crate::report::{FullEnergy, Report, Summary};
use crate::units::Microjoules;

/// What is known of a service before its requests are read.
#[derive(Debug, Default)]
pub(super) struct Services {
    names: Ids<ServiceId, String>,
    pub(super) spans: BTreeMap<String, Span>,
}

impl Services {
    pub(super) fn read(recorded: &Recorded) -> Result<Self, RecordingError> {
        let mut services = Self::default();
        recorded.services(|id, name, _| {
            services.names.insert(id, clean(name));
        })?;
        let mut spans: BTreeMap<String, Span> = BTreeMap::new();
        recorded.request_spans(|id, first, last| {
            let span = Span { first, last };
            spans
                .entry(services.name(id))
                .and_modify(|known| *known = known.with(span))
                .or_insert(span);
        })?;
        services.spans = spans;
        Ok(services)
    }

    fn name(&self, id: ServiceId) -> String {
        self.names.get(&id).map_or_else(|| clean(""), String::clone)
    }
}

/// A run, summed up.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) report: Report,
    /// Component, device, source and gain error.
    pub(super) meters: Vec<(Component, String, Source, f64)>,
    pub(super) services: BTreeMap<String, ServiceRun>,
    pub(super) has_waits: bool,
}

/// One service in a run.
#[derive(Debug)]
pub(super) struct ServiceRun {
    pub(super) blocks: Blocks,
    /// GPU energy of its requests, microjoules: prefill, decode, wait, and of responses that do not
    /// stream.
    pub(super) gpu: [u64; 4],
    /// False where the recording does not tell the phases.
    pub(super) has_phases: bool,
    /// Nanoseconds by reason.
    pub(super) waits: BTreeMap<String, u64>,
}

impl Run {
    /// Reads a run; its services' blocks are laid beside those of `other`.
    pub(super) fn read(
        recorded: &Recorded,
        services: &Services,
        other: &Services,
    ) -> Result<Self, RecordingError> {
        let mut run: BTreeMap<String, ServiceRun> = BTreeMap::new();
        for (name, span) in &services.spans {
            let length = span.block_beside(other.spans.get(name).copied());
            let service = ServiceRun {
                blocks: Blocks::new(span.first, length),
                gpu: [0; 4],
                has_phases: true,
                waits: BTreeMap::new(),
            };
            run.insert(name.clone(), service);
        }
        let mut meters = Vec::new();
        let mut summary = Summary::new(recorded.simulated);
        recorded.meters(|id, meter| {
            summary.describe_meter(id, &meter);
            let gain = meter.gain_error_ratio;
            meters.push((meter.component, meter.device, meter.source, gain));
        })?;
        recorded.floors(|id, floor| summary.set_floor(id, floor))?;
        recorded.services(|id, name, model| summary.describe_service(id, name, model))?;
        recorded.tokens(|delta| summary.add_tokens(&delta))?;
        recorded.intervals(|booked| summary.add(&booked))?;
        let _all: ControlFlow<()> = recorded.requests(|recorded| {
            let booked = &recorded.booked;
            summary.add_request(booked);
            let request = &booked.request;
            if request.route.costs_energy()
                && !request.begins_session()
                && let Some(service) = run.get_mut(&services.name(request.service))
            {
                service.blocks.add(booked);
                service.add_gpu(booked.gpu, booked.phases);
            }
            ControlFlow::Continue(())
        })?;
        if let Some((from, to)) = recorded.window()? {
            summary.set_window(from, to);
        }
        recorded.waits_by_reason(|id, reason, nanos| {
            if let Some(service) = run.get_mut(&services.name(id)) {
                *service.waits.entry(reason.to_owned()).or_default() += nanos;
            }
        })?;
        Ok(Self {
            report: summary.report(FullEnergy::default()),
            meters,
            services: run,
            has_waits: recorded.has_waits()?,
        })
    }
}

impl ServiceRun {
    fn add_gpu(&mut self, energy: Option<Microjoules>, phases: Option<GpuPhases>) {
        let Some(Microjoules(energy)) = energy else {
            return;
        };
        let Some(phases) = phases else {
            self.has_phases = false;
            return;
        };
        let seen = [phases.prefill, phases.decode, phases.wait].map(|phase| phase.0);
        let rest = energy.saturating_sub(seen.iter().sum());
        for (sum, part) in self.gpu.iter_mut().zip(seen.into_iter().chain([rest])) {
            *sum += part;
        }
    }
}
