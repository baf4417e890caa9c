//! The follower against simulated counters in virtual time.

use super::*;

/// A counter that changes every `period` from `phase` on, read by a thread that is woken late.
struct Simulation {
    period: u64,
    phase: u64,
    /// Largest random shift of a change, nanoseconds.
    jitter: u64,
    /// Time a call takes.
    call: u64,
    /// Largest random delay of a wake-up.
    delay: u64,
    seed: u64,
    /// Nobody is served, until then.
    rests: bool,
    rests_until: u64,
    /// No read comes through from the first moment to the second.
    hole: (u64, u64),
}

struct Run {
    edges: Vec<Edge>,
    reads: u64,
    lock: Lock,
    period: Duration,
}

impl Run {
    fn median_width(&self, from: Timestamp) -> u64 {
        let mut widths: Vec<u64> = self
            .edges
            .iter()
            .filter(|e| e.until > from)
            .map(Edge::width)
            .collect();
        widths.sort_unstable();
        widths[widths.len() / 2]
    }

    fn widest(&self, from: Timestamp) -> u64 {
        let late = self.edges.iter().filter(|e| e.until > from);
        late.map(Edge::width).max().unwrap_or(0)
    }
}

const START: u64 = 1_000_000_000_000;
const SECOND: u64 = 1_000_000_000;

