//! The planner's summary in Markdown: what a request costs, where the rest of the energy went,
//! and how far to trust it.

use std::fmt::{self, Write};

use super::figures::{UNKNOWN, count, figure, known, percent, with_unit};
use super::model::{Report, ServiceReport};
use crate::ledger::Component;

const JOULES_PER_KWH: f64 = 3.6e6;

impl Report {
    /// The planner's summary; `title` is its first heading.
    pub fn to_markdown(&self, title: &str) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_markdown(&mut out, title);
        out
    }

    fn write_markdown(&self, out: &mut String, title: &str) -> fmt::Result {
        writeln!(out, "# {}\n", escaped(title))?;
        if self.simulated {
            writeln!(
                out,
                "**Simulated:** the GPU behind these figures is a simulator. They show how the \
                 method works, not what any hardware draws.\n"
            )?;
        }
        let window = with_unit(self.duration_s, "s");
        writeln!(out, "Measured over {window}.\n")?;
        self.write_cost(out)?;
        self.write_latency(out)?;
        self.write_accounts(out)?;
        self.write_trust(out)
    }

    fn write_cost(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "## What a request costs\n")?;
        writeln!(
            out,
            "| service | requests | J/request | p50 | p95 | J/output token | requests/kWh \
             | kWh per million output tokens | bound |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|--:|--:|--:|---|")?;
        for service in &self.services {
            let each = &service.j_per_request;
            let per_kwh = each
                .mean
                .filter(|mean| *mean > 0.0)
                .map(|mean| JOULES_PER_KWH / mean);
            let per_token = service.j_per_output_token;
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                name(service),
                count(service.requests.total),
                cell(known(each.mean)),
                cell(known(each.p50)),
                cell(known(each.p95)),
                cell(known(per_token)),
                cell(known(per_kwh)),
                cell(known(per_token.map(|joules| joules * 1e6 / JOULES_PER_KWH))),
                bound(service),
            )?;
        }
        writeln!(
            out,
            "\nActive energy: what requests caused above the idle floor, aborted ones included; \
             idle is nobody's here. J/request is the sum of joules over the sum of requests that \
             were served, health checks left out. Output tokens are the engine's own count where \
             its metrics cover the window, else what it says at a response's end, else streamed \
             chunks, which are at most the tokens.\n"
        )
    }

    fn write_latency(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "## What it served\n")?;
        writeln!(
            out,
            "| service | requests/s | aborted | time to first token p50 / p99 \
             | duration p50 / p99 | active J by component | with overhead and context |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|---|--:|")?;
        for service in &self.services {
            let rate = self
                .duration_s
                .filter(|duration| *duration > 0.0)
                .map(|duration| service.requests.total as f64 / duration);
            let energy = &service.energy_j;
            let pair = |p50, p99| format!("{} / {}", with_unit(p50, "s"), with_unit(p99, "s"));
            let parts: Vec<String> = [
                ("gpu", energy.gpu),
                ("cpu", energy.cpu),
                ("dram", energy.dram),
            ]
            .into_iter()
            .map(|(component, part)| format!("{component} {}", known(part)))
            .collect();
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} |",
                name(service),
                cell(known(rate)),
                count(service.requests.aborted),
                cell(pair(service.ttft_s.p50, service.ttft_s.p99)),
                cell(pair(service.duration_s.p50, service.duration_s.p99)),
                cell(parts.join(", ")),
                cell(with_unit(service.energy_full_j, "J")),
            )?;
        }
        writeln!(out)
    }

    fn write_accounts(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "## Where the energy went\n")?;
        if self.meters.is_empty() {
            return writeln!(out, "No meter was found on this machine.\n");
        }
        writeln!(out, "| meter | account | J | share | mean W |")?;
        writeln!(out, "|---|---|--:|--:|--:|")?;
        let watts = |energy: Option<f64>| {
            let duration = self.duration_s.filter(|duration| *duration > 0.0)?;
            energy.map(|energy| energy / duration)
        };
        for meter in &self.meters {
            let device = escaped(&meter.device);
            writeln!(
                out,
                "| {} {device} ({}) | **all** | {} | | {} |",
                meter.component.name(),
                meter.source.name(),
                cell(known(meter.energy_j)),
                cell(known(watts(meter.energy_j))),
            )?;
            for (account, energy) in meter.accounts_j.rows() {
                // A meter that never ticked has said so in its first row.
                if energy.is_none() {
                    continue;
                }
                let share = match (energy, meter.energy_j) {
                    (Some(energy), Some(total)) if total > 0.0 => percent(energy / total),
                    _ => UNKNOWN.to_owned(),
                };
                writeln!(
                    out,
                    "| | {account} | {} | {} | {} |",
                    cell(known(energy)),
                    cell(share),
                    cell(known(watts(energy))),
                )?;
            }
        }
        writeln!(out)?;
        self.write_idle(out)
    }

    fn write_idle(&self, out: &mut String) -> fmt::Result {
        let gpus = || {
            self.meters
                .iter()
                .filter(|meter| meter.component == Component::Gpu)
        };
        let sum = |values: Vec<Option<f64>>| values.into_iter().flatten().sum::<f64>();
        let total = sum(gpus().map(|meter| meter.energy_j).collect());
        if total <= 0.0 {
            return Ok(());
        }
        let idle = sum(gpus().map(|meter| meter.accounts_j.idle).collect());
        let unowned = sum(gpus().map(|meter| meter.accounts_j.unattributed).collect());
        writeln!(
            out,
            "Of the GPUs' energy {} is idle draw, which more requests would share, and {} has no \
             known user.\n",
            percent(idle / total),
            percent(unowned / total),
        )
    }

    fn write_trust(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "## How far to trust it\n")?;
        let lost = |lost: Option<u64>| cell(lost.map_or_else(|| UNKNOWN.to_owned(), count));
        writeln!(
            out,
            "- Meters less accounts: {} µJ.\n\
             - Lost: {} request records, {} events.\n\
             - The bound is half of a 95 % interval, without the sensors' own gain error.\n\
             - Class A: measured with a full timeline; B: measured with a coarser share; \
             C: estimated.",
            figure(self.ledger.residual_microjoules as f64),
            lost(self.losses.requests),
            lost(self.losses.events),
        )
    }
}

fn bound(service: &ServiceReport) -> String {
    match (service.error_ratio, service.class) {
        (Some(error), Some(class)) => format!("± {}, {}", percent(error), class.name()),
        (None, Some(class)) => format!("above 100 %, {}", class.name()),
        _ => cell(UNKNOWN.to_owned()),
    }
}

fn name(service: &ServiceReport) -> String {
    match &service.model {
        Some(model) => format!("{} ({})", escaped(&service.service), escaped(model)),
        None => escaped(&service.service),
    }
}

/// [`UNKNOWN`] would read as an HTML tag.
pub(crate) fn cell(shown: String) -> String {
    shown.replace('<', "&lt;").replace('>', "&gt;")
}

/// Names come from workloads: nothing of theirs may become markup.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '#' => {
                out.push('\\');
                out.push(character);
            }
            _ => out.push(character),
        }
    }
    out
}
