//! What the headers of HTTP/2 streams say: the kernel side gives each header block to the agent,
//! which alone can decode them, and follows the frames itself.
//!
//! In: the ring's notices, in order. Out: a stream's [`Facts`] completed with path, status and
//! the kind of its body, as an HTTP/1 socket's have them from the kernel. Of a header block the
//! path (≤ 64 bytes), two statuses, the content type and, where it is asked for, the trace's id
//! are kept until the stream ends; of these only the trace's id is told.

mod hpack;

use std::collections::{BTreeMap, HashMap};

use profiler_ebpf::request::{
    BLOCK_BEGIN, BLOCK_END, BLOCK_PROMISE, BLOCK_SENT, ENDED, ENDED_BY_CLIENT, Facts, GRPC, HELD,
    HTTP2, NDJSON, NOTICE, Notice, Outcome, Phase, SSE, TRACE,
};

use super::observed::latest;
use hpack::{Content, Decoder, Field};

/// Connections whose headers are decoded at once; streams of any more have the route `other` and
/// no status.
const CONNECTIONS: usize = 4_096;

/// Streams of one connection whose headers are kept at once.
const STREAMS: usize = 4_096;

/// Bytes of a header block; a longer one is not decoded.
const BLOCK: usize = 65_536;

/// A connection has ended, or some of its streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) connection: u64,
    /// The highest stream that is still served; 0 where none is.
    pub(super) above: u32,
    /// The client closed or reset it first.
    pub(super) by_client: bool,
    /// When.
    pub(super) at: u64,
}

impl Ended {
    /// The end of a connection of which nothing is known but that it is gone.
    pub(super) const fn forgotten(connection: u64) -> Self {
        Self {
            connection,
            above: 0,
            by_client: false,
            at: 0,
        }
    }
}

/// Ends a stream that was open when its connection ended, as HTTP/1's requests end at a close.
pub(super) fn close(facts: &mut Facts, ended: &Ended) {
    let last = latest(facts).0;
    (facts.end, facts.outcome) = if ended.by_client {
        (ended.at.max(last), Outcome::ABORTED)
    } else {
        (last, Outcome::INCOMPLETE)
    };
    facts.phase = Phase::IDLE;
}

/// True for a record that is no request.
pub(super) fn is_notice(record: &[u8]) -> bool {
    record.starts_with(&NOTICE.to_ne_bytes())
}

/// What is known of the streams that are open.
#[derive(Debug, Default)]
pub(super) struct Streams {
    connections: HashMap<u64, Connection>,
    trace_ids: bool,
}

#[derive(Debug, Default)]
struct Connection {
    received: Direction,
    sent: Direction,
    streams: BTreeMap<u32, Headers>,
}

/// One direction's header blocks.
#[derive(Debug, Default)]
struct Direction {
    decoder: Decoder,
    /// Number of the last piece.
    number: u16,
    /// The block that is coming; `None` where its beginning is not known.
    block: Option<Vec<u8>>,
}

/// What a stream's headers have said.
#[derive(Debug, Default)]
struct Headers {
    path: Option<Box<[u8]>>,
    status: u16,
    grpc_status: Option<u32>,
    content: Option<Content>,
    trace: Option<Box<[u8; TRACE]>>,
}

impl Direction {
    /// Takes a piece of a block; returns the block once it is whole.
    fn piece(&mut self, notice: &Notice, bytes: &[u8]) -> Option<Vec<u8>> {
        if notice.number != self.number.wrapping_add(1) {
            // One was lost, or the connection is older than the agent.
            self.decoder.forget();
            self.block = None;
        }
        self.number = notice.number;
        if notice.kind & BLOCK_BEGIN != 0 {
            self.block = Some(Vec::new());
        }
        let block = self.block.as_mut()?;
        if block.len() + bytes.len() > BLOCK {
            self.decoder.forget();
            self.block = None;
            return None;
        }
        block.extend_from_slice(bytes);
        if notice.kind & BLOCK_END == 0 {
            return None;
        }
        self.block.take()
    }
}

impl Headers {
    fn take(&mut self, field: &Field) {
        match field {
            Field::Path(path) => self.path = Some(path.clone()),
            // An interim response's is not the response's.
            Field::Status(status) if *status >= 200 => self.status = *status,
            Field::GrpcStatus(status) => self.grpc_status = Some(*status),
            Field::Content(content) => self.content = Some(*content),
            Field::Trace(trace) => self.trace = Some(trace.clone()),
            Field::Status(_) | Field::Other => {}
        }
    }

