//! One service: its figures, its latest five minutes, its slowest or costliest requests.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::text::{Line, Span as Text};
use ratatui::widgets::{Paragraph, Row, Sparkline, Table};

use super::theme::Theme;
use crate::ledger::ServiceId;
use crate::top::columns::{Column, UNKNOWN, count, known};
use crate::top::figures::{Past, ServiceFigures};
use crate::top::keys::Ui;
use crate::top::model::Model;
use crate::top::requests::{Order, Shown};
use crate::top::ring::SHOWN;

/// What stands before the bars.
const LABEL: u16 = 18;

/// Bars are heights in so many steps of the highest.
const STEPS: f64 = 1_000.0;

pub(super) fn draw(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    ui: &Ui,
    theme: Theme,
    id: ServiceId,
) {
    let Some(figures) = model.service(id, model.span(ui.window)) else {
        let text = "this service ended more than a minute ago; Esc goes back";
        frame.render_widget(Paragraph::new(text), area);
        return;
    };
    // Requests are what is left, and at least two of them.
    let height = if area.height >= 18 { 2 } else { 1 };
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        Constraint::Max(3 * height),
        Constraint::Fill(1),
    ]);
    let [title, sums, past, requests] = rows.areas(area);
    frame.render_widget(Paragraph::new(heading(&figures, theme)), title);
    frame.render_widget(Paragraph::new(lines(&figures)), sums);
    draw_past(frame, past, model, theme, id);
    draw_requests(frame, requests, model, ui, theme, id);
}

fn heading<'a>(figures: &ServiceFigures, theme: Theme) -> Line<'a> {
    let mut line = vec![Text::styled(figures.name.clone(), theme.heading())];
    for told in [&figures.engine, &figures.model].into_iter().flatten() {
        line.push(Text::raw(format!("  {told}")));
    }
    let class = figures.class.map_or(UNKNOWN, |class| class.name());
    line.push(Text::raw(format!("  class {class}")));
    if let Some(ratio) = figures.error_ratio {
        line.push(Text::raw(format!(" ±{:.1} %", ratio * 100.0)));
    }
    let in_flight = Column::InFlight.text(figures);
    line.push(Text::raw(format!("  {in_flight} in flight")));
    Line::from(line)
}

/// The figures, three a line.
fn lines<'a>(figures: &ServiceFigures) -> Vec<Line<'a>> {
    let parts = [
        [
            ("req/s", Column::Requests),
            ("p50 s", Column::P50),
            ("p99 s", Column::P99),
            ("1st token p50 s", Column::FirstP50),
        ],
        [
            ("W", Column::Watts),
            ("J/req", Column::PerRequest),
            ("J/out", Column::PerOutput),
            ("J/token", Column::PerToken),
        ],
        [
            ("tok/s", Column::Output),
            ("CPUs", Column::Cpu),
            ("runq", Column::RunQueue),
            ("starved %", Column::Starved),
        ],
    ];
    let line = |parts: [(&str, Column); 4]| {
        let texts = parts.map(|(unit, column)| format!("{:>6} {unit:<9}", column.text(figures)));
        Line::from(texts.join(" "))
    };
    parts.map(line).into()
}

