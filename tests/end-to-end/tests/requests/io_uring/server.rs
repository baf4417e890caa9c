//! An HTTP server that does all of its work on sockets through one io_uring, in the ways that a
//! ring has, and keeps a log of its own.

use std::collections::{HashMap, VecDeque};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, cqueue, opcode, types};
use profiler::clock::Timestamp;

use crate::wire::{LAST_CHUNK, chunk, find, stream_head};

/// How bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Plain,
    Message,
    File,
    FileSegments,
    /// Sends leave the copy out.
    ZeroCopy,
    /// The kernel chooses each receive's buffer.
    Provided,
    /// One receive goes on for the whole connection.
    Multishot,
    /// The ring's own worker threads do the work.
    Workers,
    /// A kernel thread takes what is submitted.
    Polled,
    /// The loop waits in epoll; the ring works on the way out of that.
    Epoll,
    /// Sockets that the ring knows by number.
    Registered,
}

/// What the server itself says of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logged {
    pub(super) peer_port: u16,
    /// It had read the request.
    pub(super) read: Timestamp,
    /// It began to send the first of the body.
    pub(super) first: Timestamp,
    /// The last was sent.
    pub(super) end: Timestamp,
    pub(super) status: u16,
    pub(super) chunks: u64,
}

const BUFFER: usize = 4_096;
const BUFFERS: u16 = 8;
const GROUP: u16 = 7;
const BETWEEN: Duration = Duration::from_millis(3);

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const WAIT: u64 = 3;
const PROVIDE: u64 = 4;

struct Connection {
    fd: RawFd,
    input: Box<[u8; BUFFER]>,
    output: Vec<u8>,
    sent: usize,
    pieces: VecDeque<String>,
    /// Segments and message of a send, of a receive; the kernel reads them when it likes.
    segments: Box<[[libc::iovec; 2]; 2]>,
    messages: Box<[libc::msghdr; 2]>,
    log: Logged,
}

pub(super) struct Server {
    way: Way,
    ring: IoUring,
    provided: Box<[u8; BUFFER * BUFFERS as usize]>,
    pause: types::Timespec,
    connections: HashMap<u64, Connection>,
    pub(super) log: Vec<Logged>,
}

impl Server {
    /// `None`, with the reason printed, where the kernel gives no such ring.
    pub(super) fn new(way: Way) -> Option<Self> {
        let mut builder = IoUring::builder();
        if way == Way::Polled {
            builder.setup_sqpoll(50);
        }
        let ring = match builder.build(64) {
            Ok(ring) => ring,
            Err(error) => {
                end_to_end::skipped(&format!("io_uring: {error}"));
                return None;
            }
        };
        if way == Way::Registered {
            let none = [-1; 64];
            ring.submitter().register_files(&none).expect("registered");
        }
        Some(Self {
            way,
            ring,
            provided: Box::new([0; _]),
            pause: types::Timespec::from(BETWEEN),
            connections: HashMap::new(),
            log: Vec::new(),
        })
    }

    fn push(&mut self, entry: Entry, connection: u64, kind: u64) {
        let entry = match (self.way, kind) {
            (Way::Workers, RECEIVE | SEND) => entry.flags(Flags::ASYNC),
            _ => entry,
        };
        let entry = entry.user_data(connection << 8 | kind);
        // SAFETY: buffers live as long as their connection, which outlives its operations.
        unsafe { self.ring.submission().push(&entry).expect("room") };
    }

    /// Serves so many connections until their clients close them.
    pub(super) fn serve(&mut self, listener: &TcpListener, connections: u64) {
        if matches!(self.way, Way::Provided | Way::Multishot) {
            let at = self.provided.as_mut_ptr();
            let all = opcode::ProvideBuffers::new(at, BUFFER as i32, BUFFERS, GROUP, 0).build();
            self.push(all, 0, PROVIDE);
        }
        let poll = (self.way == Way::Epoll).then(|| epoll(self.ring.as_raw_fd()));
        self.accept(listener);
        let (mut accepted, mut closed) = (0, 0);
        while closed < connections {
            if let Some(poll) = poll {
                self.ring.submit().expect("submitted");
                wait(poll);
            } else {
                self.ring.submit_and_wait(1).expect("finished");
            }
            let done: Vec<cqueue::Entry> = self.ring.completion().collect();
            for entry in done {
                let (key, kind) = (entry.user_data() >> 8, entry.user_data() & 0xff);
                match kind {
                    ACCEPT => {
                        accepted += 1;
                        self.open(accepted, entry.result());
                        if accepted < connections {
                            self.accept(listener);
                        }
                    }
                    RECEIVE if entry.result() <= 0 => {
                        closed += 1;
                        let gone = self.connections.remove(&key).expect("a connection");
                        // SAFETY: the connection's own descriptor.
                        unsafe { libc::close(gone.fd) };
                    }
                    RECEIVE => self.received(key, &entry),
                    // The second completion of a send without a copy: its buffer is free.
                    SEND if cqueue::notif(entry.flags()) => {}
                    SEND => self.sent(key, entry.result()),
                    WAIT => self.next_piece(key),
                    _ => assert!(entry.result() >= 0, "{entry:?}"),
                }
            }
        }
        if let Some(poll) = poll {
            // SAFETY: its own descriptor.
            unsafe { libc::close(poll) };
        }
    }

