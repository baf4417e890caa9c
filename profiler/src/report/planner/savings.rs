//! What could be saved: each from measured energy alone, none guessed. They overlap in part, so they
//! are never summed.

use super::Planner;
use super::model::{Amount, LoadPoint, Saving};
use crate::report::figures::{figure, percent};
use crate::report::model::Report;

/// As many as are shown.
const MOST: usize = 3;

/// Smaller parts of all energy are not worth a planner's time.
const NOTABLE: f64 = 0.001;

/// One that was found.
pub(in crate::report) struct Found {
    pub(in crate::report) name: &'static str,
    pub(in crate::report) title: &'static str,
    pub(in crate::report) joules: f64,
    pub(in crate::report) advice: String,
    pub(in crate::report) method: &'static str,
}

/// The biggest that a recording has, the biggest first.
pub(super) fn find(
    planner: &Planner,
    report: &Report,
    curve: &[LoadPoint],
    measured: f64,
    amount: impl Fn(Option<f64>) -> Amount,
) -> Vec<Saving> {
    let all = [
        quiet_gpus(planner),
        parked(planner),
        overhead(
            report
                .meters
                .iter()
                .filter_map(|meter| meter.accounts_j.overhead)
                .sum(),
        ),
        aborted(planner),
        waiting(planner),
        small_batches(curve),
    ];
    rank(all.into_iter().flatten(), measured, amount)
}

/// The biggest first.
pub(in crate::report) fn rank(
    all: impl Iterator<Item = Found>,
    measured: f64,
    amount: impl Fn(Option<f64>) -> Amount,
) -> Vec<Saving> {
    let mut savings: Vec<Saving> = all
        .filter(|found| found.joules > measured * NOTABLE)
        .map(|found| Saving {
            name: found.name.to_owned(),
            title: found.title.to_owned(),
            amount: amount(Some(found.joules)),
            ratio: found.joules / measured,
            advice: found.advice,
            method: found.method.to_owned(),
        })
        .collect();
    savings.sort_by(|one, other| other.ratio.total_cmp(&one.ratio));
    savings.truncate(MOST);
    savings
}

fn quiet_gpus(planner: &Planner) -> Option<Found> {
    let quiet = || planner.gpus().map(|gpu| &gpu.quiet);
    let seconds = quiet().map(|quiet| quiet.nanos).sum::<u64>() as f64 / 1e9;
    let stretches: u64 = quiet().map(|quiet| quiet.stretches).sum();
    let joules = quiet().map(|quiet| quiet.idle.joules().0).sum::<f64>();
    (joules > 0.0).then(|| Found {
        name: "quiet_gpus",
        title: "GPUs that are on and have nothing to do",
        joules,
        advice: format!(
            "For {} GPU-hours, in {stretches} stretches of more than a minute each, GPUs drew their idle power and \
             neither a request nor another program used them. Put the same requests on fewer GPUs and switch the others off, or give them other work at those \
             times.",
            figure(seconds / 3_600.0),
        ),
        method: "Σ of the account idle over GPU intervals in stretches of more than 60 s in which the account requests is 0 and other work is at most a tenth.",
    })
}

fn parked(planner: &Planner) -> Option<Found> {
    let joules = planner
        .gpus()
        .map(|gpu| gpu.quiet.context.joules().0)
        .sum::<f64>();
    (joules > 0.0).then(|| Found {
        name: "parked_models",
        title: "Models that stay loaded while nobody asks them",
        joules,
        advice: "A GPU with a model loaded draws more than an empty one, also while no request comes. In stretches of more \
                 than a minute without requests this was the extra. Unload models in hours without use, or let several \
                 share a GPU; the first request afterwards then waits for the loading."
            .to_owned(),
        method: "Σ of the account context over GPU intervals in the same stretches as idle GPUs: more than 60 s, \
                 the account requests 0, other work at most a tenth.",
    })
}

pub(in crate::report) fn overhead(joules: f64) -> Option<Found> {
    (joules > 0.0).then(|| Found {
        name: "overhead",
        title: "Services at work without a request",
        joules,
        advice: "Services used this energy while none of their requests was in flight: loading and warming up models, polling, \
                 housekeeping. Restart them less often, and ask whoever runs them what they do while nobody waits."
            .to_owned(),
        method: "Σ of the account overhead over all meters.",
    })
}

fn aborted(planner: &Planner) -> Option<Found> {
    let services = planner.services.iter();
    let joules: f64 = services
        .filter_map(|service| service.aborted)
        .map(|energy| energy.joules().0)
        .sum();
    (joules > 0.0).then(|| Found {
        name: "aborted_requests",
        title: "Answers that nobody waited for",
        joules,
        advice: "Clients left before their answers were complete; this is what was spent on them until then. Look for \
                 time-outs in clients and proxies that are shorter than the answers take, and for retries that send the \
                 same request again."
            .to_owned(),
        method: "Σ of the energy of requests whose outcome is aborted.",
    })
}

fn waiting(planner: &Planner) -> Option<Found> {
    let phases = planner.services.iter().filter_map(|service| service.phases);
    let joules: f64 = phases.map(|phases| phases.wait.joules().0).sum();
    (joules > 0.0).then(|| Found {
        name: "waiting_gpus",
        title: "GPUs that wait for their own requests",
        joules,
        advice: "Requests were in flight, and the GPU neither read a prompt nor produced a token, yet drew more than its idle \
                 power. Often the host is the cause: too few CPU cores for the server, or work between two steps. Give the \
                 server's host more CPU, and have perjoule_gpu_starved_seconds_total watched."
            .to_owned(),
        method: "Σ of wait_uj over GPU intervals: above idle and context, with requests in flight, in neither phase.",
    })
}

fn small_batches(curve: &[LoadPoint]) -> Option<Found> {
    let known = curve.iter().filter_map(|point| {
        let tokens = point.output_tokens_per_s? * point.time_s;
        Some((point, point.j_per_output_token?, tokens))
    });
    let known: Vec<_> = known.collect();
    let (best, least, _) = known
        .iter()
        .copied()
        .reduce(|best, point| if point.1 < best.1 { point } else { best })?;
    let joules: f64 = known
        .iter()
        .map(|(_, each, tokens)| (each - least) * tokens)
        .sum();
    let total: f64 = known.iter().map(|(_, each, tokens)| each * tokens).sum();
    (joules > 0.0).then(|| Found {
        name: "small_batches",
        title: "Tokens produced for few requests at a time",
        joules,
        advice: format!(
            "A GPU that serves many requests at once needs less energy for each token. The best load that was measured, {} \
             requests in flight on average, needed {} J per output token. Had all tokens been produced like that, {} of the \
             energy of busy GPUs would not have been drawn. Send the same requests to fewer servers, and watch that the time \
             to first token stays acceptable.",
            figure(best.mean_in_flight),
            figure(least),
            percent(joules / total),
        ),
        method: "Σ over the points of the load curve of (J per output token − the least of them) × output tokens; all GPUs, idle \
                 included; prompts are taken to be alike at every load.",
    })
}
