//! What the return of a receiving or sending call means, whichever tier sees it.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;

use super::clients;
use super::exchange::{client_left, received, sent};
use super::slots::find;
use super::socket::Socket;
use super::source::Syscall;
use super::tls;

const MSG_PEEK: i32 = 2;
const EAGAIN: i32 = 11;
const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;

/// True if a receive that returned this says anything. Every event loop asks once too often, and
/// is told that there is nothing yet.
#[inline(always)]
pub(super) const fn receive_matters(returned: i32) -> bool {
    returned >= 0 || returned == -ECONNRESET
}

/// A process of `owner`'s service has received on `socket`, with this result.
#[inline(always)]
pub(super) fn receive_returned<S: Socket>(
    socket: S,
    returned: i32,
    flags: i32,
    tgid: u32,
    owner: u8,
) {
    if !receive_matters(returned) {
        return;
    }
    let found = find(socket.key());
    if returned <= 0 {
        if !found.is_null() {
            client_left(found, returned != 0);
        }
        return;
    }
    if flags & MSG_PEEK == 0
        && let Some(origin) = Syscall::on(socket.key())
    {
        received(socket, found, origin, returned as u64, tgid, owner);
    }
}

/// The running process has sent on `socket`, with this result. Only a service's sockets are in the
/// table: one lookup tells a foreign process's.
#[inline(always)]
pub(super) fn send_returned<S: Socket>(socket: S, returned: i32) {
    let slot = find(socket.key());
    if slot.is_null() {
        if returned > 0 {
            let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
            clients::note(socket, tgid);
        }
        return;
    }
    if returned > 0 {
        if let Some(origin) = Syscall::on(socket.key()) {
            sent(slot, origin, returned as u64);
        }
    } else if returned == -EPIPE || returned == -ECONNRESET {
        client_left(slot, true);
    } else if returned == -EAGAIN {
        tls::refused(slot);
    }
}