impl Simulation {
    fn steady() -> Self {
        Self {
            period: 100 * MILLISECOND,
            phase: 37 * MILLISECOND,
            jitter: 0,
            call: 50_000,
            delay: 100_000,
            seed: 7,
            rests: false,
            rests_until: u64::MAX,
            hole: (0, 0),
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if below == 0 {
            0
        } else {
            (self.seed >> 33) % below
        }
    }

    /// When change number `k` happens: jitter is a fixed function of `k`.
    fn change_at(&self, k: u64) -> u64 {
        let noise = k.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        START
            + self.phase
            + k * self.period
            + if self.jitter == 0 {
                0
            } else {
                noise % self.jitter
            }
    }

    fn value(&self, time: u64) -> Microjoules {
        let mut k = time.saturating_sub(START + self.phase) / self.period;
        while k > 0 && self.change_at(k) > time {
            k -= 1;
        }
        Microjoules((k + 1) * 30_000_000)
    }

    fn run(&mut self, seconds: u64) -> Run {
        let mut follower = Follower::new(Timestamp(START));
        let mut now = START;
        let mut edges = Vec::new();
        let mut reads = 0;
        while now < START + seconds * SECOND {
            let delay = self.delay;
            now = follower.next_read().0.max(now) + self.random(delay);
            let (from, to) = self.hole;
            if (from..to).contains(&now) {
                now = to;
            }
            let (start, sampled, end) = (now, now + self.call / 2, now + self.call);
            follower.set_rest(self.rests && now < self.rests_until);
            let seen = follower.observe(Timestamp(start), Timestamp(end), self.value(sampled));
            edges.extend(seen);
            reads += 1;
            now = end;
        }
        Run {
            edges,
            reads,
            lock: follower.lock(),
            period: follower.period(),
        }
    }

    /// Whether some change truly lies in the bracket.
    fn holds_a_change(&self, edge: &Edge) -> bool {
        let k = edge.energy.0 / 30_000_000 - 1;
        let change = self.change_at(k);
        edge.after.0 < change && change <= edge.until.0
    }
}

#[test]
fn a_steady_counter_is_locked_and_every_change_is_seen_within_a_few_milliseconds() {
    let mut simulation = Simulation::steady();
    let run = simulation.run(60);
    assert_eq!(run.lock, Lock::Locked);
    assert!(run.median_width(Timestamp(START + 3 * SECOND)) <= 3 * MILLISECOND);
    assert!(
        (run.period.as_secs_f64() - 0.1).abs() < 0.000_3,
        "{:?}",
        run.period
    );
    assert!(run.edges.len() >= 597, "{}", run.edges.len());
    // Two seconds of learning at 50 reads a second, then about three reads a change.
    assert!(run.reads < 100 + 600 * 4, "{}", run.reads);
}

#[test]
fn after_a_hole_in_the_reads_the_change_that_shows_is_dated_to_the_last_tick_not_to_the_hole() {
    let (from, to) = (START + 10 * SECOND, START + 17 * SECOND + 20 * MILLISECOND);
    let mut simulation = Simulation {
        hole: (from, to),
        ..Simulation::steady()
    };
    let run = simulation.run(30);
    let first = run.edges.iter().find(|edge| edge.until.0 > to);
    let first = first.expect("changes after the hole");
    assert!(first.width() < 130 * MILLISECOND, "{first:?}");
    assert!(simulation.holds_a_change(first));
    assert_eq!(run.lock, Lock::Locked);
    assert!(run.median_width(Timestamp(to + SECOND)) <= 3 * MILLISECOND);
}

#[test]
fn every_bracket_holds_the_change_it_reports() {
    for (jitter, delay) in [(0, 100_000), (4_000_000, 3_000_000), (0, 30_000_000)] {
        let mut simulation = Simulation {
            jitter,
            delay,
            period: 104_300_000,
            ..Simulation::steady()
        };
        let run = simulation.run(60);
        assert!(run.edges.len() > 300);
        assert!(run.edges.iter().all(|edge| simulation.holds_a_change(edge)));
    }
}

#[test]
fn a_period_other_than_the_nominal_one_is_learned() {
    for milliseconds in [50, 97, 104, 250, 500] {
        let mut simulation = Simulation {
            period: milliseconds * MILLISECOND,
            ..Simulation::steady()
        };
        let run = simulation.run(60);
        assert_eq!(run.lock, Lock::Locked, "{milliseconds} ms");
        let learned = run.period.as_secs_f64() * 1e3;
        assert!(
            (learned - milliseconds as f64).abs() < 1.0,
            "{milliseconds} ms: {learned}"
        );
        assert!(run.median_width(Timestamp(START + 15 * SECOND)) <= 5 * MILLISECOND);
    }
}

#[test]
fn jitter_and_late_wake_ups_widen_the_margins_instead_of_losing_the_lock() {
    let mut simulation = Simulation {
        jitter: 5 * MILLISECOND,
        delay: 3 * MILLISECOND,
        ..Simulation::steady()
    };
    let run = simulation.run(120);
    let late: Vec<_> = run
        .edges
        .iter()
        .filter(|e| e.until.0 > START + 5 * SECOND)
        .map(Edge::width)
        .collect();
    let wide = late
        .iter()
        .filter(|width| **width > 20 * MILLISECOND)
        .count();
    assert!(
        wide * 100 < late.len(),
        "{wide} of {} brackets above 20 ms",
        late.len()
    );
    let median = run.median_width(Timestamp(START + 5 * SECOND));
    // What the counter and the thread themselves scatter by, and little more.
    assert!(median <= 9 * MILLISECOND, "{median} ns");
}

#[test]
fn a_sudden_shift_of_the_phase_is_found_again_within_two_periods() {
    let mut simulation = Simulation::steady();
    let mut follower = Follower::new(Timestamp(START));
    let mut now = START;
    let mut widths_after = Vec::new();
    while now < START + 20 * SECOND {
        now = follower.next_read().0.max(now);
        if now > START + 10 * SECOND {
            simulation.phase = 80 * MILLISECOND;
        }
        let value = simulation.value(now);
        if let Some(edge) = follower.observe(Timestamp(now), Timestamp(now + 50_000), value)
            && now > START + 10 * SECOND
        {
            widths_after.push(edge.width());
        }
        now += 50_000;
    }
    assert_eq!(follower.lock(), Lock::Locked);
    assert!(
        widths_after[3..].iter().all(|w| *w <= 6 * MILLISECOND),
        "{widths_after:?}"
    );
}

#[test]
fn a_counter_that_changes_its_period_is_learned_anew() {
    for later in [50, 200, 250] {
        let mut follower = Follower::new(Timestamp(START));
        let (mut now, mut edges) = (START, Vec::new());
        let switch = START + 10 * SECOND;
        while now < START + 40 * SECOND {
            now = follower.next_read().0.max(now);
            let value = match now.checked_sub(switch) {
                None => (now - START) / (100 * MILLISECOND),
                Some(since) => 100 + since / (later * MILLISECOND),
            };
            let (start, end) = (Timestamp(now), Timestamp(now + 50_000));
            edges.extend(follower.observe(start, end, Microjoules(value)));
            now += 50_000;
        }
        assert_eq!(follower.lock(), Lock::Locked, "{later} ms");
        let learned = follower.period().as_secs_f64() * 1e3;
        assert!(
            (learned - later as f64).abs() < 1.0,
            "{later} ms: {learned}"
        );
        let last: Vec<u64> = edges.iter().rev().take(20).map(Edge::width).collect();
        assert!(
            last.iter().all(|width| *width < 5 * MILLISECOND),
            "{last:?}"
        );
    }
}

#[test]
fn a_counter_that_changes_at_every_read_is_taken_as_it_comes() {
    let mut follower = Follower::new(Timestamp(START));
    let mut now = START;
    let mut edges = Vec::new();
    while now < START + 10 * SECOND {
        now = follower.next_read().0.max(now);
        edges.extend(follower.observe(Timestamp(now), Timestamp(now + 50_000), Microjoules(now)));
        now += 50_000;
    }
    assert_eq!(follower.lock(), Lock::Fast);
    let last = edges
        .last()
        .copied()
        .expect("a fast counter gives a change at each read");
    assert!(last.width() <= 31 * MILLISECOND);
    assert!(edges.len() < 200, "{}", edges.len());
}

#[test]
fn a_fallen_value_is_reported_and_the_phase_is_looked_for_anew() {
    let mut follower = Follower::new(Timestamp(START));
    let mut simulation = Simulation::steady();
    simulation.delay = 0;
    let mut now = START;
    while now < START + 5 * SECOND {
        now = follower.next_read().0;
        follower.observe(Timestamp(now), Timestamp(now), simulation.value(now));
    }
    assert_eq!(follower.lock(), Lock::Locked);
    let later = Timestamp(now + 2 * MILLISECOND);
    let edge = follower.observe(later, later, Microjoules(1_000));
    assert_eq!(edge.map(|e| e.energy), Some(Microjoules(1_000)));
    assert_eq!(follower.lock(), Lock::Searching);
}

#[test]
fn a_counter_that_stands_still_is_polled_ever_more_rarely_and_reports_nothing() {
    let mut follower = Follower::new(Timestamp(START));
    let mut now = START;
    let mut reads = 0;
    while now < START + 60 * SECOND {
        now = follower.next_read().0;
        assert_eq!(
            follower.observe(Timestamp(now), Timestamp(now), Microjoules(5)),
            None
        );
        reads += 1;
    }
    assert!(reads < 500 + 600, "{reads}");
}

#[test]
fn a_slow_device_is_read_less_often() {
    let reads_with = |strain| {
        let simulation = Simulation::steady();
        let mut follower = Follower::new(Timestamp(START));
        follower.set_strain(strain);
        let (mut now, mut reads) = (START, 0);
        while now < START + 30 * SECOND {
            now = follower.next_read().0.max(now);
            follower.observe(Timestamp(now), Timestamp(now), simulation.value(now));
            reads += 1;
            now += 1;
        }
        reads
    };
    let reads: Vec<u64> = [1, 2, 4, 16].map(reads_with).to_vec();
    assert!(reads.is_sorted_by(|a, b| a > b), "{reads:?}");
}

#[test]
fn at_rest_every_other_change_is_let_go_and_the_others_are_seen_as_narrowly() {
    for (jitter, delay, widest) in [
        (0, 100_000, 3),
        (0, 8_000_000, 16),
        (4_000_000, 3_000_000, 12),
    ] {
        let mut simulation = Simulation {
            jitter,
            delay,
            ..Simulation::steady()
        };
        let busy = simulation.run(40);
        simulation.rests = true;
        let rested = simulation.run(40);
        let settled = Timestamp(START + 4 * SECOND);
        let widths = |run: &Run| (run.median_width(settled), run.widest(settled));
        println!("{:?} at rest {:?}", widths(&busy), widths(&rested));
        assert!(rested.median_width(settled) <= widest * MILLISECOND);
        assert!(
            rested
                .edges
                .iter()
                .all(|edge| simulation.holds_a_change(edge))
        );
        let after = |run: &Run| run.edges.iter().filter(|e| e.until > settled).count();
        assert!(after(&rested) * 2 >= after(&busy) * 9 / 10);
        assert!(after(&rested) * 2 <= after(&busy) * 11 / 10);
        assert!((rested.reads - 100) * 10 < (busy.reads - 100) * 7);
    }
}

#[test]
fn when_rest_ends_every_change_is_followed_again() {
    let mut simulation = Simulation {
        rests: true,
        rests_until: START + 20 * SECOND,
        ..Simulation::steady()
    };
    let run = simulation.run(30);
    assert_eq!(run.lock, Lock::Locked);
    let late = |edge: &&Edge| edge.until.0 > START + 20 * SECOND + SECOND / 2;
    assert!(run.edges.iter().filter(late).count() >= 94);
    assert!(run.edges.iter().all(|edge| simulation.holds_a_change(edge)));
}
