//! The ring of segments: one writer a device at a time, any number of readers, no locks between
//! writers and readers.
//!
//! A device has one writer, or several that share it and take turns: each appends behind what the
//! others have published, under a lock that is held for the appending alone.
//!
//! A slot is written before `head` passes it and is valid until `head` has gone once around, so a
//! reader looks at `head` again after it has read (a sequence lock whose sequence is `head`;
//! Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::layout::{DeviceLayout, SegmentLayout};
use crate::state::{Claim, Turn};
use crate::{GpuState, MAX_DEVICES, RING_CAPACITY, boottime_ns};

/// A time in which a device draws constant power above idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its start, boottime nanoseconds.
    pub start_ns: u64,
    /// Its end, later than its start.
    pub end_ns: u64,
    /// Energy above idle in it, microjoules.
    pub energy_uj: u64,
}

impl Segment {
    /// Energy from the start until `at_ns`, rounded down; all of it from the end on.
    fn energy_until(&self, at_ns: u64) -> u64 {
        if at_ns >= self.end_ns {
            return self.energy_uj;
        }
        let passed = u128::from(at_ns.saturating_sub(self.start_ns));
        let length = u128::from(self.end_ns.saturating_sub(self.start_ns).max(1));
        (u128::from(self.energy_uj) * passed / length) as u64
    }
}

/// Why nothing could be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The state has room for [`MAX_DEVICES`] devices.
    #[error("there is no GPU {0}; a state file has room for {MAX_DEVICES}")]
    NoSuchDevice(usize),
    /// One writer a device.
    #[error("GPU {0} is driven by another engine already")]
    Taken(usize),
    /// All process slots are in use.
    #[error("too many processes hold a context on GPU {0}")]
    TooManyProcesses(usize),
    /// A segment must have a length and must not begin before the last one ends.
    #[error("segment from {start_ns} to {end_ns} ns: the last one ends at {last_end_ns} ns")]
    Overlap {
        /// The refused segment's start.
        start_ns: u64,
        /// The refused segment's end.
        end_ns: u64,
        /// Where it could have begun.
        last_end_ns: u64,
    },
    /// The lock on the device failed.
    #[error("cannot lock the GPU state file: {0}")]
    Lock(#[from] io::Error),
}

/// One who says what a device does.
#[derive(Debug)]
pub struct Writer {
    state: Arc<GpuState>,
    device: usize,
    /// Others may write between two segments of this one.
    shared: bool,
    last_end_ns: u64,
    total_uj: u64,
}

impl GpuState {
    /// Becomes the writer of `device`; goes on where an earlier one stopped.
    ///
    /// # Errors
    /// There is no such device, or it has a writer.
    pub fn writer(self: &Arc<Self>, device: usize) -> Result<Writer, PublishError> {
        self.write_as(device, Claim::Alone)
    }

    /// Becomes one of several writers of `device`, one a process.
    ///
    /// # Errors
    /// There is no such device, or it has a writer that does not share it.
    pub fn shared_writer(self: &Arc<Self>, device: usize) -> Result<Writer, PublishError> {
        self.write_as(device, Claim::Shared)
    }

    fn write_as(self: &Arc<Self>, device: usize, claim: Claim) -> Result<Writer, PublishError> {
        let layout = self
            .device(device)
            .ok_or(PublishError::NoSuchDevice(device))?;
        if !self.claim(device, claim)? {
            return Err(PublishError::Taken(device));
        }
        let (last_end_ns, total_uj) = newest(layout);
        Ok(Writer {
            state: Arc::clone(self),
            device,
            shared: claim == Claim::Shared,
            last_end_ns,
            total_uj,
        })
    }

