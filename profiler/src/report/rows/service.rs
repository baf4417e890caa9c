//! A service's rows.

use super::{Row, Section, Value, counted, known, per};
use crate::report::activity::{cuda_rows, pmc_rows};
use crate::report::figures::{count, figure};
use crate::report::full::IdlePolicy;
use crate::report::model::{Report, ServiceReport};

pub(super) fn section(service: &ServiceReport, report: &Report) -> Section {
    let model = service
        .model
        .as_ref()
        .map_or_else(String::new, |model| format!(", model {model}"));
    let mut rows = served(service, report.duration_s);
    rows.extend(energy(service, report));
    rows.extend(times(service, report.duration_s));
    rows.extend(waits(service));
    rows.extend(service.cuda.iter().flat_map(cuda_rows));
    rows.extend(service.pmc.iter().flat_map(pmc_rows));
    rows.extend(host(service));
    Section {
        subject: service.service.clone(),
        title: format!("service {}{model}", service.service),
        rows,
    }
}

/// Nothing that was asked for ran, or the machine does not tell.
fn absent(service: &ServiceReport) -> Value {
    if service.requests.total > service.requests.health {
        Value::NotSupported
    } else {
        Value::NotCounted
    }
}

fn served(service: &ServiceReport, duration: Option<f64>) -> Vec<Row> {
    let requests = &service.requests;
    let total = Value::Count(requests.total);
    let mut row = Row::new("requests", total, "", "requests")
        .metric(per(requests.total as f64, duration), "/s")
        .main();
    for (number, what) in [
        (requests.aborted, "aborted"),
        (requests.incomplete, "incomplete"),
        (requests.health, "health"),
    ] {
        row = row.part(&format!("requests_{what}"), number, what);
    }
    let mut rows = vec![row];
    if !requests.by_code.is_empty() {
        let mut codes = Row::more("");
        for (code, number) in &requests.by_code {
            codes = codes.part(&format!("requests_{code}"), *number, code);
        }
        rows.push(codes);
    }

    let tokens = &service.tokens;
    let source = tokens
        .source
        .as_ref()
        .map_or_else(String::new, |source| format!("from {source}"));
    let rate = |tokens: Option<u64>| per(tokens? as f64, duration);
    let output = counted(tokens.output, absent(service));
    rows.push(
        Row::new("output_tokens", output, "", "output tokens")
            .metric(rate(tokens.output), "/s")
            .note(source)
            .main(),
    );
    if tokens.calibrated == Some(false) {
        rows.push(Row::more("a chunk is taken for a token"));
    }
    for (source, part) in &tokens.by_source {
        if tokens.source.as_ref() != Some(source) {
            let requests = count(part.requests);
            rows.push(Row::more(format!("{requests} requests from {source}")));
        }
    }
    if let Some(input) = tokens.input {
        rows.push(
            Row::new("input_tokens", Value::Count(input), "", "input tokens")
                .metric(rate(Some(input)), "/s"),
        );
    }
    rows
}

fn energy(service: &ServiceReport, report: &Report) -> Vec<Row> {
    let note = match (service.error_ratio, service.class) {
        (Some(_), Some(class)) => format!("class {}", class.name()),
        (None, Some(class)) => format!("bound above 100 %, class {}", class.name()),
        _ => String::new(),
    };
    let energy = &service.energy_j;
    // A meter that has told nothing yet is one that there is.
    let absent_of = |component: Option<&str>| {
        let mut meters = report.meters.iter();
        let waits = meters.any(|meter| {
            component.is_none_or(|name| meter.component.name() == name) && meter.energy_j.is_none()
        });
        if waits {
            Value::NotCounted
        } else {
            Value::NotSupported
        }
    };
    let total = known(energy.total, absent_of(None));
    let mut rows = vec![
        Row::new("energy_active", total, "J", "energy, active")
            .bound(service.error_ratio.filter(|_| service.class.is_some()))
            .note(note)
            .main(),
    ];
    for (component, part) in [
        ("gpu", energy.gpu),
        ("cpu", energy.cpu),
        ("dram", energy.dram),
    ] {
        let part = known(part, absent_of(Some(component)));
        let (event, what) = (format!("energy_{component}"), format!("  {component}"));
        rows.push(Row::new(&event, part, "J", &what));
    }
    let full = known(service.energy_full_j, absent_of(None));
    rows.push(Row::new("energy_full", full, "J", "with overhead, context").note(beside(report)));

    let each = &service.j_per_request;
    let figure_of = |value: Option<f64>| value.map(Value::Figure);
    let both = each.p50.is_some() && each.p95.is_some();
    let quantile = |value: Option<f64>| figure_of(value).filter(|_| both);
    rows.push(
        Row::new(
            "j_per_request",
            known(each.mean, absent(service)),
            "J",
            "per request",
        )
        .also("j_per_request_p50", quantile(each.p50), "J", |p50| {
            format!("p50 {p50}")
        })
        .also("j_per_request_p95", quantile(each.p95), "J", |p95| {
            format!("p95 {p95}")
        })
        .main(),
    );
    let without = match service.tokens.output {
        Some(0) => Value::NotCounted,
        _ => absent(service),
    };
    let per_output = known(service.j_per_output_token, without);
    rows.push(Row::new("j_per_output_token", per_output, "J", "per output token").main());
    if let Some(each) = service.j_per_token {
        rows.push(Row::new(
            "j_per_token",
            Value::Figure(each),
            "J",
            "per token, input too",
        ));
    }
    rows
}

