//! One module a subject; the agent's `probes` has the same names.

mod cost;
mod owners;
mod requests;
mod sched;
mod syscalls;
