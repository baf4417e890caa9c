//! Days of series that nobody waited for, for a Prometheus and a VictoriaMetrics alike.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::engine::{Engine, Range};

/// Blocks are 2 h × 3ⁿ long and begin at a multiple of that: one that holds all days, hours.
const BLOCK_HOURS: u64 = 1_458;

/// A series of gauges.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// As between the braces.
    pub labels: String,
    /// Of its samples, one after the other, and again from the first.
    pub values: Vec<f64>,
    /// Samples at the beginning that it does not have.
    pub absent: usize,
}

impl Series {
    /// The values of all its samples, where `count` times are sampled.
    pub fn samples(&self, count: usize) -> impl Iterator<Item = f64> {
        self.values
            .iter()
            .copied()
            .cycle()
            .take(count)
            .skip(self.absent)
    }
}

/// So many days with a sample every so many seconds, up to the end of the latest block that is over.
pub fn days(count: u64, every: u64) -> Range {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock");
    let end = now.as_secs() / (BLOCK_HOURS * 3_600) * (BLOCK_HOURS * 3_600);
    Range {
        start: end - count * 24 * 3_600,
        // Of the last sample.
        end: end - every,
        step: every,
    }
}

/// All samples of each series, one after the other; `ending` is what stands behind a time in seconds.
fn write(series: &[Series], times: Range, ending: &str, mut to: impl FnMut(&Series, &[u8])) {
    let times: Vec<String> = (times.start..=times.end)
        .step_by(times.step as usize)
        .map(|at| format!(" {at}{ending}\n"))
        .collect();
    for one in series {
        let values: Vec<String> = one
            .values
            .iter()
            .map(|value| format!("{value:.3}"))
            .collect();
        let head = format!("{}{{{}}} ", one.name, one.labels);
        let mut text = Vec::with_capacity(times.len() * (head.len() + 24));
        for (time, value) in times.iter().zip(values.iter().cycle()).skip(one.absent) {
            text.extend_from_slice(head.as_bytes());
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(time.as_bytes());
        }
        to(one, &text);
    }
}

/// A folder with one block of Prometheus. Series of one name stand together.
///
/// # Panics
/// If promtool is not installed or refuses them.
pub fn block(series: &[Series], times: Range) -> TempDir {
    let blocks = tempfile::tempdir().expect("a folder");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("days.om");
    let mut file = BufWriter::new(File::create(&path).expect("a file"));
    let mut named = String::new();
    write(series, times, "", |one, text| {
        if one.name != named {
            one.name.clone_into(&mut named);
            writeln!(file, "# TYPE {named} gauge").expect("space");
        }
        file.write_all(text).expect("space");
    });
    file.write_all(b"# EOF\n").expect("space");
    file.flush().expect("space");
    let ran = Command::new("promtool")
        .args(["tsdb", "create-blocks-from", "openmetrics", "--quiet"])
        .arg(format!("--max-block-duration={BLOCK_HOURS}h"))
        .args([&path, blocks.path()])
        .output()
        .unwrap_or_else(|error| panic!("cannot run promtool: {error}; apt-get install prometheus"));
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    blocks
}

/// Gives them to a VictoriaMetrics, and waits until it has seen them.
///
/// # Panics
/// If it does not within two minutes.
pub fn import(engine: &Engine, series: &[Series], times: Range) {
    // Milliseconds.
    write(series, times, "000", |_, text| engine.import(text));
    let began = Instant::now();
    let one = series.last().expect("series");
    let last = format!("{}{{{}}}", one.name, one.labels);
    while engine
        .query_at(&last, times.end)
        .expect("it answers")
        .is_empty()
    {
        assert!(began.elapsed() < Duration::from_secs(120), "no {last}");
        thread::sleep(Duration::from_millis(200));
    }
}
