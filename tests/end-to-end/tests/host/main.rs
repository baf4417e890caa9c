//! What the host does for a service, on the real kernel: system calls and their times, page faults,
//! tracepoints. Needs root. Each figure is held against what the kernel, `strace`, `perf` or the
//! program itself counted in the same time.

mod cli;
mod events;
mod peers;
mod program;
mod syscalls;

use std::sync::{Mutex, MutexGuard, PoisonError};

use profiler::ledger::ServiceId;

/// The service of every test's program.
const SERVICE: ServiceId = ServiceId(1);

static MACHINE: Mutex<()> = Mutex::new(());

fn machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
