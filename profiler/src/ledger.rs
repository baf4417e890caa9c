//! The ledger: every interval of every meter, booked once, to the microjoule.
//!
//! Pure: no I/O, no clock, no async. In: [`Event`]s from any source, live or replayed.
//! Out: [`Booked`] values. Method and its sources: `docs/principles.md`.

mod aggregate;
mod names;
mod values;

pub use aggregate::Aggregate;
pub use values::*;
