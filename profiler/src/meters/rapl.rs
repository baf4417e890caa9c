//! CPU packages and their memory through RAPL's powercap files.
//!
//! Zones nest: psys ⊃ package ⊃ core and uncore, with DRAM outside the package. Only package and
//! dram are taken, so that the sum over meters counts nothing twice; `intel-rapl-mmio` shows the
//! same package a second time. `energy_uj` is readable by root alone (CVE-2020-8694) and wraps
//! at `max_energy_range_uj`, after minutes at full load.
//!
//! Source: kernel `Documentation/power/powercap/powercap.rst` and `drivers/powercap/`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::source::{Deaf, Feed, Health, Running, Stop};
use crate::clock::Timestamp;
use crate::ledger::{Component, Event, Meter, MeterId, Reading, Source};
use crate::units::{Microjoules, Watts};

/// The counter changes every millisecond; an interval of this length is fine enough for shares
/// of CPU time and cheap.
const EVERY: Duration = Duration::from_millis(250);
const STALE_AFTER: Duration = Duration::from_secs(2);
const GAIN_ERROR: f64 = 0.05;
/// No package draws more: what tells a wrap from a reset where the zone states no limit.
const LARGEST_PACKAGE: Watts = Watts(1_000.0);

/// Why RAPL cannot be read.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// No such hardware, or a virtual machine.
    #[error("no RAPL zones in {}", root.display())]
    Absent {
        /// Where zones would be.
        root: PathBuf,
    },
    /// Zones exist, and this process may not read them.
    #[error("no permission to read {}", file.display())]
    NoPermission {
        /// The file that was refused.
        file: PathBuf,
    },
    /// A zone's file is not what the kernel documents.
    #[error("{} cannot be read: {error}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Unavailable {
    fn reading(file: &Path, error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::PermissionDenied => Self::NoPermission { file: file.into() },
            _ => Self::Unreadable {
                file: file.into(),
                error,
            },
        }
    }

    /// What to do about it; `None` where nothing is wrong.
    pub fn fix(&self) -> Option<String> {
        match self {
            Self::Absent { .. } => None,
            Self::NoPermission { .. } => Some(
                "run as root or with CAP_DAC_READ_SEARCH (in a container: mount the host's /sys, \
                 the runtime hides powercap)"
                    .into(),
            ),
            Self::Unreadable { .. } => Some("see dmesg for intel_rapl messages".into()),
        }
    }
}

/// One zone's counter.
#[derive(Debug)]
pub struct Zone {
    component: Component,
    device: String,
    file: PathBuf,
    /// Where the counter wraps, microjoules.
    range: u64,
    limit: Option<Watts>,
}

/// The zones that are metered.
#[derive(Debug)]
pub struct Zones(Vec<Zone>);

impl Zones {
    /// Finds the package and dram zones under `root` (`/sys/class/powercap`) and reads each once.
    ///
    /// # Errors
    /// [`Unavailable`] with the reason.
    pub fn open(root: &Path) -> Result<Self, Unavailable> {
        let absent = || Unavailable::Absent { root: root.into() };
        let entries = fs::read_dir(root).map_err(|_| absent())?;
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("intel-rapl"))
            .collect();
        // `intel-rapl:…` sorts behind `intel-rapl-mmio:…`, and of the same zone it is preferred.
        names.sort_by_key(|name| (name.starts_with("intel-rapl-mmio"), name.clone()));
        let mut zones = BTreeMap::new();
        for name in &names {
            let Some((component, device)) = identify(root, name) else {
                continue;
            };
            if zones.contains_key(&device) {
                continue;
            }
            let zone = Zone::open(&root.join(name), component, device.clone())?;
            zones.insert(device, zone);
        }
        if zones.is_empty() {
            Err(absent())
        } else {
            Ok(Self(zones.into_values().collect()))
        }
    }

    /// The zones' meters.
    pub fn meters(&self) -> Vec<Meter> {
        self.0.iter().map(Zone::meter).collect()
    }

    /// Starts the thread. `meters` are the ids of [`Self::meters`], in its order.
    pub(super) fn start(
        self,
        meters: &[MeterId],
        running: &mut Running,
        feed: Feed,
    ) -> io::Result<()> {
        let counters: Vec<(Counter, MeterId)> = self
            .0
            .into_iter()
            .map(Counter::new)
            .zip(meters.iter().copied())
            .collect();
        running.spawn("rapl", move |stop| {
            // Nobody listens any more: the agent has gone, and so may this thread.
            let _ = run(counters, &feed, &stop);
        })
    }
}

