//! Draws what is wanted of the model on a frame, whatever its size.

mod devices;
mod help;
mod service;
mod services;
mod theme;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span as Text};
use ratatui::widgets::Paragraph;

pub use theme::Theme;

use super::columns::{count, known};
use super::figures::{NodeFigures, Span, Window};
use super::keys::{Page, Ui};
use super::model::Model;

/// Below this nothing can be read.
const LEAST: (u16, u16) = (60, 10);

/// Draws a whole screen.
pub fn draw(frame: &mut Frame<'_>, model: &Model, ui: &Ui, theme: Theme) {
    let area = frame.area();
    let (width, height) = LEAST;
    if area.width < width || area.height < height {
        let text = format!(
            "too small: {}x{}, needs {width}x{height}",
            area.width, area.height
        );
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let rows = Layout::vertical([
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Length(1),
    ]);
    let [head, body, foot] = rows.areas(area);
    let span = model.span(ui.window);
    let figures = model.node(span);
    let lines = vec![
        node(model, &figures, theme, head.width),
        state(model, ui, theme, span, figures.silent),
    ];
    frame.render_widget(Paragraph::new(lines), head);
    if ui.help {
        help::draw(frame, body, theme);
    } else {
        match ui.page {
            Page::Services => draw_services(frame, body, model, ui, theme),
            Page::Service(id) => service::draw(frame, body, model, ui, theme, id),
        }
    }
    frame.render_widget(Paragraph::new(keys(ui, theme)), foot);
}

fn draw_services(frame: &mut Frame<'_>, body: Rect, model: &Model, ui: &Ui, theme: Theme) {
    let room = if ui.all_devices {
        body.height.saturating_sub(3)
    } else {
        body.height / 3
    };
    let devices = devices::table(model, ui, theme, body.width, room.max(3));
    let [top, rest] =
        Layout::vertical([Constraint::Length(devices.height), Constraint::Fill(1)]).areas(body);
    frame.render_widget(devices.table, top);
    services::draw(frame, rest, model, ui, theme);
}

/// The machine, in a line.
fn node<'a>(model: &Model, figures: &NodeFigures, theme: Theme, width: u16) -> Line<'a> {
    let mut line = vec![
        Text::styled(known(figures.power()), theme.heading()),
        Text::raw(" W"),
    ];
    if width >= 76 {
        let [gpu, cpu, dram] = figures.watts;
        let mut parts = format!(" (gpu {} cpu {}", known(gpu), known(cpu));
        if let Some(dram) = dram {
            parts += &format!(" dram {}", known(Some(dram)));
        }
        line.push(Text::raw(parts + ")"));
    }
    for (value, unit) in [
        (figures.requests, " req/s"),
        (figures.per_request, " J/req"),
    ] {
        line.push(Text::raw("  "));
        line.push(Text::styled(known(value), theme.heading()));
        line.push(Text::raw(unit));
    }
    let residual = model.residual;
    let told = residual.map_or_else(|| "-".to_owned(), |residual| residual.to_string());
    let style = theme.alarm_if(residual.is_some_and(|residual| residual > 0));
    line.push(Text::styled(format!("  residual {told} µJ"), style));
    let lost = model.losses.map(|losses| losses.events + losses.requests);
    let told = lost.map_or_else(|| "-".to_owned(), |lost| lost.to_string());
    let style = theme.alarm_if(lost.is_some_and(|lost| lost > 0));
    line.push(Text::styled(format!("  lost {told}"), style));
    if width >= 110 {
        let totals = model.totals;
        line.push(Text::raw(format!(
            "  since the start {} kJ, {} requests",
            known(Some(totals.energy.joules().0 / 1e3)),
            count(Some(totals.requests))
        )));
    }
    Line::from(line)
}

/// What is shown, in a line: what must not be overlooked first.
fn state<'a>(model: &Model, ui: &Ui, theme: Theme, span: Option<Span>, silent: usize) -> Line<'a> {
    let mut parts = Vec::new();
    if ui.paused {
        parts.push(Text::styled("PAUSED", theme.note()));
    }
    if model.simulated {
        parts.push(Text::styled("SIMULATED GPU", theme.note()));
    }
    if silent > 0 {
        let told = format!("{silent} meters silent");
        parts.push(Text::styled(told, theme.alarm()));
    }
    parts.push(Text::raw(match span {
        Some(span) => {
            let window = match ui.window {
                Window::TwoSeconds => "2 s",
                Window::TenSeconds => "10 s",
                Window::OneMinute => "1 min",
                Window::FiveMinutes => "5 min",
            };
            let ago = model.now.0 as f64 * 1e-9 - span.to as f64;
            format!("last {window}, ended {:.0} s ago", ago.max(0.0))
        }
        None => "measuring, no second is complete yet".to_owned(),
    }));
    if ui.page == Page::Services {
        let way = if ui.ascending { "↑" } else { "↓" };
        parts.push(Text::raw(format!("by {}{way}", ui.sort.heading())));
        if !ui.filter.is_empty() && !ui.editing {
            let told = format!("filter {}", ui.filter);
            parts.push(Text::styled(told, theme.note()));
        }
    }
    if ui.warnings > 0 {
        let told = format!("{} warnings", ui.warnings);
        parts.push(Text::styled(told, theme.note()));
    }
    let parts = parts.into_iter().flat_map(|part| [part, Text::raw("  ")]);
    Line::from_iter(parts)
}

/// What can be typed, in a line.
fn keys<'a>(ui: &Ui, theme: Theme) -> Line<'a> {
    if ui.editing {
        let typed = format!("filter: {}_", ui.filter);
        return Line::from(vec![
            Text::styled(typed, theme.note()),
            Text::raw("  Enter keeps it  Esc clears it"),
        ]);
    }
    let keys: &[(&str, &str)] = match (ui.help, ui.page) {
        (true, _) => &[("Esc", "back"), ("^C", "quit")],
        (false, Page::Services) => &[
            ("q", "quit"),
            ("h", "help"),
            ("<>", "sort"),
            ("r", "reverse"),
            ("/", "filter"),
            ("Enter", "open"),
            ("space", "pause"),
            ("w", "window"),
        ],
        (false, Page::Service(_)) => &[
            ("Esc", "back"),
            ("Tab", "slowest or costliest"),
            ("space", "pause"),
            ("w", "window"),
            ("h", "help"),
            ("q", "quit"),
        ],
    };
    let texts = keys.iter().flat_map(|(key, what)| {
        [
            Text::styled(*key, theme.heading()),
            Text::raw(format!(" {what}  ")),
        ]
    });
    Line::from_iter(texts)
}
