//! The loop that follows boards, against fake boards in real time.

use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::*;
use crate::meters::source::Running;
use crate::units::{Microjoules, Watts};

const MILLISECOND: u64 = 1_000_000;

/// A board that draws 200 W and whose counter ticks every 100 ms.
#[derive(Clone, Copy)]
struct Fake {
    born: Timestamp,
    /// The counter starts anew at this moment.
    reset: Option<Timestamp>,
    /// Fails while in this span.
    lost: Option<(Timestamp, Timestamp)>,
    looked_up: u32,
}

impl Fake {
    fn new(born: Timestamp) -> Self {
        Self {
            born,
            reset: None,
            lost: None,
            looked_up: 0,
        }
    }

    fn tick(&self, at: Timestamp) -> u64 {
        let from = self.reset.filter(|reset| at >= *reset).unwrap_or(self.born);
        at.since(from) / (100 * MILLISECOND)
    }
}

struct Fakes(Vec<Fake>);

impl Boards for Fakes {
    fn sample(&mut self, index: usize) -> Result<Sample, NvmlError> {
        let fake = &self.0[index];
        let now = Timestamp::now();
        if fake.lost.is_some_and(|(from, to)| now >= from && now < to) {
            return Err(NvmlError::GpuLost);
        }
        let energy = Microjoules::from_millijoules(7_000 + fake.tick(now) * 20_000);
        Ok(Sample {
            energy: Some(energy),
            power: Some(Watts(200.0)),
        })
    }

    fn find(&mut self, index: usize) {
        self.0[index].looked_up += 1;
    }

    fn join(&mut self) -> Vec<Channel> {
        Vec::new()
    }
}

fn followed(meter: u32) -> Channel {
    let now = Timestamp::now();
    Channel {
        meter: MeterId(meter),
        uuid: format!("GPU-{meter}"),
        method: Method::Follow(Follower::new(now)),
        instant: true,
        next: now,
        doubted: false,
        failing: None,
    }
}

/// Runs `fakes` for `time`; returns all news and how the loop ended.
fn watch(fakes: Vec<Fake>, time: Duration) -> (Vec<News>, Ended, Fakes) {
    let (sender, receiver) = mpsc::channel();
    let (done, ended) = mpsc::channel();
    let mut running = Running::default();
    let mut channels: Vec<Channel> = (0..fakes.len() as u32).map(followed).collect();
    let spawned = running.spawn("fake", move |stop| {
        let mut fakes = Fakes(fakes);
        let mut health = Health::new("nvml");
        let end = drive(&mut fakes, &mut channels, &mut health, &Feed(sender), &stop);
        let _ = done.send((end, fakes));
    });
    assert!(spawned.is_ok());
    let start = Instant::now();
    let early = ended.recv_timeout(time).ok();
    let (end, fakes) = early.unwrap_or_else(|| {
        assert!(running.stop().is_empty());
        ended
            .recv_timeout(Duration::from_secs(1))
            .expect("the loop ended")
    });
    assert!(start.elapsed() < time + Duration::from_secs(3));
    (receiver.try_iter().collect(), end, fakes)
}

fn readings(news: &[News], meter: u32) -> Vec<Reading> {
    let of = |news: &News| match news {
        News::Event(Event::Reading(reading)) if reading.meter.0 == meter => Some(*reading),
        _ => None,
    };
    news.iter().filter_map(of).collect()
}

#[test]
fn changes_of_two_boards_are_seen_within_narrow_certain_brackets() {
    let now = Timestamp::now();
    let born = now.minus(Duration::from_millis(1_042));
    let fakes = vec![
        Fake::new(born),
        Fake::new(born.minus(Duration::from_millis(53))),
    ];
    let (news, ended, fakes) = watch(fakes, Duration::from_secs(8));
    assert_eq!(ended, Ended::Stopped);
    for (meter, fake) in fakes.0.iter().enumerate() {
        let seen = readings(&news, meter as u32);
        assert!(seen.len() >= 60, "{}", seen.len());
        for reading in &seen {
            let ticks = (reading.energy.0 / 1_000 - 7_000) / 20_000;
            let change = Timestamp(fake.born.0 + ticks * 100 * MILLISECOND);
            assert!(
                reading.after < change && change <= reading.until,
                "{reading:?} {change:?}"
            );
        }
        let mut widths: Vec<u64> = seen
            .iter()
            .filter(|reading| reading.until > now.plus(Duration::from_secs(3)))
            .map(|reading| reading.until.since(reading.after))
            .collect();
        widths.sort_unstable();
        let at = |part: f64| widths[((widths.len() - 1) as f64 * part) as usize] as f64 * 1e-6;
        println!(
            "board {meter}: {} changes, bracket p50 {:.2} ms, p90 {:.2} ms, max {:.2} ms",
            seen.len(),
            at(0.5),
            at(0.9),
            at(1.0)
        );
        // 2.6 ms where the machine is quiet; polling alone would give 20 ms.
        assert!(at(0.5) < 20.0, "median bracket {} ms", at(0.5));
    }
    let powers = news
        .iter()
        .filter(|news| matches!(news, News::Power { instant: true, .. }));
    assert!(powers.count() >= 120);
    let states = news
        .iter()
        .filter(|news| matches!(news, News::State(state) if state.up));
    assert!((7..=14).contains(&states.count()));
}

