//! Who is at the client's end: a process of the same service, or anybody else.
//!
//! A Unix socket names the process that connected. A TCP socket does not; but a client on this
//! machine connects and sends before the server reads, so either leaves the process id of a
//! service's process in a table, for a socket that is not followed, and the end of that socket
//! takes it out. A send is told when it is over: a server on another CPU may have answered by
//! then. One that reads before asks again when it begins to answer.

use core::ffi::c_void;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use profiler_ebpf::ABSENT;
use profiler_ebpf::clients::{Place, Set, WAYS};
use profiler_ebpf::owners::FIRST_SERVICE;
use profiler_ebpf::request::{Facts, Peer};

use super::socket::{AF_INET, AF_INET6, AF_UNIX, Socket};
use crate::probes::MMAPABLE;
use crate::probes::owners::owner_of;

/// Sized by the loader.
#[map]
static REQUEST_CLIENTS: Array<Set> = Array::with_max_entries(1, MMAPABLE);

/// Each may be absent; then nobody is known.
#[unsafe(no_mangle)]
static SOCK_ADDRESS: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static SOCK_PEER_ADDRESS: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static SOCK_ADDRESS_6: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static SOCK_PEER_ADDRESS_6: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static SOCK_PEER_PROCESS: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static PROCESS_NUMBERS: Global<u32> = Global::new(ABSENT);
#[unsafe(no_mangle)]
static INET_PORT: Global<u32> = Global::new(ABSENT);

/// What lies at a kernel address; zeros where nothing can be read. For what lies beyond the
/// `struct sock` that the verifier knows.
///
/// # Safety
/// Every bit pattern must be a `T`.
#[inline(always)]
unsafe fn read<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: the helper writes `T`'s bytes, or zeros if it cannot read.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast::<c_void>(),
            size_of::<T>() as u32,
            address as *const c_void,
        );
    }
    value
}

/// Whether both ends of a TCP socket have one address, which only this machine can connect.
#[inline(always)]
fn is_near<S: Socket>(socket: S, family: u16) -> Option<bool> {
    if INET_PORT.load() == ABSENT {
        return None;
    }
    if family == AF_INET {
        let (own, peer) = (SOCK_ADDRESS.load(), SOCK_PEER_ADDRESS.load());
        if own == ABSENT || peer == ABSENT {
            return None;
        }
        // SAFETY: `skc_rcv_saddr` and `skc_daddr`.
        let (own, peer): (u32, u32) = unsafe { (socket.member(own), socket.member(peer)) };
        return Some(own == peer);
    }
    let (own, peer) = (SOCK_ADDRESS_6.load(), SOCK_PEER_ADDRESS_6.load());
    if family != AF_INET6 || own == ABSENT || peer == ABSENT {
        return None;
    }
    // SAFETY: `skc_v6_rcv_saddr` and `skc_v6_daddr`, of 16 bytes; bytes are any.
    let (own, peer): ([u64; 2], [u64; 2]) = unsafe {
        (
            read(socket.key().wrapping_add(u64::from(own))),
            read(socket.key().wrapping_add(u64::from(peer))),
        )
    };
    Some(own[0] == peer[0] && own[1] == peer[1])
}

/// Process `tgid` connected, or sent on a socket that is not followed: it may be a client.
#[inline(always)]
pub(super) fn note<S: Socket>(socket: S, tgid: u32) {
    if owner_of(tgid) < FIRST_SERVICE {
        return;
    }
    let family = socket.family();
    if is_near(socket, family) != Some(true) {
        return;
    }
    let (port, peer) = socket.ports(family);
    let place = Place::of(socket.network(), port, peer);
    if let Some(set) = REQUEST_CLIENTS.get_ptr_mut(place.set) {
        let set = set.cast::<u64>();
        let named = place.word(tgid);
        // SAFETY: words of an entry of the table.
        unsafe {
            let word = set.add(place.way(|way| read_volatile(set.add(way))));
            if read_volatile(word) != named {
                write_volatile(word, named);
            }
        }
    }
}

/// A socket is gone: another process may be given its port.
#[inline(always)]
pub(super) fn forget<S: Socket>(socket: S) {
    let port = INET_PORT.load();
    let family = socket.family();
    if port == ABSENT || is_near(socket, family) != Some(true) {
        return;
    }
    // SAFETY: `inet_sport`, in network order, which outlives `skc_num`.
    let port = u16::from_be(unsafe { read(socket.key().wrapping_add(u64::from(port))) });
    let (_, peer) = socket.ports(family);
    let place = Place::of(socket.network(), port, peer);
    if let Some(set) = REQUEST_CLIENTS.get_ptr_mut(place.set) {
        let set = set.cast::<u64>();
        for way in 0..WAYS {
            // SAFETY: words of an entry of the table.
            unsafe {
                if place.is_of(read_volatile(set.add(way))) {
                    write_volatile(set.add(way), 0);
                }
            }
        }
    }
}

/// Fills in who is at the other end of `socket`, whose request `facts` is.
#[inline(always)]
pub(super) fn identify<S: Socket>(socket: S, facts: &mut Facts) {
    facts.peer = Peer::UNKNOWN;
    facts.peer_tgid = 0;
    if facts.family == AF_UNIX {
        let (at, numbers) = (SOCK_PEER_PROCESS.load(), PROCESS_NUMBERS.load());
        if at == ABSENT || numbers == ABSENT {
            return;
        }
        // SAFETY: `sk_peer_pid`, a `struct pid` that the socket holds, and the `int nr` of the
        // initial namespace, its first number.
        let tgid: u32 = unsafe {
            let process: u64 = read(socket.key().wrapping_add(u64::from(at)));
            read(process.wrapping_add(u64::from(numbers)))
        };
        if tgid != 0 {
            facts.peer = Peer::KNOWN;
            keep_own(facts, tgid);
        }
        return;
    }
    match is_near(socket, facts.family) {
        None => {}
        Some(false) => facts.peer = Peer::KNOWN,
        Some(true) => {
            facts.peer = Peer::NEAR;
            ask(facts);
        }
    }
}

/// Looks for the client on this machine, if it is not known yet.
#[inline(always)]
pub(super) fn ask(facts: &mut Facts) {
    if facts.peer != Peer::NEAR {
        return;
    }
    let place = Place::of(facts.network, facts.peer_port, facts.port);
    if let Some(set) = REQUEST_CLIENTS.get_ptr(place.set) {
        let set = set.cast::<u64>();
        // SAFETY: words of an entry of the table.
        let tgid = place.client(|way| unsafe { read_volatile(set.add(way)) });
        if tgid != 0 {
            facts.peer = Peer::KNOWN;
            keep_own(facts, tgid);
        }
    }
}

#[inline(always)]
fn keep_own(facts: &mut Facts, tgid: u32) {
    if u32::from(owner_of(tgid)) == facts.service {
        facts.peer_tgid = tgid;
    }
}
