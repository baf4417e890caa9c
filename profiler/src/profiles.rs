//! Stacks and what they cost: names of code, and joules on top of them.
//!
//! In: addresses of samples; booked intervals. Out: named stacks ([`symbols`]), energy by stack
//! ([`energy`]), and that as folded lines, a flame graph, pprof's and Firefox's formats.
//!
//! A stack is one text: names of its frames, the outermost first, one a line; those of the kernel end
//! in `_[k]`. What is no code stands in brackets.

pub mod energy;
pub mod firefox;
pub mod flame_graph;
pub mod folded;
mod kernel_symbols;
pub mod pprof;
pub mod symbols;

/// Between the frames of a stack's text. Rust's names hold semicolons.
pub const SEPARATOR: char = '\n';
/// Behind names of the kernel's functions, as perf's tools have it.
pub const KERNEL_MARK: &str = "_[k]";