#[test]
fn a_lost_board_is_looked_up_again_while_the_other_one_goes_on() {
    let now = Timestamp::now();
    let mut flaky = Fake::new(now.minus(Duration::from_secs(1)));
    let (from, to) = (Duration::from_millis(1_000), Duration::from_millis(2_000));
    flaky.lost = Some((now.plus(from), now.plus(to)));
    let steady = Fake::new(now.minus(Duration::from_secs(1)));
    let (news, ended, fakes) = watch(vec![flaky, steady], Duration::from_secs(4));
    assert_eq!(ended, Ended::Stopped);
    assert!(fakes.0[0].looked_up >= 2);
    assert_eq!(fakes.0[1].looked_up, 0);
    let seen = readings(&news, 0);
    // So soon its period is not learned: the change may lie anywhere in the hole.
    let hole = |reading: &&Reading| reading.after < now.plus(from) && reading.until >= now.plus(to);
    assert_eq!(
        seen.iter().filter(hole).count(),
        1,
        "one change spans the hole"
    );
    assert!(
        seen.last()
            .is_some_and(|reading| reading.until > now.plus(to * 3 / 2))
    );
    assert!(readings(&news, 1).len() >= 30);
    let lost = |news: &&News| matches!(news, News::State(state) if !state.up);
    assert!(news.iter().filter(lost).count() >= 1);
}

#[test]
fn a_reset_counter_is_reported_with_its_lower_value() {
    let now = Timestamp::now();
    let mut fake = Fake::new(now.minus(Duration::from_secs(10)));
    fake.reset = Some(now.plus(Duration::from_millis(1_500)));
    let (news, ..) = watch(vec![fake], Duration::from_millis(3_000));
    let falls = readings(&news, 0)
        .windows(2)
        .filter(|pair| pair[1].energy < pair[0].energy)
        .count();
    assert_eq!(falls, 1);
}

#[test]
fn when_every_board_is_lost_for_long_the_driver_is_given_up() {
    let now = Timestamp::now();
    let mut fake = Fake::new(now);
    fake.lost = Some((now, now.plus(Duration::from_secs(3_600))));
    let (_, ended, _) = watch(vec![fake], Duration::from_secs(10));
    assert_eq!(ended, Ended::Lost);
}

#[test]
fn a_board_that_comes_later_is_followed_from_then_on_beside_the_first() {
    struct Later {
        fakes: Fakes,
        comes: Timestamp,
    }
    impl Boards for Later {
        fn sample(&mut self, index: usize) -> Result<Sample, NvmlError> {
            self.fakes.sample(index)
        }
        fn find(&mut self, _: usize) {}
        fn join(&mut self) -> Vec<Channel> {
            let count = self.fakes.0.len() as u32;
            if count == 2 || Timestamp::now() < self.comes {
                return Vec::new();
            }
            self.fakes.0.push(Fake::new(self.comes));
            vec![followed(count)]
        }
    }
    let (sender, receiver) = mpsc::channel();
    let now = Timestamp::now();
    let comes = now.plus(Duration::from_millis(700));
    // At the start there is none at all.
    let fakes = Fakes(Vec::new());
    let mut running = Running::default();
    let spawned = running.spawn("nvml", move |stop| {
        let mut boards = Later { fakes, comes };
        let mut health = Health::new("nvml");
        drive(
            &mut boards,
            &mut Vec::new(),
            &mut health,
            &Feed(sender),
            &stop,
        );
    });
    assert!(spawned.is_ok());
    thread::sleep(Duration::from_millis(2_500));
    assert!(running.stop().is_empty());
    let news: Vec<News> = receiver.try_iter().collect();
    for meter in [0, 1] {
        let seen = readings(&news, meter);
        assert!(seen.len() >= 5, "meter {meter}: {} changes", seen.len());
        assert!(seen.iter().all(|reading| reading.after >= comes));
    }
}

