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

use super::columns::known;
use super::figures::Window;
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
            "perjoule top needs {width}x{height} characters, not {}x{}",
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
    let lines = vec![node(model, ui, theme, head.width), state(model, ui, theme)];
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
    let devices = devices::table(model, ui, theme, body.width, room.max(2));
    let [top, rest] =
        Layout::vertical([Constraint::Length(devices.height), Constraint::Fill(1)]).areas(body);
    frame.render_widget(devices.table, top);
    services::draw(frame, rest, model, ui, theme);
}

/// The machine, in a line.
fn node<'a>(model: &Model, ui: &Ui, theme: Theme, width: u16) -> Line<'a> {
    let figures = model.node(model.span(ui.window));
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
            "  since the start {} J, {} requests",
            known(Some(totals.energy.joules().0)),
            totals.requests
        )));
    }
    Line::from(line)
}

/// What is shown, in a line.
fn state<'a>(model: &Model, ui: &Ui, theme: Theme) -> Line<'a> {
    let mut line = Vec::new();
    if ui.paused {
        line.push(Text::styled("PAUSED", theme.note()));
        line.push(Text::raw("  "));
    }
    if model.simulated {
        line.push(Text::styled("SIMULATED GPU", theme.note()));
        line.push(Text::raw("  "));
    }
    let window = match ui.window {
        Window::TwoSeconds => "last 2 s",
        Window::TenSeconds => "last 10 s",
        Window::OneMinute => "last minute",
        Window::FiveMinutes => "last 5 minutes",
    };
    match model.span(ui.window) {
        Some(span) => {
            let ago = model.now.0 as f64 * 1e-9 - span.to as f64;
            line.push(Text::raw(format!(
                "{window}, up to {:.0} s ago",
                ago.max(0.0)
            )));
        }
        None => line.push(Text::raw("measuring, no second is complete yet")),
    }
    let way = if ui.ascending {
        "least first"
    } else {
        "most first"
    };
    line.push(Text::raw(format!("  by {} {way}", ui.sort.heading())));
    if !ui.filter.is_empty() && !ui.editing {
        line.push(Text::styled(
            format!("  filter {}", ui.filter),
            theme.note(),
        ));
    }
    let silent = model.node(model.span(ui.window)).silent;
    if silent > 0 && model.span(ui.window).is_some() {
        line.push(Text::styled(
            format!("  {silent} meters silent"),
            theme.alarm(),
        ));
    }
    if ui.warnings > 0 {
        let told = format!("  {} warnings, told at the end", ui.warnings);
        line.push(Text::styled(told, theme.note()));
    }
    Line::from(line)
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
