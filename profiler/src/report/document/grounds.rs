//! What the figures stand on: carbon's terms, coverage, method, inputs, environment.

use super::devices::meter_name;
use super::{Block, Column, Figure, Row, Section, Table, Value};
use crate::report::full::IdlePolicy;
use crate::report::model::Report;
use crate::report::planner::model::Plan;

pub(super) fn carbon(plan: &Plan) -> Section {
    let carbon = &plan.carbon;
    let number = |key, label, value, unit| Figure::new(key, label, Value::Number(value), unit);
    Section {
        id: "carbon",
        title: "Carbon after SCI (ISO/IEC 21031)",
        blocks: vec![
            Block::Text(
                "SCI = (E × I + M) per R. E: all measured energy × PUE, idle included. I: the grid's average carbon intensity, \
                 location-based. M: embodied carbon, the part of the lifetime that the period is. R: requests, or a million \
                 output tokens. What is not given is not assumed: without M there is no SCI, only its operational part."
                    .to_owned(),
            ),
            Block::Cards {
                title: "Its terms",
                figures: vec![
                    number("sci_e", "E, energy", carbon.energy_kwh, "kWh"),
                    number("sci_i", "I, intensity", carbon.intensity_g_per_kwh, "gCO2e/kWh"),
                    number("sci_o", "E × I, operational", carbon.operational_g, "gCO2e"),
                    number("sci_m", "M, embodied", carbon.embodied_g, "gCO2e"),
                    Figure::new("sci_r", "R, requests", Value::Count(Some(carbon.requests)), ""),
                    number(
                        "operational_per_request",
                        "E × I per request",
                        carbon.operational_g_per_request,
                        "gCO2e",
                    ),
                    number("sci_per_request", "SCI per request", carbon.sci_g_per_request, "gCO2e"),
                    number(
                        "sci_per_million_output_tokens",
                        "SCI per 1 M output tokens",
                        carbon.sci_g_per_million_output_tokens,
                        "gCO2e",
                    ),
                ],
            },
            Block::Cards {
                title: "Market-based, beside it",
                figures: vec![
                    number("market_intensity", "intensity", carbon.market_g_per_kwh, "gCO2e/kWh")
                        .note("of a contract, as given"),
                    number("market_carbon", "E × that", carbon.market_g, "gCO2e"),
                ],
            },
        ],
    }
}

pub(super) fn coverage(report: &Report, plan: &Plan) -> Section {
    let rows = plan.coverage.iter().map(|meter| Row {
        subject: meter_name(meter.component, &meter.device),
        cells: vec![
            Value::Number(Some(meter.booked_s)),
            Value::Ratio(Some(meter.booked_ratio)),
            Value::Count(Some(meter.intervals)),
            Value::Count(Some(meter.holes)),
            Value::Number(Some(meter.holes_s)),
            Value::Ratio(Some(meter.gain_error_ratio)),
        ],
    });
    let lost = |lost| Value::Count(lost).shown();
    Section {
        id: "coverage",
        title: "Coverage and uncertainty",
        blocks: vec![
            Block::Text(format!(
                "Meters less accounts: {} µJ. Lost: {} request records, {} events. A hole is time whose energy nobody knows. The \
                 gain is what a sensor may be off by as a whole; it is the same for every figure of that sensor, and in no \
                 bound.",
                lost(report.ledger.residual_microjoules),
                lost(report.losses.requests),
                lost(report.losses.events),
            )),
            Block::Table(Table {
                caption: "What each meter saw",
                subject: "meter",
                columns: vec![
                    Column::new("booked", "time booked", "s"),
                    Column::new("booked_ratio", "of the period", ""),
                    Column::new("intervals", "intervals", ""),
                    Column::new("holes", "holes", ""),
                    Column::new("holes_time", "in holes", "s"),
                    Column::new("gain_error_ratio", "gain ±", ""),
                ],
                rows: rows.collect(),
                long: false,
            }),
        ],
    }
}

pub(super) fn method(report: &Report) -> Section {
    let idle = match report.idle_policy {
        IdlePolicy::None => "no part of idle",
        IdlePolicy::Even => "an even part of idle",
        IdlePolicy::Proportional => "idle in proportion to requests",
    };
    let words = [
        "Energy is what the devices' own counters say, interval by interval, split by what each request did in it: prompts by \
         their time, tokens by their number. Nothing is booked twice, and what nobody used stays visible."
            .to_owned(),
        "Ratios are sums over sums. Class A: measured with a full timeline; B: measured with a coarser share; C: estimated. p50 \
         and p95 are within 1 %."
            .to_owned(),
        format!(
            "Full energy of a service: active energy, its overhead and context, {idle}, times PUE {}.",
            report.pue
        ),
        "Limits: fans, power supplies, network and storage are in no meter here; PUE stands for the site alone. Where a floor \
         is not known, idle counts as the requests'. Versions of a model are compared by two recordings: this one holds no \
         time at which an engine changed. What was not measured is not in this report: there is no estimate of other hardware, \
         loads or limits."
            .to_owned(),
    ];
    Section {
        id: "method",
        title: "Method and limits",
        blocks: words.into_iter().map(Block::Text).collect(),
    }
}

pub(super) fn inputs(plan: &Plan) -> Section {
    let rows = plan.inputs.iter().map(|input| Row {
        subject: input.name.clone(),
        cells: vec![
            Value::Number(input.value),
            Value::Text(Some(input.unit.clone())),
            Value::Text(Some(input.source.clone())),
            Value::Text(input.date.clone()),
        ],
    });
    Section {
        id: "inputs",
        title: "Inputs",
        blocks: vec![
            Block::Text("What no meter knows, who said it, and of when it is.".to_owned()),
            Block::Table(Table {
                caption: "Inputs",
                subject: "input",
                columns: vec![
                    Column::new("value", "value", ""),
                    Column::new("unit", "unit", ""),
                    Column::new("source", "source", ""),
                    Column::new("date", "date", ""),
                ],
                rows: rows.collect(),
                long: false,
            }),
        ],
    }
}

pub(super) fn environment(plan: &Plan) -> Section {
    let rows = plan.environment.iter().map(|(fact, value)| Row {
        subject: fact.clone(),
        cells: vec![Value::Text(Some(value.clone()))],
    });
    Section {
        id: "environment",
        title: "Environment",
        blocks: vec![Block::Table(Table {
            caption: "Where the figures come from",
            subject: "fact",
            columns: vec![Column::new("value", "value", "")],
            rows: rows.collect(),
            long: false,
        })],
    }
}