    fn accept(&mut self, listener: &TcpListener) {
        let fd = types::Fd(listener.as_raw_fd());
        let (no_address, no_length) = (std::ptr::null_mut(), std::ptr::null_mut());
        self.push(
            opcode::Accept::new(fd, no_address, no_length).build(),
            0,
            ACCEPT,
        );
    }

    fn open(&mut self, key: u64, fd: RawFd) {
        assert!(fd >= 0, "accepted: {fd}");
        if self.way == Way::Registered {
            let submitter = self.ring.submitter();
            let place = u32::try_from(key).expect("few");
            submitter
                .register_files_update(place, &[fd])
                .expect("registered");
        }
        let zero = Timestamp(0);
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let connection = Connection {
            fd,
            input: Box::new([0; BUFFER]),
            output: Vec::new(),
            sent: 0,
            pieces: VecDeque::new(),
            segments: Box::new([[empty; 2]; 2]),
            // SAFETY: null pointers and zero lengths are a message.
            messages: Box::new(unsafe { std::mem::zeroed() }),
            log: Logged {
                peer_port: peer_port(fd),
                read: zero,
                first: zero,
                end: zero,
                status: 0,
                chunks: 0,
            },
        };
        self.connections.insert(key, connection);
        self.receive(key);
    }

    fn receive(&mut self, key: u64) {
        let way = self.way;
        let connection = self.connections.get_mut(&key).expect("a connection");
        let fd = types::Fd(connection.fd);
        let (at, length) = (connection.input.as_mut_ptr(), BUFFER);
        let entry = match way {
            Way::Message | Way::FileSegments => {
                let (message, segments) = connection.describe(0, at, length);
                if way == Way::Message {
                    opcode::RecvMsg::new(fd, message).build()
                } else {
                    opcode::Readv::new(fd, segments, 2).build()
                }
            }
            Way::File => opcode::Read::new(fd, at, length as u32).build(),
            Way::Provided => opcode::Recv::new(fd, std::ptr::null_mut(), length as u32)
                .buf_group(GROUP)
                .build()
                .flags(Flags::BUFFER_SELECT),
            Way::Multishot => opcode::RecvMulti::new(fd, GROUP).build(),
            Way::Registered => {
                opcode::Recv::new(types::Fixed(key as u32), at, length as u32).build()
            }
            _ => opcode::Recv::new(fd, at, length as u32).build(),
        };
        self.push(entry, key, RECEIVE);
    }

    fn received(&mut self, key: u64, entry: &cqueue::Entry) {
        let length = entry.result() as usize;
        let now = Timestamp::now();
        let mut request = Vec::new();
        if let Some(chosen) = cqueue::buffer_select(entry.flags()) {
            let from = usize::from(chosen) * BUFFER;
            request.extend_from_slice(&self.provided[from..from + length]);
            let at = self.provided[from..].as_mut_ptr();
            let back = opcode::ProvideBuffers::new(at, BUFFER as i32, 1, GROUP, chosen).build();
            self.push(back, 0, PROVIDE);
        } else {
            request.extend_from_slice(&self.connections[&key].input[..length]);
        }
        let text = String::from_utf8_lossy(&request);
        // `POST /v1/completions?chunks=3 HTTP/1.1`; none: a plain answer.
        let chunks = text
            .split("chunks=")
            .nth(1)
            .and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        let connection = self.connections.get_mut(&key).expect("a connection");
        let mut pieces = VecDeque::new();
        let status = if let Some(chunks) = chunks {
            pieces.push_back(stream_head("text/event-stream"));
            pieces.extend((0..chunks).map(|n| chunk(&format!("data: {{\"n\":{n}}}\n\n"))));
            pieces.push_back(format!("{}{LAST_CHUNK}", chunk("data: [DONE]\n\n")));
            200
        } else {
            let (status, word) = match find(&request, b"/health") {
                Some(_) => (503, "Service Unavailable"),
                None => (200, "OK"),
            };
            pieces.push_back(format!(
                "HTTP/1.1 {status} {word}\r\nContent-Length: 4\r\n\r\nbody"
            ));
            status
        };
        connection.log.read = now;
        connection.log.status = status;
        connection.log.chunks = chunks.unwrap_or(0);
        connection.log.first = Timestamp(0);
        connection.pieces = pieces;
        self.next_piece(key);
    }

