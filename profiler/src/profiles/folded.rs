//! Energy or waiting by stack as lines: `frame;frame;frame figure`, what flame graph tools read; beside
//! another recording's, `frame;frame before after`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::SEPARATOR;

/// What stands on one stack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Energy.
    pub microjoules: u64,
    /// Samples of code; 0 for frames that are no code.
    pub samples: u64,
    /// Nanoseconds that threads waited here.
    pub waited_nanos: u64,
}

/// Which figure of a stack is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Microjoules.
    Energy,
    /// Microseconds of waiting.
    Waiting,
}

impl Figure {
    const fn of(self, weight: Weight) -> u64 {
        match self {
            Self::Energy => weight.microjoules,
            Self::Waiting => weight.waited_nanos / 1_000,
        }
    }
}

/// Energy and waiting by stack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stacks {
    weights: BTreeMap<Arc<str>, Weight>,
}

impl Stacks {
    /// Adds to a stack.
    pub fn add(&mut self, stack: &str, more: Weight) {
        match self.weights.get_mut(stack) {
            Some(weight) => {
                weight.microjoules += more.microjoules;
                weight.samples += more.samples;
                weight.waited_nanos += more.waited_nanos;
            }
            None => {
                self.weights.insert(stack.into(), more);
            }
        }
    }

    /// All stacks with what stands on each, in the order of their texts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Weight)> {
        self.weights
            .iter()
            .map(|(stack, weight)| (&**stack, *weight))
    }

    /// A line for each stack that has any.
    pub fn lines(&self, figure: Figure) -> Vec<String> {
        self.of(figure)
            .map(|(stack, figure)| format!("{} {figure}", joined(stack)))
            .collect()
    }

    fn of(&self, figure: Figure) -> impl Iterator<Item = (&str, u64)> {
        self.iter()
            .map(move |(stack, weight)| (stack, figure.of(weight)))
            .filter(|(_, figure)| *figure > 0)
    }

    /// Lines of before and now.
    pub fn lines_against(&self, before: &Self, figure: Figure) -> Vec<String> {
        let mut both: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
        for (place, stacks) in [before, self].into_iter().enumerate() {
            for (stack, figure) in stacks.of(figure) {
                let figures = both.entry(stack).or_default();
                if let Some(there) = figures.get_mut(place) {
                    *there = figure;
                }
            }
        }
        let line = |(stack, [before, now]): (&str, [u64; 2])| {
            let mut line = joined(stack);
            // Writing to a string does not fail.
            let _ = write!(line, " {before} {now}");
            line
        };
        both.into_iter().map(line).collect()
    }
}

/// A stack's text with semicolons between its frames; those in names become colons.
fn joined(stack: &str) -> String {
    stack
        .chars()
        .map(|letter| match letter {
            ';' => ':',
            SEPARATOR => ';',
            letter => letter,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stacks(all: &[(&str, u64)]) -> Stacks {
        let mut stacks = Stacks::default();
        for (stack, microjoules) in all {
            let weight = Weight {
                microjoules: *microjoules,
                samples: 1,
                waited_nanos: 2_000 * *microjoules,
            };
            stacks.add(stack, weight);
        }
        stacks
    }

    #[test]
    fn a_line_holds_a_stack_once_and_names_break_nothing() {
        let stacks = stacks(&[
            ("a\nf<[u8; 4]>", 3),
            ("a", 1),
            ("a\nf<[u8; 4]>", 4),
            ("b", 0),
        ]);
        assert_eq!(stacks.lines(Figure::Energy), ["a 1", "a;f<[u8: 4]> 7"]);
        assert_eq!(stacks.lines(Figure::Waiting), ["a 2", "a;f<[u8: 4]> 14"]);
    }

    #[test]
    fn beside_another_recording_a_line_has_both_figures() {
        let (now, before) = (stacks(&[("a", 5), ("b", 1)]), stacks(&[("a", 2), ("c", 9)]));
        assert_eq!(
            now.lines_against(&before, Figure::Energy),
            ["a 2 5", "b 0 1", "c 9 0"]
        );
    }
}
