//! Both logs through the ledger, in order of time.
//!
//! Memory holds the requests that are in flight and the intervals that wait for them, and nothing
//! that grows with the logs.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::devices::Device;
use super::error::ReplayError;
use super::power::{PowerLog, Row};
use super::requests::{Logged, RequestLog};
use super::services::{DeviceSet, Services};
use super::timeline::{self, Told};
use crate::clock::Timestamp;
use crate::ids::Ids;
use crate::ledger::{
    Booked, BookedInterval, Config, Event, Ledger, Meter, MeterId, Reading, RequestId, ServiceId,
};
use crate::recording::{RecordedRequest, RecordingError};
use crate::units::Microjoules;

/// The ledger is asked to close what it can this often, in the logs' time …
const ADVANCE_EVERY: Duration = Duration::from_millis(100);
/// … and at least after so many facts.
const ADVANCE_AFTER: u32 = 1_000;
/// A log's first token is in the log: it is waited for as long as anybody waits for an answer.
const FIRST_TOKEN_HORIZON: Duration = Duration::from_secs(600);

/// Where what was booked goes.
pub(super) trait Sink {
    /// A service's first request comes.
    fn service(&mut self, id: ServiceId, name: &str) -> Result<(), RecordingError>;
    /// An interval is closed.
    fn interval(&mut self, interval: BookedInterval) -> Result<(), RecordingError>;
    /// A request is booked.
    fn request(&mut self, request: RecordedRequest) -> Result<(), RecordingError>;
}

/// One pass over both logs.
#[derive(Debug)]
pub(super) struct Pass<'a, S> {
    ledger: Ledger,
    devices: &'a [Device],
    /// Places of the devices.
    places: HashMap<&'a str, usize>,
    services: Services,
    /// Requests that are not booked yet, as the log tells them.
    open: Ids<RequestId, Told>,
    /// Their ids in the log, and where they stand.
    open_ids: HashMap<String, u64>,
    next: u64,
    /// Everything up to then has been told.
    until: Timestamp,
    advanced: Timestamp,
    facts: u32,
    whole: bool,
    booked: Vec<Booked>,
    sink: S,
}

impl<'a, S: Sink> Pass<'a, S> {
    /// `whole`: with each request's chunks; without them it is known when something was in
    /// flight, which is all that learning a floor takes.
    pub(super) fn new(devices: &'a [Device], meters: Vec<Meter>, whole: bool, sink: S) -> Self {
        let mut ledger = Ledger::new(Config {
            first_data_horizon: FIRST_TOKEN_HORIZON,
            source_patience: FIRST_TOKEN_HORIZON,
            requests: true,
            cpu: false,
            ..Config::default()
        });
        for meter in meters {
            ledger.add_meter(meter);
        }
        let names = devices.iter().map(|device| device.name.as_str());
        Self {
            ledger,
            devices,
            places: names.zip(0..).collect(),
            services: Services::default(),
            open: Ids::default(),
            open_ids: HashMap::new(),
            next: 0,
            until: Timestamp(0),
            advanced: Timestamp(0),
            facts: 0,
            whole,
            booked: Vec::new(),
            sink,
        }
    }

    /// Reads both logs to their ends.
    pub(super) fn run(mut self, power: &Path, requests: &Path) -> Result<(Ledger, S), ReplayError> {
        let mut power = PowerLog::open(power)?;
        let mut requests = RequestLog::open(requests)?;
        let mut row = power.next()?;
        let mut request = requests.next()?;
        loop {
            // A request that starts with a row is told first: then all up to the row is told.
            match (row.take(), request.take()) {
                (Some(first), Some(started)) if started.start <= first.at => {
                    row = Some(first);
                    self.take_request(started, &requests)?;
                    request = requests.next()?;
                }
                (Some(first), later) => {
                    request = later;
                    self.take_row(first)?;
                    row = power.next()?;
                }
                (None, Some(started)) => {
                    self.take_request(started, &requests)?;
                    request = requests.next()?;
                }
                (None, None) => break,
            }
        }
        let end = self.until.max(Timestamp(self.until.0.saturating_add(1)));
        self.ledger.apply(Event::RequestsUntil(end));
        let booked = self.ledger.finish(end);
        self.book(booked)?;
        Ok((self.ledger, self.sink))
    }

