//! The ring of segments: one writer a device, any number of readers, no locks between them.
//!
//! A slot is written before `head` passes it and is valid until `head` has gone once around, so a
//! reader looks at `head` again after it has read (a sequence lock whose sequence is `head`;
//! Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::layout::{DeviceLayout, SegmentLayout};
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

/// The one who says what a device does.
#[derive(Debug)]
pub struct Writer {
    state: Arc<GpuState>,
    device: usize,
    last_end_ns: u64,
    total_uj: u64,
}

impl GpuState {
    /// Becomes the writer of `device`; goes on where an earlier one stopped.
    ///
    /// # Errors
    /// There is no such device, or it has a writer.
    pub fn writer(self: &Arc<Self>, device: usize) -> Result<Writer, PublishError> {
        let layout = self
            .device(device)
            .ok_or(PublishError::NoSuchDevice(device))?;
        if !self.claim(device)? {
            return Err(PublishError::Taken(device));
        }
        let head = layout.head.load(Ordering::Acquire);
        let last = head
            .checked_sub(1)
            .and_then(|newest| read_segment(layout, newest));
        let (last_end_ns, total_uj) = last.map_or((0, 0), |(segment, before)| {
            (segment.end_ns, before + segment.energy_uj)
        });
        Ok(Writer {
            state: Arc::clone(self),
            device,
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
    /// Where the last segment ends; 0 if there is none.
    pub fn last_end_ns(&self) -> u64 {
        self.last_end_ns
    }

    /// Σ energy of all segments ever published for this device, microjoules.
    pub fn total_uj(&self) -> u64 {
        self.total_uj
    }

    /// Publishes a segment. It should begin in the future: what readers have seen must not change.
    ///
    /// # Errors
    /// The segment is empty or begins before the last one ends.
    pub fn publish(&mut self, segment: Segment) -> Result<(), PublishError> {
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
mod tests {
    use super::*;

    fn state() -> Arc<GpuState> {
        Arc::new(GpuState::anonymous().unwrap())
    }

    fn segment(start_ns: u64, end_ns: u64, energy_uj: u64) -> Segment {
        Segment {
            start_ns,
            end_ns,
            energy_uj,
        }
    }

    #[test]
    fn energy_grows_inside_segments_and_rests_between_them() {
        let state = state();
        let mut writer = state.writer(0).unwrap();
        writer.publish(segment(1_000, 2_000, 500)).unwrap();
        writer.publish(segment(3_000, 4_000, 100)).unwrap();
        let at = |moment| state.energy_at(0, moment).unwrap();
        assert_eq!([at(0), at(999), at(1_000), at(1_500)], [0, 0, 0, 250]);
        assert_eq!(
            [at(2_000), at(2_999), at(3_500), at(9_000)],
            [500, 500, 550, 600]
        );
        assert_eq!(state.energy_at(1, 9_000), Some(0), "the other GPU idles");
        assert_eq!(state.ran_between(0, 1_500, 3_500), Some((1_000, 300)));
        assert_eq!(state.ran_between(0, 2_100, 2_900), Some((0, 0)));
    }

    #[test]
    fn every_moment_of_a_full_ring_is_found_and_older_ones_are_unknown() {
        let state = state();
        let mut writer = state.writer(0).unwrap();
        let count = RING_CAPACITY as u64 + 1_000;
        for index in 0..count {
            writer
                .publish(segment(index * 10, index * 10 + 10, 7))
                .unwrap();
        }
        for index in (2_000..count).step_by(997) {
            assert_eq!(state.energy_at(0, index * 10), Some(index * 7));
        }
        assert_eq!(state.energy_at(0, count * 10), Some(count * 7));
        assert_eq!(state.energy_at(0, 5_000), None);
    }

    #[test]
    fn a_segment_that_would_change_the_past_is_refused() {
        let state = state();
        let mut writer = state.writer(0).unwrap();
        writer.publish(segment(1_000, 2_000, 500)).unwrap();
        assert!(matches!(
            writer.publish(segment(1_999, 3_000, 1)),
            Err(PublishError::Overlap {
                last_end_ns: 2_000,
                ..
            })
        ));
        assert!(writer.publish(segment(2_000, 2_000, 1)).is_err());
        assert_eq!(state.energy_at(0, 5_000), Some(500));
    }

    #[test]
    fn a_gpu_has_one_writer_and_the_next_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gpu");
        let first_state = Arc::new(GpuState::open_or_create(&path).unwrap());
        let second_state = Arc::new(GpuState::open_or_create(&path).unwrap());
        let mut first = first_state.writer(0).unwrap();
        assert!(matches!(first_state.writer(0), Err(PublishError::Taken(0))));
        assert!(matches!(
            second_state.writer(0),
            Err(PublishError::Taken(0))
        ));
        first.publish(segment(1_000, 2_000, 500)).unwrap();
        drop(first);
        let second = second_state.writer(0).unwrap();
        assert_eq!((second.last_end_ns(), second.total_uj()), (2_000, 500));
    }

    #[test]
    fn a_segment_published_after_its_start_is_counted_as_late() {
        let state = state();
        let mut writer = state.writer(0).unwrap();
        let soon = boottime_ns() + 3_600_000_000_000;
        writer.publish(segment(5, 10, 1)).unwrap();
        assert_eq!(state.late_segments(0), 1);
        writer.publish(segment(soon, soon + 1, 1)).unwrap();
        assert_eq!(state.late_segments(0), 1);
    }

    #[test]
    fn a_reader_never_sees_energy_fall_while_the_writer_laps_it() {
        let state = state();
        let mut writer = state.writer(0).unwrap();
        let reader = {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                let mut last = 0;
                while last < 3 * RING_CAPACITY as u64 * 7 {
                    if let Some(energy) = state.energy_at(0, u64::MAX) {
                        assert!(energy >= last && energy % 7 == 0, "{energy} after {last}");
                        last = energy;
                    }
                }
            })
        };
        for index in 0..3 * RING_CAPACITY as u64 {
            writer
                .publish(segment(index * 10, index * 10 + 10, 7))
                .unwrap();
        }
        reader.join().unwrap();
    }
}
