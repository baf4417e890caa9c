//! The agent: wires sources to the ledger and the ledger to its sinks.

pub mod config;
