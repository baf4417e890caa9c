//! Which requests are sent, and when: a pure function of the seed.
//!
//! Lengths are lognormal, as in public conversation traces: the Azure LLM inference trace of 2023
//! (Patel et al., Splitwise, ISCA 2024) has medians of about 1,000 tokens in and 130 out, means of
//! 1,155 and 211. A deviation of 0.7 in and 0.9 out gives means of 1,150 and about 200.

use clap::ValueEnum;

use crate::random::Random;

/// Longest prompt and longest answer, tokens.
const MOST_IN: f64 = 8_192.0;
const MOST_OUT: f64 = 1_024.0;

/// What to send.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadConfig {
    /// Requests a second in the mean
    #[arg(long, default_value_t = 2.5)]
    pub rate: f64,
    /// Send for so many seconds
    #[arg(long, default_value_t = 40.0)]
    pub seconds: f64,
    /// The same seed sends the same requests at the same times
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Median length of prompts, tokens (at most 8,192 each)
    #[arg(long, default_value_t = 900.0)]
    pub median_in: f64,
    /// Deviation of the logarithm of prompts' length
    #[arg(long, default_value_t = 0.7)]
    pub sigma_in: f64,
    /// Median length of answers, tokens (at most 1,024 each)
    #[arg(long, default_value_t = 140.0)]
    pub median_out: f64,
    /// Deviation of the logarithm of answers' length
    #[arg(long, default_value_t = 0.9)]
    pub sigma_out: f64,
    /// Share of requests whose answer streams
    #[arg(long, default_value_t = 1.0)]
    pub stream_share: f64,
    /// Share of streams whose client leaves after a random number of events
    #[arg(long, default_value_t = 0.0)]
    pub abort_share: f64,
    /// Routes to use in turn
    #[arg(long, value_delimiter = ',', default_values = ["chat"])]
    pub routes: Vec<Routes>,
    /// Ask streams for a usage object at their end
    #[arg(long)]
    pub include_usage: bool,
    /// The model's name
    #[arg(long, default_value = "simulated-8b")]
    pub model: String,
}

/// A route to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Routes {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// A request to come.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Its number, from 0.
    pub number: u64,
    /// When it is sent, seconds from the start.
    pub at_s: f64,
    /// Tokens of its prompt.
    pub prompt_tokens: u64,
    /// Tokens it asks for.
    pub output_tokens: u64,
    /// Whether its answer streams.
    pub stream: bool,
    /// The client leaves after so many events.
    pub leave_after: Option<u64>,
    /// Its route.
    pub route: Routes,
    /// Seed of its prompt's words.
    pub text_seed: u64,
}

impl Planned {
    /// Its `x-request-id` in a load of this seed.
    pub fn x_request_id(&self, seed: u64) -> String {
        format!("load-{seed}-{}", self.number)
    }
}

/// The requests of a load, in the order of their times.
pub fn plan(config: &LoadConfig) -> impl Iterator<Item = Planned> + use<> {
    let config = config.clone();
    let mut random = Random::new(config.seed);
    let mut at_s = 0.0;
    let mut number = 0;
    std::iter::from_fn(move || {
        at_s += random.exponential() / config.rate;
        if at_s >= config.seconds {
            return None;
        }
        let prompt_tokens = length(&mut random, config.median_in, config.sigma_in, MOST_IN);
        let output_tokens = length(&mut random, config.median_out, config.sigma_out, MOST_OUT);
        let stream = random.uniform() < config.stream_share;
        let leaves = random.uniform() < config.abort_share;
        let leave_after = 1 + random.below(output_tokens as usize) as u64;
        let text_seed = random.bits();
        let routes = &config.routes;
        let route = routes.get(number as usize % routes.len().max(1)).copied();
        let planned = Planned {
            number,
            at_s,
            prompt_tokens,
            output_tokens,
            stream,
            leave_after: (stream && leaves).then_some(leave_after),
            route: route.unwrap_or(Routes::Chat),
            text_seed,
        };
        number += 1;
        Some(planned)
    })
}

fn length(random: &mut Random, median: f64, sigma: f64, most: f64) -> u64 {
    random.lognormal(median, sigma).round().clamp(1.0, most) as u64
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        config: LoadConfig,
    }

    fn config(line: &str) -> LoadConfig {
        Line::parse_from(std::iter::once("load").chain(line.split_whitespace())).config
    }

    #[test]
    fn the_same_seed_gives_the_same_load_and_another_seed_another() {
        let of = |line: &str| plan(&config(line)).collect::<Vec<_>>();
        assert_eq!(
            of("--seed 7 --abort-share 0.3"),
            of("--seed 7 --abort-share 0.3")
        );
        assert_ne!(of("--seed 7"), of("--seed 8"));
    }

    #[test]
    fn lengths_and_gaps_are_those_of_conversations() {
        let mut all: Vec<Planned> = plan(&config("--rate 50 --seconds 400")).collect();
        let count = all.len() as f64;
        assert!(
            (19_300.0..20_700.0).contains(&count),
            "{count} requests at 50/s in 400 s"
        );
        let mean_in = all.iter().map(|p| p.prompt_tokens).sum::<u64>() as f64 / count;
        let mean_out = all.iter().map(|p| p.output_tokens).sum::<u64>() as f64 / count;
        assert!((1_100.0..1_200.0).contains(&mean_in), "{mean_in}");
        assert!((190.0..215.0).contains(&mean_out), "{mean_out}");
        all.sort_by_key(|p| p.prompt_tokens);
        assert!((870..930).contains(&all[all.len() / 2].prompt_tokens));
        all.sort_by_key(|p| p.output_tokens);
        assert!((135..145).contains(&all[all.len() / 2].output_tokens));
    }

    #[test]
    fn only_streams_are_left_early_and_never_after_their_end() {
        let line = "--rate 50 --stream-share 0.5 --abort-share 0.4 --routes chat,completions";
        let all: Vec<Planned> = plan(&config(line)).collect();
        let share = |count: usize| count as f64 / all.len() as f64;
        assert!((0.45..0.55).contains(&share(all.iter().filter(|p| p.stream).count())));
        let leavers: Vec<_> = all.iter().filter(|p| p.leave_after.is_some()).collect();
        assert!((0.16..0.24).contains(&share(leavers.len())));
        for planned in leavers {
            assert!(planned.stream);
            assert!((1..=planned.output_tokens).contains(&planned.leave_after.unwrap()));
        }
        assert_eq!(all[1].route, Routes::Completions);
    }
}