    /// Cumulative energy of `device` above idle at `at_ns`, microjoules; what is published for
    /// times after `at_ns` does not count. `None` where the ring no longer remembers, and for
    /// a device that cannot exist.
    pub fn energy_at(&self, device: usize, at_ns: u64) -> Option<u64> {
        let layout = self.device(device)?;
        loop {
            let head = layout.head.load(Ordering::Acquire);
            // The writer may be busy in the oldest slots while this looks for its segment.
            let oldest = head.saturating_sub(RING_CAPACITY as u64 - 64);
            match find(layout, oldest, head, at_ns) {
                Found::Segment(segment, before) => {
                    return Some(before + segment.energy_until(at_ns));
                }
                Found::BeforeAll if oldest == 0 => return Some(0),
                Found::BeforeAll => return None,
                Found::Overwritten => {}
            }
        }
    }

    /// For how long segments of `device` ran between two moments, nanoseconds, and their energy in
    /// that time, microjoules. `None` as for [`Self::energy_at`].
    pub fn ran_between(&self, device: usize, from_ns: u64, to_ns: u64) -> Option<(u64, u64)> {
        let energy = self.energy_at(device, to_ns)? - self.energy_at(device, from_ns)?;
        let layout = self.device(device)?;
        let head = layout.head.load(Ordering::Acquire);
        let oldest = head.saturating_sub(RING_CAPACITY as u64 - 64);
        let mut ran_ns = 0;
        for index in (oldest..head).rev() {
            let (segment, _) = read_segment(layout, index)?;
            if segment.end_ns <= from_ns {
                break;
            }
            let end_ns = segment.end_ns.min(to_ns);
            ran_ns += end_ns.saturating_sub(segment.start_ns.max(from_ns));
        }
        Some((ran_ns, energy))
    }

    /// Segments of `device` that became visible only after they had begun: for a moment readers
    /// saw the device idle. 0 on a machine that keeps up.
    pub fn late_segments(&self, device: usize) -> u64 {
        self.device(device)
            .map_or(0, |layout| layout.late.load(Ordering::Relaxed))
    }
}

impl Writer {
    /// Where the last segment ends that this writer knows of; 0 if there is none.
    pub fn last_end_ns(&self) -> u64 {
        self.last_end_ns
    }

    /// Σ energy of all segments of this device that this writer knows of, microjoules.
    pub fn total_uj(&self) -> u64 {
        self.total_uj
    }

    /// Publishes a segment. It should begin in the future: what readers have seen must not change.
    ///
    /// # Errors
    /// The segment is empty or begins before the last one ends.
    pub fn publish(&mut self, segment: Segment) -> Result<(), PublishError> {
        let state = Arc::clone(&self.state);
        let _turn = self.turn(&state)?;
        self.append(segment)
    }

    /// Waits for its turn, and learns what the others have published; none is needed alone.
    fn turn<'s>(&mut self, state: &'s GpuState) -> Result<Option<Turn<'s>>, PublishError> {
        if !self.shared {
            return Ok(None);
        }
        let turn = state.turn(self.device)?;
        if let Some(layout) = state.device(self.device) {
            (self.last_end_ns, self.total_uj) = newest(layout);
        }
        Ok(Some(turn))
    }

    fn append(&mut self, segment: Segment) -> Result<(), PublishError> {
        let Segment {
            start_ns,
            end_ns,
            energy_uj,
        } = segment;
        if start_ns < self.last_end_ns || end_ns <= start_ns {
            let last_end_ns = self.last_end_ns;
            return Err(PublishError::Overlap {
                start_ns,
                end_ns,
                last_end_ns,
            });
        }
        let layout = self
            .state
            .device(self.device)
            .ok_or(PublishError::NoSuchDevice(self.device))?;
        let head = layout.head.load(Ordering::Relaxed);
        // Readers that see a word of this slot must also see the head that retired it.
        fence(Ordering::Release);
        let slot = slot(layout, head);
        slot.start_ns.store(start_ns, Ordering::Relaxed);
        slot.end_ns.store(end_ns, Ordering::Relaxed);
        slot.energy_uj.store(energy_uj, Ordering::Relaxed);
        slot.before_uj.store(self.total_uj, Ordering::Relaxed);
        layout.head.store(head + 1, Ordering::Release);
        if boottime_ns() > start_ns {
            layout.late.fetch_add(1, Ordering::Relaxed);
        }
        self.last_end_ns = end_ns;
        self.total_uj += energy_uj;
        Ok(())
    }
}

