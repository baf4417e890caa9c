//! Streams and sockets whose end nobody tells: those that a connection of HTTP/2 leaves open, and
//! sockets that no hook sees end.

use profiler_ebpf::request::{HTTP2, Phase};

use super::slots::{CONNECTION, read_slot};
use super::{Observed, RequestProbe, http2, observed, service};
use crate::clock::Timestamp;
use crate::ledger::Route;
use crate::probes::owners::Owners;

/// A socket that has no end of its own to be seen is forgotten after this long without a request.
pub(super) const SOCKET_IDLE: u64 = 60_000_000_000;

/// A stream that has been quiet for this long is looked after: its connection may be gone.
const STREAM_QUIET: u64 = 5_000_000_000;

const AF_UNIX: u16 = 1;

impl RequestProbe {
    /// Ends the streams that a connection left open: the kernel side has no list of them.
    pub(super) fn end_connection(
        &mut self,
        ended: &http2::Ended,
        owners: &Owners,
        route: impl Fn(&[u8]) -> Route,
        out: &mut Vec<Observed>,
    ) {
        let used = (self.totals.high_water as usize).min(self.slots.len());
        for index in 0..used {
            if self.slots.word(index, CONNECTION) != Some(ended.connection) {
                continue;
            }
            let Some((sequence, mut facts)) = read_slot(&self.slots, index) else {
                continue;
            };
            let is_its = facts.connection == ended.connection && facts.stream > ended.above;
            // Whoever takes a stream from the table ends it.
            let key = [facts.connection, u64::from(facts.stream)];
            if !is_its || facts.phase == Phase::IDLE || self.streams.remove(&key).is_err() {
                continue;
            }
            if let Some(known) = self.sequences.get_mut(index) {
                *known = sequence;
            }
            http2::close(&mut facts, ended);
            self.clients.ask(owners, &mut facts);
            self.headers.complete(&mut facts);
            self.headers.forget(&facts);
            let service = service(owners, &facts);
            self.follower.ended(&facts, None, service, &route, out);
            let _ = self.free.push(index as u32, 0);
        }
        if ended.above == 0 {
            self.headers.forget_connection(ended.connection);
        }
    }

    /// Ends the streams of connections whose own end was lost.
    pub(super) fn end_forgotten_connections(
        &mut self,
        now: Timestamp,
        owners: &Owners,
        route: impl Fn(&[u8]) -> Route,
        out: &mut Vec<Observed>,
    ) {
        let mut quiet = std::collections::HashMap::new();
        for index in 0..self.sequences.len() {
            if self
                .slots
                .word(index, CONNECTION)
                .is_none_or(|word| word == 0)
            {
                continue;
            }
            if let Some((_, facts)) = read_slot(&self.slots, index)
                && facts.phase != Phase::IDLE
                && now.since(observed::latest(&facts)) > STREAM_QUIET
            {
                quiet.insert(facts.connection, facts.socket);
            }
        }
        for (connection, socket) in quiet {
            let slot = self.sockets.get(&socket, 0).ok();
            let alive = slot
                .and_then(|index| read_slot(&self.slots, index as usize))
                .is_some_and(|(_, facts)| facts.flags & HTTP2 != 0 && facts.id == connection);
            if !alive {
                let ended = http2::Ended::forgotten(connection);
                self.end_connection(&ended, owners, &route, out);
            }
        }
    }

    /// Frees slots of sockets that have no end to be seen and have long been quiet. The socket
    /// is forgotten first; the slot is used again only if the kernel side has not touched it
    /// since, one sweep later.
    pub(super) fn release_idle_sockets(&mut self, now: Timestamp) {
        for (index, sequence) in std::mem::take(&mut self.quarantine) {
            match read_slot(&self.slots, index) {
                Some((current, facts)) if facts.phase == Phase::IDLE => {
                    let untouched = current == sequence;
                    if !untouched || self.free.push(index as u32, 0).is_err() {
                        self.quarantine.push((index, current));
                    }
                }
                _ => self.quarantine.push((index, sequence)),
            }
        }
        for index in 0..self.sequences.len() {
            let Some((sequence, facts)) = read_slot(&self.slots, index) else {
                continue;
            };
            // A connection of HTTP/2 is idle itself while its streams are not.
            let limit = if facts.flags & HTTP2 != 0 {
                self.socket_idle.saturating_mul(15)
            } else {
                self.socket_idle
            };
            let quiet = facts.phase == Phase::IDLE
                && facts.stream == 0
                && now.since(observed::latest(&facts)) > limit;
            let endless = facts.family == AF_UNIX || !self.sees_ends;
            if quiet
                && endless
                && self.sockets.get(&facts.socket, 0).ok() == Some(index as u32)
                && self.sockets.remove(&facts.socket).is_ok()
            {
                self.quarantine.push((index, sequence));
            }
        }
    }
}