#[test]
fn the_loop_ends_when_nobody_listens() {
    let (sender, receiver) = mpsc::channel();
    drop(receiver);
    let mut fakes = Fakes(vec![Fake::new(Timestamp::now())]);
    let mut health = Health::new("nvml");
    let stop = Stop::default();
    let ended = drive(
        &mut fakes,
        &mut vec![followed(0)],
        &mut health,
        &Feed(sender),
        &stop,
    );
    assert_eq!(ended, Ended::Stopped);
}

#[test]
fn a_hung_call_holds_up_only_its_own_thread_and_the_end_does_not_wait_for_it() {
    struct Hung;
    impl Boards for Hung {
        fn sample(&mut self, _: usize) -> Result<Sample, NvmlError> {
            thread::sleep(Duration::from_secs(20));
            Err(NvmlError::Unknown)
        }
        fn find(&mut self, _: usize) {}
        fn join(&mut self) -> Vec<Channel> {
            Vec::new()
        }
    }
    let (sender, receiver) = mpsc::channel();
    let mut running = Running::default();
    let spawned = running.spawn("nvml", move |stop| {
        let mut health = Health::new("nvml");
        drive(
            &mut Hung,
            &mut vec![followed(0)],
            &mut health,
            &Feed(sender),
            &stop,
        );
    });
    assert!(spawned.is_ok());
    assert!(
        receiver.recv_timeout(Duration::from_millis(200)).is_err(),
        "no news from a hung call"
    );
    let start = Instant::now();
    assert_eq!(running.stop(), ["nvml"]);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn power_is_integrated_where_there_is_no_counter() {
    let start = Timestamp::now();
    let mut channel = Channel {
        method: Method::Integrate(Integrator::new(STALE_AFTER)),
        ..followed(4)
    };
    let read = |channel: &mut Channel, milliseconds: u64, watts: f64| {
        let at = start.plus(Duration::from_millis(milliseconds));
        let sample = Sample {
            energy: None,
            power: Some(Watts(watts)),
        };
        channel
            .take(at, at, sample, 1)
            .expect("each power reading gives energy")
    };
    assert_eq!(read(&mut channel, 0, 100.0).energy, Microjoules::ZERO);
    let reading = read(&mut channel, 100, 300.0);
    assert_eq!(reading.energy, Microjoules(20_000_000));
    assert_eq!(channel.next, start.plus(Duration::from_millis(200)));
}

#[test]
fn what_a_call_showed_that_hung_is_asked_again_and_dated_by_a_call_that_did_not() {
    let start = Timestamp::now();
    let at = |milliseconds: u64| start.plus(Duration::from_millis(milliseconds));
    let sample = |joules: u64| Sample {
        energy: Some(Microjoules(joules * 1_000_000)),
        power: Some(Watts(300.0)),
    };
    let mut channel = followed(0);
    for tick in 0..30 {
        channel.take(at(100 * tick), at(100 * tick), sample(30 * tick), 1);
    }
    let hung = channel.take(at(3_000), at(10_000), sample(3_000), 1);
    assert!(hung.is_none());
    assert_eq!(channel.next, at(10_000), "at once");
    let reading = channel.take(at(10_001), at(10_001), sample(3_000), 1);
    let reading = reading.expect("a change");
    assert_eq!(reading.until, at(10_001));
    assert!(reading.after > at(9_800), "{reading:?}");
    // Where all calls take so long, some are taken.
    let slow =
        |channel: &mut Channel, from: u64| channel.take(at(from), at(from + 200), sample(from), 1);
    assert!(slow(&mut channel, 11_000).is_none());
    assert!(slow(&mut channel, 11_200).is_some());
}

#[test]
fn slow_calls_make_the_reads_rarer_and_fast_ones_bring_them_back() {
    let mut pace = Pace::new(Timestamp(0));
    let mut now = Timestamp(0);
    let mut calls = |pace: &mut Pace, seconds: u64, latency: Duration| {
        let until = now.plus(Duration::from_secs(seconds));
        while now < until {
            let end = now.plus(latency);
            pace.called(now, end);
            now = now.plus(Duration::from_millis(30));
        }
    };
    calls(&mut pace, 11, Duration::from_millis(8));
    assert_eq!(pace.strain, 2);
    calls(&mut pace, 60, Duration::from_millis(8));
    assert_eq!(pace.strain, 16);
    calls(&mut pace, 60, Duration::from_micros(50));
    assert_eq!(pace.strain, 1);
}
