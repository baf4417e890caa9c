//! The help: keys, and what each column means.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span as Text};
use ratatui::widgets::Paragraph;

use super::theme::Theme;
use crate::top::columns::Column;

/// Keys, and what they do.
const KEYS: [(&str, &str); 14] = [
    ("up down j k", "select, scroll"),
    ("PgUp PgDn", "ten rows"),
    ("Enter", "open a service"),
    ("Esc", "back; clear filter"),
    ("< > s", "sort by next column"),
    ("r", "reverse order"),
    ("/ f", "filter by name"),
    ("w", "2 s, 10 s, 1 or 5 min"),
    ("space p", "pause; it measures on"),
    ("Tab c", "slowest, costliest"),
    ("g", "all devices"),
    ("h ? ^L", "this help; repaint"),
    ("q ^C", "quit"),
    ("-", "unknown, never 0"),
];

/// Columns of keys.
const LEFT: u16 = 35;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, theme: Theme) {
    let [left, right] =
        Layout::horizontal([Constraint::Length(LEFT), Constraint::Fill(1)]).areas(area);
    let mut keys = vec![Line::styled("KEYS", theme.heading())];
    keys.extend(KEYS.map(|(key, what)| {
        Line::from(vec![
            Text::styled(format!("{key:<12}"), theme.heading()),
            Text::raw(what),
        ])
    }));
    for line in [
        "",
        "Devices: where their energy went,",
        "in per cent.",
        "Rates are sums over the window, by",
        "when it happened, told late or not.",
    ] {
        keys.push(Line::raw(line));
    }
    frame.render_widget(Paragraph::new(keys), left);
    let mut columns = vec![Line::styled("COLUMNS", theme.heading())];
    columns.extend(Column::ALL.map(|column| {
        Line::from(vec![
            Text::styled(format!("{:<8}", column.heading()), theme.heading()),
            Text::raw(column.meaning()),
        ])
    }));
    frame.render_widget(Paragraph::new(columns), right);
}
