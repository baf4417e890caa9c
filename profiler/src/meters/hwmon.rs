//! The machine's own power sensors in the kernel's hwmon class.
//!
//! Known drivers alone: hwmon also shows the power of single voltage regulators, disks and network
//! cards, and nothing in a file's name says of what.
//! - `power_meter`, the ACPI power meter. What it measures stands in `power1_oem_info` on NVIDIA's
//!   Grace: `Module` (CPU and GPU together), `Grace` (the CPU's socket with its memory), `CPU` and
//!   `SysIO` (rails inside it). Without such a text it is the whole machine.
//! - `aem1`, IBM's energy counter of the whole machine.
//!
//! The machine and a Grace module are node meters. A Grace socket is the machine's *cpu* meter,
//! as Grace has no RAPL; its rails are parts of it and stand in only where it is missing.
//!
//! Source: kernel `drivers/hwmon/acpi_power_meter.c`, `ibmaem.c`,
//! `Documentation/hwmon/sysfs-interface.rst`; NVIDIA Grace Performance Tuning Guide, "Power
//! Telemetry". Older kernels show the ACPI meter's files in its device's directory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::News;
use super::integrate::Integrator;
use super::node::NodeMeter;
use super::source::{Deaf, Feed, Health, Running, Stop};
use crate::clock::Timestamp;
use crate::ledger::{Component, Event, Meter, MeterId, Reading, Source};
use crate::units::{Microjoules, Watts};

/// Between two reads where a CPU's meter is among the sensors.
const EVERY: Duration = Duration::from_millis(250);
/// Between two reads of the machine's power, which may take the firmware a while.
const NODE_EVERY: Duration = Duration::from_secs(1);
const STALE_AFTER: Duration = Duration::from_secs(2);
/// Node readings further apart are not joined.
const NODE_LONGEST: Duration = Duration::from_secs(5);
/// A sensor's error, unless it states a larger one itself.
const GAIN_ERROR: f64 = 0.05;
/// The error of one that states none.
const UNSTATED_GAIN_ERROR: f64 = 0.1;
/// No socket draws more: a reading beyond it is refused.
const LARGEST_SOCKET: Watts = Watts(1_000.0);
/// Channels a driver may have.
const CHANNELS: std::ops::RangeInclusive<u32> = 1..=8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    /// Microwatts.
    Power,
    /// Microjoules since some start.
    Energy,
}

/// One file to read.
#[derive(Debug)]
struct Sensor {
    file: PathBuf,
    quantity: Quantity,
    device: String,
    gain_error_ratio: f64,
}

/// The sensors that are read.
#[derive(Debug)]
pub struct Sensors {
    cpus: Vec<Sensor>,
    nodes: Vec<Sensor>,
}

/// What an ACPI power meter measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Domain {
    Machine,
    Module(u32),
    Grace(u32),
    CpuRail(u32),
    Part,
}

impl Domain {
    /// From `power1_oem_info`.
    fn of(text: &str) -> Self {
        let text = text.trim().to_ascii_lowercase();
        let Some((kind, socket)) = text.split_once(" power socket ") else {
            return Self::Machine;
        };
        match (kind, socket.trim().parse()) {
            ("module", Ok(socket)) => Self::Module(socket),
            ("grace", Ok(socket)) => Self::Grace(socket),
            ("cpu", Ok(socket)) => Self::CpuRail(socket),
            _ => Self::Part,
        }
    }
}

