//! Engines' own counters, as the agent follows them: which service is asked where, what is told,
//! and which requests are the agent's own.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use super::sinks::Sinks;
use crate::clock::Timestamp;
use crate::ledger::{Request, Route, ServiceId};
use crate::probes::requests::Observed;
use crate::services::{Listener, Service};
use crate::tokens::{Calibration, Endpoint, News, Tokens, Watched};

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
const FORGOTTEN: Duration = Duration::from_secs(10);
/// From here on the kernel hands out ports that nobody chose, unless it says otherwise.
const EPHEMERAL: u16 = 32_768;

/// All engines of one agent.
#[derive(Debug)]
pub(super) struct Engines {
    tokens: Tokens,
    calibration: Calibration,
    /// The agent's network namespace; addresses in another are other servers'.
    network: Option<u64>,
    ephemeral: u16,
    /// Ports named by hand.
    chosen: Vec<u16>,
    /// Ports on which requests were seen.
    http: HashSet<(ServiceId, u16)>,
    http_is_new: bool,
    told: Vec<Watched>,
    /// The agent's own requests that the probes have not shown yet.
    asking: VecDeque<Asking>,
    resets: u64,
}

/// A request of the agent's own: a server reads it between these moments.
#[derive(Debug)]
struct Asking {
    service: ServiceId,
    port: u16,
    from: Timestamp,
    /// `None` while it is not answered.
    to: Option<Timestamp>,
}

impl Engines {
    /// Starts the thread and waits a moment until the first services have been asked.
    pub(super) fn start(chosen: Vec<u16>, services: &[Service]) -> io::Result<Self> {
        let mut engines = Self {
            tokens: Tokens::start()?,
            calibration: Calibration::default(),
            network: fs::metadata("/proc/self/ns/net")
                .ok()
                .map(|link| link.ino()),
            ephemeral: first_ephemeral_port(),
            chosen,
            http: HashSet::new(),
            http_is_new: false,
            told: Vec::new(),
            asking: VecDeque::new(),
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
                endpoints: self.endpoints(service),
            })
            .filter(|watched| !watched.endpoints.is_empty())
            .collect();
        if watched != self.told {
            self.told.clone_from(&watched);
            self.tokens.watch(watched, patience);
        }
    }

    /// Where a service may show its metrics. Ports that the kernel chose are mostly no servers
    /// for others (a rendezvous, a collective's channel) and are let alone, unless requests were
    /// seen there or there is no other port.
    fn endpoints(&self, service: &Service) -> Vec<Endpoint> {
        let here = |listener: &&Listener| {
            listener.address.is_some() && self.network.is_none_or(|own| listener.network == own)
        };
        let mut listeners: Vec<&Listener> = service.listeners.iter().filter(here).collect();
        listeners.sort_by_key(|listener| (listener.inner, listener.port, listener.inode));
        listeners.dedup_by_key(|listener| (listener.address, listener.port));
        let ports: HashSet<u16> = listeners.iter().map(|listener| listener.port).collect();
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for listener in listeners {
            let port = listener.port;
            let address = match listener.address {
                Some(IpAddr::V4(address)) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                // Where `::` takes only IPv6 this is right as well.
                Some(IpAddr::V6(address)) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                Some(address) => address,
                None => continue,
            };
            let is_asked = port < self.ephemeral
                || ports.len() == 1
                || self.chosen.contains(&port)
                || self.http.contains(&(service.id, port));
            // IPv4 and IPv6 on one port are one server.
            let known = |endpoint: &Endpoint| endpoint.address.port() == port;
            if is_asked && !endpoints.iter().any(known) {
                endpoints.push(Endpoint {
                    address: SocketAddr::new(address, port),
                    listener: listener.inode,
                });
            }
        }
        endpoints
    }

    /// Takes what the thread has told.
    pub(super) fn take_news(&mut self, sinks: &mut Sinks, services: &[Service]) {
        if self.http_is_new {
            self.watch(services);
        }
        let name = |id: ServiceId| {
            let service = services.get(id.0 as usize);
            service.map_or("unknown", |service| service.name.as_str())
        };
        while let Some(news) = self.tokens.next() {
            match news {
                News::Asking { service, port, at } => {
                    let forgotten = |asking: &Asking| asking.from.plus(FORGOTTEN) <= at;
                    while self.asking.front().is_some_and(forgotten) {
                        self.asking.pop_front();
                    }
                    self.asking.push_back(Asking {
                        service,
                        port,
                        from: at,
                        to: None,
                    });
                }
                News::Answered { service, port, at } => {
                    let is_asked =
                        |asking: &&mut Asking| (asking.service, asking.port) == (service, port);
                    if let Some(asking) = self.asking.iter_mut().rev().find(is_asked) {
                        asking.to.get_or_insert(at);
                    }
                }
                News::Engine(info) => {
                    log::info!(
                        "service {}: tokens from the metrics of {}, model {}",
                        name(info.service),
                        info.engine,
                        info.model.as_deref().unwrap_or("unknown")
                    );
                    sinks.describe_engine(&info);
                    // From the start, so that the first loss is seen as an increase.
                    sinks.metrics.record_dropped(RESET, self.resets);
                }
                News::Tokens(delta) => {
                    self.calibration.take(&delta);
                    sinks.count_tokens(&delta);
                    sinks.metrics.record_source(SOURCE, true, Some(delta.to));
                }
                News::Reset(_) => {
                    self.resets += 1;
                    sinks.metrics.record_dropped(RESET, self.resets);
                }
                News::Load(load) => {
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
                    sinks.metrics.record_tokens_lost(service);
                }
            }
        }
    }

    /// Takes a request as it was seen. True if it is the agent's own: then nobody else needs it.
    pub(super) fn follow(&mut self, observed: &Observed) -> bool {
        let Observed { at, port, .. } = *observed;
        let request = &observed.request;
        if request.route == Route::Health {
            return request.end.is_some() && self.is_own(port, request);
        }
        if port != 0 && self.http.insert((request.service, port)) {
            self.http_is_new = true;
        }
        self.calibration.follow(at, request);
        false
    }

    fn is_own(&mut self, port: u16, request: &Request) -> bool {
        let place = self.asking.iter().position(|asking| {
            (asking.service, asking.port) == (request.service, port)
                && request.start >= asking.from
                && asking.to.is_none_or(|to| request.start <= to)
        });
        place.and_then(|place| self.asking.remove(place)).is_some()
    }

    /// Tokens per streamed chunk of a service; 1 until it is known.
    pub(super) fn tokens_per_chunk(&self, service: ServiceId) -> f64 {
        self.calibration.tokens_per_chunk(service)
    }

    /// Every counter is read a last time.
    pub(super) fn finish(&mut self, sinks: &mut Sinks, services: &[Service]) {
        self.tokens.finish();
        self.tokens.end(LAST);
        self.take_news(sinks, services);
        for service in services {
            let ratio = self.tokens_per_chunk(service.id);
            log::debug!("service {}: {ratio:.3} tokens a chunk", service.name);
        }
    }
}

