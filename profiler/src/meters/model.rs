//! The labelled estimate of CPU power for machines that measure none, as most virtual machines.
//!
//! power = idle + (full − idle) × utilisation, per hardware thread. The figures are Cloud Carbon
//! Footprint's watts per vCPU by processor family (repository `cloud-carbon-coefficients`,
//! `output/coefficients-{azure,gcp}-use.csv` at commits `2ecb2f61` and `0b045386`, Apache-2.0),
//! which are means over the published SPECpower_ssj2008 results of whole servers up to 2023.
//!
//! It is an estimate and never better than class C. Against RAPL on four machines at eleven loads
//! each (repository `mlco2/codecarbon`, `codecarbon/data/hardware/cpu_load_profiling/*/*all_cores*`,
//! 2025-01-14, MIT) its energy over all loads is off by −56 to +34 %, a single load's power by −64
//! to +187 %: see the test. It is here so that CPU work is not silently free.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::source::{Deaf, Feed, Health, Running, Stop};
use crate::clock::Timestamp;
use crate::ledger::{Component, Event, Meter, MeterId, Reading, Source};
use crate::units::{Microjoules, Watts};

const EVERY: Duration = Duration::from_millis(250);
/// The same while nobody is served: until a reading comes, requests that have ended wait in memory.
const REST_EVERY: Duration = Duration::from_millis(500);
/// The first interval is short: it is waited for.
const FIRST: Duration = Duration::from_millis(100);
const STALE_AFTER: Duration = Duration::from_secs(2);
/// What holds for the energy over all loads on each of the four machines above.
const GAIN_ERROR: f64 = 0.6;

/// Watts per hardware thread of a processor family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// The family, as the source calls it.
    pub family: &'static str,
    /// Power of an idle thread.
    pub idle: f64,
    /// Power of a fully used thread.
    pub full: f64,
}

const fn family(family: &'static str, idle: f64, full: f64) -> Coefficients {
    Coefficients { family, idle, full }
}

const SANDY_BRIDGE: Coefficients = family("Sandy Bridge", 2.169, 8.550);
const IVY_BRIDGE: Coefficients = family("Ivy Bridge", 3.037, 8.200);
const HASWELL: Coefficients = family("Haswell", 1.901, 6.013);
const BROADWELL: Coefficients = family("Broadwell", 0.713, 3.685);
const SKYLAKE: Coefficients = family("Skylake", 0.645, 4.193);
const CASCADE_LAKE: Coefficients = family("Cascade Lake", 0.639, 3.967);
const EPYC_1: Coefficients = family("EPYC 1st Gen", 0.823, 2.553);
const EPYC_2: Coefficients = family("EPYC 2nd Gen", 0.474, 1.693);
const EPYC_3: Coefficients = family("EPYC 3rd Gen", 0.445, 2.019);
/// For a family that the source does not have: between its newest Intel and AMD ones.
const GENERIC: Coefficients = family("generic server", 0.54, 3.0);

/// The estimate for one machine.
#[derive(Debug)]
pub struct Estimate {
    proc: PathBuf,
    coefficients: Coefficients,
    threads: u32,
}

impl Estimate {
    /// Chooses the coefficients from `cpuinfo` and counts the threads from `stat` under `proc`
    /// (`/proc`).
    ///
    /// # Errors
    /// When `stat` cannot be read or lists no CPU.
    pub fn open(proc: &Path) -> io::Result<Self> {
        let Usage { threads, .. } = Usage::read(proc)?;
        let cpuinfo = fs::read_to_string(proc.join("cpuinfo")).unwrap_or_default();
        Ok(Self {
            proc: proc.into(),
            coefficients: coefficients(&cpuinfo),
            threads,
        })
    }

    /// The family whose coefficients are used.
    pub fn coefficients(&self) -> Coefficients {
        self.coefficients
    }

    fn power(&self, utilisation: f64) -> Watts {
        let Coefficients { idle, full, .. } = self.coefficients;
        let dynamic = (full - idle) * utilisation.clamp(0.0, 1.0);
        Watts(f64::from(self.threads) * (idle + dynamic))
    }

    /// The estimate's meter.
    pub fn meter(&self) -> Meter {
        Meter {
            component: Component::Cpu,
            device: "model-0".into(),
            source: Source::Model,
            limit: Some(self.power(1.0)),
            tick: EVERY.as_nanos() as u64,
            stale_after: STALE_AFTER.as_nanos() as u64,
            gain_error_ratio: GAIN_ERROR,
            idle: Some(self.power(0.0)),
        }
    }

