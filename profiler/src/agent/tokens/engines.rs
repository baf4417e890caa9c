//! Engines' own counters, as the agent follows them: which service is asked, what is told, and
//! which requests are the agent's own.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::time::Duration;

use super::super::sinks::Sinks;
use super::endpoints::Endpoints;
use crate::clock::Timestamp;
use crate::ledger::{EngineLoad, ServiceId};
use crate::probes::requests::Observed;
use crate::services::{self, Service};
use crate::tokens::broker::Broker;
use crate::tokens::{Calibration, Connection, News, Tokens, Watched};

/// The name of this source.
const SOURCE: &str = "tokens";
/// Why tokens were lost.
const RESET: &str = "token_counter_reset";
/// How long the first services are waited for: their counters' base should be older than the
/// first request that is seen.
const FIRST: Duration = Duration::from_millis(500);
/// How long the last read is waited for.
const LAST: Duration = Duration::from_millis(400);
/// So old a request of the agent's own has ended, or was never seen.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// All engines of one agent.
#[derive(Debug)]
pub(super) struct Engines {
    tokens: Tokens,
    endpoints: Endpoints,
    /// Ports on which requests were seen.
    http: HashSet<(ServiceId, u16)>,
    /// The latest of them: mostly the next one too.
    latest_http: Option<(ServiceId, u16)>,
    http_is_new: bool,
    told: Vec<Watched>,
    /// The agent's own connections, of which each carries one request, that the probes have not
    /// shown yet.
    own: VecDeque<Connection>,
    resets: u64,
}

impl Engines {
    /// Starts the thread and waits a moment until the first services have been asked.
    pub(super) fn start(
        chosen: Vec<u16>,
        services: &[Service],
        broker: Option<Broker>,
    ) -> io::Result<Self> {
        let mut engines = Self {
            tokens: Tokens::start(broker)?,
            endpoints: Endpoints::new(chosen),
            http: HashSet::new(),
            latest_http: None,
            http_is_new: false,
            told: Vec::new(),
            own: VecDeque::new(),
            resets: 0,
        };
        engines.tell(services, Some(FIRST));
        Ok(engines)
    }

    /// All services as of now.
    pub(super) fn watch(&mut self, services: &[Service]) {
        self.tell(services, None);
    }

    fn tell(&mut self, services: &[Service], patience: Option<Duration>) {
        self.http_is_new = false;
        let running = services.iter().filter(|service| !service.pids.is_empty());
        let watched: Vec<Watched> = running
            .map(|service| Watched {
                service: service.id,
                endpoints: self.endpoints.of(service, &self.http),
            })
            .filter(|watched| !watched.endpoints.is_empty())
            .collect();
        if watched != self.told {
            self.told.clone_from(&watched);
            self.tokens.watch(watched, patience);
        }
    }

    /// A request was seen at this port.
    pub(super) fn saw(&mut self, service: ServiceId, port: u16) {
        let seen = (service, port);
        if port != 0 && self.latest_http.replace(seen) != Some(seen) && self.http.insert(seen) {
            self.http_is_new = true;
        }
    }

    /// The service has ended.
    pub(super) fn forget(&mut self, service: ServiceId) {
        self.http.retain(|(of, _)| *of != service);
    }

    /// True if the request came over a connection of the agent's own.
    pub(super) fn is_own(&mut self, observed: &Observed) -> bool {
        let place = self.own.iter().position(|own| {
            (own.from, own.to) == (observed.peer_port, observed.port)
                && (observed.network == 0 || own.network == u64::from(observed.network))
                && observed.request.start >= own.at
        });
        if let Some(place) = place
            && observed.request.end.is_some()
        {
            self.own.remove(place);
        }
        place.is_some()
    }

