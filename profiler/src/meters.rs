//! What measures energy.
pub mod follow;
