//! Writers and readers of one ring.

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
fn writers_that_share_gpus_take_turns_and_nothing_of_either_is_lost() {
    const STEPS: u64 = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpu");
    let open = || Arc::new(GpuState::open_or_create(&path).unwrap());
    let start = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for (devices, duration_ns, energy_uj) in [([0, 1], 10, 3), ([1, 0], 7, 5)] {
            let (state, start) = (open(), &start);
            scope.spawn(move || {
                let mut writers = devices.map(|device| state.shared_writer(device).unwrap());
                start.wait();
                for _ in 0..STEPS {
                    publish_together(&mut writers, 0, duration_ns, energy_uj).unwrap();
                }
            });
        }
    });
    let state = open();
    let writers = [0, 1].map(|device| state.writer(device).unwrap());
    for writer in &writers {
        assert_eq!(writer.last_end_ns(), STEPS * (10 + 7));
        assert_eq!(writer.total_uj(), STEPS * (3 + 5));
    }
}

#[test]
fn a_gpu_is_shared_by_all_of_its_writers_or_by_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpu");
    let states = [(); 3].map(|()| Arc::new(GpuState::open_or_create(&path).unwrap()));
    let alone = states[0].writer(0).unwrap();
    let taken = |writer| matches!(writer, Err(PublishError::Taken(0)));
    assert!(taken(states[1].shared_writer(0)));
    drop(alone);
    let _first = states[0].shared_writer(0).unwrap();
    let _second = states[1].shared_writer(0).unwrap();
    assert!(taken(states[2].writer(0)));
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
