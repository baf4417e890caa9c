//! What measures energy: GPU boards through NVML, CPU packages and memory through RAPL or Grace's
//! own sensors, and a labelled estimate where a machine has no CPU meter. Beside these parts, the
//! machine as a whole: ACPI's meter, the management controller, a meter outside.
//!
//! In: devices. Out: [`News`], plain values, from one OS thread a source. A device that hangs
//! holds up its own thread and nothing else: its news simply stop.
//!
//! [`discover`] looks once at what exists and says what does not and why; [`Discovery::start`]
//! starts the threads. What is metered how, and how well: `docs/meters.md`.

pub mod calibration;
pub mod external;
pub mod follow;
mod host;
pub mod hwmon;
pub mod integrate;
pub mod ipmi;
pub mod model;
mod node;
pub mod nvml;
pub mod rapl;
mod source;
pub mod typical_idle;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::Sender;

pub use host::package_of;
pub use node::NodeReading;
pub use source::{Running, SourceState};

use crate::clock::Timestamp;
use crate::finding::{Finding, Status};
use crate::ledger::{Event, Meter, MeterId, PowerSample};
use crate::telemetry::{CriticalErrors, GpuTelemetry};
use crate::units::Ratio;
use external::NodePower;
use source::Feed;

/// Where to look for meters.
#[derive(Debug, Clone)]
pub struct Config {
    /// NVML: a path, or a name that the loader knows. `None` switches it off.
    pub nvml_library: Option<OsString>,
    /// The powercap class in sysfs.
    pub powercap: PathBuf,
    /// The PMU that counts energy, in sysfs.
    pub pmu: PathBuf,
    /// The CPUs in sysfs.
    pub cpus: PathBuf,
    /// The hwmon class in sysfs.
    pub hwmon: PathBuf,
    /// The management controller's device. `None` switches it off.
    pub ipmi: Option<PathBuf>,
    /// A meter outside the machine.
    pub node_power: Option<NodePower>,
    /// The proc file system.
    pub proc: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nvml_library: Some(nvml::DEFAULT_LIBRARY.into()),
            powercap: "/sys/class/powercap".into(),
            pmu: "/sys/bus/event_source/devices/power".into(),
            cpus: "/sys/devices/system/cpu".into(),
            hwmon: "/sys/class/hwmon".into(),
            ipmi: Some("/dev/ipmi0".into()),
            node_power: None,
            proc: "/proc".into(),
        }
    }
}

/// What a source has to tell.
#[derive(Debug, Clone)]
pub enum News {
    /// For the ledger.
    Event(Event),
    /// A GPU's power, about once per change of its counter.
    Power {
        /// The reading.
        sample: PowerSample,
        /// Whether it is the present power; else it is an average over the last second and must
        /// not be given to the ledger.
        instant: bool,
    },
    /// A node meter's reading: not for the ledger.
    Node(NodeReading),
    /// Who holds a context on a GPU; at most once a second.
    Processes(GpuProcesses),
    /// How busy processes kept a GPU; at most once a second.
    Utilization(GpuUtilization),
    /// What a GPU shows beside its energy; at most once a second.
    Telemetry(Box<GpuTelemetry>),
    /// All critical errors of a GPU so far, when there is a new one; also of one that is lost.
    CriticalErrors(CriticalErrors),
    /// A GPU that came after the start; it is metered once [`Running::add_board`] has been called.
    Board(Box<nvml::Board>),
    /// How the source is; once a second, and at once when that turns.
    State(SourceState),
}

/// The processes with a compute context on one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuProcesses {
    /// The GPU's meter.
    pub meter: MeterId,
    /// Each once, in order. Not MPS's server, but its clients.
    pub processes: Vec<GpuProcess>,
    /// When it was asked.
    pub at: Timestamp,
}

/// A process with a compute context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GpuProcess {
    /// Its id, as the driver knows it: of the host.
    pub pid: u32,
    /// The instance that it holds, of a GPU that is split (MIG).
    pub instance: Option<u32>,
}

/// How busy processes kept one GPU since they were last asked about.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuUtilization {
    /// The GPU's meter.
    pub meter: MeterId,
    /// Those of which the driver has a new sample; at least one.
    pub processes: Vec<ProcessUtilization>,
    /// When it was asked.
    pub at: Timestamp,
}

/// How busy one process kept a GPU in the driver's latest sample period, a sixth of a second to one
/// second: to tell processes on one GPU apart, not requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessUtilization {
    /// Its process id, as the driver knows it: of the host.
    pub pid: u32,
    /// Part of the time in which a kernel of its own ran.
    pub sm: Ratio,
    /// Part of the time in which it read or wrote memory.
    pub memory: Ratio,
}

