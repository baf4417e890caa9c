//! A stand-in libnvidia-ml.so.1 for machines without a GPU; tests only.
//!
//! In: a [`Scenario`] (TOML, named by the environment variable [`SCENARIO_VARIABLE`]) and the
//! state file in which inference-sim's engine says what each GPU does. Out: the C functions of
//! NVIDIA's `nvml.h` (API 12, checked against PyPI's `nvidia-nvml-dev-cu12` 12.9.79), as far as
//! energy, power, limits, identity, processes, instances (MIG), their activity (GPM) and what a
//! monitor shows beside them go. A function that is not here fails in nvml-wrapper as
//! `FailedToLoadSymbol`, as it does with an old driver.
//!
//! The same readings are open to Rust programs: [`counter_at`] gives the energy counter as the
//! library shows it at any past moment, so that a test can compare an agent's sums with the
//! counter itself.

mod abi;
mod calls;
mod events;
mod faults;
mod gpm;
mod library;
mod noise;
mod readings;
mod scenario;

pub use calls::FUNCTIONS;
pub use faults::{Answer, Faults, Feature, Injected, Jump, Throttle, Xid};
pub use readings::{counter_at, last_tick_ns};
pub use scenario::{Device, Instance, Scenario, ScenarioError};

/// The environment variable that names the scenario file.
pub const SCENARIO_VARIABLE: &str = "PERJOULE_NVML_SIM_SCENARIO";
