//! The agent: wires sources to the ledger and the ledger to sinks.

pub mod config;
