//! Where the metrics are served: TCP addresses, every address of a port, Unix sockets.

use std::fmt;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::connections::Peer;

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// `ADDRESS:PORT`
    Tcp(SocketAddr),
    /// `:PORT`: every address, IPv6 too where the machine has it.
    Everywhere(u16),
    /// `unix:/PATH`
    Unix(PathBuf),
}

/// It is none of the kinds there are.
#[derive(Debug, Error)]
#[error("`{0}` is no socket address; one of ADDRESS:PORT, [IPV6]:PORT, :PORT, unix:/PATH")]
pub struct ParseListenAddressError(String);

impl FromStr for ListenAddress {
    type Err = ParseListenAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseListenAddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            return path
                .is_absolute()
                .then(|| Self::Unix(path.to_owned()))
                .ok_or_else(unknown);
        }
        if let Some(port) = text.strip_prefix(':') {
            return port.parse().map(Self::Everywhere).map_err(|_| unknown());
        }
        text.parse().map(Self::Tcp).map_err(|_| unknown())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Everywhere(port) => write!(f, ":{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket, and its file.
    Unix(UnixListener, Arc<SocketFile>),
}

/// A Unix socket's file, which is taken away when nobody holds this any more.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already: so it should be.
        let _ = fs::remove_file(&self.0);
    }
}

/// A client's stream.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// Somebody else does, or it may not be.
    pub async fn bind(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            ListenAddress::Everywhere(port) => {
                let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port)).await;
                let listener = match both {
                    // IPv6 is switched off.
                    Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                        TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).await?
                    }
                    both => both?,
                };
                Ok(Self::Tcp(listener))
            }
            ListenAddress::Unix(path) => {
                let bound = match UnixListener::bind(path) {
                    // The file of an agent that was killed.
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left(path) => {
                        fs::remove_file(path)?;
                        UnixListener::bind(path)
                    }
                    bound => bound,
                };
                Ok(Self::Unix(bound?, Arc::new(SocketFile(path.clone()))))
            }
        }
    }

    /// Where it listens, as a client would name it.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn url(&self, is_tls: bool) -> io::Result<String> {
        let scheme = if is_tls { "https" } else { "http" };
        Ok(match self {
            Self::Tcp(listener) => format!("{scheme}://{}/metrics", listener.local_addr()?),
            Self::Unix(_, file) => format!("{scheme}+unix:{}:/metrics", file.0.display()),
        })
    }

    /// Its file, for whoever may take it away.
    pub fn file(&self) -> Option<Arc<SocketFile>> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(_, file) => Some(Arc::clone(file)),
        }
    }

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<(Stream, Peer)>> {
        match self {
            Self::Tcp(listener) => listener
                .poll_accept(context)
                .map_ok(|(stream, address)| (Stream::Tcp(stream), Peer::of(address.ip()))),
            Self::Unix(listener, _) => listener
                .poll_accept(context)
                .map_ok(|(stream, _)| (Stream::Unix(stream), Peer::LOCAL)),
        }
    }
}

/// True if it is a socket that nobody listens at any more.
fn is_left(path: &Path) -> bool {
    let is_socket = |file: fs::Metadata| file.file_type().is_socket();
    fs::symlink_metadata(path).is_ok_and(is_socket)
        && BlockingUnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Sockets that take turns.
pub(super) struct Listeners {
    all: Vec<Listener>,
}

impl Listeners {
    pub(super) const fn new(all: Vec<Listener>) -> Self {
        Self { all }
    }

    /// The next client of any of them.
    pub(super) async fn accept(&mut self) -> io::Result<(Stream, Peer)> {
        let (place, accepted) = poll_fn(|context| {
            for (place, listener) in self.all.iter().enumerate() {
                if let Poll::Ready(accepted) = listener.poll_accept(context) {
                    return Poll::Ready((place, accepted));
                }
            }
            Poll::Pending
        })
        .await;
        // A crowd at one does not keep those at the others waiting: it is asked last the next time.
        let last = self.all.len().saturating_sub(1);
        self.all.swap(place, last);
        accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "127.0.0.1:9000",
            "[::1]:9000",
            ":27182",
            "unix:/run/perjoule.sock",
        ] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for wrong in [
            "",
            "27182",
            "localhost",
            ":70000",
            "unix:",
            "unix:perjoule.sock",
        ] {
            let said = wrong.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(
                said.starts_with(&format!("`{wrong}` is no socket address; ")),
                "{said}"
            );
        }
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_at_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = ListenAddress::Unix(path.clone());
        // As a kill leaves it.
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&address).await.unwrap();
        let taken = Listener::bind(&address).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, "not a socket").unwrap();
        assert!(Listener::bind(&address).await.is_err());
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_port_everywhere_answers_ipv4_clients_too() {
        let listener = Listener::bind(&ListenAddress::Everywhere(0)).await.unwrap();
        let Listener::Tcp(listener) = &listener else {
            panic!("{listener:?}");
        };
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
        let (accepted, client) = tokio::join!(listener.accept(), client);
        let (_, address) = accepted.unwrap();
        client.unwrap();
        assert_eq!(Peer::of(address.ip()), Peer::of(Ipv4Addr::LOCALHOST.into()));
    }
}
