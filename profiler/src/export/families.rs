//! Totals to the `prometheus` crate's metric families: the one place where integers become
//! floating point. What is unknown has no series.

mod activity;
mod aliases;
mod build;
mod gpus;

pub(super) use build::{Families, Shown, ShownExemplar};

use super::aliases::Aliases;
use super::catalog::*;
use super::histogram::{DURATION, ENERGY, SYSCALL, WAIT};
use super::process::ProcessUse;
use super::totals::{PodTotals, ServiceTotals, Totals};
use crate::clock::Timestamp;
use crate::ledger::{Accounts, Component, TokenSource};
use crate::pods::PodNames;
use crate::units::Microjoules;

const MICROS: f64 = 1e6;
const NANOS: f64 = 1e9;
/// Seconds without an answer, beyond those between two asks, after which a source is down,
/// whatever it said last.
const SOURCE_SILENT: f64 = 3.0;

/// All families that have a series, sorted by name.
pub(super) fn families(totals: &Totals, process: &ProcessUse, now: Timestamp) -> Shown {
    let mut out = Families::build();
    add_all(&mut out, totals, process, now);
    out.finish()
}

/// How many series all of them have.
pub(super) fn series(totals: &Totals, process: &ProcessUse, now: Timestamp) -> usize {
    let mut out = Families::count();
    add_all(&mut out, totals, process, now);
    out.finish().series
}

fn add_all(out: &mut Families, totals: &Totals, process: &ProcessUse, now: Timestamp) {
    meters(out, totals);
    nodes(out, totals, now);
    for (name, service) in totals.named_services() {
        out.number(&SERVICE_INFO, &info(name, service), 1.0);
        service_families(out, totals.aliases, name, service);
    }
    if let Some((name, service)) = totals.finished.named() {
        service_families(out, totals.aliases, &name, service);
    }
    gpus::families(out, totals, now);
    trust(out, totals, now);
    process_families(out, process);
    aliases::meters(out, totals);
}

fn meters(out: &mut Families, totals: &Totals) {
    let mut residual = None;
    let mut agent: Option<Microjoules> = None;
    for ((component, device), meter) in &totals.meters {
        let component_name = component.name();
        for (source, energy) in &meter.energy {
            let labels = [component_name, device, source.name()];
            out.number(&METER_ENERGY, &labels, energy.joules().0);
        }
        if !meter.energy.is_empty() {
            for (account, energy) in Accounts::NAMES.iter().zip(meter.accounts) {
                let labels = [component_name, device, account];
                out.number(&ENERGY_ACCOUNT, &labels, energy.joules().0);
            }
            // Sizes, so that two meters' errors cannot hide each other.
            residual = Some(residual.unwrap_or(0) + meter.residual().unsigned_abs());
            if *component != Component::Gpu {
                agent = Some(agent.unwrap_or_default() + meter.agent());
            }
        }
        let labels = [component_name, device.as_str()];
        out.number(&METER_GAIN_ERROR, &labels, meter.gain_error_ratio);
        out.number(&GAP_SECONDS, &labels, meter.gap_nanos as f64 / NANOS);
    }
    out.known(
        &LEDGER_RESIDUAL,
        &[],
        residual.map(|micros| micros as f64 / MICROS),
    );
    out.known(&AGENT_ENERGY, &[], agent.map(|energy| energy.joules().0));
}

fn nodes(out: &mut Families, totals: &Totals, now: Timestamp) {
    for (device, node) in &totals.nodes {
        out.number(&NODE_ENERGY, &[device], node.energy.joules().0);
        let fresh = now.since(node.at) <= node.stale_after.as_nanos() as u64;
        let power = node.power.filter(|_| fresh).map(|power| power.0);
        out.known(&NODE_POWER, &[device], power);
        let labels = ["node", device.as_str()];
        out.number(&METER_GAIN_ERROR, &labels, node.gain_error_ratio);
        out.number(&GAP_SECONDS, &labels, node.gap.as_secs_f64());
    }
}

fn info<'a>(name: &'a str, service: &'a ServiceTotals) -> [&'a str; 7] {
    let [model, engine, version] = [&service.model, &service.engine, &service.engine_version]
        .map(|known| known.as_deref().unwrap_or_default());
    let PodNames {
        namespace,
        pod,
        container,
    } = &service.here.pod;
    [name, model, engine, version, namespace, pod, container]
}

fn service_families(out: &mut Families, aliases: Aliases, name: &str, service: &ServiceTotals) {
    for totals in service.elsewhere.iter().chain([&service.here]) {
        pod_families(out, name, totals);
    }
    if service.sessions > 0 {
        out.number(&SESSIONS, &[name], service.sessions as f64);
    }
    for ((route, class), histogram) in &service.request_energy {
        let labels = [name, route.name(), class.name()];
        out.sampled(&REQUEST_ENERGY, &labels, &ENERGY, histogram, MICROS);
    }
    for (route, histogram) in &service.duration {
        let labels = [name, route.name()];
        out.sampled(&REQUEST_DURATION, &labels, &DURATION, histogram, NANOS);
    }
    for (route, histogram) in &service.first_token {
        let labels = [name, route.name()];
        out.sampled(&TIME_TO_FIRST_TOKEN, &labels, &DURATION, histogram, NANOS);
    }
    tokens(out, name, service);
    out.known(&ATTRIBUTION_ERROR, &[name], service.active.error_ratio());
    let cpu = service.cpu_nanos.map(|nanos| nanos as f64 / NANOS);
    out.known(&CPU_SECONDS, &[name], cpu);
    for (class, count) in &service.syscalls {
        out.number(&SYSCALLS, &[name, class], *count as f64);
    }
    for (class, histogram) in &service.syscall_durations {
        let labels = [name, class];
        out.histogram(&SYSCALL_DURATION, &labels, &SYSCALL, histogram, NANOS);
    }
    for (kind, count) in &service.page_faults {
        out.number(&PAGE_FAULTS, &[name, kind], *count as f64);
    }
    for (event, count) in &service.tracepoints {
        out.number(&TRACEPOINT_EVENTS, &[name, event], *count as f64);
    }
    activity::families(out, name, service);
    aliases::service(out, aliases, name, service);
    waits(out, name, service);
}