    fn next_piece(&mut self, key: u64) {
        let connection = self.connections.get_mut(&key).expect("a connection");
        let piece = connection.pieces.pop_front().expect("a piece");
        if connection.log.first == Timestamp(0) && !piece.ends_with("\r\n\r\n") {
            connection.log.first = Timestamp::now();
        }
        connection.output = piece.into_bytes();
        connection.sent = 0;
        self.send(key);
    }

    fn send(&mut self, key: u64) {
        let way = self.way;
        let connection = self.connections.get_mut(&key).expect("a connection");
        let fd = types::Fd(connection.fd);
        let rest = &mut connection.output[connection.sent..];
        let (at, length) = (rest.as_mut_ptr(), rest.len());
        let entry = match way {
            Way::Message | Way::FileSegments => {
                let (message, segments) = connection.describe(1, at, length);
                if way == Way::Message {
                    opcode::SendMsg::new(fd, message).build()
                } else {
                    opcode::Writev::new(fd, segments, 2).build()
                }
            }
            Way::File => opcode::Write::new(fd, at, length as u32).build(),
            Way::ZeroCopy => opcode::SendZc::new(fd, at, length as u32).build(),
            Way::Registered => {
                opcode::Send::new(types::Fixed(key as u32), at, length as u32).build()
            }
            _ => opcode::Send::new(fd, at, length as u32).build(),
        };
        self.push(entry, key, SEND);
    }

    fn sent(&mut self, key: u64, result: i32) {
        assert!(result > 0, "sent: {result}");
        let connection = self.connections.get_mut(&key).expect("a connection");
        connection.sent += result as usize;
        if connection.sent < connection.output.len() {
            self.send(key);
        } else if !connection.pieces.is_empty() {
            let pause = opcode::Timeout::new(&raw const self.pause).build();
            self.push(pause, key, WAIT);
        } else {
            connection.log.end = Timestamp::now();
            self.log.push(connection.log);
            if self.way != Way::Multishot {
                self.receive(key);
            }
        }
    }
}

impl Connection {
    /// The `length` bytes at `at` as two segments.
    fn describe(
        &mut self,
        which: usize,
        at: *mut u8,
        length: usize,
    ) -> (*mut libc::msghdr, *const libc::iovec) {
        let cut = length.min(9);
        let segments = &mut self.segments[which];
        segments[0].iov_base = at.cast();
        segments[0].iov_len = cut;
        // SAFETY: `cut` is no more than the length.
        segments[1].iov_base = unsafe { at.add(cut) }.cast();
        segments[1].iov_len = length - cut;
        let message = &mut self.messages[which];
        message.msg_iov = segments.as_mut_ptr();
        message.msg_iovlen = 2;
        (&raw mut *message, segments.as_ptr())
    }
}

fn peer_port(fd: RawFd) -> u16 {
    use std::os::fd::FromRawFd as _;
    // SAFETY: an open socket, which is let go of again.
    let stream = unsafe { std::net::TcpStream::from_raw_fd(fd) };
    let port = stream.peer_addr().map_or(0, |address| address.port());
    let _ = stream.into_raw_fd();
    port
}

fn epoll(ring: RawFd) -> RawFd {
    // SAFETY: descriptors of this process, and an event that outlives the call.
    unsafe {
        let poll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        assert_eq!(
            libc::epoll_ctl(poll, libc::EPOLL_CTL_ADD, ring, &raw mut event),
            0
        );
        poll
    }
}

fn wait(poll: RawFd) {
    let mut events: [libc::epoll_event; 4] = [libc::epoll_event { events: 0, u64: 0 }; 4];
    // SAFETY: room for four events.
    unsafe { libc::epoll_wait(poll, events.as_mut_ptr(), 4, 1_000) };
}
