//! Text: prompts for the load, answers for the front, and what counts as a token.
//!
//! A token is a word between white space. Words have 1 to 14 letters and texts differ in how long
//! their words are, so a prompt's bytes tell its tokens only roughly, as in life.

use std::ops::Range;

use crate::random::Random;

const SHORT: &[&str] = &[
    "a", "the", "of", "to", "in", "is", "it", "we", "you", "he", "on", "as", "at", "be", "by",
    "or", "an", "if", "not", "but", "can", "one", "two", "all", "how", "why", "what", "when",
    "who", "its", "our", "out", "new", "old", "day", "way", "man", "run", "sum", "map", "key",
    "log", "set", "put", "get", "time", "year", "work", "side", "same", "then", "than", "only",
];

const LONG: &[&str] = &[
    "water",
    "house",
    "state",
    "think",
    "again",
    "place",
    "great",
    "every",
    "number",
    "people",
    "little",
    "always",
    "should",
    "through",
    "another",
    "because",
    "example",
    "question",
    "between",
    "machine",
    "measure",
    "possible",
    "sentence",
    "computer",
    "different",
    "important",
    "beginning",
    "character",
    "interface",
    "operation",
    "generation",
    "processing",
    "collection",
    "description",
    "temperature",
    "information",
    "development",
    "environment",
    "interesting",
    "recommendation",
    "characteristic",
    "implementation",
    "responsibility",
];

/// Tokens of a text.
pub fn count_tokens(text: &str) -> u64 {
    text.split_ascii_whitespace().count() as u64
}

/// A prompt of exactly `tokens` tokens.
pub fn prompt(random: &mut Random, tokens: u64) -> String {
    let long_words = 0.15 + 0.5 * random.uniform();
    let mut text = String::with_capacity(tokens as usize * 7);
    for index in 0..tokens {
        if index > 0 {
            text.push(' ');
        }
        text.push_str(word(random, long_words));
    }
    text
}

/// These tokens of answer `id`, white space before each; needs no escape in JSON.
pub fn answer_text(id: u64, tokens: Range<u64>) -> String {
    let mut text = String::new();
    for index in tokens {
        let mut random = Random::new(id.rotate_left(32) ^ index);
        text.push(' ');
        text.push_str(word(&mut random, 0.4));
    }
    text
}

fn word(random: &mut Random, long_words: f64) -> &'static str {
    let words = if random.uniform() < long_words {
        LONG
    } else {
        SHORT
    };
    words.get(random.below(words.len())).copied().unwrap_or("a")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_has_the_tokens_asked_for_and_its_bytes_do_not_tell_them() {
        let mut random = Random::new(3);
        let prompts: Vec<String> = (0..200).map(|_| prompt(&mut random, 500)).collect();
        assert!(prompts.iter().all(|text| count_tokens(text) == 500));
        let bytes: Vec<f64> = prompts
            .iter()
            .map(|text| text.len() as f64 / 500.0)
            .collect();
        let mean = bytes.iter().sum::<f64>() / 200.0;
        let variance = bytes.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / 200.0;
        assert!((5.0..8.0).contains(&mean), "{mean} bytes a token");
        assert!(
            (0.08..0.25).contains(&(variance.sqrt() / mean)),
            "{} of {mean}",
            variance.sqrt()
        );
    }

    #[test]
    fn answers_need_no_escape() {
        for word in SHORT.iter().chain(LONG) {
            assert!(word.bytes().all(|byte| byte.is_ascii_lowercase()), "{word}");
        }
    }
}
