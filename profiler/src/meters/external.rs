//! A power meter outside the machine, such as a socket of a PDU: a node meter that the user names.
//!
//! In: a URL or a file whose text holds watts. Out: a reading a second.

use std::fmt;
use std::fs;
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use thiserror::Error;

use super::News;
use super::node::NodeMeter;
use super::source::{Deaf, Feed, Health, Running, Stop};
use crate::clock::Timestamp;
use crate::exposition::{Sample, samples};
use crate::http::{self, HttpError};
use crate::units::Watts;

const EVERY: Duration = Duration::from_secs(1);
/// How long one reading may take.
const PATIENCE: Duration = Duration::from_secs(2);
const SHORTEST: Duration = Duration::from_millis(1);
/// Readings further apart are not joined.
const LONGEST: Duration = Duration::from_secs(10);
/// Billing meters are better, and PDUs' data sheets say 1 to 5 %.
const GAIN_ERROR: f64 = 0.05;
const DEVICE: &str = "external";
/// No node draws more.
const LARGEST: f64 = 1e6;

/// Where a node's power can be read: `http://host[:port]/path`, or a file's path. The first number
/// in the text is taken, or with `#name` or `#name{label="value"}` behind it the Prometheus sample
/// of that name and these labels.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NodePower {
    place: Place,
    sample: Option<Selector>,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Url { host: String, path: String },
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Selector {
    name: String,
    labels: Vec<(String, String)>,
}

/// Why a place is not understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseNodePowerError {
    /// TLS.
    #[error("`{0}`: only plain http:// is read; let something on the node's network unwrap TLS")]
    Https(String),
    /// No host.
    #[error("`{0}` names no host")]
    NoHost(String),
    /// What stands behind `#`.
    #[error("`{0}`: `#` is followed by a metric's name, and labels as name{{label=\"value\"}}")]
    Selector(String),
    /// Nothing.
    #[error("empty; give a URL or a file")]
    Empty,
}

/// Why there is no reading.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file.
    #[error("{0}")]
    File(io::Error),
    /// The host is not known, or takes no connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The answer.
    #[error("{0}")]
    Http(String),
    /// No number at all.
    #[error("no number in it")]
    NoNumber,
    /// The metric is missing.
    #[error("no sample {0}")]
    NoSample(String),
    /// The metric has several.
    #[error("{0} samples {1}; say which by its labels")]
    Several(usize, String),
    /// Not a power.
    #[error("{0} is no power in watts")]
    NotWatts(f64),
}

impl FromStr for NodePower {
    type Err = ParseNodePowerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || text.to_owned();
        let (place, sample) = match text.split_once('#') {
            Some((place, sample)) => {
                let selector = Selector::parse(sample)
                    .ok_or_else(|| ParseNodePowerError::Selector(wrong()))?;
                (place, Some(selector))
            }
            None => (text, None),
        };
        if place.starts_with("https://") {
            return Err(ParseNodePowerError::Https(wrong()));
        }
        let place = match place.strip_prefix("http://") {
            Some(rest) => {
                let (host, path) = match rest.find(['/', '?']) {
                    Some(at) => rest.split_at(at),
                    None => (rest, ""),
                };
                let path = if path.starts_with('/') {
                    path.to_owned()
                } else {
                    format!("/{path}")
                };
                if host.is_empty() || host.contains(['@', ' ']) || path.contains(' ') {
                    return Err(ParseNodePowerError::NoHost(wrong()));
                }
                let host = host.to_owned();
                Place::Url { host, path }
            }
            None if place.is_empty() => return Err(ParseNodePowerError::Empty),
            None => Place::File(place.into()),
        };
        Ok(Self {
            place,
            sample,
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for NodePower {
    type Error = ParseNodePowerError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for NodePower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Selector {
    /// What stands behind `#` is a sample but for its value.
    fn parse(text: &str) -> Option<Self> {
        let line = format!("{text} 0");
        let mut found = samples(&line);
        let sample = found.next()?;
        let labels = sample
            .labels
            .pairs()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Some(Self {
            name: sample.name.to_owned(),
            labels,
        })
        .filter(|_| found.next().is_none())
    }

    fn takes(&self, sample: &Sample<'_>) -> bool {
        sample.name == self.name
            && self
                .labels
                .iter()
                .all(|(name, value)| sample.labels.get(name).as_ref() == Some(value))
    }
}

impl NodePower {
    /// Reads it once; takes two seconds and a look-up of the host's name at most.
    ///
    /// # Errors
    /// [`ReadError`] with the reason.
    pub fn read(&self) -> Result<Watts, ReadError> {
        let text = match &self.place {
            Place::File(file) => fs::read_to_string(file).map_err(ReadError::File)?,
            Place::Url { host, path } => get(host, path)?,
        };
        let number = match &self.sample {
            None => first_number(&text).ok_or(ReadError::NoNumber)?,
            Some(selector) => {
                let values: Vec<f64> = samples(&text)
                    .filter(|sample| selector.takes(sample))
                    .map(|sample| sample.value)
                    .collect();
                match values[..] {
                    [value] => value,
                    [] => return Err(ReadError::NoSample(selector.name.clone())),
                    _ => return Err(ReadError::Several(values.len(), selector.name.clone())),
                }
            }
        };
        // A machine that runs does not draw 0.
        if number > 0.0 && number <= LARGEST {
            Ok(Watts(number))
        } else {
            Err(ReadError::NotWatts(number))
        }
    }

    /// Starts the thread.
    pub(super) fn start(self, running: &mut Running, feed: Feed) -> io::Result<()> {
        running.spawn("external", move |stop| {
            // Nobody listens any more: the agent has gone, and so may this thread.
            let _ = self.run(&feed, &stop);
        })
    }

    fn run(&self, feed: &Feed, stop: &Stop) -> Result<(), Deaf> {
        let mut health = Health::new("external");
        let mut meter = NodeMeter::new(DEVICE, LONGEST, GAIN_ERROR);
        let mut next = Timestamp::now();
        loop {
            let start = Timestamp::now();
            let read = self.read();
            let end = Timestamp::now();
            health.called(start, end, read.is_ok());
            match read {
                Ok(power) => {
                    feed.news(News::Node(meter.power(end, power)))?;
                    health.is(None);
                }
                Err(error) => health.is(Some(format!("{self}: {error}"))),
            }
            feed.health(&mut health)?;
            next = next.plus(EVERY).max(Timestamp::now());
            if stop.wait_until(next) {
                return Ok(());
            }
        }
    }
}

fn get(host: &str, path: &str) -> Result<String, ReadError> {
    let deadline = Instant::now() + PATIENCE;
    let with_port = if host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
    {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let addresses = with_port.to_socket_addrs().map_err(ReadError::Connect)?;
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        // No time at all is an error of the caller's.
        let left = deadline.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(&address, left.max(SHORTEST)) {
            Ok(stream) => {
                return http::get(stream, host, path, deadline)
                    .map_err(|error: HttpError| ReadError::Http(error.to_string()));
            }
            Err(error) => refused = error,
        }
    }
    Err(ReadError::Connect(refused))
}

/// The first number that is not part of a word.
fn first_number(text: &str) -> Option<f64> {
    text.split(|c: char| !(c.is_alphanumeric() || "+-._".contains(c)))
        .find_map(|word| word.parse().ok().filter(|number: &f64| number.is_finite()))
}

#[cfg(test)]
mod tests;
