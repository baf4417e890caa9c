//! What each board supports: found out by asking, kept, and shown by `doctor`.
//!
//! A figure that the board, its mode or the driver does not have is not asked for again until the
//! driver is opened anew or the board's mode changes. One that fails is asked ever more rarely.

use std::collections::BTreeMap;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;

use crate::clock::Timestamp;
use crate::meters::source::Health;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What a board can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    /// Energy since the driver was loaded.
    Energy,
    /// Power at present or over the last second.
    Power,
    /// The power limit in force.
    PowerLimit,
    /// The power limits that can be set.
    PowerLimitRange,
    /// Power of a superchip's module.
    ModulePower,
    /// Clock of the streaming multiprocessors.
    SmClock,
    /// Clock of the memory.
    MemoryClock,
    /// Temperature.
    Temperature,
    /// What holds the clocks down.
    ThrottleReasons,
    /// Memory in use.
    Memory,
    /// How busy the board is.
    Utilization,
    /// How busy each process keeps it.
    ProcessUtilization,
    /// Processes with a compute context.
    Processes,
    /// Clients of an MPS server.
    MpsProcesses,
    /// Bytes sent over PCIe.
    PcieSent,
    /// Bytes received over PCIe.
    PcieReceived,
    /// Present throughput of PCIe, sent.
    PcieSentRate,
    /// Present throughput of PCIe, received.
    PcieReceivedRate,
    /// Bytes sent over NVLink.
    NvlinkSent,
    /// Bytes received over NVLink.
    NvlinkReceived,
    /// Whether it is split into instances.
    MigMode,
    /// Those instances.
    Instances,
    /// What its parts do.
    Activity,
    /// Who may open a context.
    ComputeMode,
    /// Whether it is a virtual machine's.
    VirtualizationMode,
    /// Critical errors (XID) as they happen.
    CriticalErrors,
}

impl Figure {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::Energy,
        Self::Power,
        Self::PowerLimit,
        Self::PowerLimitRange,
        Self::ModulePower,
        Self::SmClock,
        Self::MemoryClock,
        Self::Temperature,
        Self::ThrottleReasons,
        Self::Memory,
        Self::Utilization,
        Self::ProcessUtilization,
        Self::Processes,
        Self::MpsProcesses,
        Self::PcieSent,
        Self::PcieReceived,
        Self::PcieSentRate,
        Self::PcieReceivedRate,
        Self::NvlinkSent,
        Self::NvlinkReceived,
        Self::MigMode,
        Self::Instances,
        Self::Activity,
        Self::ComputeMode,
        Self::VirtualizationMode,
        Self::CriticalErrors,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Energy => "energy counter",
            Self::Power => "power",
            Self::PowerLimit => "power limit",
            Self::PowerLimitRange => "range of power limits",
            Self::ModulePower => "module power",
            Self::SmClock => "SM clock",
            Self::MemoryClock => "memory clock",
            Self::Temperature => "temperature",
            Self::ThrottleReasons => "throttle reasons",
            Self::Memory => "memory",
            Self::Utilization => "utilisation",
            Self::ProcessUtilization => "utilisation by process",
            Self::Processes => "processes",
            Self::MpsProcesses => "MPS clients",
            Self::PcieSent => "PCIe bytes sent",
            Self::PcieReceived => "PCIe bytes received",
            Self::PcieSentRate => "PCIe throughput sent",
            Self::PcieReceivedRate => "PCIe throughput received",
            Self::NvlinkSent => "NVLink bytes sent",
            Self::NvlinkReceived => "NVLink bytes received",
            Self::MigMode => "MIG mode",
            Self::Instances => "MIG instances",
            Self::Activity => "activity (GPM)",
            Self::ComputeMode => "compute mode",
            Self::VirtualizationMode => "virtualisation mode",
            Self::CriticalErrors => "critical errors (XID)",
        }
    }
}

/// How a board answers when asked for a figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// It was not asked.
    Untried,
    /// With the figure.
    Supported,
    /// That it has none.
    Unsupported,
    /// With this error.
    Failing(String),
}

/// One board's table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record(BTreeMap<Figure, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    support: Support,
    /// Of one that fails: when it is asked again, and after how long the time after that.
    retry: Option<(Timestamp, Duration)>,
}

impl Record {
    /// What is known of a figure.
    pub fn support(&self, figure: Figure) -> Support {
        let entry = self.0.get(&figure);
        entry.map_or(Support::Untried, |entry| entry.support.clone())
    }

    /// Figures that it shows.
    pub fn supported(&self) -> impl Iterator<Item = Figure> {
        let all = Figure::ALL.into_iter();
        all.filter(|figure| self.support(*figure) == Support::Supported)
    }

    /// Figures that the board says it does not have.
    pub fn unsupported(&self) -> impl Iterator<Item = Figure> {
        let all = Figure::ALL.into_iter();
        all.filter(|figure| self.support(*figure) == Support::Unsupported)
    }

    /// Figures that it should have and does not show, and why.
    pub fn failing(&self) -> impl Iterator<Item = (Figure, String)> {
        Figure::ALL
            .into_iter()
            .filter_map(|figure| match self.support(figure) {
                Support::Failing(error) => Some((figure, error)),
                _ => None,
            })
    }

