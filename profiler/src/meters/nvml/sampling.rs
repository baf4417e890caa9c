//! The thread that follows the boards' counters.
//!
//! In: boards. Out: a `Reading` for every change seen, power beside it, and the source's health.
//! A board that is lost is looked for again, ever more rarely; the others go on.

use std::ffi::OsStr;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::board::Sample;
use super::roster::Roster;
use super::{Board, NOMINAL_TICK, STALE_AFTER, library};
use crate::clock::Timestamp;
use crate::ledger::{Event, MeterId, PowerSample, Reading};
use crate::meters::News;
use crate::meters::follow::{Edge, Follower};
use crate::meters::integrate::Integrator;
use crate::meters::source::{Deaf, Feed, Health, Stop};
use crate::units::Watts;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// When every board has failed for so long, the driver itself is opened anew.
const REOPEN_AFTER: Duration = Duration::from_secs(3);
/// How often the rate of calls is adapted to their latency.
const PACE_EVERY: Duration = Duration::from_secs(10);
/// Calls slower than this take the driver's lock from the server too long.
const SLOW_CALL: Duration = Duration::from_millis(5);
/// In a call that took longer the counter may have been looked at at any moment: it is asked again.
const LONG_CALL: Duration = NOMINAL_TICK;
/// Where there is no board, one that comes later is looked for as often.
const EMPTY_WAIT: Duration = Duration::from_millis(500);

/// Boards that can be read by their place in a list.
trait Boards {
    /// Reads board `index`.
    fn sample(&mut self, index: usize) -> Result<Sample, NvmlError>;
    /// Looks board `index` up again, after it was lost.
    fn find(&mut self, index: usize);
    /// Boards that are metered from now on, at the next places of the list.
    fn join(&mut self) -> Vec<Channel>;
}

/// How a board's energy is made.
#[derive(Debug)]
enum Method {
    Follow(Follower),
    Integrate(Integrator),
}

/// What is kept of each board between reads.
#[derive(Debug)]
struct Channel {
    meter: MeterId,
    uuid: String,
    method: Method,
    /// Its power is the present one, not an average.
    instant: bool,
    next: Timestamp,
    /// What the last call showed was not taken, for it took too long.
    doubted: bool,
    failing: Option<Failing>,
}

/// A board that does not answer.
#[derive(Debug, Clone)]
struct Failing {
    since: Timestamp,
    retry: Duration,
    error: String,
}

/// Why [`drive`] came back.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The agent stops.
    Stopped,
    /// No board answers any more.
    Lost,
}

impl From<Deaf> for Ended {
    fn from(_: Deaf) -> Self {
        Self::Stopped
    }
}

/// The thread's body: follows all boards until it is stopped.
pub(super) fn run(nvml: Nvml, library: &OsStr, roster: &Roster, feed: &Feed, stop: &Stop) {
    let mut boards: Vec<(Board, MeterId)> = Vec::new();
    let mut channels: Vec<Channel> = Vec::new();
    let mut health = Health::new("nvml");
    let mut session = Some(nvml);
    let mut retry = FIRST_RETRY;
    loop {
        match session.take().map_or_else(|| library::open(library), Ok) {
            Ok(nvml) => {
                let known = boards.len();
                let mut found = Found {
                    nvml: &nvml,
                    roster,
                    boards: &mut boards,
                    devices: Vec::new(),
                };
                (0..known).for_each(|index| found.find(index));
                // Retries that were planned for the old session are due now.
                let now = Timestamp::now();
                channels
                    .iter_mut()
                    .for_each(|channel| channel.next = channel.next.min(now));
                let answered = health.last_at();
                if drive(&mut found, &mut channels, &mut health, feed, stop) == Ended::Stopped {
                    return;
                }
                if answered != health.last_at() {
                    retry = FIRST_RETRY;
                }
            }
            Err(error) => health.down(error.to_string()),
        }
        retry = (retry * 2).min(LAST_RETRY);
        if feed.health(&mut health).is_err() || stop.wait_until(Timestamp::now().plus(retry)) {
            return;
        }
    }
}

