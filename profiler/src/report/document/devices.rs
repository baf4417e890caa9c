//! Meters and their accounts, the load curve, power against limits, what GPUs waited for.

use super::answers::span;
use super::{Block, Column, Figure, Row, Section, Table, Value};
use crate::ledger::{Accounts, Component};
use crate::report::chart::{Chart, Marks, Series};
use crate::report::figures::{figure, percent};
use crate::report::model::{MeterReport, Report};
use crate::report::planner::model::{LoadPoint, Plan, PowerOf};

/// A meter's name.
pub(super) fn meter_name(component: Component, device: &str) -> String {
    format!("{} {device}", component.name())
}

pub(super) fn meters(report: &Report) -> Section {
    let duration = report.duration_s.filter(|duration| *duration > 0.0);
    let row = |meter: &MeterReport| {
        let mut cells = vec![
            Value::Text(Some(meter.source.name().to_owned())),
            Value::Number(meter.energy_j),
            Value::Number(
                meter
                    .energy_j
                    .zip(duration)
                    .map(|(energy, duration)| energy / duration),
            ),
        ];
        cells.extend(
            meter
                .accounts_j
                .rows()
                .map(|(_, energy)| Value::Number(energy)),
        );
        cells.push(Value::Number(meter.idle_w));
        cells.push(Value::Text(meter.idle_source.clone()));
        Row {
            subject: meter_name(meter.component, &meter.device),
            cells,
        }
    };
    let mut columns = vec![
        Column::new("source", "source", ""),
        Column::new("energy", "energy", "J"),
        Column::new("mean_power", "mean power", "W"),
    ];
    columns.extend(Accounts::NAMES.map(|account| Column::new(account, account, "J")));
    columns.push(Column::new("idle_power", "idle floor", "W"));
    columns.push(Column::new("idle_source", "floor from", ""));
    let words = if report.meters.is_empty() {
        "No meter was found on this machine."
    } else {
        "Each meter's energy and the accounts it went to; they add up to the microjoule. idle: the floor, also under load. \
         context: what loaded models add. overhead: services at work without a request. other: processes that serve nothing. \
         unattributed: no known user. gap: drawn while nobody looked."
    };
    Section {
        id: "meters",
        title: "GPUs and other meters",
        blocks: vec![
            Block::Text(words.to_owned()),
            Block::Table(Table {
                caption: "Where the energy went",
                subject: "meter",
                columns,
                rows: report.meters.iter().map(row).collect(),
                long: false,
            }),
        ],
    }
}

pub(super) fn load_curve(plan: &Plan) -> Section {
    let curve = &plan.load_curve;
    let mut blocks = vec![Block::Text(if curve.is_empty() {
        "No GPU was measured long enough for a curve: a point needs five seconds at about the same load.".to_owned()
    } else {
        "Seconds of about the same number of requests in flight are one point; only what was measured is shown. A machine in \
         proportion to its load would draw nothing at load 0, and as much for each token at every load."
            .to_owned()
    })];
    let series = |name: &str, of: fn(&LoadPoint) -> Option<f64>| Series {
        name: name.to_owned(),
        points: curve
            .iter()
            .map(|point| (point.mean_in_flight, of(point)))
            .collect(),
    };
    if !curve.is_empty() {
        blocks.push(Block::Chart(Chart {
            id: "power-by-load",
            title: "Power against load",
            description: "Mean power of all GPUs by requests in flight.".to_owned(),
            x: "requests in flight",
            y: "W",
            marks: Marks::Points(vec![series("GPU power", |point| Some(point.gpu_w))]),
        }));
    }
    if curve.iter().any(|point| point.j_per_output_token.is_some()) {
        blocks.push(Block::Chart(Chart {
            id: "token-energy-by-load",
            title: "Energy per token against load",
            description: "GPU energy, idle included, per output token by requests in flight."
                .to_owned(),
            x: "requests in flight",
            y: "J per output token",
            marks: Marks::Points(vec![series("J per output token", |point| {
                point.j_per_output_token
            })]),
        }));
    }
    if !curve.is_empty() {
        let rows = curve.iter().map(|point| Row {
            subject: match point.up_to {
                0.0 => "none".to_owned(),
                up_to => format!("above {} to {up_to}", point.above),
            },
            cells: vec![
                Value::Number(Some(point.mean_in_flight)),
                Value::Number(Some(point.time_s)),
                Value::Number(Some(point.gpu_w)),
                Value::Number(Some(point.requests_per_s)),
                Value::Number(point.output_tokens_per_s),
                Value::Number(point.j_per_output_token),
            ],
        });
        blocks.push(Block::Table(Table {
            caption: "The measured points",
            subject: "requests in flight",
            columns: vec![
                Column::new("mean_in_flight", "mean", ""),
                Column::new("time", "time", "s"),
                Column::new("gpu_power", "GPU power", "W"),
                Column::new("request_rate", "requests", "1/s"),
                Column::new("output_token_rate", "output tokens", "1/s"),
                Column::new("j_per_output_token", "per output token", "J"),
            ],
            rows: rows.collect(),
            long: false,
        }));
    }
    Section {
        id: "load_curve",
        title: "Power and energy against load",
        blocks,
    }
}