/// What this machine can measure.
#[derive(Debug)]
pub struct Discovery {
    /// NVIDIA GPUs.
    pub nvml: Option<nvml::Node>,
    /// CPU packages and memory.
    pub rapl: Option<rapl::Domains>,
    /// Sensors of a Grace CPU, and of the machine.
    pub hwmon: Option<hwmon::Sensors>,
    /// The management controller.
    pub ipmi: Option<ipmi::Controller>,
    /// A meter outside.
    pub external: Option<NodePower>,
    /// The estimate, where no CPU meter exists.
    pub model: Option<model::Estimate>,
    /// What was looked at.
    pub findings: Vec<Finding>,
}

/// Looks at what exists. Takes as long as the GPU driver needs to start, 20 s at the very most.
pub fn discover(config: &Config) -> Discovery {
    let mut findings = Vec::new();
    let nvml = match config.nvml_library.as_deref().map(nvml::Node::open) {
        None => {
            findings.push(finding("nvml", Status::Pass, "switched off".into(), None));
            None
        }
        Some(Ok(node)) => {
            findings.extend(gpu_findings(&node));
            Some(node)
        }
        Some(Err(error)) => {
            let status = if error.is_absent() {
                Status::Pass
            } else {
                Status::Fail
            };
            findings.push(finding("nvml", status, error.to_string(), error.fix()));
            None
        }
    };
    let rapl = host::find_rapl(config, &mut findings);
    let hwmon = host::find_hwmon(config, rapl.is_some(), &mut findings);
    let measured = rapl.is_some()
        || hwmon
            .as_ref()
            .is_some_and(|found| !found.meters().is_empty());
    let model = if measured {
        None
    } else {
        host::find_model(config, &mut findings)
    };
    let ipmi = host::find_ipmi(config, &mut findings);
    let external = host::find_external(config, &mut findings);
    Discovery {
        nvml,
        rapl,
        hwmon,
        ipmi,
        external,
        model,
        findings,
    }
}

/// Looks at what exists and asks every GPU for everything it can show: what [`discover`] found, and
/// a finding a GPU. Takes longer, and is not needed to measure.
pub fn examine(config: &Config) -> Vec<Finding> {
    let Discovery {
        nvml, mut findings, ..
    } = discover(config);
    if let (Some(_), Some(library)) = (&nvml, &config.nvml_library) {
        findings.extend(readings_findings(nvml::examine(library)));
    }
    findings
}

fn readings_findings(examined: nvml::Examined) -> Vec<Finding> {
    let nvml::Examined { boards, hangs } = examined;
    let names = |figures: Vec<nvml::Figure>| {
        let names: Vec<&str> = figures.iter().map(|figure| figure.name()).collect();
        names.join(", ")
    };
    let mut findings: Vec<Finding> = boards
        .into_iter()
        .map(|(uuid, told)| {
            let id = format!("nvml.{uuid}.readings");
            let record = match told {
                Ok(record) => record,
                Err(error) => return Finding::of(id, Status::Fail, error, LOST_FIX),
            };
            let mut found = format!("{} readings", record.supported().count());
            let absent: Vec<nvml::Figure> = record.unsupported().collect();
            if !absent.is_empty() {
                found = format!("{found}; not supported: {}", names(absent));
            }
            let failing: Vec<String> = record
                .failing()
                .map(|(figure, error)| format!("{} ({error})", figure.name()))
                .collect();
            if failing.is_empty() {
                Finding::pass(id, found)
            } else {
                let found = format!("{found}; failing: {}", failing.join(", "));
                let fix = "run as root, and see dmesg for NVRM messages";
                Finding::of(id, Status::Warn, found, fix)
            }
        })
        .collect();
    if hangs {
        let found = "the NVIDIA driver does not answer a call";
        findings.push(Finding::of("nvml.readings", Status::Fail, found, LOST_FIX));
    }
    findings
}

fn finding(id: impl Into<String>, status: Status, found: String, fix: Option<String>) -> Finding {
    Finding {
        id: id.into(),
        status,
        found,
        fix,
    }
}

/// What to do about a GPU that does not answer.
const LOST_FIX: &str = "see dmesg for NVRM messages; the GPU may need a reset";

fn gpu_findings(node: &nvml::Node) -> Vec<Finding> {
    let boards = node.boards();
    let driver = boards
        .iter()
        .find_map(|board| board.driver.as_deref())
        .unwrap_or("unknown");
    let found = format!("driver {driver}, {} GPU", boards.len());
    let mut findings = vec![finding("nvml", Status::Pass, found, None)];
    findings.extend(node.unreadable().iter().enumerate().map(|(number, board)| {
        let fix = Some(LOST_FIX.to_owned());
        finding(
            format!("nvml.unreadable-{number}"),
            Status::Fail,
            board.clone(),
            fix,
        )
    }));
    findings.extend(boards.iter().map(|board| {
        let name = board.name.as_deref().unwrap_or("GPU");
        let (status, how) = match (board.has_counter(), board.has_power()) {
            (true, _) => (Status::Pass, "energy counter"),
            (false, true) => (
                Status::Warn,
                "no energy counter: power readings are integrated",
            ),
            (false, false) => (Status::Warn, "shows neither energy nor power"),
        };
        finding(
            format!("nvml.{}", board.uuid),
            status,
            format!("{name}: {how}"),
            None,
        )
    }));
    findings
}

