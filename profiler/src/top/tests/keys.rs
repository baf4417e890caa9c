//! What is typed does what the help says.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::top::columns::{Column, listed};
use crate::top::{Asked, Order, Page, Ui, Window};

fn press(ui: &mut Ui, code: KeyCode) -> Asked {
    let event = Event::Key(KeyEvent::new(code, KeyModifiers::NONE));
    ui.take(&event, &node())
}

fn typed(ui: &mut Ui, text: &str) {
    for letter in text.chars() {
        press(ui, KeyCode::Char(letter));
    }
}

fn names(ui: &Ui) -> Vec<String> {
    let listed = listed(&node(), ui);
    listed.into_iter().map(|figures| figures.name).collect()
}

#[test]
fn services_are_sorted_by_the_column_that_is_chosen_either_way() {
    let mut ui = Ui::default();
    assert_eq!(names(&ui), ["vllm-chat", "embedder", "nobody-asks"]);
    typed(&mut ui, "r");
    assert_eq!(names(&ui), ["nobody-asks", "embedder", "vllm-chat"]);
    typed(&mut ui, "<<<");
    assert_eq!(ui.sort, Column::Service);
    assert_eq!(names(&ui), ["embedder", "nobody-asks", "vllm-chat"]);
    typed(&mut ui, ">s");
    assert_eq!(ui.sort, Column::InFlight);
}

#[test]
fn what_is_unknown_stands_last_whichever_way_it_is_sorted() {
    let mut ui = Ui {
        sort: Column::PerOutput,
        ..Ui::default()
    };
    assert_eq!(names(&ui)[0], "vllm-chat");
    ui.ascending = true;
    assert_eq!(names(&ui)[0], "vllm-chat");
}

#[test]
fn a_filter_is_part_of_the_name_or_the_model_in_any_case() {
    let mut ui = Ui::default();
    typed(&mut ui, "/BGE");
    assert!(ui.editing);
    assert_eq!(names(&ui), ["embedder"], "while it is typed");
    press(&mut ui, KeyCode::Backspace);
    press(&mut ui, KeyCode::Enter);
    assert_eq!((ui.editing, ui.filter.as_str()), (false, "BG"));
    press(&mut ui, KeyCode::Esc);
    assert_eq!(names(&ui).len(), 3);
    typed(&mut ui, "/q");
    assert_eq!(ui.filter, "q", "while it is typed no letter is a key");
    press(&mut ui, KeyCode::Esc);
    assert_eq!((ui.editing, ui.filter.as_str()), (false, ""));
}

#[test]
fn enter_opens_the_selected_service_and_escape_goes_back_to_it() {
    let mut ui = Ui::default();
    press(&mut ui, KeyCode::Enter);
    assert_eq!(
        ui.page,
        Page::Service(CHAT),
        "the first, before anything is selected"
    );
    press(&mut ui, KeyCode::Esc);
    press(&mut ui, KeyCode::Down);
    assert_eq!(ui.selected, Some(EMBED));
    press(&mut ui, KeyCode::Enter);
    assert_eq!(ui.page, Page::Service(EMBED));
    press(&mut ui, KeyCode::Esc);
    assert_eq!((ui.page, ui.selected), (Page::Services, Some(EMBED)));
    press(&mut ui, KeyCode::End);
    assert_eq!(ui.selected, Some(QUIET));
    press(&mut ui, KeyCode::PageDown);
    assert_eq!(ui.selected, Some(QUIET), "there is no further one");
    press(&mut ui, KeyCode::Home);
    assert_eq!(ui.selected, Some(CHAT));
}

#[test]
fn with_nothing_listed_nothing_is_opened_or_selected() {
    let mut ui = Ui::default();
    typed(&mut ui, "/nothing");
    press(&mut ui, KeyCode::Enter);
    press(&mut ui, KeyCode::Down);
    assert_eq!(press(&mut ui, KeyCode::Enter), Asked::Nothing);
    assert_eq!((ui.page, ui.selected), (Page::Services, None));
}

#[test]
fn in_a_service_tab_turns_to_the_costliest_and_arrows_scroll() {
    let mut ui = Ui::default();
    press(&mut ui, KeyCode::Enter);
    typed(&mut ui, "jjk");
    assert_eq!(ui.offset, 1);
    press(&mut ui, KeyCode::PageDown);
    assert_eq!(ui.offset, 11);
    press(&mut ui, KeyCode::Tab);
    assert_eq!((ui.order, ui.offset), (Order::Costliest, 0));
    press(&mut ui, KeyCode::Up);
    assert_eq!(ui.offset, 0);
}

#[test]
fn pause_help_and_window_are_keys_everywhere_and_quit_ends() {
    for page in [Page::Services, Page::Service(CHAT)] {
        let mut ui = Ui {
            page,
            ..Ui::default()
        };
        typed(&mut ui, " ");
        assert!(ui.paused);
        typed(&mut ui, "pw");
        assert_eq!((ui.paused, ui.window), (false, Window::OneMinute));
        typed(&mut ui, "ww");
        assert_eq!(ui.window, Window::TwoSeconds);
        typed(&mut ui, "?");
        assert!(ui.help);
        assert_eq!(
            press(&mut ui, KeyCode::Char('q')),
            Asked::Redraw,
            "leaves the help"
        );
        assert!(!ui.help);
        assert_eq!(press(&mut ui, KeyCode::Char('q')), Asked::Quit);
    }
    let mut ui = Ui {
        editing: true,
        ..Ui::default()
    };
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(ui.take(&Event::Key(interrupt), &node()), Asked::Quit);
    let repaint = KeyEvent::new(KeyCode::Char('l'), KeyModifiers::CONTROL);
    assert_eq!(ui.take(&Event::Key(repaint), &node()), Asked::Repaint);
}

#[test]
fn keys_without_a_meaning_draw_nothing() {
    let mut ui = Ui::default();
    assert_eq!(press(&mut ui, KeyCode::Char('x')), Asked::Nothing);
    assert_eq!(ui.take(&Event::Resize(80, 24), &node()), Asked::Redraw);
    assert_eq!(ui.take(&Event::FocusGained, &node()), Asked::Nothing);
}
