//! The table of `perjoule diff`.

use std::fmt::{self, Write};

use super::model::{Comparison, FigureChange, Pair, PartChange, ServiceComparison, Verdict};
use super::statement::{confidence, of_all, of_service, signed};
use crate::report::figures::{UNKNOWN, count, figure, known, with_unit};
use crate::report::prose::{WIDTH, paragraph};

impl Comparison {
    /// The table for people, ending with a line feed. Plain text, at most 80 columns where names are not
    /// longer.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> fmt::Result {
        writeln!(out)?;
        for (side, run) in [("A", &self.a), ("B", &self.b)] {
            let simulated = if run.simulated {
                "   SIMULATED GPU"
            } else {
                ""
            };
            let duration = with_unit(run.duration_s, "s");
            writeln!(out, " {side}  {}   {duration}{simulated}", run.file)?;
        }
        if self.services.is_empty() {
            writeln!(out, "\n no service served a request in either run")?;
        }
        for service in &self.services {
            self.write_service(out, service)?;
        }
        if !self.watts.is_empty() {
            let unit = "mean power, W";
            writeln!(out, "\n {unit:<30}{:>11}{:>11}{:>12}\n", "A", "B", "B - A")?;
            for row in &self.watts {
                let name = format!("{} {}", row.component.name(), row.account);
                write_part(out, &name, row.values)?;
            }
        }
        if !self.conditions.is_empty() {
            writeln!(out, "\n conditions\n")?;
            for condition in &self.conditions {
                let (text, service) = (&condition.condition, &condition.service);
                writeln!(out, "   {text}, {service}: {}", condition.outcome.name())?;
            }
        }
        writeln!(out)?;
        for said in of_all(self) {
            paragraph(out, 3, &said)?;
        }
        writeln!(out)
    }

    fn write_service(&self, out: &mut String, service: &ServiceComparison) -> fmt::Result {
        writeln!(out, "\n service {}\n", service.service)?;
        let interval = format!("{} interval", confidence(self.alpha));
        let head = format!(
            "   {:<17} {:>9} {:>9}{:>10}  {interval}",
            "", "A", "B", "change"
        );
        writeln!(out, "{head}")?;
        let requests = |number: Option<u64>| number.map_or_else(|| UNKNOWN.to_owned(), count);
        writeln!(
            out,
            "   {:<17} {:>9} {:>9}",
            "requests",
            requests(service.requests.a),
            requests(service.requests.b)
        )?;
        for change in &service.figures {
            if change.values.a.is_some() || change.values.b.is_some() {
                write_figure(out, change)?;
            }
        }
        writeln!(out)?;
        for said in of_service(service, self.alpha) {
            paragraph(out, 3, &said)?;
        }
        if !service.parts.is_empty() {
            let unit = "what it is made of, J/request";
            writeln!(
                out,
                "\n   {unit:<28}{:>11}{:>11}{:>12}\n",
                "A", "B", "B - A"
            )?;
            for part in &service.parts {
                if part.values.a == Some(0.0) && part.values.b == Some(0.0) {
                    continue;
                }
                write_part(out, &words(&part.part), part.values)?;
            }
            let beside = service.overhead_and_context;
            if beside.a.is_some() || beside.b.is_some() {
                write_part(out, "beside it: overhead, context", beside)?;
            }
        }
        match &service.off_cpu {
            Some(reasons) => {
                let unit = "off CPU, s/request";
                writeln!(
                    out,
                    "\n   {unit:<28}{:>11}{:>11}{:>12}\n",
                    "A", "B", "B - A"
                )?;
                for reason in reasons {
                    write_part(out, &reason.part, reason.values)?;
                }
            }
            None => writeln!(
                out,
                "\n   off CPU by reason           {UNKNOWN} (--off-cpu)"
            )?,
        }
        match &service.stacks {
            Some(stacks) => write_stacks(out, stacks),
            None => writeln!(out, "   stacks                      {UNKNOWN} (--stacks)"),
        }
    }
}

fn write_figure(out: &mut String, change: &FigureChange) -> fmt::Result {
    let by = change.change.map_or_else(String::new, signed);
    let interval = match change.low.zip(change.high) {
        Some((low, high)) => format!("{} … {}", signed(low), signed(high)),
        None => String::new(),
    };
    let verdict = match change.verdict {
        Verdict::NotShown => "",
        verdict => verdict.name(),
    };
    let line = format!(
        "   {:<17} {:>9} {:>9}{by:>10}  {interval:<19}  {verdict}",
        change.figure.title(),
        known(change.values.a),
        known(change.values.b),
    );
    writeln!(out, "{}", line.trim_end())
}

fn write_part(out: &mut String, name: &str, values: Pair<f64>) -> fmt::Result {
    let difference = values.difference().map_or_else(String::new, |difference| {
        let sign = if difference > 0.0 { "+" } else { "" };
        format!("{sign}{}", figure(difference))
    });
    let line = format!(
        "   {name:<28} {:>10} {:>10}{difference:>12}",
        known(values.a),
        known(values.b),
    );
    writeln!(out, "{}", line.trim_end())
}

fn write_stacks(out: &mut String, stacks: &[PartChange]) -> fmt::Result {
    if stacks.is_empty() {
        return writeln!(out, "   stacks                      no CPU energy moved");
    }
    let unit = "CPU J/request by stack";
    writeln!(
        out,
        "\n   {unit:<28}{:>11}{:>11}{:>12}\n",
        "A", "B", "B - A"
    )?;
    for stack in stacks {
        // The innermost frame, and below it the way to it.
        let (way, inner) = stack.part.rsplit_once(';').unwrap_or(("", &stack.part));
        let inner: String = inner.chars().take(28).collect();
        write_part(out, &inner, stack.values)?;
        if !way.is_empty() {
            let frames: Vec<&str> = way.rsplit(';').take(3).collect();
            let line: String = format!("     from {}", frames.join(" from "));
            writeln!(out, "{}", line.chars().take(WIDTH).collect::<String>())?;
        }
    }
    Ok(())
}

fn words(part: &str) -> String {
    match part.strip_prefix("gpu_") {
        Some(phase) => format!("GPU {}", phase.replace('_', " ")),
        None => part.to_uppercase(),
    }
}
