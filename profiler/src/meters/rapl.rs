//! CPU packages and their memory through RAPL: by the kernel's powercap files, else by its perf
//! events, whichever can be read.
//!
//! Zones nest: psys ⊃ package ⊃ core and uncore, with DRAM outside the package. Only package and
//! dram are taken, so that the sum over meters counts nothing twice. AMD's processors count the
//! package alone; where a kernel shows each of their dies as a zone, all show the package's one
//! counter and the first is taken. Intel's dies count for themselves, as `package-0-die-0`.
//!
//! A suspended machine leaves a counter standing or sets it to 0, while the clock runs on: what
//! spans a suspend, or a hole in which the counter may have wrapped twice, starts a new epoch and
//! is no delta.
//!
//! Source: kernel `Documentation/power/powercap/powercap.rst`, `drivers/powercap/`,
//! `arch/x86/events/rapl.c`.

mod perf;
mod powercap;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::source::{Deaf, Feed, Health, Running, Stop};
use crate::clock::{Timestamp, suspended};
use crate::ledger::{Component, Event, Meter, MeterId, Reading, Source};
use crate::units::{Microjoules, Watts};

/// The counter changes every millisecond; an interval of this length is fine enough for shares
/// of CPU time and cheap.
const EVERY: Duration = Duration::from_millis(250);
const STALE_AFTER: Duration = Duration::from_secs(2);
const GAIN_ERROR: f64 = 0.05;
/// No package draws more: what tells a wrap from a reset where the zone states no limit.
const LARGEST_PACKAGE: Watts = Watts(1_000.0);
/// A shorter jump of the two clocks' difference is the time between reading one and the other.
const SHORTEST_SUSPEND: Duration = Duration::from_millis(100);

/// Why RAPL cannot be read.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// No such hardware, or a virtual machine.
    #[error("no RAPL in {}", root.display())]
    Absent {
        /// Where it would be.
        root: PathBuf,
    },
    /// Zones exist, and this process may not read them.
    #[error("no permission to read {}", file.display())]
    NoPermission {
        /// The file that was refused.
        file: PathBuf,
    },
    /// The kernel's events exist, and this process may not open them.
    #[error("no permission to open the perf event {event}")]
    NoPermissionForEvent {
        /// The event.
        event: String,
    },
    /// A file or event is not what the kernel documents.
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
            Self::NoPermissionForEvent { .. } => Some(
                "run as root or with CAP_PERFMON, or set kernel.perf_event_paranoid to 0".into(),
            ),
            Self::Unreadable { .. } => Some("see dmesg for rapl messages".into()),
        }
    }
}

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The powercap class in sysfs.
    pub powercap: &'a Path,
    /// The `power` PMU in sysfs.
    pub pmu: &'a Path,
    /// The CPUs in sysfs.
    pub cpus: &'a Path,
    /// The proc file system.
    pub proc: &'a Path,
}

/// Which of the kernel's two interfaces serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interface {
    /// Files under `/sys/class/powercap`.
    Powercap,
    /// Perf events of the `power` PMU.
    Perf,
}

impl Interface {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Powercap => "powercap",
            Self::Perf => "perf events",
        }
    }
}

/// A counter as the kernel shows it.
trait RawCounter: std::fmt::Debug + Send {
    /// Its value, in steps.
    fn read(&mut self) -> io::Result<u64>;
    /// For people.
    fn name(&self) -> String;
}

/// What one counter measures, and how it counts.
#[derive(Debug)]
struct Domain {
    component: Component,
    device: String,
    limit: Option<Watts>,
    /// Microjoules a step.
    step: f64,
    /// Steps after which it starts again from 0; `None`: not within an agent's life.
    range: Option<u64>,
    counter: Box<dyn RawCounter>,
}

/// The packages and memories that are metered.
#[derive(Debug)]
pub struct Domains {
    domains: Vec<Domain>,
    interface: Interface,
    passed_over: Vec<Unavailable>,
}

impl Domains {
    /// Finds the packages and memories and reads each once.
    ///
    /// # Errors
    /// [`Unavailable`] with the reason: of powercap, or of perf where powercap is absent.
    pub fn open(places: Places<'_>) -> Result<Self, Unavailable> {
        Self::open_with(places, &perf::Kernel)
    }

