//! The report in Markdown, for tickets and pull requests: the same document as the page, without its
//! pictures.

use std::fmt::{self, Write};

use super::document::{Block, Document, Figure, Finding, Section, Table, Value};
use super::model::Report;

/// What is not known.
const UNKNOWN: &str = "not known";

impl Report {
    /// The report; `title` is its first heading.
    pub fn to_markdown(&self, title: &str) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = write(&mut out, &Document::new(self, title));
        out
    }
}

fn write(out: &mut String, document: &Document) -> fmt::Result {
    writeln!(out, "# {}\n", escaped(&document.title))?;
    for notice in &document.notices {
        writeln!(out, "> **{}**\n", escaped(notice))?;
    }
    document
        .sections
        .iter()
        .try_for_each(|section| write_section(out, section))
}

fn write_section(out: &mut String, section: &Section) -> fmt::Result {
    writeln!(out, "## {}\n", section.title)?;
    for block in &section.blocks {
        match block {
            Block::Text(text) => writeln!(out, "{}\n", escaped(text))?,
            Block::Cards { title, figures } => write_cards(out, title, figures)?,
            Block::Table(table) => write_table(out, table)?,
            Block::Finding(finding) => write_finding(out, finding)?,
            // Its values are in the table beside it.
            Block::Chart(_) => {}
        }
    }
    Ok(())
}

fn write_cards(out: &mut String, title: &str, figures: &[Figure]) -> fmt::Result {
    writeln!(out, "| {title} | | | |\n|---|--:|---|---|")?;
    for figure in figures {
        let unit = if figure.value.is_known() {
            &figure.unit
        } else {
            ""
        };
        let (label, note) = (escaped(figure.label), escaped(&figure.note));
        writeln!(
            out,
            "| {label} | {} | {} | {note} |",
            shown(&figure.value),
            escaped(unit)
        )?;
    }
    writeln!(out)
}

fn write_table(out: &mut String, table: &Table) -> fmt::Result {
    writeln!(out, "{}:\n", table.caption)?;
    write!(out, "| {} |", table.subject)?;
    for column in &table.columns {
        write!(out, " {}", escaped(column.label))?;
        match column.unit.as_str() {
            "" => write!(out, " |")?,
            unit => write!(out, ", {} |", escaped(unit))?,
        }
    }
    writeln!(out)?;
    writeln!(out, "|---|{}", "--:|".repeat(table.columns.len()))?;
    for row in &table.rows {
        write!(out, "| {} |", escaped(&row.subject))?;
        for cell in &row.cells {
            write!(out, " {} |", shown(cell))?;
        }
        writeln!(out)?;
    }
    writeln!(out)
}

fn write_finding(out: &mut String, finding: &Finding) -> fmt::Result {
    writeln!(out, "### {}\n", finding.title)?;
    let known = finding
        .figures
        .iter()
        .filter(|figure| figure.value.is_known());
    let figures = known.map(|figure| {
        let figure = format!("{} {} {}", figure.value.shown(), figure.unit, figure.label);
        escaped(&figure.replace("  ", " "))
    });
    let figures: Vec<String> = figures.collect();
    writeln!(out, "**{}**\n", figures.join("; "))?;
    writeln!(
        out,
        "{}\n\nComputed: {}\n",
        escaped(&finding.advice),
        escaped(&finding.method)
    )
}

fn shown(value: &Value) -> String {
    if value.is_known() {
        escaped(&value.shown())
    } else {
        UNKNOWN.to_owned()
    }
}

/// [`UNKNOWN`] would read as an HTML tag.
pub(crate) fn cell(shown: String) -> String {
    shown.replace('<', "&lt;").replace('>', "&gt;")
}

/// Names come from workloads: nothing of theirs may become markup.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '#' => {
                out.push('\\');
                out.push(character);
            }
            _ => out.push(character),
        }
    }
    out
}
