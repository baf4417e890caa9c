//! What the sensors show at a moment: functions of scenario, state and time alone, so that every
//! process that asks gets the same answer.

use gpu_state::GpuState;

use crate::noise::{Channel, LEVEL, standard};
use crate::scenario::Scenario;

const NS_PER_MS: f64 = 1e6;
const NS_PER_S: f64 = 1e9;

/// The energy counter of `device` as the library shows it at `boottime_ns`, millijoules since the
/// state was made (or since the last reset): the exact integral at the last tick, less the lag,
/// times the gain, plus the tick's noise, truncated. `None` if there is no such device or the
/// state no longer remembers that moment.
pub fn counter_at(
    scenario: &Scenario,
    state: &GpuState,
    device: usize,
    boottime_ns: u64,
) -> Option<u64> {
    let tick = last_tick_ns(scenario, boottime_ns);
    let at = tick.saturating_sub(nanos(scenario.lag_ms, NS_PER_MS));
    let since = last_reset_ns(scenario, state, at);
    let at = at.max(since);
    let energy =
        energy_uj(scenario, state, device, at)? - energy_uj(scenario, state, device, since)?;
    let noise = LEVEL
        * scenario.noise_watts
        * scenario.tick_ms
        * 1e3
        * standard(scenario.noise_seed, device, Channel::Counter, tick);
    let shown = i128::from(scaled(energy, scenario.gain))
        + noise.round() as i128
        + jumps_uj(scenario, state, device, since, tick);
    Some(u64::try_from(shown / 1_000).unwrap_or(0))
}

/// What a device's counter has jumped by since it was last at 0, microjoules.
fn jumps_uj(
    scenario: &Scenario,
    state: &GpuState,
    device: usize,
    since_ns: u64,
    at_ns: u64,
) -> i128 {
    let jumps = scenario.devices.get(device).map(|device| &device.jumps);
    let happened = jumps.into_iter().flatten().filter(|jump| {
        let at = state.created_ns() + nanos(jump.at_s, NS_PER_S);
        at > since_ns && at <= at_ns
    });
    happened
        .map(|jump| (jump.joules * 1e6).round() as i128)
        .sum()
}

/// The share of the last second that `device` was busy, percent: how far its mean power lay
/// between idle and its limit. At least 1 if it did anything.
pub(crate) fn utilization(
    scenario: &Scenario,
    state: &GpuState,
    device: usize,
    boottime_ns: u64,
) -> Option<u32> {
    let parameters = scenario.devices.get(device)?;
    let end = boottime_ns.max(state.created_ns());
    let start = end.saturating_sub(NS_PER_S as u64).max(state.created_ns());
    let energy =
        engines_uj(scenario, state, device, end)? - engines_uj(scenario, state, device, start)?;
    let watts = energy as f64 * 1e3 / (end - start).max(1) as f64;
    let span = (parameters.limit_watts - parameters.idle_watts).max(1.0);
    Some((watts / span * 100.0).ceil().min(100.0) as u32)
}

/// The tick at or before `boottime_ns`: when the counter last changed.
pub fn last_tick_ns(scenario: &Scenario, boottime_ns: u64) -> u64 {
    let tick = nanos(scenario.tick_ms, NS_PER_MS).max(1);
    let phase = nanos(scenario.tick_phase_ms, NS_PER_MS) % tick;
    match boottime_ns.checked_sub(phase) {
        Some(since) => boottime_ns - since % tick,
        None => 0,
    }
}

/// Mean power over the averaging window that ended at the last tick, milliwatts.
pub(crate) fn average_power_mw(
    scenario: &Scenario,
    state: &GpuState,
    device: usize,
    boottime_ns: u64,
) -> Option<u32> {
    // Averaging calms the noise of its ticks.
    let calm = (scenario.tick_ms / scenario.averaging_ms).sqrt().min(1.0);
    let window = scenario.averaging_ms;
    power_mw(
        scenario,
        state,
        device,
        boottime_ns,
        window,
        (Channel::Average, calm),
    )
}

/// Mean power over the short window that ended at the last tick, milliwatts.
pub(crate) fn instant_power_mw(
    scenario: &Scenario,
    state: &GpuState,
    device: usize,
    boottime_ns: u64,
) -> Option<u32> {
    let window = scenario.instant_ms;
    power_mw(
        scenario,
        state,
        device,
        boottime_ns,
        window,
        (Channel::Instant, 1.0),
    )
}

