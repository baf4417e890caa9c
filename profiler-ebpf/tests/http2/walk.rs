//! A connection on the host: what the kernel side does with maps, done with collections.

use std::collections::HashMap;

use profiler_ebpf::http1::{self, FRONT, WINDOW, Window};
use profiler_ebpf::http2::{self, Streams};
use profiler_ebpf::request::*;

/// A header block as the agent gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) sent: bool,
    pub(crate) stream: u32,
    pub(crate) promised: bool,
    pub(crate) bytes: Vec<u8>,
    pub(crate) whole: bool,
}

/// A connection, and all that it has told.
pub(crate) struct Socket {
    pub(crate) window: Box<Window>,
    pub(crate) slot: Slot,
    pub(crate) open: HashMap<u32, Box<Slot>>,
    pub(crate) ended: Vec<Facts>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) ends_above: Vec<u32>,
    pub(crate) unreadable: u64,
    numbers: [u16; 2],
    pub(crate) holes: u64,
    window_size: u64,
}

fn empty_slot() -> Slot {
    // SAFETY: plain integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

impl Socket {
    pub(crate) fn new(window_size: u64) -> Self {
        let mut slot = empty_slot();
        slot.facts.id = 77;
        http2::begin_connection(&mut slot, 0);
        Self::with(slot, window_size)
    }

    pub(crate) fn joined() -> Self {
        let mut slot = empty_slot();
        slot.facts.id = 77;
        http2::join_connection(&mut slot);
        Self::with(slot, WINDOW as u64)
    }

    fn with(slot: Slot, window_size: u64) -> Self {
        Self {
            window: Box::default(),
            slot,
            open: HashMap::new(),
            ended: Vec::new(),
            blocks: Vec::new(),
            ends_above: Vec::new(),
            unreadable: 0,
            numbers: [0; 2],
            holes: 0,
            window_size,
        }
    }

    pub(crate) fn receive(&mut self, bytes: &[u8], now: u64) {
        self.follow::<false>(bytes, now, true);
    }

    pub(crate) fn send(&mut self, bytes: &[u8], now: u64) {
        self.follow::<true>(bytes, now, true);
    }

    /// The same for bytes that cannot be read.
    pub(crate) fn send_unreadable(&mut self, bytes: u64, now: u64) {
        self.follow::<true>(&vec![0; bytes as usize], now, false);
    }

    fn follow<const SENT: bool>(&mut self, bytes: &[u8], now: u64, readable: bool) {
        self.window.begin(bytes.len() as u64, now, 0);
        let mut walk = Walk::<SENT> {
            socket: self,
            bytes,
            readable,
        };
        // Each window takes a byte at least.
        for _ in 0..=2 * bytes.len() + 2 {
            if http2::window(&mut walk) {
                self.unreadable += self.window.unreadable();
                return;
            }
        }
        panic!("{} bytes were not used up", bytes.len());
    }
}

struct Walk<'a, const SENT: bool> {
    socket: &'a mut Socket,
    bytes: &'a [u8],
    readable: bool,
}

