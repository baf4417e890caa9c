//! When a request was in prefill: the window that ends at its first data.
//!
//! In: start, first data and input of each streamed request of a service, in order of first data;
//! prompts whose first data left together were read in one step. Out: the step's length and how
//! uncertain it is.
//!
//! An engine takes up a prompt when it has read the request and its last prompt is done, so the
//! time from the later of these to first data is the prefill step, plus what the request waited
//! for the running decode step, plus queueing for other reasons. The learned speed says how long
//! the step should be; the observed time bounds it from above, and from below by one decode step
//! unless the request plainly queued. The speed comes from the lower envelope of observed time
//! against input: what lies far above it has queued and says nothing. Slopes are taken between
//! small and large inputs, so that fixed latency and constant overhead bytes cancel. What a
//! request says counts by the part of its time that no decode step can have taken.
//!
//! Source of the slope: H. Theil 1950, P. K. Sen 1968 (median of pairwise slopes).

use std::collections::VecDeque;
use std::time::Duration;

use super::Input;
use crate::clock::Timestamp;

/// Seconds per token before anything is learned: a 7-billion-parameter model on one data-centre
/// GPU reads 10,000–15,000 tokens a second.
const START_SLOPE: f64 = 1.0 / 12_000.0;
/// Bytes of a request's body per token: 4–4.5 of English text, and JSON around it.
const BYTES_PER_TOKEN: f64 = 5.0;
/// A decode step before any chunk was seen, seconds.
const START_SPACING: f64 = 0.015;
/// First data this close together left the same step.
pub(super) const SAME_STEP: Duration = Duration::from_millis(3);
/// What passes between two prefill steps in a row, seconds.
const BACK_TO_BACK: f64 = 0.002;
/// Requests that are remembered.
const REMEMBERED: usize = 64;
/// With fewer the starting speed holds.
const FEWEST: usize = 4;
/// With fewer, slopes between pairs say less than ratios.
const ENOUGH_FOR_PAIRS: usize = 16;
/// How many requests a full memory waits for before it is looked at again.
const REFIT_EVERY: u32 = 8;
/// A request that took this many times its prefill has queued, once the speed is learned …
const QUEUED: f64 = 1.7;
/// … and before.
const QUEUED_AT_START: f64 = 4.0;

/// A silence shorter than this part of the likely length was broken by a late output, or is a
/// part's.
const LEAST_OF_LIKELY: f64 = 0.5;
/// Where large prompts are silent for less than this part of what small ones are, for their size,
/// streams go on meanwhile.
const LEAST_OF_SMALL: f64 = 0.6;

#[derive(Debug, Clone, Copy)]
struct Sample {
    tokens: f64,
    seconds: f64,
    /// How much of that it may have waited for a decode step to end.
    wait: f64,
}

impl Sample {
    /// Seconds per token, if it waited for as long as is likely.
    fn slope(&self) -> f64 {
        (self.seconds - self.wait).max(0.0) / self.tokens
    }

    /// How far its time is its prompt's alone, up to 1: a prompt shorter than the decode step that it
    /// may have waited for says nothing of the speed.
    fn weight(&self) -> f64 {
        (1.0 - 2.0 * self.wait / self.seconds).max(0.0)
    }
}

/// A request that was in a prefill step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prompt {
    /// When the server read it.
    pub(super) start: Timestamp,
    /// How big it is.
    pub(super) input: Input,
}

impl Prompt {
    /// Its size in tokens, roughly where only bytes are known.
    pub(super) fn tokens(&self) -> f64 {
        match self.input {
            Input::Tokens(tokens) => tokens as f64,
            Input::Bytes(bytes) => bytes as f64 / BYTES_PER_TOKEN,
        }
    }
}

/// A prefill step stalls every stream: how long nobody had put anything out at its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    /// The last output before it.
    pub(super) from: Timestamp,
    /// Its last part, of which nobody has looked yet, seconds: outputs in it may be unknown.
    pub(super) unseen: f64,
}

/// A prefill step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// Its length; it ends at first data.
    pub(super) seconds: f64,
    /// Half-width of a 95 % interval of the length.
    pub(super) uncertainty: f64,
    /// Size of all prompts in it.
    pub(super) tokens: f64,
    /// Its engine reads prompts in parts, beside decode steps.
    pub(super) is_mixed: bool,
}

impl Window {
    /// The prompt's part of the step.
    pub(super) fn part(&self, prompt: &Prompt) -> f64 {
        if self.tokens > 0.0 {
            prompt.tokens() / self.tokens
        } else {
            0.0
        }
    }
}