fn power_mw(
    scenario: &Scenario,
    state: &GpuState,
    device: usize,
    boottime_ns: u64,
    window_ms: f64,
    (channel, calm): (Channel, f64),
) -> Option<u32> {
    let tick = last_tick_ns(scenario, boottime_ns);
    let end = tick.saturating_sub(nanos(scenario.lag_ms, NS_PER_MS));
    let start = end.saturating_sub(nanos(window_ms, NS_PER_MS));
    // Before the state was made the GPU idled: a window that reaches back sees idle power.
    let created = state.created_ns();
    let idle_mw = scenario.devices.get(device)?.idle_watts * 1e3;
    let before_ns = created.saturating_sub(start).min(end - start);
    let energy = energy_uj(scenario, state, device, end.max(created))?
        - energy_uj(scenario, state, device, start.max(created))?;
    let pico = energy as f64 * 1e6 + idle_mw * before_ns as f64;
    let exact_mw = pico / (end - start).max(1) as f64;
    let noise = calm * scenario.noise_watts * 1e3;
    let shown =
        exact_mw * scenario.gain + noise * standard(scenario.noise_seed, device, channel, tick);
    Some(shown.round().max(0.0) as u32)
}

/// True energy of the device since the state was made, idle included, microjoules.
fn energy_uj(scenario: &Scenario, state: &GpuState, device: usize, at_ns: u64) -> Option<u64> {
    let idle_mw = (scenario.devices.get(device)?.idle_watts * 1e3).round() as u128;
    let since = u128::from(at_ns.saturating_sub(state.created_ns()));
    let idle_uj = (idle_mw * since / 1_000_000) as u64;
    Some(idle_uj + engines_uj(scenario, state, device, at_ns)?)
}

/// Energy above idle of all engines on the device since the state was made, microjoules.
fn engines_uj(scenario: &Scenario, state: &GpuState, device: usize, at_ns: u64) -> Option<u64> {
    let engines = scenario.devices.get(device)?.all_engines();
    engines
        .map(|engine| state.energy_at(engine, at_ns))
        .sum::<Option<u64>>()
}

/// When the counter was last at 0, as seen at `at_ns`.
fn last_reset_ns(scenario: &Scenario, state: &GpuState, at_ns: u64) -> u64 {
    let faults = &scenario.faults;
    [faults.reset_at_s, faults.back_at_s]
        .into_iter()
        .flatten()
        .map(|seconds| state.created_ns() + nanos(seconds, NS_PER_S))
        .filter(|reset| *reset <= at_ns)
        .max()
        .unwrap_or_else(|| state.created_ns())
}

/// True while the device has fallen off the bus.
pub(crate) fn is_lost(scenario: &Scenario, state: &GpuState, boottime_ns: u64) -> bool {
    let passed = |seconds: Option<f64>| {
        seconds.is_some_and(|s| boottime_ns >= state.created_ns() + nanos(s, NS_PER_S))
    };
    passed(scenario.faults.lost_at_s) && !passed(scenario.faults.back_at_s)
}

fn scaled(energy_uj: u64, gain: f64) -> i64 {
    let parts_per_million = (gain * 1e6).round() as u128;
    (u128::from(energy_uj) * parts_per_million / 1_000_000) as i64
}