impl Sensors {
    /// Finds the sensors under `root` (`/sys/class/hwmon`) that answer. `None` if there is none.
    pub fn open(root: &Path) -> Option<Self> {
        let mut found: Vec<(Domain, Sensor)> = directories(root)
            .iter()
            .flat_map(|directory| sensors(directory))
            .filter(|(_, sensor)| sensor.read().is_ok())
            .collect();
        found.sort_by_key(|(domain, _)| *domain);
        let sockets: Vec<u32> = found
            .iter()
            .filter_map(|(domain, _)| match domain {
                Domain::Grace(socket) => Some(*socket),
                _ => None,
            })
            .collect();
        let mut cpus = BTreeMap::new();
        let mut nodes: Vec<Sensor> = Vec::new();
        for (domain, mut sensor) in found {
            match domain {
                Domain::Grace(socket) => sensor.device = format!("grace-{socket}"),
                Domain::CpuRail(socket) => sensor.device = format!("cpu-rail-{socket}"),
                Domain::Module(socket) => sensor.device = format!("module-{socket}"),
                Domain::Machine => {
                    let alike = nodes
                        .iter()
                        .filter(|node| node.device.starts_with(&sensor.device));
                    sensor.device = format!("{}-{}", sensor.device, alike.count());
                }
                Domain::Part => continue,
            }
            match domain {
                Domain::CpuRail(socket) if sockets.contains(&socket) => {}
                Domain::Grace(_) | Domain::CpuRail(_) => {
                    cpus.entry(sensor.device.clone()).or_insert(sensor);
                }
                _ => nodes.push(sensor),
            }
        }
        let cpus: Vec<Sensor> = cpus.into_values().collect();
        (!cpus.is_empty() || !nodes.is_empty()).then_some(Self { cpus, nodes })
    }

    /// Leaves the CPUs to a better meter, or to one that already holds their energy.
    pub fn without_cpus(mut self) -> Option<Self> {
        self.cpus.clear();
        (!self.nodes.is_empty()).then_some(self)
    }

    /// The CPUs' meters.
    pub fn meters(&self) -> Vec<Meter> {
        self.cpus.iter().map(Sensor::meter).collect()
    }

    /// The node meters' names.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|sensor| sensor.device.as_str())
    }

    /// Starts the thread. `meters` are the ids of [`Self::meters`], in its order.
    pub(super) fn start(
        self,
        meters: &[MeterId],
        running: &mut Running,
        feed: Feed,
    ) -> io::Result<()> {
        let meters = meters.to_vec();
        running.spawn("hwmon", move |stop| {
            // Nobody listens any more: the agent has gone, and so may this thread.
            let _ = self.run(&meters, &feed, &stop);
        })
    }

    fn run(self, meters: &[MeterId], feed: &Feed, stop: &Stop) -> Result<(), Deaf> {
        let every = if self.cpus.is_empty() {
            NODE_EVERY
        } else {
            EVERY
        };
        let mut health = Health::new("hwmon");
        let mut cpus: Vec<_> = self
            .cpus
            .iter()
            .zip(meters)
            .map(|(sensor, meter)| (sensor, *meter, Integrator::new(STALE_AFTER)))
            .collect();
        let mut nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|sensor| {
                let gain = sensor.gain_error_ratio;
                (sensor, NodeMeter::new(&sensor.device, NODE_LONGEST, gain))
            })
            .collect();
        let mut next = Timestamp::now();
        let mut nodes_next = next;
        let mut node_failure = None;
        loop {
            let mut failure = None;
            for (sensor, meter, integrator) in &mut cpus {
                match sensor.ask(&mut health) {
                    Ok((after, until, value)) => {
                        let energy = integrator.add(until, Watts(value as f64 * 1e-6));
                        feed.event(Event::Reading(Reading {
                            meter: *meter,
                            after,
                            until,
                            energy,
                        }))?;
                    }
                    Err(error) => failure = Some(error),
                }
            }
            if Timestamp::now() >= nodes_next {
                nodes_next = nodes_next.plus(NODE_EVERY).max(Timestamp::now());
                node_failure = None;
                for (sensor, meter) in &mut nodes {
                    match sensor.ask(&mut health) {
                        Ok((_, at, value)) => feed.news(News::Node(match sensor.quantity {
                            Quantity::Power => meter.power(at, Watts(value as f64 * 1e-6)),
                            Quantity::Energy => meter.counter(at, Microjoules(value)),
                        }))?,
                        Err(error) => node_failure = Some(error),
                    }
                }
            }
            health.is(failure.or_else(|| node_failure.clone()));
            feed.health(&mut health)?;
            next = next.plus(every).max(Timestamp::now());
            if stop.wait_until(next) {
                return Ok(());
            }
        }
    }
}