    fn take_row(&mut self, row: Row) -> Result<(), ReplayError> {
        self.ledger.apply(Event::Reading(Reading {
            meter: MeterId(row.device as u32),
            after: row.at,
            until: row.at,
            energy: row.energy,
        }));
        self.tell(row.at)
    }

    fn take_request(&mut self, logged: Logged, log: &RequestLog) -> Result<(), ReplayError> {
        // Others may start at the same moment.
        self.tell(Timestamp(logged.start.0.saturating_sub(1)))?;
        let devices = self.devices_of(&logged, log)?;
        if let Some(line) = self.open_ids.insert(logged.id.clone(), logged.line) {
            let cause = format!("request `{}` is in line {line} already", logged.id);
            return Err(log.error(logged.line, cause, "leave one line for each request"));
        }
        let (service, is_new) = self.services.of(&logged.service, devices);
        if is_new {
            self.sink.service(service, &logged.service)?;
            for holders in self.services.holders(self.devices.len(), logged.start) {
                self.ledger.apply(Event::Holders(holders));
            }
        }
        self.next += 1;
        let id = RequestId(self.next);
        let ledger = &mut self.ledger;
        let tell = |at, request| ledger.apply(Event::Request { at, request });
        let told = timeline::tell(id, service, logged, self.whole, tell);
        self.open.insert(id, told);
        Ok(())
    }

    fn devices_of(&self, logged: &Logged, log: &RequestLog) -> Result<DeviceSet, ReplayError> {
        let Some(names) = &logged.devices else {
            return Ok(None);
        };
        let mut places = Vec::with_capacity(names.len());
        for name in names {
            let Some(&place) = self.places.get(name.as_str()) else {
                let known: Vec<&str> = self.devices.iter().map(|d| d.name.as_str()).collect();
                let cause = format!(
                    "device `{name}` of request `{}` is not in the power log, which has {}",
                    logged.id,
                    known.join(", ")
                );
                let next = "name devices as the power log does, or leave `devices` out for all";
                return Err(log.error(logged.line, cause, next));
            };
            places.push(place);
        }
        places.sort_unstable();
        places.dedup();
        Ok(Some(places.into_boxed_slice()))
    }

    /// Everything up to `until` has been told.
    fn tell(&mut self, until: Timestamp) -> Result<(), ReplayError> {
        self.until = self.until.max(until);
        self.facts += 1;
        let due = self.until >= self.advanced.plus(ADVANCE_EVERY) || self.facts >= ADVANCE_AFTER;
        if !due {
            return Ok(());
        }
        self.facts = 0;
        self.advanced = self.until;
        self.ledger.apply(Event::RequestsUntil(self.until));
        let mut booked = std::mem::take(&mut self.booked);
        self.ledger.advance_into(self.until, |one| booked.push(one));
        self.book(booked)
    }

    fn book(&mut self, mut booked: Vec<Booked>) -> Result<(), ReplayError> {
        for booked in booked.drain(..) {
            match booked {
                Booked::Interval(interval) => self.sink.interval(without_owner(interval))?,
                Booked::Request(request) => {
                    let Some(told) = self.open.remove(&request.request.id) else {
                        continue;
                    };
                    self.open_ids.remove(&told.name);
                    self.sink.request(told.with(request))?;
                }
                // A log's counter never falls and has no limit to exceed.
                Booked::Hole { .. } => {}
            }
        }
        self.booked = booked;
        Ok(())
    }
}

/// A log does not say who holds a device while nothing is in flight.
fn without_owner(mut interval: BookedInterval) -> BookedInterval {
    let accounts = &mut interval.accounts;
    accounts.unattributed += accounts.overhead;
    accounts.unattributed += accounts.other;
    (accounts.overhead, accounts.other) = (Microjoules::ZERO, Microjoules::ZERO);
    interval.services.retain_mut(|share| {
        share.overhead = Microjoules::ZERO;
        share.requests > Microjoules::ZERO
    });
    interval
}