fn nanos(value: f64, unit: f64) -> u64 {
    (value * unit).round() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gpu_state::{Segment, Writer};

    use super::*;
    use crate::faults::Jump;

    const MS: u64 = 1_000_000;

    /// A quiet sensor, a state with 100 J a second above idle in [1 s, 3 s) after its start,
    /// and the tick at which the clock of these tests starts.
    fn played(change: impl FnOnce(&mut Scenario)) -> (Scenario, Arc<GpuState>, Writer, u64) {
        let mut scenario = Scenario {
            noise_watts: 0.0,
            ..Scenario::default()
        };
        change(&mut scenario);
        let state = Arc::new(GpuState::anonymous().unwrap());
        let start = last_tick_ns(&scenario, state.created_ns()) + 100 * MS;
        let mut writer = state.writer(0).unwrap();
        for step in 0..200 {
            let start_ns = start + 1_000 * MS + step * 10 * MS;
            let end_ns = start_ns + 10 * MS;
            writer
                .publish(Segment {
                    start_ns,
                    end_ns,
                    energy_uj: 1_000_000,
                })
                .unwrap();
        }
        (scenario, state, writer, start)
    }

    #[test]
    fn the_counter_moves_at_ticks_only_and_is_exact_there() {
        let (scenario, state, _writer, start) = played(|_| {});
        let at = |ms: u64| counter_at(&scenario, &state, 0, start + ms * MS).unwrap();
        assert_eq!(at(0), at(99));
        assert_eq!(at(199), at(100));
        // 83 W idle throughout, 100 W more from second 1 to second 3.
        let idle = |ms: u64| 83 * ms;
        assert!((at(1_000) - at(0)).abs_diff(idle(1_000)) <= 1);
        assert!((at(1_500) - at(0)).abs_diff(idle(1_500) + 50_000) <= 1);
        assert!((at(4_000) - at(0)).abs_diff(idle(4_000) + 200_000) <= 1);
    }

    #[test]
    fn lag_shows_the_past_and_gain_scales_it() {
        let (scenario, state, _writer, start) = played(|s| s.lag_ms = 100.0);
        let at = |ms: u64| counter_at(&scenario, &state, 0, start + ms * MS).unwrap();
        assert!(
            (at(1_100) - at(100)).abs_diff(83_000) <= 1,
            "the load is not seen yet"
        );
        let (scenario, state, _writer, start) = played(|s| s.gain = 1.05);
        let at = |ms: u64| counter_at(&scenario, &state, 0, start + ms * MS).unwrap();
        assert!((at(3_000) - at(1_000)).abs_diff(384_300) <= 2);
    }

    #[test]
    fn noise_moves_single_ticks_and_leaves_long_sums_alone() {
        let (scenario, state, _writer, start) = played(|s| s.noise_watts = 8.0);
        let at = |tick: u64| counter_at(&scenario, &state, 0, start + tick * 100 * MS).unwrap();
        let deltas: Vec<f64> = (100..1_100)
            .map(|tick| at(tick + 1) as f64 - at(tick) as f64 - 8_300.0)
            .collect();
        let deviation = (deltas.iter().map(|d| d * d).sum::<f64>() / 1_000.0).sqrt();
        assert!(
            (700.0..900.0).contains(&deviation),
            "8 W over 100 ms is 800 mJ: {deviation}"
        );
        assert!((at(1_100) - at(100)).abs_diff(8_300_000) < 4_000);
        assert!(
            deltas.iter().all(|d| *d > -8_300.0),
            "the counter never falls"
        );
    }

    #[test]
    fn power_readings_follow_their_windows() {
        let (scenario, state, _writer, start) = played(|_| {});
        let average = |ms| average_power_mw(&scenario, &state, 0, start + ms * MS).unwrap();
        let instant = |ms| instant_power_mw(&scenario, &state, 0, start + ms * MS).unwrap();
        assert_eq!((average(1_000), instant(1_000)), (83_000, 83_000));
        assert_eq!((average(1_500), instant(1_500)), (133_000, 183_000));
        assert_eq!((average(2_500), instant(2_599)), (183_000, 183_000));
        assert_eq!((average(3_500), instant(3_100)), (133_000, 83_000));
    }

    #[test]
    fn a_reset_starts_the_counter_again() {
        let (scenario, state, _writer, _) = played(|s| s.faults.reset_at_s = Some(10.0));
        let at = |s: u64| counter_at(&scenario, &state, 0, state.created_ns() + s * 1_000 * MS);
        let (before, after) = (at(9).unwrap(), at(12).unwrap());
        assert!(before > 800_000, "{before}");
        assert!((140_000..=170_000).contains(&after), "{after}");
    }

    #[test]
    fn a_jump_moves_the_counter_from_its_moment_on() {
        let jump = |joules| Jump { at_s: 5.0, joules };
        let (scenario, state, _writer, _) = played(|s| s.devices[0].jumps = vec![jump(1e6)]);
        let at = |s: u64| counter_at(&scenario, &state, 0, state.created_ns() + s * 1_000 * MS);
        let rise = at(6).unwrap() - at(4).unwrap();
        assert!((1_000_000_000..1_000_500_000).contains(&rise), "{rise}");
        let (scenario, state, _writer, _) = played(|s| s.devices[0].jumps = vec![jump(-200.0)]);
        let at = |s: u64| counter_at(&scenario, &state, 0, state.created_ns() + s * 1_000 * MS);
        assert!(at(6).unwrap() < at(4).unwrap());
    }

    #[test]
    fn utilization_is_how_far_power_lies_between_idle_and_the_limit() {
        let (scenario, state, _writer, start) = played(|_| {});
        let at = |ms: u64| utilization(&scenario, &state, 0, start + ms * MS).unwrap();
        assert_eq!((at(900), at(2_500), at(4_500)), (0, 32, 0));
    }

    #[test]
    fn a_board_draws_what_all_of_its_engines_draw() {
        let (scenario, state, _writer, start) = played(|scenario| {
            scenario.devices[0].engines = vec![0, 5];
        });
        let mut other = state.writer(5).unwrap();
        let (start_ns, end_ns) = (start + 1_000 * MS, start + 3_000 * MS);
        other
            .publish(Segment {
                start_ns,
                end_ns,
                energy_uj: 60_000_000,
            })
            .unwrap();
        let at = |ms: u64| counter_at(&scenario, &state, 0, start + ms * MS).unwrap();
        // 83 W idle once, 100 and 30 W above.
        assert!((at(3_000) - at(1_000)).abs_diff(2 * 213_000) <= 2);
    }

    #[test]
    fn there_is_no_counter_where_there_is_no_device() {
        let (scenario, state, _writer, start) = played(|_| {});
        assert_eq!(counter_at(&scenario, &state, 1, start), None);
    }
}
