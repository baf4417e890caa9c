//! Who listens where: listening sockets of a network namespace, and the processes that own them.
//!
//! In: `/proc/<pid>/net/{tcp,tcp6,unix}`, which shows the namespace of that process, and the
//! links in `/proc/<pid>/fd`. Out: [`Socket`]s and their owners.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// What kind of address a listener has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Inet,
    /// IPv6; bound to `::` it takes IPv4 too.
    Inet6,
    /// A Unix socket, which has no port.
    Unix,
}

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Socket {
    pub(super) inode: u64,
    pub(super) family: Family,
    /// What it is bound to; `None` for Unix sockets.
    pub(super) address: Option<IpAddr>,
    /// 0 for Unix sockets.
    pub(super) port: u16,
    /// Only this host can reach it.
    pub(super) loopback: bool,
}

/// States of `include/net/tcp_states.h`.
const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
/// Flag and type of `/proc/net/unix` for a stream socket that accepts.
const UNIX_ACCEPTS: &str = "00010000";
const UNIX_STREAM: &str = "0001";
/// The kernel lists listeners first. So many other rows in a row mean that there are no more,
/// and that the connections, which may be many, need not be walked.
const OTHER_ROWS: u32 = 64;

/// The listening sockets in the network namespace of the process with this `/proc` directory.
pub(super) fn listening(directory: &Path) -> BTreeSet<Socket> {
    let mut found = BTreeSet::new();
    for (table, family) in [("net/tcp", Family::Inet), ("net/tcp6", Family::Inet6)] {
        let mut others = 0;
        for row in rows(&directory.join(table)) {
            match Row::parse(&row) {
                Some(row) if row.state == LISTEN => {
                    others = 0;
                    let Row {
                        inode,
                        local_port: port,
                        local_address,
                        ..
                    } = row;
                    found.insert(Socket {
                        inode,
                        family,
                        address: Some(local_address),
                        port,
                        loopback: local_address.to_canonical().is_loopback(),
                    });
                }
                _ => others += 1,
            }
            if others > OTHER_ROWS {
                break;
            }
        }
    }
    found.extend(rows(&directory.join("net/unix")).filter_map(|row| unix_listener(&row)));
    found
}

/// The (port it leads to, inode) of every established connection of the namespace.
pub(super) fn connections(directory: &Path) -> BTreeSet<(u16, u64)> {
    ["net/tcp", "net/tcp6"]
        .into_iter()
        .flat_map(|table| rows(&directory.join(table)))
        .filter_map(|row| Row::parse(&row))
        .filter(|row| row.state == ESTABLISHED)
        .map(|row| (row.remote_port, row.inode))
        .collect()
}

/// The inodes of all sockets that a process has open.
pub(super) fn open_sockets(directory: &Path) -> BTreeSet<u64> {
    let Ok(entries) = fs::read_dir(directory.join("fd")) else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| {
            let link = fs::read_link(entry.ok()?.path()).ok()?;
            link.to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?
                .parse()
                .ok()
        })
        .collect()
}

/// Each of `sockets` with the processes among `pids` that have it open.
pub(super) fn owners(
    proc: &Path,
    pids: &BTreeSet<u32>,
    sockets: &BTreeSet<Socket>,
) -> BTreeMap<Socket, BTreeSet<u32>> {
    let by_inode: BTreeMap<u64, &Socket> = sockets
        .iter()
        .map(|socket| (socket.inode, socket))
        .collect();
    let mut found: BTreeMap<Socket, BTreeSet<u32>> = BTreeMap::new();
    for pid in pids {
        for inode in open_sockets(&proc.join(pid.to_string())) {
            if let Some(socket) = by_inode.get(&inode) {
                found.entry(**socket).or_default().insert(*pid);
            }
        }
    }
    found
}

fn rows(table: &Path) -> impl Iterator<Item = String> + use<> {
    // Without IPv6 there is no such table.
    let lines = File::open(table)
        .ok()
        .map(|file| BufReader::new(file).lines());
    lines.into_iter().flatten().map_while(Result::ok).skip(1)
}

struct Row {
    local_port: u16,
    remote_port: u16,
    local_address: IpAddr,
    state: u8,
    inode: u64,
}