fn draw_past(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme, id: ServiceId) {
    let width = u64::from(area.width.saturating_sub(LABEL)).max(1);
    // Whole seconds a bar, as few as fit.
    let seconds = SHOWN.div_ceil(width);
    let past = model.past(id, SHOWN / seconds, seconds);
    let of = |value: fn(&Past) -> Option<f64>| {
        let values = past.iter().map(|past| value(past.as_ref()?));
        values.collect::<Vec<_>>()
    };
    let kinds = [
        ("W", of(|past| past.watts)),
        ("req/s", of(|past| past.requests)),
        ("J/req", of(|past| past.per_request)),
    ];
    let rows = Layout::vertical([Constraint::Fill(1); 3]).areas::<3>(area);
    let scale = format!("5 min, {seconds} s a bar");
    for (((unit, values), row), below) in kinds.into_iter().zip(rows).zip([scale.as_str(), "", ""])
    {
        let most = values.iter().flatten().copied().reduce(f64::max);
        let bar = |value: &Option<f64>| {
            let most = most.filter(|most| *most > 0.0)?;
            Some((value.as_ref()? / most * STEPS) as u64)
        };
        let label = Layout::horizontal([Constraint::Length(LABEL), Constraint::Fill(1)]);
        let [label, bars] = label.areas(row);
        let text = format!("{unit:<5} up to {}\n{below}", known(most));
        frame.render_widget(Paragraph::new(text), label);
        let line = Sparkline::default()
            .data(values.iter().map(bar).collect::<Vec<_>>())
            .max(STEPS as u64)
            .style(theme.bars());
        frame.render_widget(line, bars);
    }
}

fn draw_requests(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    ui: &Ui,
    theme: Theme,
    id: ServiceId,
) {
    let [title, table] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let name = match ui.order {
        Order::Slowest => "SLOWEST",
        Order::Costliest => "COSTLIEST",
    };
    let requests = model.requests(id, ui.order);
    let room = usize::from(table.height.saturating_sub(1));
    let offset = ui.offset.min(requests.len().saturating_sub(room));
    let line = Line::from(vec![
        Text::styled(name, theme.note()),
        Text::raw(format!(
            " requests of the last 5 minutes, {} of them",
            requests.len()
        )),
    ]);
    frame.render_widget(Paragraph::new(line), title);
    let headings = [
        "AGO s", "TOOK s", "1ST s", "TOKENS", "J", "±%", "CL", "CODE", "OUTCOME", "ROUTE", "ID",
    ];
    let widths = [7, 7, 7, 7, 7, 5, 2, 4, 10, 16, 20];
    // Those that fit.
    let mut left = table.width;
    let fitting = widths.iter().take_while(|width| {
        let fits = **width <= left;
        left = left.saturating_sub(**width + 1);
        fits
    });
    let columns = fitting.count();
    let heading = headings.iter().zip(is_text()).take(columns);
    let heading = Row::new(heading.map(|(text, is_text)| aligned((*text).to_owned(), is_text)));
    let rows = requests.iter().skip(offset).take(room).map(|shown| {
        let cells = cells(shown, model.now.seconds_since(shown.ended));
        let cells = cells.into_iter().zip(is_text()).take(columns);
        Row::new(cells.map(|(text, is_text)| aligned(text, is_text)))
    });
    let widths = widths.into_iter().take(columns).map(Constraint::Length);
    let rows = Table::new(rows, widths).header(heading.style(theme.heading()));
    frame.render_widget(rows, table);
}

const fn is_text() -> [bool; 11] {
    [
        false, false, false, false, false, false, true, false, true, true, true,
    ]
}

fn aligned<'a>(text: String, is_text: bool) -> Line<'a> {
    let alignment = if is_text {
        Alignment::Left
    } else {
        Alignment::Right
    };
    Line::from(text).alignment(alignment)
}

fn cells(shown: &Shown, ago: f64) -> [String; 11] {
    let seconds = |nanos: u64| nanos as f64 * 1e-9;
    let code = match shown.status {
        0 => UNKNOWN.to_owned(),
        status => status.to_string(),
    };
    [
        format!("{ago:.0}"),
        known(Some(seconds(shown.duration))),
        known(shown.first_token.map(seconds)),
        count(shown.output),
        known(shown.energy.map(|energy| energy.joules().0)),
        known(shown.error_ratio.map(|ratio| ratio * 100.0)),
        shown.class.name().to_owned(),
        code,
        shown.outcome.name().to_owned(),
        shown.route.name().to_owned(),
        shown.id.0.to_string(),
    ]
}
