//! The table of `perjoule stat`: a value, its unit, what it is, and a remark, as `perf stat` has it.

use std::fmt::{self, Write};

use super::activity::{write_cuda, write_pmc};
use super::document::{Block, Document};
use super::figures::{UNKNOWN, count, figure, known, percent, with_unit};
use super::fleet::model::{Fleet, Group};
use super::full::IdlePolicy;
use super::model::{MeterReport, Report, ServiceReport, ThreadReport};

impl Report {
    /// The table for people, ending with a line feed. Plain text, at most 80 columns where names
    /// are not longer.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> fmt::Result {
        let simulated = if self.simulated {
            "   SIMULATED GPU"
        } else {
            ""
        };
        let window = with_unit(self.duration_s, "s");
        writeln!(out, "\n Energy over {window}{simulated}")?;
        if let Some(fleet) = &self.fleet {
            write_fleet(out, fleet)?;
            return write_plan(out, self);
        }
        for service in &self.services {
            write_service(out, service, self)?;
        }
        for meter in &self.meters {
            write_meter(out, meter, self.duration_s)?;
        }
        if self.meters.is_empty() {
            writeln!(out, "\n no meter: joules are {UNKNOWN} on this machine")?;
        }
        writeln!(out)?;
        let known = |number: Option<u64>| number.map_or_else(|| UNKNOWN.to_owned(), count);
        let residual = known(self.ledger.residual_microjoules);
        row(out, &residual, "µJ", "ledger residual", "")?;
        row(out, &known(self.losses.requests), "", "requests lost", "")?;
        row(out, &known(self.losses.events), "", "events lost", "")?;
        writeln!(out)?;
        if self.planner.is_some() {
            write_plan(out, self)?;
        }
        Ok(())
    }
}

/// Nodes that the table shows; the other forms have all.
const MOST_NODES: usize = 10;

fn write_fleet(out: &mut String, fleet: &Fleet) -> fmt::Result {
    let covered = percent(fleet.coverage_ratio);
    let nodes = count(fleet.nodes);
    writeln!(out, " {} to {}", fleet.from, fleet.to)?;
    writeln!(out, " {nodes} nodes, {covered} of period × nodes recorded")?;
    if !fleet.missing.is_empty() {
        writeln!(out, " not recorded: {}", fleet.missing.join(", "))?;
    }
    for warning in &fleet.warnings {
        writeln!(out, " the server warned: {warning}")?;
    }
    let most = fleet.by_node.get(..MOST_NODES).unwrap_or(&fleet.by_node);
    for (what, groups) in [
        ("cluster", &*fleet.clusters),
        ("model", &fleet.models),
        ("type of GPU", &fleet.gpu_types),
        ("node", most),
    ] {
        if !groups.is_empty() {
            write_groups(out, what, groups)?;
        }
    }
    let more = fleet.by_node.len().saturating_sub(most.len()) as u64;
    if more > 0 {
        writeln!(out, " and {} more nodes", count(more))?;
    }
    writeln!(out)
}

fn write_groups(out: &mut String, what: &str, groups: &[Group]) -> fmt::Result {
    writeln!(
        out,
        "\n {what:<25} {:>10} {:>7} {:>9} {:>9} {:>6} {:>6}",
        "kWh", "of all", "J/request", "J/token", "idle", "rec."
    )?;
    let dash = || "-".to_owned();
    let number = |value: Option<f64>| value.map_or_else(dash, figure);
    let ratio =
        |value: Option<f64>| value.map_or_else(dash, |ratio| format!("{:.1}%", ratio * 100.0));
    for group in groups {
        writeln!(
            out,
            " {:<25} {:>10} {:>7} {:>9} {:>9} {:>6} {:>6}",
            group.name,
            number(group.total.energy_kwh),
            ratio(group.energy_ratio),
            number(group.j_per_request),
            number(group.j_per_output_token),
            ratio(group.gpu_idle_ratio),
            ratio(group.coverage_ratio),
        )?;
    }
    Ok(())
}

/// What a planner asks first, as far as it is known.
fn write_plan(out: &mut String, report: &Report) -> fmt::Result {
    for section in Document::new(report, "").sections {
        for block in &section.blocks {
            match block {
                Block::Cards { title, figures } if section.id == "answers" => {
                    writeln!(out, " {}\n", title.to_lowercase())?;
                    for figure in figures.iter().filter(|figure| figure.value.is_known()) {
                        let (value, unit) = (figure.value.shown(), &figure.unit);
                        writeln!(out, "{value:>18} {unit:<6} {}", figure.label)?;
                    }
                    writeln!(out)?;
                }
                Block::Finding(finding) => {
                    let figures = finding
                        .figures
                        .iter()
                        .filter(|figure| figure.value.is_known());
                    let figures = figures.map(|figure| {
                        format!("{} {}", figure.value.shown(), figure.unit)
                            .trim_end()
                            .to_owned()
                    });
                    let figures: Vec<String> = figures.collect();
                    writeln!(out, " saving: {}: {}", finding.title, figures.join(", "))?;
                }
                _ => {}
            }
        }
    }
    writeln!(out)
}