    /// Takes what the thread has told; returns what engines said of their queues.
    pub(super) fn take_news(
        &mut self,
        calibration: &mut Calibration,
        sinks: &mut Sinks,
        services: &[Service],
    ) -> Vec<EngineLoad> {
        let mut loads = Vec::new();
        if self.http_is_new {
            self.watch(services);
        }
        let name = |id: ServiceId| {
            let service = services::find(services, id);
            service.map_or("unknown", |service| service.name.as_str())
        };
        while let Some(news) = self.tokens.next() {
            match news {
                News::Connected(connection) => {
                    let at = connection.at;
                    let forgotten = |own: &Connection| own.at.plus(FORGOTTEN) <= at;
                    while self.own.front().is_some_and(forgotten) {
                        self.own.pop_front();
                    }
                    self.own.push_back(connection);
                }
                News::Engine(info) => {
                    log::info!(
                        "service {}: tokens from the metrics of {}, model {}",
                        name(info.service),
                        info.engine,
                        info.model.as_deref().unwrap_or("unknown")
                    );
                    sinks.describe_engine(&info, Timestamp::now());
                    // From the start, so that the first loss is seen as an increase.
                    sinks.metrics.record_dropped(RESET, self.resets);
                }
                News::Tokens(delta) => {
                    calibration.take(&delta);
                    sinks.count_tokens(&delta);
                    sinks.metrics.record_source(SOURCE, true, Some(delta.to));
                }
                News::Reset(_) => {
                    self.resets += 1;
                    sinks.metrics.record_dropped(RESET, self.resets);
                }
                News::Load(load) => {
                    loads.push(load);
                    sinks.metrics.record_engine_load(&load);
                    if load.running.is_some() {
                        let now = Timestamp::now();
                        sinks.metrics.record_source(SOURCE, true, Some(now));
                    }
                }
                News::Silent(service) => {
                    log::warn!("service {}: its metrics cannot be read", name(service));
                    sinks.metrics.record_source_down(SOURCE);
                }
                News::Lost(service) => {
                    log::warn!(
                        "service {}: its token counters are gone or are several processes' \
                         behind one port; streamed chunks are counted instead",
                        name(service)
                    );
                    calibration.lose(service);
                    sinks.metrics.record_tokens_lost(service);
                }
            }
        }
        loads
    }

    /// Every counter is read a last time; then the last news can be taken.
    pub(super) fn finish(&mut self) {
        self.tokens.finish();
        self.tokens.end(LAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{End, Input, Outcome, Request, RequestId, Route};
    use crate::probes::requests::Client;

    fn request(peer_port: u16, start: u64, ended: bool) -> Observed {
        Observed {
            at: Timestamp(start + 5),
            request: Request {
                id: RequestId(start),
                service: ServiceId(0),
                route: Route::Health,
                start: Timestamp(start),
                first_data: None,
                last_data: None,
                input: Input::Bytes(0),
                chunks: 0,
                streamed: false,
                status: 200,
                end: ended.then_some(End {
                    at: Timestamp(start + 1),
                    outcome: Outcome::Done,
                }),
            },
            port: 8_000,
            peer_port,
            network: 3,
            client: Client::Outside,
            family: 2,
            tgid: 1,
            response_bytes: 0,
            first_chunks: 0,
            truncated: false,
            usage: None,
            trace: None,
        }
    }

    #[test]
    fn its_own_requests_are_known_by_their_connection_each_once() {
        let mut engines = Engines::start(Vec::new(), &[], None).unwrap();
        let connection = |from, network| Connection {
            from,
            to: 8_000,
            network,
            at: Timestamp(100),
        };
        engines.own.push_back(connection(50_001, 3));
        engines.own.push_back(connection(50_002, 4));
        // At the same moment, at the same path: a client's.
        assert!(!engines.is_own(&request(50_003, 101, true)));
        assert!(!engines.is_own(&request(50_001, 99, true)), "before it");
        assert!(!engines.is_own(&request(50_002, 101, true)), "elsewhere");
        assert!(engines.is_own(&request(50_001, 101, false)));
        assert!(engines.is_own(&request(50_001, 101, true)));
        assert!(
            !engines.is_own(&request(50_001, 200, true)),
            "its next user"
        );
    }
}
