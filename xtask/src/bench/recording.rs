//! An hour of a node that serves 1,000 requests a second: what its recording takes to write, on disk, and to
//! report.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::table::{Budget, Row};
use super::{Lengths, step, usage};
use crate::project::target;

const REQUESTS: u64 = 3_600_000;
const BYTES_A_REQUEST: f64 = 100.0;
const REPORT_SECONDS: f64 = 5.0;
const REPORT_MEGABYTES: f64 = 200.0;

/// All figures.
pub(super) fn measure(folder: &Path, lengths: Lengths) -> Result<Vec<Row>> {
    step("an hour at 1,000 requests a second");
    let file = folder.join("hour.pj");
    let out = Command::new(target("release/recording_cost"))
        .arg(&file)
        .args(["--requests", &REQUESTS.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run target/release/recording_cost")?;
    ensure!(
        out.status.success(),
        "recording_cost failed: {}",
        out.status
    );
    let told: Value =
        serde_json::from_slice(&out.stdout).context("recording_cost says something else")?;
    let figure = |key: &str| told[key].as_f64();
    let mut rows = vec![
        Row::new(
            "recording: a request, appended",
            "ns",
            figure("append_ns_per_request"),
        ),
        Row::new(
            "recording of an hour: a request on disk",
            "bytes",
            figure("bytes_per_request"),
        )
        .budget(Budget::Figure(BYTES_A_REQUEST)),
    ];
    for form in ["json", "html"] {
        let (mut seconds, mut megabytes) = (Vec::new(), Vec::new());
        for _ in 0..lengths.pairs {
            let start = Instant::now();
            let child = Command::new(target("release/perjoule"))
                .args(["report", "--format", form])
                .arg(&file)
                .stdout(File::create(folder.join("report"))?)
                .spawn()
                .context("cannot run target/release/perjoule")?;
            let ended = usage::wait(child)?;
            ensure!(ended.success, "report failed");
            seconds.push(start.elapsed().as_secs_f64());
            megabytes.push(ended.peak_mb);
        }
        let row = |what: &str, unit, values: Vec<f64>, budget| {
            Row::new(format!("report of an hour, {form}: {what}"), unit, values)
                .budget(Budget::Figure(budget))
        };
        rows.push(row("time", "s", seconds, REPORT_SECONDS));
        rows.push(row("memory (peak RSS)", "MB", megabytes, REPORT_MEGABYTES));
    }
    std::fs::remove_file(&file).context("cannot remove the hour")?;
    Ok(rows)
}
