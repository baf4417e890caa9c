//! Services, ranked, with their bounds.

use super::answers::currency;
use super::{Block, Column, Row, Section, Table, Value};
use crate::report::chart::{Bar, Chart, Marks};
use crate::report::figures::{figure, percent};
use crate::report::model::{Report, ServiceReport};
use crate::report::planner::model::ServicePlan;

pub(super) fn services(report: &Report) -> Section {
    let plan_of = |service: &ServiceReport| {
        let plans = report.planner.iter().flat_map(|plan| &plan.services);
        plans
            .into_iter()
            .find(|plan| plan.service == service.service)
    };
    let mut ranked: Vec<(&ServiceReport, Option<&ServicePlan>)> = report
        .services
        .iter()
        .map(|service| (service, plan_of(service)))
        .collect();
    ranked.sort_by(|(one, _), (other, _)| {
        let energy = |service: &ServiceReport| service.energy_j.total.unwrap_or(-1.0);
        let by_energy = energy(other).total_cmp(&energy(one));
        by_energy.then_with(|| one.service.cmp(&other.service))
    });
    let mut blocks = vec![Block::Text(
        "Those whose requests cost most come first. Active energy is what requests caused above the idle floor, aborted ones \
         included; idle is nobody's here. The bound is half of a 95 % interval; where the bounds of two overlap, their order \
         is not certain."
            .to_owned(),
    )];
    let bar = |(service, _): &(&ServiceReport, Option<&ServicePlan>)| {
        let value = service.energy_j.total?;
        Some(Bar {
            label: service.service.clone(),
            value,
            error: service.error_ratio.map(|error| error * value),
            shown: format!("{} J {}", figure(value), bound(service)),
        })
    };
    let bars: Vec<Bar> = ranked.iter().filter_map(bar).take(20).collect();
    if !bars.is_empty() {
        blocks.push(Block::Chart(Chart {
            id: "services-by-energy",
            title: "Services by energy",
            description:
                "Active energy of each service's requests, with its bound; at most twenty services."
                    .to_owned(),
            x: "",
            y: "",
            marks: Marks::Bars(bars),
        }));
    }
    let tables = [
        in_two(
            energy_table(report, &ranked),
            9,
            "Its parts, money and carbon",
        ),
        in_two(served_table(report, &ranked), 7, "Tokens and times"),
    ];
    blocks.extend(tables.into_iter().flatten().map(Block::Table));
    Section {
        id: "services",
        title: "Services",
        blocks,
    }
}

fn bound(service: &ServiceReport) -> String {
    match (service.error_ratio, service.class) {
        (Some(error), Some(class)) => format!("± {}, {}", percent(error), class.name()),
        (None, Some(class)) => format!("bound above 100 %, {}", class.name()),
        _ => String::new(),
    }
}

/// A table that fits a sheet of paper: its columns from `at` on are another one.
pub(super) fn in_two(mut table: Table, at: usize, caption: &'static str) -> [Table; 2] {
    let split = |row: &mut Row| Row {
        subject: row.subject.clone(),
        cells: row.cells.split_off(at),
    };
    let second = Table {
        caption,
        subject: table.subject,
        columns: table.columns.split_off(at),
        rows: table.rows.iter_mut().map(split).collect(),
        long: table.long,
    };
    [table, second]
}

type Ranked<'a> = [(&'a ServiceReport, Option<&'a ServicePlan>)];

