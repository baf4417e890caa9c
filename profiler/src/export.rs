//! Prometheus: what has been booked, as counters and histograms that never fall.
//!
//! In: [`Booked`](crate::ledger::Booked) values and the sources' own state, from the agent's loop
//! alone ([`Metrics`]). Out: an immutable snapshot a tick ([`Exposition`]), served by [`http`]. A
//! scrape reads the snapshot: it never waits for a device, the kernel or the ledger, and two
//! scrapes of one tick agree.

mod activity;
mod catalog;
mod families;
mod histogram;
pub mod http;
pub mod labels;
mod metrics;
mod process;
mod saved;
mod snapshot;
#[cfg(test)]
mod tests;
mod totals;
mod web;

pub use catalog::{FAMILIES, Family, Kind};
pub use metrics::{MAX_SERVICES, Metrics};
pub(crate) use process::cpu_seconds;
pub use saved::Saved;
pub use snapshot::{BeforeShown, CONTENT_TYPE, Exposition, Snapshot};
pub use totals::{NodeTotals, SourceCalls};
pub use web::{Web, WebError};
