//! Which process of a service is at the client's end of a connection on this machine: one word a
//! connection, written by the kernel side when a service's process connects or sends, read when
//! another of its processes reads a request.
//!
//! A connection is found by its namespace and both its ports; a local port alone is shared by
//! connections that lead to different ports. The table has sets of [`WAYS`] places, a cache line
//! each, and a connection lies anywhere in its set. Where one set has more live connections than
//! places they overwrite each other, and each is written again before its next request.

/// Sets in the table.
pub const SETS: u32 = 1 << 13;

/// Places in a set.
pub const WAYS: usize = 8;

/// The words of a set; 0 is a free place.
pub type Set = [u64; WAYS];

/// Process ids are less than this (the kernel's `PID_MAX_LIMIT`).
const PROCESS_BITS: u32 = 22;

/// A connection's set, and the mark by which it is known there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Less than [`SETS`].
    pub set: u32,
    mark: u64,
}

impl Place {
    /// Of the connection between these ports in the network namespace of this number.
    #[inline(always)]
    pub const fn of(network: u32, client: u16, server: u16) -> Self {
        let key = (network as u64) << 32 | (client as u64) << 16 | server as u64;
        // The steps of SplitMix64, which keep different keys different; 55 of the 64 bits serve.
        let mixed = (key ^ key >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self {
            set: (mixed >> 51) as u32,
            mark: mixed << PROCESS_BITS,
        }
    }

    /// What says that process `tgid` is the connection's client.
    #[inline(always)]
    pub const fn word(self, tgid: u32) -> u64 {
        self.mark | (tgid as u64 & ((1 << PROCESS_BITS) - 1))
    }

    /// Whether `word` is of this connection.
    #[inline(always)]
    pub const fn is_of(self, word: u64) -> bool {
        word != 0 && word >> PROCESS_BITS == self.mark >> PROCESS_BITS
    }

    /// The client that the set names, whose words `word` reads; 0 if it does not know.
    #[inline(always)]
    pub fn client(self, word: impl Fn(usize) -> u64) -> u32 {
        for way in 0..WAYS {
            let word = word(way);
            if self.is_of(word) {
                return (word & ((1 << PROCESS_BITS) - 1)) as u32;
            }
        }
        0
    }

    /// Where in the set the connection is to be written: over itself, else where nothing is, else
    /// over one that its mark chooses.
    #[inline(always)]
    pub fn way(self, word: impl Fn(usize) -> u64) -> usize {
        let mut free = (self.mark >> PROCESS_BITS) as usize % WAYS;
        for way in 0..WAYS {
            let word = word(way);
            if self.is_of(word) {
                return way;
            }
            if word == 0 {
                free = way;
            }
        }
        free
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_connection_is_found_by_its_namespace_and_both_ports() {
        let place = Place::of(0xf000_0000, 40_000, 8_000);
        let word = place.word(4_194_303);
        assert_eq!(place.client(|_| word), 4_194_303);
        assert_eq!(place.client(|_| 0), 0);
        for other in [
            Place::of(0xf000_0001, 40_000, 8_000),
            Place::of(0xf000_0000, 40_001, 8_000),
            Place::of(0xf000_0000, 40_000, 8_001),
        ] {
            assert_eq!(other.client(|_| word), 0, "{other:?}");
        }
    }

    #[test]
    fn a_set_keeps_as_many_connections_as_it_has_places() {
        let mut set: Set = [0; WAYS];
        let places: Vec<Place> = (1..=WAYS as u16 + 1)
            .map(|port| Place::of(0xf000_0098, port, 8_000))
            .collect();
        for turn in [1, 2] {
            for (number, place) in places[..WAYS].iter().enumerate() {
                set[place.way(|way| set[way])] = place.word(number as u32 + turn);
            }
            for (number, place) in places[..WAYS].iter().enumerate() {
                assert_eq!(place.client(|way| set[way]), number as u32 + turn);
            }
        }
        // One more takes another's place.
        let more = places[WAYS];
        set[more.way(|way| set[way])] = more.word(77);
        assert_eq!(more.client(|way| set[way]), 77);
        let lost = places[..WAYS]
            .iter()
            .filter(|place| place.client(|way| set[way]) == 0);
        assert_eq!(lost.count(), 1);
    }

    #[test]
    fn connections_to_one_port_spread_over_the_table() {
        let mut lives = std::vec![0; SETS as usize];
        for client in 32_768..60_999 {
            lives[Place::of(0xf000_0098, client, 8_000).set as usize] += 1;
        }
        let all: usize = lives.iter().sum();
        let without: usize = lives
            .iter()
            .map(|lives: &usize| lives.saturating_sub(WAYS))
            .sum();
        // All ports that the kernel gives out at once.
        assert!(without * 100 < all, "{without} of {all} find no place");
    }
}