    /// Forgets what is known: another driver or another mode may answer otherwise.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether to ask for a figure now.
    pub(super) fn wants(&self, figure: Figure, now: Timestamp) -> bool {
        let Some(entry) = self.0.get(&figure) else {
            return true;
        };
        match entry.support {
            Support::Untried | Support::Supported => true,
            Support::Unsupported => false,
            Support::Failing(_) => entry.retry.is_none_or(|(next, _)| now >= next),
        }
    }

    /// Notes how the board answered.
    pub(super) fn note(&mut self, figure: Figure, answer: Result<(), &NvmlError>, now: Timestamp) {
        let (support, retry) = match answer {
            Ok(()) => (Support::Supported, None),
            Err(error) if is_absent(error) => (Support::Unsupported, None),
            Err(error) => {
                let known = self.0.get(&figure).and_then(|entry| entry.retry);
                let wait = known.map_or(FIRST_RETRY, |(_, wait)| (wait * 2).min(LAST_RETRY));
                if known.is_none() {
                    log::warn!("a GPU does not tell its {}: {error}", figure.name());
                }
                let retry = Some((now.plus(wait), wait));
                (Support::Failing(error.to_string()), retry)
            }
        };
        self.0.insert(figure, Entry { support, retry });
    }

    /// Asks for a figure, unless it is known to be of no use; `None` where the board does not show
    /// it.
    ///
    /// # Errors
    /// The board itself does not answer.
    pub(super) fn ask<T>(
        &mut self,
        figure: Figure,
        health: &mut Health,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<Option<T>, NvmlError> {
        let start = Timestamp::now();
        if !self.wants(figure, start) {
            return Ok(None);
        }
        let answer = call();
        let end = Timestamp::now();
        health.called(start, end, answer.as_ref().err().is_none_or(is_absent));
        match answer {
            Err(error) if is_lost(&error) => Err(error),
            answer => {
                self.note(figure, answer.as_ref().map(|_| ()), end);
                Ok(answer.ok())
            }
        }
    }
}

/// Whether the board, its mode or the driver does not have what was asked for.
pub(super) fn is_absent(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported
            | NvmlError::NotFound
            | NvmlError::InvalidArg
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
            | NvmlError::VgpuEccNotSupported
    )
}

/// Whether the board or the session is gone, whatever it was asked for.
pub(super) fn is_lost(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::Uninitialized
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(record: &mut Record, answer: Result<u32, NvmlError>) -> (Option<u32>, bool) {
        let mut asked = false;
        let call = || {
            asked = true;
            answer
        };
        let mut health = Health::new("nvml-telemetry");
        let told = record.ask(Figure::Temperature, &mut health, call);
        (told.expect("the board answers"), asked)
    }

    #[test]
    fn what_a_board_does_not_have_is_asked_for_once() {
        for error in [
            NvmlError::NotSupported,
            NvmlError::NotFound,
            NvmlError::FunctionNotFound,
            NvmlError::InvalidArg,
            NvmlError::FailedToLoadSymbol(String::new()),
        ] {
            let mut record = Record::default();
            assert_eq!(record.support(Figure::Temperature), Support::Untried);
            assert_eq!(ask(&mut record, Err(error)), (None, true));
            assert_eq!(ask(&mut record, Ok(40)), (None, false));
            assert_eq!(
                record.unsupported().collect::<Vec<_>>(),
                [Figure::Temperature]
            );
            record.clear();
            assert_eq!(ask(&mut record, Ok(40)), (Some(40), true));
            assert_eq!(record.support(Figure::Temperature), Support::Supported);
        }
    }

    #[test]
    fn what_fails_is_asked_for_again_but_ever_more_rarely_and_recovers() {
        let mut record = Record::default();
        assert_eq!(ask(&mut record, Err(NvmlError::NoPermission)), (None, true));
        assert_eq!(ask(&mut record, Ok(40)), (None, false), "not at once");
        let (figure, error) = record.failing().next().expect("it fails");
        assert_eq!(figure, Figure::Temperature);
        assert!(error.contains("permission"), "{error}");
        let mut now = Timestamp::now();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let from = now;
            while !record.wants(Figure::Temperature, now) {
                now = now.plus(Duration::from_millis(500));
            }
            waits.push(now.since(from) / 1_000_000_000);
            record.note(Figure::Temperature, Err(&NvmlError::Unknown), now);
        }
        assert!(waits.is_sorted() && waits[7] == 60, "{waits:?}");
        record.note(Figure::Temperature, Ok(()), now);
        assert_eq!(record.failing().count(), 0);
        assert!(record.wants(Figure::Temperature, now));
    }

    #[test]
    fn a_lost_board_says_nothing_about_its_figures() {
        let mut record = Record::default();
        let mut health = Health::new("nvml-telemetry");
        let lost: Result<Option<u32>, _> =
            record.ask(Figure::Memory, &mut health, || Err(NvmlError::GpuLost));
        assert!(matches!(lost, Err(NvmlError::GpuLost)));
        assert_eq!(record.support(Figure::Memory), Support::Untried);
    }

    #[test]
    fn the_list_of_figures_is_whole_and_has_no_name_twice() {
        let names: std::collections::BTreeSet<&str> =
            Figure::ALL.iter().map(|figure| figure.name()).collect();
        assert_eq!(names.len(), Figure::ALL.len());
        assert_eq!(Figure::ALL.last(), Some(&Figure::CriticalErrors));
        assert_eq!(Figure::CriticalErrors as usize + 1, Figure::ALL.len());
    }
}
