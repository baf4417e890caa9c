//! The samples of a text exposition (Prometheus format 0.0.4), as far as counters and gauges need
//! them.
//!
//! In: the text as a server sent it. Out: its samples, one a line. A line that is none is left
//! out, whatever it holds: a server must not be able to stop the reading of its other lines.
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

/// One line: a name, its labels and a value. A time stamp or exemplar behind it is left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample<'a> {
    pub(crate) name: &'a str,
    pub(crate) labels: Labels<'a>,
    pub(crate) value: f64,
}

/// What stands between a sample's braces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Labels<'a>(&'a str);

/// All samples, in the text's order.
pub(crate) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim_start();
    let (name, rest) = split_at_first(line, |c: char| {
        !(c.is_ascii_alphanumeric() || c == '_' || c == ':')
    })?;
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => {
            let end = closing_brace(inside)?;
            (inside.get(..end)?, inside.get(end + 1..)?)
        }
        None => ("", rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name,
        labels: Labels(labels),
        value,
    })
}

fn split_at_first(text: &str, at: impl Fn(char) -> bool) -> Option<(&str, &str)> {
    text.split_at_checked(text.find(at)?)
}

/// Where the brace stands that is not inside a quoted value.
fn closing_brace(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    text.bytes().position(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return true,
            _ => {}
        }
        false
    })
}

impl<'a> Labels<'a> {
    /// The value of a label, unescaped.
    pub(crate) fn get(&self, wanted: &str) -> Option<String> {
        self.pairs()
            .find_map(|(name, value)| (name == wanted).then_some(value))
    }

    /// All names and values, unescaped.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&'a str, String)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (name, after) = rest.split_once('=')?;
            let quoted = after.trim_start().strip_prefix('"')?;
            let (value, behind) = unquote(quoted)?;
            rest = behind;
            Some((name.trim_matches([' ', '\t', ',']), value))
        })
    }
}

/// A value up to its closing quote, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(line: &str) -> Sample<'_> {
        let found: Vec<_> = samples(line).collect();
        assert_eq!(found.len(), 1, "{line}");
        found[0]
    }

    #[test]
    fn names_labels_and_values_are_read_as_servers_write_them() {
        let plain = only("llamacpp:prompt_tokens_total 1234\n");
        assert_eq!(
            (plain.name, plain.value),
            ("llamacpp:prompt_tokens_total", 1234.0)
        );
        assert_eq!(plain.labels.get("model"), None);

        let line = r#"a_total{x="1",model_name="a \"}\" \\ b\nc",} 1.282888e+06 1700000000000"#;
        let sample = only(line);
        assert_eq!(sample.value, 1_282_888.0);
        assert_eq!(sample.labels.get("x").as_deref(), Some("1"));
        assert_eq!(
            sample.labels.get("model_name").as_deref(),
            Some("a \"}\" \\ b\nc")
        );
        assert_eq!(sample.labels.get("name"), None);
        assert_eq!(only("b{} +Inf").value, f64::INFINITY);
        assert!(only("b NaN").value.is_nan());
        assert_eq!(
            only("c { x = \"1\" } 2").labels.get("x").as_deref(),
            Some("1")
        );
        assert_eq!(only("d_bucket{le=\"1\"} 3 # {trace=\"x\"} 0.5").value, 3.0);
    }

    #[test]
    fn what_is_no_sample_is_left_out_and_the_rest_is_read() {
        let text = "# HELP a b\n# TYPE a counter\n\n  \n{x=\"1\"} 2\n1a 2\na\na{x=\"1 2\na{x} \n\
                    a{} x\nb 2\r\n<html>\n";
        let found: Vec<_> = samples(text)
            .map(|sample| (sample.name, sample.value))
            .collect();
        assert_eq!(found, [("b", 2.0)]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<String>(), label in ".{0,4}") {
            for sample in samples(&text) {
                let _ = sample.labels.get(&label);
            }
        }

        #[test]
        fn no_text_made_of_the_formats_own_characters_makes_it_panic(
            text in r#"([a-c:]{0,2}[{}="\\, \n#0-9é]{0,4}){0,40}"#,
        ) {
            for sample in samples(&text) {
                let _ = sample.labels.get("a");
            }
        }

        #[test]
        fn whatever_a_label_holds_is_read_back(value in any::<String>(), count in 0_u32..) {
            let escaped = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            // A line ends at a line feed, with or without a carriage return before it.
            prop_assume!(!value.contains('\r'));
            let line = format!("a_total{{x=\"{escaped}\"}} {count}\n");
            let found: Vec<_> = samples(&line).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].labels.get("x"), Some(value));
            prop_assert_eq!(found[0].value, f64::from(count));
        }
    }
}
