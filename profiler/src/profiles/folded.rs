//! Energy by stack as lines: `frame;frame;frame microjoules`, what flame graph tools read; beside another
//! recording's, `frame;frame before after`.

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
}

/// Energy by stack.
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

    /// Lines of energy.
    pub fn lines(&self) -> Vec<String> {
        let costly = self.iter().filter(|(_, weight)| weight.microjoules > 0);
        costly
            .map(|(stack, weight)| format!("{} {}", joined(stack), weight.microjoules))
            .collect()
    }

    /// Lines of energy before and now.
    pub fn lines_against(&self, before: &Self) -> Vec<String> {
        let mut both: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
        for (place, stacks) in [before, self].into_iter().enumerate() {
            for (stack, weight) in stacks.iter().filter(|(_, weight)| weight.microjoules > 0) {
                let energies = both.entry(stack).or_default();
                if let Some(energy) = energies.get_mut(place) {
                    *energy = weight.microjoules;
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
        assert_eq!(stacks.lines(), ["a 1", "a;f<[u8: 4]> 7"]);
    }

    #[test]
    fn beside_another_recording_a_line_has_both_figures() {
        let (now, before) = (stacks(&[("a", 5), ("b", 1)]), stacks(&[("a", 2), ("c", 9)]));
        assert_eq!(now.lines_against(&before), ["a 2 5", "b 0 1", "c 9 0"]);
    }
}
