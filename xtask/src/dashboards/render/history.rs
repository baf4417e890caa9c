//! Days of a fleet's recorded series, made up: nobody waits a week for a picture. Figures follow from the nodes' load as
//! they do in a real fleet (energy from idle and busy power, joules a request from the batch), so that they agree.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::project::run;

/// Of one sample from the next, seconds: more often than an instant query looks back.
const STEP: u64 = 120;
/// What rules.yaml has.
const PRICE_PER_KWH: f64 = 0.10;
const GRAMS_PER_KWH: f64 = 480.0;

/// GPUs of one type in one cluster, and the model that they serve.
struct Pool {
    cluster: &'static str,
    gpu: &'static str,
    model: &'static str,
    gpus: f64,
    /// Of one GPU, watts.
    idle: f64,
    busy: f64,
    /// In the largest batch, joules.
    per_request: f64,
    tokens_in: f64,
    tokens_out: f64,
    /// Hours after midnight UTC at which most is asked.
    peak: f64,
}

const A100: &str = "NVIDIA A100-SXM4-80GB (simulated)";
const H100: &str = "NVIDIA H100 80GB HBM3 (simulated)";

const POOLS: [Pool; 3] = [
    Pool {
        cluster: "simulated-east",
        gpu: A100,
        model: "simulated-8b",
        gpus: 64.0,
        idle: 83.0,
        busy: 330.0,
        per_request: 62.0,
        tokens_in: 1_150.0,
        tokens_out: 210.0,
        peak: 19.0,
    },
    Pool {
        cluster: "simulated-east",
        gpu: H100,
        model: "simulated-70b",
        gpus: 96.0,
        idle: 110.0,
        busy: 560.0,
        per_request: 540.0,
        tokens_in: 1_400.0,
        tokens_out: 320.0,
        peak: 20.0,
    },
    Pool {
        cluster: "simulated-west",
        gpu: A100,
        model: "simulated-8b",
        gpus: 48.0,
        idle: 83.0,
        busy: 330.0,
        per_request: 66.0,
        tokens_in: 980.0,
        tokens_out: 190.0,
        peak: 23.0,
    },
];

/// Writes so many seconds up to now as blocks of Prometheus; returns their folder.
pub(super) fn write(seconds: u64, work: &Path) -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let file = work.join("history.txt");
    fs::write(&file, open_metrics(now - seconds, now)?)?;
    let blocks = work.join("blocks");
    run(Command::new("promtool")
        .args(["tsdb", "create-blocks-from", "openmetrics", "--quiet"])
        // One pass over the file for each block: two hours, the default, take many.
        .arg("--max-block-duration=24h")
        .args([&file, &blocks]))
    .context("promtool made no blocks")?;
    Ok(blocks)
}