impl Row {
    /// A row of `/proc/net/tcp` or `tcp6`: addresses are hexadecimal words in host byte order.
    fn parse(row: &str) -> Option<Self> {
        let fields: Vec<&str> = row.split_ascii_whitespace().collect();
        let (address, local_port) = fields.get(1)?.split_once(':')?;
        let (_, remote_port) = fields.get(2)?.split_once(':')?;
        Some(Self {
            local_port: u16::from_str_radix(local_port, 16).ok()?,
            remote_port: u16::from_str_radix(remote_port, 16).ok()?,
            local_address: parse_address(address)?,
            state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
            inode: fields.get(9)?.parse().ok()?,
        })
    }
}

/// An address in hexadecimal words, each in host byte order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..text.len().div_ceil(8))
        .map(|n| {
            let word = u32::from_str_radix(text.get(n * 8..n * 8 + 8)?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect();
    let bytes = words?.concat();
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    let bytes = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
    Some(Ipv6Addr::from(bytes).into())
}

fn unix_listener(row: &str) -> Option<Socket> {
    let fields: Vec<&str> = row.split_ascii_whitespace().collect();
    if *fields.get(3)? != UNIX_ACCEPTS || *fields.get(4)? != UNIX_STREAM {
        return None;
    }
    let inode = fields.get(6)?.parse().ok()?;
    Some(Socket {
        inode,
        family: Family::Unix,
        address: None,
        port: 0,
        loopback: true,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn own_directory() -> &'static Path {
        Path::new("/proc/self")
    }

    #[test]
    fn rows_are_read_as_the_kernel_writes_them() {
        let row = Row::parse(
            "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0 \
             0 4242 1 0000000000000000 100 0 0 10 0",
        )
        .expect("a proper row");
        assert_eq!(
            (row.local_port, row.state, row.inode),
            (8_080, LISTEN, 4_242)
        );
        if cfg!(target_endian = "little") {
            assert_eq!(row.local_address, Ipv4Addr::LOCALHOST);
            for (text, address) in [
                ("00000000000000000000000001000000", "::1"),
                ("0000000000000000FFFF00000100007F", "::ffff:127.0.0.1"),
                ("0100000A", "10.0.0.1"),
                ("B80D01200000000000000000EF000000", "2001:db8::ef"),
            ] {
                assert_eq!(parse_address(text), address.parse().ok(), "{text}");
            }
        }
        for (text, address) in [
            ("00000000", "0.0.0.0"),
            ("00000000000000000000000000000000", "::"),
        ] {
            assert_eq!(parse_address(text), address.parse().ok(), "{text}");
        }
        assert_eq!(parse_address("000000"), None);
        assert!(Row::parse("  sl  local_address rem_address   st").is_none());
    }

    #[test]
    fn own_listeners_of_every_family_are_found_with_their_owner() {
        let inet = TcpListener::bind("127.0.0.1:0").expect("loopback exists");
        let everywhere = TcpListener::bind("0.0.0.0:0").expect("a free port exists");
        let folder = tempfile::tempdir().expect("a temporary directory");
        let _unix = UnixListener::bind(folder.path().join("socket")).expect("can be bound");
        let port = |listener: &TcpListener| listener.local_addr().map(|a| a.port()).unwrap_or(0);

        let found = listening(own_directory());
        let mine = owners(
            Path::new("/proc"),
            &BTreeSet::from([std::process::id()]),
            &found,
        );
        let owned = |family: Family, number: u16| {
            mine.keys()
                .find(|socket| socket.family == family && socket.port == number)
                .copied()
        };
        assert_eq!(
            owned(Family::Inet, port(&inet)).map(|socket| socket.loopback),
            Some(true)
        );
        let open = owned(Family::Inet, port(&everywhere));
        assert_eq!(open.map(|socket| socket.loopback), Some(false));
        assert!(owned(Family::Unix, 0).is_some());
        let own = BTreeSet::from([std::process::id()]);
        assert!(mine.values().all(|owners| *owners == own));

        let client = TcpStream::connect(("127.0.0.1", port(&inet))).expect("somebody listens");
        let leading: Vec<u64> = connections(own_directory())
            .into_iter()
            .filter(|(remote, _)| *remote == port(&inet))
            .map(|(_, inode)| inode)
            .collect();
        assert_eq!(leading.len(), 1);
        assert!(open_sockets(own_directory()).contains(&leading[0]));
        drop((client, inet));
        let gone = port(&everywhere);
        drop(everywhere);
        assert!(
            !listening(own_directory())
                .iter()
                .any(|socket| socket.port == gone)
        );
    }
}
