//! The library's one state: which scenario is played, and by how many users.
//!
//! As with NVIDIA's, every init needs its shutdown; the scenario is read at the first init and
//! forgotten at the last shutdown.

use std::fs::File;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use gpu_state::{GpuState, boottime_ns};

use crate::abi::{
    DRIVER_NOT_LOADED, DeviceHandle, GPU_IS_LOST, INVALID_ARGUMENT, NOT_SUPPORTED, Return, SUCCESS,
    UNINITIALIZED, UNKNOWN,
};
use crate::events::Events;
use crate::faults::Feature;
use crate::readings;
use crate::scenario::{Device, Scenario, ScenarioError};

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

    /// The device behind a handle, as every call on it begins: after its delay, if it is there.
    pub(crate) fn gpu(&self, call: &str, handle: DeviceHandle) -> Result<Gpu<'_>, Failure> {
        let index = handle
            .addr()
            .checked_sub(1)
            .ok_or(Failure(INVALID_ARGUMENT))?;
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
        Ok(Gpu {
            machine: self,
            device,
            index,
            now_ns,
        })
    }
}

impl Gpu<'_> {
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

/// [`call`] for functions of one device.
pub(crate) fn device_call(
    name: &str,
    handle: DeviceHandle,
    body: impl FnOnce(&Gpu<'_>) -> Result<(), Failure>,
) -> Return {
    opened(|machine| body(&machine.gpu(name, handle)?))
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
