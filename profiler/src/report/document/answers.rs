//! The first screen: what a request costs, what the period cost, how far to trust it, what to save.

use super::{Block, Figure, Finding, Section, Value};
use crate::report::figures::{figure, percent};
use crate::report::model::Report;
use crate::report::planner::model::{Amount, Plan};

pub(super) fn answers(report: &Report, plan: &Plan) -> Section {
    Section {
        id: "answers",
        title: "Answers",
        blocks: vec![
            Block::Text(summary(report, plan)),
            Block::Cards {
                title: "One request",
                figures: one_request(plan),
            },
            Block::Cards {
                title: "A thousand requests, a million tokens",
                figures: per_unit(plan),
            },
            Block::Cards {
                title: "The whole period",
                figures: period(report, plan),
            },
            Block::Cards {
                title: "How far to trust it",
                figures: trust(report, plan),
            },
        ],
    }
}

/// One paragraph for whoever reads no further.
fn summary(report: &Report, plan: &Plan) -> String {
    let requests = Value::Count(Some(plan.requests.count)).shown();
    let period = report
        .duration_s
        .map_or_else(String::new, |seconds| format!("In {} ", span(seconds)));
    let mut words = format!("{period}{requests} requests were served");
    if let Some(energy) = plan.totals.total.energy_kwh {
        words += &format!(", and {} kWh were drawn in all", figure(energy));
    }
    if let Some(each) = plan.requests.j_per_request.mean {
        words += &format!("; a request caused {} J on average", figure(each));
    }
    if let Some(idle) = plan.shares.gpu_idle {
        words += &format!("; {} of the GPUs' energy was idle draw", percent(idle));
    }
    words.push('.');
    if let Some(saving) = plan.savings.first() {
        words += &format!(
            " The biggest saving that was measured: {}, {} of all energy.",
            saving.title,
            percent(saving.ratio)
        );
    }
    words
}

/// A time as people say it.
pub(super) fn span(seconds: f64) -> String {
    let (size, unit) = match seconds {
        ..180.0 => (1.0, "s"),
        ..10_800.0 => (60.0, "min"),
        ..259_200.0 => (3_600.0, "h"),
        _ => (86_400.0, "days"),
    };
    format!("{} {unit}", figure(seconds / size))
}

