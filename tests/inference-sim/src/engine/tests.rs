//! The engine under a clock of the test's own, an hour ahead, so that no step is ever late.

use std::sync::Mutex;

use gpu_state::boottime_ns;
use proptest::prelude::*;

use super::*;
use crate::wire::Submission;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn records(&self) -> Vec<TruthRecord> {
        let bytes = self.0.lock().unwrap();
        let lines = bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }
}

fn engine(devices: &[usize]) -> (Engine, Arc<GpuState>, Lines, u64) {
    engine_of(EngineModel::default(), devices)
}

fn engine_of(model: EngineModel, devices: &[usize]) -> (Engine, Arc<GpuState>, Lines, u64) {
    let state = Arc::new(GpuState::anonymous().unwrap());
    let lines = Lines::default();
    let engine = Engine::new(
        model,
        &state,
        devices.to_vec(),
        false,
        Box::new(lines.clone()),
    );
    (
        engine.unwrap(),
        state,
        lines,
        boottime_ns() + 3_600_000_000_000,
    )
}

fn add(id: u64, now_ns: u64, prompt_tokens: u64, output_tokens: u64) -> ToEngine {
    ToEngine::Add(Submission {
        id,
        request_id: format!("cmpl-{id}"),
        x_request_id: None,
        route: "/v1/completions".to_owned(),
        stream: true,
        start_ns: now_ns,
        prompt_tokens,
        output_tokens,
    })
}

/// Wakes the engine whenever it wants to be woken, until it has nothing to do.
fn play(engine: &mut Engine, mut now_ns: u64) -> (Vec<StepEnded>, u64) {
    let mut told = Vec::new();
    told.extend(engine.advance(now_ns).unwrap());
    while let Some(due_ns) = engine.due_ns() {
        now_ns = now_ns.max(due_ns);
        told.extend(engine.advance(now_ns).unwrap());
    }
    (told, now_ns)
}

#[test]
fn steps_follow_each_other_without_a_gap_and_are_published_before_they_begin() {
    let (mut engine, state, lines, now_ns) = engine(&[0, 3]);
    engine.take(add(1, now_ns, 1_400, 11), now_ns).unwrap();
    let (told, _) = play(&mut engine, now_ns);
    assert_eq!(told.len(), 11);
    let start_ns = now_ns + LAUNCH_NS;
    assert_eq!(told[0].at_ns, start_ns + 100_000_000);
    assert_eq!(told[10].at_ns, told[0].at_ns + 10 * 11_560_000);
    assert_eq!((state.late_segments(0), engine.pace.bubbles_ns), (0, 0));
    let record = &lines.records()[0];
    assert_eq!(record.energy_uj, [39_700_000 + 10 * 2_342_056; 2]);
    assert_eq!(record.devices, [0, 3]);
    assert_eq!(record.first_token_ns, Some(told[0].at_ns));
    assert_eq!((record.end_ns, record.output_tokens), (told[10].at_ns, 11));
    for device in [0, 3] {
        assert_eq!(state.energy_at(device, u64::MAX), Some(record.energy_uj[0]));
        assert_eq!(
            state.energy_at(device, start_ns + 50_000_000),
            Some(19_850_000)
        );
    }
}

#[test]
fn a_client_that_leaves_early_is_charged_for_the_step_it_is_in_and_nothing_more() {
    let (mut engine, state, lines, now_ns) = engine(&[0]);
    engine.take(add(1, now_ns, 1_400, 500), now_ns).unwrap();
    engine.advance(now_ns).unwrap();
    engine
        .take(ToEngine::Abort { id: 1 }, now_ns + 1_000_000)
        .unwrap();
    let (told, _) = play(&mut engine, now_ns + 1_000_000);
    assert!(told.iter().all(|step| step.tokens.is_empty()), "{told:?}");
    let record = &lines.records()[0];
    assert_eq!(
        (record.outcome, record.output_tokens),
        (Outcome::Aborted, 0)
    );
    assert_eq!(
        (record.first_token_ns, record.end_ns),
        (None, now_ns + 1_000_000)
    );
    assert_eq!(record.energy_uj, [39_700_000]);
    assert_eq!(state.energy_at(0, u64::MAX), Some(39_700_000));
    assert!(engine.aborted.is_empty());
}

#[test]
fn what_is_in_flight_at_shutdown_has_its_truth_written() {
    let (mut engine, state, lines, now_ns) = engine(&[0]);
    engine.take(add(1, now_ns, 1_400, 500), now_ns).unwrap();
    engine.take(add(2, now_ns, 1_400, 500), now_ns).unwrap();
    engine.advance(now_ns).unwrap();
    engine.finish(now_ns + 1).unwrap();
    let records = lines.records();
    assert!(
        records
            .iter()
            .all(|record| record.outcome == Outcome::Shutdown)
    );
    let sum: u64 = records.iter().map(|record| record.energy_uj[0]).sum();
    assert_eq!(
        (records.len(), Some(sum)),
        (2, state.energy_at(0, u64::MAX))
    );
}

#[test]
fn a_host_that_wakes_late_leaves_the_gpu_idle_and_never_rewrites_the_past() {
    let (mut engine, state, _lines, now_ns) = engine(&[0]);
    engine.take(add(1, now_ns, 1_400, 3), now_ns).unwrap();
    engine.advance(now_ns).unwrap();
    let late_ns = now_ns + 500_000_000;
    let before = state.energy_at(0, late_ns);
    let told = engine.advance(late_ns).unwrap().unwrap();
    assert_eq!(told.at_ns, now_ns + LAUNCH_NS + 100_000_000);
    assert_eq!(state.energy_at(0, late_ns), before);
    assert_eq!(
        engine.current.as_ref().unwrap().end_ns,
        late_ns + LAUNCH_NS + 11_560_000
    );
}

