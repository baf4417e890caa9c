//! What was measured, summed up: one typed model behind every form that is shown.
//!
//! In: the same [`Booked`](crate::ledger::Booked) values that the exporter gets ([`Summary`]).
//! Out: a [`Report`], and from it JSON (schema 1), a table for people, HTML, Markdown and CSV. No form
//! computes a figure of its own, so they cannot disagree. What a planner asks beside ([`Plan`]) is made
//! from a recording ([`read`]), or from the series that a fleet recorded ([`read_fleet`]).

mod activity;
mod carbon;
mod chart;
mod csv;
mod document;
pub(crate) mod figures;
mod fleet;
mod full;
mod host;
mod html;
mod inputs;
mod intervals;
pub(crate) mod markdown;
mod model;
mod planner;
pub(crate) mod prose;
mod quantiles;
mod recorded;
mod repeats;
mod rows;
mod separated;
mod summary;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod tokens;
mod waits;

pub use activity::{CudaReport, PmcReport};
pub(crate) use csv::plain;
pub use fleet::model::{Fleet, Group};
pub use fleet::{FleetError, FleetSource, read_fleet};
pub use full::{FullEnergy, IdlePolicy};
pub use host::{HostReport, SyscallReport};
pub use inputs::Inputs;
pub use intervals::INTERVAL_HEADER;
pub use model::{
    AccountJoules, EnergyJoules, JoulesPerRequest, LedgerCheck, Losses, MeterReport, Report,
    RequestCounts, Seconds, ServiceReport, SourceTokens, Switches, ThreadReport, Tokens,
};
pub use planner::Planner;
pub use planner::model::Plan;
pub use quantiles::Quantiles;
pub use recorded::read;
pub use repeats::Repeats;
pub use separated::Separator;
pub use summary::Summary;
