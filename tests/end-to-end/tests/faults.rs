//! What goes wrong with a GPU under load: it shows, nothing is made up, nothing that was told is
//! taken back, and when it is over energy is booked again without a restart.
//!
//! One stack serves; several agents look at the same GPU, each through a scenario in which another
//! fault strikes. Root.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::stack::Stack;
use end_to_end::{http, is_root};

/// When the faults begin, seconds after the stack's start: the agents have learned what they need
/// by then.
const BEGINS_S: u64 = 9;
/// Between two scrapes.
const SCRAPES: Duration = Duration::from_millis(250);
/// Energy is booked again so long after a fault is over.
const RECOVERY: Duration = Duration::from_secs(5);
/// What the board may draw.
const LIMIT_WATTS: f64 = 500.0;
const TICK_S: f64 = 0.1;
/// What it draws at least and at most in the mean, serving.
const SERVING_WATTS: std::ops::Range<f64> = 60.0..480.0;

const METER: &str =
    "perjoule_meter_energy_joules_total{component=\"gpu\",device=\"GPU-a\",source=\"counter\"}";
const GAP_SECONDS: &str = "perjoule_gap_seconds_total{component=\"gpu\",device=\"GPU-a\"}";
const GAP_ENERGY: &str =
    "perjoule_energy_account_joules_total{component=\"gpu\",device=\"GPU-a\",account=\"gap\"}";
const UP: &str = "perjoule_source_up{source=\"nvml\"}";
const AGE: &str = "perjoule_source_age_seconds{source=\"nvml\"}";
const REFUSED: &str = "perjoule_events_dropped_total{reason=\"reading_refused\"}";
const SLOWEST: &str = "perjoule_source_call_latency_seconds{source=\"nvml\",percentile=\"99\"}";
const POWER: &str = "perjoule_gpu_power_watts{device=\"GPU-a\"}";

/// One look at all series, so long after the stack's start.
struct Scrape {
    at_s: f64,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    fn get(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }
}

/// What goes wrong.
struct Fault {
    name: &'static str,
    /// In the scenario's words: what follows the board's own table.
    lines: &'static str,
}

/// What an agent has told while a fault came and went.
struct Story {
    name: &'static str,
    agent: Agent,
    scrapes: Vec<Scrape>,
}

/// Lets every fault strike an agent of its own, under one load, until `ends_s` after the stack's
/// start.
fn strike(faults: &[Fault], ends_s: u64) -> Vec<Story> {
    let device = format!("[[device]]\nuuid = \"GPU-a\"\nmax_limit_watts = {LIMIT_WATTS}\n");
    let stack = Stack::start_with_scenario(&device);
    let began = Instant::now();
    let stories = thread::scope(|scope| {
        let watched: Vec<_> = faults
            .iter()
            .map(|fault| {
                let lines = format!("{device}{}", fault.lines);
                let mut command = stack.perjoule_seeing(fault.name, &lines);
                command.env("PERJOULE_ENGINE_METRICS", "off");
                scope.spawn(move || {
                    let agent = Agent::start_with(command, &[]);
                    let scrapes = scrape_until(&agent, began, ends_s);
                    let name = fault.name;
                    Story {
                        name,
                        agent,
                        scrapes,
                    }
                })
            })
            .collect();
        // An idle GPU first, and then work until the end.
        thread::sleep(Duration::from_secs(4));
        let seconds = ends_s - began.elapsed().as_secs();
        let load = format!("--rate 3 --seconds {seconds} --median-out 60 --sigma-out 0.5");
        let mut load = stack.load_of(&load);
        let stories: Vec<Story> = watched
            .into_iter()
            .map(|watched| watched.join().expect("a story"))
            .collect();
        // What it has not sent yet is of no use.
        let _ = load.kill();
        let _ = load.wait();
        stories
    });
    stories
        .into_iter()
        .map(|mut story| {
            story.agent.end_with(libc::SIGTERM);
            story
        })
        .collect()
}

