//! The period of a fleet's report and its parts, on the grid of five minutes that rules.yaml records on.

use std::str::FromStr;

use thiserror::Error;

use crate::report::planner::trend::MOST;

/// Between two samples, seconds: `interval` of the group perjoule-report.
pub(super) const STEP: i64 = 300;
/// By the latest sample's age the rules, and what carries their series, may be late, seconds.
const LATE: i64 = 60;

/// Why a period is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PeriodError {
    /// It ends before it begins, or soon after.
    #[error("from {from} to {to} are less than ten minutes; --from must be earlier, or --to later")]
    Short {
        /// The start as it was understood.
        from: String,
        /// The end as it was understood.
        to: String,
    },
}

/// A time as a user gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Seconds since 1970.
    At(i64),
    /// Seconds before now.
    Ago(i64),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "now" {
            return Ok(Self::Ago(0));
        }
        if let Ok(seconds) = text.parse() {
            return Ok(Self::At(seconds));
        }
        if let Some(ago) = ago(text) {
            return Ok(Self::Ago(ago));
        }
        let parsed = text.parse::<jiff::Timestamp>();
        parsed.map(|at| Self::At(at.as_second())).map_err(|_| {
            "a time is RFC 3339 with a zone (2026-11-01T00:00:00Z), Unix seconds, now, or so long ago (30d, 12h, 90m)".to_owned()
        })
    }
}

/// `30d` in seconds.
fn ago(text: &str) -> Option<i64> {
    let unit = text.chars().next_back()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return None,
    };
    let count: u32 = text.get(..text.len() - unit.len_utf8())?.parse().ok()?;
    i64::from(count).checked_mul(seconds)
}

impl Moment {
    /// Now is the last five minutes that are over, and recorded everywhere.
    const fn seconds(self, now: i64) -> i64 {
        match self {
            Self::At(seconds) => seconds,
            Self::Ago(ago) => (now - LATE) / STEP * STEP - ago,
        }
    }
}

/// A time of whole five minutes, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period {
    /// Its start.
    pub(super) from: i64,
    /// Its end.
    pub(super) to: i64,
}

impl Period {
    /// The whole five minutes before `to` that are not before `from`.
    ///
    /// # Errors
    /// Where that is no two of them.
    pub(super) fn new(from: Moment, to: Moment, now: i64) -> Result<Self, PeriodError> {
        let (from, to) = (from.seconds(now), to.seconds(now));
        let steps = to.saturating_sub(from) / STEP;
        if steps < 2 {
            return Err(PeriodError::Short {
                from: shown(from),
                to: shown(to),
            });
        }
        Ok(Self {
            from: to - steps * STEP,
            to,
        })
    }

    /// Its length.
    pub(super) const fn seconds(self) -> i64 {
        self.to - self.from
    }

    /// Samples that a series has in it.
    pub(super) const fn steps(self) -> i64 {
        self.seconds() / STEP
    }

    /// Parts of whole steps that differ by one step at most; even in number.
    pub(super) fn parts(self) -> impl Iterator<Item = Self> {
        let steps = self.steps();
        let count = (steps / 2 * 2).clamp(2, MOST as i64);
        let cut = move |place: i64| self.from + place * steps / count * STEP;
        (0..count).map(move |place| Self {
            from: cut(place),
            to: cut(place + 1),
        })
    }
}

/// RFC 3339.
pub(super) fn shown(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_000_123;

    fn period(from: &str, to: &str) -> Result<Period, PeriodError> {
        Period::new(from.parse().unwrap(), to.parse().unwrap(), NOW)
    }

    #[test]
    fn a_time_is_a_date_seconds_now_or_so_long_ago() {
        for (text, moment) in [
            ("2026-11-01T00:00:00Z", Moment::At(1_793_491_200)),
            ("2026-11-01T02:00:00+02:00", Moment::At(1_793_491_200)),
            ("1793491200", Moment::At(1_793_491_200)),
            ("now", Moment::Ago(0)),
            ("30d", Moment::Ago(2_592_000)),
            ("90m", Moment::Ago(5_400)),
        ] {
            assert_eq!(text.parse(), Ok(moment), "{text}");
        }
        for text in ["", "d", "-3d", "yesterday", "2026-11-01", "3é"] {
            let error = text.parse::<Moment>().unwrap_err();
            assert!(
                error.contains("RFC 3339") && error.contains("30d"),
                "{text}"
            );
        }
    }

    #[test]
    fn now_is_the_last_five_minutes_that_are_surely_recorded() {
        let month = period("30d", "now").unwrap();
        assert_eq!(month.to % STEP, 0);
        assert!((LATE..LATE + STEP).contains(&(NOW - month.to)));
        assert_eq!(month.steps(), 8_640);
    }

    #[test]
    fn a_period_is_whole_steps_and_its_parts_are_all_of_it() {
        for seconds in [600, 900, 86_400, 604_800, 2_592_000, 2_592_300, 31_536_001] {
            let end = 1_795_000_000;
            let period = Period::new(Moment::At(end - seconds), Moment::At(end), NOW).unwrap();
            assert!(
                (0..STEP).contains(&(seconds - period.seconds())),
                "{seconds}"
            );
            let parts: Vec<Period> = period.parts().collect();
            assert!(parts.len().is_multiple_of(2) && parts.len() <= 60);
            assert_eq!(
                (parts[0].from, parts[parts.len() - 1].to),
                (period.from, end)
            );
            assert!(parts.windows(2).all(|two| two[0].to == two[1].from));
            let lengths = || parts.iter().map(|part| part.seconds());
            assert!(lengths().all(|length| length % STEP == 0 && length > 0));
            assert!(lengths().max().unwrap() - lengths().min().unwrap() <= STEP);
        }
    }

    #[test]
    fn a_period_that_is_none_says_how_it_was_understood() {
        let error = period("now", "30d").unwrap_err().to_string();
        assert!(
            error.contains("ten minutes") && error.contains("--from"),
            "{error}"
        );
        let error = period("2026-11-01T00:00:00Z", "1793491500")
            .unwrap_err()
            .to_string();
        assert!(error.contains("2026-11-01T00:05:00Z"), "{error}");
    }
}
