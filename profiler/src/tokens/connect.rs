//! A TCP connection to a server on this machine, in the network namespace it listens in.
//!
//! A container's server is reached on its own loopback: a thread that lives for one connection
//! enters the namespace, connects and hands the socket back, which stays in the namespace. The
//! agent's other threads never leave theirs. Needs `CAP_SYS_ADMIN`.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Duration;

use super::Endpoint;
use super::scrape::ScrapeError;

/// Connects within `limit`.
pub(super) fn connect(endpoint: &Endpoint, limit: Duration) -> Result<TcpStream, ScrapeError> {
    let Endpoint {
        address, network, ..
    } = *endpoint;
    let Some(pid) = network.of else {
        return dial(address, limit);
    };
    let namespace = open(pid, network.number).map_err(ScrapeError::Namespace)?;
    thread::Builder::new()
        .name("tokens-netns".into())
        .spawn(move || {
            enter(&namespace).map_err(ScrapeError::Namespace)?;
            dial(address, limit)
        })
        .map_err(ScrapeError::Namespace)?
        .join()
        .unwrap_or_else(|_| Err(ScrapeError::Namespace(io::Error::other("the thread died"))))
}

fn dial(address: SocketAddr, limit: Duration) -> Result<TcpStream, ScrapeError> {
    TcpStream::connect_timeout(&address, limit).map_err(ScrapeError::Connect)
}

/// The process's network namespace, if it still is the one of this number: a process's number may
/// be another's by now.
fn open(pid: u32, number: u64) -> io::Result<File> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    if namespace.metadata()?.ino() != number {
        return Err(io::Error::other("the process is in another namespace now"));
    }
    Ok(namespace)
}

/// Moves the calling thread, and no other, into the namespace.
fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: setns(2) takes a descriptor, which `namespace` keeps open during the call, and a
    // number; it touches no memory of this process.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::process::Command;
    use std::sync::mpsc;

    use super::*;
    use crate::tokens::Network;

    /// Unshares this thread's network and brings its loopback up.
    fn leave_the_network() -> bool {
        // SAFETY: unshare(2) takes a number and touches no memory; only this thread moves.
        let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        moved
            && Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status()
                .is_ok_and(|status| status.success())
    }

    #[test]
    fn a_server_in_another_network_is_reached_on_its_own_loopback() {
        let (tell, told) = mpsc::channel();
        let server = thread::spawn(move || {
            if !leave_the_network() {
                return;
            }
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let number = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
            // SAFETY: gettid(2) takes nothing and always succeeds.
            let thread = unsafe { libc::gettid() } as u32;
            tell.send((listener.local_addr().unwrap(), number, thread))
                .unwrap();
            listener.accept().unwrap().0.write_all(b"inside").unwrap();
        });
        let Ok((address, number, thread)) = told.recv() else {
            eprintln!("skipped: a network namespace needs root and `ip`");
            return;
        };
        let endpoint = |number, of| Endpoint {
            network: Network { number, of },
            ..Endpoint::here(address)
        };
        let limit = Duration::from_secs(2);
        let here = connect(&endpoint(number, None), limit);
        assert!(matches!(here, Err(ScrapeError::Connect(_))), "{here:?}");
        let stale = connect(&endpoint(number + 1, Some(thread)), limit);
        assert!(matches!(stale, Err(ScrapeError::Namespace(_))), "{stale:?}");
        let before = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let mut stream = connect(&endpoint(number, Some(thread)), limit).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        let after = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        assert_eq!(before, after, "the caller has not moved");
        server.join().unwrap();
    }
}