/// The boards of an open driver, by UUID.
struct Found<'a, 'n> {
    nvml: &'n Nvml,
    roster: &'a Roster,
    boards: &'a mut Vec<(Board, MeterId)>,
    devices: Vec<Option<Device<'n>>>,
}

impl Boards for Found<'_, '_> {
    fn sample(&mut self, index: usize) -> Result<Sample, NvmlError> {
        let device = self.devices.get(index).and_then(Option::as_ref);
        match (self.boards.get(index), device) {
            (Some((board, _)), Some(device)) => board.read(device),
            // Not among the driver's devices any more.
            _ => Err(NvmlError::GpuLost),
        }
    }

    fn find(&mut self, index: usize) {
        if self.devices.len() <= index {
            self.devices.resize_with(index + 1, || None);
        }
        if let (Some(slot), Some((board, _))) =
            (self.devices.get_mut(index), self.boards.get(index))
        {
            *slot = find_device(self.nvml, &board.uuid);
        }
    }

    fn join(&mut self) -> Vec<Channel> {
        let new = self.roster.from(self.boards.len());
        let now = Timestamp::now();
        let mut channels = Vec::new();
        for (board, meter) in new {
            channels.push(Channel::new(&board, meter, now));
            self.boards.push((board, meter));
            self.find(self.boards.len() - 1);
        }
        channels
    }
}

/// The device with this UUID: indices change when a board falls off the bus.
pub(super) fn find_device<'n>(nvml: &'n Nvml, uuid: &str) -> Option<Device<'n>> {
    let count = nvml.device_count().ok()?;
    (0..count)
        .filter_map(|index| nvml.device_by_index(index).ok())
        .find(|device| device.uuid().is_ok_and(|found| found == uuid))
}

impl Channel {
    fn new(board: &Board, meter: MeterId, now: Timestamp) -> Self {
        let method = if board.has_counter() {
            Method::Follow(Follower::new(now))
        } else {
            Method::Integrate(Integrator::new(STALE_AFTER))
        };
        Self {
            meter,
            uuid: board.uuid.clone(),
            method,
            instant: board.has_instant_power(),
            next: now,
            doubted: false,
            failing: None,
        }
    }

    /// Takes a read; returns what is to be told.
    fn take(
        &mut self,
        start: Timestamp,
        end: Timestamp,
        sample: Sample,
        strain: u32,
    ) -> Option<Reading> {
        self.failing = None;
        // Where every call is that slow, each second one must do.
        self.doubted = !self.doubted && end.since(start) > LONG_CALL.as_nanos() as u64;
        if self.doubted {
            self.next = end;
            return None;
        }
        let Edge {
            after,
            until,
            energy,
        } = match &mut self.method {
            Method::Follow(follower) => {
                follower.set_strain(strain);
                let edge = sample
                    .energy
                    .and_then(|energy| follower.observe(start, end, energy));
                self.next = follower.next_read();
                edge?
            }
            Method::Integrate(integrator) => {
                self.next = start.plus(NOMINAL_TICK * strain);
                let middle = Timestamp(start.0 + end.since(start) / 2);
                let energy = integrator.add(middle, sample.power?);
                Edge {
                    after: start,
                    until: end,
                    energy,
                }
            }
        };
        Some(Reading {
            meter: self.meter,
            after,
            until,
            energy,
        })
    }

    /// At rest not every change of the counter is followed.
    fn set_rest(&mut self, rests: bool) {
        if let Method::Follow(follower) = &mut self.method {
            follower.set_rest(rests);
        }
    }

