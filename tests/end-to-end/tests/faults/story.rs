//! What an agent has told while a fault came and went, and what must hold of it.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::http;

/// When the faults begin, seconds after the stack's start: the agents have learned what they need
/// by then.
pub(crate) const BEGINS_S: u64 = 9;
/// Between two scrapes.
const SCRAPES: Duration = Duration::from_millis(250);
/// Energy is booked again so long after a fault is over.
const RECOVERY: Duration = Duration::from_secs(5);
/// What the board may draw.
pub(crate) const LIMIT_WATTS: f64 = 500.0;
const TICK_S: f64 = 0.1;
/// What it draws at least and at most in the mean, serving.
pub(crate) const SERVING_WATTS: std::ops::Range<f64> = 60.0..480.0;

pub(crate) const METER: &str =
    "perjoule_meter_energy_joules_total{component=\"gpu\",device=\"GPU-a\",source=\"counter\"}";
const GAP_SECONDS: &str = "perjoule_gap_seconds_total{component=\"gpu\",device=\"GPU-a\"}";
pub(crate) const GAP_ENERGY: &str =
    "perjoule_energy_account_joules_total{component=\"gpu\",device=\"GPU-a\",account=\"gap\"}";
pub(crate) const UP: &str = "perjoule_source_up{source=\"nvml\"}";
pub(crate) const AGE: &str = "perjoule_source_age_seconds{source=\"nvml\"}";
pub(crate) const REFUSED: &str = "perjoule_events_dropped_total{reason=\"reading_refused\"}";
pub(crate) const SLOWEST: &str =
    "perjoule_source_call_latency_seconds{source=\"nvml\",percentile=\"99\"}";
pub(crate) const POWER: &str = "perjoule_gpu_power_watts{device=\"GPU-a\"}";

/// One look at all series, so long after the stack's start.
pub(crate) struct Scrape {
    at_s: f64,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    pub(crate) fn get(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }
}

/// What an agent has told while a fault came and went.
pub(crate) struct Story {
    pub(crate) name: &'static str,
    pub(crate) agent: Agent,
    pub(crate) scrapes: Vec<Scrape>,
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
    /// Scrapes an agent until `ends_s` after `began`.
    pub(crate) fn watch(name: &'static str, agent: Agent, began: Instant, ends_s: u64) -> Self {
        let scrapes = scrape_until(&agent, began, ends_s);
        Self {
            name,
            agent,
            scrapes,
        }
    }

    /// What holds whatever goes wrong.
    pub(crate) fn assert_honest(&self) {
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

    pub(crate) fn between(&self, from_s: f64, to_s: f64) -> impl Iterator<Item = &Scrape> + Clone {
        let within = move |scrape: &&Scrape| (from_s..to_s).contains(&scrape.at_s);
        self.scrapes.iter().filter(within)
    }

    /// Growth of a series between two moments.
    pub(crate) fn growth(&self, series: &str, from_s: f64, to_s: f64) -> f64 {
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
    pub(crate) fn assert_down(&self, from_s: f64, to_s: f64) {
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
    pub(crate) fn assert_recovers(&self, over_s: f64) {
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
    pub(crate) fn gap_seconds(&self) -> f64 {
        let gap = self.growth(GAP_SECONDS, BEGINS_S as f64 - 0.5, f64::INFINITY);
        println!("{}: {gap:.2} s of gap", self.name);
        gap
    }
}
