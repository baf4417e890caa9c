//! The columns of the table of services: what each shows, how wide it is, what it is called.

use std::cmp::Ordering;

use super::figures::ServiceFigures;
use super::keys::Ui;
use super::model::Model;
use crate::ledger::ServiceId;

/// What stands where a figure is not known.
pub(super) const UNKNOWN: &str = "-";

/// A column, and what services are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "`Column::meaning` says it")]
pub enum Column {
    Service,
    Requests,
    InFlight,
    #[default]
    Watts,
    PerRequest,
    PerOutput,
    PerToken,
    Output,
    P50,
    P99,
    FirstP50,
    FirstP99,
    Cpu,
    RunQueue,
    Starved,
    Class,
    Bound,
    Model,
}

impl Column {
    /// All, as they stand from left to right.
    pub(super) const ALL: [Self; 18] = [
        Self::Service,
        Self::Requests,
        Self::InFlight,
        Self::Watts,
        Self::PerRequest,
        Self::PerOutput,
        Self::PerToken,
        Self::Output,
        Self::P50,
        Self::P99,
        Self::FirstP50,
        Self::FirstP99,
        Self::Cpu,
        Self::RunQueue,
        Self::Starved,
        Self::Class,
        Self::Bound,
        Self::Model,
    ];

    /// The same, what matters most first: a narrow terminal shows the first ones.
    const BY_WORTH: [Self; 18] = [
        Self::Service,
        Self::Watts,
        Self::PerRequest,
        Self::Requests,
        Self::PerOutput,
        Self::RunQueue,
        Self::Starved,
        Self::Class,
        Self::P99,
        Self::InFlight,
        Self::Output,
        Self::Cpu,
        Self::FirstP50,
        Self::PerToken,
        Self::P50,
        Self::FirstP99,
        Self::Bound,
        Self::Model,
    ];

    /// Its heading.
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Service => "SERVICE",
            Self::Requests => "REQ/S",
            Self::InFlight => "FLY",
            Self::Watts => "W",
            Self::PerRequest => "J/REQ",
            Self::PerOutput => "J/OUT",
            Self::PerToken => "J/TOK",
            Self::Output => "TOK/S",
            Self::P50 => "P50 s",
            Self::P99 => "P99 s",
            Self::FirstP50 => "1ST50",
            Self::FirstP99 => "1ST99",
            Self::Cpu => "CPU",
            Self::RunQueue => "RUNQ",
            Self::Starved => "STARV%",
            Self::Class => "CL",
            Self::Bound => "±%",
            Self::Model => "MODEL",
        }
    }

    /// What it shows, and in what unit.
    pub(super) const fn meaning(self) -> &'static str {
        match self {
            Self::Service => "container, unit or program",
            Self::Requests => "requests a second that ended",
            Self::InFlight => "requests in flight now",
            Self::Watts => "watts: requests and overhead",
            Self::PerRequest => "joules a request",
            Self::PerOutput => "joules an output token",
            Self::PerToken => "joules a token, input and output",
            Self::Output => "output tokens a second",
            Self::P50 => "median duration, seconds",
            Self::P99 => "99 % are no longer, seconds",
            Self::FirstP50 => "median time to first token, seconds",
            Self::FirstP99 => "99 % have their first by then",
            Self::Cpu => "CPUs used",
            Self::RunQueue => "threads that waited for a CPU",
            Self::Starved => "time its GPU waited for the host",
            Self::Class => "A measured, B coarser, C estimated",
            Self::Bound => "95 % bound of the joules",
            Self::Model => "what it serves",
        }
    }

    /// Its width; of the services' names the least.
    pub(super) const fn width(self) -> u16 {
        match self {
            Self::Service => 12,
            Self::InFlight => 4,
            Self::Class => 2,
            Self::Bound => 5,
            Self::Model => 20,
            _ => 6,
        }
    }

    /// Those that fit beside each other, a blank between two; what is sorted by is always among them.
    pub(super) fn fitting(width: u16, sort: Self) -> Vec<Self> {
        let mut left = width.saturating_sub(Self::Service.width());
        let mut chosen = vec![Self::Service];
        let others = [sort].into_iter().chain(Self::BY_WORTH);
        for column in others {
            let needed = column.width() + 1;
            if !chosen.contains(&column) && needed <= left {
                left -= needed;
                chosen.push(column);
            }
        }
        let is_chosen = |column: &Self| chosen.contains(column);
        Self::ALL.into_iter().filter(is_chosen).collect()
    }

    /// The column `by` places on, around.
    pub(super) fn moved(self, by: isize) -> Self {
        let count = Self::ALL.len() as isize;
        let place = Self::ALL.iter().position(|column| *column == self);
        let place = (place.unwrap_or(0) as isize + by).rem_euclid(count);
        Self::ALL.get(place as usize).copied().unwrap_or_default()
    }

    /// True if letters are what it shows.
    pub(super) const fn is_text(self) -> bool {
        matches!(self, Self::Service | Self::Model)
    }

    fn value(self, of: &ServiceFigures) -> Option<f64> {
        match self {
            Self::Service | Self::Model => None,
            Self::Requests => of.requests,
            Self::InFlight => of.in_flight.map(|count| count as f64),
            Self::Watts => of.watts,
            Self::PerRequest => of.per_request,
            Self::PerOutput => of.per_output,
            Self::PerToken => of.per_token,
            Self::Output => of.output,
            Self::P50 => of.p50,
            Self::P99 => of.p99,
            Self::FirstP50 => of.first_p50,
            Self::FirstP99 => of.first_p99,
            Self::Cpu => of.cpu,
            Self::RunQueue => of.run_queue,
            Self::Starved => of.starved.map(|share| share * 100.0),
            Self::Class => of.class.map(|class| f64::from(class as u8)),
            Self::Bound => of.error_ratio.map(|ratio| ratio * 100.0),
        }
    }

    /// What stands in it.
    pub(super) fn text(self, of: &ServiceFigures) -> String {
        match self {
            Self::Service => of.name.clone(),
            Self::Model => of.model.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
            Self::Class => of.class.map_or(UNKNOWN, |class| class.name()).to_owned(),
            Self::InFlight => count(of.in_flight),
            _ => known(self.value(of)),
        }
    }

    /// What is unknown stands last, whichever way it is sorted.
    fn compare(self, one: &ServiceFigures, other: &ServiceFigures, ascending: bool) -> Ordering {
        let way = |order: Ordering| if ascending { order } else { order.reverse() };
        let order = match self {
            Self::Service => way(one.name.cmp(&other.name)),
            Self::Model => way(one.model.cmp(&other.model)),
            _ => match (self.value(one), self.value(other)) {
                (Some(one), Some(other)) => way(one.total_cmp(&other)),
                (one, other) => other.is_some().cmp(&one.is_some()),
            },
        };
        order.then_with(|| (&one.name, one.id).cmp(&(&other.name, other.id)))
    }
}

