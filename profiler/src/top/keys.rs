//! What is typed, as what is wanted.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::columns::{Column, listed};
use super::figures::Window;
use super::model::Model;
use super::requests::{MOST, Order};
use crate::ledger::ServiceId;

/// Rows that a page goes on.
const PAGE: isize = 10;
/// The longest filter.
const LONGEST: usize = 40;

/// What is on the screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Page {
    /// All services.
    #[default]
    Services,
    /// One of them.
    Service(ServiceId),
}

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Ui {
    /// What is on the screen, below the help.
    pub page: Page,
    /// The help is shown.
    pub help: bool,
    /// What is shown stands still.
    pub paused: bool,
    /// What services are sorted by.
    pub sort: Column,
    /// The least first.
    pub ascending: bool,
    /// Part of the names of services that are shown.
    pub filter: String,
    /// The filter is being typed.
    pub editing: bool,
    /// `None`: the first.
    pub selected: Option<ServiceId>,
    /// Over how much figures are taken.
    pub window: Window,
    /// Which requests of a service are shown.
    pub order: Order,
    /// The first one of them that is shown.
    pub offset: usize,
    /// All devices are shown, whatever room that takes.
    pub all_devices: bool,
    /// Warnings that wait for the end.
    pub warnings: usize,
}

/// What an event asks of who runs the display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// To draw again.
    Redraw,
    /// To draw all again, whatever stands there.
    Repaint,
    /// Nothing.
    Nothing,
    /// To end.
    Quit,
}

impl Ui {
    /// Follows an event; `model` is what is on the screen.
    pub fn take(&mut self, event: &Event, model: &Model) -> Asked {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.press(*key, model),
            Event::Resize(..) | Event::Paste(_) => Asked::Redraw,
            _ => Asked::Nothing,
        }
    }

    fn press(&mut self, key: KeyEvent, model: &Model) -> Asked {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Asked::Quit,
                // Somebody else has written there.
                KeyCode::Char('l') => Asked::Repaint,
                _ => Asked::Nothing,
            };
        }
        if self.editing {
            return self.edit(key.code);
        }
        if self.help {
            return match key.code {
                KeyCode::Char('q' | 'h' | '?') | KeyCode::Esc | KeyCode::Enter => {
                    self.help = false;
                    Asked::Redraw
                }
                _ => Asked::Nothing,
            };
        }
        match key.code {
            KeyCode::Char('q') => return Asked::Quit,
            KeyCode::Char('h' | '?') | KeyCode::F(1) => self.help = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('w') => self.window = self.window.next(),
            _ => return self.press_on_page(key.code, model),
        }
        Asked::Redraw
    }

    fn press_on_page(&mut self, code: KeyCode, model: &Model) -> Asked {
        match self.page {
            Page::Services => self.press_on_services(code, model),
            Page::Service(_) => self.press_on_service(code),
        }
    }

    fn press_on_services(&mut self, code: KeyCode, model: &Model) -> Asked {
        match code {
            KeyCode::Char('<') | KeyCode::Left => self.sort = self.sort.moved(-1),
            KeyCode::Char('>' | 's') | KeyCode::Right => self.sort = self.sort.moved(1),
            KeyCode::Char('r') => self.ascending = !self.ascending,
            KeyCode::Char('/' | 'f') => self.editing = true,
            KeyCode::Char('g') => self.all_devices = !self.all_devices,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Down | KeyCode::Char('j') => self.select(1, model),
            KeyCode::Up | KeyCode::Char('k') => self.select(-1, model),
            KeyCode::PageDown => self.select(PAGE, model),
            KeyCode::PageUp => self.select(-PAGE, model),
            KeyCode::Home => self.select(isize::MIN / 2, model),
            KeyCode::End => self.select(isize::MAX / 2, model),
            KeyCode::Enter => {
                let listed = listed(model, self);
                let place = self.place(listed.iter().map(|figures| figures.id));
                let Some(figures) = listed.get(place) else {
                    return Asked::Nothing;
                };
                self.selected = Some(figures.id);
                self.page = Page::Service(figures.id);
                self.offset = 0;
            }
            _ => return Asked::Nothing,
        }
        Asked::Redraw
    }

    fn press_on_service(&mut self, code: KeyCode) -> Asked {
        let by = match code {
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => {
                self.page = Page::Services;
                return Asked::Redraw;
            }
            KeyCode::Tab | KeyCode::Char('c' | 's') => {
                self.order = match self.order {
                    Order::Slowest => Order::Costliest,
                    Order::Costliest => Order::Slowest,
                };
                self.offset = 0;
                return Asked::Redraw;
            }
            KeyCode::Down | KeyCode::Char('j') => 1,
            KeyCode::Up | KeyCode::Char('k') => -1,
            KeyCode::PageDown => PAGE,
            KeyCode::PageUp => -PAGE,
            KeyCode::Home => isize::MIN / 2,
            KeyCode::End => isize::MAX / 2,
            _ => return Asked::Nothing,
        };
        // There are no more than are kept; what is shown ends with the last one.
        let offset = (self.offset as isize).saturating_add(by);
        self.offset = offset.clamp(0, MOST as isize) as usize;
        Asked::Redraw
    }

    fn edit(&mut self, code: KeyCode) -> Asked {
        match code {
            KeyCode::Enter => self.editing = false,
            KeyCode::Esc => {
                self.editing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if self.filter.chars().count() < LONGEST => {
                self.filter.push(letter);
            }
            _ => return Asked::Nothing,
        }
        Asked::Redraw
    }

    /// The place of the selected service among those that are listed; the first if it is not there.
    pub(super) fn place(&self, mut listed: impl Iterator<Item = ServiceId>) -> usize {
        let selected = |id| Some(id) == self.selected;
        listed.position(selected).unwrap_or(0)
    }

    fn select(&mut self, by: isize, model: &Model) {
        let listed = listed(model, self);
        let Some(last) = listed.len().checked_sub(1) else {
            return;
        };
        let place = self.place(listed.iter().map(|figures| figures.id)) as isize;
        let place = place.saturating_add(by).clamp(0, last as isize);
        self.selected = listed.get(place as usize).map(|figures| figures.id);
    }
}
