//! The table of what is metered: GPUs, CPU packages, memory.

use ratatui::layout::{Alignment, Constraint};
use ratatui::text::Line;
use ratatui::widgets::{Row, Table};

use super::theme::Theme;
use crate::ledger::{Component, Source};
use crate::top::columns::{UNKNOWN, known};
use crate::top::figures::DeviceFigures;
use crate::top::keys::Ui;
use crate::top::model::Model;

/// Longer names are cut in the middle: GPUs' differ at both ends.
const NAME: usize = 17;
/// From here on each account has a column of its own, and the GPU its model.
const WIDE: u16 = 118;

/// A table and its rows, the heading included.
pub(super) struct Devices<'a> {
    pub(super) table: Table<'a>,
    pub(super) height: u16,
}

/// What stands beside idle and requests, in the order of `Accounts::NAMES`.
const SHARES: [(&str, usize); 6] = [
    ("CTX%", 1),
    ("OVHD%", 3),
    ("OTHER%", 4),
    ("AGENT%", 5),
    ("UNATT%", 6),
    ("GAP%", 7),
];

/// The devices, in at most `room` rows.
pub(super) fn table<'a>(
    model: &Model,
    ui: &Ui,
    theme: Theme,
    width: u16,
    room: u16,
) -> Devices<'a> {
    let devices = model.devices(model.span(ui.window));
    let wide = width >= WIDE;
    let mut headings = vec!["DEVICE", "W", "LIMIT", "UTIL%", "IDLE%", "REQ%"];
    let mut widths: Vec<u16> = vec![NAME as u16, 7, 6, 6, 6, 6];
    if wide {
        headings.extend(SHARES.map(|(heading, _)| heading));
        widths.extend([6; SHARES.len()]);
        headings.push("NAME");
    } else {
        headings.push("OTHER%");
        widths.push(6);
    }
    let all = devices.len();
    let shown = all.min(usize::from(room.saturating_sub(1)));
    // One row says how many are missing.
    let shown = if shown < all {
        shown.saturating_sub(1)
    } else {
        shown
    };
    let mut rows: Vec<Row<'a>> = devices
        .iter()
        .take(shown)
        .map(|device| row(device, wide))
        .collect();
    if shown < all {
        let more = format!("{} more: g", all - shown);
        rows.push(Row::new([more]));
    }
    if all == 0 {
        rows.push(Row::new(["no meter: see `perjoule doctor`"]));
    }
    let height = rows.len() as u16 + 1;
    let heading = headings.into_iter().enumerate().map(|(place, heading)| {
        let is_text = place == 0 || heading == "NAME";
        aligned(heading.to_owned(), is_text)
    });
    let heading = Row::new(heading).style(theme.heading());
    let mut constraints: Vec<Constraint> = widths.into_iter().map(Constraint::Length).collect();
    if wide {
        constraints.push(Constraint::Fill(1));
    }
    if all == 0 {
        constraints = vec![Constraint::Fill(1)];
    }
    Devices {
        table: Table::new(rows, constraints).header(heading),
        height,
    }
}

fn aligned<'a>(text: String, is_text: bool) -> Line<'a> {
    let alignment = if is_text {
        Alignment::Left
    } else {
        Alignment::Right
    };
    Line::from(text).alignment(alignment)
}

fn row<'a>(device: &DeviceFigures, wide: bool) -> Row<'a> {
    let per_cent = |ratio: f64| format!("{:.1}", ratio * 100.0);
    let share = |place: usize| {
        let share = device.shares?.get(place).copied()?;
        Some(per_cent(share))
    };
    let told = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
    let mut cells = vec![
        aligned(shortened(&device.device), true),
        aligned(known(device.watts), false),
        aligned(known(device.limit), false),
        aligned(told(device.utilization.map(per_cent)), false),
        aligned(told(share(0)), false),
        aligned(told(share(2)), false),
    ];
    if wide {
        let shares = SHARES.map(|(_, place)| aligned(told(share(place)), false));
        cells.extend(shares);
        let source = match (device.component, device.source) {
            (_, Source::Counter) => "",
            (_, Source::Integrated) => " (integrated)",
            (_, Source::Model) => " (estimate)",
        };
        let name = device
            .name
            .clone()
            .unwrap_or_else(|| match device.component {
                Component::Gpu => UNKNOWN.to_owned(),
                Component::Cpu => "CPU package".to_owned(),
                Component::Dram => "memory".to_owned(),
            });
        cells.push(aligned(name + source, true));
    } else {
        let others = device.shares.map(|shares| {
            let others: f64 = SHARES
                .iter()
                .filter_map(|(_, place)| shares.get(*place))
                .sum();
            per_cent(others)
        });
        cells.push(aligned(told(others), false));
    }
    Row::new(cells)
}

/// `GPU-51300000-0000-4000-8000-000000000001` as `GPU-5130…00000001`.
fn shortened(device: &str) -> String {
    let letters: Vec<char> = device.chars().collect();
    if letters.len() <= NAME {
        return device.to_owned();
    }
    let head = letters.iter().take(8);
    let tail = letters.iter().skip(letters.len() - 8);
    head.chain(['…'].iter()).chain(tail).collect()
}