fn energy_table(report: &Report, ranked: &Ranked<'_>) -> Table {
    let money = report.planner.as_ref().map_or("", currency);
    let row = |(service, plan): &(&ServiceReport, Option<&ServicePlan>)| {
        let of = |value: fn(&ServicePlan) -> Option<f64>| Value::Number(plan.and_then(value));
        let class = service.class.map(|class| class.name().to_owned());
        Row {
            subject: service.service.clone(),
            cells: vec![
                Value::Number(service.energy_j.total),
                Value::Ratio(plan.and_then(|plan| plan.active_ratio)),
                Value::Ratio(service.error_ratio),
                Value::Text(class),
                Value::Number(service.j_per_request.mean),
                Value::Number(service.j_per_request.p50),
                Value::Number(service.j_per_request.p95),
                Value::Number(service.j_per_output_token),
                Value::Number(service.j_per_token),
                Value::Number(service.energy_j.gpu),
                Value::Number(service.energy_j.cpu),
                Value::Number(service.energy_j.dram),
                Value::Number(service.energy_full_j),
                of(|plan| plan.active.energy_kwh),
                of(|plan| plan.active.cost),
                of(|plan| plan.active.carbon_g),
                of(|plan| plan.aborted_j),
                of(|plan| plan.prefill_j),
                of(|plan| plan.decode_j),
                of(|plan| plan.wait_j),
            ],
        }
    };
    let joules = |key, label| Column::new(key, label, "J");
    Table {
        caption: "Energy",
        subject: "service",
        columns: vec![
            joules("energy", "active energy"),
            Column::new("active_ratio", "of all active", ""),
            Column::new("error_ratio", "±", ""),
            Column::new("class", "class", ""),
            joules("j_per_request_mean", "per request"),
            joules("j_per_request_p50", "p50"),
            joules("j_per_request_p95", "p95"),
            joules("j_per_output_token", "per output token"),
            joules("j_per_token", "per token"),
            joules("gpu_energy", "GPU"),
            joules("cpu_energy", "CPU"),
            joules("dram_energy", "memory"),
            joules("full_energy", "full"),
            Column::new("active_kwh", "active × PUE", "kWh"),
            Column::new("active_cost", "cost", money),
            Column::new("active_carbon", "carbon", "gCO2e"),
            joules("aborted_energy", "aborted"),
            joules("prefill_energy", "GPU: prefill"),
            joules("decode_energy", "GPU: decode"),
            joules("wait_energy", "GPU: wait"),
        ],
        rows: ranked.iter().map(row).collect(),
        long: false,
    }
}

fn served_table(report: &Report, ranked: &Ranked<'_>) -> Table {
    let row = |(service, plan): &(&ServiceReport, Option<&ServicePlan>)| {
        let of = |value: fn(&ServicePlan) -> Option<f64>| Value::Number(plan.and_then(value));
        let duration = report.duration_s.filter(|duration| *duration > 0.0);
        let engines = plan.map(|plan| plan.engines.join(", "));
        Row {
            subject: service.service.clone(),
            cells: vec![
                Value::Text(service.model.clone()),
                Value::Text(engines.filter(|engines| !engines.is_empty())),
                Value::Count(Some(service.requests.total)),
                Value::Number(duration.map(|duration| service.requests.total as f64 / duration)),
                Value::Count(Some(service.requests.aborted)),
                Value::Count(Some(service.requests.incomplete)),
                Value::Count(Some(service.requests.health)),
                Value::Count(service.tokens.input),
                Value::Count(service.tokens.output),
                Value::Text(service.tokens.source.clone()),
                of(|plan| plan.mean_input_tokens),
                of(|plan| plan.mean_output_tokens),
                of(|plan| plan.mean_in_flight),
                Value::Number(service.ttft_s.p50),
                Value::Number(service.ttft_s.p99),
                Value::Number(service.duration_s.p50),
                Value::Number(service.duration_s.p99),
            ],
        }
    };
    let plain = |key, label| Column::new(key, label, "");
    let time = |key, label| Column::new(key, label, "s");
    Table {
        caption: "What they served",
        subject: "service",
        columns: vec![
            plain("model", "model"),
            plain("engine", "engine and version"),
            plain("requests", "requests"),
            Column::new("request_rate", "rate", "1/s"),
            plain("aborted", "aborted"),
            plain("incomplete", "incomplete"),
            plain("health", "health checks"),
            plain("input_tokens", "input tokens"),
            plain("output_tokens", "output tokens"),
            plain("tokens_source", "counted by"),
            plain("mean_input_tokens", "in per request"),
            plain("mean_output_tokens", "out per request"),
            plain("mean_in_flight", "in flight, mean"),
            time("ttft_p50", "first token p50"),
            time("ttft_p99", "p99"),
            time("duration_p50", "duration p50"),
            time("duration_p99", "p99"),
        ],
        rows: ranked.iter().map(row).collect(),
        long: false,
    }
}