impl Discovery {
    /// Starts every source. `add` enters a meter into the ledger and returns its id; `news` is
    /// where the threads send what they see, and they end when nobody receives it.
    ///
    /// # Errors
    /// When a thread cannot be started; those already started are stopped.
    pub fn start(
        self,
        mut add: impl FnMut(Meter) -> MeterId,
        news: Sender<News>,
    ) -> io::Result<Running> {
        let mut running = Running::default();
        let feed = Feed(news);
        if let Some(node) = self.nvml {
            let meters: Vec<MeterId> = node.meters().into_iter().map(&mut add).collect();
            node.start(&meters, &mut running, feed.clone())?;
        }
        if let Some(domains) = self.rapl {
            let meters: Vec<MeterId> = domains.meters().into_iter().map(&mut add).collect();
            domains.start(&meters, &mut running, feed.clone())?;
        }
        if let Some(sensors) = self.hwmon {
            let meters: Vec<MeterId> = sensors.meters().into_iter().map(&mut add).collect();
            sensors.start(&meters, &mut running, feed.clone())?;
        }
        if let Some(controller) = self.ipmi {
            controller.start(&mut running, feed.clone())?;
        }
        if let Some(place) = self.external {
            place.start(&mut running, feed.clone())?;
        }
        if let Some(estimate) = self.model {
            let meter = add(estimate.meter());
            estimate.start(meter, &mut running, feed)?;
        }
        Ok(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_machine_gets_an_estimate_and_is_told_what_is_absent_without_a_complaint() {
        let config = Config {
            nvml_library: None,
            powercap: "/nonexistent/powercap".into(),
            pmu: "/nonexistent/power".into(),
            hwmon: "/nonexistent/hwmon".into(),
            ipmi: Some("/nonexistent/ipmi0".into()),
            ..Config::default()
        };
        let found = discover(&config);
        assert!(found.nvml.is_none() && found.rapl.is_none());
        assert!(found.hwmon.is_none() && found.ipmi.is_none() && found.external.is_none());
        let ids: Vec<&str> = found
            .findings
            .iter()
            .map(|finding| finding.id.as_str())
            .collect();
        assert_eq!(ids, ["nvml", "rapl", "hwmon", "cpu-model", "ipmi"]);
        assert!(
            found
                .findings
                .iter()
                .all(|finding| finding.status == Status::Pass)
        );
        let model = found.model.expect("no CPU meter exists");
        assert_eq!(model.meter().device, "model-0");
    }

    #[test]
    fn a_grace_machine_needs_no_estimate_and_a_meter_outside_that_fails_says_so() {
        let hwmon = tempfile::tempdir().expect("a temporary directory");
        let device = hwmon.path().join("hwmon0");
        std::fs::create_dir(&device).expect("a directory can be made");
        for (file, text) in [
            ("name", "power_meter"),
            ("power1_average", "150000000"),
            ("power1_oem_info", "Grace Power Socket 0"),
        ] {
            std::fs::write(device.join(file), text).expect("a file can be written");
        }
        let config = Config {
            nvml_library: None,
            powercap: "/nonexistent/powercap".into(),
            pmu: "/nonexistent/power".into(),
            hwmon: hwmon.path().into(),
            ipmi: None,
            node_power: "/nonexistent/watts".parse().ok(),
            ..Config::default()
        };
        let found = discover(&config);
        assert!(found.model.is_none(), "the CPU is measured");
        let told = |id: &str| {
            let finding = found.findings.iter().find(|finding| finding.id == id);
            finding.map(|finding| (finding.status, finding.found.as_str()))
        };
        assert_eq!(told("hwmon"), Some((Status::Pass, "grace-0")));
        assert_eq!(told("ipmi"), Some((Status::Pass, "switched off")));
        let outside = told("node-power").expect("it was asked for");
        assert_eq!(outside.0, Status::Fail);
        assert!(
            outside.1.starts_with("/nonexistent/watts: No such file"),
            "{}",
            outside.1
        );
    }

    #[test]
    fn a_library_that_cannot_work_is_a_failure_with_a_fix() {
        let config = Config {
            nvml_library: Some("libc.so.6".into()),
            ..Config::default()
        };
        let found = discover(&config);
        let finding = &found.findings[0];
        assert_eq!(
            (finding.id.as_str(), finding.status),
            ("nvml", Status::Fail)
        );
        assert!(finding.fix.is_some());
    }
}
