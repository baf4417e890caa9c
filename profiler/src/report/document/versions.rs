//! What a request cost before and after what serves it changed.

use super::services::in_two;
use super::{Block, Column, Row, Section, Table, Value};
use crate::report::figures::{figure, percent};
use crate::report::planner::model::{Plan, VersionPlan};
use crate::report::planner::versions::before;

/// Changes that are told in words; the table has all.
const TOLD: usize = 20;

/// How requests come to versions: in a recording, and in a fleet.
const OF_SERVICES: &str = "A version is the model and the engine with its version, as its metrics tell them. A request counts for \
                           the one that was told last before it began: in the seconds until a new one is seen, for the one before. \
                           The bounds are the measurement's.";
const OF_MODELS: &str = "A version of a model is the engine with its version that serves it, as its metrics tell them; several may \
                         serve at once. What five minutes added counts for the one at their end, and the time is the start of the \
                         part of the period in which it served first. Recorded series have no bounds.";
const NOT_WHY: &str = "This is what was measured, not why: what clients asked for, and how many asked at once, may have changed \
                       with the version. Whether a change is more than chance, under the same load, perjoule diff tells of two \
                       recordings.";

/// Nothing where no service, or in a fleet no model, had a second version.
pub(super) fn versions(plan: &Plan, fleet: bool) -> Option<Section> {
    let versions = &plan.versions;
    if versions.is_empty() {
        return None;
    }
    let (title, subject, what) = if fleet {
        ("Versions of models", "model", OF_MODELS)
    } else {
        ("Versions of services", "service", OF_SERVICES)
    };
    let changes = versions
        .iter()
        .filter_map(|now| Some(words(before(versions, &now.service, now.from_s)?, now)))
        .take(TOLD);
    let mut blocks = vec![Block::Text(format!("{what} {NOT_WHY}"))];
    blocks.extend(changes.map(Block::Text));
    let tables = in_two(table(versions, subject), 8, "Its tokens");
    blocks.extend(
        tables
            .into_iter()
            .filter_map(Table::known)
            .map(Block::Table),
    );
    Some(Section {
        id: "versions",
        title,
        blocks,
    })
}

/// What changed, for people who write no code.
fn words(before: &VersionPlan, now: &VersionPlan) -> String {
    let each = |version: &VersionPlan| {
        let joules = version.j_per_request.map(figure)?;
        let bound = version.error_ratio;
        Some(bound.map_or(format!("{joules} J"), |bound| {
            format!("{joules} J ± {}", percent(bound))
        }))
    };
    let head = format!(
        "{}: {} came after {}.",
        now.service,
        name(now),
        name(before)
    );
    let request = match (each(before), each(now), now.j_per_request_change) {
        (Some(earlier), Some(later), Some(change)) => format!(
            "A request took {later}, before that {earlier}: {}{}.",
            by(change),
            match beyond_bounds(before, now) {
                Some(true) => ", more than the bounds of both explain",
                Some(false) => ", which may be nothing, for their bounds overlap",
                None => "",
            }
        ),
        _ => {
            "What a request took cannot be compared: the energy of one of the two is not known, or 0.".to_owned()
        }
    };
    let token = match now.j_per_output_token_change {
        Some(change) => format!("An output token took {}.", by(change)),
        None => "What an output token took cannot be compared: tokens or energy of one of the two are not known, or 0.".to_owned(),
    };
    let tokens = |kind: &str, of: fn(&VersionPlan) -> Option<f64>| {
        let pair = of(before).zip(of(now));
        pair.map(|(before, now)| format!("{} {kind}, before {}", figure(now), figure(before)))
    };
    let lengths = [
        tokens("tokens in", |version| version.mean_input_tokens),
        tokens("tokens out", |version| version.mean_output_tokens),
    ];
    let lengths: Vec<String> = lengths.into_iter().flatten().collect();
    let lengths = if lengths.is_empty() {
        "How long requests were is not known, so they may have become longer or shorter.".to_owned()
    } else {
        let lengths = lengths.join("; ");
        format!(
            "A request had on average {lengths}: other lengths or another load cost other joules, in any version."
        )
    };
    format!("{head} {request} {token} {lengths}")
}

fn by(change: f64) -> String {
    let size = percent(change.abs());
    if change >= 0.0 {
        format!("{size} more")
    } else {
        format!("{size} less")
    }
}

/// The most that the bounds of both explain is less than the change, where there are bounds.
fn beyond_bounds(before: &VersionPlan, now: &VersionPlan) -> Option<bool> {
    let bounded = |version: &VersionPlan| {
        let joules = version.j_per_request?;
        Some((joules, joules * version.error_ratio?))
    };
    bounded(before)
        .zip(bounded(now))
        .map(|((before, low), (now, high))| (now - before).abs() > low + high)
}

fn name(version: &VersionPlan) -> String {
    match &version.model {
        Some(model) => format!("{} with {model}", version.engine),
        None => version.engine.clone(),
    }
}

fn table<'a>(versions: &'a [VersionPlan], subject: &'static str) -> Table {
    let mut latest = ("", 0);
    let row = |version: &'a VersionPlan| {
        let (service, number) = latest;
        let number = if service == version.service {
            number + 1
        } else {
            1
        };
        latest = (version.service.as_str(), number);
        Row {
            subject: format!("{}: version {number}", version.service),
            cells: vec![
                Value::Text(Some(version.engine.clone())),
                Value::Text(version.model.clone()),
                Value::Number(Some(version.from_s)),
                Value::Count(Some(version.requests)),
                Value::Number(version.active_j),
                Value::Ratio(version.error_ratio),
                Value::Number(version.j_per_request),
                Value::Change(version.j_per_request_change),
                Value::Number(version.j_per_output_token),
                Value::Change(version.j_per_output_token_change),
                Value::Number(version.mean_input_tokens),
                Value::Number(version.mean_output_tokens),
            ],
        }
    };
    let plain = |key, label| Column::new(key, label, "");
    let joules = |key, label| Column::new(key, label, "J");
    Table {
        caption: "What a request took with each version",
        subject,
        columns: vec![
            plain("engine", "engine and version"),
            plain("model", "model"),
            Column::new("first_request", "first request after", "s"),
            plain("requests", "requests"),
            joules("energy", "active energy"),
            plain("error_ratio", "±"),
            joules("j_per_request_mean", "per request"),
            plain("j_per_request_change", "change"),
            joules("j_per_output_token", "per output token"),
            plain("j_per_output_token_change", "change"),
            plain("mean_input_tokens", "in per request"),
            plain("mean_output_tokens", "out per request"),
        ],
        rows: versions.iter().map(row).collect(),
        long: false,
    }
}
