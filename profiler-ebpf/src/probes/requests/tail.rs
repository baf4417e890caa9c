//! The ends of responses that may hold the server's own token counts, kept by slot.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use profiler_ebpf::http1::{KEPT, Tail};
use profiler_ebpf::request::{Phase, Slot, TAIL};

use super::payload::{Buffer, read_end};

/// 1 if the ends of responses are kept.
#[unsafe(no_mangle)]
static USAGE: Global<u8> = Global::new(0);

/// Sized by the loader, if they are kept.
#[map]
static REQUEST_TAILS: Array<Tail> = Array::with_max_entries(1, 0);

/// The least bytes of a send whose end is worth keeping: not what is only a last chunk.
const LEAST_END: u64 = 16;

/// Where the end of this slot's response is kept; `None` where it is not.
#[inline(always)]
pub(super) fn tail<'a>(slot: *const Slot) -> Option<&'a mut Tail> {
    if USAGE.load() == 0 {
        return None;
    }
    // SAFETY: a slot of the array.
    let tail = REQUEST_TAILS.get_ptr_mut(unsafe { (*slot).facts.slot })?;
    // SAFETY: an entry of the map; one program at a time uses a socket's, see `Payload::parts`.
    Some(unsafe { &mut *tail })
}

/// Copies between maps.
#[inline(always)]
pub(super) fn copy(to: *mut u8, from: *const u8, bytes: u64) {
    // SAFETY: the verifier checks both ends.
    unsafe {
        bpf_probe_read_kernel(to.cast::<c_void>(), bytes as u32, from.cast::<c_void>());
    }
}

/// Keeps the end of a JSON response that does not stream, after a send of `total` bytes, if it
/// is the end of the response or of a chunk.
#[inline(always)]
pub(super) fn keep_json(buffer: *mut Buffer, slot: *mut Slot, total: u64) {
    // SAFETY: a slot of the array, which is being written.
    let facts = unsafe { &mut (*slot).facts };
    let reached = facts.phase == Phase::IDLE || facts.phase == Phase::SIZE;
    if !reached || total < LEAST_END {
        return;
    }
    let Some(tail) = tail(slot) else { return };
    let bytes = if total < KEPT as u64 {
        total
    } else {
        KEPT as u64
    };
    let to = tail.keep_whole(bytes);
    if read_end(buffer, to, total, bytes) {
        facts.flags |= TAIL;
    }
}
