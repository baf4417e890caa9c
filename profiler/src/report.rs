//! What was measured, summed up: one typed model behind every form that is shown.
//!
//! In: the same [`Booked`](crate::ledger::Booked) values that the exporter gets ([`Summary`]).
//! Out: a [`Report`], and from it JSON (schema 1), a table for people, and Markdown. No form
//! computes a figure of its own, so they cannot disagree.

mod activity;
pub(crate) mod figures;
mod full;
mod host;
pub(crate) mod markdown;
mod model;
pub(crate) mod prose;
mod quantiles;
mod summary;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod tokens;
mod waits;

pub use activity::{CudaReport, PmcReport};
pub use full::{FullEnergy, IdlePolicy};
pub use host::{HostReport, SyscallReport};
pub use model::{
    AccountJoules, EnergyJoules, JoulesPerRequest, LedgerCheck, Losses, MeterReport, Report,
    RequestCounts, Seconds, ServiceReport, SourceTokens, Switches, ThreadReport, Tokens,
};
pub use quantiles::Quantiles;
pub use summary::Summary;
