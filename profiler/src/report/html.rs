//! The report as one HTML file: no script, nothing fetched, light and dark, for screen and paper.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::document::{Block, Document, Figure, Finding, Section, Table, Value};
use super::figures::count;
use super::model::Report;

const STYLE: &str = include_str!("html/style.css");

/// Rows of a table, so that the page stays small.
const MOST_ROWS: usize = 100;

impl Report {
    /// The page; `title` is its first heading.
    pub fn to_html(&self, title: &str) -> String {
        page(&Document::new(self, title)).into_string()
    }
}

fn page(document: &Document) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (document.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (document.title) }
                    @for notice in &document.notices {
                        p.notice role="note" { (notice) }
                    }
                    nav aria-label="Sections" {
                        ul {
                            @for section in &document.sections {
                                li { a href=(format!("#{}", section.id)) { (section.title) } }
                            }
                        }
                    }
                }
                main {
                    @for section in &document.sections {
                        (section_markup(section))
                    }
                }
                footer { p { "perjoule " (env!("CARGO_PKG_VERSION")) } }
            }
        }
    }
}

fn section_markup(section: &Section) -> Markup {
    html! {
        section id=(section.id) aria-labelledby=(format!("{}-heading", section.id)) {
            h2 id=(format!("{}-heading", section.id)) { (section.title) }
            @for block in &section.blocks {
                @match block {
                    Block::Text(text) => p { (text) },
                    Block::Cards { title, figures } => (cards(title, figures)),
                    Block::Table(table) => (table_markup(table)),
                    Block::Chart(chart) => (chart.markup()),
                    Block::Finding(finding) => (finding_markup(finding)),
                }
            }
        }
    }
}

fn cards(title: &str, figures: &[Figure]) -> Markup {
    html! {
        h3 { (title) }
        dl.cards {
            @for figure in figures {
                div {
                    dt { (figure.label) }
                    dd { (value(&figure.value, &figure.unit)) }
                    @if !figure.note.is_empty() { dd.note { (figure.note) } }
                }
            }
        }
    }
}

/// A figure and its unit; what is not known has no unit.
fn value(value: &Value, unit: &str) -> Markup {
    html! {
        @if value.is_known() {
            b { (value.shown()) }
            @if !unit.is_empty() { " " span.unit { (unit) } }
        } @else {
            span.missing { "not known" }
        }
    }
}

fn table_markup(table: &Table) -> Markup {
    let body = html! {
        div.scroll tabindex="0" role="region" aria-label=(table.caption) {
            table {
                caption { (table.caption) }
                thead {
                    tr {
                        th scope="col" { (table.subject) }
                        @for column in &table.columns {
                            th scope="col" {
                                (column.label)
                                @if !column.unit.is_empty() { br; span.unit { (column.unit) } }
                            }
                        }
                    }
                }
                tbody {
                    @for row in table.rows.iter().take(MOST_ROWS) {
                        tr {
                            th scope="row" { (row.subject) }
                            @for cell in &row.cells {
                                td class=[cell.is_text().then_some("text")] {
                                    @if cell.is_known() { (cell.shown()) } @else { span.missing title="not known" { "–" } }
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    let more = table.rows.len().saturating_sub(MOST_ROWS);
    html! {
        @if table.long {
            details { summary { (table.caption) } (body) }
        } @else {
            (body)
        }
        @if more > 0 {
            p.note { (count(more as u64)) " more rows are in the report's CSV and JSON." }
        }
    }
}

fn finding_markup(finding: &Finding) -> Markup {
    let known = finding
        .figures
        .iter()
        .filter(|figure| figure.value.is_known());
    html! {
        article.finding {
            h3 { (finding.title) }
            p.figures {
                @for figure in known {
                    span { (value(&figure.value, &figure.unit)) " " (figure.label) }
                }
            }
            p { (finding.advice) }
            p.note { "Computed: " (finding.method) }
        }
    }
}
