//! The comparison in Markdown, for a review or a pull request.

use std::fmt::{self, Write};

use super::model::{Comparison, Pair, ServiceComparison};
use super::statement::{confidence, of_all, of_service, signed};
use crate::report::figures::{figure, known, with_unit};
use crate::report::markdown::{cell, escaped};

impl Comparison {
    /// Markdown, ending with a line feed.
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_markdown(&mut out);
        out
    }

    fn write_markdown(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "# Energy, before and after\n")?;
        for (side, run) in [("A", &self.a), ("B", &self.b)] {
            let duration = cell(with_unit(run.duration_s, "s"));
            writeln!(out, "- {side}: {}, {duration}", escaped(&run.file))?;
        }
        for service in &self.services {
            self.write_service_markdown(out, service)?;
        }
        if !self.watts.is_empty() {
            writeln!(out, "\n## Mean power\n\n| account | A, W | B, W | B − A |")?;
            writeln!(out, "|---|--:|--:|--:|")?;
            for row in &self.watts {
                let name = format!("{} {}", row.component.name(), row.account);
                write_row(out, &name, row.values)?;
            }
        }
        if !self.conditions.is_empty() {
            writeln!(out, "\n## Conditions\n\n| condition | service | outcome |")?;
            writeln!(out, "|---|---|---|")?;
            for condition in &self.conditions {
                writeln!(
                    out,
                    "| {} | {} | {} |",
                    escaped(&condition.condition),
                    escaped(&condition.service),
                    condition.outcome.name()
                )?;
            }
        }
        writeln!(out)?;
        writeln!(out, "{}", of_all(self).join(" "))
    }

    fn write_service_markdown(&self, out: &mut String, service: &ServiceComparison) -> fmt::Result {
        writeln!(out, "\n## {}\n", escaped(&service.service))?;
        let said = of_service(service, self.alpha).join(" ");
        writeln!(out, "{}\n", escaped(&said))?;
        let interval = confidence(self.alpha);
        writeln!(out, "| figure | A | B | change | {interval} interval | |")?;
        writeln!(out, "|---|--:|--:|--:|---|---|")?;
        for change in &service.figures {
            if change.values.a.is_none() && change.values.b.is_none() {
                continue;
            }
            let interval = change.low.zip(change.high);
            let interval =
                interval.map(|(low, high)| format!("{} to {}", signed(low), signed(high)));
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} |",
                change.figure.title(),
                cell(known(change.values.a)),
                cell(known(change.values.b)),
                change.change.map_or_else(String::new, signed),
                interval.unwrap_or_default(),
                change.verdict.name(),
            )?;
        }
        let lists = [
            ("What it is made of, J/request", Some(&service.parts)),
            ("Off CPU, s/request", service.off_cpu.as_ref()),
            ("CPU J/request by stack", service.stacks.as_ref()),
        ];
        for (title, rows) in lists {
            let Some(rows) = rows.filter(|rows| !rows.is_empty()) else {
                continue;
            };
            writeln!(out, "\n| {title} | A | B | B − A |\n|---|--:|--:|--:|")?;
            for row in rows {
                write_row(out, &escaped(&row.part), row.values)?;
            }
        }
        Ok(())
    }
}

fn write_row(out: &mut String, name: &str, values: Pair<f64>) -> fmt::Result {
    writeln!(
        out,
        "| {name} | {} | {} | {} |",
        cell(known(values.a)),
        cell(known(values.b)),
        values.difference().map_or_else(String::new, figure),
    )
}
