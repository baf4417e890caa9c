//! The id in a request's `traceparent` header: `00-<32 digits of the trace>-`, what follows is not
//! kept.
//!
//! Source: W3C Trace Context §3.2.2: lower-case digits, version ff and the id 0 are invalid, and a
//! higher version is read as far as it is known.

use profiler_ebpf::request::{Facts, TRACE};

use crate::ledger::TraceId;

/// The trace a request belongs to, if its head said so.
pub(super) fn trace_id(facts: &Facts) -> Option<TraceId> {
    if usize::from(facts.trace_len) != TRACE {
        return None;
    }
    let mut fields = facts.trace.split(|byte| *byte == b'-');
    let version = digits::<1>(fields.next()?)?;
    let trace = digits::<16>(fields.next()?)?;
    let ends = fields.next()?.is_empty() && fields.next().is_none();
    (ends && version != [0xff] && trace != [0; 16]).then_some(TraceId(trace))
}

/// Exactly `2 * N` lower-case hexadecimal digits.
fn digits<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = *pair else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::requests::fixtures::facts;

    fn told(value: &str) -> Option<String> {
        let mut facts = facts(b"GET / ");
        facts.trace_len = value.len() as u8;
        for (to, from) in facts.trace.iter_mut().zip(value.bytes()) {
            *to = from;
        }
        trace_id(&facts).map(|trace| trace.to_string())
    }

    #[test]
    fn a_trace_id_is_told_only_if_the_header_is_valid() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let zero = "0".repeat(32);
        assert_eq!(told(&format!("00-{trace}-")), Some(trace.to_owned()));
        assert_eq!(told(&format!("cc-{trace}-")), Some(trace.to_owned()));
        for invalid in [
            format!("ff-{trace}-"),
            format!("00-{zero}-"),
            format!("00-{}-", trace.to_uppercase()),
            format!("00_{trace}-"),
            format!("00-{trace}0"),
            format!("00-{trace}"),
            format!("00-{}--", &trace[1..]),
            "x".repeat(TRACE),
            String::new(),
        ] {
            assert_eq!(told(&invalid), None, "{invalid}");
        }
    }
}
