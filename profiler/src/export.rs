//! Prometheus: what has been booked, as counters and histograms that never fall.
//!
//! In: [`Booked`](crate::ledger::Booked) values and the sources' own state, from the agent's loop
//! alone ([`Metrics`]). Out: an immutable snapshot a tick ([`Exposition`]), served by [`http`]. A
//! scrape reads the snapshot: it never waits for a device, the kernel or the ledger, and two
//! scrapes of one tick agree.

mod activity;
mod aliases;
mod catalog;
mod exemplars;
mod families;
mod fold;
mod histogram;
pub mod http;
pub mod labels;
mod metrics;
mod negotiation;
mod openmetrics;
mod process;
mod saved;
mod smoothed;
mod snapshot;
#[cfg(test)]
mod tests;
mod totals;
mod web;

pub use aliases::Aliases;
pub use catalog::{FAMILIES, Family, Kind};
pub use fold::SERIES_BUDGET;
pub use metrics::Metrics;
pub use negotiation::{Encoding, Format};
pub(crate) use process::cpu_seconds;
pub use saved::Saved;
pub use snapshot::{BeforeShown, Exposition, Snapshot};
pub use totals::{NodeTotals, SourceCalls};
pub use web::{Web, WebError};
