//! `stat -I MS`: the main figures of each interval, a time before each, as `perf stat -I` has them.

use std::fmt::Write as _;

use serde::Serialize;

use super::model::Report;

/// Above the first interval.
pub const INTERVAL_HEADER: &str = "#        time              value unit figure\n";

/// An interval's line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    time_s: f64,
    #[serde(flatten)]
    report: &'a Report,
}

impl Report {
    /// The main figures; `time`: seconds from the start to the interval's end.
    pub fn to_interval(&self, time: f64) -> String {
        let mut out = String::new();
        for section in self.sections() {
            for row in section.rows.iter().filter(|row| row.main) {
                let unit = row.value.number().map_or("", |_| row.unit);
                let remark = match row.remark() {
                    remark if remark.is_empty() => remark,
                    remark => format!("  # {remark}"),
                };
                // Writing to a String cannot fail.
                let _ = writeln!(
                    out,
                    "{time:>13.6} {:>18} {unit:<4} {}, {}{remark}",
                    row.value.shown(),
                    section.subject,
                    row.what,
                );
            }
        }
        out
    }

    /// One compact line of JSON: the report with `time_s`.
    ///
    /// # Errors
    /// None in practice: every key is a string and every figure finite.
    pub fn to_interval_json(&self, time_s: f64) -> Result<String, serde_json::Error> {
        let report = self;
        serde_json::to_string(&Line { time_s, report })
    }
}
