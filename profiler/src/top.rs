//! What `perjoule top` shows: the latest minutes of what was booked, and how they look on a screen.
//!
//! `model` is a sink beside the metrics and the summary: it is fed the same values and keeps their
//! latest five minutes, second by second, in bounded memory. `figures` are its sums over a window.
//! `keys` turns what is typed into what is wanted ([`Ui`]); `view` draws model and wish on a frame.
//! None of them has a clock, a terminal or a thread: those are `cli::top`'s.

mod columns;
mod figures;
mod keys;
mod model;
mod requests;
mod ring;
mod sketch;
#[cfg(test)]
mod tests;
mod view;

pub use columns::Column;
pub use figures::Window;
pub use keys::{Asked, Page, Ui};
pub use model::Model;
pub use requests::Order;
pub use view::{Theme, draw};
