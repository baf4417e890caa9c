//! Lengths of time as users write them: `90`, `10s`, `5m`, `1h`.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

/// What a number without a unit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// `s`
    Second,
    /// `m`
    Minute,
}

/// Clocks that are added to this do not overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3_600);

/// Not a length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a length of time, as in 10s, 5m or 1h")]
pub struct ParseSpanError;

/// Reads a length of time; a number without a unit is of `bare`.
///
/// # Errors
/// It is none, is 0, or longer than a year.
pub fn parse_span(text: &str, bare: Unit) -> Result<Duration, ParseSpanError> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let seconds = match (text.get(digits.len()..), bare) {
        (Some("s"), _) | (Some(""), Unit::Second) => 1.0,
        (Some("m"), _) | (Some(""), Unit::Minute) => 60.0,
        (Some("h"), _) => 3_600.0,
        _ => return Err(ParseSpanError),
    };
    let number: f64 = digits.parse().map_err(|_| ParseSpanError)?;
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|span| !span.is_zero() && *span <= LONGEST)
        .ok_or(ParseSpanError)
}

/// How many of the last minutes are kept: a number counts minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HindsightWindow(pub Duration);

/// Not such a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a length from 1s to 24h, as in 10 (minutes), 90s, 10m or 1h")]
pub struct ParseHindsightError;

impl FromStr for HindsightWindow {
    type Err = ParseHindsightError;

    fn from_str(text: &str) -> Result<Self, ParseHindsightError> {
        parse_span(text, Unit::Minute)
            .ok()
            .filter(|span| (1..=24 * 3_600).contains(&span.as_secs()))
            .map(Self)
            .ok_or(ParseHindsightError)
    }
}

impl<'de> Deserialize<'de> for HindsightWindow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Minutes(f64),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Minutes(minutes) => minutes.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_has_a_unit_or_the_one_that_is_meant() {
        let seconds = |text| parse_span(text, Unit::Second).map(|span| span.as_secs_f64());
        assert_eq!(seconds("90"), Ok(90.0));
        assert_eq!(seconds("10s"), Ok(10.0));
        assert_eq!(seconds("5m"), Ok(300.0));
        assert_eq!(seconds("1.5h"), Ok(5_400.0));
        let minutes = |text: &str| text.parse().map(|HindsightWindow(span)| span.as_secs());
        assert_eq!(minutes("10"), Ok(600));
        assert_eq!(minutes("90s"), Ok(90));
        assert_eq!(minutes("24h"), Ok(86_400));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "", "s", "0", "-1s", "1d", "1 h", "inf", "NaN", "1e9h", "ten", "1ss",
        ] {
            assert_eq!(
                parse_span(text, Unit::Second),
                Err(ParseSpanError),
                "{text}"
            );
        }
        for text in ["0.5s", "25h", "0"] {
            let parsed: Result<HindsightWindow, _> = text.parse();
            assert_eq!(parsed, Err(ParseHindsightError), "{text}");
        }
    }
}
