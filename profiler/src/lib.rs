//! perjoule: the measured joules of every request on a GPU inference node.
//!
//! Floors, and nobody reaches up: `units`, `clock` < `ledger` < `probes`, `meters`, `services`
//! (sources) and `export` (a sink) < `agent`, `report` < `cli`. See `docs/architecture.md`.

pub mod clock;
pub mod ledger;
pub mod meters;
pub mod services;
pub mod units;
