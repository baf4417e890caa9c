//! The kernel side's slots, read while it writes them.

use profiler_ebpf::request::{Facts, Slot};

use crate::probes::shared_memory::{SharedArray, Words};

/// A copy of a slot, word by word.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Copied(Slot);

// SAFETY: `Slot` is `repr(C)` and made of integers without padding between them; its size, a
// multiple of 8, is checked below.
unsafe impl Words for Copied {}
const _: () = assert!(size_of::<Slot>() == 320 && size_of::<Facts>() == 240);

/// Where a slot says which HTTP/2 connection its request is a stream of.
pub(super) const CONNECTION: usize =
    std::mem::offset_of!(Slot, facts.connection) / size_of::<u64>();

/// The word of a slot that changes with every change of its facts.
pub(super) const SEQUENCE: usize = std::mem::offset_of!(Slot, sequence) / size_of::<u64>();

/// A slot's facts with the sequence they belong to; `None` while the kernel side writes.
pub(super) fn read_slot(slots: &SharedArray<Copied>, index: usize) -> Option<(u64, Facts)> {
    for _ in 0..4 {
        let before = slots.word(index, SEQUENCE)?;
        let Copied(slot) = slots.get(index)?;
        if before % 2 == 0 && slots.word(index, SEQUENCE)? == before {
            return Some((before, slot.facts));
        }
    }
    None
}