    /// Starts the thread that reads utilisation and counts estimated energy.
    pub(super) fn start(self, meter: MeterId, running: &mut Running, feed: Feed) -> io::Result<()> {
        running.spawn("model", move |stop| {
            // Nobody listens any more: the agent has gone, and so may this thread.
            let _ = self.run(meter, &feed, &stop);
        })
    }

    fn run(&self, meter: MeterId, feed: &Feed, stop: &Stop) -> Result<(), Deaf> {
        let mut health = Health::new("model");
        let mut last: Option<(Timestamp, Usage)> = None;
        let mut energy = Microjoules::ZERO;
        let mut next = Timestamp::now().plus(FIRST);
        loop {
            let start = Timestamp::now();
            let read = Usage::read(&self.proc);
            let end = Timestamp::now();
            health.called(start, end, read.is_ok());
            match read {
                Ok(usage) => {
                    health.is(None);
                    if let Some((before, old)) = last.replace((end, usage)) {
                        let power = self.power(usage.since(old));
                        energy += power.over(end.since(before));
                    }
                    // The estimate is for exactly this moment.
                    let (after, until) = (end.minus(Duration::from_nanos(1)), end);
                    feed.event(Event::Reading(Reading {
                        meter,
                        after,
                        until,
                        energy,
                    }))?;
                }
                Err(error) => {
                    health.is(Some(format!("stat: {error}")));
                    // What lies between the reads before and after a failure is unknown: a count
                    // from zero opens a new epoch.
                    last = None;
                    energy = Microjoules::ZERO;
                }
            }
            feed.health(&mut health)?;
            if stop.wait_until(next) {
                return Ok(());
            }
            let every = if stop.rests() { REST_EVERY } else { EVERY };
            next = next.plus(every).max(Timestamp::now());
        }
    }
}

/// CPU time of the machine since boot, in ticks, over all threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    busy: u64,
    all: u64,
    threads: u32,
}

impl Usage {
    fn read(proc: &Path) -> io::Result<Self> {
        Self::parse(&fs::read_to_string(proc.join("stat"))?)
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "no cpu line"))
    }

    fn parse(stat: &str) -> Option<Self> {
        let mut total = None;
        let mut threads = 0;
        for line in stat.lines().take_while(|line| line.starts_with("cpu")) {
            if let Some(fields) = line.strip_prefix("cpu ") {
                let mut ticks = fields
                    .split_ascii_whitespace()
                    .map(|field| field.parse().ok());
                // user, nice, system, idle, iowait, irq, softirq, steal. Guest time is part of
                // user time; stolen time was another machine's.
                let mut field = || -> Option<u64> { ticks.next().flatten() };
                let (user, nice, system) = (field()?, field()?, field()?);
                let (idle, iowait) = (field()?, field()?);
                let (irq, softirq, steal) = (field()?, field()?, field().unwrap_or(0));
                let busy = user + nice + system + irq + softirq;
                total = Some((busy, busy + idle + iowait + steal));
            } else {
                threads += 1;
            }
        }
        let (busy, all) = total?;
        (threads > 0).then_some(Self { busy, all, threads })
    }

    /// Utilisation between `earlier` and now, 0 to 1. Idle time may run backwards a little.
    fn since(self, earlier: Self) -> f64 {
        let all = self.all.saturating_sub(earlier.all);
        if all == 0 {
            return 0.0;
        }
        self.busy.saturating_sub(earlier.busy) as f64 / all as f64
    }
}

/// The coefficients of the first processor in `/proc/cpuinfo`.
fn coefficients(cpuinfo: &str) -> Coefficients {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let number = |name: &str| field(name).and_then(|value| value.parse::<u32>().ok());
    match (
        field("vendor_id"),
        number("cpu family"),
        number("model"),
        number("stepping"),
    ) {
        (Some("GenuineIntel"), Some(6), Some(model), stepping) => match model {
            45 => SANDY_BRIDGE,
            62 => IVY_BRIDGE,
            63 => HASWELL,
            79 | 86 => BROADWELL,
            85 if stepping.is_some_and(|stepping| stepping < 5) => SKYLAKE,
            85 => CASCADE_LAKE,
            _ => GENERIC,
        },
        (Some("AuthenticAMD"), Some(23), Some(model), _) => match model {
            0..=15 => EPYC_1,
            48..=63 => EPYC_2,
            _ => GENERIC,
        },
        (Some("AuthenticAMD"), Some(25), Some(0..=15), _) => EPYC_3,
        _ => GENERIC,
    }
}

#[cfg(test)]
mod tests;