fn one_request(plan: &Plan) -> Vec<Figure> {
    let requests = &plan.requests;
    let joules = |key, label, value| Figure::new(key, label, Value::Number(value), "J");
    let bound = match (requests.error_ratio, requests.class) {
        (Some(error), Some(class)) => format!("± {}, class {}", percent(error), class.name()),
        (None, Some(class)) => format!("bound above 100 %, class {}", class.name()),
        _ => String::new(),
    };
    let tokens =
        |mean: Option<f64>, which| mean.map(|mean| format!("{} tokens {which}", figure(mean)));
    let context: Vec<String> = [
        tokens(requests.mean_input_tokens, "in"),
        tokens(requests.mean_output_tokens, "out"),
        requests
            .mean_in_flight
            .map(|mean| format!("{} requests in flight", figure(mean))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let context = if context.is_empty() {
        String::new()
    } else {
        format!("on average {}", context.join(", "))
    };
    vec![
        joules(
            "j_per_request_mean",
            "J per request, mean",
            requests.j_per_request.mean,
        )
        .note(bound),
        joules(
            "j_per_request_p50",
            "J per request, p50",
            requests.j_per_request.p50,
        ),
        joules(
            "j_per_request_p95",
            "J per request, p95",
            requests.j_per_request.p95,
        ),
        joules(
            "j_per_output_token",
            "J per output token",
            requests.j_per_output_token,
        )
        .note(context),
        joules(
            "j_per_token",
            "J per token, input too",
            requests.j_per_token,
        ),
        Figure::new(
            "requests_per_kwh",
            "requests per kWh",
            Value::Number(plan.totals.requests_per_kwh),
            "1/kWh",
        )
        .note("of all energy, idle and PUE included"),
    ]
}

fn per_unit(plan: &Plan) -> Vec<Figure> {
    let totals = &plan.totals;
    let (requests, tokens) = (&totals.per_1000_requests, &totals.per_million_output_tokens);
    let kwh = |key, label, amount: &Amount| {
        Figure::new(key, label, Value::Number(amount.energy_kwh), "kWh")
    };
    let cost = |key, label, amount: &Amount| {
        Figure::new(key, label, Value::Number(amount.cost), currency(plan))
    };
    let carbon = |key, label, amount: &Amount| {
        Figure::new(key, label, Value::Number(amount.carbon_g), "gCO2e")
    };
    vec![
        kwh(
            "kwh_per_1000_requests",
            "kWh per 1,000 requests",
            &requests.all,
        ),
        cost(
            "cost_per_1000_requests",
            "cost per 1,000 requests",
            &requests.all,
        )
        .note(without_price(plan)),
        carbon(
            "carbon_per_1000_requests",
            "carbon per 1,000 requests",
            &requests.all,
        )
        .note(without_carbon(plan)),
        kwh(
            "kwh_per_million_output_tokens",
            "kWh per 1 M output tokens",
            &tokens.all,
        ),
        cost(
            "cost_per_million_output_tokens",
            "cost per 1 M output tokens",
            &tokens.all,
        ),
        carbon(
            "carbon_per_million_output_tokens",
            "carbon per 1 M output tokens",
            &tokens.all,
        ),
        kwh(
            "active_kwh_per_1000_requests",
            "of it caused by the requests: kWh per 1,000",
            &requests.active,
        ),
        kwh(
            "active_kwh_per_million_output_tokens",
            "kWh per 1 M output tokens",
            &tokens.active,
        )
        .note("what requests caused"),
    ]
}

fn period(report: &Report, plan: &Plan) -> Vec<Figure> {
    let totals = &plan.totals;
    let shares = &plan.shares;
    let ratio = |key, label, value| Figure::new(key, label, Value::Ratio(value), "");
    let changed = |key, label, value| Figure::new(key, label, Value::Change(value), "");
    let change = plan.trend.change.as_ref();
    let pue = if report.pue > 1.0 {
        format!("PUE {} included", report.pue)
    } else {
        "PUE 1 (default): the machine alone".to_owned()
    };
    vec![
        Figure::new(
            "total_kwh",
            "total energy",
            Value::Number(totals.total.energy_kwh),
            "kWh",
        )
        .note(pue),
        Figure::new(
            "total_cost",
            "total cost",
            Value::Number(totals.total.cost),
            currency(plan),
        )
        .note(without_price(plan)),
        Figure::new(
            "total_carbon",
            "total carbon",
            Value::Number(totals.total.carbon_g),
            "gCO2e",
        )
        .note(without_carbon(plan)),
        Figure::new(
            "measured_energy",
            "measured energy",
            Value::Number(totals.measured_j),
            "J",
        )
        .note("sum over the meters, the ledger's"),
        Figure::new(
            "active_energy",
            "caused by requests",
            Value::Number(totals.active_j),
            "J",
        ),
        Figure::new(
            "requests",
            "requests",
            Value::Count(Some(plan.requests.count)),
            "",
        )
        .note("health checks left out"),
        Figure::new(
            "output_tokens",
            "output tokens",
            Value::Count(plan.requests.output_tokens),
            "",
        ),
        Figure::new("duration", "period", Value::Number(report.duration_s), "s"),
        changed(
            "energy_change",
            "total energy, second half against first",
            change.map(|change| change.energy),
        ),
        changed(
            "j_per_request_change",
            "energy per request, likewise",
            change.map(|change| change.j_per_request),
        )
        .note(if change.is_some_and(|change| change.rebound) {
            "rebound"
        } else {
            ""
        }),
        ratio("gpu_idle_ratio", "GPU energy: idle", shares.gpu_idle),
        ratio(
            "gpu_parked_ratio",
            "GPU energy: loaded models, parked",
            shares.gpu_parked,
        ),
        ratio("gpu_ratio", "GPUs' part of all energy", shares.gpu),
        ratio("host_ratio", "host's part (CPU, memory)", shares.host),
    ]
}

fn trust(report: &Report, plan: &Plan) -> Vec<Figure> {
    let (recorded, of) = match &report.fleet {
        Some(fleet) => (Some(fleet.coverage_ratio), "of the period × nodes"),
        None => {
            let meters = plan.coverage.iter().map(|meter| meter.booked_ratio);
            (meters.reduce(f64::min), "of the meter that saw least")
        }
    };
    let holes = plan.coverage.iter().map(|meter| meter.holes).sum();
    let lost = |key, label, lost| Figure::new(key, label, Value::Count(lost), "");
    let ratio = |key, label, value| Figure::new(key, label, Value::Ratio(value), "");
    vec![
        ratio("coverage_ratio", "time measured", recorded).note(of),
        ratio(
            "error_ratio",
            "bound of the requests' energy",
            plan.requests.error_ratio,
        )
        .note("half of a 95 % interval"),
        ratio(
            "gain_error_ratio",
            "the sensors' own gain",
            plan.totals.gain_error_ratio,
        )
        .note("systematic, beside the bound"),
        Figure::new(
            "residual",
            "meters less accounts",
            Value::Count(report.ledger.residual_microjoules),
            "µJ",
        ),
        Figure::new(
            "holes",
            "holes in meters' time",
            Value::Count(Some(holes).filter(|_| report.fleet.is_none())),
            "",
        ),
        lost(
            "lost_requests",
            "request records lost",
            report.losses.requests,
        ),
        lost("lost_events", "events lost", report.losses.events),
    ]
}

pub(super) fn savings(plan: &Plan) -> Section {
    let mut blocks: Vec<Block> = plan
        .savings
        .iter()
        .map(|saving| {
            Block::Finding(Finding {
                key: saving.name.clone(),
                title: saving.title.clone(),
                figures: vec![
                    Figure::new(
                        "energy",
                        "energy",
                        Value::Number(saving.amount.energy_kwh),
                        "kWh",
                    ),
                    Figure::new(
                        "ratio",
                        "of all energy",
                        Value::Ratio(Some(saving.ratio)),
                        "",
                    ),
                    Figure::new(
                        "cost",
                        "cost",
                        Value::Number(saving.amount.cost),
                        currency(plan),
                    ),
                    Figure::new(
                        "carbon",
                        "carbon",
                        Value::Number(saving.amount.carbon_g),
                        "gCO2e",
                    ),
                ],
                advice: saving.advice.clone(),
                method: saving.method.clone(),
            })
        })
        .collect();
    let words = match blocks.len() {
        0 => "No saving of at least 0.1 % of the energy was measured.",
        1 => {
            "One was measured. It is what was drawn in this period, and no promise about another one."
        }
        _ => {
            "The biggest that were measured. Each is what was drawn in this period, and no promise about another one; they \
             overlap in part: do not add them up."
        }
    };
    blocks.insert(0, Block::Text(words.to_owned()));
    Section {
        id: "savings",
        title: "What could be saved",
        blocks,
    }
}

pub(super) fn currency(plan: &Plan) -> &str {
    plan.totals.currency.as_deref().unwrap_or_default()
}

fn without_price(plan: &Plan) -> &'static str {
    match plan.totals.currency {
        None => "give --price and --currency",
        Some(_) => "",
    }
}

fn without_carbon(plan: &Plan) -> &'static str {
    match plan.carbon.intensity_g_per_kwh {
        None => "give --country or --carbon-intensity",
        Some(_) => "operational, location-based",
    }
}
