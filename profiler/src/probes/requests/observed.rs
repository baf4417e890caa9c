//! From the kernel's record of a request to the ledger's value.

use profiler_ebpf::http1::Kept;
use profiler_ebpf::request::{self, Facts};

use super::clients::Client;
use super::trace::trace_id;
use super::usage::{Found, usage};
use crate::clock::Timestamp;
use crate::ledger::{
    End, Event, Input, Outcome, Request, RequestId, Route, ServiceId, TraceId, Usage,
};

/// A request as it stood at some moment, and where it was seen.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    /// When it stood so.
    pub at: Timestamp,
    /// The request.
    pub request: Request,
    /// Local port, which is the listener's; 0 for a Unix socket.
    pub port: u16,
    /// The client's port; 0 for a Unix socket, and if not known.
    pub peer_port: u16,
    /// Number of the socket's network namespace, as `/proc/<pid>/ns/net` shows it; 0 if not
    /// known.
    pub network: u32,
    /// Who sent it; what was said first stays.
    pub client: Client,
    /// Address family (`AF_*`).
    pub family: u16,
    /// The process that read the request.
    pub tgid: u32,
    /// Bytes of the response so far: head, framing and body.
    pub response_bytes: u64,
    /// Those of the request's chunks that went out with the first data.
    pub first_chunks: u64,
    /// Part of the response could not be read: `chunks` may be too small.
    pub truncated: bool,
    /// What the server itself counted of it, told with its end.
    pub usage: Option<Usage>,
    /// The trace it belongs to, if its client said so and trace ids are asked for.
    pub trace: Option<TraceId>,
}

impl Observed {
    /// As the ledger takes it.
    pub const fn event(&self) -> Event {
        Event::Request {
            at: self.at,
            request: self.request,
        }
    }
}

/// Chunks that may follow the one with the token counts: events that mark the end.
const MARKS: u32 = 2;

/// What the kept end of a finished response says; nothing if more of the response followed it.
pub(super) fn found(facts: &Facts, kept: &Kept) -> Option<Found> {
    let (bytes, length) = kept.in_order();
    let followed = facts.chunks.wrapping_sub(kept.chunks);
    if facts.flags & request::TAIL == 0 || followed > MARKS {
        return None;
    }
    usage(bytes.get(..length)?)
}

/// The chunk that is held back counts when the request has ended, unless it is nothing but token
/// counts.
fn held(facts: &Facts, ended: bool, found: Option<Found>) -> u64 {
    let held = facts.flags & request::HELD != 0;
    u64::from(ended && held && !found.is_some_and(|found| found.only))
}

/// The last moment at which anything of the exchange moved.
pub(super) fn latest(facts: &Facts) -> Timestamp {
    Timestamp(
        facts
            .start
            .max(facts.request_end)
            .max(facts.head)
            .max(facts.last_data),
    )
}

/// The path in a request's first bytes, without query: `POST /v1/completions?x HTTP/1.1`, or
/// behind the host: `GET http://host/v1/models HTTP/1.1`.
fn path(facts: &Facts) -> &[u8] {
    let line = facts
        .line
        .get(..usize::from(facts.line_len))
        .unwrap_or_default();
    let path = line
        .split(u8::is_ascii_whitespace)
        .nth(1)
        .unwrap_or_default();
    let path = match path
        .strip_prefix(b"http://")
        .or(path.strip_prefix(b"https://"))
    {
        Some(rest) => {
            let host = rest.iter().take_while(|byte| **byte != b'/').count();
            rest.get(host..).unwrap_or_default()
        }
        None => path,
    };
    path.split(|byte| *byte == b'?').next().unwrap_or_default()
}

/// The request behind `facts`, open unless `end` says otherwise; `found` at the end of its
/// response.
pub(super) fn observe(
    facts: &Facts,
    service: ServiceId,
    end: Option<End>,
    found: Option<Found>,
    route: impl Fn(&[u8]) -> Route,
) -> Observed {
    let time = |nanos: u64| (nanos != 0).then_some(Timestamp(nanos));
    let route = route(path(facts));
    let lines = facts.flags & (request::SSE | request::NDJSON) != 0;
    // Every gRPC response is a sequence of messages; one that is not of one message streams.
    let messages =
        facts.flags & request::GRPC != 0 && (facts.chunks > 1 || route == Route::ModelStreamInfer);
    let streamed = lines || messages;
    let counted = |chunks: u32| {
        let single = facts.flags & request::GRPC != 0 && !streamed;
        if single { 0 } else { u64::from(chunks) }
    };
    Observed {
        at: latest(facts).max(end.map_or(Timestamp(0), |end| end.at)),
        request: Request {
            id: RequestId(facts.id),
            service,
            route,
            start: Timestamp(facts.start),
            first_data: time(facts.first_data),
            last_data: time(facts.last_data).filter(|_| facts.first_data != 0),
            input: Input::Bytes(facts.request_bytes),
            chunks: counted(facts.chunks) + held(facts, end.is_some(), found),
            streamed,
            status: facts.status,
            end,
        },
        port: facts.port,
        peer_port: facts.peer_port,
        network: facts.network,
        client: Client::of(facts),
        family: facts.family,
        tgid: facts.tgid,
        response_bytes: facts.response_bytes,
        first_chunks: counted(facts.first_chunks),
        truncated: facts.flags & request::TRUNCATED != 0,
        usage: found.map(|found| found.usage),
        trace: trace_id(facts),
    }
}

