//! Does the ledger close? A mixed load, its requests logged by its clients and the counter polled,
//! both on one clock, through `perjoule replay`; and, where the kernel lets it, the agent beside.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::brief;
use super::check::Check;
use super::client::Kind;
use super::perjoule::{Books, Perjoule};
use super::trace::Trace;

const MIXED_S: f64 = 60.0;
/// The floor is learned from time in which nothing is in flight.
const QUIET_S: f64 = 3.0;
/// Until the agent has booked what it saw last.
const BOOKING_S: f64 = 1.5;
const SAME_STEP_S: f64 = 0.02;
const KINDS: [(Kind, usize); 3] = [
    (kind("long-prompt", 2_000, 16), 1),
    (kind("chat", 600, 120), 4),
    (kind("long-answer", 64, 300), 2),
];

const fn kind(name: &'static str, input: u64, output: u64) -> Kind {
    Kind {
        name,
        input,
        output,
    }
}

/// The section's text.
pub(super) fn measure(check: &Check<'_>) -> Result<String> {
    let perjoule = check.perjoule()?;
    let mut server = check.load()?.serve()?;
    let recording = check.folder.join("agent.pj");
    let agent = perjoule.agent(server.port()?, Some(&recording));

    let mut trace = Trace::default();
    check.quiet(&mut trace, QUIET_S)?;
    let served = check.serve(&mut trace, &mut server, "closure", &KINDS, MIXED_S)?;
    check.quiet(&mut trace, BOOKING_S)?;
    let agent = agent.and_then(|mut agent| {
        agent.still_up()?;
        agent.stop()
    });
    drop(server);

    let mut text = String::new();
    let books = perjoule.replay("closure", &check.uuid, &trace, &served, None)?;
    replayed(&mut text, &books, &trace, served.len())?;
    match agent.and_then(|()| beside(perjoule, &recording, check, &trace, &books, served.len())) {
        Ok(beside) => text += &beside,
        Err(why) => writeln!(text, "\nThe agent beside it: skipped: {}", brief(&why))?,
    }
    Ok(text)
}

fn replayed(text: &mut String, books: &Books, trace: &Trace, served: usize) -> Result<()> {
    let span = trace.span()?;
    let joules = |microjoules: i64| microjoules as f64 * 1e-6;
    let counted_uj = (span.to.counter_mj as i64 - span.from.counter_mj as i64) * 1_000;
    writeln!(
        text,
        "{served} requests in {:.1} s, logged by their clients, and the counter as it was polled, through `perjoule replay`:\n",
        span.seconds()
    )?;
    writeln!(text, "| account | J | % |")?;
    writeln!(text, "|---|--:|--:|")?;
    for (name, energy) in &books.accounts_uj {
        let part = *energy as f64 / books.energy_uj as f64 * 100.0;
        writeln!(text, "| {name} | {:.3} | {part:.2} |", joules(*energy))?;
    }
    writeln!(
        text,
        "| sum | {:.3} | |\n\nThe counter rose by {:.3} J: {} µJ more than was booked. Residual {} µJ. \
         Σ over the {} requests {:.3} J.",
        joules(books.energy_uj - books.residual_uj()),
        joules(counted_uj),
        counted_uj - books.energy_uj,
        books.residual_uj(),
        books.requests.len(),
        books.requests_uj() as f64 * 1e-6,
    )?;
    *text += &trace.integrals(&span);
    Ok(())
}

/// What the agent made of the same load, by its own eyes.
fn beside(
    perjoule: &Perjoule,
    recording: &Path,
    check: &Check<'_>,
    trace: &Trace,
    replayed: &Books,
    served: usize,
) -> Result<String> {
    let polled = trace.span()?;
    // The agent places a step a little before or after where it was polled.
    let within = (polled.from.at_s - SAME_STEP_S, polled.to.at_s + SAME_STEP_S);
    let books = Books::read(recording, &check.uuid, within)?;
    let mut text = format!(
        "\nThe agent beside it saw {} of {served} requests; residual {} µJ",
        books.requests.len(),
        books.residual_uj()
    );
    if books.requests.is_empty()
        && let Some(warning) = perjoule.warning()
    {
        write!(text, " (it says: {warning})")?;
    }
    let ends = trace
        .counted_at(books.from_s)
        .zip(trace.counted_at(books.to_s));
    let joules = books.energy_uj as f64 * 1e-6;
    match ends {
        Some((from, to)) => {
            let counted = (to as f64 - from as f64) * 1e-3;
            writeln!(
                text,
                ". It booked {joules:.3} J, and the counter rose by {counted:.3} J over its \
                 intervals ({:+.3} J).",
                joules - counted
            )?;
        }
        None => writeln!(
            text,
            ". It booked {joules:.3} J over a time whose ends were not polled."
        )?,
    }
    let by_log = replayed.requests_uj() as f64 * 1e-6;
    let by_agent = books.requests_uj() as f64 * 1e-6;
    if by_agent > 0.0 {
        writeln!(
            text,
            "Σ requests {by_agent:.1} J, {:+.2} % of what the clients' log gives; unattributed {:.3} J.",
            (by_agent / by_log - 1.0) * 100.0,
            books.account_uj("unattributed") as f64 * 1e-6
        )?;
    }
    Ok(text)
}
