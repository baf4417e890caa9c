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

/// The distinct values of one label that have series of their own: a number for each. The rest
/// shares `other`.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    numbers: HashMap<Arc<str>, usize>,
    /// By number; `None` where a name was taken out.
    names: Vec<Option<Arc<str>>>,
}

impl Names {
    /// The number of a name, and whether it was folded into `other`; equal names share one, and so
    /// their totals. `has_room`: one more may have series of its own. The names of the totals of
    /// finished services are nobody else's.
    pub(super) fn number(&mut self, name: &str, has_room: bool) -> (usize, bool) {
        let name = clean(name);
        if let Some(&number) = self.numbers.get(name.as_str()) {
            return (number, false);
        }
        if name == OTHER || (has_room && !is_finished(&name)) {
            return (self.add(name.into()), false);
        }
        let other = self.numbers.get(OTHER).copied();
        (other.unwrap_or_else(|| self.add(OTHER.into())), true)
    }

    fn add(&mut self, name: Arc<str>) -> usize {
        let free = self.names.iter().position(Option::is_none);
        let number = free.unwrap_or(self.names.len());
        self.numbers.insert(Arc::clone(&name), number);
        match self.names.get_mut(number) {
            Some(place) => *place = Some(name),
            None => self.names.push(Some(name)),
        }
        number
    }

    /// Takes a name out; its number is given to another one.
    pub(super) fn remove(&mut self, number: usize) {
        if let Some(name) = self.names.get_mut(number).and_then(Option::take) {
            self.numbers.remove(&name);
        }
    }

    /// All names with their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = (usize, &str)> {
        let names = self.names.iter().enumerate();
        names.filter_map(|(number, name)| Some((number, name.as_deref()?)))
    }

    /// The name of a number that [`Self::number`] gave.
    pub(super) fn name(&self, number: usize) -> &str {
        let name = self.names.get(number).and_then(Option::as_deref);
        name.unwrap_or(OTHER)
    }
}

/// What the totals of services that have left are called. Each time that another one is added they
/// get a new name: a counter that is new with what it begins with is no increase, so that neither a
/// sum over services falls nor a rate over them jumps.
pub(super) fn finished(times: u64) -> String {
    format!("{FINISHED}{times}")
}

const FINISHED: &str = "finished-";

fn is_finished(name: &str) -> bool {
    let times = name.strip_prefix(FINISHED);
    times.is_some_and(|times| times.bytes().all(|byte| byte.is_ascii_digit()))
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
    fn names_without_room_share_one_bucket() {
        let mut names = Names::default();
        assert_eq!(names.number("a", true), (0, false));
        assert_eq!(names.number("b", true), (1, false));
        let (other, folded) = names.number("c", false);
        assert!(folded);
        assert_eq!(names.name(other), OTHER);
        assert_eq!(names.number("d", false), (other, true));
        assert_eq!(names.number("a", false), (0, false), "it keeps its place");
        assert_eq!(names.number(OTHER, false), (other, false));
    }

    #[test]
    fn a_number_is_given_again_once_its_name_is_taken_out() {
        let mut names = Names::default();
        names.number("a", true);
        names.number("b", true);
        names.remove(0);
        assert_eq!(names.number("c", true), (0, false));
        assert_eq!(names.number("a", true), (2, false));
        let all: Vec<_> = names.all().collect();
        assert_eq!(all, [(0, "c"), (1, "b"), (2, "a")]);
    }

    #[test]
    fn nobody_can_take_the_name_of_what_has_finished() {
        let mut names = Names::default();
        let (number, folded) = names.number(&finished(7), true);
        assert!(folded);
        assert_eq!(names.name(number), OTHER);
        assert_eq!(names.number("finished-job", true), (1, false));
    }
}
