//! What the request probe refused or lost.

/// What the probe refused or lost since it was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Finished requests whose record found the ring full. Those that a poll had seen alive
    /// ended `Incomplete`; see `recovered`.
    pub ring_full: u64,
    /// Of `ring_full`, those that were still told, as `Incomplete`.
    pub recovered: u64,
    /// Requests on sockets for which there was no slot.
    pub slots_exhausted: u64,
    /// Requests sent before the response to the one before.
    pub pipelined: u64,
    /// Sends or receives that had to be read and could not be.
    pub unreadable: u64,
    /// Responses whose framing made no sense.
    pub malformed: u64,
    /// Requests of services forgotten before they ended.
    pub unowned: u64,
    /// Header blocks (or the end) of HTTP/2 connections that found the ring full: the streams
    /// are told, some of them without route and status.
    pub notices: u64,
    /// Not a loss: requests that a closing server read and threw away; the client asks again.
    pub drained: u64,
}

impl Losses {
    /// Each count with its reason, as metrics have it; a drained request is no loss.
    pub const fn by_reason(&self) -> [(&'static str, u64); 7] {
        let Self {
            ring_full,
            slots_exhausted,
            pipelined,
            unreadable,
            malformed,
            unowned,
            notices,
            ..
        } = *self;
        [
            ("ring_full", ring_full),
            ("slots_exhausted", slots_exhausted),
            ("pipelined", pipelined),
            ("unreadable", unreadable),
            ("malformed", malformed),
            ("unowned", unowned),
            ("notices", notices),
        ]
    }

    /// Losses of any kind, of parts of requests included.
    pub fn events(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }

    /// Requests of which nothing was ever told.
    pub const fn requests(&self) -> u64 {
        self.ring_full.saturating_sub(self.recovered)
            + self.slots_exhausted
            + self.pipelined
            + self.unowned
    }
}