/// Learns one service's prefill speed.
#[derive(Debug, Default)]
pub(super) struct PrefillSpeed {
    samples: VecDeque<Sample>,
    unfitted: u32,
    slope: Option<f64>,
    spacing: Option<f64>,
    /// Between two outputs of different steps, seconds.
    gap: Option<f64>,
    previous: Option<Timestamp>,
    is_held: bool,
    /// Size of prompts and how long nothing went out before their first data.
    silences: VecDeque<(f64, f64)>,
    /// Whether streams stall for as long as a prompt is long, once that was seen.
    stalls: Option<bool>,
}

impl PrefillSpeed {
    /// A speed that is not learned, tokens a second.
    pub(super) fn held(speed: f64) -> Self {
        Self {
            slope: (speed.is_finite() && speed > 0.0).then(|| 1.0 / speed),
            is_held: true,
            ..Self::default()
        }
    }

    /// Learns the time between two chunks of one stream: a decode step.
    pub(super) fn chunk_spacing(&mut self, seconds: f64) {
        let spacing = self.spacing.get_or_insert(seconds);
        // A prefill step of somebody else stalls the stream; that is not a decode step.
        *spacing += 0.02 * (seconds.min(2.0 * *spacing) - *spacing);
    }

    /// Learns the time between two outputs of different steps.
    pub(super) fn output_gap(&mut self, seconds: f64) {
        // The tenth part of them that is the shortest: the others have steps without output
        // between them, or a prompt.
        let gap = self.gap.get_or_insert(seconds);
        *gap *= if seconds < *gap {
            1.0 - 0.09
        } else {
            1.0 + 0.01
        };
    }

    /// A decode step, seconds: shorter than the time between chunks where these are of several
    /// tokens.
    fn decode_step(&self) -> f64 {
        let spacing = self.spacing();
        self.gap
            .map_or(spacing, |gap| gap.clamp(spacing / 8.0, spacing))
    }

    /// Time between two chunks of one stream, seconds.
    pub(super) fn spacing(&self) -> f64 {
        self.spacing.unwrap_or(START_SPACING)
    }

    /// How long the prompt is likely read for, seconds; an hour at most.
    pub(super) fn likely(&self, prompt: Prompt) -> f64 {
        (self.slope.unwrap_or(START_SLOPE) * prompt.tokens()).min(3_600.0)
    }

    /// The window of requests whose first data left the same step, the last at `first`; steps come
    /// in order of time.
    pub(super) fn step(
        &mut self,
        first: Timestamp,
        prompts: &[Prompt],
        silence: Option<Silence>,
    ) -> Window {
        let tokens = prompts.iter().map(|prompt| prompt.tokens()).sum();
        let start = prompts
            .iter()
            .map(|prompt| prompt.start)
            .min()
            .unwrap_or(first);
        let free = self.previous.map_or(start, |previous| previous.max(start));
        let likely = tokens * self.slope.unwrap_or(START_SLOPE);
        let silent = silence.map(|silence| first.seconds_since(silence.from.max(free)));
        let silence = silence.filter(|silence| silence.from > free);
        // It lasts for longer than what nobody has looked at: nothing was missed.
        let mut is_stall = silence.is_some_and(|silence| likely > silence.unseen);
        if is_stall && let Some(silence) = silence {
            self.heard(tokens, first.seconds_since(silence.from));
        }
        let stalls = self.stalls == Some(true);
        let silence = silence
            .filter(|_| stalls && silent.is_some_and(|silent| silent >= LEAST_OF_LIKELY * likely));
        is_stall &= silence.is_some();
        let seconds = first.seconds_since(silence.map_or(free, |silence| silence.from));
        self.previous = self.previous.max(Some(first));
        if seconds == 0.0 {
            // Told after the step that it left with: only the speed says how long it took.
            let expected = tokens * self.slope.unwrap_or(START_SLOPE);
            return Window {
                seconds: expected,
                uncertainty: 0.5 * expected,
                tokens,
                is_mixed: self.stalls == Some(false),
            };
        }
        let slack = match silence {
            Some(_) if is_stall => BACK_TO_BACK,
            Some(silence) => self.decode_step() + silence.unseen,
            // A prompt that came while another was read is read next, before any decode step.
            None if free > start => BACK_TO_BACK,
            None => self.decode_step(),
        };
        if tokens > 0.0 && !self.is_held {
            self.learn(Sample {
                tokens,
                seconds,
                wait: 0.5 * slack,
            });
        }
        let expected = tokens * self.slope.unwrap_or(START_SLOPE);
        let queued = if self.slope.is_some() {
            QUEUED
        } else {
            QUEUED_AT_START
        };
        let least = (seconds - slack).max(0.0);
        let excess = (least - expected).max(0.0);
        // How far the observed time is believed where it exceeds the expected one: wholly at
        // first, not at all once it can only be queueing, and no jump between.
        let queueing = (queued - 1.0) * expected;
        let belief = if is_stall {
            1.0
        } else if queueing > 0.0 {
            (2.0 - 2.0 * excess / queueing).clamp(0.0, 1.0)
        } else {
            0.0
        };
        let length = (expected + belief * excess).min(seconds);
        let uncertainty = belief * 0.5 * (seconds - least) + (1.0 - belief) * 0.4 * expected;
        // Streams that were silent for shorter or longer than that say otherwise: the prompt was
        // cached, or read in parts, or an output was late.
        let doubt = silent.map_or(0.0, |silent| (silent - length).abs());
        Window {
            seconds: length,
            uncertainty: uncertainty.max(doubt),
            tokens,
            is_mixed: self.stalls == Some(false),
        }
    }

