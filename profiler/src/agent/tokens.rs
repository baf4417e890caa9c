//! How many tokens each request was given, by the most trusted source there is.
//!
//! In: requests as they are seen, engines' own counters. Out: every booked request with its
//! tokens, and what engines counted. The engine's counters are trusted most, then what the server
//! says at a response's end, then chunks times what was learned of tokens a chunk.

mod endpoints;
mod engines;

use std::io;

use super::sinks::Sinks;
use crate::ids::Ids;
use crate::ledger::{Booked, EngineLoad, Outcome, RequestId, Route, ServiceId, TokenCount, Usage};
use crate::probes::requests::Observed;
use crate::services::Service;
use crate::tokens::Calibration;
use crate::tokens::broker::Broker;
use engines::Engines;

/// Requests that ended and are not booked yet; above it some were never booked.
const MOST_UNBOOKED: usize = 65_536;

/// The tokens of all services of one agent.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    calibration: Calibration,
    /// What servers said of requests that are not booked yet.
    said: Ids<RequestId, Usage>,
    /// `None` where engines' metrics are not to be read.
    engines: Option<Engines>,
}

impl Tokens {
    /// Starts to read engines' own metrics, and waits a moment until the first services have been
    /// asked. `chosen`: ports named by hand.
    pub(super) fn read_engines(
        &mut self,
        chosen: Vec<u16>,
        services: &[Service],
        broker: Option<Broker>,
    ) -> io::Result<()> {
        self.engines = Some(Engines::start(chosen, services, broker)?);
        Ok(())
    }

    /// All services as of now.
    pub(super) fn watch(&mut self, services: &[Service]) {
        if let Some(engines) = &mut self.engines {
            engines.watch(services);
        }
    }

    /// The service has ended.
    pub(super) fn forget(&mut self, service: ServiceId) {
        self.calibration.forget(service);
        if let Some(engines) = &mut self.engines {
            engines.forget(service);
        }
    }

    /// Takes what engines have told; returns what they said of their queues.
    pub(super) fn take_news(&mut self, sinks: &mut Sinks, services: &[Service]) -> Vec<EngineLoad> {
        let calibration = &mut self.calibration;
        let engines = self.engines.as_mut();
        engines.map_or_else(Vec::new, |all| all.take_news(calibration, sinks, services))
    }

    /// Whether the agent itself sent the request.
    pub(super) fn is_own(&mut self, observed: &Observed) -> bool {
        let engines = self.engines.as_mut();
        engines.is_some_and(|engines| engines.is_own(observed))
    }

    /// Takes a request as it was seen.
    pub(super) fn follow(&mut self, observed: &Observed) {
        let request = &observed.request;
        if request.route == Route::Health {
            return;
        }
        if let Some(engines) = &mut self.engines {
            engines.saw(request.service, observed.port);
        }
        self.calibration.follow(observed.at, request);
        if let (Some(end), Some(usage)) = (request.end, observed.usage) {
            if self.said.len() >= MOST_UNBOOKED {
                self.said.clear();
            }
            self.said.insert(request.id, usage);
            if end.outcome == Outcome::Done && !observed.truncated {
                self.calibration.learn(request, usage);
            }
        }
    }

    /// Adds what is known of a booked request's tokens.
    pub(super) fn count(&mut self, booked: &mut Booked) {
        let Booked::Request(booked) = booked else {
            return;
        };
        let request = &booked.request;
        // Prompts alone say less of a stream than its chunks do.
        let said = self.said.remove(&request.id);
        let said = said.filter(|usage| usage.output.is_some() || !request.streamed);
        booked.tokens = said
            .map(TokenCount::from)
            .or_else(|| self.calibration.count(request));
    }

    /// Shows what was learned.
    pub(super) fn publish(&self, sinks: &mut Sinks, services: &[Service]) {
        for service in services {
            if let Some(ratio) = self.calibration.tokens_per_chunk(service.id) {
                sinks.metrics.record_tokens_per_chunk(service.id, ratio);
            }
        }
    }

    /// Every counter is read a last time.
    pub(super) fn finish(&mut self, sinks: &mut Sinks, services: &[Service]) {
        if let Some(engines) = &mut self.engines {
            engines.finish();
            engines.take_news(&mut self.calibration, sinks, services);
        }
    }
}
