//! Which process of a service is at the client's end of a connection on this machine: one word a
//! connection, written by the kernel side when a service's process sends, read when another of
//! its processes reads a request.
//!
//! A connection is found by its namespace and both its ports; a local port alone is shared by
//! connections that lead to different ports. The table is direct-mapped: connections that share
//! a place overwrite each other, and each is written again before its next request.

/// Places in the table.
pub const PLACES: u32 = 1 << 16;

/// Process ids are less than this (the kernel's `PID_MAX_LIMIT`).
const PROCESS_BITS: u32 = 22;

/// A connection's place, and the mark by which it is known there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Less than [`PLACES`].
    pub index: u32,
    mark: u64,
}

impl Place {
    /// Of the connection between these ports in the network namespace of this number.
    #[inline(always)]
    pub const fn of(network: u32, client: u16, server: u16) -> Self {
        let key = (network as u64) << 32 | (client as u64) << 16 | server as u64;
        // The steps of SplitMix64, which keep different keys different; 58 of the 64 bits serve.
        let mixed = (key ^ key >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self {
            index: (mixed >> 48) as u32,
            mark: mixed << PROCESS_BITS,
        }
    }

    /// What says that process `tgid` is the connection's client.
    #[inline(always)]
    pub const fn word(self, tgid: u32) -> u64 {
        self.mark | (tgid as u64 & ((1 << PROCESS_BITS) - 1))
    }

    /// The client that `word` names, if it is of this connection; 0 if not.
    #[inline(always)]
    pub const fn client(self, word: u64) -> u32 {
        if word >> PROCESS_BITS == self.mark >> PROCESS_BITS {
            (word & ((1 << PROCESS_BITS) - 1)) as u32
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_connection_is_found_by_its_namespace_and_both_ports() {
        let place = Place::of(0xf000_0000, 40_000, 8_000);
        let word = place.word(4_194_303);
        assert_eq!(place.client(word), 4_194_303);
        assert_eq!(place.client(0), 0);
        for other in [
            Place::of(0xf000_0001, 40_000, 8_000),
            Place::of(0xf000_0000, 40_001, 8_000),
            Place::of(0xf000_0000, 40_000, 8_001),
        ] {
            assert_eq!(other.client(word), 0, "{other:?}");
        }
    }

    #[test]
    fn connections_to_one_port_spread_over_the_table() {
        let places = (32_768..60_999).map(|client| Place::of(0xf000_0098, client, 8_000));
        let all: Vec<Place> = places.collect();
        assert!(all.iter().all(|place| place.index < PLACES));
        let indices: HashSet<u32> = all.iter().map(|place| place.index).collect();
        assert!(indices.len() > all.len() * 3 / 4, "{}", indices.len());
    }
}