/// Name and labels, and values by their time.
type Series = BTreeMap<(&'static str, String), Vec<(u64, f64)>>;

fn open_metrics(from: u64, to: u64) -> Result<String> {
    let mut series = Series::new();
    // The last one is of now.
    let first = from + (to - from) % STEP;
    for time in (first..=to).step_by(STEP as usize) {
        for (name, labels, value) in recorded(time) {
            let values = series.entry((name, labels)).or_default();
            values.push((time, value));
        }
    }
    let mut text = String::new();
    let mut family = "";
    for ((name, labels), values) in &series {
        if *name != family {
            family = name;
            writeln!(text, "# TYPE {name} gauge")?;
        }
        for (time, value) in values {
            writeln!(text, "{name}{{{labels}}} {value:.6} {time}")?;
        }
    }
    text.push_str("# EOF\n");
    Ok(text)
}

/// What the rules record at a moment. Each figure is of one hour, so kW and kWh are the same number.
fn recorded(time: u64) -> Vec<(&'static str, String, f64)> {
    let mut all = Vec::new();
    let mut clusters = BTreeMap::new();
    for pool in &POOLS {
        let load = pool.load(time as f64);
        let [gpu, cpu, dram, active] = pool.kilowatts(load);
        let sums: &mut [f64; 3] = clusters.entry(pool.cluster).or_default();
        for (sum, part) in sums.iter_mut().zip([gpu, cpu, dram]) {
            *sum += part;
        }
        let model = format!("cluster=\"{}\",model=\"{}\"", pool.cluster, pool.model);
        let board = format!("cluster=\"{}\",name=\"{}\"", pool.cluster, pool.gpu);
        let joules = pool.per_request * load.powf(BATCHED - 1.0);
        let tokens = pool.tokens_in + pool.tokens_out;
        for (name, value) in [
            ("model:perjoule_energy_kwh:increase1h", active),
            ("model:perjoule_joules_per_request:ratio_rate1h", joules),
            (
                "model:perjoule_joules_per_output_token:ratio_rate1h",
                joules / pool.tokens_out,
            ),
            (
                "model:perjoule_joules_per_token:ratio_rate1h",
                joules / tokens,
            ),
        ] {
            all.push((name, model.clone(), value));
        }
        let idle = pool.gpus * pool.idle / 1e3;
        all.push((
            "gpu_type:perjoule_energy_kwh:increase1h",
            board.clone(),
            gpu,
        ));
        all.push((
            "gpu_type:perjoule_idle_share:ratio_rate1h",
            board,
            idle / gpu,
        ));
    }
    for (cluster, parts) in clusters {
        for (component, energy) in ["gpu", "cpu", "dram"].into_iter().zip(parts) {
            let labels = format!("cluster=\"{cluster}\",component=\"{component}\"");
            all.push(("cluster:perjoule_energy_kwh:increase1h", labels, energy));
        }
        let energy: f64 = parts.iter().sum();
        for (name, value) in [
            ("cluster:perjoule_cost:increase1h", energy * PRICE_PER_KWH),
            (
                "cluster:perjoule_carbon_grams:increase1h",
                energy * GRAMS_PER_KWH,
            ),
        ] {
            all.push((name, format!("cluster=\"{cluster}\""), value));
        }
    }
    all
}

/// Twice the requests draw twice to this power of the active watts: larger batches are cheaper.
const BATCHED: f64 = 0.7;
const HOUR: f64 = 3_600.0;
const DAY: f64 = 24.0 * HOUR;

impl Pool {
    /// Requests ÷ the most that it serves: more by day, less at weekends, never quite even.
    fn load(&self, time: f64) -> f64 {
        let daily = (1.0 + (TAU * (time / DAY - self.peak / 24.0)).cos()) / 2.0;
        // The clock began on a Thursday; the middle of a weekend is three days later.
        let weekly = (TAU * (time / DAY - 3.0) / 7.0).cos();
        let weekend = ((weekly - 0.4) / 0.4).clamp(0.0, 1.0);
        let uneven = [(1.7, 0.03), (0.61, 0.02), (5.3, 0.03)]
            .map(|(hours, share)| share * (TAU * time / (hours * HOUR) + self.peak).sin());
        let load = 0.12 + 0.75 * daily * (1.0 - 0.5 * weekend);
        (load * (1.0 + uneven.iter().sum::<f64>())).clamp(0.05, 1.0)
    }

    /// GPUs, CPUs, memory, and what of them requests caused.
    fn kilowatts(&self, load: f64) -> [f64; 4] {
        let active = (self.busy - self.idle) * load.powf(BATCHED);
        let (cpu, dram) = (28.0 * load, 5.0 * load);
        [
            self.idle + active,
            22.0 + cpu,
            6.0 + dram,
            active + cpu + dram,
        ]
        .map(|watts| self.gpus * watts / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboards::shipped;

    #[test]
    fn every_series_that_the_dashboard_of_days_asks_for_is_there_up_to_now() {
        let text = open_metrics(1_000_000, 1_086_400).unwrap();
        let all = shipped();
        let dashboard = all
            .iter()
            .find(|dashboard| dashboard.name == super::super::OF_DAYS)
            .unwrap();
        let mut asked = 0;
        for panel in dashboard.json["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expr = target["expr"].as_str().unwrap();
                let name = expr.trim_start_matches("sum(").split('{').next().unwrap();
                let last = text
                    .lines()
                    .rfind(|line| line.starts_with(&format!("{name}{{")))
                    .unwrap_or_else(|| panic!("{name}"));
                assert!(last.ends_with(" 1086400"), "{last}");
                asked += 1;
            }
        }
        assert!(asked >= 10, "{asked}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn costs_are_of_the_energy_and_nights_and_weekends_are_quieter() {
        let sum = |time, name| -> f64 {
            let all = recorded(time).into_iter();
            all.filter(|of| of.0 == name).map(|of| of.2).sum()
        };
        // 19:00 UTC of a Thursday and of a Sunday.
        let (thursday, sunday) = (19 * 3_600, 3 * 86_400 + 19 * 3_600);
        let energy = |time| sum(time, "cluster:perjoule_energy_kwh:increase1h");
        let cost = sum(thursday, "cluster:perjoule_cost:increase1h");
        assert!((cost - energy(thursday) * PRICE_PER_KWH).abs() < 1e-9);
        assert!(energy(thursday) > 1.1 * energy(sunday));
        assert!(energy(thursday) > 1.3 * energy(thursday - 12 * 3_600));
    }
}