    /// Learns whether a prompt stalls the streams for as long as it is long: in an engine that
    /// reads it in parts beside decode steps, the silence before first data is the last part's.
    fn heard(&mut self, tokens: f64, seconds: f64) {
        if self.silences.len() == REMEMBERED {
            self.silences.pop_front();
        }
        self.silences.push_back((tokens, seconds));
        if self.silences.len() < ENOUGH_FOR_PAIRS {
            return;
        }
        let mut sorted: Vec<(f64, f64)> = self.silences.iter().copied().collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (small, large) = sorted.split_at(sorted.len() / 2);
        let median = |half: &[(f64, f64)]| {
            let mut ratios: Vec<f64> = half.iter().map(|(tokens, s)| s / tokens).collect();
            quantile(&mut ratios, 0.5)
        };
        if let (Some(small), Some(large)) = (median(small), median(large)) {
            self.stalls = Some(large >= LEAST_OF_SMALL * small);
        }
    }

    fn learn(&mut self, sample: Sample) {
        if self.samples.len() == REMEMBERED {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.unfitted += 1;
        let enough = self.samples.len() >= FEWEST;
        if enough && (self.samples.len() < REMEMBERED || self.unfitted >= REFIT_EVERY) {
            self.unfitted = 0;
            self.fit();
        }
    }

    fn fit(&mut self) {
        let slopes_of = |samples: &[Sample], share: f64| {
            let slopes = samples
                .iter()
                .map(|sample| (sample.slope(), sample.weight()));
            weighted_quantile(slopes.collect(), share)
        };
        let Some(envelope) = slopes_of(self.samples.make_contiguous(), 0.25) else {
            return;
        };
        let beyond = |sample: &Sample| QUEUED * envelope * sample.tokens + 2.0 * sample.wait;
        let mut near: Vec<Sample> = self
            .samples
            .iter()
            .copied()
            .filter(|sample| sample.seconds <= beyond(sample))
            .collect();
        near.sort_by(|a, b| a.tokens.total_cmp(&b.tokens));
        let half = near.len() / 2;
        let (small, large) = near.split_at(half);
        let mut slopes: Vec<f64> = small
            .iter()
            .zip(large)
            .filter(|(small, large)| large.tokens > 1.3 * small.tokens)
            .map(|(small, large)| {
                (large.seconds - large.wait - small.seconds + small.wait)
                    / (large.tokens - small.tokens)
            })
            .collect();
        let slope = if slopes.len() >= ENOUGH_FOR_PAIRS / 2 {
            quantile(&mut slopes, 0.5)
        } else {
            slopes_of(&near, 0.5)
        };
        self.slope = slope.filter(|slope| *slope > 0.0).or(self.slope);
    }
}

fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let place = (last as f64 * share) as usize;
    let (_, value, _) = values.select_nth_unstable_by(place, f64::total_cmp);
    Some(*value)
}