/// How the kernel says it ended.
pub(super) fn end_of(facts: &Facts) -> End {
    End {
        at: Timestamp(facts.end),
        outcome: match facts.outcome {
            request::Outcome::DONE => Outcome::Done,
            request::Outcome::ABORTED => Outcome::Aborted,
            _ => Outcome::Incomplete,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::requests::fixtures::facts;

    #[test]
    fn a_route_is_found_by_the_path_without_its_query() {
        for (line, expected) in [
            (
                &b"POST /v1/completions HTTP/1.1\r\n"[..],
                &b"/v1/completions"[..],
            ),
            (b"GET /health?verbose=1 HTTP/1.1\r\n", b"/health"),
            (
                b"GET http://host:80/v1/models?x HTTP/1.1\r\n",
                b"/v1/models",
            ),
            (b"OPTIONS * HTTP/1.1\r\n", b"*"),
            (b"GET /a-path-that-is-cut", b"/a-path-that-is-cut"),
            (b"GET", b""),
            (b"", b""),
        ] {
            let facts = facts(line);
            let seen = std::cell::RefCell::new(Vec::new());
            observe(&facts, ServiceId(1), None, None, |path| {
                seen.borrow_mut().extend_from_slice(path);
                Route::Other
            });
            assert_eq!(seen.into_inner(), expected);
        }
    }

    fn kept(text: &str, chunks: u32) -> Kept {
        let mut kept = Kept {
            length: text.len() as u32,
            chunks,
            bytes: [0; profiler_ebpf::http1::KEPT],
        };
        for (at, byte) in text.bytes().enumerate() {
            kept.bytes[at % profiler_ebpf::http1::KEPT] = byte;
        }
        kept
    }

    #[test]
    fn a_chunk_of_token_counts_alone_is_no_output_and_one_with_text_is() {
        let only = r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#;
        let text =
            r#"data: {"choices":[{"text":"x"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#;
        let long = format!("data: {{\"x\":\"{}\",{}", "y".repeat(700), &only[7..]);
        let end = Some(End {
            at: Timestamp(100),
            outcome: Outcome::Done,
        });
        let mut facts = facts(b"POST / ");
        facts.chunks = 3;
        facts.flags = request::HELD | request::TAIL;
        for (line, chunks) in [
            (only, 3),
            (text, 4),
            (&long, 3),
            (r#"data: {"n":{"a":1}}"#, 4),
        ] {
            let found = found(&facts, &kept(line, 3));
            assert_eq!(found.is_some(), line.contains("usage"), "{line}");
            let seen = observe(&facts, ServiceId(1), end, found, |_| Route::Other);
            assert_eq!(seen.request.chunks, chunks, "{line}");
            assert_eq!(seen.usage.and_then(|usage| usage.output), found.map(|_| 3));
            let alive = observe(&facts, ServiceId(1), None, None, |_| Route::Other);
            assert_eq!(alive.request.chunks, 3, "it may be no output");
        }
    }

    #[test]
    fn counts_that_more_output_followed_are_old() {
        let line = r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#;
        let mut facts = facts(b"POST / ");
        facts.flags = request::TAIL;
        for (chunks, is_told) in [(5, true), (7, true), (8, false)] {
            facts.chunks = chunks;
            assert_eq!(found(&facts, &kept(line, 5)).is_some(), is_told);
        }
        facts.flags = 0;
        facts.chunks = 5;
        assert!(found(&facts, &kept(line, 5)).is_none(), "another request's");
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let observed = observe(&facts(b"GET / "), ServiceId(1), None, None, |_| {
            Route::Other
        });
        assert_eq!(observed.request.first_data, None);
        assert_eq!(observed.request.last_data, None);
        assert!(observed.request.end.is_none());
    }
}