fn scrape_until(agent: &Agent, began: Instant, ends_s: u64) -> Vec<Scrape> {
    let mut scrapes = Vec::new();
    while began.elapsed() < Duration::from_secs(ends_s) {
        let asked = Instant::now();
        let answer = http::get(agent.port(), "/metrics");
        let took = asked.elapsed();
        assert!(
            took < Duration::from_secs(1),
            "a scrape waited for {took:?}"
        );
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        let lines = http::body(&answer).lines();
        scrapes.push(Scrape {
            at_s: began.elapsed().as_secs_f64(),
            series: lines
                .filter(|line| !line.starts_with('#'))
                .filter_map(sample)
                .collect(),
        });
        thread::sleep(SCRAPES);
    }
    scrapes
}

impl Story {
    /// What holds whatever goes wrong.
    fn assert_honest(&self) {
        let name = self.name;
        self.assert_no_total_falls();
        let booked = self
            .scrapes
            .iter()
            .filter(|scrape| scrape.get(METER).is_some());
        assert!(booked.clone().count() > 20, "{name}: {}", self.agent.log());
        for scrape in booked {
            assert_eq!(
                scrape.get("perjoule_ledger_residual_joules"),
                Some(0.0),
                "{name}"
            );
            let accounts = scrape
                .series
                .iter()
                .filter(|(series, _)| series.starts_with("perjoule_energy_account_joules_total{"));
            for (series, joules) in accounts {
                assert!(*joules >= 0.0, "{name}: {series} {joules}");
            }
        }
        let intervals = self.agent.rows(
            "SELECT from_ns, to_ns, energy_uj, idle_uj + context_uj + requests_uj + overhead_uj
                + other_uj + agent_uj + unattributed_uj + gap_uj AS accounts_uj,
                min(idle_uj, context_uj, requests_uj, overhead_uj, other_uj, agent_uj,
                unattributed_uj, gap_uj) AS least_uj
            FROM intervals JOIN meters USING (meter) WHERE device = 'GPU-a'",
        );
        for row in &intervals {
            let number = |column: &str| row[column].as_i64().expect("a number");
            let seconds = (number("to_ns") - number("from_ns")) as f64 * 1e-9;
            let joules = number("energy_uj") as f64 * 1e-6;
            let most = 1.2 * LIMIT_WATTS * (seconds + TICK_S);
            assert!((0.0..=most).contains(&joules), "{name}: a spike, {row}");
            assert_eq!(number("energy_uj"), number("accounts_uj"), "{name}: {row}");
            assert!(number("least_uj") >= 0, "{name}: {row}");
        }
        // Over seconds nothing is made up either.
        for pair in self.scrapes.windows(9) {
            let (Some(from), Some(to)) = (pair[0].get(METER), pair[8].get(METER)) else {
                continue;
            };
            let gap =
                pair[8].get(GAP_ENERGY).unwrap_or(0.0) - pair[0].get(GAP_ENERGY).unwrap_or(0.0);
            let watts = (to - from - gap) / (pair[8].at_s - pair[0].at_s);
            // What waited for late facts may be booked at once.
            assert!(
                watts < 2.5 * LIMIT_WATTS,
                "{name}: {watts} W booked at {:.1} s",
                pair[8].at_s
            );
        }
    }

    fn assert_no_total_falls(&self) {
        let is_total = |series: &str| {
            let name = series.split('{').next().unwrap_or(series);
            ["_total", "_bucket", "_count", "_sum"]
                .iter()
                .any(|ending| name.ends_with(ending))
        };
        let mut highest: BTreeMap<&str, f64> = BTreeMap::new();
        for scrape in &self.scrapes {
            for (series, value) in &scrape.series {
                if !is_total(series) {
                    continue;
                }
                let known = highest.entry(series).or_insert(*value);
                let at = scrape.at_s;
                assert!(
                    value >= known,
                    "{}: {series} fell from {known} to {value} at {at:.1} s",
                    self.name
                );
                *known = *value;
            }
            // Energy that was shown is shown for ever.
            for series in highest
                .keys()
                .filter(|series| series.contains("joules_total"))
            {
                assert!(
                    scrape.series.contains_key(*series),
                    "{}: {series} is gone",
                    self.name
                );
            }
        }
    }

