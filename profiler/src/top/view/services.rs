//! The table of services.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};

use super::theme::Theme;
use crate::top::columns::{Column, listed};
use crate::top::figures::ServiceFigures;
use crate::top::keys::Ui;
use crate::top::model::Model;

/// A GPU that waits for its host for longer than this part of the time is worth a look.
const STARVES: f64 = 0.05;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model, ui: &Ui, theme: Theme) {
    let listed = listed(model, ui);
    // A column at the left marks the selected row where reversed colours are not seen.
    let columns = Column::fitting(area.width.saturating_sub(1), ui.sort);
    let rows = listed.iter().map(|figures| row(figures, &columns, theme));
    let heading = columns.iter().map(|column| {
        let style = if *column == ui.sort {
            theme.sorted()
        } else {
            theme.heading()
        };
        Cell::new(aligned(*column, column.heading().to_owned())).style(style)
    });
    let widths = columns.iter().map(|column| match column {
        Column::Service => Constraint::Fill(1),
        column => Constraint::Length(column.width()),
    });
    let table = Table::new(rows, widths.collect::<Vec<_>>())
        .header(Row::new(heading))
        .row_highlight_style(theme.selected())
        .highlight_symbol(">");
    let place = ui.place(listed.iter().map(|figures| figures.id));
    let mut state = TableState::new().with_selected((!listed.is_empty()).then_some(place));
    frame.render_stateful_widget(table, area, &mut state);
    if listed.is_empty() {
        let text = if ui.filter.is_empty() {
            "no service yet: none listens on TCP and holds a GPU; try --port, --pid, --name"
        } else {
            "no service has a name with this in it; Esc clears the filter"
        };
        let below = area.offset(ratatui::layout::Offset { x: 0, y: 1 });
        frame.render_widget(Paragraph::new(text), below.intersection(area));
    }
}

fn aligned<'a>(column: Column, text: String) -> Line<'a> {
    let alignment = if column.is_text() {
        Alignment::Left
    } else {
        Alignment::Right
    };
    Line::from(text).alignment(alignment)
}

fn row<'a>(figures: &ServiceFigures, columns: &[Column], theme: Theme) -> Row<'a> {
    let starves = figures.starved.is_some_and(|share| share > STARVES);
    let cells = columns.iter().map(|column| {
        let cell = Cell::new(aligned(*column, column.text(figures)));
        cell.style(theme.alarm_if(*column == Column::Starved && starves))
    });
    Row::new(cells)
}
