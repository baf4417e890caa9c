//! The thread that reads servers' metrics: finds them, then reads them once a second.
//!
//! It asks politely: a server that shows none is asked again ever more seldom, a port that does
//! not speak HTTP never again as long as the same socket listens there.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::broker::Broker;
use super::counters::{Counters, Step};
use super::engines::{self, Reading};
use super::scrape::{self, ScrapeError};
use super::{Endpoint, News, Watched};
use crate::clock::Timestamp;
use crate::http::HttpError;
use crate::ledger::{EngineInfo, EngineLoad, ServiceId, TokenDelta};

/// Between two reads of a server's counters.
const PERIOD: Duration = Duration::from_secs(1);
/// How long one read may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the search through one service's ports may take.
const SEARCH: Duration = Duration::from_secs(4);
/// Between the first and the second search; doubled each time.
const SEARCH_AGAIN: Duration = Duration::from_secs(2);
/// Between two searches, or two reads that fail, at most.
const SELDOM: Duration = Duration::from_secs(30);
/// Failed reads in a row after which the server is looked for anew.
const FAILURES: u32 = 5;
/// As long nothing is told of counters that stand still.
const QUIET: u64 = 10_000_000_000;
/// Of the latest 32 reads so many that begin anew are several processes behind one port: what is
/// read then is now one's, now another's.
const MOST_RESETS: u32 = 3;
/// Ports of one service that are asked.
const MOST_ENDPOINTS: usize = 8;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Told {
    /// All services there are; the sender is dropped once the new ones have been asked.
    Watch(Vec<Watched>, Option<Sender<()>>),
    /// Read everything a last time and end.
    Finish,
}