    fn between(&self, from_s: f64, to_s: f64) -> impl Iterator<Item = &Scrape> + Clone {
        let within = move |scrape: &&Scrape| (from_s..to_s).contains(&scrape.at_s);
        self.scrapes.iter().filter(within)
    }

    /// Growth of a series between two moments.
    fn growth(&self, series: &str, from_s: f64, to_s: f64) -> f64 {
        let values = self
            .between(from_s, to_s)
            .filter_map(|scrape| scrape.get(series));
        let (Some(first), Some(last)) = (values.clone().next(), values.last()) else {
            panic!(
                "{}: no {series} from {from_s} to {to_s} s: {}",
                self.name,
                self.agent.log()
            );
        };
        last - first
    }

    /// The source is shown as down at some time in there.
    fn assert_down(&self, from_s: f64, to_s: f64) {
        let down = |scrape: &Scrape| scrape.get(UP) == Some(0.0);
        let seen: Vec<_> = self
            .between(from_s, to_s)
            .map(|s| (s.at_s, s.get(UP), s.get(AGE)))
            .collect();
        assert!(
            self.between(from_s, to_s).any(down),
            "{}: {seen:?}",
            self.name
        );
    }

    /// Booked before the fault, and again soon after it, at what the board draws.
    fn assert_recovers(&self, over_s: f64) {
        let (name, begins) = (self.name, BEGINS_S as f64);
        for (from, to) in [
            (begins - 2.5, begins),
            (over_s + RECOVERY.as_secs_f64(), f64::INFINITY),
        ] {
            let times = self.between(from, to).map(|scrape| scrape.at_s);
            let (first, last) = (
                times.clone().next().expect("scrapes"),
                times.last().expect("scrapes"),
            );
            let watts = self.growth(METER, from, to) / (last - first);
            println!("{name}: {watts:.0} W booked from {first:.1} to {last:.1} s");
            assert!(
                SERVING_WATTS.contains(&watts),
                "{name}: {watts} W from {first} to {last} s"
            );
        }
        let last = self.scrapes.last().expect("scrapes");
        assert_eq!(last.get(UP), Some(1.0), "{name}: {}", self.agent.log());
    }

    /// Time whose energy nobody knows since the fault began.
    fn gap_seconds(&self) -> f64 {
        let gap = self.growth(GAP_SECONDS, BEGINS_S as f64 - 0.5, f64::INFINITY);
        println!("{}: {gap:.2} s of gap", self.name);
        gap
    }
}

#[test]
fn a_counter_that_is_reset_or_jumps_or_ends_costs_its_own_tick_and_nothing_else() {
    if !is_root("faults of a counter") {
        return;
    }
    let begins = BEGINS_S as f64;
    let stories = strike(
        &[
            Fault {
                name: "reset",
                lines: "[faults]\nreset_at_s = 9\n",
            },
            Fault {
                name: "jump-up",
                lines: "[[device.jump]]\nat_s = 9\njoules = 1e9\n",
            },
            Fault {
                name: "jump-down",
                lines: "[[device.jump]]\nat_s = 9\njoules = -200\n",
            },
            Fault {
                name: "unsupported",
                lines: "[[fault]]\ncall = \"field:83\"\nanswer = \"not_supported\"\nfrom_s = 9\n",
            },
        ],
        18,
    );
    for story in &stories {
        story.assert_honest();
        let refused = story.scrapes.last().and_then(|scrape| scrape.get(REFUSED));
        let expected = if story.name == "jump-up" { 1.0 } else { 0.0 };
        assert_eq!(refused, Some(expected), "{}", story.name);
        if story.name == "unsupported" {
            continue;
        }
        let gap = story.gap_seconds();
        assert!((0.05..1.0).contains(&gap), "{}: {gap} s", story.name);
        story.assert_recovers(begins);
    }
    // Without its counter the board is not measured any more, and that shows to the end.
    let unsupported = &stories[3];
    unsupported.assert_down(begins + 0.5, begins + 3.0);
    let since = (begins + 3.5, f64::INFINITY);
    assert_eq!(unsupported.growth(METER, since.0, since.1), 0.0, "made up");
    assert!(unsupported.growth(AGE, since.0, since.1) > 3.0);
    let requests = unsupported.agent.rows(
        "SELECT gpu_uj, start_ns, end_ns FROM requests WHERE route <> 'health' AND start_ns > (
            SELECT max(to_ns) FROM intervals JOIN meters USING (meter) WHERE device = 'GPU-a')",
    );
    assert!(requests.len() > 5, "{requests:?}");
    assert!(
        requests.iter().all(|request| request["gpu_uj"].is_null()),
        "unknown is not 0: {requests:?}"
    );
    let last = unsupported.scrapes.last().expect("scrapes");
    assert_eq!((last.get(UP), last.get(POWER)), (Some(0.0), None));
}