impl<const SENT: bool> Streams for Walk<'_, SENT> {
    const SENT: bool = SENT;

    fn parts(&mut self) -> (&mut Window, &mut Slot) {
        (&mut self.socket.window, &mut self.socket.slot)
    }

    fn fill(&mut self, wanted: u64) -> u64 {
        if !self.readable {
            return 0;
        }
        let length = wanted.min(self.socket.window_size) as usize;
        let (now, rest) = self.bytes.split_at(length);
        // What lies behind is of some earlier window.
        self.socket.window.bytes()[FRONT..].fill(0xa5);
        self.socket.window.bytes()[FRONT..FRONT + length].copy_from_slice(now);
        self.bytes = rest;
        length as u64
    }

    fn skip(&mut self, bytes: u64) {
        self.bytes = &self.bytes[bytes as usize..];
    }

    fn steps(&mut self) {
        for _ in 0..=WINDOW {
            if http2::step(self) {
                return;
            }
        }
        panic!("a window was not used up");
    }

    fn find(&mut self, stream: u32) -> *mut Slot {
        self.socket
            .open
            .get_mut(&stream)
            .map_or(std::ptr::null_mut(), |slot| &raw mut **slot)
    }

    fn begin(&mut self, stream: u32, bytes: u64) {
        let mut slot = Box::new(empty_slot());
        let now = self.socket.window.now();
        http2::begin_stream(&mut slot, &mut self.socket.slot, stream, bytes, now);
        assert!(self.socket.open.insert(stream, slot).is_none());
    }

    fn begin_write(&mut self, slot: *mut Slot) {
        // SAFETY: a slot of `open`.
        let sequence = unsafe { &mut (*slot).sequence };
        assert_eq!(*sequence % 2, 0, "written twice at once");
        *sequence += 1;
    }

    fn end_write(&mut self, slot: *mut Slot) {
        // SAFETY: a slot of `open`.
        unsafe { (*slot).sequence += 1 };
    }

    fn finish(&mut self, stream: u32, slot: *mut Slot) {
        let ended = self.socket.open.remove(&stream).expect("an open stream");
        assert_eq!(&raw const *ended, slot.cast_const());
        assert_eq!(ended.sequence % 2, 1);
        self.socket.ended.push(ended.facts);
    }

    fn lines(&mut self, slot: *mut Slot) {
        for _ in 0..=WINDOW {
            // SAFETY: a slot of `open`, which nothing else refers to meanwhile.
            let mut piece = Piece(&mut self.socket.window, unsafe { &mut *slot });
            if http1::step(&mut piece) {
                return;
            }
        }
        panic!("a piece was not used up");
    }

    fn block(&mut self, stream: u32, kind: u32, number: u16, length: u64) {
        let socket = &mut *self.socket;
        let sent = kind & BLOCK_SENT != 0;
        assert_eq!(sent, SENT);
        let last = &mut socket.numbers[usize::from(sent)];
        if number != last.wrapping_add(1) {
            socket.holes += 1;
        }
        *last = number;
        let at = socket.window.cursor() as usize;
        assert!(at >= FRONT, "room for a notice");
        let bytes = socket.window.bytes()[at..at + length as usize].to_vec();
        let head = http2::notice_head(stream, number, length);
        let notice = http2::write_notice(&mut socket.window, 77, head, kind) as usize;
        // SAFETY: as many bytes lie there; every bit pattern is a notice.
        let notice: Notice = unsafe {
            socket.window.bytes()[notice..]
                .as_ptr()
                .cast::<Notice>()
                .read_unaligned()
        };
        assert_eq!(
            (notice.mark, notice.connection, notice.stream, notice.kind),
            (NOTICE, 77, stream, kind)
        );
        assert_eq!((notice.number, u64::from(notice.length)), (number, length));
        if kind & BLOCK_BEGIN != 0 {
            socket.blocks.push(Block {
                sent,
                stream,
                promised: kind & BLOCK_PROMISE != 0,
                bytes: Vec::new(),
                whole: false,
            });
        }
        // Pieces of one block follow each other in their direction.
        let block = socket
            .blocks
            .iter_mut()
            .rev()
            .find(|block| block.sent == sent);
        let block = block.expect("begun");
        assert_eq!((block.stream, block.whole), (stream, false));
        block.bytes.extend(bytes);
        block.whole = kind & BLOCK_END != 0;
    }

    fn ends_above(&mut self, stream: u32) {
        self.socket.ends_above.push(stream);
    }
}

/// A piece of a stream's body; its end is not kept.
struct Piece<'a>(&'a mut Window, &'a mut Slot);

impl http1::Memory for Piece<'_> {
    unsafe fn copy(_: *mut u8, _: *const u8, _: u64) {
        unreachable!("nothing is kept");
    }
}

impl http1::Payload for Piece<'_> {
    fn parts(&mut self) -> (&mut Window, &mut Slot) {
        (self.0, self.1)
    }
    fn with_tail(&mut self) -> (&mut Window, &mut Slot, Option<&mut http1::Tail>) {
        (self.0, self.1, None)
    }
    fn fill(&mut self) -> u64 {
        0
    }
    fn skip(&mut self, _: u64) {}
    fn steps(&mut self) {}
}
