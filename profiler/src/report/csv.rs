//! The report as CSV in its long form: one figure a line, `section,subject,figure,value,unit`. What is
//! not known has no line.

use super::document::{Block, Document, Section, Value};
use super::model::Report;

/// Figures that are of no single service, meter or part of the period.
const ALL: &str = "all";

impl Report {
    /// Every figure of the report.
    ///
    /// # Errors
    /// None in practice: it is written to memory.
    pub fn to_csv(&self) -> Result<String, csv::Error> {
        let mut out = csv::Writer::from_writer(Vec::new());
        out.write_record(["section", "subject", "figure", "value", "unit"])?;
        for section in Document::new(self, "").sections {
            for (subject, key, value, unit) in figures(&section) {
                let text = value.is_text();
                if let Some(value) = value.exact() {
                    let value = if text { plain(&value) } else { value };
                    out.write_record([section.id, &plain(subject), key, &value, unit])?;
                }
            }
        }
        let bytes = out.into_inner().map_err(csv::IntoInnerError::into_error)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Subject, figure, value and unit of whatever a section shows.
fn figures(section: &Section) -> Vec<(&str, &str, &Value, &str)> {
    let unit = |value: &Value, unit| match value {
        Value::Ratio(_) | Value::Change(_) => "ratio",
        _ => unit,
    };
    let mut all = Vec::new();
    for block in &section.blocks {
        let (subject, figures) = match block {
            Block::Cards { figures, .. } => (ALL, figures),
            Block::Finding(finding) => (finding.key.as_str(), &finding.figures),
            Block::Table(table) => {
                for row in &table.rows {
                    let cells = table.columns.iter().zip(&row.cells);
                    all.extend(cells.map(|(column, value)| {
                        (
                            row.subject.as_str(),
                            column.key,
                            value,
                            unit(value, column.unit.as_str()),
                        )
                    }));
                }
                continue;
            }
            Block::Text(_) | Block::Chart(_) => continue,
        };
        all.extend(figures.iter().map(|figure| {
            (
                subject,
                figure.key,
                &figure.value,
                unit(&figure.value, figure.unit.as_str()),
            )
        }));
    }
    all
}

/// Names come from workloads: none of theirs becomes a formula in a spreadsheet.
pub(crate) fn plain(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@']) {
        format!("'{text}")
    } else {
        text.to_owned()
    }
}
