//! What the figures say, in plain sentences; the same ones in every form.

use super::model::{Comparison, Figure, FigureChange, Load, SeenIn, ServiceComparison, Verdict};
use super::significance::BLOCKS;

/// A change in per cent, with its sign.
pub(super) fn signed(ratio: f64) -> String {
    format!("{:+.1} %", ratio * 100.0)
}

/// The confidence, in per cent.
pub(super) fn confidence(alpha: f64) -> String {
    // Without what binary fractions add: 1 − 0.001 is 99.9.
    let percent = ((1.0 - alpha) * 1e8).round() / 1e6;
    format!("{percent} %")
}

/// Sentences on one service.
pub(super) fn of_service(service: &ServiceComparison, alpha: f64) -> Vec<String> {
    let name = &service.service;
    match service.seen_in {
        SeenIn::A => return vec![format!("{name} is in A only: there is nothing to compare.")],
        SeenIn::B => return vec![format!("{name} is in B only: there is nothing to compare.")],
        SeenIn::Both => {}
    }
    let mut said = Vec::new();
    let mut figures = service.figures.iter();
    if let Some(deciding) = figures.find(|change| change.figure == Figure::JPerRequest) {
        said.push(verdict(deciding, service.not_enough_data.as_deref(), alpha));
    }
    if let (Some(seconds), None) = (service.block_s.a, &service.not_enough_data) {
        said.push(match service.load {
            Some(Load::Same) => format!(
                "Both runs had the same load: their {BLOCKS} blocks of {seconds:.1} s are compared in pairs."
            ),
            _ => format!(
                "The runs had different loads: means of {BLOCKS} blocks of each are compared. The same \
                 load on both would show smaller changes."
            ),
        });
    }
    said
}

fn verdict(change: &FigureChange, too_little: Option<&str>, alpha: f64) -> String {
    let confidence = confidence(alpha);
    match (change.change, change.low.zip(change.high), change.p) {
        (Some(by), Some((low, high)), Some(p)) => {
            let (low, high) = (signed(low), signed(high));
            let direction = match change.verdict {
                Verdict::Higher => "higher",
                Verdict::Lower => "lower",
                _ => {
                    return format!(
                        "No change of J/request is shown: with {confidence} confidence it is between \
                         {low} and {high} ({}). A smaller change cannot be seen in these runs.",
                        chance(p)
                    );
                }
            };
            format!(
                "J/request is {:.1} % {direction} in B: {low} to {high} with {confidence} confidence \
                 ({}).",
                by.abs() * 100.0,
                chance(p)
            )
        }
        (Some(_), ..) => format!(
            "Not enough data for a verdict on J/request: {}.",
            too_little.unwrap_or("too few parts of the runs have requests with known energy")
        ),
        (None, ..) => "J/request is not known in both runs.".to_owned(),
    }
}

fn chance(p: f64) -> String {
    match p {
        p if p < 0.000_1 => "p < 0.0001".to_owned(),
        p => format!("p = {p:.4}"),
    }
}

/// What holds for all of it.
pub(super) fn of_all(comparison: &Comparison) -> Vec<String> {
    let mut said = Vec::new();
    said.push(
        "Intervals are of sampling alone. J/request decides; the other figures are judged together, by \
         themselves (Holm)."
            .to_owned(),
    );
    let gain = |ratio: Option<f64>| {
        ratio.map_or_else(
            || "an unknown part".to_owned(),
            |ratio| format!("{:.0} %", ratio * 100.0),
        )
    };
    said.push(match comparison.same_meters {
        true => "The same meters measured both: their gain error cancels.".to_owned(),
        false => format!(
            "Different meters measured them: their gains may differ by {} and {}, which is in no \
             interval.",
            gain(comparison.a.gain_error_ratio),
            gain(comparison.b.gain_error_ratio)
        ),
    });
    if comparison.a.simulated || comparison.b.simulated {
        said.push("SIMULATED GPU: these figures show no hardware's.".to_owned());
    }
    said
}