/// What full energy takes in beside that, if anything.
fn beside(report: &Report) -> String {
    let mut remark = String::new();
    match report.idle_policy {
        IdlePolicy::None => {}
        IdlePolicy::Even => push(&mut remark, "and an even part of idle"),
        IdlePolicy::Proportional => push(&mut remark, "and idle in proportion to requests"),
    }
    if report.pue > 1.0 {
        push(&mut remark, &format!("PUE {}", report.pue));
    }
    remark
}

fn write_service(out: &mut String, service: &ServiceReport, report: &Report) -> fmt::Result {
    let duration = report.duration_s;
    write!(out, "\n service {}", service.service)?;
    if let Some(model) = &service.model {
        write!(out, ", model {model}")?;
    }
    writeln!(out, "\n")?;

    let requests = &service.requests;
    let mut remark = rate(requests.total as f64, duration);
    for (number, what) in [
        (requests.aborted, "aborted"),
        (requests.incomplete, "incomplete"),
        (requests.health, "health"),
    ] {
        if number > 0 {
            push(&mut remark, &format!("{} {what}", count(number)));
        }
    }
    row(out, &count(requests.total), "", "requests", &remark)?;
    if !requests.by_code.is_empty() {
        let codes: Vec<String> = requests
            .by_code
            .iter()
            .map(|(code, number)| format!("{} {code}", count(*number)))
            .collect();
        row(out, "", "", "", &codes.join(", "))?;
    }

    let tokens = &service.tokens;
    let output = tokens.output.map_or_else(|| UNKNOWN.to_owned(), count);
    let mut remark = tokens
        .output
        .map_or_else(String::new, |output| rate(output as f64, duration));
    if let Some(source) = &tokens.source {
        push(&mut remark, &format!("from {source}"));
    }
    row(out, &output, "", "output tokens", &remark)?;
    if tokens.calibrated == Some(false) {
        row(out, "", "", "", "a chunk is taken for a token")?;
    }
    for (source, part) in &tokens.by_source {
        if tokens.source.as_ref() != Some(source) {
            let requests = count(part.requests);
            row(
                out,
                "",
                "",
                "",
                &format!("{requests} requests from {source}"),
            )?;
        }
    }
    if let Some(input) = tokens.input {
        let remark = rate(input as f64, duration);
        row(out, &count(input), "", "input tokens", &remark)?;
    }

    let energy = &service.energy_j;
    let bound = match (service.error_ratio, service.class) {
        (Some(error), Some(class)) => format!("± {}, class {}", percent(error), class.name()),
        (None, Some(class)) => format!("bound above 100 %, class {}", class.name()),
        _ => String::new(),
    };
    row(out, &known(energy.total), "J", "energy, active", &bound)?;
    for (component, part) in [
        ("gpu", energy.gpu),
        ("cpu", energy.cpu),
        ("dram", energy.dram),
    ] {
        row(out, &known(part), "J", &format!("  {component}"), "")?;
    }
    let full = known(service.energy_full_j);
    row(out, &full, "J", "with overhead, context", &beside(report))?;

    let each = &service.j_per_request;
    let remark = match (each.p50, each.p95) {
        (Some(p50), Some(p95)) => format!("p50 {}, p95 {}", figure(p50), figure(p95)),
        _ => String::new(),
    };
    row(out, &known(each.mean), "J", "per request", &remark)?;
    let per_token = known(service.j_per_output_token);
    row(out, &per_token, "J", "per output token", "")?;
    if let Some(each) = service.j_per_token {
        row(out, &figure(each), "J", "per token, input too", "")?;
    }

    for (what, times) in [
        ("to first token, p50", &service.ttft_s),
        ("request duration, p50", &service.duration_s),
    ] {
        let remark = times
            .p99
            .map_or_else(String::new, |p99| format!("p99 {}", figure(p99)));
        row(out, &known(times.p50), "s", what, &remark)?;
    }
    let cpus = match (service.cpu_s, duration) {
        (Some(cpu), Some(duration)) if duration > 0.0 => {
            format!("{} CPUs used", figure(cpu / duration))
        }
        _ => String::new(),
    };
    row(out, &known(service.cpu_s), "s", "on CPU", &cpus)?;
    waits(out, service)?;
    if let Some(cuda) = &service.cuda {
        write_cuda(out, cuda)?;
    }
    if let Some(pmc) = &service.pmc {
        write_pmc(out, pmc)?;
    }
    write_host(out, service)
}