#[test]
fn a_prompt_of_which_four_fifths_are_cached_takes_a_fifth_of_the_time_and_the_energy() {
    let model = EngineModel {
        cached: 1.0,
        ..EngineModel::default()
    };
    let (mut engine, _state, lines, now_ns) = engine_of(model, &[0]);
    engine.take(add(1, now_ns, 7_000, 1), now_ns).unwrap();
    let (told, _) = play(&mut engine, now_ns);
    assert_eq!(told[0].at_ns, now_ns + LAUNCH_NS + 100_000_000);
    let record = &lines.records()[0];
    assert_eq!((record.prompt_tokens, record.cached_tokens), (7_000, 5_600));
    assert_eq!(record.energy_uj, [39_700_000]);
}

#[test]
fn the_parts_of_a_prompt_are_told_to_nobody_and_charged_to_its_request() {
    let model = EngineModel {
        prompt_parts: Some(700),
        ..EngineModel::default()
    };
    let (mut engine, _state, lines, now_ns) = engine_of(model, &[0]);
    engine.take(add(1, now_ns, 1_400, 2), now_ns).unwrap();
    let (told, _) = play(&mut engine, now_ns);
    let tokens: Vec<_> = told.iter().map(|step| step.tokens.clone()).collect();
    assert_eq!(tokens, [vec![], vec![(1, 1)], vec![(1, 1)]]);
    assert_eq!(lines.records()[0].energy_uj, [39_700_000 + 2_342_056]);
}

#[test]
fn engines_that_share_a_gpu_take_turns_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gpu");
    let lines = [Lines::default(), Lines::default()];
    let states = [(); 2].map(|()| Arc::new(GpuState::open_or_create(&path).unwrap()));
    let mut engines: Vec<Engine> = lines
        .iter()
        .zip(&states)
        .map(|(lines, state)| {
            let file = Box::new(lines.clone());
            Engine::new(EngineModel::default(), state, vec![0], true, file).unwrap()
        })
        .collect();
    let mut now_ns = boottime_ns() + 3_600_000_000_000;
    for engine in &mut engines {
        engine.take(add(1, now_ns, 140, 21), now_ns).unwrap();
        engine.advance(now_ns).unwrap();
    }
    let mut told = Vec::new();
    while let Some(due_ns) = engines.iter().filter_map(Engine::due_ns).min() {
        now_ns = now_ns.max(due_ns);
        for (place, engine) in engines.iter_mut().enumerate() {
            let step = engine.advance(now_ns).unwrap();
            told.extend(step.map(|step| (step.at_ns, place)));
        }
    }
    told.sort_unstable();
    let places: Vec<usize> = told.iter().map(|(_, place)| *place).collect();
    assert_eq!(places, [0, 1].repeat(21));
    let own = 3_970_000 + 20 * 2_342_056;
    for lines in &lines {
        assert_eq!(lines.records()[0].energy_uj, [own]);
    }
    assert_eq!(states[0].energy_at(0, u64::MAX), Some(2 * own));
    let busy_ns = told.last().unwrap().0 - told[0].0;
    assert_eq!(busy_ns, 10_000_000 + 40 * 11_560_000, "without a gap");
}

proptest! {
    #[test]
    fn truth_sums_to_the_engines_energy_whoever_comes_and_leaves(
        events in prop::collection::vec(
            (0_u64..40_000_000, 1_u64..2_000, 1_u64..40, prop::option::of(0_u64..20)), 1..40),
        cut in any::<bool>(),
        prompt_parts in prop::option::of(100_u64..900),
        speculates in any::<bool>(),
    ) {
        let model = EngineModel {
            prompt_parts,
            speculates,
            cached: 0.5,
            ..EngineModel::default()
        };
        let (mut engine, state, lines, mut now_ns) = engine_of(model, &[0, 1]);
        for (id, (wait_ns, prompt, output, leaver)) in events.iter().enumerate() {
            let until = now_ns + wait_ns;
            engine.advance(now_ns).unwrap();
            while let Some(due) = engine.due_ns().filter(|due| *due <= until) {
                now_ns = now_ns.max(due);
                engine.advance(now_ns).unwrap();
            }
            now_ns = now_ns.max(until);
            engine.take(add(id as u64, now_ns, *prompt, *output), now_ns).unwrap();
            if let Some(leaver) = leaver {
                engine.take(ToEngine::Abort { id: *leaver }, now_ns).unwrap();
            }
        }
        if !cut {
            (_, now_ns) = play(&mut engine, now_ns);
        }
        engine.finish(now_ns).unwrap();
        let records = lines.records();
        prop_assert_eq!(records.len(), events.len());
        for device in [0, 1] {
            let sum: u64 = records.iter().map(|record| record.energy_uj[device]).sum();
            prop_assert_eq!(state.energy_at(device, u64::MAX), Some(sum));
        }
        for record in &records {
            prop_assert!(record.start_ns <= record.end_ns);
            prop_assert!(record.first_token_ns.is_none_or(|first| first <= record.end_ns));
            prop_assert_eq!(record.first_token_ns.is_some(), record.output_tokens > 0);
        }
    }
}
