//! The ledger by itself, on values in memory, and a replay from file to file.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::table::{Budget, Row};
use super::{Lengths, step, usage};
use crate::project::target;

/// A million requests a second, and a hundred thousand.
const LEDGER_NANOSECONDS: f64 = 1_000.0;
const REPLAY_NANOSECONDS: f64 = 10_000.0;
/// How much more a request may cost among 10,000 than alone: caches, not the ledger.
const FLAT: f64 = 2.0;
/// Requests of the log that is replayed, and how many times as many the longer one has.
const REQUESTS: u64 = 100_000;
const LONGER: u64 = 4;
/// How much more memory that may take: none but noise.
const MEMORY_FLAT: f64 = 1.2;
const IN_FLIGHT: [u64; 3] = [1, 100, 10_000];

/// All figures.
pub(super) fn measure(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    step("the ledger on values in memory");
    let mut rows = in_memory(lengths)?;
    step("replay, file to file");
    rows.extend(replay(folder, lengths)?);
    Ok(rows)
}

fn in_memory(lengths: Lengths) -> Result<Vec<Row>> {
    let out = Command::new(target("release/ledger_cost"))
        .arg("--repeats")
        .arg(lengths.pairs.to_string())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run target/release/ledger_cost")?;
    ensure!(out.status.success(), "ledger_cost failed: {}", out.status);
    let lines: Vec<Value> = String::from_utf8(out.stdout)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("ledger_cost says something else")?;
    let of = |told: &str, in_flight: u64| -> Vec<f64> {
        lines
            .iter()
            .filter(|line| line["told"] == told && line["in_flight"] == in_flight)
            .filter_map(|line| line["ns_per_request"].as_f64())
            .collect()
    };
    let mut rows = Vec::new();
    for told in ["once", "thrice"] {
        for in_flight in IN_FLIGHT {
            let name = format!("ledger: a request told {told}, {in_flight} in flight");
            let row = Row::new(name, "ns", of(told, in_flight));
            rows.push(match (told, in_flight) {
                ("once", _) => row.budget(Budget::Figure(LEDGER_NANOSECONDS)),
                (_, 1) => row,
                _ => row.peer(of(told, 1)).budget(Budget::Ratio(FLAT)),
            });
        }
    }
    if let Some(row) = rows.pop() {
        rows.push(row.remark("the peer is the same with one in flight"));
    }
    Ok(rows)
}

fn replay(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    let given: &[&str] = &["--idle-watts", "80"];
    let mut rows = Vec::new();
    let mut peaks = [Vec::new(), Vec::new()];
    write_logs(folder, REQUESTS)?;
    for (name, arguments) in [("given", given), ("learned", &[])] {
        let mut values = Vec::new();
        for _ in 0..lengths.pairs {
            let run = replay_once(folder, arguments)?;
            values.push(run.took.as_nanos() as f64 / REQUESTS as f64);
            if arguments == given {
                peaks[0].push(run.peak_mb);
            }
        }
        let name = format!("replay: a request, file to file, floor {name}");
        rows.push(Row::new(name, "ns", values).budget(Budget::Figure(REPLAY_NANOSECONDS)));
    }
    write_logs(folder, LONGER * REQUESTS)?;
    for _ in 0..lengths.pairs {
        peaks[1].push(replay_once(folder, given)?.peak_mb);
    }
    let [short, long] = peaks;
    let name = format!("replay: memory, log of {} requests", LONGER * REQUESTS);
    rows.push(
        Row::new(name, "MB", long)
            .peer(short)
            .budget(Budget::Ratio(MEMORY_FLAT))
            .remark(format!(
                "the peer is a log of {REQUESTS}; 500 requests a second, power ten times a second"
            )),
    );
    Ok(rows)
}

struct Replay {
    took: Duration,
    peak_mb: f64,
}

fn replay_once(folder: &Path, arguments: &[&str]) -> Result<Replay> {
    let start = Instant::now();
    let child = Command::new(target("release/perjoule"))
        .args(["replay", "--power", "power.csv"])
        .args(["--requests", "requests.jsonl", "-o", "replayed.pj"])
        .args(arguments)
        .current_dir(folder)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run target/release/perjoule")?;
    let ended = usage::wait(child)?;
    ensure!(ended.success, "replay failed");
    Ok(Replay {
        took: start.elapsed(),
        peak_mb: ended.peak_mb,
    })
}

fn write_logs(folder: &Path, requests: u64) -> Result<()> {
    let create = |name: &str| File::create(folder.join(name)).map(BufWriter::new);
    let mut log = create("requests.jsonl")?;
    for number in 0..requests {
        let start = 2.0 + number as f64 / 500.0;
        let end = start + 0.2 + (number % 19) as f64 / 10.0;
        writeln!(
            log,
            "{{\"id\":\"request-{number}\",\"service\":\"service-{}\",\"start_s\":{start:.6},\
             \"first_token_s\":{:.6},\"end_s\":{end:.6},\"input_tokens\":{},\"output_tokens\":{}}}",
            number % 3,
            start + 0.1,
            10 + number % 4_000,
            1 + number % 60,
        )?;
    }
    log.flush()?;
    let mut power = create("power.csv")?;
    writeln!(power, "time_s,device,watts")?;
    for row in 0..requests / 50 + 60 {
        let (at, watts) = (row as f64 / 10.0, 200 + row % 200);
        writeln!(power, "{at:.1},GPU-0,{watts}")?;
    }
    Ok(power.flush()?)
}