fn write_host(out: &mut String, service: &ServiceReport) -> fmt::Result {
    let Some(host) = &service.host else {
        return Ok(());
    };
    for (class, calls) in &host.syscalls {
        let mut remark = calls
            .time_s
            .map_or_else(String::new, |time| format!("{} s", figure(time)));
        if calls.timed < calls.calls / 2 {
            push(&mut remark, &format!("{} timed", count(calls.timed)));
        }
        if let Some(p99) = calls.p99_s {
            push(&mut remark, &format!("p99 {} µs", figure(p99 * 1e6)));
        }
        let what = format!("{class} calls");
        row(out, &count(calls.calls), "", &what, &remark)?;
    }
    for (kind, faults) in &host.page_faults {
        row(out, &count(*faults), "", &format!("{kind} page faults"), "")?;
    }
    for (event, happened) in &host.tracepoints {
        row(out, &count(*happened), "", event, "")?;
    }
    Ok(())
}

/// What the threads waited for.
fn waits(out: &mut String, service: &ServiceReport) -> fmt::Result {
    let each = &service.run_queue_wait_s;
    let remark = match (each.p50, each.p99) {
        (Some(p50), Some(p99)) => format!("p50 {}, p99 {} s a wait", figure(p50), figure(p99)),
        _ => String::new(),
    };
    row(
        out,
        &known(service.run_queue_s),
        "s",
        "in run queue",
        &remark,
    )?;
    for (reason, time) in service.off_cpu_s.iter().flatten() {
        let remark = match reason.as_str() {
            "preempted" => "a part of the run queue",
            _ => "",
        };
        if *time > 0.0 {
            let what = format!("  off CPU, {reason}");
            row(out, &figure(*time), "s", &what, remark)?;
        }
    }
    if let Some(switches) = &service.switches {
        let involuntary = format!("{} involuntary", count(switches.involuntary));
        row(
            out,
            &count(switches.voluntary),
            "",
            "voluntary switches",
            &involuntary,
        )?;
    }
    if let Some(migrations) = service.migrations {
        row(out, &count(migrations), "", "migrations", "")?;
    }
    for (reason, time) in service.gpu_starved_s.iter().flatten() {
        if *time > 0.0 || reason == "run_queue" {
            let what = format!("GPU starved, {reason}");
            row(out, &figure(*time), "s", &what, "")?;
        }
    }
    match &service.threads {
        Some(threads) => write_threads(out, threads),
        None => Ok(()),
    }
}

/// One line a thread, those with most CPU time first; seconds.
fn write_threads(out: &mut String, threads: &[ThreadReport]) -> fmt::Result {
    writeln!(
        out,
        "\n {:>7} {:<15} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>6}",
        "thread",
        "name",
        "on CPU",
        "run q.",
        "sleep",
        "disk",
        "futex",
        "poll",
        "socket",
        "other",
        "volunt.",
        "involunt.",
        "migr."
    )?;
    for thread in threads {
        let off = |reason| thread.off_cpu_s.get(reason).copied().unwrap_or(0.0);
        write!(out, " {:>7} {:<15}", thread.tid, thread.name)?;
        for time in [
            thread.cpu_s,
            thread.run_queue_s,
            off("sleep"),
            off("disk"),
            off("futex"),
            off("poll"),
            off("socket"),
            off("other"),
        ] {
            write!(out, " {time:>8.3}")?;
        }
        writeln!(
            out,
            " {:>9} {:>9} {:>6}",
            thread.switches.voluntary, thread.switches.involuntary, thread.migrations
        )?;
    }
    Ok(())
}

fn write_meter(out: &mut String, meter: &MeterReport, duration: Option<f64>) -> fmt::Result {
    writeln!(
        out,
        "\n meter {} {} ({})\n",
        meter.component.name(),
        meter.device,
        meter.source.name()
    )?;
    let watts = match (meter.energy_j, duration) {
        (Some(energy), Some(duration)) if duration > 0.0 => {
            format!("{} W", figure(energy / duration))
        }
        _ => String::new(),
    };
    row(out, &known(meter.energy_j), "J", "energy", &watts)?;
    for (name, energy) in meter.accounts_j.rows() {
        let share = match (energy, meter.energy_j) {
            (Some(energy), Some(total)) if total > 0.0 => percent(energy / total),
            _ => String::new(),
        };
        // An account without energy says nothing; that it is 0 follows from the others.
        if energy != Some(0.0) && energy.is_some() {
            row(out, &known(energy), "J", &format!("  {name}"), &share)?;
        }
    }
    Ok(())
}

pub(crate) fn row(
    out: &mut String,
    value: &str,
    unit: &str,
    what: &str,
    remark: &str,
) -> fmt::Result {
    let unit = if value == UNKNOWN { "" } else { unit };
    let line = format!("{value:>18} {unit:<3}{what:<24}");
    let gap = if remark.is_empty() { "" } else { "# " };
    writeln!(out, "{}", format!("{line}{gap}{remark}").trim_end())
}

fn rate(number: f64, duration: Option<f64>) -> String {
    match duration {
        Some(duration) if duration > 0.0 => format!("{} /s", figure(number / duration)),
        _ => String::new(),
    }
}

fn push(remark: &mut String, more: &str) {
    if !remark.is_empty() {
        remark.push_str(", ");
    }
    remark.push_str(more);
}
