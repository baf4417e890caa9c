//! The table of `perjoule stat`: a value, its unit, what it is, and a remark, as `perf stat` has it.

use std::fmt::{self, Write};

use super::document::{Block, Document};
use super::figures::{UNCOUNTED, UNKNOWN, count, figure, percent, with_unit};
use super::fleet::model::{Fleet, Group};
use super::model::{Report, ThreadReport};

impl Report {
    /// The table for people, ending with a line feed. Plain text, at most 80 columns where names
    /// are not longer.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> fmt::Result {
        let simulated = if self.simulated {
            "   SIMULATED GPU"
        } else {
            ""
        };
        let window = with_unit(self.duration_s, "s");
        writeln!(out, "\n Energy over {window}{simulated}")?;
        if let Some(fleet) = &self.fleet {
            write_fleet(out, fleet)?;
            return write_plan(out, self);
        }
        let sections = self.sections();
        let is_last = |place: usize| place + 1 == sections.len();
        for (place, section) in sections.iter().enumerate() {
            if is_last(place) && self.meters.is_empty() {
                writeln!(out, "\n no meter: joules are {UNKNOWN} on this machine")?;
            }
            if !section.title.is_empty() {
                writeln!(out, "\n {}", section.title)?;
            }
            writeln!(out)?;
            for one in &section.rows {
                row(out, &one.value.shown(), one.unit, &one.what, &one.remark())?;
            }
            let service = self.services.get(place);
            if let Some(threads) = service.and_then(|service| service.threads.as_ref()) {
                write_threads(out, threads)?;
            }
        }
        writeln!(out)?;
        if self.planner.is_some() {
            write_plan(out, self)?;
        }
        Ok(())
    }
}

/// Nodes that the table shows; the other forms have all.
const MOST_NODES: usize = 10;

fn write_fleet(out: &mut String, fleet: &Fleet) -> fmt::Result {
    let covered = percent(fleet.coverage_ratio);
    let nodes = count(fleet.nodes);
    writeln!(out, " {} to {}", fleet.from, fleet.to)?;
    writeln!(out, " {nodes} nodes, {covered} of period × nodes recorded")?;
    if !fleet.missing.is_empty() {
        writeln!(out, " not recorded: {}", fleet.missing.join(", "))?;
    }
    for warning in &fleet.warnings {
        writeln!(out, " the server warned: {warning}")?;
    }
    let most = fleet.by_node.get(..MOST_NODES).unwrap_or(&fleet.by_node);
    for (what, groups) in [
        ("cluster", &*fleet.clusters),
        ("model", &fleet.models),
        ("type of GPU", &fleet.gpu_types),
        ("node", most),
    ] {
        if !groups.is_empty() {
            write_groups(out, what, groups)?;
        }
    }
    let more = fleet.by_node.len().saturating_sub(most.len()) as u64;
    if more > 0 {
        writeln!(out, " and {} more nodes", count(more))?;
    }
    writeln!(out)
}

fn write_groups(out: &mut String, what: &str, groups: &[Group]) -> fmt::Result {
    writeln!(
        out,
        "\n {what:<25} {:>10} {:>7} {:>9} {:>9} {:>6} {:>6}",
        "kWh", "of all", "J/request", "J/token", "idle", "rec."
    )?;
    let dash = || "-".to_owned();
    let number = |value: Option<f64>| value.map_or_else(dash, figure);
    let ratio =
        |value: Option<f64>| value.map_or_else(dash, |ratio| format!("{:.1}%", ratio * 100.0));
    for group in groups {
        writeln!(
            out,
            " {:<25} {:>10} {:>7} {:>9} {:>9} {:>6} {:>6}",
            group.name,
            number(group.total.energy_kwh),
            ratio(group.energy_ratio),
            number(group.j_per_request),
            number(group.j_per_output_token),
            ratio(group.gpu_idle_ratio),
            ratio(group.coverage_ratio),
        )?;
    }
    Ok(())
}

/// What a planner asks first, as far as it is known.
fn write_plan(out: &mut String, report: &Report) -> fmt::Result {
    for section in Document::new(report, "").sections {
        for block in &section.blocks {
            match block {
                Block::Cards { title, figures } if section.id == "answers" => {
                    writeln!(out, " {}\n", title.to_lowercase())?;
                    for figure in figures.iter().filter(|figure| figure.value.is_known()) {
                        let (value, unit) = (figure.value.shown(), &figure.unit);
                        writeln!(out, "{value:>18} {unit:<6} {}", figure.label)?;
                    }
                    writeln!(out)?;
                }
                Block::Finding(finding) => {
                    let figures = finding
                        .figures
                        .iter()
                        .filter(|figure| figure.value.is_known());
                    let figures = figures.map(|figure| {
                        format!("{} {}", figure.value.shown(), figure.unit)
                            .trim_end()
                            .to_owned()
                    });
                    let figures: Vec<String> = figures.collect();
                    writeln!(out, " saving: {}: {}", finding.title, figures.join(", "))?;
                }
                _ => {}
            }
        }
    }
    writeln!(out)
}

/// One line a thread, those with most CPU time first; seconds.
fn write_threads(out: &mut String, threads: &[ThreadReport]) -> fmt::Result {
    writeln!(
        out,
        "\n {:>7} {:<15} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>6}",
        "thread",
        "name",
        "on CPU",
        "run q.",
        "sleep",
        "disk",
        "futex",
        "poll",
        "socket",
        "other",
        "volunt.",
        "involunt.",
        "migr."
    )?;
    for thread in threads {
        let off = |reason| thread.off_cpu_s.get(reason).copied().unwrap_or(0.0);
        write!(out, " {:>7} {:<15}", thread.tid, thread.name)?;
        for time in [
            thread.cpu_s,
            thread.run_queue_s,
            off("sleep"),
            off("disk"),
            off("futex"),
            off("poll"),
            off("socket"),
            off("other"),
        ] {
            write!(out, " {time:>8.3}")?;
        }
        writeln!(
            out,
            " {:>9} {:>9} {:>6}",
            thread.switches.voluntary, thread.switches.involuntary, thread.migrations
        )?;
    }
    Ok(())
}

/// One line. A figure that is not there has no unit.
pub(crate) fn row(
    out: &mut String,
    value: &str,
    unit: &str,
    what: &str,
    remark: &str,
) -> fmt::Result {
    let gap = if remark.is_empty() { "" } else { "# " };
    row_with_spread(out, value, unit, what, &format!("{gap}{remark}"))
}

/// One line, with what stands behind it.
pub(super) fn row_with_spread(
    out: &mut String,
    value: &str,
    unit: &str,
    what: &str,
    behind: &str,
) -> fmt::Result {
    let unit = match value {
        UNKNOWN | UNCOUNTED => "",
        _ => unit,
    };
    let line = format!("{value:>18} {unit:<3}{what:<24}{behind}");
    writeln!(out, "{}", line.trim_end())
}
