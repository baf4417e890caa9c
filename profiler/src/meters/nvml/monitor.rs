//! One look at one board: everything it shows beside its energy.

use std::collections::BTreeMap;
use std::time::Duration;

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{
    Clock, ComputeMode, GpuVirtualizationMode, PcieUtilCounter, TemperatureSensor,
};
use nvml_wrapper::error::NvmlError;

use super::integral::{Rise, Throttled};
use super::raw::{self, Field};
use super::support::{Figure, Record, is_absent, is_lost};
use crate::clock::Timestamp;
use crate::meters::source::Health;
use crate::telemetry::{
    CriticalErrors, GpuTelemetry, Memory, Modes, PowerLimits, Traffic, Utilization,
};
use crate::units::{Celsius, Hertz, Ratio, Watts};

/// Fields of `nvml.h` that are read in one call, with what they show. Links have `UINT_MAX` as the
/// scope of all together; power has 1 for the module.
const FIELDS: [(Figure, Field); 5] = [
    (Figure::PcieSent, Field { id: 197, scope: 0 }),
    (Figure::PcieReceived, Field { id: 198, scope: 0 }),
    (
        Figure::NvlinkSent,
        Field {
            id: 138,
            scope: u32::MAX,
        },
    ),
    (
        Figure::NvlinkReceived,
        Field {
            id: 139,
            scope: u32::MAX,
        },
    ),
    (Figure::ModulePower, Field { id: 186, scope: 1 }),
];

/// The driver counts for 20 ms before it answers: not with every look.
const RATES_EVERY: Duration = Duration::from_secs(10);

/// Numbers of errors that are told apart; a driver knows about a hundred, a board shows a few.
const MOST_XIDS: usize = 32;

/// What is kept of a board between looks, over sessions of the driver.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    uuid: String,
    pub(super) record: Record,
    /// Of the latest sample of processes' utilisation, by the driver's clock.
    pub(super) last_seen: u64,
    throttled: Throttled,
    rises: BTreeMap<Figure, Rise>,
    rates: [Option<f64>; 2],
    rates_next: Timestamp,
    mig: Option<bool>,
    /// By number.
    xids: BTreeMap<u64, u64>,
}

impl Monitor {
    pub(super) fn new(uuid: &str) -> Self {
        Self {
            uuid: uuid.to_owned(),
            ..Self::default()
        }
    }

    /// The board is met anew: its driver may be another, its counters may have started again.
    pub(super) fn begin(&mut self) {
        self.record.clear();
        self.rises.values_mut().for_each(Rise::rebase);
        self.rates_next = Timestamp::default();
    }

    /// Counts a critical error; returns all so far.
    pub(super) fn count_xid(&mut self, number: u64) -> CriticalErrors {
        let told_apart = self.xids.contains_key(&number) || self.xids.len() < MOST_XIDS;
        let number = if told_apart { number } else { 0 };
        *self.xids.entry(number).or_default() += 1;
        CriticalErrors {
            device: self.uuid.clone(),
            counts: self.xids.clone(),
        }
    }

