//! What a scrape costs by its size: to make a snapshot, to encode it, to compress it.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::table::{Budget, Row};
use super::{Lengths, step};
use crate::project::target;

/// Series, and the milliseconds that one encoding of them may take.
const SIZES: [(f64, f64); 2] = [(2_000.0, 5.0), (10_000.0, 25.0)];
/// Of a compressed body.
const KILOBYTES: f64 = 200.0;
/// Runs for each pair of the other parts': they are short.
const RUNS_A_PAIR: usize = 10;

/// All figures.
pub(super) fn measure(lengths: Lengths) -> Result<Vec<Row>> {
    step("scrapes of many series");
    let out = Command::new(target("release/scrape_cost"))
        .arg("--repeats")
        .arg((lengths.pairs * RUNS_A_PAIR).to_string())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run target/release/scrape_cost")?;
    ensure!(out.status.success(), "scrape_cost failed: {}", out.status);
    let lines: Vec<Value> = String::from_utf8(out.stdout)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("scrape_cost says something else")?;
    let mut rows = Vec::new();
    for (series, budget) in SIZES {
        // A last service is shown whole.
        let about = series..series * 1.2;
        let sized = lines.iter().filter(|line| {
            let shown = line["series"].as_f64();
            shown.is_some_and(|shown| about.contains(&shown))
        });
        let sized: Vec<&Value> = sized.collect();
        let publish = sized.iter().filter_map(|line| line["publish_ms"].as_f64());
        rows.push(Row::new(
            format!("snapshot of {series} series"),
            "ms",
            publish,
        ));
        for (format, name) in [("Text", "text 0.0.4"), ("OpenMetrics", "OpenMetrics")] {
            let figures = |key: &'static str, divisor: f64| -> Vec<f64> {
                let of_format = sized.iter().filter(|line| line["format"] == format);
                of_format
                    .filter_map(|line| Some(line[key].as_f64()? / divisor))
                    .collect()
            };
            let row = |what: &str, unit, values| {
                Row::new(
                    format!("scrape, {name}, {series} series: {what}"),
                    unit,
                    values,
                )
            };
            rows.extend([
                row("encode", "ms", figures("encode_ms", 1.0)).budget(Budget::Figure(budget)),
                row("compress", "ms", figures("gzip_ms", 1.0)),
                row("size", "kB", figures("bytes", 1e3)),
                row("size compressed", "kB", figures("gzip_bytes", 1e3))
                    .budget(Budget::Figure(KILOBYTES)),
            ]);
        }
    }
    Ok(rows)
}