/// What is told of each pod in which a service runs or ran.
fn pod_families(out: &mut Families, name: &str, totals: &PodTotals) {
    let PodNames {
        namespace,
        pod,
        container,
    } = &totals.pod;
    for (component, parts) in &totals.energy {
        let component = component.name();
        for (part, energy) in [("requests", parts.requests), ("overhead", parts.overhead)] {
            let labels = [name, component, part, namespace, pod, container];
            out.number(&SERVICE_ENERGY, &labels, energy.joules().0);
        }
    }
    for ((route, code, outcome), count) in &totals.requests {
        let (route, outcome) = (route.name(), outcome.name());
        let labels = [name, route, code, outcome, namespace, pod, container];
        out.number(&REQUESTS, &labels, *count as f64);
    }
}

fn waits(out: &mut Families, name: &str, service: &ServiceTotals) {
    if let Some(waits) = &service.waits {
        out.histogram(&RUN_QUEUE, &[name], &WAIT, &waits.run_queue, NANOS);
        out.histogram(&DISK_WAIT, &[name], &WAIT, &waits.disk, NANOS);
        for (reason, nanos) in &waits.off_cpu {
            out.number(&OFF_CPU, &[name, reason], *nanos as f64 / NANOS);
        }
        for (kind, count) in [
            ("voluntary", waits.voluntary),
            ("involuntary", waits.involuntary),
        ] {
            out.number(&CONTEXT_SWITCHES, &[name, kind], count as f64);
        }
        out.number(&MIGRATIONS, &[name], waits.migrations as f64);
    }
    for (reason, nanos) in &service.starved {
        out.number(&GPU_STARVED, &[name, reason], *nanos as f64 / NANOS);
    }
}

fn tokens(out: &mut Families, name: &str, service: &ServiceTotals) {
    for (source, tokens) in TokenSource::ALL.iter().zip(&service.tokens) {
        for (kind, count) in [("input", tokens.input), ("output", tokens.output)] {
            let count = count.map(|count| count as f64);
            out.known(&TOKENS, &[name, kind, source.name()], count);
        }
        let energy = tokens.energy.map(|energy| energy.joules().0);
        out.known(&TOKEN_ENERGY, &[name, source.name()], energy);
    }
    out.known(&TOKENS_PER_CHUNK, &[name], service.tokens_per_chunk);
    for (state, count) in [
        ("running", service.engine_running),
        ("waiting", service.engine_waiting),
    ] {
        let count = count.map(|count| count as f64);
        out.known(&ENGINE_REQUESTS, &[name, state], count);
    }
}

fn trust(out: &mut Families, totals: &Totals, now: Timestamp) {
    out.number(&BUILD_INFO, &[&totals.version], 1.0);
    for (source, state) in &totals.sources {
        let age = state.latest.map(|latest| now.seconds_since(latest));
        // One that hangs in a call cannot say so itself.
        let up = state.up && age.is_none_or(|age| age <= state.every.as_secs_f64() + SOURCE_SILENT);
        out.number(&SOURCE_UP, &[source], f64::from(u8::from(up)));
        out.known(&SOURCE_AGE, &[source], age);
        if let Some(calls) = state.calls {
            out.number(&SOURCE_CALLS, &[source], calls.count as f64);
            out.number(&SOURCE_CALL_ERRORS, &[source], calls.errors as f64);
            out.number(&SOURCE_CALL_SECONDS, &[source], calls.busy.as_secs_f64());
            for (percentile, time) in [("50", calls.p50), ("99", calls.p99)] {
                let seconds = time.map(|time| time.as_secs_f64());
                out.known(&SOURCE_CALL_LATENCY, &[source, percentile], seconds);
            }
        }
    }
    for ((program, tier), up) in &totals.probes {
        out.number(&PROBE_UP, &[program, tier], f64::from(u8::from(*up)));
    }
    for (probe, count) in &totals.probes_thinned {
        out.number(&PROBES_THINNED, &[probe], *count as f64);
    }
    for (program, cost) in &totals.probe_costs {
        let seconds = cost.run_nanos as f64 / NANOS;
        out.number(&PROBE_RUN_SECONDS, &[program], seconds);
        out.number(&PROBE_RUNS, &[program], cost.runs as f64);
    }
    for (reason, count) in &totals.dropped {
        out.number(&EVENTS_DROPPED, &[reason], count.sum() as f64);
    }
    for (reason, count) in totals.folded.by_reason() {
        out.number(&SERIES_DROPPED, &[reason], count as f64);
    }
    out.number(&SERIES_DROPPED, &["pods"], totals.pods_folded as f64);
}

fn process_families(out: &mut Families, process: &ProcessUse) {
    out.number(&PROCESS_CPU, &[], process.cpu_seconds);
    let bytes = |bytes: u64| bytes as f64;
    out.known(&PROCESS_RESIDENT, &[], process.resident_bytes.map(bytes));
    out.known(&PROCESS_VIRTUAL, &[], process.virtual_bytes.map(bytes));
    let open = process.open_fds.map(|open| open as f64);
    out.known(&PROCESS_OPEN_FDS, &[], open);
    out.known(&PROCESS_MAX_FDS, &[], process.max_fds.map(bytes));
    out.known(&PROCESS_START, &[], process.start_seconds);
}
