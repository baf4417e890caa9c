//! RAPL's zones as powercap shows them. `energy_uj` is readable by root alone (CVE-2020-8694) and
//! wraps at `max_energy_range_uj`, after minutes at full load. `intel-rapl-mmio` shows a package
//! a second time. AMD's packages carry Intel's names, since kernel 5.8.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use super::{
    Domain, LARGEST_PACKAGE, RawCounter, Unavailable, parse_number, read_number, read_text,
};
use crate::ledger::Component;
use crate::units::Watts;

/// The package and dram zones under `root` (`/sys/class/powercap`), each read once, and those
/// that could not be read beside them. `die_counts`: a package's dies count for themselves.
pub(super) fn domains(
    root: &Path,
    die_counts: bool,
) -> Result<(Vec<Domain>, Vec<Unavailable>), Unavailable> {
    let absent = || Unavailable::Absent { root: root.into() };
    let entries = fs::read_dir(root).map_err(|_| absent())?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("intel-rapl"))
        .collect();
    // `intel-rapl:…` sorts behind `intel-rapl-mmio:…`, and of the same zone it is preferred.
    names.sort_by_key(|name| (name.starts_with("intel-rapl-mmio"), name.clone()));
    let mut zones = BTreeMap::new();
    let mut unreadable = BTreeMap::new();
    for name in &names {
        let Some((component, device)) = identify(root, name, die_counts) else {
            continue;
        };
        if zones.contains_key(&device) {
            continue;
        }
        match open(&root.join(name), component, device.clone()) {
            Ok(zone) => {
                unreadable.remove(&device);
                zones.insert(device, zone);
            }
            Err(error) => {
                unreadable.entry(device).or_insert(error);
            }
        }
    }
    let mut unreadable = unreadable.into_values();
    if zones.is_empty() {
        return Err(unreadable.next().unwrap_or_else(absent));
    }
    Ok((zones.into_values().collect(), unreadable.collect()))
}

/// What a zone measures and its stable name, from its `name` and its parent's; `None` for zones
/// that are not metered.
fn identify(root: &Path, directory: &str, die_counts: bool) -> Option<(Component, String)> {
    let name = |directory: &str| {
        let name = read_text(&root.join(directory).join("name")).ok()?;
        Some(match name.split_once("-die-") {
            Some((package, _)) if !die_counts => package.to_owned(),
            _ => name,
        })
    };
    let own = name(directory)?;
    if own.starts_with("package") {
        return Some((Component::Cpu, own));
    }
    if own != "dram" {
        return None;
    }
    let (parent, _) = directory.rsplit_once(':')?;
    let package = name(parent)?;
    let suffix = package.strip_prefix("package")?;
    Some((Component::Dram, format!("dram{suffix}")))
}

fn open(directory: &Path, component: Component, device: String) -> Result<Domain, Unavailable> {
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
    Ok(Domain {
        component,
        device,
        limit,
        step: 1.0,
        range: Some(range),
        counter: Box::new(EnergyFile { file, open: None }),
    })
}

/// `energy_uj`, kept open.
#[derive(Debug)]
struct EnergyFile {
    file: PathBuf,
    open: Option<File>,
}

impl RawCounter for EnergyFile {
    fn read(&mut self) -> io::Result<u64> {
        let mut file = match self.open.take() {
            Some(file) => file,
            None => File::open(&self.file)?,
        };
        file.rewind()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let value = parse_number(&text)?;
        self.open = Some(file);
        Ok(value)
    }

    fn name(&self) -> String {
        self.file.display().to_string()
    }
}
