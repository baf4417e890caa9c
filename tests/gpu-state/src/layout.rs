//! The file's layout: plain atomics in the machine's own byte order, read and written in place.

use std::sync::atomic::AtomicU64;

use crate::{MAX_DEVICES, MAX_PROCESSES, RING_CAPACITY};

/// First word of every state file: "PJGPUST" and the layout's version.
pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"PJGPUST\x01");

/// The whole file.
#[repr(C)]
pub(crate) struct Layout {
    pub(crate) magic: AtomicU64,
    /// When the file was made: the moment the simulated driver was loaded.
    pub(crate) created_ns: AtomicU64,
    _rest_of_page: [AtomicU64; 510],
    pub(crate) devices: [DeviceLayout; MAX_DEVICES],
}

/// One device's part of the file.
#[repr(C)]
pub(crate) struct DeviceLayout {
    /// Segments published since the file was made; the newest is in slot `(head - 1) % capacity`.
    pub(crate) head: AtomicU64,
    /// Segments that became visible only after they had begun.
    pub(crate) late: AtomicU64,
    pub(crate) processes: [ProcessLayout; MAX_PROCESSES],
    _rest_of_page: [AtomicU64; 510 - 2 * MAX_PROCESSES],
    pub(crate) ring: [SegmentLayout; RING_CAPACITY],
}

/// One process that holds a context; `pid` 0 is a free slot.
#[repr(C)]
pub(crate) struct ProcessLayout {
    pub(crate) pid: AtomicU64,
    pub(crate) memory_bytes: AtomicU64,
}

/// One published segment.
#[repr(C)]
pub(crate) struct SegmentLayout {
    pub(crate) start_ns: AtomicU64,
    pub(crate) end_ns: AtomicU64,
    pub(crate) energy_uj: AtomicU64,
    /// Σ energy of all segments before this one.
    pub(crate) before_uj: AtomicU64,
}

const _: () = assert!(size_of::<ProcessLayout>() == 16 && size_of::<SegmentLayout>() == 32);
const _: () = assert!(size_of::<DeviceLayout>() == 4096 + 32 * RING_CAPACITY);
const _: () = assert!(size_of::<Layout>() == 4096 + MAX_DEVICES * size_of::<DeviceLayout>());
