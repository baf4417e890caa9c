//! Exact token counts: the engine's own counters, read from its metrics on this machine.
//!
//! In: services and the addresses they listen at ([`Watched`]). Out: [`News`]: tokens added
//! between two reads ([`TokenDelta`]), which engine it is ([`EngineInfo`]), requests running and
//! waiting ([`EngineLoad`]). Beside it [`Calibration`]: tokens per streamed chunk.
//!
//! The reading is done on a thread of its own, over HTTP/1.1 on the machine's own addresses, once a
//! second; nothing but the numbers under known names is kept. A counter's first read is its base:
//! what was counted before is nobody's. Engines that count at a request's end
//! ([`Counts::Finish`](crate::ledger::Counts)) lag its energy by up to its duration; over a window much longer than a
//! request that does not matter.

pub mod broker;
mod calibration;
mod connect;
mod counters;
mod engines;
mod poller;
mod scrape;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use calibration::Calibration;
pub use engines::{Engine, Port, engines};

use crate::clock::Timestamp;
use crate::ledger::{EngineInfo, EngineLoad, ServiceId, TokenDelta};
use broker::Broker;
use poller::Told;

/// A service, and where its metrics may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Which.
    pub service: ServiceId,
    /// Where it listens, the likeliest first.
    pub endpoints: Vec<Endpoint>,
}

/// An address on this machine at which a service listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address to connect to.
    pub address: SocketAddr,
    /// The listening socket's inode: another socket there is another server.
    pub listener: u64,
    /// Where the address means something.
    pub network: Network,
}

#[cfg(test)]
impl Endpoint {
    /// In the caller's own network.
    fn here(address: SocketAddr) -> Self {
        let network = Network {
            number: 0,
            of: None,
        };
        Self {
            address,
            listener: u64::from(address.port()),
            network,
        }
    }
}

/// A network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    /// As `/proc/<pid>/ns/net` numbers it.
    pub number: u64,
    /// A process in it; `None` if it is the agent's own.
    pub of: Option<u32>,
}

/// A connection of the agent's own, for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// The agent's port.
    pub from: u16,
    /// The server's port.
    pub to: u16,
    /// Number of the network namespace both are in.
    pub network: u64,
    /// When it stood.
    pub at: Timestamp,
}

/// What the thread has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A request of the agent's own is about to be sent: told before the server can see it, so
    /// that it can be told from its clients'.
    Connected(Connection),
    /// A service's engine is known, or has changed.
    Engine(EngineInfo),
    /// Its counters were read.
    Tokens(TokenDelta),
    /// Its counters began anew; what was added since their latest read is lost.
    Reset(ServiceId),
    /// Its gauges were read.
    Load(EngineLoad),
    /// Its metrics cannot be read at present; its counters go on from where they were.
    Silent(ServiceId),
    /// Its counters are gone with their server, or are several processes' behind one port: what
    /// is told of them later begins anew.
    Lost(ServiceId),
}

/// The thread's other end. Dropping it ends the thread.
#[derive(Debug)]
pub struct Tokens {
    told: Sender<Told>,
    news: Receiver<News>,
    thread: JoinHandle<()>,
}

impl Tokens {
    /// Starts the thread. Servers in other network namespaces are reached through `broker`.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(broker: Option<Broker>) -> io::Result<Self> {
        let (told, listen) = mpsc::channel();
        let (tell, news) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("tokens".into())
            .spawn(move || poller::run(&listen, &tell, broker))?;
        Ok(Self { told, news, thread })
    }

    /// All services there are from now on. Waits at most `patience` until the new ones have been
    /// asked, so that what they count next is not missed.
    pub fn watch(&self, services: Vec<Watched>, patience: Option<Duration>) {
        let (sender, asked) = mpsc::channel();
        let done = patience.is_some().then_some(sender);
        if self.told.send(Told::Watch(services, done)).is_ok()
            && let Some(patience) = patience
        {
            // The sender is dropped, never used.
            let _ = asked.recv_timeout(patience);
        }
    }

    /// The oldest news not yet taken.
    pub fn next(&self) -> Option<News> {
        self.news.try_recv().ok()
    }

    /// Begins to end: every counter is read a last time. Then call [`Self::end`].
    pub fn finish(&self) {
        // A thread that has ended has nothing more to say.
        let _ = self.told.send(Told::Finish);
    }

    /// Waits for the end, at most `patience`; a thread that hangs in a read is left behind. The
    /// last news can be taken afterwards.
    pub fn end(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}
