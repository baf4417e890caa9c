//! Boards that come and go, calls that hang, drivers that are loaded anew.

use std::time::{Duration, Instant};

use profiler::clock::Timestamp;
use profiler::ledger::{Booked, Config, Ledger, MeterId};
use profiler::meters::News;

use crate::driver::{Driver, readings};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_board_that_appears_is_metered_from_then_on_under_a_meter_of_its_own() {
    let driver = Driver::play(
        "tick_ms = 50\n[[device]]\nuuid = \"GPU-a\"\n\
         [[device]]\nuuid = \"GPU-late\"\nappears_at_s = 1.5\n",
    );
    let mut source = driver.start();
    assert_eq!(source.meters.len(), 1);
    let metered = source.listen(12 * SECOND, |news| readings(news, 1).len() >= 20);
    assert!(metered, "{} readings", source.readings(1).len());
    assert_eq!(source.meters[1].device, "GPU-late");
    assert_eq!(source.meters.len(), 2, "told once");
    let seconds = 3 * SECOND;
    source.listen(seconds, |news| {
        news.iter()
            .any(|news| matches!(news, News::Telemetry(told) if told.device == "GPU-late"))
    });
    assert!(source.telemetry("GPU-late").is_some());
    source.end();
}

#[test]
fn a_lost_board_leaves_the_other_alone_and_goes_on_when_it_is_back() {
    let driver = Driver::play(
        "tick_ms = 50\n[[device]]\nuuid = \"GPU-a\"\n[[device]]\nuuid = \"GPU-b\"\n\
         [[fault]]\ncall = \"*\"\ndevice = 1\nanswer = \"gpu_is_lost\"\nfrom_s = 2\nuntil_s = 4\n",
    );
    let created = driver.state.created_ns();
    let mut source = driver.start();
    source.listen_for(7 * SECOND);
    let during = |meter: u32, from: u64, to: u64| {
        let of = |at: u64| (from * 1_000_000..to * 1_000_000).contains(&(at - created));
        let readings = source.readings(meter);
        readings.iter().filter(|seen| of(seen.until.0)).count()
    };
    assert!(during(0, 2_100, 4_000) >= 20, "{}", during(0, 2_100, 4_000));
    assert_eq!(during(1, 2_100, 4_000), 0);
    // Looked for again after ever longer.
    assert!(during(1, 5_000, 7_000) >= 10, "{}", during(1, 5_000, 7_000));
    let state = source.state("nvml").expect("a state");
    assert!(state.up && state.errors > 0, "{state:?}");
    source.end();
}

#[test]
fn a_driver_that_is_loaded_anew_is_opened_anew() {
    let driver = Driver::play(
        "tick_ms = 50\n[[device]]\nuuid = \"GPU-a\"\n\
         [[fault]]\ncall = \"*\"\nanswer = \"uninitialized\"\nfrom_s = 1.5\nuntil_s = 6\n\
         [[fault]]\ncall = \"nvmlInit_v2\"\nanswer = \"driver_not_loaded\"\nfrom_s = 1.5\nuntil_s = 6\n",
    );
    let created = driver.state.created_ns();
    let mut source = driver.start();
    source.listen_for(5 * SECOND);
    let state = source.state("nvml").expect("a state");
    assert!(!state.up && state.error.is_some(), "{state:?}");
    let again = source.listen(15 * SECOND, |news| {
        let after = |until: u64| until > created + 6_000_000_000;
        let readings = readings(news, 0);
        let reads = readings.iter().filter(|seen| after(seen.until.0)).count();
        let told = |news: &News| matches!(news, News::Telemetry(told) if after(told.at.0));
        reads >= 5 && news.iter().any(told)
    });
    assert!(again, "both threads go on");
    assert_eq!(source.meters.len(), 1, "it is the same board");
    source.end();
}

#[test]
fn a_call_that_hangs_on_the_slow_thread_leaves_the_counters_alone_and_the_end_does_not_wait() {
    let driver = Driver::play(
        "tick_ms = 50\n[[device]]\nuuid = \"GPU-a\"\n\
         [[fault]]\ncall = \"nvmlDeviceGetTemperature\"\nhangs = true\nfrom_s = 1.5\nuntil_s = 8\n",
    );
    let created = driver.state.created_ns();
    let mut source = driver.start();
    source.listen_for(5 * SECOND);
    let late = |until: u64| until > created + 3_000_000_000;
    let readings = source.readings(0);
    assert!(readings.iter().filter(|seen| late(seen.until.0)).count() >= 20);
    let telemetry = source.telemetry("GPU-a").expect("a look before");
    assert!(!late(telemetry.at.0), "none since");
    // It cannot say so itself: its latest success grows old.
    let state = source.state("nvml-telemetry").expect("a state");
    assert!(state.up && !late(state.last_at.expect("a success").0));
    assert!(source.state("nvml").is_some_and(|state| state.up));
    let start = Instant::now();
    assert_eq!(source.running.stop(), ["nvml-telemetry"]);
    assert!(start.elapsed() < 2 * SECOND);
    // The thread that was left behind holds the library until then.
    driver.wait_until(9);
}

#[test]
fn a_counter_that_jumps_or_falls_books_nothing_that_was_not_drawn() {
    let reset = ("[faults]\nreset_at_s = 2\n", "reset", 0);
    let up = ("[[device.jump]]\nat_s = 2\njoules = 1e9\n", "refused", 1);
    let down = ("[[device.jump]]\nat_s = 2\njoules = -100\n", "reset", 0);
    for (lines, reason, refused) in [reset, up, down] {
        let driver = Driver::play(&format!(
            "tick_ms = 50\nnoise_watts = 0\n[[device]]\nuuid = \"GPU-a\"\n{lines}"
        ));
        let mut source = driver.start();
        source.listen_for(4 * SECOND);
        let mut ledger = Ledger::new(Config {
            requests: false,
            cpu: false,
            ..Config::default()
        });
        let id = ledger.add_meter(source.meters[0].clone());
        for news in &source.news {
            if let News::Event(event) = news {
                ledger.apply(event.clone());
            }
        }
        let booked = ledger.finish(Timestamp::now());
        assert_eq!(ledger.residual_microjoules(id), 0);
        assert_eq!(ledger.refused(), refused, "{lines}");
        let (mut joules, mut seconds, mut holes) = (0.0, 0.0, Vec::new());
        for booked in &booked {
            match booked {
                Booked::Interval(interval) => {
                    assert_eq!(interval.meter, MeterId(0));
                    joules += interval.energy.joules().0;
                    seconds += interval.to.seconds_since(interval.from);
                }
                Booked::Hole { reason, .. } => holes.push(*reason),
                Booked::Request(_) => {}
            }
        }
        // It idles at 83 W; nothing else may be in any interval.
        assert!(seconds > 3.0, "{seconds}");
        assert!(
            (joules / seconds - 83.0).abs() < 2.0,
            "{lines}: {joules} J in {seconds} s"
        );
        assert_eq!(holes, [reason], "{lines}");
        source.end();
    }
}
