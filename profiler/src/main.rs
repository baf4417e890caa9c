//! The `perjoule` binary.

fn main() {}