    /// The status, as HTTP has it. gRPC answers every request with 200 and says in the trailers
    /// how it went.
    fn status(&self) -> u16 {
        match self.grpc_status {
            Some(status) if self.status == 200 => http_status(status),
            _ => self.status,
        }
    }
}

/// The HTTP status of a gRPC status: the mapping of `google.rpc.Code` (`google/rpc/code.proto`),
/// whose comments name it.
const fn http_status(grpc: u32) -> u16 {
    match grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        // UNKNOWN, INTERNAL, DATA_LOSS, and what is no gRPC status.
        _ => 500,
    }
}

impl Streams {
    /// Reads the trace ids of connections that begin from now on.
    pub(super) const fn read_trace_ids(&mut self) {
        self.trace_ids = true;
    }

    /// Takes a record of the ring that is no request; returns what it ends.
    pub(super) fn notice(&mut self, record: &[u8]) -> Option<Ended> {
        let (notice, bytes) = parse(record)?;
        if notice.kind & ENDED != 0 {
            return Some(Ended {
                connection: notice.connection,
                above: notice.stream,
                by_client: notice.kind & ENDED_BY_CLIENT != 0,
                at: notice.at,
            });
        }
        if self.connections.len() >= CONNECTIONS
            && !self.connections.contains_key(&notice.connection)
        {
            return None;
        }
        let trace_ids = self.trace_ids;
        let connection = self
            .connections
            .entry(notice.connection)
            .or_insert_with(|| Connection::new(trace_ids));
        connection.block(&notice, bytes.get(..usize::from(notice.length))?);
        None
    }

    /// Whether a request's own headers have come.
    pub(super) fn knows(&self, facts: &Facts) -> bool {
        self.connections
            .get(&facts.connection)
            .is_some_and(|connection| connection.streams.contains_key(&facts.stream))
    }

    /// Adds to the kernel's facts of a stream what its headers say.
    pub(super) fn complete(&self, facts: &mut Facts) {
        if facts.flags & HTTP2 == 0 {
            return;
        }
        if facts.stream == 0 {
            return;
        }
        let headers = self
            .connections
            .get(&facts.connection)
            .and_then(|connection| connection.streams.get(&facts.stream));
        let Some(headers) = headers else {
            keep(facts, GRPC | SSE);
            return;
        };
        facts.status = headers.status();
        if let Some(trace) = &headers.trace {
            facts.trace = **trace;
            facts.trace_len = TRACE as u8;
        }
        if let Some(path) = &headers.path {
            // As HTTP/1's line begins: a method, which nobody asks for, and the path.
            let line = b"* ".iter().chain(path.iter());
            let mut length = 0;
            for (to, from) in facts.line.iter_mut().zip(line) {
                *to = *from;
                length += 1;
            }
            facts.line_len = length;
        }
        let counted = match headers.content {
            // What begins like a line of JSON is more often one answer.
            None => GRPC | SSE,
            Some(Content::Grpc) => GRPC,
            Some(Content::EventStream) => SSE,
            Some(Content::JsonLines) => NDJSON,
            Some(Content::Other) => 0,
        };
        keep(facts, counted);
    }

    /// A stream has ended and been told.
    pub(super) fn forget(&mut self, facts: &Facts) {
        if let Some(connection) = self.connections.get_mut(&facts.connection) {
            connection.streams.remove(&facts.stream);
        }
    }

    /// A connection is gone.
    pub(super) fn forget_connection(&mut self, connection: u64) {
        self.connections.remove(&connection);
    }
}

impl Connection {
    fn new(trace_ids: bool) -> Self {
        let mut connection = Self::default();
        if trace_ids {
            connection.received.decoder = Decoder::with_trace_ids();
        }
        connection
    }

    fn block(&mut self, notice: &Notice, bytes: &[u8]) {
        let sent = notice.kind & BLOCK_SENT != 0;
        let direction = if sent {
            &mut self.sent
        } else {
            &mut self.received
        };
        let begins_request = !sent && notice.kind & BLOCK_END != 0;
        let block = direction.piece(notice, bytes);
        if notice.kind & BLOCK_PROMISE != 0 {
            // A promised request's: read for the table's sake.
            if let Some(block) = block {
                let _ = direction.decoder.decode(&block, |_| {});
            }
            return;
        }
        if begins_request && !self.streams.contains_key(&notice.stream) {
            if self.streams.len() >= STREAMS {
                self.streams.pop_first();
            }
            self.streams.insert(notice.stream, Headers::default());
        }
        let Some(block) = block else { return };
        let mut ignored = Headers::default();
        let headers = self.streams.get_mut(&notice.stream).unwrap_or(&mut ignored);
        // What a malformed block has said before its fault stands.
        let _ = direction
            .decoder
            .decode(&block, |field| headers.take(field));
    }
}