/// The class's directories, in the order of what they stand for: their numbers change from one
/// start of the machine to the next.
fn directories(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let mut directories: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    directories.sort_by_cached_key(|directory| {
        let device = fs::read_link(directory.join("device")).unwrap_or_default();
        (device, directory.clone())
    });
    directories
}

/// What one directory of the class shows.
fn sensors(directory: &Path) -> Vec<(Domain, Sensor)> {
    let beside = directory.join("device");
    let text = |file: String| {
        [directory, beside.as_path()]
            .iter()
            .find_map(|place| fs::read_to_string(place.join(&file)).ok())
            .map(|text| text.trim().to_owned())
    };
    let existing = |file: String| {
        [directory, beside.as_path()]
            .iter()
            .map(|place| place.join(&file))
            .find(|path| path.exists())
    };
    let mut found = Vec::new();
    match text("name".into()).as_deref() {
        Some("power_meter") => {
            for channel in CHANNELS {
                let file = existing(format!("power{channel}_average"))
                    .or_else(|| existing(format!("power{channel}_input")));
                let battery = text(format!("power{channel}_is_battery"));
                let Some(file) = file.filter(|_| battery.as_deref() != Some("1")) else {
                    continue;
                };
                let domain = text(format!("power{channel}_oem_info")).unwrap_or_default();
                let sensor = Sensor {
                    file,
                    quantity: Quantity::Power,
                    device: "acpi".into(),
                    gain_error_ratio: gain_error(text(format!("power{channel}_accuracy"))),
                };
                found.push((Domain::of(&domain), sensor));
            }
        }
        Some("aem1") => found.extend(existing("energy1_input".into()).map(|file| {
            let sensor = Sensor {
                file,
                quantity: Quantity::Energy,
                device: "aem".into(),
                gain_error_ratio: UNSTATED_GAIN_ERROR,
            };
            (Domain::Machine, sensor)
        })),
        _ => {}
    }
    found
}

/// From `power1_accuracy`, in percent: firmware that calls itself exact is not believed.
fn gain_error(accuracy: Option<String>) -> f64 {
    accuracy
        .and_then(|text| text.trim_end_matches('%').parse::<f64>().ok())
        .filter(|percent| *percent >= 50.0 && *percent <= 100.0)
        .map_or(UNSTATED_GAIN_ERROR, |percent| {
            ((100.0 - percent) / 100.0).max(GAIN_ERROR)
        })
}

impl Sensor {
    /// Microwatts or microjoules. A machine that runs does not draw 0: a sensor that says so does
    /// not know.
    fn read(&self) -> io::Result<u64> {
        let text = fs::read_to_string(&self.file)?;
        match text.trim().parse() {
            Ok(0) if self.quantity == Quantity::Power => {
                Err(io::Error::new(ErrorKind::InvalidData, "it shows 0 W"))
            }
            Ok(value) => Ok(value),
            Err(error) => Err(io::Error::new(ErrorKind::InvalidData, error)),
        }
    }

    /// Reads it, and when: between the two moments.
    fn ask(&self, health: &mut Health) -> Result<(Timestamp, Timestamp, u64), String> {
        let after = Timestamp::now();
        let read = self.read();
        let until = Timestamp::now();
        health.called(after, until, read.is_ok());
        read.map(|value| (after, until, value))
            .map_err(|error| format!("{}: {error}", self.file.display()))
    }

    fn meter(&self) -> Meter {
        Meter {
            component: Component::Cpu,
            device: self.device.clone(),
            source: Source::Integrated,
            limit: Some(LARGEST_SOCKET),
            tick: EVERY.as_nanos() as u64,
            stale_after: STALE_AFTER.as_nanos() as u64,
            gain_error_ratio: self.gain_error_ratio,
            idle: None,
        }
    }
}

#[cfg(test)]
mod tests;
