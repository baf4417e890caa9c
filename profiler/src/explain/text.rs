//! An explanation for people: a value, its unit, what it is, and a remark, as `stat` has it.

use std::fmt::{self, Write};

use super::model::{EnergyParts, Explained, Explanation, WaitsSource};
use crate::report::figures::{UNKNOWN, count, figure, known, percent};
use crate::report::prose::paragraph;
use crate::report::table::row;

impl Explanation {
    /// The text, ending with a line feed.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut out);
        out
    }

    fn write_text(&self, out: &mut String) -> fmt::Result {
        if self.simulated {
            writeln!(out, "\n SIMULATED GPU")?;
        }
        for request in &self.requests {
            write_request(out, request)?;
        }
        writeln!(out)
    }
}

fn write_request(out: &mut String, request: &Explained) -> fmt::Result {
    write!(
        out,
        "\n request {} of {}: {}",
        request.id, request.service, request.route
    )?;
    for told in [request.code, request.outcome].into_iter().flatten() {
        write!(out, ", {told}")?;
    }
    writeln!(out)?;
    if let Some(trace) = &request.trace {
        writeln!(out, " trace {trace}")?;
    }
    writeln!(out)?;
    write_energy(out, request)?;
    write_work(out, request)?;
    write_company(out, request)?;
    write_threads(out, request)?;
    let class = request.class.name();
    writeln!(out)?;
    let because = request.class_because.join("; ");
    paragraph(out, 1, &format!("class {class}: {because}"))?;
    let bound = match &request.bound {
        Some(bound) => format!(
            "bound {}: {} may be another request's of this service, {} hits all of them alike",
            percent(bound.both),
            percent(bound.own),
            percent(bound.common),
        ),
        None => "bound: nobody knows it".to_owned(),
    };
    paragraph(out, 1, &bound)
}

fn write_energy(out: &mut String, request: &Explained) -> fmt::Result {
    let EnergyParts {
        gpu_prefill,
        gpu_decode,
        gpu_wait,
        gpu_not_streamed,
        gpu,
        cpu,
        dram,
        total,
    } = request.energy_uj;
    let bound = request.bound.as_ref().map(|bound| bound.both);
    let bound = bound.filter(|bound| *bound <= 1.0);
    let bound = bound.map_or_else(
        || "bound above 100 %".to_owned(),
        |bound| format!("± {}", percent(bound)),
    );
    let class = request.class.name();
    let remark = match total {
        Some(_) => format!("{bound}, class {class}"),
        None => String::new(),
    };
    row(out, &joules(total), "J", "active energy", &remark)?;
    let position = &request.position;
    let place = place(position.energy, position.requests, "more");
    if !place.is_empty() {
        row(out, "", "", "", &place)?;
    }
    let share = |part: Option<u64>| match (part, total) {
        (Some(part), Some(total)) if total > 0 => percent(part as f64 / total as f64),
        _ => String::new(),
    };
    row(out, &joules(gpu), "J", "  GPU", &share(gpu))?;
    let phases = [
        (gpu_prefill, "    prefill", "its prompt was read"),
        (gpu_decode, "    decode", "its tokens were streamed"),
        (gpu_wait, "    wait", "in flight, neither was seen"),
        (
            gpu_not_streamed,
            "    not streamed",
            "by its time in service",
        ),
    ];
    for (part, name, what) in phases {
        let remark = match share(part) {
            share if share.is_empty() => "older recordings do not hold it".to_owned(),
            share => format!("{share}, {what}"),
        };
        if gpu.is_some() && part != Some(0) {
            row(out, &joules(part), "J", name, &remark)?;
        }
    }
    for (part, name) in [(cpu, "  CPU"), (dram, "  DRAM")] {
        row(out, &joules(part), "J", name, &share(part))?;
    }
    Ok(())
}

