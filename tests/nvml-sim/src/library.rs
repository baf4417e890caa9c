//! The library's one state: which scenario is played, and by how many users.
//!
//! As with NVIDIA's, every init needs its shutdown; the scenario is read at the first init and
//! forgotten at the last shutdown.

use std::fs::File;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use gpu_state::{GpuState, Process, boottime_ns};

use crate::abi::{
    DRIVER_NOT_LOADED, DeviceHandle, GPU_IS_LOST, INVALID_ARGUMENT, NOT_SUPPORTED, Return, SUCCESS,
    UNINITIALIZED, UNKNOWN,
};
use crate::events::Events;
use crate::faults::Feature;
use crate::gpm::Samples;
use crate::readings;
use crate::scenario::{Device, Instance, Scenario, ScenarioError};

static LIBRARY: RwLock<Users> = RwLock::new(Users {
    count: 0,
    machine: None,
});

struct Users {
    count: usize,
    machine: Option<Arc<Machine>>,
}

/// The simulated machine.
pub(crate) struct Machine {
    pub(crate) scenario: Scenario,
    pub(crate) state: GpuState,
    pub(crate) events: Events,
    pub(crate) samples: Samples,
    call_log: Option<File>,
}

/// What a call can fail with: a code other than [`SUCCESS`].
pub(crate) struct Failure(pub(crate) Return);

/// One device of the machine, asked at one moment.
pub(crate) struct Gpu<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) device: &'a Device,
    pub(crate) index: usize,
    pub(crate) now_ns: u64,
}

impl Machine {
    fn from_environment() -> Result<Self, ScenarioError> {
        let scenario = Scenario::from_environment()?;
        let state = scenario.open_state()?;
        // Nobody's measurement depends on the log: without it the scenario is played all the same.
        let call_log = scenario.call_log.as_deref().and_then(|path| {
            let log = File::options().create(true).append(true).open(path);
            log.inspect_err(|error| eprintln!("nvml-sim: {}: {error}", path.display()))
                .ok()
        });
        Ok(Self {
            scenario,
            state,
            events: Events::default(),
            samples: Samples::default(),
            call_log,
        })
    }

    /// Seconds since the state was made.
    pub(crate) fn age_s(&self, now_ns: u64) -> f64 {
        now_ns.saturating_sub(self.state.created_ns()) as f64 * 1e-9
    }

    /// What the scenario does to a call before its body runs.
    pub(crate) fn interfere(&self, call: &str, device: Option<usize>) -> Result<(), Failure> {
        if let Some(mut log) = self.call_log.as_ref() {
            let _ = writeln!(log, "{call}");
        }
        let age = self.age_s(boottime_ns());
        let mut faults = self.scenario.injected.iter();
        let Some(fault) = faults.find(|fault| fault.strikes(call, device, age)) else {
            return Ok(());
        };
        while fault.hangs && fault.strikes(call, device, self.age_s(boottime_ns())) {
            wait_ms(20.0);
        }
        wait_ms(fault.delay_ms);
        fault
            .answer
            .map_or(Ok(()), |answer| Err(Failure(answer.code())))
    }

    /// The devices that are there, by their places in the scenario.
    pub(crate) fn present(&self) -> impl Iterator<Item = (usize, &Device)> {
        let age = self.age_s(boottime_ns());
        let devices = self.scenario.devices.iter().enumerate();
        devices.filter(move |(_, device)| age >= device.appears_at_s)
    }

    /// The board behind a handle, as every call on it begins: after its delay, if it is there. A MIG
    /// device's handle leads to its board, with its place there.
    fn gpu(&self, call: &str, handle: DeviceHandle) -> Result<(Gpu<'_>, Option<usize>), Failure> {
        let (board, place) = (handle.addr() & BOARD, handle.addr() >> BOARD.count_ones());
        let index = board.checked_sub(1).ok_or(Failure(INVALID_ARGUMENT))?;
        let device = self
            .scenario
            .devices
            .get(index)
            .ok_or(Failure(INVALID_ARGUMENT))?;
        wait_ms(self.scenario.faults.slow_call_ms);
        self.interfere(call, Some(index))?;
        let now_ns = boottime_ns();
        if readings::is_lost(&self.scenario, &self.state, now_ns) {
            return Err(Failure(GPU_IS_LOST));
        }
        let gpu = Gpu {
            machine: self,
            device,
            index,
            now_ns,
        };
        Ok((gpu, place.checked_sub(1)))
    }
}

/// The part of a handle that is the board's place + 1; above it lies that of the instance.
const BOARD: usize = 0xFFFF;

/// The handle of a board, or of the MIG device at a place of it.
pub(crate) fn handle_of(board: usize, instance: Option<usize>) -> DeviceHandle {
    let place = instance.map_or(0, |place| place + 1);
    std::ptr::without_provenance_mut((board + 1) | place << BOARD.count_ones())
}

