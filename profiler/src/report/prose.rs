//! Running text in tables.

use std::fmt::{self, Write};

/// Columns of text.
pub(crate) const WIDTH: usize = 78;

/// Text that is broken between words, behind `indent` spaces.
pub(crate) fn paragraph(out: &mut String, indent: usize, text: &str) -> fmt::Result {
    let mut line = String::new();
    let mut columns = indent;
    for word in text.split(' ') {
        let length = word.chars().count() + 1;
        if columns > indent && columns + length > WIDTH {
            writeln!(out, "{:indent$}{line}", "")?;
            line.clear();
            columns = indent;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        columns += length;
    }
    writeln!(out, "{:indent$}{line}", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_and_a_long_word_stands_alone() {
        let mut out = String::new();
        let long = "x".repeat(90);
        paragraph(&mut out, 2, &format!("a {long} {}end", "word ".repeat(16))).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0], "  a");
        assert_eq!(lines[1], format!("  {long}"));
        assert!(lines[2].chars().count() <= WIDTH);
        assert_eq!(lines[3].trim_start().split(' ').next_back(), Some("end"));
    }
}
