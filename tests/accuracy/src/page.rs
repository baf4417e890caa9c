//! The rows as a page of Markdown.

use std::fmt::Write as _;
use std::ops::Range;

use crate::cases::{
    CACHED_COVERED, CEILINGS, COVERED, Case, ENGINES_COVERED, Rows, SERVICE_SUM, SUM, SUMS_COVERED,
    Section,
};
use crate::methods::Others;
use crate::observer::Run;

const ABOUT: &str = include_str!("about.md");

/// A row: what was tried, and what came out.
pub type Row = (Case, Run);

/// The whole page.
pub fn write(rows: &[Row], seeds: &Range<u64>) -> String {
    let mut page = ABOUT.replace("{seeds}", &format!("{}–{}", seeds.start, seeds.end - 1));
    page.push_str(&ceilings());
    for (section, heading, first) in [
        (
            Section::Batches,
            "Batch, responses, source",
            "batch | responses | source",
        ),
        (
            Section::WrongSpeed,
            "Prefill speed held wrong",
            "batch | prefill speed held",
        ),
        (
            Section::Clients,
            "A fixed number of clients, each with one request in flight",
            "clients",
        ),
        (
            Section::Engines,
            "Other engines, at batch 8 or so",
            "engine",
        ),
    ] {
        let columns = first.split('|').count();
        let _ = write!(
            page,
            "\n## {heading}\n\n| {first} | in flight | requests | **median** | **p95** | with bound | in bound | half-width | \
             Σ/true | worst Σ of a service | its bound | in it | accounts − measured | snapshot | residency | last second |\n|{}{}\n",
            "---|".repeat(columns),
            "--:|".repeat(15),
        );
        for (case, run) in rows.iter().filter(|(case, _)| case.section == section) {
            let _ = write!(page, "| {} {}", case.name, cells(run));
        }
    }
    page
}

fn cells(run: &Run) -> String {
    let percent = |part: f64| format!("{:.1} %", 100.0 * part);
    let pair = |method: fn(&Others) -> f64| {
        format!(
            "{:.0} / {:.0} %",
            100.0 * run.others_error(method, 0.5),
            100.0 * run.others_error(method, 0.95)
        )
    };
    format!(
        "| {:.1} | {} | {} | {} | {:.0} % | {} | {} | {:.4} | {} | {} | {} of {} | {} µJ | {} | {} | {} |\n",
        run.in_flight,
        run.pairs.len(),
        percent(run.error(0.5)),
        percent(run.error(0.95)),
        100.0 * run.bounded(),
        percent(run.covered()),
        percent(run.bound(0.5)),
        run.ratio(),
        percent(run.sums_error()),
        percent(run.sums_bound()),
        run.sums_within(),
        run.sums.len(),
        i128::from(run.accounted) - i128::from(run.measured) + run.residual,
        pair(|others| others.snapshot),
        pair(|others| others.residency),
        pair(|others| others.last_second),
    )
}

fn ceilings() -> String {
    let mut text = String::from(
        "\n## What must hold\n\n| rows | median | p95 | median half-width |\n|---|--:|--:|--:|\n",
    );
    for ceiling in CEILINGS {
        let rows = match ceiling.rows {
            Rows::Streaming(batch) => format!("streams, counter, batch {batch}"),
            Rows::WrongSpeed(batch) => format!("prefill speed held wrong by 30 %, batch {batch}"),
            Rows::Other => continue,
        };
        let percent = |part: f64| match part.is_finite() {
            true => format!("{:.0} %", 100.0 * part),
            false => "–".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {rows} | {} | {} | {} |",
            percent(ceiling.median),
            percent(ceiling.p95),
            percent(ceiling.half_width)
        );
    }
    let _ = writeln!(
        text,
        "\nOf every row: Σ requests within {:.0} % of Σ truth, the truth within the bound in {:.0} % \
         of requests ({:.0} % of other engines, {:.0} % where prompts are cached, which nobody outside \
         sees), a service's Σ over all runs within {:.0} % of its truth, accounts less measured 0 µJ. Of all \
         services' sums {:.0} % within the bound of the sum.",
        100.0 * SUM,
        100.0 * COVERED,
        100.0 * ENGINES_COVERED,
        100.0 * CACHED_COVERED,
        100.0 * SERVICE_SUM,
        100.0 * SUMS_COVERED
    );
    text
}