#[test]
fn a_board_or_driver_that_does_not_answer_shows_as_down_and_is_metered_again_when_it_does() {
    if !is_root("faults of a driver") {
        return;
    }
    let begins = BEGINS_S as f64;
    let stories = strike(
        &[
            Fault {
                name: "lost",
                lines: "[faults]\nlost_at_s = 9\nback_at_s = 13\n",
            },
            Fault {
                name: "slow",
                lines: "[[fault]]\ncall = \"*\"\ndelay_ms = 30\nfrom_s = 9\nuntil_s = 15\n",
            },
            Fault {
                name: "hung",
                lines: "[[fault]]\ncall = \"*\"\nhangs = true\nfrom_s = 9\nuntil_s = 16\n",
            },
            Fault {
                name: "reload",
                lines: "[faults]\nreset_at_s = 11\n\
                        [[fault]]\ncall = \"*\"\nanswer = \"uninitialized\"\nfrom_s = 9\nuntil_s = 13\n\
                        [[fault]]\ncall = \"nvmlInit_v2\"\nanswer = \"driver_not_loaded\"\nfrom_s = 9\nuntil_s = 13\n",
            },
        ],
        24,
    );
    for story in &stories {
        story.assert_honest();
    }
    let [lost, slow, hung, reload] = &stories[..] else {
        panic!("four faults");
    };
    for story in [lost, reload] {
        story.assert_down(begins + 0.5, begins + 4.0);
        // The counter began anew while nobody could look.
        let gap = story.gap_seconds();
        assert!((3.5..8.0).contains(&gap), "{}: {gap} s", story.name);
        story.assert_recovers(13.0);
    }

    // It cannot say so itself: its latest answer grows old. The counter ran on.
    hung.assert_down(15.0, 16.5);
    assert!(hung.growth(AGE, begins + 1.0, 15.5) > 5.0);
    assert_eq!(hung.growth(METER, begins + 3.0, 15.5), 0.0, "made up");
    let energy = hung.growth(GAP_ENERGY, begins, f64::INFINITY);
    assert!(
        SERVING_WATTS.contains(&(energy / 7.0)),
        "{energy} J while it hung"
    );
    hung.assert_recovers(16.0);

    let up = |scrape: &Scrape| scrape.get(UP) == Some(1.0);
    assert!(slow.between(begins, 24.0).all(up), "slow is not down");
    assert!(
        slow.between(begins + 3.0, 15.0)
            .any(|s| s.get(SLOWEST).is_some_and(|p99| p99 > 0.025))
    );
    assert_eq!(slow.gap_seconds(), 0.0);
    let watts = slow.growth(METER, begins + 0.5, 15.0) / 5.5;
    assert!(
        SERVING_WATTS.contains(&watts),
        "{watts} W while calls were slow"
    );
    slow.assert_recovers(15.0);
}
