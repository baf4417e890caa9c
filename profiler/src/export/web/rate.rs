//! `rate_limit`: a token bucket over all requests.

use std::time::{Duration, Instant};

use super::file::RateLimit;

/// How many requests may come at once, as of a moment.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// With as many as the limit allows.
    pub(super) const fn full(now: Instant) -> Self {
        Self {
            tokens: f64::INFINITY,
            at: now,
        }
    }

    /// True if a request may be answered now.
    pub(super) fn take(&mut self, limit: RateLimit, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        let grown = self.tokens + passed / limit.interval.as_secs_f64();
        self.tokens = grown.min(f64::from(limit.burst.get()));
        let is_allowed = self.tokens >= 1.0;
        if is_allowed {
            self.tokens -= 1.0;
        }
        is_allowed
    }
}

/// A time as Go writes it: `1s`, `1m30s`, `0.5h`; `None` if it is not one.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, behind) = rest.split_at_checked(digits)?;
        let letters = behind.find(|letter: char| letter.is_ascii_digit() || letter == '.');
        let (unit, next) = behind.split_at_checked(letters.unwrap_or(behind.len()))?;
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = next;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_an_interval() {
        let limit = RateLimit {
            interval: Duration::from_secs(1),
            burst: 2.try_into().unwrap(),
        };
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let mut at = |millis| bucket.take(limit, start + Duration::from_millis(millis));
        assert!(at(0) && at(0));
        assert!(!at(0) && !at(900));
        assert!(at(1000) && !at(1000));
        assert!(at(9000) && at(9000) && !at(9000));
    }

    #[test]
    fn times_are_read_as_go_reads_them() {
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("0.5h"), Some(Duration::from_secs(1800)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        for wrong in ["", "1", "s", "1d", "1s2", "-1s", "1..s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
