//! From the kernel's record of a request to the ledger's value.

use profiler_ebpf::request::{self, Facts};

use super::clients::Client;
use crate::clock::Timestamp;
use crate::ledger::{End, Event, Input, Outcome, Request, RequestId, Route, ServiceId, Usage};

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

/// The path in a request's first bytes, without query: `POST /v1/completions?x HTTP/1.1`.
fn path(facts: &Facts) -> &[u8] {
    let line = facts
        .line
        .get(..usize::from(facts.line_len))
        .unwrap_or_default();
    let path = line
        .split(u8::is_ascii_whitespace)
        .nth(1)
        .unwrap_or_default();
    path.split(|byte| *byte == b'?').next().unwrap_or_default()
}

/// The request behind `facts`, open unless `end` says otherwise.
pub(super) fn observe(
    facts: &Facts,
    service: ServiceId,
    end: Option<End>,
    route: impl Fn(&[u8]) -> Route,
) -> Observed {
    let time = |nanos: u64| (nanos != 0).then_some(Timestamp(nanos));
    Observed {
        at: latest(facts).max(end.map_or(Timestamp(0), |end| end.at)),
        request: Request {
            id: RequestId(facts.id),
            service,
            route: route(path(facts)),
            start: Timestamp(facts.start),
            first_data: time(facts.first_data),
            last_data: time(facts.last_data).filter(|_| facts.first_data != 0),
            input: Input::Bytes(facts.request_bytes),
            chunks: u64::from(facts.chunks),
            streamed: facts.flags & (request::SSE | request::NDJSON) != 0,
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
        first_chunks: u64::from(facts.first_chunks),
        truncated: facts.flags & request::TRUNCATED != 0,
        usage: None,
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
            (b"GET /a-path-that-is-cut", b"/a-path-that-is-cut"),
            (b"GET", b""),
            (b"", b""),
        ] {
            let facts = facts(line);
            let seen = std::cell::RefCell::new(Vec::new());
            observe(&facts, ServiceId(1), None, |path| {
                seen.borrow_mut().extend_from_slice(path);
                Route::Other
            });
            assert_eq!(seen.into_inner(), expected);
        }
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let observed = observe(&facts(b"GET / "), ServiceId(1), None, |_| Route::Other);
        assert_eq!(observed.request.first_data, None);
        assert_eq!(observed.request.last_data, None);
        assert!(observed.request.end.is_none());
    }
}
