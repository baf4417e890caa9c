//! `stat -x SEP`: one figure a line, its fields in the order that `perf stat -x` has them, quoted as CSV is where a
//! field holds the separator. `docs/stat.md` names the fields.

use std::str::FromStr;

use super::model::Report;
use super::rows::{Row, Value};

/// What stands between two fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Separator(u8);

impl FromStr for Separator {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.as_bytes() {
            b"\\t" => Ok(Self(b'\t')),
            [sign] if sign.is_ascii_punctuation() && !b"\".-<>".contains(sign) => Ok(Self(*sign)),
            [sign @ (b'\t' | b' ')] => Ok(Self(*sign)),
            _ => Err("one sign that stands in no figure, e.g. , or ; or \\t"),
        }
    }
}

/// One line, before it is written.
#[derive(Debug)]
pub(super) struct Line<'a> {
    /// Seconds since the start, with `-I`.
    pub(super) time: Option<f64>,
    pub(super) subject: &'a str,
    pub(super) row: &'a Row,
    /// With `-r`: the half-width of the mean's interval in per cent, where there is one.
    pub(super) spread: Option<Option<f64>>,
    /// The time it was counted for.
    pub(super) seconds: Option<f64>,
}

impl Line<'_> {
    fn fields(&self) -> Vec<String> {
        let row = self.row;
        let mut fields = Vec::with_capacity(10);
        fields.extend(self.time.map(|time| format!("{time:.9}")));
        fields.push(self.subject.to_owned());
        fields.push(row.value.plain());
        fields.push(row.unit.to_owned());
        fields.push(row.event.clone());
        if let Some(spread) = self.spread {
            fields.push(spread.map_or_else(String::new, |percent| format!("{percent:.2}%")));
        }
        let (seconds, counted) = match row.value {
            Value::NotSupported => (0.0, 1.0),
            Value::NotCounted | Value::Nothing => (0.0, 0.0),
            _ => (self.seconds.unwrap_or(0.0), row.counted.unwrap_or(1.0)),
        };
        fields.push(format!("{:.0}", seconds * counted * 1e9));
        fields.push(format!("{:.2}", counted * 100.0));
        let (metric, unit) = row
            .metric
            .map(|(value, unit)| (value.to_string(), unit.to_owned()))
            .unwrap_or_default();
        fields.extend([metric, unit]);
        fields
    }
}

/// The lines, each ending with a line feed.
pub(super) fn write<'a>(
    separator: Separator,
    lines: impl Iterator<Item = Line<'a>>,
) -> Result<String, csv::Error> {
    let mut writer = csv::WriterBuilder::new()
        .delimiter(separator.0)
        .flexible(true)
        .from_writer(Vec::new());
    for line in lines {
        writer.write_record(line.fields())?;
    }
    let bytes = writer
        .into_inner()
        .map_err(|error| csv::Error::from(error.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Report {
    /// Every figure, one a line. `time`: seconds since the start, where it is one interval of several.
    ///
    /// # Errors
    /// None in practice: it is written to memory.
    pub fn to_separated(
        &self,
        separator: Separator,
        time: Option<f64>,
    ) -> Result<String, csv::Error> {
        let sections = self.sections();
        let rows: Vec<(&str, Row)> = sections
            .iter()
            .flat_map(|section| {
                let figures = section.rows.iter().flat_map(Row::figures);
                figures.map(|row| (section.subject.as_str(), row))
            })
            .collect();
        let lines = rows.iter().map(|(subject, row)| Line {
            time,
            subject,
            row,
            spread: None,
            seconds: self.duration_s,
        });
        write(separator, lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(row: &Row, spread: Option<Option<f64>>, time: Option<f64>) -> String {
        let line = Line {
            time,
            subject: "a,b",
            row,
            spread,
            seconds: Some(2.0),
        };
        write(Separator(b','), std::iter::once(line)).unwrap()
    }

    #[test]
    fn fields_stand_where_perf_has_them() {
        let row = Row::new("requests", Value::Count(1_250), "", "requests");
        let row = row.metric(Some(625.5), "/s");
        let expected = "\"a,b\",1250,,requests,2000000000,100.00,625.5,/s\n";
        assert_eq!(line(&row, None, None), expected);
        assert_eq!(
            line(&row, Some(Some(1.234)), Some(1.5)),
            "1.500000000,\"a,b\",1250,,requests,1.23%,2000000000,100.00,625.5,/s\n"
        );
        let row = Row::new("energy_dram", Value::NotSupported, "J", "dram");
        assert_eq!(
            line(&row, Some(None), None),
            "\"a,b\",<not supported>,J,energy_dram,,0,100.00,,\n"
        );
        let row = Row::new("j_per_request", Value::NotCounted, "J", "");
        let expected = "\"a,b\",<not counted>,J,j_per_request,0,0.00,,\n";
        assert_eq!(line(&row, None, None), expected);
    }

    #[test]
    fn a_separator_is_one_sign_that_no_figure_has() {
        for (text, sign) in [(",", b','), (";", b';'), ("\\t", b'\t'), ("|", b'|')] {
            assert_eq!(text.parse(), Ok(Separator(sign)));
        }
        for text in ["", ",,", ".", "-", "e", "7", "\"", "<", "\n", "€"] {
            assert!(text.parse::<Separator>().is_err(), "{text}");
        }
    }
}