    /// Asks the board for all it shows.
    ///
    /// # Errors
    /// The board itself does not answer.
    pub(super) fn look(
        &mut self,
        device: &Device<'_>,
        health: &mut Health,
    ) -> Result<GpuTelemetry, NvmlError> {
        // First, since all others may answer otherwise in another mode.
        let modes = self.modes(device, health)?;
        let (mut fields, field_latency) = self.fields(device, health)?;
        let record = &mut self.record;
        let limit = record.ask(Figure::PowerLimit, health, || device.enforced_power_limit())?;
        let range = record.ask(Figure::PowerLimitRange, health, || {
            device.power_management_limit_constraints()
        })?;
        let clock = |kind| move || device.clock_info(kind);
        let sm_clock = record.ask(Figure::SmClock, health, clock(Clock::SM))?;
        let memory_clock = record.ask(Figure::MemoryClock, health, clock(Clock::Memory))?;
        let temperature = record.ask(Figure::Temperature, health, || {
            device.temperature(TemperatureSensor::Gpu)
        })?;
        let memory = record.ask(Figure::Memory, health, || device.memory_info())?;
        let utilization = record.ask(Figure::Utilization, health, || device.utilization_rates())?;
        let reasons = record.ask(Figure::ThrottleReasons, health, || {
            raw::clock_event_reasons(device)
        })?;
        let throttled = reasons.map(|bits| self.throttled.add(Timestamp::now(), bits));
        let mut counted = |figure, unit| {
            let value: Option<u64> = fields.remove(&figure);
            value.and_then(|value| self.count(figure, value * unit))
        };
        let mut pcie = Traffic {
            sent: counted(Figure::PcieSent, 1),
            received: counted(Figure::PcieReceived, 1),
            ..Traffic::default()
        };
        let nvlink = Traffic {
            // In KiB.
            sent: counted(Figure::NvlinkSent, 1_024),
            received: counted(Figure::NvlinkReceived, 1_024),
            ..Traffic::default()
        };
        self.rates(device, health, &mut pcie)?;
        Ok(GpuTelemetry {
            device: self.uuid.clone(),
            at: Timestamp::now(),
            limits: PowerLimits {
                enforced: limit.map(milliwatts),
                min: range.as_ref().map(|range| milliwatts(range.min_limit)),
                max: range.as_ref().map(|range| milliwatts(range.max_limit)),
            },
            module_power: fields
                .remove(&Figure::ModulePower)
                // Boards that know no module show 0.
                .filter(|milliwatts| *milliwatts > 0)
                .map(|milliwatts| Watts(milliwatts as f64 * 1e-3)),
            sm_clock: sm_clock.map(Hertz::from_megahertz),
            memory_clock: memory_clock.map(Hertz::from_megahertz),
            temperature: temperature.map(|degrees| Celsius(f64::from(degrees))),
            memory: memory.map(|memory| Memory {
                used: memory.used,
                free: memory.free,
                reserved: memory.reserved,
            }),
            utilization: utilization.map(|rates| Utilization {
                gpu: Ratio::from_percent(rates.gpu),
                memory: Ratio::from_percent(rates.memory),
            }),
            throttled,
            pcie,
            nvlink,
            modes,
            field_latency,
            ..GpuTelemetry::default()
        })
    }

    fn modes(&mut self, device: &Device<'_>, health: &mut Health) -> Result<Modes, NvmlError> {
        let record = &mut self.record;
        let mig = record
            .ask(Figure::MigMode, health, || device.mig_mode())?
            .map(|mode| mode.current != 0);
        if mig.is_some() && self.mig.is_some_and(|known| Some(known) != mig) {
            let state = if mig == Some(true) { "on" } else { "off" };
            log::info!("MIG was switched {state} on {}", self.uuid);
            record.clear();
        }
        self.mig = mig.or(self.mig);
        let compute = record.ask(Figure::ComputeMode, health, || device.compute_mode())?;
        let virtualization = record.ask(Figure::VirtualizationMode, health, || {
            device.virtualization_mode()
        })?;
        Ok(Modes {
            mig,
            compute: compute.map(|mode| match mode {
                ComputeMode::Default => "default",
                ComputeMode::ExclusiveThread => "exclusive_thread",
                ComputeMode::Prohibited => "prohibited",
                ComputeMode::ExclusiveProcess => "exclusive_process",
            }),
            virtualization: virtualization.map(|mode| match mode {
                GpuVirtualizationMode::Bare => "none",
                GpuVirtualizationMode::PassThrough => "passthrough",
                GpuVirtualizationMode::Vgpu => "vgpu",
                GpuVirtualizationMode::HostVgpu => "host_vgpu",
                GpuVirtualizationMode::HostVsga => "host_vsga",
            }),
        })
    }

