//! One exchange over loopback inside this process, to see whether a tier sees it as it was.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use profiler_ebpf::owners::SELF_TEST;
use profiler_ebpf::request::{Facts, Outcome};

const REQUEST: &[u8] = b"GET /perjoule/self-test HTTP/1.1\r\nHost: localhost\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Loopback is done at once or never.
const PATIENCE: Duration = Duration::from_millis(200);

/// What was said over loopback.
#[derive(Debug)]
pub(super) struct Exchange {
    port: u16,
    peer_port: u16,
}

impl Exchange {
    /// Says it. The sockets are gone when this returns.
    pub(super) fn make() -> io::Result<Self> {
        let listener =
            listen(Ipv4Addr::LOCALHOST.into()).or_else(|_| listen(Ipv6Addr::LOCALHOST.into()))?;
        let address = listener.local_addr()?;
        let mut client = TcpStream::connect_timeout(&address, PATIENCE)?;
        let (mut server, peer) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        let mut said = [0; if REQUEST.len() > RESPONSE.len() {
            REQUEST.len()
        } else {
            RESPONSE.len()
        }];
        client.write_all(REQUEST)?;
        server.read_exact(said.get_mut(..REQUEST.len()).unwrap_or_default())?;
        server.write_all(RESPONSE)?;
        client.read_exact(said.get_mut(..RESPONSE.len()).unwrap_or_default())?;
        Ok(Self {
            port: address.port(),
            peer_port: peer.port(),
        })
    }

    /// True if this is the record of what was said. Its client's port is checked only where the
    /// kernel shows one.
    fn is_told_by(&self, facts: &Facts) -> bool {
        facts.service == u32::from(SELF_TEST)
            && facts.port == self.port
            && (facts.peer_port == self.peer_port || facts.peer_port == 0)
    }

    /// Holds the records against what was said; an error says what is wrong with them.
    pub(super) fn check<'a>(&self, told: impl Iterator<Item = &'a Facts>) -> Result<(), String> {
        let told: Vec<&Facts> = told.filter(|facts| self.is_told_by(facts)).collect();
        let [facts] = told[..] else {
            return Err(format!(
                "its self-test made 1 request and saw {}",
                told.len()
            ));
        };
        let seen = (
            facts.request_bytes,
            facts.response_bytes,
            facts.status,
            facts.outcome,
        );
        let said = (
            REQUEST.len() as u64,
            RESPONSE.len() as u64,
            200,
            Outcome::DONE,
        );
        if seen == said {
            Ok(())
        } else {
            Err(format!(
                "its self-test saw another request than it made: bytes, status and outcome \
                 {seen:?} for {said:?}"
            ))
        }
    }
}

fn listen(address: IpAddr) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::new(address, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes::requests::fixtures::facts;

    fn told(exchange: &Exchange) -> Facts {
        Facts {
            service: u32::from(SELF_TEST),
            port: exchange.port,
            request_bytes: REQUEST.len() as u64,
            response_bytes: RESPONSE.len() as u64,
            status: 200,
            outcome: Outcome::DONE,
            ..facts(b"GET / ")
        }
    }

    #[test]
    fn only_the_exchange_as_it_was_passes() {
        let exchange = Exchange::make().expect("loopback");
        let right = told(&exchange);
        assert_eq!(exchange.check([&right].into_iter()), Ok(()));
        assert!(exchange.check([].into_iter()).is_err(), "not seen");
        assert!(
            exchange.check([&right, &right].into_iter()).is_err(),
            "seen twice"
        );
        let wrong = [
            Facts {
                response_bytes: 1,
                ..right
            },
            Facts { status: 0, ..right },
            Facts {
                outcome: Outcome::INCOMPLETE,
                ..right
            },
            Facts {
                service: 3,
                ..right
            },
            Facts { port: 0, ..right },
        ];
        for facts in &wrong {
            assert!(exchange.check([facts].into_iter()).is_err());
        }
        let another = Facts { port: 1, ..right };
        assert_eq!(exchange.check([&another, &right].into_iter()), Ok(()));
    }
}
