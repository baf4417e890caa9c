//! The one choke point for label values that a workload controls.
//!
//! A process can call itself anything and there can be any number of them, so names are cleaned,
//! cut and capped here and nowhere else. What is folded is counted.

use std::collections::HashMap;
use std::sync::Arc;

/// The longest label value, in bytes.
pub const MAX_LENGTH: usize = 128;

/// What is folded together once the cap is reached.
pub const OTHER: &str = "other";

/// Makes any text a label value: control characters become U+FFFD, at most [`MAX_LENGTH`] bytes,
/// cut between characters; nothing becomes `unknown`, because an empty label is no label.
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len().min(MAX_LENGTH));
    for character in text.trim().chars() {
        let shown = if character.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            character
        };
        if cleaned.len() + shown.len_utf8() > MAX_LENGTH {
            break;
        }
        cleaned.push(shown);
    }
    if cleaned.is_empty() {
        cleaned.push_str("unknown");
    }
    cleaned
}

/// The distinct values of one label: a number for each, at most `cap` of them and `other`.
#[derive(Debug, Clone)]
pub(super) struct Names {
    cap: usize,
    numbers: HashMap<Arc<str>, usize>,
    names: Vec<Arc<str>>,
    folded: u64,
}

impl Names {
    pub(super) fn new(cap: usize) -> Self {
        Self {
            cap,
            numbers: HashMap::new(),
            names: Vec::new(),
            folded: 0,
        }
    }

    /// The number of a name; equal names share one, and so their totals.
    pub(super) fn number(&mut self, name: &str) -> usize {
        let name = clean(name);
        if let Some(&number) = self.numbers.get(name.as_str()) {
            return number;
        }
        if self.names.len() < self.cap || name == OTHER {
            return self.add(name.into());
        }
        self.folded += 1;
        match self.numbers.get(OTHER) {
            Some(&number) => number,
            None => self.add(OTHER.into()),
        }
    }

    fn add(&mut self, name: Arc<str>) -> usize {
        let number = self.names.len();
        self.numbers.insert(Arc::clone(&name), number);
        self.names.push(name);
        number
    }

    /// All names, in the order of their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(AsRef::as_ref)
    }

    /// The name of a number that [`Self::number`] gave.
    pub(super) fn name(&self, number: usize) -> &str {
        self.names.get(number).map_or(OTHER, AsRef::as_ref)
    }

    /// How many names were folded into `other`.
    pub(super) fn folded(&self) -> u64 {
        self.folded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_become_short_printable_labels() {
        assert_eq!(clean("vllm"), "vllm");
        assert_eq!(clean("  \n "), "unknown");
        assert_eq!(clean("a\nb\u{1b}[2J"), "a\u{fffd}b\u{fffd}[2J");
        let long = clean(&"é".repeat(500));
        assert_eq!(long.len(), MAX_LENGTH);
        let odd = clean(&format!("x{}", "é".repeat(500)));
        assert_eq!(odd.len(), MAX_LENGTH - 1, "cut between characters");
    }

    #[test]
    fn names_above_the_cap_share_one_bucket_and_are_counted() {
        let mut names = Names::new(2);
        assert_eq!((names.number("a"), names.number("b")), (0, 1));
        let other = names.number("c");
        assert_eq!(names.name(other), OTHER);
        assert_eq!(names.number("d"), other);
        assert_eq!(names.number("a"), 0, "known names keep their place");
        assert_eq!(names.folded(), 2);
    }
}