/// Runs until it is told to finish or nobody listens.
pub(super) fn run(told: &Receiver<Told>, news: &Sender<News>, broker: Option<Broker>) {
    let broker = broker.map(Rc::new);
    let mut services: BTreeMap<ServiceId, Server> = BTreeMap::new();
    let mut asked = Vec::new();
    loop {
        let due = services.values().map(|server| server.due).min();
        let wait = due.map_or(SELDOM, |due| due.saturating_duration_since(Instant::now()));
        match told.recv_timeout(wait) {
            Ok(Told::Watch(watched, done)) => {
                watch(&mut services, watched, broker.as_ref());
                asked.extend(done);
            }
            Ok(Told::Finish) => {
                for server in services.values_mut() {
                    server.read_last(news);
                }
                return;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for server in services.values_mut() {
            if server.due <= Instant::now() {
                server.look(news);
            }
        }
        asked.clear();
    }
}

/// Brings the servers up to date with the services there are.
fn watch(
    services: &mut BTreeMap<ServiceId, Server>,
    watched: Vec<Watched>,
    broker: Option<&Rc<Broker>>,
) {
    let ids: BTreeSet<ServiceId> = watched.iter().map(|watched| watched.service).collect();
    services.retain(|id, _| ids.contains(id));
    for Watched {
        service,
        mut endpoints,
    } in watched
    {
        endpoints.truncate(MOST_ENDPOINTS);
        services
            .entry(service)
            .or_insert_with(|| Server::new(service, broker.cloned()))
            .listen_at(endpoints);
    }
}

/// One service's server.
#[derive(Debug)]
struct Server {
    service: ServiceId,
    /// Who reaches other network namespaces, if anybody does.
    broker: Option<Rc<Broker>>,
    endpoints: Vec<Endpoint>,
    /// Those that do not speak HTTP, or cannot be reached.
    silent: BTreeSet<Endpoint>,
    /// Where its metrics are, once found.
    place: Option<(Endpoint, &'static str)>,
    due: Instant,
    pause: Duration,
    failures: u32,
    counters: Counters,
    info: Option<EngineInfo>,
    /// What the process behind this listening socket says of its version.
    version: Option<(u64, Option<String>)>,
    /// Up to where all that was counted is told.
    told: Option<Timestamp>,
    /// Which of the latest reads began anew, a bit each.
    resets: u32,
    /// Several processes answer at these endpoints.
    unusable: bool,
}

impl Server {
    fn new(service: ServiceId, broker: Option<Rc<Broker>>) -> Self {
        Self {
            service,
            broker,
            endpoints: Vec::new(),
            silent: BTreeSet::new(),
            place: None,
            due: Instant::now(),
            pause: SEARCH_AGAIN,
            failures: 0,
            counters: Counters::default(),
            info: None,
            version: None,
            told: None,
            resets: 0,
            unusable: false,
        }
    }

    fn listen_at(&mut self, endpoints: Vec<Endpoint>) {
        if self.endpoints == endpoints {
            return;
        }
        self.unusable = false;
        self.resets = 0;
        self.silent.retain(|silent| endpoints.contains(silent));
        // A new socket is a new server: its counters begin at nothing.
        if let Some((place, _)) = self.place
            && !endpoints.contains(&place)
        {
            self.place = None;
        }
        if self.place.is_none() {
            self.pause = SEARCH_AGAIN;
            self.due = Instant::now();
        }
        self.endpoints = endpoints;
    }

    /// Reads the metrics where they are, else looks for them.
    fn look(&mut self, news: &Sender<News>) {
        let began = Instant::now();
        match self.place {
            Some((endpoint, path)) => match self.read(endpoint, path, PATIENCE, news) {
                Ok(Some((asked, reading))) => {
                    self.take(endpoint, asked, &reading, false, news);
                    self.due = began + PERIOD;
                }
                Ok(None) => self.failed("it shows no engine's metrics any more", news),
                Err(error) => self.failed(&error.to_string(), news),
            },
            None => {
                if self.search(news) {
                    self.due = began + PERIOD;
                } else {
                    // What it counted before its restart is told; what serves now shows nothing.
                    let place = self.counters.listener();
                    let here = |endpoint: &Endpoint| Some(endpoint.listener) == place;
                    if place.is_some() && !self.endpoints.iter().any(here) {
                        self.lose(news);
                    }
                    self.due = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(SELDOM);
                }
            }
        }
    }

    fn failed(&mut self, why: &str, news: &Sender<News>) {
        self.failures += 1;
        if self.failures == 1 {
            log::debug!(
                "the metrics of service {} cannot be read: {why}",
                self.service.0
            );
            // A reading that is old is none.
            self.tell(
                news,
                News::Load(EngineLoad::unknown(self.service, Timestamp::now())),
            );
            self.tell(news, News::Silent(self.service));
        }
        let pause = PERIOD * 2_u32.saturating_pow(self.failures.min(5));
        self.due = Instant::now() + pause.min(SELDOM);
        if self.failures >= FAILURES {
            self.place = None;
            self.pause = SEARCH_AGAIN;
        }
    }

    /// Its counters are of no use: should they come back, they begin anew.
    fn lose(&mut self, news: &Sender<News>) {
        self.place = None;
        self.counters = Counters::default();
        self.info = None;
        self.told = None;
        self.tell(
            news,
            News::Load(EngineLoad::unknown(self.service, Timestamp::now())),
        );
        self.tell(news, News::Lost(self.service));
    }

    /// True if an engine's metrics were found, and then read.
    fn search(&mut self, news: &Sender<News>) -> bool {
        if self.unusable {
            return false;
        }
        let deadline = Instant::now() + SEARCH;
        for endpoint in self.endpoints.clone() {
            if self.silent.contains(&endpoint) {
                continue;
            }
            for path in engines::paths() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                match self.read(endpoint, path, left.min(PATIENCE), news) {
                    Ok(Some((asked, reading))) => {
                        self.place = Some((endpoint, path));
                        self.take(endpoint, asked, &reading, false, news);
                        return true;
                    }
                    Ok(None) | Err(ScrapeError::Http(HttpError::Status(_))) => {}
                    Err(error) => {
                        if let ScrapeError::Namespace(_) = &error {
                            log::warn!(
                                "the metrics of service {} at {} are not read: {error}",
                                self.service.0,
                                endpoint.address
                            );
                        }
                        if matches!(
                            error,
                            ScrapeError::Http(HttpError::NotHttp) | ScrapeError::Namespace(_)
                        ) {
                            self.silent.insert(endpoint);
                        }
                        break;
                    }
                }
            }
        }
        false
    }

    /// What an engine says, and when it was asked.
    fn read(
        &self,
        endpoint: Endpoint,
        path: &'static str,
        patience: Duration,
        news: &Sender<News>,
    ) -> Result<Option<(Timestamp, Reading)>, ScrapeError> {
        let asked = Timestamp::now();
        let answer = self.ask(endpoint, path, patience, news)?;
        Ok(Reading::of(&answer).map(|reading| (asked, reading)))
    }

    fn ask(
        &self,
        endpoint: Endpoint,
        path: &str,
        patience: Duration,
        news: &Sender<News>,
    ) -> Result<String, ScrapeError> {
        let connected = |connection| self.tell(news, News::Connected(connection));
        scrape::get(&endpoint, self.broker.as_deref(), path, patience, connected)
    }

    /// The engine's version; asked for once of each process.
    fn version(
        &mut self,
        endpoint: Endpoint,
        path: Option<&str>,
        news: &Sender<News>,
    ) -> Option<String> {
        if let Some((listener, version)) = &self.version
            && *listener == endpoint.listener
        {
            return version.clone();
        }
        let version = self.ask(endpoint, path?, PATIENCE, news).ok();
        let version = version.and_then(|text| {
            let object: serde_json::Value = serde_json::from_str(&text).ok()?;
            Some(object.get("version")?.as_str()?.to_owned())
        });
        self.version = Some((endpoint.listener, version.clone()));
        version
    }

    fn take(
        &mut self,
        endpoint: Endpoint,
        asked: Timestamp,
        reading: &Reading,
        last: bool,
        news: &Sender<News>,
    ) {
        let service = self.service;
        self.failures = 0;
        let at = Timestamp::now();
        let version = self.version(endpoint, reading.version_path, news);
        let info = EngineInfo {
            service,
            engine: reading.engine,
            counts: reading.counts,
            version,
            model: reading.model.clone(),
        };
        if self.info.as_ref() != Some(&info) {
            self.info = Some(info.clone());
            self.tell(news, News::Engine(info));
        }
        let step = self.counters.read(at, endpoint.listener, reading);
        self.resets = self.resets << 1 | u32::from(matches!(step, Step::Reset(_)));
        let (counted, whole) = match step {
            Step::Base(counted) => (counted, true),
            Step::Reset(counted) => {
                self.tell(news, News::Reset(service));
                if self.resets.count_ones() >= MOST_RESETS {
                    self.unusable = true;
                    self.lose(news);
                    return;
                }
                (counted, true)
            }
            Step::Added(counted) => (counted, false),
        };
        let load = EngineLoad {
            service,
            asked,
            answered: at,
            running: reading.running,
            waiting: reading.waiting,
        };
        self.tell(news, News::Load(load));
        if counted.input.is_none() && counted.output.is_none() {
            return;
        }
        let from = self.told.filter(|_| !whole).unwrap_or(counted.from);
        let still = counted.input.unwrap_or(0) == 0 && counted.output.unwrap_or(0) == 0;
        if !whole && still && !last && at.since(from) < QUIET {
            return;
        }
        self.told = Some(at);
        let delta = TokenDelta {
            service,
            from,
            to: at,
            input: counted.input,
            output: counted.output,
        };
        self.tell(news, News::Tokens(delta));
    }

    /// What was counted since the latest read.
    fn read_last(&mut self, news: &Sender<News>) {
        let Some((endpoint, path)) = self.place else {
            return;
        };
        if let Ok(Some((asked, reading))) = self.read(endpoint, path, PATIENCE, news) {
            self.take(endpoint, asked, &reading, true, news);
        }
    }

    fn tell(&self, news: &Sender<News>, what: News) {
        // Nobody listens at the very end only; the next look at the other channel shows it.
        let _ = news.send(what);
    }
}
