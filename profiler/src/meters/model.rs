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
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::meters::News;

    const STAT: &str = "cpu  100 10 40 800 50 5 15 20 7 0\ncpu0 50 5 20 400 25 2 8 10 3 0\n\
                        cpu1 50 5 20 400 25 3 7 10 4 0\nintr 12345\nctxt 99\n";

    #[test]
    fn utilisation_counts_work_and_neither_waiting_nor_stolen_time() {
        let first = Usage::parse(STAT).expect("a proper stat");
        assert_eq!(
            first,
            Usage {
                busy: 170,
                all: 1_040,
                threads: 2
            }
        );
        let later = Usage {
            busy: 220,
            all: 1_240,
            threads: 2,
        };
        assert!((later.since(first) - 0.25).abs() < 1e-9);
        assert_eq!(first.since(first), 0.0);
        assert_eq!(Usage::parse("intr 1\n"), None);
        assert_eq!(Usage::parse("cpu  1 2\ncpu0 1 2\n"), None);
    }

    #[test]
    fn the_processor_family_chooses_the_coefficients() {
        let intel = |model: u32, stepping: u32| {
            format!(
                "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: {model}\n\
                 model name\t: Intel(R) Xeon(R)\nstepping\t: {stepping}\n"
            )
        };
        assert_eq!(coefficients(&intel(85, 4)), SKYLAKE);
        assert_eq!(coefficients(&intel(85, 7)), CASCADE_LAKE);
        assert_eq!(coefficients(&intel(143, 8)), GENERIC);
        let amd = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\n";
        assert_eq!(coefficients(amd), EPYC_3);
        assert_eq!(coefficients(""), GENERIC);
    }

    /// A machine's `cpuinfo`, its threads, and its packages' mean power by RAPL: percent of load
    /// and watts.
    type Machine = (&'static str, u32, [(f64, f64); 11]);

    const MEASURED: [Machine; 4] = [
        // EPYC 8024P
        (
            "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 160\n",
            16,
            [
                (0.6, 18.3),
                (10.0, 29.2),
                (20.0, 38.6),
                (30.0, 41.7),
                (40.3, 43.1),
                (50.0, 47.6),
                (64.6, 48.7),
                (70.2, 49.2),
                (80.0, 50.9),
                (89.4, 46.1),
                (100.0, 46.2),
            ],
        ),
        // Two Xeon E5-2620 v3
        (
            "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 63\nstepping\t: 2\n",
            24,
            [
                (0.0, 15.9),
                (10.0, 30.7),
                (20.0, 38.2),
                (30.0, 44.7),
                (40.5, 62.2),
                (50.2, 61.5),
                (60.0, 75.8),
                (69.9, 111.8),
                (80.8, 115.8),
                (89.7, 117.4),
                (99.6, 105.0),
            ],
        ),
        // Xeon E3-1240 v2
        (
            "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 58\nstepping\t: 9\n",
            8,
            [
                (2.5, 5.5),
                (12.5, 6.8),
                (21.8, 8.1),
                (32.5, 9.4),
                (41.2, 14.1),
                (51.3, 24.0),
                (60.8, 29.5),
                (71.3, 44.5),
                (80.2, 47.2),
                (88.9, 48.4),
                (100.0, 49.4),
            ],
        ),
        // Threadripper 1950X
        (
            "vendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: 1\n",
            32,
            [
                (2.8, 42.7),
                (13.9, 62.0),
                (23.2, 78.3),
                (36.4, 105.6),
                (44.8, 127.6),
                (53.1, 143.3),
                (66.0, 172.5),
                (72.1, 170.4),
                (83.1, 169.2),
                (91.7, 166.9),
                (99.7, 167.1),
            ],
        ),
    ];

    #[test]
    fn on_machines_that_can_measure_it_errs_as_it_says() {
        let (mut lowest, mut highest) = (f64::MAX, f64::MIN);
        for (cpuinfo, threads, points) in MEASURED {
            let estimate = Estimate {
                proc: PathBuf::new(),
                coefficients: coefficients(cpuinfo),
                threads,
            };
            let power = |load: f64| estimate.power(load / 100.0).0;
            let estimated: f64 = points.iter().map(|(load, _)| power(*load)).sum();
            let measured: f64 = points.iter().map(|(_, watts)| watts).sum();
            let error = estimated / measured - 1.0;
            assert!(error.abs() < GAIN_ERROR, "{cpuinfo}: {error}");
            for (load, watts) in points {
                let error = power(load) / watts - 1.0;
                (lowest, highest) = (lowest.min(error), highest.max(error));
            }
        }
        assert!((lowest + 0.64).abs() < 0.01 && (highest - 1.87).abs() < 0.02);
    }

    #[test]
    fn an_estimate_lies_between_the_idle_floor_and_full_power_and_says_that_it_is_one() {
        let estimate = Estimate::open(Path::new("/proc")).expect("this machine has CPUs");
        let meter = estimate.meter();
        assert_eq!(meter.source, Source::Model);
        let (idle, full) = (
            meter.idle.map_or(0.0, |w| w.0),
            meter.limit.map_or(0.0, |w| w.0),
        );
        assert!(idle > 0.0 && full > idle);

        let (sender, receiver) = mpsc::channel();
        let mut running = Running::default();
        estimate
            .start(MeterId(1), &mut running, Feed(sender))
            .expect("the thread starts");
        let mut readings = Vec::new();
        while let Ok(news) = receiver.recv_timeout(Duration::from_secs(5)) {
            if let News::Event(Event::Reading(reading)) = news {
                readings.push(reading);
            }
            if readings.len() == 3 {
                break;
            }
        }
        let (first, last) = (readings[0], readings[2]);
        let watts = last.energy.joules().0 / last.until.seconds_since(first.until);
        assert!(
            watts >= idle * 0.999 && watts <= full * 1.001,
            "{idle} {watts} {full}"
        );
        assert!(running.stop().is_empty());
    }
}