fn write_work(out: &mut String, request: &Explained) -> fmt::Result {
    writeln!(out)?;
    let position = &request.position;
    let tokens = &request.tokens;
    let number = |number: Option<u64>| number.map_or_else(|| UNKNOWN.to_owned(), count);
    let mut remark = match tokens.source {
        Some(source) => format!("from {}", source.name()),
        None => String::new(),
    };
    if tokens.calibrated == Some(false) {
        remark += ", a chunk for a token";
    }
    row(out, &number(tokens.output), "", "output tokens", &remark)?;
    let remark = place(position.tokens_out, position.requests, "more");
    if !remark.is_empty() {
        row(out, "", "", "", &remark)?;
    }
    row(out, &number(tokens.input), "", "input tokens", "")?;
    let moments = &request.moments;
    let remark = place(position.duration, position.requests, "longer");
    row(out, &known(moments.duration_s), "s", "duration", &remark)?;
    if moments.ttft_s.is_some() {
        row(out, &known(moments.ttft_s), "s", "to first token", "")?;
    }
    Ok(())
}

fn write_company(out: &mut String, request: &Explained) -> fmt::Result {
    if let Some(company) = &request.company {
        let remark = format!(
            "{} to {}, itself included; met {}",
            count(company.least),
            count(company.most),
            count(company.met)
        );
        row(out, &figure(company.mean), "", "in flight, mean", &remark)?;
    }
    let Some(base) = &request.base else {
        let remark = "who held the GPUs then is not known";
        return row(out, UNKNOWN, "J", "idle, in no request's", remark);
    };
    let gpus = match base.gpus {
        1 => "of 1 GPU in its time".to_owned(),
        gpus => format!("of {} GPUs in its time", count(gpus)),
    };
    row(
        out,
        &figure(base.idle_j),
        "J",
        "idle, in no request's",
        &gpus,
    )?;
    row(
        out,
        &figure(base.context_j),
        "J",
        "open contexts, likewise",
        "",
    )?;
    let remark = "what an equal part of both would be";
    row(
        out,
        &known(base.equal_part_j),
        "J",
        "  for each in flight",
        remark,
    )
}

fn write_threads(out: &mut String, request: &Explained) -> fmt::Result {
    writeln!(
        out,
        "\n All threads of the service in that time, not this request's alone\n"
    )?;
    let waits = request.service_threads.clone().unwrap_or_default();
    let remark = match (waits.on_cpu_s, waits.source) {
        (Some(_), WaitsSource::Seconds) => "each second in proportion",
        (Some(_), WaitsSource::Stacks) => "by samples",
        (None, _) => "",
    };
    row(out, &known(waits.on_cpu_s), "s", "on CPU", remark)?;
    row(out, &known(waits.run_queue_s), "s", "in run queue", "")?;
    match &waits.off_cpu_s {
        None => row(out, UNKNOWN, "s", "off CPU, by reason", ""),
        Some(reasons) => {
            let remark = match waits.least_s {
                Some(least) => format!("waits of {} ms or more", figure(least * 1e3)),
                None => String::new(),
            };
            row(
                out,
                &figure(reasons.values().sum()),
                "s",
                "off CPU",
                &remark,
            )?;
            for (reason, seconds) in reasons {
                row(out, &figure(*seconds), "s", &format!("  {reason}"), "")?;
            }
            Ok(())
        }
    }
}

/// Where it stands among the others of its service.
fn place(share: Option<f64>, requests: u64, than: &str) -> String {
    match share {
        Some(share) => format!(
            "{than} than {:.0} % of {} others",
            (share * 100.0).floor(),
            count(requests.saturating_sub(1))
        ),
        None => String::new(),
    }
}

/// To the microjoule, so that parts are seen to add up.
fn joules(microjoules: Option<u64>) -> String {
    match microjoules {
        Some(all) => format!("{}.{:06}", count(all / 1_000_000), all % 1_000_000),
        None => UNKNOWN.to_owned(),
    }
}