    fn open_with(places: Places<'_>, pmu: &dyn perf::Pmu) -> Result<Self, Unavailable> {
        let die_counts = !is_amd(places.proc);
        let powercap = match powercap::domains(places.powercap, die_counts) {
            Ok((domains, passed_over)) => {
                return Ok(Self {
                    domains,
                    interface: Interface::Powercap,
                    passed_over,
                });
            }
            Err(error) => error,
        };
        match perf::domains(places.pmu, places.cpus, die_counts, pmu) {
            Ok(domains) => {
                let absent = matches!(powercap, Unavailable::Absent { .. });
                Ok(Self {
                    domains,
                    interface: Interface::Perf,
                    passed_over: if absent { vec![] } else { vec![powercap] },
                })
            }
            Err(perf) => Err(match powercap {
                Unavailable::Absent { .. } if perf.fix().is_some() => perf,
                _ => powercap,
            }),
        }
    }

    /// Which interface serves.
    pub fn interface(&self) -> Interface {
        self.interface
    }

    /// What exists and could not be read.
    pub fn passed_over(&self) -> &[Unavailable] {
        &self.passed_over
    }

    /// The domains' meters.
    pub fn meters(&self) -> Vec<Meter> {
        self.domains.iter().map(Domain::meter).collect()
    }

    /// Starts the thread. `meters` are the ids of [`Self::meters`], in its order.
    pub(super) fn start(
        self,
        meters: &[MeterId],
        running: &mut Running,
        feed: Feed,
    ) -> io::Result<()> {
        let counters: Vec<(Counter, MeterId)> = self
            .domains
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

/// True on processors whose dies all show the package's one counter.
fn is_amd(proc: &Path) -> bool {
    let cpuinfo = fs::read_to_string(proc.join("cpuinfo")).unwrap_or_default();
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "vendor_id")
        .is_some_and(|(_, vendor)| ["AuthenticAMD", "HygonGenuine"].contains(&vendor.trim()))
}

impl Domain {
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

/// A domain's counter without its wraps.
#[derive(Debug)]
struct Counter {
    domain: Domain,
    last: Option<(Timestamp, u64)>,
    /// Since the epoch began.
    steps: u64,
}

impl Counter {
    fn new(domain: Domain) -> Self {
        Self {
            domain,
            last: None,
            steps: 0,
        }
    }

    /// Adds what the counter gained since the last read. `void`: the machine may have been
    /// suspended since. Where nobody knows what was gained it starts again from zero: the ledger
    /// takes that for a new epoch.
    fn take(&mut self, at: Timestamp, raw: u64, void: bool) -> Microjoules {
        if let Some((before, old)) = self.last.replace((at, raw)) {
            let most = self.domain.limit.unwrap_or(LARGEST_PACKAGE);
            let most = most.over(at.since(before)).0 as f64 / self.domain.step;
            let gained = match (raw.checked_sub(old), self.domain.range) {
                _ if void => None,
                (_, Some(range)) if most >= range as f64 => None,
                (Some(gained), _) => Some(gained),
                (None, Some(range)) => Some(range.saturating_sub(old).saturating_add(raw)),
                (None, None) => None,
            };
            self.steps = gained.map_or(0, |gained| self.steps.saturating_add(gained));
        }
        Microjoules((self.steps as f64 * self.domain.step).round() as u64)
    }
}

/// Tells whether the machine was suspended. One that falls asleep between a read and the look
/// after it is seen at that look, and the read behind it is void as well.
#[derive(Debug)]
struct Sleep {
    before: Duration,
    latest: bool,
}

impl Sleep {
    fn new(suspended: Duration) -> Self {
        Self {
            before: suspended,
            latest: false,
        }
    }

    /// True if what was read just now may lie on another side of a suspend than what was read
    /// before. `suspended`: in all since boot.
    fn parts(&mut self, suspended: Duration) -> bool {
        let slept = suspended.saturating_sub(self.before) > SHORTEST_SUSPEND;
        self.before = suspended;
        std::mem::replace(&mut self.latest, slept) || slept
    }
}

fn run(mut counters: Vec<(Counter, MeterId)>, feed: &Feed, stop: &Stop) -> Result<(), Deaf> {
    let mut health = Health::new("rapl");
    let mut sleep = Sleep::new(suspended());
    let mut next = Timestamp::now();
    loop {
        let mut failure = None;
        let reads: Vec<_> = counters
            .iter_mut()
            .map(|(counter, _)| {
                let start = Timestamp::now();
                let read = counter.domain.counter.read();
                (start, read, Timestamp::now())
            })
            .collect();
        let void = sleep.parts(suspended());
        for ((counter, meter), (start, read, end)) in counters.iter_mut().zip(reads) {
            health.called(start, end, read.is_ok());
            match read {
                Ok(raw) => {
                    let energy = counter.take(end, raw, void);
                    feed.event(Event::Reading(Reading {
                        meter: *meter,
                        after: start,
                        until: end,
                        energy,
                    }))?;
                }
                Err(error) => {
                    let name = counter.domain.counter.name();
                    failure = Some(format!("{name}: {error}"));
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
