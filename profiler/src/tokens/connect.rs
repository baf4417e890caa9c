//! A TCP connection to a server on this machine, in the network namespace it listens in: a
//! container's server is reached on its own loopback, through the [`Broker`].

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::Endpoint;
use super::broker::Broker;
use super::scrape::ScrapeError;

/// Connects within `limit`. Without a broker only servers in the agent's own namespace are reached.
pub(super) fn connect(
    endpoint: &Endpoint,
    broker: Option<&Broker>,
    limit: Duration,
) -> Result<TcpStream, ScrapeError> {
    match (endpoint.network.of, broker) {
        (None, _) => {
            TcpStream::connect_timeout(&endpoint.address, limit).map_err(ScrapeError::Connect)
        }
        (Some(pid), Some(broker)) => broker.connect(pid, endpoint, limit),
        (Some(_), None) => Err(ScrapeError::Namespace(io::Error::from_raw_os_error(
            libc::EPERM,
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;
    use std::sync::mpsc;
    use std::thread;

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
        let broker = Broker::start().unwrap();
        let here = connect(&endpoint(number, None), Some(&broker), limit);
        assert!(matches!(here, Err(ScrapeError::Connect(_))), "{here:?}");
        let stale = connect(&endpoint(number + 1, Some(thread)), Some(&broker), limit);
        assert!(matches!(stale, Err(ScrapeError::Namespace(_))), "{stale:?}");
        let alone = connect(&endpoint(number, Some(thread)), None, limit);
        assert!(matches!(alone, Err(ScrapeError::Namespace(_))), "{alone:?}");
        let mut closed = endpoint(number, Some(thread));
        closed.address.set_port(1);
        let refused = connect(&closed, Some(&broker), limit);
        assert!(
            matches!(&refused, Err(ScrapeError::Connect(error))
                if error.kind() == io::ErrorKind::ConnectionRefused),
            "{refused:?}"
        );
        let before = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let inside = endpoint(number, Some(thread));
        let mut stream = connect(&inside, Some(&broker), limit).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        let after = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        assert_eq!(before, after, "the caller has not moved");
        server.join().unwrap();
    }
}
