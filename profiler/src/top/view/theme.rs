//! Attributes, and colours where they are wanted.

use ratatui::style::{Color, Modifier, Style};

/// How things look.
#[derive(Debug, Clone, Copy)]
pub struct Theme {
    colours: bool,
}

impl Theme {
    /// Without colours attributes alone tell what is what.
    pub const fn new(colours: bool) -> Self {
        Self { colours }
    }

    fn coloured(self, style: Style, colour: Color) -> Style {
        if self.colours {
            style.fg(colour)
        } else {
            style
        }
    }

    /// Headings, keys and the main figures.
    pub(super) fn heading(self) -> Style {
        self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Cyan)
    }

    /// What services are sorted by.
    pub(super) fn sorted(self) -> Style {
        self.heading().add_modifier(Modifier::UNDERLINED)
    }

    /// What one must know.
    pub(super) fn note(self) -> Style {
        self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Yellow)
    }

    /// What is wrong.
    pub(super) fn alarm(self) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED);
        self.coloured(style, Color::Red)
    }

    pub(super) fn alarm_if(self, is_wrong: bool) -> Style {
        if is_wrong { self.alarm() } else { Style::new() }
    }

    /// The row that Enter opens.
    pub(super) const fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Bars.
    pub(super) fn bars(self) -> Style {
        self.coloured(Style::new(), Color::Green)
    }
}
