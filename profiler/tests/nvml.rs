//! The NVML source against `tests/nvml-sim`, loaded as a driver's library is: what it tells of boards
//! with every function unsupported in turn, with calls that hang, with boards that come and go.

#[path = "nvml/driver.rs"]
mod driver;
#[path = "nvml/faults.rs"]
mod faults;
#[path = "nvml/mig.rs"]
mod mig;
#[path = "nvml/telemetry.rs"]
mod telemetry;
#[path = "nvml/unsupported.rs"]
mod unsupported;
