//! What happens in services' processes, counted by kind: page faults, and tracepoints that the
//! user names.

use crate::owners::OWNERS;

/// Page faults that needed no input.
pub const MINOR_FAULTS: usize = 0;
/// Page faults that waited for a page to be read.
pub const MAJOR_FAULTS: usize = 1;
/// The first tracepoint that the user names.
pub const FIRST_NAMED: usize = 8;
/// Tracepoints that the user can name at a time.
pub const NAMED: usize = 8;
/// Kinds in all.
pub const KINDS: usize = FIRST_NAMED + NAMED;

/// One CPU's counts: owner by owner, by kind.
pub type CpuEvents = [u64; OWNERS * KINDS];