/// A record's notice and what lies behind it; `None` if it is no notice.
fn parse(record: &[u8]) -> Option<(Notice, &[u8])> {
    let (head, bytes) = record.split_at_checked(size_of::<Notice>())?;
    // SAFETY: as many bytes as a `Notice` has, every bit pattern of which is valid; the read may
    // be unaligned.
    let notice = unsafe { head.as_ptr().cast::<Notice>().read_unaligned() };
    (notice.mark == NOTICE).then_some((notice, bytes))
}

/// The kernel side guesses what a body is made of. Chunks of one that is `counted` stay; those of
/// any other were none.
fn keep(facts: &mut Facts, counted: u16) {
    if facts.flags & (GRPC | SSE | NDJSON) & !counted != 0 {
        facts.flags &= !(GRPC | SSE | NDJSON | HELD);
        facts.chunks = 0;
        facts.first_chunks = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::requests::fixtures::facts;
    use crate::probes::requests::trace::trace_id;

    const POST_INFER: &[u8] = b"\x83\x86\x44\x06/infer\x5f\x10application/grpc";

    fn record(stream: u32, number: u16, kind: u32, bytes: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(NOTICE.to_ne_bytes());
        record.extend(5u64.to_ne_bytes());
        record.extend(stream.to_ne_bytes());
        record.extend(number.to_ne_bytes());
        record.extend((bytes.len() as u16).to_ne_bytes());
        record.extend(kind.to_ne_bytes());
        record.extend(0u32.to_ne_bytes());
        record.extend(9u64.to_ne_bytes());
        record.extend(bytes);
        record
    }

    fn stream(stream: u32) -> Facts {
        Facts {
            connection: 5,
            stream,
            flags: HTTP2 | GRPC,
            chunks: 3,
            first_chunks: 1,
            ..facts(b"")
        }
    }

    fn completed(streams: &Streams, number: u32) -> Facts {
        let mut facts = stream(number);
        streams.complete(&mut facts);
        facts
    }

    const WHOLE: u32 = BLOCK_BEGIN | BLOCK_END;

    #[test]
    fn a_stream_has_its_path_and_status_from_its_headers() {
        let mut streams = Streams::default();
        assert!(!streams.knows(&stream(1)));
        streams.notice(&record(1, 1, BLOCK_BEGIN, &POST_INFER[..5]));
        streams.notice(&record(1, 2, BLOCK_END, &POST_INFER[5..]));
        assert!(streams.knows(&stream(1)));
        streams.notice(&record(1, 1, BLOCK_SENT | WHOLE, b"\x48\x03103"));
        assert_eq!(completed(&streams, 1).status, 0);
        streams.notice(&record(1, 2, BLOCK_SENT | WHOLE, &[0x88]));
        let facts = completed(&streams, 1);
        assert_eq!(&facts.line[..usize::from(facts.line_len)], b"* /infer");
        assert_eq!((facts.status, facts.chunks), (200, 3));
        // The next request's path lies in the table.
        streams.notice(&record(3, 3, WHOLE, &[0x83, 0x86, 0xbf]));
        assert_eq!(completed(&streams, 3).line_len, 8);
        streams.forget(&stream(1));
        assert_eq!(completed(&streams, 1).line_len, 0);
    }

    #[test]
    fn a_stream_has_its_trace_where_trace_ids_are_asked_for() {
        let mut block = POST_INFER.to_vec();
        block.extend(b"\x40\x0btraceparent\x37");
        block.extend(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        for asked in [true, false] {
            let mut streams = Streams::default();
            if asked {
                streams.read_trace_ids();
            }
            streams.notice(&record(1, 1, WHOLE, &block));
            streams.notice(&record(3, 2, WHOLE, POST_INFER));
            let told = |stream| trace_id(&completed(&streams, stream)).map(|id| id.to_string());
            let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
            assert_eq!(told(1).as_deref(), asked.then_some(trace));
            assert_eq!(told(3), None);
        }
    }

    #[test]
    fn a_grpc_error_is_seen_though_its_response_is_200() {
        for (grpc, status) in [
            ("0", 200),
            ("5", 404),
            ("8", 429),
            ("13", 500),
            ("14", 503),
            ("99", 500),
        ] {
            let mut streams = Streams::default();
            streams.notice(&record(1, 1, WHOLE, POST_INFER));
            streams.notice(&record(1, 1, BLOCK_SENT | WHOLE, &[0x88]));
            let mut trailers = b"\x40\x0bgrpc-status".to_vec();
            trailers.push(grpc.len() as u8);
            trailers.extend(grpc.as_bytes());
            streams.notice(&record(1, 2, BLOCK_SENT | WHOLE, &trailers));
            assert_eq!(completed(&streams, 1).status, status, "{grpc}");
        }
    }

    #[test]
    fn chunks_of_a_body_that_is_something_else_are_none() {
        let mut streams = Streams::default();
        streams.notice(&record(1, 1, WHOLE, POST_INFER));
        let json = b"\x88\x5f\x10application/json";
        streams.notice(&record(1, 1, BLOCK_SENT | WHOLE, json));
        let facts = completed(&streams, 1);
        assert_eq!(
            (facts.chunks, facts.first_chunks, facts.flags),
            (0, 0, HTTP2)
        );
    }

    #[test]
    fn lines_of_json_are_chunks_where_the_content_type_says_so() {
        let types: [(&[u8], u64); 3] = [
            (b"\x88\x5f\x14application/x-ndjson", 3),
            (b"\x88\x5f\x10application/json", 0),
            (b"\x88", 0),
        ];
        for (block, chunks) in types {
            let mut streams = Streams::default();
            streams.notice(&record(1, 1, WHOLE, POST_INFER));
            streams.notice(&record(1, 1, BLOCK_SENT | WHOLE, block));
            let mut facts = stream(1);
            facts.flags = HTTP2 | NDJSON | HELD;
            streams.complete(&mut facts);
            assert_eq!(u64::from(facts.chunks), chunks, "{block:?}");
            assert_eq!(facts.flags & (NDJSON | HELD) != 0, chunks != 0, "{block:?}");
        }
    }

    #[test]
    fn a_lost_block_makes_the_table_unknown_and_nothing_wrong() {
        let mut streams = Streams::default();
        streams.notice(&record(1, 1, WHOLE, POST_INFER));
        // Number 2, which put something in the table, was lost.
        streams.notice(&record(5, 3, WHOLE, &[0x83, 0x86, 0xbf]));
        let facts = completed(&streams, 5);
        assert_eq!((facts.line_len, facts.status), (0, 0));
        // A piece whose beginning was lost says nothing.
        streams.notice(&record(7, 9, BLOCK_END, POST_INFER));
        assert_eq!(completed(&streams, 7).line_len, 0);
        streams.notice(&record(9, 10, WHOLE, POST_INFER));
        assert_eq!(completed(&streams, 9).line_len, 8);
    }

    #[test]
    fn what_is_kept_is_bounded_and_goes_with_its_connection() {
        let mut streams = Streams::default();
        for n in 0..2 * STREAMS as u32 {
            streams.notice(&record(2 * n + 1, n as u16 + 1, WHOLE, &[0x83]));
        }
        assert_eq!(streams.connections[&5].streams.len(), STREAMS);
        let piece = [0; 1_000];
        for n in 0..200 {
            streams.notice(&record(1, n, if n == 0 { BLOCK_BEGIN } else { 0 }, &piece));
        }
        assert!(streams.connections[&5].received.block.is_none());
        let ended = streams.notice(&record(0, 0, ENDED | ENDED_BY_CLIENT, &[]));
        let expected = Ended {
            connection: 5,
            above: 0,
            by_client: true,
            at: 9,
        };
        assert_eq!(ended, Some(expected));
        streams.forget_connection(5);
        assert!(streams.connections.is_empty());
    }

    #[test]
    fn a_record_that_is_no_notice_is_left_alone() {
        let mut streams = Streams::default();
        assert_eq!(streams.notice(b"GET / HTTP/1.1"), None);
        assert_eq!(streams.notice(&[0; 240]), None);
        let mut cut = record(1, 1, WHOLE, POST_INFER);
        cut.truncate(50);
        assert_eq!(streams.notice(&cut), None);
        assert!(
            streams
                .connections
                .get(&5)
                .is_none_or(|connection| connection.streams.is_empty())
        );
    }
}
