//! A fleet's clusters, models, types of GPUs and nodes; how much of it was recorded, and what that cannot tell.

use super::answers::currency;
use super::{Block, Column, Row, Section, Table, Value};
use crate::report::fleet::model::{Fleet, Group};
use crate::report::model::Report;

pub(super) fn notices(fleet: &Fleet) -> Vec<String> {
    let mut notices = Vec::new();
    if !fleet.missing.is_empty() {
        notices.push(format!(
            "Recorded nowhere in the period: {}. What follows from it is not known; dashboards/rules.yaml records it, of agents that \
             have it.",
            fleet.missing.join(", "),
        ));
    }
    let said = fleet.warnings.iter();
    notices.extend(said.map(|warning| format!("The server warned: {warning}")));
    notices
}

pub(super) fn groups(report: &Report, fleet: &Fleet) -> [Section; 4] {
    let money = report.planner.as_ref().map_or("", currency);
    let section = |id, title, subject, words: &str, groups: &[Group]| {
        let words = if groups.is_empty() {
            "Nothing of it is recorded in this period."
        } else {
            words
        };
        let mut blocks = vec![Block::Text(words.to_owned())];
        blocks.extend(table("Energy", subject, groups, energy(money)));
        blocks.extend(table("What they served", subject, groups, served()));
        Section { id, title, blocks }
    };
    [
        section(
            "clusters",
            "Clusters",
            "cluster",
            "By the label cluster of the nodes' series. A request's joules are what it caused above the idle floor; idle is of \
             GPUs whose floor is known.",
            &fleet.clusters,
        ),
        section(
            "models",
            "Models",
            "model",
            "What the services of a model used for their requests and beside them; idle is nobody's here, so models add up to less \
             than the fleet.",
            &fleet.models,
        ),
        section(
            "gpu_types",
            "Types of GPUs",
            "type",
            "Energy of the GPUs alone, by the name that their driver tells.",
            &fleet.gpu_types,
        ),
        section(
            "nodes",
            "Nodes",
            "node",
            "Those that drew most come first. What a node drew while nothing was recorded is not in its figures.",
            &fleet.by_node,
        ),
    ]
}

/// A column, and what of a group stands in it.
type Shown = (Column, fn(&Group) -> Value);

fn energy(money: &str) -> Vec<Shown> {
    vec![
        (Column::new("nodes", "nodes", ""), |group| {
            Value::Count(group.nodes)
        }),
        (Column::new("gpus", "GPUs", ""), |group| {
            Value::Number(group.gpus)
        }),
        (Column::new("energy", "energy", "J"), |group| {
            Value::Number(group.energy_j)
        }),
        (Column::new("energy_ratio", "of all", ""), |group| {
            Value::Ratio(group.energy_ratio)
        }),
        (Column::new("kwh", "× PUE", "kWh"), |group| {
            Value::Number(group.total.energy_kwh)
        }),
        (Column::new("cost", "cost", money), |group| {
            Value::Number(group.total.cost)
        }),
        (Column::new("carbon", "carbon", "gCO2e"), |group| {
            Value::Number(group.total.carbon_g)
        }),
        (Column::new("gpu_idle_ratio", "GPUs: idle", ""), |group| {
            Value::Ratio(group.gpu_idle_ratio)
        }),
        (
            Column::new("gpu_parked_ratio", "GPUs: parked", ""),
            |group| Value::Ratio(group.gpu_parked_ratio),
        ),
        (Column::new("coverage_ratio", "recorded", ""), |group| {
            Value::Ratio(group.coverage_ratio)
        }),
    ]
}

fn served() -> Vec<Shown> {
    vec![
        (Column::new("requests", "requests", ""), |group| {
            Value::Count(group.requests)
        }),
        (
            Column::new("active_energy", "caused by them", "J"),
            |group| Value::Number(group.active_j),
        ),
        (
            Column::new("j_per_request_mean", "per request", "J"),
            |group| Value::Number(group.j_per_request),
        ),
        (Column::new("output_tokens", "output tokens", ""), |group| {
            Value::Count(group.output_tokens)
        }),
        (
            Column::new("j_per_output_token", "per output token", "J"),
            |group| Value::Number(group.j_per_output_token),
        ),
        (Column::new("j_per_token", "per token", "J"), |group| {
            Value::Number(group.j_per_token)
        }),
    ]
}

fn table(
    caption: &'static str,
    subject: &'static str,
    groups: &[Group],
    columns: Vec<Shown>,
) -> Option<Block> {
    let (columns, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let row = |group: &Group| Row {
        subject: group.name.clone(),
        cells: values.iter().map(|value| value(group)).collect(),
    };
    let table = Table {
        caption,
        subject,
        columns,
        rows: groups.iter().map(row).collect(),
        long: false,
    };
    table.known().map(Block::Table)
}

pub(super) fn coverage(fleet: &Fleet) -> Section {
    let gaps = fleet
        .by_node
        .iter()
        .filter(|node| node.coverage_ratio.is_some_and(|ratio| ratio < 0.99));
    let row = |node: &Group| Row {
        subject: node.name.clone(),
        cells: vec![Value::Ratio(node.coverage_ratio)],
    };
    let rows: Vec<Row> = gaps.map(row).collect();
    let shown = Value::Ratio(Some(fleet.coverage_ratio)).shown();
    let mut blocks = vec![Block::Text(format!(
        "From {} to {}, {} nodes: {shown} of the period × nodes has recorded energy. A node counts for the whole period, also where \
         it came later or was switched off. What was drawn while nothing was recorded is in no figure here.",
        fleet.from, fleet.to, fleet.nodes,
    ))];
    if !rows.is_empty() {
        blocks.push(Block::Table(Table {
            caption: "Nodes of which more than 1 % of the period is not recorded",
            subject: "node",
            columns: vec![Column::new("booked_ratio", "recorded", "")],
            rows,
            long: false,
        }));
    }
    Section {
        id: "coverage",
        title: "Coverage",
        blocks,
    }
}

pub(super) fn method(report: &Report) -> Section {
    let words = [
        "Each node's agent books the energy of its devices' own counters. Every five minutes a rule of dashboards/rules.yaml records \
         how much was added since; the report adds these records up. Of replicas of a series the one with more counts."
            .to_owned(),
        format!(
            "Ratios are sums over sums. J per request: the account requests ÷ requests. kWh, money and carbon are times PUE {}.",
            report.pue
        ),
        "Limits: records of five minutes hold no single request, so there is no p50, p95, bound or class here, and no percentile of \
         power, no load curve and no headroom. `perjoule report` of one node's recording has them. Rates are extended to the ends \
         of their five minutes by the server, which moves single records by a few per cent and sums by little; so accounts and \
         meters are not held against each other here, as each agent does (perjoule_ledger_residual_joules). Fans, power supplies, \
         network and storage are in no meter; PUE stands for the site alone."
            .to_owned(),
    ];
    Section {
        id: "method",
        title: "Method and limits",
        blocks: words.into_iter().map(Block::Text).collect(),
    }
}
