//! What the machine itself has of meters, and what is said of each that it has not.

use super::external::NodePower;
use super::{Config, finding, hwmon, ipmi, model, rapl};
use crate::finding::{Finding, Status};
use crate::ledger::Meter;
use crate::units::Watts;

pub(super) fn find_rapl(config: &Config, findings: &mut Vec<Finding>) -> Option<rapl::Domains> {
    let places = rapl::Places {
        powercap: &config.powercap,
        pmu: &config.pmu,
        cpus: &config.cpus,
        proc: &config.proc,
    };
    match rapl::Domains::open(places) {
        Ok(domains) => {
            let devices: Vec<_> = domains
                .meters()
                .into_iter()
                .map(|meter| meter.device)
                .collect();
            let mut found = format!("{}: {}", domains.interface().name(), devices.join(", "));
            for passed_over in domains.passed_over() {
                found.push_str(&format!("; {passed_over}"));
            }
            // Perf events in powercap's place measure the same; a zone alone is missing.
            let missing = domains.interface() == rapl::Interface::Powercap;
            let fix = domains.passed_over().first().filter(|_| missing);
            let (status, fix) = match fix.and_then(rapl::Unavailable::fix) {
                Some(fix) => (Status::Warn, Some(fix)),
                None => (Status::Pass, None),
            };
            findings.push(finding("rapl", status, found, fix));
            Some(domains)
        }
        Err(error) => {
            let fix = error.fix();
            let status = if fix.is_none() {
                Status::Pass
            } else {
                Status::Warn
            };
            findings.push(finding("rapl", status, error.to_string(), fix));
            None
        }
    }
}

/// `has_rapl`: the CPUs have their meters already.
pub(super) fn find_hwmon(
    config: &Config,
    has_rapl: bool,
    findings: &mut Vec<Finding>,
) -> Option<hwmon::Sensors> {
    let found = hwmon::Sensors::open(&config.hwmon);
    let found = if has_rapl {
        found.and_then(hwmon::Sensors::without_cpus)
    } else {
        found
    };
    let text = found.as_ref().map_or_else(
        || {
            format!(
                "no power sensor of the machine in {}",
                config.hwmon.display()
            )
        },
        |sensors| {
            let cpus = sensors.meters().into_iter().map(|meter| meter.device);
            let nodes = sensors.nodes().map(|node| format!("{node} (node)"));
            cpus.chain(nodes).collect::<Vec<_>>().join(", ")
        },
    );
    findings.push(finding("hwmon", Status::Pass, text, None));
    found
}

pub(super) fn find_model(config: &Config, findings: &mut Vec<Finding>) -> Option<model::Estimate> {
    match model::Estimate::open(&config.proc) {
        Ok(estimate) => {
            findings.push(finding(
                "cpu-model",
                Status::Pass,
                describe(&estimate),
                None,
            ));
            Some(estimate)
        }
        Err(error) => {
            let fix = Some("mount the proc file system".to_owned());
            findings.push(finding("cpu-model", Status::Warn, error.to_string(), fix));
            None
        }
    }
}

pub(super) fn find_ipmi(config: &Config, findings: &mut Vec<Finding>) -> Option<ipmi::Controller> {
    let Some(device) = &config.ipmi else {
        findings.push(finding("ipmi", Status::Pass, "switched off".into(), None));
        return None;
    };
    match ipmi::Controller::open(device) {
        Ok(controller) => {
            let found = format!("{}: DCMI power reading (node)", device.display());
            findings.push(finding("ipmi", Status::Pass, found, None));
            Some(controller)
        }
        Err(error) => {
            let (status, fix) = if error.is_absent() {
                (Status::Pass, None)
            } else {
                let fix = "see dmesg for ipmi messages, or set ipmi = false".to_owned();
                (Status::Warn, Some(fix))
            };
            findings.push(finding("ipmi", status, error.to_string(), fix));
            None
        }
    }
}

/// The meter that the user names; kept even where it cannot be read now.
pub(super) fn find_external(config: &Config, findings: &mut Vec<Finding>) -> Option<NodePower> {
    let place = config.node_power.clone()?;
    findings.push(match place.read() {
        Ok(Watts(watts)) => {
            let found = format!("{place}: {watts} W");
            finding("node-power", Status::Pass, found, None)
        }
        Err(error) => {
            let fix = "check the address or file given as --node-power".to_owned();
            let found = format!("{place}: {error}");
            finding("node-power", Status::Fail, found, Some(fix))
        }
    });
    Some(place)
}

/// The package (socket) that a meter of the host measures, by its name; `None`: the whole machine.
pub fn package_of(meter: &Meter) -> Option<u32> {
    let number = ["package-", "dram-", "grace-", "cpu-rail-"]
        .into_iter()
        .find_map(|kind| meter.device.strip_prefix(kind))?;
    number.split('-').next()?.parse().ok()
}

fn describe(estimate: &model::Estimate) -> String {
    let model::Coefficients { family, idle, full } = estimate.coefficients();
    format!(
        "no CPU meter: energy is estimated from utilisation ({family}, {idle} to {full} W a \
         hardware thread) and labelled as a model"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Component, Source};

    #[test]
    fn a_meters_package_is_in_its_name_and_an_estimate_has_none() {
        let package = |device: &str| {
            package_of(&Meter {
                component: Component::Cpu,
                device: device.to_owned(),
                source: Source::Counter,
                limit: None,
                tick: 1,
                stale_after: 1,
                gain_error_ratio: 0.05,
                idle: None,
            })
        };
        for (device, number) in [
            ("package-1", Some(1)),
            ("package-1-die-0", Some(1)),
            ("dram-0", Some(0)),
            ("grace-3", Some(3)),
            ("model-0", None),
            ("package-", None),
        ] {
            assert_eq!(package(device), number, "{device}");
        }
    }
}