    /// The fields that the board has, in one call, and how long the driver needed for the slowest.
    fn fields(
        &mut self,
        device: &Device<'_>,
        health: &mut Health,
    ) -> Result<(BTreeMap<Figure, u64>, Option<Duration>), NvmlError> {
        let start = Timestamp::now();
        let (figures, fields): (Vec<Figure>, Vec<Field>) = FIELDS
            .into_iter()
            .filter(|(figure, _)| self.record.wants(*figure, start))
            .unzip();
        if figures.is_empty() {
            return Ok((BTreeMap::new(), None));
        }
        let answer = raw::field_values(device, &fields);
        let end = Timestamp::now();
        health.called(start, end, answer.as_ref().err().is_none_or(is_absent));
        let mut values = BTreeMap::new();
        let mut latency = None;
        match answer {
            Err(error) if is_lost(&error) => return Err(error),
            Err(error) => {
                for figure in figures {
                    self.record.note(figure, Err(&error), end);
                }
            }
            Ok((answers, told)) => {
                latency = told;
                for (figure, answer) in figures.into_iter().zip(answers) {
                    if let Some(error) = answer.as_ref().err().filter(|error| is_lost(error)) {
                        log::debug!("{}: {error}", figure.name());
                        return Err(NvmlError::GpuLost);
                    }
                    self.record.note(figure, answer.as_ref().map(|_| ()), end);
                    values.extend(answer.ok().map(|value| (figure, value)));
                }
            }
        }
        Ok((values, latency))
    }

    /// The rises of a counter; `None` from its first fall on.
    fn count(&mut self, figure: Figure, value: u64) -> Option<u64> {
        let counted = self.rises.entry(figure).or_default().add(value);
        if counted.is_err() {
            log::info!("{}: {} wrap and are not counted", self.uuid, figure.name());
            let absent = Err(&NvmlError::NotSupported);
            self.record.note(figure, absent, Timestamp::now());
        }
        counted.ok()
    }

    /// Present throughput of PCIe where its bytes are not counted.
    fn rates(
        &mut self,
        device: &Device<'_>,
        health: &mut Health,
        pcie: &mut Traffic,
    ) -> Result<(), NvmlError> {
        if pcie.sent.is_some() && pcie.received.is_some() {
            return Ok(());
        }
        let now = Timestamp::now();
        if now >= self.rates_next {
            self.rates_next = now.plus(RATES_EVERY);
            let rate = |counter| move || device.pcie_throughput(counter);
            let sent =
                self.record
                    .ask(Figure::PcieSentRate, health, rate(PcieUtilCounter::Send))?;
            let received = self.record.ask(
                Figure::PcieReceivedRate,
                health,
                rate(PcieUtilCounter::Receive),
            )?;
            // In kilobytes a second.
            self.rates = [sent, received].map(|rate| rate.map(|rate| f64::from(rate) * 1e3));
        }
        let [sent, received] = self.rates;
        pcie.sent_rate = sent.filter(|_| pcie.sent.is_none());
        pcie.received_rate = received.filter(|_| pcie.received.is_none());
        Ok(())
    }
}

fn milliwatts(value: u32) -> Watts {
    Watts(f64::from(value) * 1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_beyond_the_first_numbers_share_one_count() {
        let mut monitor = Monitor::new("GPU-1");
        for number in 1..=100 {
            monitor.count_xid(number);
        }
        let CriticalErrors { device, counts } = monitor.count_xid(7);
        assert_eq!(device, "GPU-1");
        assert_eq!(counts.len(), MOST_XIDS + 1);
        assert_eq!(counts.get(&7), Some(&2));
        assert_eq!(counts.values().sum::<u64>(), 101);
    }

    #[test]
    fn a_counter_that_falls_is_counted_no_more_until_the_driver_is_opened_anew() {
        let mut monitor = Monitor::new("GPU-1");
        let figure = Figure::PcieSent;
        assert_eq!(monitor.count(figure, 100), Some(0));
        assert_eq!(monitor.count(figure, 50), None);
        assert!(!monitor.record.wants(figure, Timestamp::now()));
        monitor.begin();
        assert!(monitor.record.wants(figure, Timestamp::now()));
        assert_eq!(monitor.count(figure, 60), Some(0));
    }
}
