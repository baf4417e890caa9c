//! GPUs as the agent meets them: at its start and later, and what they tell beside their energy.

use std::collections::{BTreeMap, HashMap};

use super::Agent;
use super::config::Config;
use super::sinks::Sinks;
use crate::ledger::{Component, Ledger, Meter, MeterId, ServiceId};
use crate::meters::nvml::Board;
use crate::meters::{GpuUtilization, ProcessUtilization};
use crate::units::Ratio;

/// Enters a meter everywhere: ledger, sinks, list.
pub(super) fn add_meter(
    mut meter: Meter,
    config: &Config,
    ledger: &mut Ledger,
    sinks: &mut Sinks,
    meters: &mut HashMap<MeterId, Meter>,
) -> MeterId {
    if meter.component == Component::Gpu && meter.idle.is_none() {
        meter.idle = config.idle_watts.of(&meter.device);
    }
    let id = ledger.add_meter(meter.clone());
    sinks.describe_meter(id, &meter);
    meters.insert(id, meter);
    id
}

/// Names of a GPU, for info metrics.
pub(super) fn describe(board: &Board, sinks: &mut Sinks) {
    let name = board.name.as_deref().unwrap_or("");
    let driver = board.driver.as_deref().unwrap_or("");
    sinks.metrics.record_gpu(&board.uuid, name, driver);
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
        let Self {
            config,
            ledger,
            sinks,
            meters,
            ..
        } = self;
        let id = add_meter(meter, config, ledger, sinks, meters);
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
        let busy = by_service(processes, |pid| owners.get(&pid).copied());
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
