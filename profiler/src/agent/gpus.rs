//! GPUs as the agent meets them: at its start and later, and what they tell beside their energy.

use std::collections::{BTreeMap, HashMap};

use super::Agent;
use super::config::Config;
use super::sinks::Sinks;
use super::state::State;
use crate::ledger::{
    Busy, Component, Event, Ledger, Meter, MeterId, ServiceId, Shares, TypicalIdle,
};
use crate::meters::calibration::Calibrated;
use crate::meters::nvml::Board;
use crate::meters::{GpuUtilization, ProcessUtilization, typical_idle};
use crate::units::Ratio;

/// Where meters are entered.
pub(super) struct Registry<'a> {
    pub(super) config: &'a Config,
    /// What an agent before this one knew.
    pub(super) left: Option<&'a State>,
    pub(super) ledger: &'a mut Ledger,
    pub(super) sinks: &'a mut Sinks,
    pub(super) meters: &'a mut HashMap<MeterId, Meter>,
    pub(super) calibrated: &'a mut HashMap<MeterId, Calibrated>,
}

impl Registry<'_> {
    /// Enters a meter everywhere. `idle` is what boards of its model draw.
    pub(super) fn add(&mut self, mut meter: Meter, idle: Option<TypicalIdle>) -> MeterId {
        if meter.component == Component::Gpu && meter.idle.is_none() {
            meter.idle = self.config.idle_watts.of(&meter.device);
        }
        let calibration = self.config.calibration.get(&meter.device);
        if let Some(calibration) = calibration {
            calibration.correct(&mut meter);
        }
        let id = self.ledger.add_meter(meter.clone());
        match calibration {
            Some(calibration) => {
                self.calibrated.insert(id, Calibrated::new(*calibration));
            }
            // A corrected counter begins anew.
            None => {
                if let Some(latest) = self.left.and_then(|left| left.reading(id, &meter)) {
                    self.ledger.resume(latest);
                }
            }
        }
        let learned = self.left.and_then(|left| left.idle(&meter));
        if let Some(idle) = learned.or(idle) {
            self.ledger.set_typical_idle(id, idle);
        }
        self.sinks.describe_meter(id, &meter);
        self.meters.insert(id, meter);
        id
    }
}

/// What boards of a GPU's model draw when idle.
pub(super) fn idle_of_model(board: &Board) -> Option<TypicalIdle> {
    typical_idle::of(board.name.as_deref()?)
}

/// Names of a GPU, for info metrics.
pub(super) fn describe(board: &Board, sinks: &mut Sinks) {
    let name = board.name.as_deref().unwrap_or("");
    let driver = board.driver.as_deref().unwrap_or("");
    sinks.metrics.record_gpu(&board.uuid, name, driver);
    sinks.fact(&format!("gpu {}", board.uuid), name);
    sinks.fact("gpu_driver", driver);
    if let Some(name) = &board.name {
        sinks.show(|live| live.describe_gpu(&board.uuid, name));
    }
}

impl Agent {
    /// A GPU that came after the start is metered from now on.
    pub(super) fn take_board(&mut self, board: Board) {
        describe(&board, &mut self.sinks);
        let (Some(meter), Some(running)) = (board.meter(), &self.running) else {
            log::warn!("{} shows neither energy nor power", board.uuid);
            return;
        };
        log::info!("{} has appeared and is metered", board.uuid);
        let mut registry = Registry {
            config: &self.config,
            left: None,
            ledger: &mut self.ledger,
            sinks: &mut self.sinks,
            meters: &mut self.meters,
            calibrated: &mut self.calibrated,
        };
        let id = registry.add(meter, idle_of_model(&board));
        running.add_board(board, id);
    }

    /// How busy each service kept a GPU.
    pub(super) fn take_utilization(&mut self, utilization: &GpuUtilization) {
        let GpuUtilization {
            meter,
            processes,
            at,
        } = utilization;
        let Some(meter) = self.meters.get(meter) else {
            return;
        };
        let mut owners = HashMap::new();
        for service in &self.services {
            owners.extend(service.pids.iter().map(|pid| (*pid, service.id)));
        }
        let owner = |pid| owners.get(&pid).copied();
        let busy = by_service(processes, owner);
        let others = processes
            .iter()
            .filter(|process| owner(process.pid).is_none());
        self.ledger.apply(Event::Shares(Shares {
            meter: utilization.meter,
            at: *at,
            busy: Busy::Processes {
                services: busy.values().map(|part| part.0).sum(),
                others: others.map(|process| process.sm.0).sum(),
            },
        }));
        self.sinks
            .metrics
            .record_gpu_utilization(&meter.device, &busy, *at);
    }
}

/// The sum over each service's processes: the driver gives each its part of the time.
fn by_service(
    processes: &[ProcessUtilization],
    owner: impl Fn(u32) -> Option<ServiceId>,
) -> BTreeMap<ServiceId, Ratio> {
    let mut busy: BTreeMap<ServiceId, Ratio> = BTreeMap::new();
    for process in processes {
        if let Some(service) = owner(process.pid) {
            busy.entry(service).or_default().0 += process.sm.0;
        }
    }
    busy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_processes_add_up_and_foreign_ones_count_for_nobody() {
        let process = |pid, percent| ProcessUtilization {
            pid,
            sm: Ratio::from_percent(percent),
            memory: Ratio::default(),
        };
        let processes = [process(1, 25), process(2, 50), process(3, 10)];
        let owner = |pid| (pid < 3).then_some(ServiceId(7));
        let busy = by_service(&processes, owner);
        assert_eq!(busy, BTreeMap::from([(ServiceId(7), Ratio(0.75))]));
    }
}