/// The services that are wanted, in the order that is wanted.
pub(super) fn listed(model: &Model, ui: &Ui) -> Vec<ServiceFigures> {
    let span = model.span(ui.window);
    let wanted = ui.filter.to_lowercase();
    let is_wanted = |figures: &ServiceFigures| {
        let model = figures.model.iter();
        let mut texts = [&figures.name].into_iter().chain(model);
        texts.any(|text| text.to_lowercase().contains(&wanted))
    };
    let ids: Vec<ServiceId> = model.services.keys().copied().collect();
    let mut listed: Vec<ServiceFigures> = ids
        .into_iter()
        .filter_map(|id| model.service(id, span))
        .filter(is_wanted)
        .collect();
    listed.sort_by(|one, other| ui.sort.compare(one, other, ui.ascending));
    listed
}

/// A figure in at most six characters, three digits of it true.
pub(super) fn figure(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        UNKNOWN.to_owned()
    } else if size == 0.0 {
        "0".to_owned()
    } else if size < 0.000_095 {
        format!("{value:.0e}")
    } else if size < 0.0995 {
        format!("{value:.4}")
    } else if size < 0.9995 {
        format!("{value:.3}")
    } else if size < 9.995 {
        format!("{value:.2}")
    } else if size < 99.95 {
        format!("{value:.1}")
    } else if size < 9_999.5 {
        format!("{value:.0}")
    } else if size < 99_950.0 {
        format!("{:.1}k", value / 1e3)
    } else if size < 999_500.0 {
        format!("{:.0}k", value / 1e3)
    } else if size < 99_950_000.0 {
        format!("{:.1}M", value / 1e6)
    } else {
        format!("{value:.0e}")
    }
}

/// A number of things that may be unknown.
pub(super) fn count(value: Option<u64>) -> String {
    match value {
        Some(value) if value < 10_000 => value.to_string(),
        value => known(value.map(|value| value as f64)),
    }
}

/// A figure that may be unknown.
pub(super) fn known(value: Option<f64>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), figure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_six_characters_at_most_and_unknown_is_never_zero() {
        for (value, shown) in [
            (0.0, "0"),
            (0.000_012, "1e-5"),
            (0.001_23, "0.0012"),
            (0.093_5, "0.0935"),
            (0.609_4, "0.609"),
            (4.207, "4.21"),
            (9.999, "10.0"),
            (44.1, "44.1"),
            (398.2, "398"),
            (8_150.0, "8150"),
            (12_345.0, "12.3k"),
            (123_456.0, "123k"),
            (1_234_567.0, "1.2M"),
            (3e11, "3e11"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(figure(value), shown);
            assert!(figure(value).len() <= 6);
        }
        assert_eq!(known(None), "-");
        assert_eq!((count(Some(11)), count(None)), ("11".into(), "-".into()));
        assert_eq!(count(Some(12_345)), "12.3k");
    }

    #[test]
    fn what_is_sorted_by_is_shown_however_narrow_it_is() {
        for width in 20..200 {
            for sort in Column::ALL {
                let columns = Column::fitting(width, sort);
                let used: u16 = columns.iter().map(|column| column.width() + 1).sum();
                assert!(used <= width + 1, "{width}: {columns:?}");
                assert!(columns.contains(&sort) || sort == Column::Model && width < 33);
            }
        }
        assert_eq!(Column::fitting(200, Column::Watts), Column::ALL);
    }

    #[test]
    fn columns_go_round() {
        assert_eq!(Column::Service.moved(-1), Column::Model);
        assert_eq!(Column::Model.moved(1), Column::Service);
        assert_eq!(Column::Watts.moved(1), Column::PerRequest);
    }
}