impl Gpu<'_> {
    /// Whether MIG is on.
    pub(crate) fn is_mig(&self) -> bool {
        let changes = self.device.mig_changes_at_s;
        let changed = changes.is_some_and(|at| self.machine.age_s(self.now_ns) >= at);
        self.device.mig != changed
    }

    /// What it is split into at present.
    pub(crate) fn instances(&self) -> &[Instance] {
        match self.is_mig() {
            true => &self.device.instances,
            false => &[],
        }
    }

    /// Who holds a context on it, and on which instance.
    pub(crate) fn processes(&self) -> Vec<(Option<u32>, Process)> {
        let on = |id: Option<u32>, engines: &[usize]| {
            let of = |engine: &usize| self.machine.state.processes(*engine);
            let all = engines.iter().flat_map(of);
            all.map(|process| (id, process)).collect::<Vec<_>>()
        };
        let mut processes = on(None, &self.device.engines);
        for instance in &self.device.instances {
            let id = self.is_mig().then_some(instance.id);
            processes.extend(on(id, &instance.engines));
        }
        processes
    }

    pub(crate) fn needs(&self, feature: Feature) -> Result<(), Failure> {
        if self.machine.scenario.faults.unsupported.contains(&feature) {
            return Err(Failure(NOT_SUPPORTED));
        }
        Ok(())
    }

    /// The energy counter, millijoules.
    pub(crate) fn energy_mj(&self) -> Result<u64, Failure> {
        self.needs(Feature::Energy)?;
        let Machine {
            scenario, state, ..
        } = self.machine;
        readings::counter_at(scenario, state, self.index, self.now_ns).ok_or(Failure(UNKNOWN))
    }

    /// Power over the long window, milliwatts.
    pub(crate) fn average_power_mw(&self) -> Result<u32, Failure> {
        let Machine {
            scenario, state, ..
        } = self.machine;
        readings::average_power_mw(scenario, state, self.index, self.now_ns).ok_or(Failure(UNKNOWN))
    }

    /// Power over the short window, milliwatts.
    pub(crate) fn instant_power_mw(&self) -> Result<u32, Failure> {
        self.needs(Feature::PowerInstant)?;
        let Machine {
            scenario, state, ..
        } = self.machine;
        readings::instant_power_mw(scenario, state, self.index, self.now_ns).ok_or(Failure(UNKNOWN))
    }

    /// Share of the last second that the device was busy, percent.
    pub(crate) fn utilization(&self) -> Result<u32, Failure> {
        let Machine {
            scenario, state, ..
        } = self.machine;
        readings::utilization(scenario, state, self.index, self.now_ns).ok_or(Failure(UNKNOWN))
    }

    /// A power limit, milliwatts.
    pub(crate) fn limit_mw(&self, which: impl Fn(&Device) -> f64) -> Result<u32, Failure> {
        self.needs(Feature::Limits)?;
        Ok((which(self.device) * 1e3).round() as u32)
    }
}

fn wait_ms(time: f64) {
    if time > 0.0 {
        std::thread::sleep(Duration::from_secs_f64(time * 1e-3));
    }
}

/// Opens the library once more.
pub(crate) fn initialize(call: &str) -> Return {
    guarded(|| {
        let mut users = LIBRARY
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if users.machine.is_none() {
            match Machine::from_environment() {
                Ok(machine) => users.machine = Some(Arc::new(machine)),
                Err(error) => {
                    eprintln!("nvml-sim: {error}");
                    return Err(Failure(DRIVER_NOT_LOADED));
                }
            }
        }
        if let Some(machine) = users.machine.clone()
            && let Err(failure) = machine.interfere(call, None)
        {
            if users.count == 0 {
                users.machine = None;
            }
            return Err(failure);
        }
        users.count += 1;
        Ok(())
    })
}

/// Closes the library once.
pub(crate) fn shut_down(call: &str) -> Return {
    guarded(|| {
        let mut users = LIBRARY
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let machine = users.machine.clone();
        users.count = users.count.checked_sub(1).ok_or(Failure(UNINITIALIZED))?;
        if users.count == 0 {
            users.machine = None;
        }
        drop(users);
        machine.map_or(Ok(()), |machine| machine.interfere(call, None))
    })
}

/// Runs one C call: needs an open library, turns its result into a code, lets no panic out.
pub(crate) fn call(name: &str, body: impl FnOnce(&Machine) -> Result<(), Failure>) -> Return {
    opened(|machine| {
        machine.interfere(name, None)?;
        body(machine)
    })
}

fn opened(body: impl FnOnce(&Machine) -> Result<(), Failure>) -> Return {
    guarded(|| {
        let users = LIBRARY
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let machine = users.machine.clone().ok_or(Failure(UNINITIALIZED))?;
        // A slow call on one thread must not hold up another's shutdown.
        drop(users);
        body(&machine)
    })
}

/// [`call`] for functions of one board: a MIG device has none of what they tell.
pub(crate) fn device_call(
    name: &str,
    handle: DeviceHandle,
    body: impl FnOnce(&Gpu<'_>) -> Result<(), Failure>,
) -> Return {
    either_call(name, handle, |gpu, instance| match instance {
        None => body(gpu),
        Some(_) => Err(Failure(NOT_SUPPORTED)),
    })
}

/// [`call`] for functions of one MIG device.
pub(crate) fn instance_call(
    name: &str,
    handle: DeviceHandle,
    body: impl FnOnce(&Gpu<'_>, &Instance) -> Result<(), Failure>,
) -> Return {
    either_call(name, handle, |gpu, instance| match instance {
        Some(instance) => body(gpu, instance),
        None => Err(Failure(NOT_SUPPORTED)),
    })
}

/// [`call`] for functions of a board or of a MIG device.
pub(crate) fn either_call(
    name: &str,
    handle: DeviceHandle,
    body: impl FnOnce(&Gpu<'_>, Option<&Instance>) -> Result<(), Failure>,
) -> Return {
    opened(|machine| {
        let (gpu, place) = machine.gpu(name, handle)?;
        let Some(place) = place else {
            return body(&gpu, None);
        };
        // Handles end with the mode.
        let instance = gpu.instances().get(place);
        body(&gpu, Some(instance.ok_or(Failure(INVALID_ARGUMENT))?))
    })
}

fn guarded(body: impl FnOnce() -> Result<(), Failure>) -> Return {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(Failure(code))) => code,
        Err(_) => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_code() {
        assert_eq!(
            guarded(|| panic!("this panic is part of the test")),
            UNKNOWN
        );
    }
}
