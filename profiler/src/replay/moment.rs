//! Times of a log: seconds of any clock, as long as both logs have the same one.

use crate::clock::Timestamp;

/// Nanoseconds beyond this do not fit a recording; seconds since 1970 reach it in 2262.
const LATEST_S: f64 = 9.2e9;

/// A time of a log; what is wrong with it and what to do, if it is none.
pub(super) fn moment(key: &str, seconds: f64) -> Result<Timestamp, (String, &'static str)> {
    if seconds.is_nan() || seconds < 0.0 {
        let cause = format!("{key} is {seconds}");
        return Err((
            cause,
            "a time is a number of seconds, 0 or more: shift both logs alike",
        ));
    }
    if seconds > LATEST_S {
        let cause = format!("{key} is {seconds}, which is after the year 2262");
        return Err((cause, "give seconds, not milliseconds or nanoseconds"));
    }
    // Whole and fraction apart: their product would be rounded to 256 ns since 1970.
    let whole = seconds.trunc();
    let nanos = ((seconds - whole) * 1e9).round() as u64;
    Ok(Timestamp(whole as u64 * 1_000_000_000 + nanos))
}