/// The least value that this share of all weight does not exceed; `None` without any weight.
fn weighted_quantile(mut values: Vec<(f64, f64)>, share: f64) -> Option<f64> {
    values.retain(|(_, weight)| *weight > 0.0);
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut rest = share * values.iter().map(|(_, weight)| weight).sum::<f64>();
    let value = values.iter().find(|(_, weight)| {
        rest -= weight;
        rest <= 0.0
    });
    value.or(values.last()).map(|(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(speed: &mut PrefillSpeed, at: &mut Timestamp, tokens: u64, extra: f64) -> Window {
        let start = *at;
        let seconds = tokens as f64 / 5_000.0 + extra;
        let first = start.plus(Duration::from_secs_f64(seconds));
        *at = first.plus(Duration::from_millis(400));
        speed.step(
            first,
            &[Prompt {
                start,
                input: Input::Tokens(tokens),
            }],
            None,
        )
    }

    #[test]
    fn a_speed_far_from_the_starting_one_is_learned() {
        let mut speed = PrefillSpeed::default();
        let mut at = Timestamp(1_000_000_000);
        for round in 0..40 {
            serve(&mut speed, &mut at, 200 + 53 * (round % 17), 0.004);
        }
        let window = serve(&mut speed, &mut at, 1_000, 0.004);
        assert!((window.seconds - 0.2).abs() < 0.01, "{window:?}");
    }

    #[test]
    fn prompts_shorter_than_a_decode_step_do_not_speed_up_the_learned_speed() {
        for (short, rounds) in [(2, 6), (2, 60), (5, 6), (5, 60)] {
            let mut speed = PrefillSpeed::default();
            let mut at = Timestamp(1_000_000_000);
            for round in 0..rounds {
                let tokens = if round % 6 < short { 20 } else { 2_000 };
                serve(&mut speed, &mut at, tokens, 0.004);
                let likely = speed.likely(Prompt {
                    start: at,
                    input: Input::Tokens(1_000),
                });
                if round > 4 {
                    assert!(
                        (likely - 0.2).abs() < 0.02,
                        "{short} of 6, after {round}: {likely} s"
                    );
                }
            }
        }
    }

    #[test]
    fn requests_that_queued_do_not_slow_the_learned_speed() {
        let mut speed = PrefillSpeed::default();
        let mut at = Timestamp(1_000_000_000);
        for round in 0..60 {
            let queue = if round % 3 == 0 { 1.5 } else { 0.004 };
            serve(&mut speed, &mut at, 200 + 53 * (round % 17), queue);
        }
        let window = serve(&mut speed, &mut at, 1_000, 2.0);
        assert!((window.seconds - 0.2).abs() < 0.02, "{window:?}");
    }

    /// A prompt that waits for half a second, before whose first data nothing goes out for so long.
    fn after_silence(
        speed: &mut PrefillSpeed,
        at: &mut Timestamp,
        tokens: u64,
        silent: f64,
    ) -> Window {
        let start = *at;
        let from = start.plus(Duration::from_millis(500));
        let first = from.plus(Duration::from_secs_f64(silent));
        *at = first.plus(Duration::from_millis(400));
        let prompt = Prompt {
            start,
            input: Input::Tokens(tokens),
        };
        speed.step(first, &[prompt], Some(Silence { from, unseen: 0.0 }))
    }

    #[test]
    fn streams_that_stall_show_a_steps_length_whatever_speed_is_believed() {
        for believed in [3_500.0, 6_500.0] {
            let mut speed = PrefillSpeed::held(believed);
            let mut at = Timestamp(1_000_000_000);
            for round in 0..40 {
                let tokens = 200 + 53 * (round % 17);
                after_silence(&mut speed, &mut at, tokens, tokens as f64 / 5_000.0);
            }
            let window = after_silence(&mut speed, &mut at, 1_000, 0.2);
            assert!((window.seconds - 0.2).abs() < 0.01, "{window:?}");
            let alone = serve(&mut speed, &mut at, 1_000, 1.0);
            assert!(
                (alone.seconds - 1_000.0 / believed).abs() < 0.02,
                "a held speed is not learned: {alone:?}"
            );
        }
    }

    #[test]
    fn a_silence_that_does_not_grow_with_the_prompt_says_nothing_of_it() {
        let mut speed = PrefillSpeed::held(5_000.0);
        let mut at = Timestamp(1_000_000_000);
        for round in 0..40 {
            after_silence(&mut speed, &mut at, 200 + 53 * (round % 17), 0.05);
        }
        // The last part of a prompt that is read beside decode steps.
        let window = after_silence(&mut speed, &mut at, 1_000, 0.05);
        assert!((window.seconds - 0.2).abs() < 0.02, "{window:?}");
        assert!(window.is_mixed);
        assert!(
            window.uncertainty >= 0.14,
            "silence and speed disagree: {window:?}"
        );
    }

    #[test]
    fn a_step_is_never_longer_than_start_to_first_data() {
        let prompt = Prompt {
            start: Timestamp(5_000_000),
            input: Input::Tokens(1_000_000),
        };
        let window = PrefillSpeed::default().step(Timestamp(6_000_000), &[prompt], None);
        assert!(window.seconds <= 0.001);
    }

    #[test]
    fn prompts_of_one_step_share_it_by_size() {
        let prompt = |tokens| Prompt {
            start: Timestamp(0),
            input: Input::Tokens(tokens),
        };
        let window =
            PrefillSpeed::default().step(Timestamp(100_000_000), &[prompt(300), prompt(900)], None);
        assert_eq!(
            (window.part(&prompt(300)), window.part(&prompt(900))),
            (0.25, 0.75)
        );
    }
}