pub(super) fn headroom(plan: &Plan) -> Section {
    let power = &plan.power;
    let row = |power: &PowerOf| Row {
        subject: power.device.clone(),
        cells: [
            power.limit_w,
            power.mean_w,
            power.p99_1s_w,
            power.p99_1min_w,
            power.stranded_w,
        ]
        .map(Value::Number)
        .to_vec(),
    };
    let watts = |key, label| Column::new(key, label, "W");
    let mut blocks = vec![
        Block::Text(
            "The 99th percentile of mean power over seconds and over minutes, against the boards' limits. Stranded is what the \
             limit reserves and even the busiest seconds do not use."
                .to_owned(),
        ),
        Block::Table(Table {
            caption: "Power against limits",
            subject: "GPU",
            columns: vec![
                watts("limit", "limit"),
                watts("mean_power", "mean"),
                watts("p99_1s_power", "p99 of 1 s"),
                watts("p99_1min_power", "p99 of 1 min"),
                watts("stranded_power", "stranded"),
            ],
            rows: power.gpus.iter().chain(&power.all).map(row).collect(),
            long: false,
        }),
    ];
    match &power.busiest_minute {
        Some(minute) => {
            blocks.push(Block::Cards {
                title: "The busiest minute below the limit",
                figures: vec![
                    Figure::new("busiest_request_rate", "requests", Value::Number(Some(minute.requests_per_s)), "1/s"),
                    Figure::new("busiest_power", "GPU power", Value::Number(Some(minute.gpu_w)), "W"),
                    Figure::new("mean_request_rate", "requests on average", Value::Number(Some(minute.mean_requests_per_s)), "1/s"),
                    Figure::new("more_requests_ratio", "more requests fit", Value::Ratio(Some(minute.more_requests_ratio)), ""),
                ],
            });
            blocks.push(Block::Text(format!(
                "In the minute from {} on, {} requests ended each second at {} W, below the limit. The average is {} a second: so \
                 {} more requests than on average were carried within this power. What lies beyond was not measured.",
                span(minute.from_s),
                figure(minute.requests_per_s),
                figure(minute.gpu_w),
                figure(minute.mean_requests_per_s),
                percent(minute.more_requests_ratio),
            )));
        }
        None => blocks.push(Block::Text(
            "How many more requests fit is not known: that needs a board's limit and more than one whole minute with requests."
                .to_owned(),
        )),
    }
    Section {
        id: "headroom",
        title: "Power headroom",
        blocks,
    }
}

pub(super) fn starvation(report: &Report, plan: &Plan) -> Section {
    let mut blocks = Vec::new();
    let held = plan.throttled_s.iter().flat_map(|(device, reasons)| {
        let held = reasons.iter().filter(|(_, seconds)| **seconds > 0.0);
        held.map(move |(reason, seconds)| Row {
            subject: format!("{device} {reason}"),
            cells: vec![Value::Number(Some(*seconds))],
        })
    });
    let held: Vec<Row> = held.collect();
    if plan.throttled_s.is_empty() {
        let why = "What held GPUs' clocks down was not recorded.";
        blocks.push(Block::Text(why.to_owned()));
    } else if held.is_empty() {
        let none = "Nothing held the GPUs' clocks down: no power limit, no heat, nobody's setting.";
        blocks.push(Block::Text(none.to_owned()));
    } else {
        blocks.push(Block::Table(Table {
            caption: "What held GPUs' clocks down",
            subject: "GPU and reason",
            columns: vec![Column::new("throttled", "time", "s")],
            rows: held,
            long: false,
        }));
    }
    let waits = plan
        .services
        .iter()
        .filter(|service| service.wait_j.is_some());
    let rows = waits.map(|service| Row {
        subject: service.service.clone(),
        cells: [service.wait_j, service.prefill_j, service.decode_j]
            .map(Value::Number)
            .to_vec(),
    });
    let rows: Vec<Row> = rows.collect();
    if !rows.is_empty() {
        let joules = |key, label| Column::new(key, label, "J");
        blocks.push(Block::Table(Table {
            caption: "What GPUs' energy was for",
            subject: "service",
            columns: vec![
                joules("wait_energy", "waiting, requests in flight"),
                joules("prefill_energy", "reading prompts"),
                joules("decode_energy", "producing tokens"),
            ],
            rows,
            long: false,
        }));
    }
    if !plan.host_waits_s.is_empty() {
        let rows = plan.host_waits_s.iter().map(|(reason, seconds)| Row {
            subject: reason.clone(),
            cells: vec![Value::Number(Some(*seconds))],
        });
        blocks.push(Block::Table(Table {
            caption: "What services' threads waited for",
            subject: "reason",
            columns: vec![Column::new("waited", "thread time", "s")],
            rows: rows.collect(),
            long: false,
        }));
    }
    let starved = report.services.iter().filter_map(|service| {
        let starved = service.gpu_starved_s.as_ref()?;
        Some(starved.iter().map(|(reason, seconds)| Row {
            subject: format!("{} {reason}", service.service),
            cells: vec![Value::Number(Some(*seconds))],
        }))
    });
    let rows: Vec<Row> = starved.flatten().collect();
    if !rows.is_empty() {
        blocks.push(Block::Table(Table {
            caption: "Starved GPUs",
            subject: "service and reason",
            columns: vec![Column::new("starved", "time", "s")],
            rows,
            long: false,
        }));
    }
    Section {
        id: "waiting",
        title: "Throttling and waiting",
        blocks,
    }
}