    fn fail(&mut self, now: Timestamp, error: &NvmlError) {
        let (since, retry) = match &self.failing {
            None => (now, FIRST_RETRY),
            Some(failing) => (failing.since, (failing.retry * 2).min(LAST_RETRY)),
        };
        let error = format!("{}: {error}", self.uuid);
        self.failing = Some(Failing {
            since,
            retry,
            error,
        });
        self.next = now.plus(retry);
    }
}

/// Adapts the rate of calls to how long they take: twice as rare whenever the 99th percentile of
/// ten seconds is above 5 ms, back again when it is below half of that.
#[derive(Debug)]
struct Pace {
    since: Timestamp,
    latencies: Vec<u64>,
    strain: u32,
}

impl Pace {
    fn new(now: Timestamp) -> Self {
        Self {
            since: now,
            latencies: Vec::new(),
            strain: 1,
        }
    }

    fn called(&mut self, start: Timestamp, end: Timestamp) {
        self.latencies.push(end.since(start));
        if end < self.since.plus(PACE_EVERY) {
            return;
        }
        self.latencies.sort_unstable();
        let place = self.latencies.len().saturating_sub(1) as f64 * 0.99;
        let p99 = self
            .latencies
            .get(place.floor() as usize)
            .copied()
            .unwrap_or(0);
        let slow = SLOW_CALL.as_nanos() as u64;
        if p99 > slow {
            self.strain = (self.strain * 2).min(16);
        } else if p99 < slow / 2 {
            self.strain = (self.strain / 2).max(1);
        }
        self.latencies.clear();
        self.since = end;
    }
}

fn drive(
    boards: &mut impl Boards,
    channels: &mut Vec<Channel>,
    health: &mut Health,
    feed: &Feed,
    stop: &Stop,
) -> Ended {
    match try_drive(boards, channels, health, feed, stop) {
        Ok(ended) => ended,
        Err(deaf) => deaf.into(),
    }
}

fn try_drive(
    boards: &mut impl Boards,
    channels: &mut Vec<Channel>,
    health: &mut Health,
    feed: &Feed,
    stop: &Stop,
) -> Result<Ended, Deaf> {
    let mut pace = Pace::new(Timestamp::now());
    loop {
        channels.extend(boards.join());
        let soonest = channels
            .iter_mut()
            .enumerate()
            .min_by_key(|(_, channel)| channel.next);
        let Some((index, channel)) = soonest else {
            if stop.wait_until(Timestamp::now().plus(EMPTY_WAIT)) {
                return Ok(Ended::Stopped);
            }
            continue;
        };
        if stop.wait_until(channel.next) {
            return Ok(Ended::Stopped);
        }
        if channel.failing.is_some() {
            boards.find(index);
        }
        let start = Timestamp::now();
        let read = boards.sample(index);
        let end = Timestamp::now();
        pace.called(start, end);
        health.called(start, end, read.is_ok());
        match read {
            Ok(sample) => {
                channel.set_rest(stop.rests());
                let reading = channel.take(start, end, sample, pace.strain);
                tell(channel.meter, channel.instant, reading, sample.power, feed)?;
            }
            Err(error) => channel.fail(end, &error),
        }
        let failing = || {
            channels
                .iter()
                .filter_map(|channel| channel.failing.as_ref())
        };
        health.is(failing().next().map(|failing| failing.error.clone()));
        let lost = failing()
            .filter(|failing| end > failing.since.plus(REOPEN_AFTER))
            .count();
        if lost == channels.len() {
            return Ok(Ended::Lost);
        }
        feed.health(health)?;
    }
}

/// Tells what a read showed: the change, if it was one, and the power beside it.
fn tell(
    meter: MeterId,
    instant: bool,
    reading: Option<Reading>,
    power: Option<Watts>,
    feed: &Feed,
) -> Result<(), Deaf> {
    let Some(reading) = reading else {
        return Ok(());
    };
    feed.event(Event::Reading(reading))?;
    match power {
        Some(power) => {
            let sample = PowerSample {
                meter,
                at: reading.until,
                power,
            };
            feed.news(News::Power { sample, instant })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
