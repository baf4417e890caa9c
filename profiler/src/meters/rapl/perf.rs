//! RAPL as the kernel's `power` PMU: `energy-pkg` and `energy-ram`, one counter a package (or die),
//! opened on the CPU that the PMU names for it. The kernel follows the processor's 32-bit counters
//! by a timer of its own, so these do not wrap; they count from 0 when they are opened.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use super::{Domain, RawCounter, Unavailable, read_number, read_text};
use crate::ledger::Component;
use crate::perf_event::{self, Counted};

/// One counter of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) pmu: u32,
    pub(super) config: u64,
    pub(super) cpu: u32,
}

/// Opens counters.
pub(super) trait Pmu {
    fn open(&self, event: Event, name: String) -> io::Result<Box<dyn RawCounter>>;
}

/// The kernel itself.
#[derive(Debug)]
pub(super) struct Kernel;

impl Pmu for Kernel {
    fn open(&self, event: Event, name: String) -> io::Result<Box<dyn RawCounter>> {
        let counted = Counted {
            kind: event.pmu,
            config: event.config,
        };
        let descriptor = perf_event::open(counted, event.cpu, false)?;
        Ok(Box::new(Opened {
            file: File::from(descriptor),
            name,
        }))
    }
}

/// An open event.
#[derive(Debug)]
struct Opened {
    file: File,
    name: String,
}

impl RawCounter for Opened {
    fn read(&mut self) -> io::Result<u64> {
        let mut value = [0; 8];
        self.file.read_exact(&mut value)?;
        Ok(u64::from_ne_bytes(value))
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// The packages and memories of the PMU at `root` (`/sys/bus/event_source/devices/power`).
/// `die_counts`: a package's dies count for themselves.
pub(super) fn domains(
    root: &Path,
    cpus: &Path,
    die_counts: bool,
    pmu: &dyn Pmu,
) -> Result<Vec<Domain>, Unavailable> {
    let kind_file = root.join("type");
    if !kind_file.exists() {
        return Err(Unavailable::Absent { root: root.into() });
    }
    let unreadable = |file: &Path| {
        let file = file.to_owned();
        move |error| Unavailable::reading(&file, error)
    };
    let kind = read_number(&kind_file).map_err(unreadable(&kind_file))?;
    let mask_file = root.join("cpumask");
    let mask = read_text(&mask_file).map_err(unreadable(&mask_file))?;
    let places = places(&cpu_list(&mask), cpus, die_counts);
    let mut domains = Vec::new();
    for (component, event_name, prefix) in [
        (Component::Cpu, "energy-pkg", "package"),
        (Component::Dram, "energy-ram", "dram"),
    ] {
        let file = root.join("events").join(event_name);
        let Ok(text) = read_text(&file) else {
            continue;
        };
        let wrong = |what| unreadable(&file)(io::Error::new(ErrorKind::InvalidData, what));
        let config = event_code(&text).ok_or_else(|| wrong("not an event"))?;
        let beside = |suffix| read_text(&root.join("events").join(format!("{event_name}{suffix}")));
        if beside(".unit").map_err(unreadable(&file))? != "Joules" {
            return Err(wrong("its unit is not the joule"));
        }
        let joules: f64 = beside(".scale")
            .map_err(unreadable(&file))?
            .parse()
            .ok()
            .filter(|joules| *joules > 0.0 && *joules < 1.0)
            .ok_or_else(|| wrong("its scale makes no sense"))?;
        for (suffix, cpu) in &places {
            let name = format!("power/{event_name}/ on CPU {cpu}");
            let event = Event {
                pmu: kind as u32,
                config,
                cpu: *cpu,
            };
            let opened = pmu.open(event, name.clone());
            let read = opened.and_then(|mut counter| counter.read().map(|_| counter));
            let counter = read.map_err(|error| match error.kind() {
                ErrorKind::PermissionDenied => Unavailable::NoPermissionForEvent { event: name },
                _ => Unavailable::reading(&file, error),
            })?;
            domains.push(Domain {
                component,
                device: format!("{prefix}{suffix}"),
                limit: None,
                step: joules * 1e6,
                range: None,
                counter,
            });
        }
    }
    if domains.is_empty() {
        return Err(Unavailable::Absent { root: root.into() });
    }
    Ok(domains)
}

/// The CPU to open events on by the package's (and die's) suffix, named as powercap names them.
fn places(mask: &[u32], cpus: &Path, die_counts: bool) -> BTreeMap<String, u32> {
    let topology = |cpu: u32, file: &str| {
        let directory = cpus.join(format!("cpu{cpu}")).join("topology");
        read_number(&directory.join(file)).ok()
    };
    let located: Vec<_> = mask
        .iter()
        .enumerate()
        .map(|(place, &cpu)| {
            // A kernel that does not tell packages has one CPU in the mask for each.
            let package = topology(cpu, "physical_package_id").unwrap_or(place as u64);
            (package, topology(cpu, "die_id").unwrap_or(0), cpu)
        })
        .collect();
    let shared = |package| located.iter().filter(|other| other.0 == package).count() > 1;
    let mut places = BTreeMap::new();
    for &(package, die, cpu) in &located {
        let suffix = if die_counts && shared(package) {
            format!("-{package}-die-{die}")
        } else {
            format!("-{package}")
        };
        places.entry(suffix).or_insert(cpu);
    }
    places
}

/// `0,18` or `0-1,4` as the kernel writes it.
fn cpu_list(text: &str) -> Vec<u32> {
    text.split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (last.checked_sub(first)? < 65_536).then_some(first..=last)
        })
        .flatten()
        .collect()
}

/// The number in `event=0x02`.
fn event_code(text: &str) -> Option<u64> {
    let number = text
        .split(',')
        .find_map(|part| part.trim().strip_prefix("event="))?;
    match number.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests;