/// What a zone measures and its stable name, from its `name` and its parent's; `None` for zones
/// that are not metered.
fn identify(root: &Path, directory: &str) -> Option<(Component, String)> {
    let name = read_text(&root.join(directory).join("name")).ok()?;
    if name.starts_with("package") {
        return Some((Component::Cpu, name));
    }
    if name != "dram" {
        return None;
    }
    let (parent, _) = directory.rsplit_once(':')?;
    let package = read_text(&root.join(parent).join("name")).ok()?;
    let suffix = package.strip_prefix("package")?;
    Some((Component::Dram, format!("dram{suffix}")))
}

impl Zone {
    fn open(directory: &Path, component: Component, device: String) -> Result<Self, Unavailable> {
        let file = directory.join("energy_uj");
        let range_file = directory.join("max_energy_range_uj");
        read_number(&file).map_err(|error| Unavailable::reading(&file, error))?;
        let range =
            read_number(&range_file).map_err(|error| Unavailable::reading(&range_file, error))?;
        // The highest of the long-term, short-term and peak limits. A zone without them, or with
        // limits that are plainly unset, has none.
        let limit = (0..3)
            .flat_map(|index| {
                ["max_power_uw", "power_limit_uw"]
                    .map(|kind| directory.join(format!("constraint_{index}_{kind}")))
            })
            .filter_map(|file| read_number(&file).ok())
            .map(|microwatts| Watts(microwatts as f64 * 1e-6))
            .filter(|limit| limit.0 >= 5.0 && limit.0 < LARGEST_PACKAGE.0)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Self {
            component,
            device,
            file,
            range,
            limit,
        })
    }

    fn meter(&self) -> Meter {
        Meter {
            component: self.component,
            device: self.device.clone(),
            source: Source::Counter,
            limit: self.limit,
            tick: EVERY.as_nanos() as u64,
            stale_after: STALE_AFTER.as_nanos() as u64,
            gain_error_ratio: GAIN_ERROR,
            idle: None,
        }
    }
}

/// A zone's counter without its wraps.
#[derive(Debug)]
struct Counter {
    zone: Zone,
    open: Option<File>,
    last: Option<(Timestamp, u64)>,
    energy: Microjoules,
}

impl Counter {
    fn new(zone: Zone) -> Self {
        Self {
            zone,
            open: None,
            last: None,
            energy: Microjoules::ZERO,
        }
    }

    fn read(&mut self) -> io::Result<u64> {
        let mut file = match self.open.take() {
            Some(file) => file,
            None => File::open(&self.zone.file)?,
        };
        file.rewind()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let value = parse_number(&text)?;
        self.open = Some(file);
        Ok(value)
    }

    /// Adds what the counter gained since the last read. Where it may have wrapped more than
    /// once it starts again from zero: the ledger takes that for a new epoch.
    fn take(&mut self, at: Timestamp, raw: u64) -> Microjoules {
        let Some((before, old)) = self.last.replace((at, raw)) else {
            return self.energy;
        };
        let most = self.zone.limit.unwrap_or(LARGEST_PACKAGE);
        if most.over(at.since(before)).0 >= self.zone.range {
            self.energy = Microjoules::ZERO;
        } else {
            let gained = match raw.checked_sub(old) {
                Some(gained) => gained,
                None => self.zone.range.saturating_sub(old).saturating_add(raw),
            };
            self.energy += Microjoules(gained);
        }
        self.energy
    }
}

fn run(mut counters: Vec<(Counter, MeterId)>, feed: &Feed, stop: &Stop) -> Result<(), Deaf> {
    let mut health = Health::new("rapl");
    let mut next = Timestamp::now();
    loop {
        let mut failure = None;
        for (counter, meter) in &mut counters {
            let start = Timestamp::now();
            let read = counter.read();
            let end = Timestamp::now();
            health.called(start, end, read.is_ok());
            match read {
                Ok(raw) => {
                    let energy = counter.take(end, raw);
                    feed.event(Event::Reading(Reading {
                        meter: *meter,
                        after: start,
                        until: end,
                        energy,
                    }))?;
                }
                Err(error) => {
                    let file = counter.zone.file.display();
                    failure = Some(format!("{file}: {error}"));
                }
            }
        }
        health.is(failure);
        feed.health(&mut health)?;
        next = next.plus(EVERY).max(Timestamp::now());
        if stop.wait_until(next) {
            return Ok(());
        }
    }
}

fn read_text(file: &Path) -> io::Result<String> {
    fs::read_to_string(file).map(|text| text.trim().to_owned())
}

fn read_number(file: &Path) -> io::Result<u64> {
    parse_number(&fs::read_to_string(file)?)
}

fn parse_number(text: &str) -> io::Result<u64> {
    text.trim()
        .parse()
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests;
