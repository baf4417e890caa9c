//! One request as the kernel follows it: the slot of a socket, the record of a finished request,
//! and the counters of what was lost. Shared by both sides.

/// Sockets followed at once.
pub const SLOTS: u32 = 16_384;

/// Bytes kept of a request's first line; the agent maps the path in it to a route and drops it.
pub const REQUEST_LINE: usize = 64;

/// Where an exchange stands on its socket.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Phase(pub u8);

impl Phase {
    /// No request is open.
    pub const IDLE: Self = Self(0);
    /// A request has come; no status line has gone out.
    pub const WAITING: Self = Self(1);
    /// In the response's header lines.
    pub const HEAD: Self = Self(2);
    /// Before a chunk-size line.
    pub const SIZE: Self = Self(3);
    /// In the body's data.
    pub const DATA: Self = Self(4);
    /// In the trailer lines behind the last chunk.
    pub const TRAILER: Self = Self(5);
    /// The response's framing is not known (unreadable buffer, malformed): the next request, the
    /// close or the idle time-out ends it.
    pub const LOST: Self = Self(6);
}

/// How a request ended.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome(pub u8);

impl Outcome {
    /// It has not.
    pub const OPEN: Self = Self(0);
    /// The whole response went out.
    pub const DONE: Self = Self(1);
    /// The client left before the end.
    pub const ABORTED: Self = Self(2);
    /// The end was not seen: the next request came, or the server closed, before it.
    pub const INCOMPLETE: Self = Self(3);
}

/// What is known of the process at the client's end.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer(pub u8);

impl Peer {
    /// Nothing: a kernel without the fields that tell.
    pub const UNKNOWN: Self = Self(0);
    /// [`Facts::peer_tgid`] says whether it is of the same service.
    pub const KNOWN: Self = Self(1);
    /// It is on this machine, and was not seen to send: somebody else's, or its send is not
    /// over yet.
    pub const NEAR: Self = Self(2);
}

/// The body is chunked.
pub const CHUNKED: u16 = 1;
/// The body is a stream of server-sent events.
pub const SSE: u16 = 1 << 1;
/// The body is newline-delimited JSON.
pub const NDJSON: u16 = 1 << 2;
/// The response states its length.
pub const LENGTH: u16 = 1 << 3;
/// The request's method is HEAD: the response has no body.
pub const HEAD: u16 = 1 << 4;
/// The body ends when the connection does.
pub const UNTIL_CLOSE: u16 = 1 << 5;
/// Part of the response could not be read: `chunks` may be too small.
pub const TRUNCATED: u16 = 1 << 6;
/// The client has closed its sending side.
pub const CLIENT_CLOSED: u16 = 1 << 7;
/// The request's method has no body.
pub const BODYLESS: u16 = 1 << 8;
/// The request line is known: whole, or as much as is kept of it.
pub const LINE_WHOLE: u16 = 1 << 9;
/// The socket is idle, and what was received may be the beginning of a method.
pub const METHOD_CUT: u16 = 1 << 10;
/// The server has switched protocols (101): until its close the socket carries a session, in
/// which nothing is a request.
pub const UPGRADED: u16 = 1 << 11;

/// What a response's own headers set, and a further response on the socket must not inherit.
pub const RESPONSE_FLAGS: u16 = CHUNKED | SSE | NDJSON | LENGTH | UNTIL_CLOSE;

/// What is known of one request. Times are nanoseconds of `CLOCK_BOOTTIME`, 0 where there is
/// none yet. In a slot it is the request in flight, in the ring a finished one.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The request's first bytes: method and path.
    pub line: [u8; REQUEST_LINE],
    /// Number of the network namespace of the socket; 0 if not known.
    pub network: u32,
    /// The client's process where it is of the same service; else 0.
    pub peer_tgid: u32,
    /// The client's port; 0 for a Unix socket, and if not known.
    pub peer_port: u16,
    /// No meaning: what follows keeps to its cache line.
    pub reserved: [u16; 27],
    /// Unique since the maps were made; 0 in a slot that was never used.
    pub id: u64,
    /// The kernel's address of the socket: an identity, never followed.
    pub socket: u64,
    /// The server read the first byte.
    pub start: u64,
    /// The server read the last byte so far.
    pub request_end: u64,
    /// Bytes received: request line, headers and body.
    pub request_bytes: u64,
    /// Service of the process that read the request.
    pub service: u32,
    /// The process that read the request.
    pub tgid: u32,
    /// This slot's index.
    pub slot: u32,
    /// HTTP status; 0 until it is known.
    pub status: u16,
    /// Local port: an accepted socket has its listener's; 0 for a Unix socket.
    pub port: u16,
    /// Address family (`AF_*`).
    pub family: u16,
    /// Bits of this module.
    pub flags: u16,
    /// Where the exchange stands.
    pub phase: Phase,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes of `line` that are filled.
    pub line_len: u8,
    /// What is known of the client.
    pub peer: Peer,
    /// The last byte of the response's head so far went out.
    pub head: u64,
    /// The first byte of the response's body went out.
    pub first_data: u64,
    /// The last byte of the body so far went out.
    pub last_data: u64,
    /// The request ended; the client's close where it closed before the end.
    pub end: u64,
    /// Bytes sent: head, framing and body.
    pub response_bytes: u64,
    /// SSE `data:` lines or NDJSON lines so far, without `[DONE]`.
    pub chunks: u32,
    /// Those of `chunks` that went out with the first data.
    pub first_chunks: u32,
}

/// What the response's parser keeps between two sends.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    /// Bytes of `line` in use.
    pub line_len: u8,
    /// Bytes of `data` in use.
    pub data_len: u8,
    /// No meaning.
    pub padding: [u8; 6],
    /// Bytes of data still to come in this chunk or body.
    pub left: u64,
    /// The first bytes of a head, size or trailer line that is not yet whole.
    pub line: [u64; 5],
    /// The first bytes of a line of data that is not yet whole.
    pub data: [u64; 2],
}

/// One followed socket. What a send of a stream changes lies in one cache line, from
/// [`Facts::head`] to [`Cursor::data_len`], and what it asks in the line before.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// The request in flight, or the last one.
    pub facts: Facts,
    /// Odd while the kernel writes; changes with every change of `facts`.
    pub sequence: u64,
    /// The parser's memory; the agent does not read it.
    pub cursor: Cursor,
}

/// What was refused or lost, on one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Requests that began.
    pub started: u64,
    /// Records put in the ring.
    pub finished: u64,
    /// Records lost: the ring was full.
    pub ring_full: u64,
    /// Requests lost: no free slot, or no room in the socket table.
    pub slots_exhausted: u64,
    /// Sends or receives whose buffer could not be read and had to be.
    pub unreadable: u64,
    /// Responses whose framing made no sense.
    pub malformed: u64,
    /// Requests read off a closing socket, which the server throws away: not counted as requests.
    pub drained: u64,
    /// Requests sent before the response to the one before: not followed.
    pub pipelined: u64,
    /// Slots ever used: the highest index + 1.
    pub high_water: u64,
    /// Keeps two CPUs' counters out of one cache line.
    pub padding: [u64; 7],
}