/// Publishes a segment on the devices of all `writers` at the same time: at `earliest_ns`, or where
/// the last segment of any of them ends if that is later. Returns its start.
///
/// # Errors
/// The segment is empty, or the lock on a device fails.
pub fn publish_together(
    writers: &mut [Writer],
    earliest_ns: u64,
    duration_ns: u64,
    energy_uj: u64,
) -> Result<u64, PublishError> {
    // In one order everywhere, or two writers would wait for each other.
    writers.sort_by_key(|writer| writer.device);
    let states: Vec<Arc<GpuState>> = writers
        .iter()
        .map(|writer| Arc::clone(&writer.state))
        .collect();
    let _turns = writers
        .iter_mut()
        .zip(&states)
        .map(|(writer, state)| writer.turn(state))
        .collect::<Result<Vec<_>, _>>()?;
    let start_ns = writers
        .iter()
        .map(Writer::last_end_ns)
        .fold(earliest_ns, u64::max);
    for writer in writers {
        writer.append(Segment {
            start_ns,
            end_ns: start_ns + duration_ns,
            energy_uj,
        })?;
    }
    Ok(start_ns)
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.state.release(self.device);
    }
}

enum Found {
    /// The last segment that begins at or before the moment, and the energy before it.
    Segment(Segment, u64),
    BeforeAll,
    Overwritten,
}

/// Looks back from the newest in growing strides, because nearly every question is about the last
/// tick, then halves.
fn find(layout: &DeviceLayout, oldest: u64, head: u64, at_ns: u64) -> Found {
    let mut after = head;
    let mut stride = 1;
    let mut begun = loop {
        if after == oldest {
            return Found::BeforeAll;
        }
        let candidate = after.saturating_sub(stride).max(oldest);
        match read_segment(layout, candidate) {
            None => return Found::Overwritten,
            Some((segment, _)) if segment.start_ns <= at_ns => break candidate,
            Some(_) => after = candidate,
        }
        stride *= 2;
    };
    while after - begun > 1 {
        let middle = begun + (after - begun) / 2;
        match read_segment(layout, middle) {
            None => return Found::Overwritten,
            Some((segment, _)) if segment.start_ns <= at_ns => begun = middle,
            Some(_) => after = middle,
        }
    }
    match read_segment(layout, begun) {
        None => Found::Overwritten,
        Some((segment, before)) => Found::Segment(segment, before),
    }
}

/// The end of the newest segment and the energy until there; 0 before the first.
fn newest(layout: &DeviceLayout) -> (u64, u64) {
    let head = layout.head.load(Ordering::Acquire);
    let last = head
        .checked_sub(1)
        .and_then(|newest| read_segment(layout, newest));
    last.map_or((0, 0), |(segment, before)| {
        (segment.end_ns, before + segment.energy_uj)
    })
}

fn slot(layout: &DeviceLayout, index: u64) -> &SegmentLayout {
    &layout.ring[index as usize % RING_CAPACITY]
}

/// Segment `index` and the energy before it; `None` if it has been overwritten.
fn read_segment(layout: &DeviceLayout, index: u64) -> Option<(Segment, u64)> {
    let slot = slot(layout, index);
    let segment = Segment {
        start_ns: slot.start_ns.load(Ordering::Relaxed),
        end_ns: slot.end_ns.load(Ordering::Relaxed),
        energy_uj: slot.energy_uj.load(Ordering::Relaxed),
    };
    let before = slot.before_uj.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    let head = layout.head.load(Ordering::Relaxed);
    (head < index + RING_CAPACITY as u64).then_some((segment, before))
}

#[cfg(test)]
mod tests;
