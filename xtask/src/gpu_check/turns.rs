//! What the agent costs the load: tokens a second without it and with it, in turns, and its CPU.

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::check::Check;
use super::client::{Clients, Kind};
use super::trace::boottime_s;
use crate::bench::pairs::Pairs;
use crate::bench::usage;

const TURN_S: f64 = 10.0;
/// After the agent's start or end.
const RAMP: Duration = Duration::from_secs(1);
/// Of different lengths, so that they do not begin and end together: tokens would come in bursts.
const KINDS: [(Kind, usize); 3] = [(chat(83), 3), (chat(120), 3), (chat(167), 2)];

const fn chat(output: u64) -> Kind {
    Kind {
        name: "chat",
        input: 200,
        output,
    }
}

/// The section's text, of so many pairs of turns.
pub(super) fn measure(check: &Check<'_>, pairs: usize) -> Result<String> {
    let perjoule = check.perjoule()?;
    let mut server = check.load()?.serve()?;
    let clients = Clients::start(&server.address, "turns", &KINDS);
    // What runs for the first time is slower.
    sleep(RAMP);
    let mut rates = Pairs::default();
    let mut percents = Vec::new();
    for on in turns(pairs) {
        let mut agent = if on {
            Some(perjoule.agent(server.port()?, None)?)
        } else {
            None
        };
        sleep(RAMP);
        let (tokens, start) = (clients.tokens(), boottime_s());
        match &mut agent {
            Some(agent) => {
                percents.push(usage::percent_of_a_core(agent.id(), check.time(TURN_S))?);
                agent.still_up()?;
            }
            None => sleep(check.time(TURN_S)),
        }
        server.still_up()?;
        let came = clients.tokens() - tokens;
        rates.add(on, came as f64 / (boottime_s() - start));
        ensure!(came > 0 && !clients.have_ended(), "the load stands still");
        if let Some(mut agent) = agent {
            agent.stop()?;
        }
    }
    // The server ends with what is in flight.
    clients.finish()?;
    drop(server);
    let mut text = text(&rates, &percents)?;
    if let Some(warning) = perjoule.warning() {
        writeln!(text, "The agent says: {warning}")?;
    }
    Ok(text)
}

/// Off, on, on, off, …: what drifts, drifts against both.
fn turns(pairs: usize) -> impl Iterator<Item = bool> {
    (0..pairs).flat_map(|pair| {
        if pair % 2 == 0 {
            [false, true]
        } else {
            [true, false]
        }
    })
}

fn text(rates: &Pairs, percents: &[f64]) -> Result<String> {
    let mut text = format!(
        "{} requests at once; `perjoule run` beside them in every other turn.\n\n\
         | tokens/s without | with | lost, % | the agent's CPU, % of a core |\n|--:|--:|--:|--:|\n",
        KINDS.iter().map(|(_, count)| count).sum::<usize>()
    );
    let lost = rates.lost_percent();
    for (((off, on), lost), percent) in rates.off.iter().zip(&rates.on).zip(&lost).zip(percents) {
        writeln!(text, "| {off:.1} | {on:.1} | {lost:+.2} | {percent:.2} |")?;
    }
    let mean = lost.iter().sum::<f64>() / lost.len().max(1) as f64;
    let least = lost.iter().copied().fold(f64::INFINITY, f64::min);
    let most = lost.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let spread = |rates: &[f64]| {
        let most = rates.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        (most / least - 1.0) * 100.0
    };
    writeln!(
        text,
        "\nLost in the mean {mean:+.2} %, {least:+.2} to {most:+.2} %."
    )?;
    if rates.off.len() > 1 {
        let spread = spread(&rates.off);
        writeln!(text, "Without it the turns differ by up to {spread:.2} %.")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_change_their_order_from_pair_to_pair() {
        let three: Vec<bool> = turns(3).collect();
        assert_eq!(three, [false, true, true, false, false, true]);
    }

    #[test]
    fn what_is_lost_is_told_with_how_far_turns_differ_anyway() {
        let mut rates = Pairs::default();
        for (on, rate) in [(false, 100.0), (true, 99.0), (true, 103.0), (false, 102.0)] {
            rates.add(on, rate);
        }
        let text = text(&rates, &[0.5, 0.7]).unwrap();
        assert!(text.contains("| 100.0 | 99.0 | +1.00 | 0.50 |"), "{text}");
        assert!(text.contains("by up to 2.00 %"), "{text}");
    }
}