fn first_ephemeral_port() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(EPHEMERAL)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ledger::{End, Input, Outcome, RequestId};
    use crate::services::Family;

    const SERVICE: ServiceId = ServiceId(0);

    fn listener(address: &str, port: u16, inner: bool) -> Listener {
        let address: IpAddr = address.parse().unwrap();
        Listener {
            family: Family::Inet,
            address: Some(address),
            port,
            loopback: address.is_loopback(),
            inode: u64::from(port),
            network: 1,
            owners: BTreeSet::new(),
            inner,
        }
    }

    fn engines() -> Engines {
        let mut engines = Engines::start(vec![40_001], &[]).unwrap();
        engines.network = Some(1);
        engines.ephemeral = EPHEMERAL;
        engines
    }

    fn asked(engines: &Engines, listeners: Vec<Listener>) -> Vec<String> {
        let service = Service {
            id: SERVICE,
            name: "vllm".into(),
            group: None,
            pids: BTreeSet::from([1]),
            listeners,
            gpus: Vec::new(),
        };
        let endpoints = engines.endpoints(&service);
        endpoints
            .iter()
            .map(|endpoint| endpoint.address.to_string())
            .collect()
    }

    fn request(route: Route, start: u64) -> Observed {
        Observed {
            at: Timestamp(start + 5),
            request: Request {
                id: RequestId(start),
                service: SERVICE,
                route,
                start: Timestamp(start),
                first_data: None,
                last_data: None,
                input: Input::Bytes(0),
                chunks: 0,
                streamed: false,
                status: 200,
                end: Some(End {
                    at: Timestamp(start + 1),
                    outcome: Outcome::Done,
                }),
            },
            port: 45_000,
            peer_port: 0,
            network: 0,
            family: 2,
            tgid: 1,
            response_bytes: 0,
            first_chunks: 0,
            truncated: false,
        }
    }

    #[test]
    fn ports_that_the_kernel_chose_are_asked_only_where_requests_were_seen() {
        let mut engines = engines();
        let all = || {
            vec![
                listener("127.0.0.1", 45_000, false),
                listener("127.0.0.1", 8_002, true),
                listener("0.0.0.0", 8_000, false),
                listener("::", 8_000, false),
                listener("::", 9_000, false),
                listener("10.0.0.7", 40_001, false),
            ]
        };
        let usual = [
            "127.0.0.1:8000",
            "[::1]:9000",
            "10.0.0.7:40001",
            "127.0.0.1:8002",
        ];
        assert_eq!(asked(&engines, all()), usual);
        assert!(!engines.follow(&request(Route::ChatCompletions, 10)));
        assert!(asked(&engines, all()).contains(&"127.0.0.1:45000".to_owned()));
        let only = vec![listener("127.0.0.1", 50_000, false)];
        assert_eq!(asked(&engines, only), ["127.0.0.1:50000"]);
        let mut elsewhere = listener("0.0.0.0", 8_000, false);
        elsewhere.network = 2;
        assert!(asked(&engines, vec![elsewhere]).is_empty());
    }

    #[test]
    fn as_many_requests_are_its_own_as_it_has_sent_and_none_from_before() {
        let mut engines = engines();
        let asking = |from, to| Asking {
            service: SERVICE,
            port: 45_000,
            from: Timestamp(from),
            to,
        };
        // Read by the server before its requests were followed: never seen.
        engines.asking.push_back(asking(50, Some(Timestamp(60))));
        engines.asking.push_back(asking(100, None));
        assert!(!engines.follow(&request(Route::Health, 90)));
        assert!(!engines.follow(&request(Route::ChatCompletions, 101)));
        let mut open = request(Route::Health, 101);
        open.request.end = None;
        assert!(!engines.follow(&open), "its end is still to come");
        assert!(engines.follow(&request(Route::Health, 101)));
        assert!(!engines.follow(&request(Route::Health, 102)));
    }
}
