//! perjoule: the measured joules of every request on a GPU inference node.
//!
//! Floors, and nobody reaches up: `units`, `clock`, `ids`, `finding`, `telemetry`, `pods`, `waits`, `http`, `exposition`, `student`,
//! `suggestion`
//! < `ledger` < `activity` < `probes`, `meters`, `services`, `tokens`, `kubelet`, `profiles` (sources) and `export`, `recording`
//! (sinks) < `agent`, `replay`, `report`, `top` < `compare`, `explain` < `cli`. See `docs/architecture.md`.

pub mod activity;
pub mod agent;
pub mod cli;
pub mod clock;
pub mod compare;
pub mod durations;
pub mod explain;
pub mod export;
mod exposition;
pub mod finding;
mod http;
mod ids;
pub mod kubelet;
pub mod ledger;
pub mod meters;
pub mod perf_event;
pub mod pods;
pub mod probes;
pub mod profiles;
pub mod recording;
pub mod replay;
pub mod report;
pub mod services;
mod student;
mod suggestion;
pub mod telemetry;
pub mod tokens;
pub mod top;
pub mod units;
pub mod waits;
