//! What is drawn, beside what was drawn before: `tests/*.txt`, which `PERJOULE_WRITE_SNAPSHOTS=1` writes.

use std::env;
use std::fs;
use std::path::Path;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;

use super::*;
use crate::top::columns::Column;
use crate::top::{Order, Page, Theme, Ui, Window, draw};

fn drawn(model: &Model, ui: &Ui, width: u16, height: u16, colours: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let theme = Theme::new(colours);
    terminal
        .draw(|frame| draw(frame, model, ui, theme))
        .unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let rows = buffer.content.chunks(width).map(|row| {
        let row: String = row.iter().map(|cell| cell.symbol()).collect();
        row.trim_end().to_owned()
    });
    rows.collect::<Vec<_>>().join("\n") + "\n"
}

fn check(name: &str, model: &Model, ui: &Ui, width: u16, height: u16) {
    let seen = text(&drawn(model, ui, width, height, true));
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/top/tests")
        .join(format!("{name}.txt"));
    if env::var_os("PERJOULE_WRITE_SNAPSHOTS").is_some() {
        fs::write(&path, &seen).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(seen, expected, "\n{name}\n{seen}");
}

#[test]
fn services_at_the_usual_size_and_on_a_wide_terminal() {
    check("services-80x24", &node(), &Ui::default(), 80, 24);
    check("services-120x40", &node(), &Ui::default(), 120, 40);
    check("services-200x20", &node(), &Ui::default(), 200, 20);
    check("services-60x10", &node(), &Ui::default(), 60, 10);
}

#[test]
fn a_terminal_that_is_too_small_is_told_so() {
    check("small-40x8", &node(), &Ui::default(), 40, 8);
}

#[test]
fn sorted_filtered_and_paused_is_said() {
    let ui = Ui {
        sort: Column::PerToken,
        ascending: true,
        filter: "l".into(),
        paused: true,
        selected: Some(EMBED),
        window: Window::OneMinute,
        warnings: 2,
        ..Ui::default()
    };
    check("sorted-filtered-paused-80x24", &node(), &ui, 80, 24);
    let ui = Ui {
        filter: "llama".into(),
        editing: true,
        ..Ui::default()
    };
    check("filtering-80x24", &node(), &ui, 80, 24);
}

#[test]
fn one_service_with_its_past_and_its_requests() {
    let mut ui = Ui {
        page: Page::Service(CHAT),
        ..Ui::default()
    };
    check("service-80x24", &node(), &ui, 80, 24);
    ui.order = Order::Costliest;
    ui.offset = 3;
    check("service-120x40", &node(), &ui, 120, 40);
    ui.page = Page::Service(QUIET);
    check("service-quiet-80x24", &node(), &ui, 80, 24);
}

#[test]
fn help_has_room_at_the_usual_size() {
    let ui = Ui {
        help: true,
        ..Ui::default()
    };
    check("help-80x24", &node(), &ui, 80, 24);
}

#[test]
fn before_anything_is_known_nothing_is_zero() {
    let mut model = Model::new(false);
    model.advance(at(1_000.0));
    check("empty-80x24", &model, &Ui::default(), 80, 24);
}

#[test]
fn losses_and_a_residual_are_alarms() {
    let mut model = node();
    model.set_losses(3, 4);
    model.set_residual(-12);
    let buffer = drawn(&model, &Ui::default(), 80, 24, true);
    assert!(text(&buffer).contains("residual 12 µJ  lost 7"));
    let red = buffer.content.iter().filter(|cell| cell.fg == Color::Red);
    assert!(red.count() >= "residual 12 µJ  lost 7".chars().count());
}

#[test]
fn without_colours_there_are_none_and_the_same_letters() {
    for page in [Page::Services, Page::Service(CHAT)] {
        for help in [false, true] {
            let ui = Ui {
                page,
                help,
                paused: true,
                ..Ui::default()
            };
            let plain = drawn(&node(), &ui, 80, 24, false);
            let is_plain =
                |cell: &ratatui::buffer::Cell| cell.fg == Color::Reset && cell.bg == Color::Reset;
            assert!(plain.content.iter().all(is_plain));
            let coloured = drawn(&node(), &ui, 80, 24, true);
            assert!(!coloured.content.iter().all(is_plain));
            assert_eq!(text(&plain), text(&coloured));
        }
    }
}

#[test]
fn no_size_and_no_page_is_too_much() {
    let pages = [
        Page::Services,
        Page::Service(CHAT),
        Page::Service(QUIET),
        Page::Service(ServiceId(99)),
    ];
    let (full, empty) = (node(), Model::new(false));
    for (width, height) in [
        (1, 1),
        (59, 10),
        (60, 9),
        (60, 10),
        (61, 11),
        (80, 15),
        (300, 80),
    ] {
        for page in pages {
            for (model, all_devices) in [(&full, true), (&full, false), (&empty, true)] {
                let ui = Ui {
                    page,
                    all_devices,
                    offset: 99,
                    ..Ui::default()
                };
                drawn(model, &ui, width, height, true);
            }
        }
    }
}

#[test]
fn devices_that_have_no_room_are_counted_and_shown_on_demand() {
    let mut model = node();
    for number in 10..20 {
        let device = format!("GPU-{number}");
        let meter = meter(Component::Gpu, &device, Source::Counter);
        model.describe_meter(MeterId(number), &meter);
    }
    let mut ui = Ui::default();
    let folded = text(&drawn(&model, &ui, 80, 24, true));
    assert!(folded.contains("8 more: g"), "{folded}");
    ui.all_devices = true;
    let all = text(&drawn(&model, &ui, 80, 24, true));
    assert!(!all.contains("more: g") && all.contains("GPU-19"), "{all}");
}