/// What full energy takes in beside that, if anything.
fn beside(report: &Report) -> String {
    let policy = match report.idle_policy {
        IdlePolicy::None => None,
        IdlePolicy::Even => Some("and an even part of idle".to_owned()),
        IdlePolicy::Proportional => Some("and idle in proportion to requests".to_owned()),
    };
    let pue = (report.pue > 1.0).then(|| format!("PUE {}", report.pue));
    policy.into_iter().chain(pue).collect::<Vec<_>>().join(", ")
}

fn times(service: &ServiceReport, duration: Option<f64>) -> Vec<Row> {
    let mut rows: Vec<Row> = [
        ("ttft", "to first token, p50", &service.ttft_s),
        ("duration", "request duration, p50", &service.duration_s),
    ]
    .into_iter()
    .map(|(event, what, times)| {
        // Nothing streamed, or nothing ended.
        let p50 = known(times.p50, Value::NotCounted);
        let p99 = times.p99.map(Value::Figure);
        Row::new(&format!("{event}_p50"), p50, "s", what)
            .also(&format!("{event}_p99"), p99, "s", |p99| {
                format!("p99 {p99}")
            })
            .main()
    })
    .collect();
    let cpus = service.cpu_s.and_then(|cpu| per(cpu, duration));
    rows.push(
        Row::new(
            "cpu",
            known(service.cpu_s, Value::NotSupported),
            "s",
            "on CPU",
        )
        .metric(cpus, "CPUs used")
        .main(),
    );
    rows
}

/// What the threads waited for.
fn waits(service: &ServiceReport) -> Vec<Row> {
    let each = &service.run_queue_wait_s;
    let both = each.p50.is_some() && each.p99.is_some();
    let quantile = |value: Option<f64>| value.map(Value::Figure).filter(|_| both);
    let run_queue = known(service.run_queue_s, Value::NotSupported);
    let mut rows = vec![
        Row::new("run_queue", run_queue, "s", "in run queue")
            .also("run_queue_wait_p50", quantile(each.p50), "s", |p50| {
                format!("p50 {p50}")
            })
            .also("run_queue_wait_p99", quantile(each.p99), "s", |p99| {
                format!("p99 {p99} s a wait")
            }),
    ];
    for (reason, time) in service.off_cpu_s.iter().flatten() {
        if *time > 0.0 {
            let (event, what) = (format!("off_cpu_{reason}"), format!("  off CPU, {reason}"));
            let note = match reason.as_str() {
                "preempted" => "a part of the run queue",
                _ => "",
            };
            rows.push(
                Row::new(&event, Value::Figure(*time), "s", &what)
                    .note(note)
                    .or_zero(),
            );
        }
    }
    if let Some(switches) = &service.switches {
        let voluntary = Value::Count(switches.voluntary);
        let involuntary = Some(Value::Count(switches.involuntary));
        let row = Row::new("switches_voluntary", voluntary, "", "voluntary switches");
        rows.push(row.also("switches_involuntary", involuntary, "", |number| {
            format!("{number} involuntary")
        }));
    }
    if let Some(migrations) = service.migrations {
        let migrations = Value::Count(migrations);
        rows.push(Row::new("migrations", migrations, "", "migrations"));
    }
    for (reason, time) in service.gpu_starved_s.iter().flatten() {
        if *time > 0.0 || reason == "run_queue" {
            let event = format!("gpu_starved_{reason}");
            let what = format!("GPU starved, {reason}");
            rows.push(Row::new(&event, Value::Figure(*time), "s", &what).or_zero());
        }
    }
    rows
}

/// What the host did, where it was asked for.
fn host(service: &ServiceReport) -> Vec<Row> {
    let mut rows = Vec::new();
    let Some(host) = &service.host else {
        return rows;
    };
    for (class, calls) in &host.syscalls {
        let event = |part: &str| format!("syscalls_{class}{part}");
        let timed = (calls.timed < calls.calls / 2).then_some(Value::Count(calls.timed));
        let seconds = |time: Option<f64>| time.map(Value::Figure);
        let micros = |time: f64| figure(time * 1e6);
        let row = Row::new(
            &event(""),
            Value::Count(calls.calls),
            "",
            &format!("{class} calls"),
        )
        .or_zero()
        .also(&event("_time"), seconds(calls.time_s), "s", |time| {
            format!("{time} s")
        })
        .also(&event("_timed"), timed, "", |timed| {
            format!("{timed} timed")
        })
        .also(&event("_p99"), seconds(calls.p99_s), "s", |_| {
            format!("p99 {} µs", calls.p99_s.map_or_else(String::new, micros))
        });
        rows.push(row);
    }
    for (kind, faults) in &host.page_faults {
        let (event, what) = (format!("page_faults_{kind}"), format!("{kind} page faults"));
        rows.push(Row::new(&event, Value::Count(*faults), "", &what));
    }
    for (event, happened) in &host.tracepoints {
        rows.push(Row::new(event, Value::Count(*happened), "", event));
    }
    rows
}
