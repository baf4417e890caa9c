//! A followed socket on the host, as the kernel side follows one.

use profiler_ebpf::http1::{self, FRONT, KEPT, Kept, Memory, Payload, Start, Tail, WINDOW, Window};
use profiler_ebpf::request::*;

/// A send from memory.
struct Sent<'a> {
    bytes: &'a [u8],
    window: &'a mut Window,
    slot: &'a mut Slot,
    tail: Option<&'a mut Tail>,
    window_size: usize,
}

impl Memory for Sent<'_> {
    unsafe fn copy(to: *mut u8, from: *const u8, bytes: u64) {
        assert!(bytes <= KEPT as u64);
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes as usize) }
    }
}

impl Payload for Sent<'_> {
    fn parts(&mut self) -> (&mut Window, &mut Slot) {
        (self.window, self.slot)
    }
    fn with_tail(&mut self) -> (&mut Window, &mut Slot, Option<&mut Tail>) {
        (self.window, self.slot, self.tail.as_deref_mut())
    }
    fn fill(&mut self) -> u64 {
        let length = self.bytes.len().min(self.window_size);
        let (now, rest) = self.bytes.split_at(length);
        self.window.bytes()[FRONT..FRONT + length].copy_from_slice(now);
        self.bytes = rest;
        length as u64
    }
    fn skip(&mut self, bytes: u64) {
        self.bytes = &self.bytes[bytes as usize..];
    }
    fn steps(&mut self) {
        // A step that made no progress would loop for ever in the kernel's bound instead.
        for _ in 0..=2 * WINDOW {
            if http1::step(self) {
                return;
            }
        }
        panic!("a window was not used up");
    }
}

/// As much of a head as the kernel reads at a time.
const HEAD_WINDOW: usize = 384;

/// A socket on which a request has been read.
pub(crate) struct Socket {
    pub(crate) window: Box<Window>,
    pub(crate) slot: Slot,
    tail: Option<Box<Tail>>,
    window_size: usize,
    /// Sends that were taken as one event.
    pub(crate) events: usize,
    /// Heads that were taken at once.
    pub(crate) heads: usize,
}

impl Socket {
    pub(crate) fn new(request: &[u8], window_size: usize) -> Self {
        let mut word = [0; 16];
        let length = request.len().min(16);
        word[..length].copy_from_slice(&request[..length]);
        let first = u64::from_le_bytes(word[..8].try_into().unwrap());
        let second = u64::from_le_bytes(word[8..].try_into().unwrap());
        let Start::Request(flags) = http1::request_line(first, second, request.len() as u64) else {
            panic!("not a request");
        };
        // SAFETY: plain integers, for which zero is a value.
        let mut slot: Slot = unsafe { std::mem::zeroed() };
        slot.facts.start = 1;
        slot.facts.request_end = 1;
        http1::begin_request(&mut slot, flags);
        Self {
            window: Box::default(),
            slot,
            tail: Some(Box::default()),
            window_size,
            events: 0,
            heads: 0,
        }
    }

    /// Sends; returns how many bytes lay behind the response's end.
    pub(crate) fn send(&mut self, bytes: &[u8], now: u64) -> u64 {
        http1::begin_send(&mut self.slot, bytes.len() as u64, now);
        let taken = self.head(bytes, now);
        let bytes = &bytes[taken..];
        let length = bytes.len() as u64;
        if taken != 0 && (bytes.is_empty() || self.slot.facts.phase == Phase::IDLE) {
            http1::end_send(&mut self.slot, now);
            return length;
        }
        let mut sent = Sent {
            bytes,
            window: &mut self.window,
            slot: &mut self.slot,
            tail: self.tail.as_deref_mut(),
            window_size: self.window_size,
        };
        let mut ahead = 0;
        if taken == 0 && bytes.len() <= self.window_size && http1::may_be_event(sent.slot, length) {
            sent.window.bytes()[FRONT..FRONT + bytes.len()].copy_from_slice(bytes);
            if http1::event(&mut sent, length, now) {
                self.events += 1;
                http1::end_send(&mut self.slot, now);
                return 0;
            }
            ahead = length;
        }
        sent.window.begin(length, now, ahead);
        while !http1::window(&mut sent) {}
        http1::end_send(&mut self.slot, now);
        self.window.remaining()
    }

    /// The head with which a send begins, and a plain body behind it, as the kernel takes them.
    fn head(&mut self, bytes: &[u8], now: u64) -> usize {
        if self.window_size != WINDOW || !http1::may_be_head(&self.slot) {
            return 0;
        }
        let first = &bytes[..bytes.len().min(HEAD_WINDOW)];
        self.window.bytes()[FRONT..FRONT + first.len()].copy_from_slice(first);
        let length = first.len() as u64;
        let head = http1::head(&mut self.window, &mut self.slot, length, now) as usize;
        self.heads += usize::from(head != 0);
        let rest = (bytes.len() - head) as u64;
        if head != 0 && rest != 0 && http1::passes(&self.slot) {
            return head + http1::pass(&mut self.slot, rest, now) as usize;
        }
        head
    }

    pub(crate) fn facts(&self) -> Facts {
        self.slot.facts
    }

    /// The kept end of the response, as the agent gets it.
    pub(crate) fn kept(&self) -> Option<(u32, Vec<u8>)> {
        if self.slot.facts.flags & TAIL == 0 {
            return None;
        }
        let (length, chunks, from) = self.tail.as_ref()?.kept();
        let mut bytes = [0; KEPT];
        // SAFETY: so many lie there.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), KEPT) };
        let kept = Kept {
            length,
            chunks,
            bytes,
        };
        let (bytes, length) = kept.in_order();
        Some((chunks, bytes[..length].to_vec()))
    }
}
