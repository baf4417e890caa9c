//! Where booked values go: `/metrics`, the journal, the summary. Each sees the same values in the
//! same order.

use crate::clock::Timestamp;
use crate::export::Metrics;
use crate::ledger::{
    Booked, CpuTime, EngineInfo, Holders, Meter, MeterId, RequestId, ServiceId, TokenDelta, TraceId,
};
use crate::recording::{Journal, JournalError};
use crate::report::Summary;

/// All sinks of one agent.
#[derive(Debug)]
pub(super) struct Sinks {
    pub(super) metrics: Metrics,
    pub(super) summary: Summary,
    journal: Option<Journal>,
    /// Why the journal ended early, told once.
    journal_error: Option<JournalError>,
}

impl Sinks {
    pub(super) fn new(journal: Option<Journal>, simulated: bool) -> Self {
        Self {
            metrics: Metrics::new(env!("CARGO_PKG_VERSION")),
            summary: Summary::new(simulated),
            journal,
            journal_error: None,
        }
    }

    pub(super) fn describe_meter(&mut self, id: MeterId, meter: &Meter) {
        self.metrics.describe_meter(id, meter);
        self.summary.describe_meter(id, meter);
        self.write(|journal| journal.meter(id, meter));
    }

    pub(super) fn describe_service(&mut self, id: ServiceId, name: &str, model: Option<&str>) {
        self.metrics.describe_service(id, name, model);
        self.summary.describe_service(id, name, model);
        self.write(|journal| journal.service(id, name));
    }

    pub(super) fn describe_engine(&mut self, info: &EngineInfo) {
        self.metrics.describe_engine(info);
        self.summary.describe_engine(info);
        self.write(|journal| journal.engine(info));
    }

    pub(super) fn count_tokens(&mut self, delta: &TokenDelta) {
        self.metrics.record_tokens(delta);
        self.summary.add_tokens(delta);
        self.write(|journal| journal.tokens(delta));
    }

    pub(super) fn trace(&mut self, request: RequestId, trace: TraceId) {
        self.write(|journal| journal.trace(request, trace));
    }

    pub(super) fn hold(&mut self, holders: &Holders) {
        self.summary.set_holders(holders);
    }

    pub(super) fn cpu(&mut self, cpu: &CpuTime) {
        self.metrics.record_cpu(cpu);
        self.summary.add_cpu(cpu);
    }

    pub(super) fn book(&mut self, booked: &Booked) {
        self.metrics.book(booked);
        self.summary.add(booked);
        self.write(|journal| journal.book(booked));
    }

    /// Makes what was booked visible to readers: scrapes, and who follows the journal.
    pub(super) fn publish(&mut self, now: Timestamp) {
        self.metrics.publish(now);
        self.write(Journal::flush);
    }

    /// Why the journal ended early, once.
    pub(super) fn take_journal_error(&mut self) -> Option<JournalError> {
        self.journal_error.take()
    }

    fn write(&mut self, write: impl FnOnce(&mut Journal) -> Result<(), JournalError>) {
        let Some(journal) = &mut self.journal else {
            return;
        };
        if let Err(error) = write(journal) {
            log::error!("{error}; nothing more is written to it");
            self.journal = None;
            self.journal_error = Some(error);
        }
    }
}
