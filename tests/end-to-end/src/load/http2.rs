//! The load over HTTP/2 without TLS (h2c, by prior knowledge).

use std::io::{Error, Result};
use std::sync::Arc;

use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::{Answer, Ask, Client, Connection, Events};

/// Bytes of a frame's payload, and of what may be under way.
const WINDOW: u32 = 1 << 20;

/// Makes HTTP/2 connections to a port on loopback.
#[derive(Debug, Clone)]
pub struct Http2 {
    port: u16,
    sharing: u64,
    latest: Arc<Mutex<(u64, Option<Multiplexed>)>>,
}

impl Http2 {
    /// Connections to `port`; each stands for `sharing` of those that a load asks for, whose
    /// requests are streams beside each other on it.
    pub fn new(port: u16, sharing: u64) -> Self {
        Self {
            port,
            sharing,
            latest: Arc::default(),
        }
    }
}

impl Client for Http2 {
    type Connection = Multiplexed;

    async fn connect(&self) -> Result<Self::Connection> {
        let mut latest = self.latest.lock().await;
        let (users, connection) = &mut *latest;
        if let Some(connection) = connection
            && *users < self.sharing
        {
            *users += 1;
            return Ok(connection.clone());
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW);
        builder.initial_connection_window_size(WINDOW);
        let (sender, driver) = builder.handshake(stream).await.map_err(Error::other)?;
        // It ends with the last sender; an early end is seen by the streams.
        tokio::spawn(driver);
        let made = Multiplexed { sender };
        *latest = (1, (self.sharing > 1).then(|| made.clone()));
        Ok(made)
    }
}

/// A connection, or one's share of it; the requests of a share follow each other.
#[derive(Debug, Clone)]
pub struct Multiplexed {
    sender: SendRequest<bytes::Bytes>,
}

impl Connection for Multiplexed {
    async fn exchange(&mut self, ask: &Ask) -> Result<(Answer, bool)> {
        let request = http::Request::builder()
            .method(ask.kind.method)
            .uri(format!("http://localhost{}", ask.target()))
            .header("traceparent", ask.trace())
            .body(())
            .map_err(Error::other)?;
        let mut sender = self.sender.clone().ready().await.map_err(Error::other)?;
        let bodyless = ask.kind.body.is_none();
        let (response, mut body) = sender
            .send_request(request, bodyless)
            .map_err(Error::other)?;
        if !bodyless {
            send(&mut body, ask.length).await?;
        }
        let response = response.await.map_err(Error::other)?;
        let status = response.status().as_u16();
        let events = receive(response.into_body(), ask).await?;
        if ask.kind.cut {
            // One stream is left, the connection stays.
            body.send_reset(Reason::CANCEL);
        }
        let answer = Answer {
            ask: *ask,
            status,
            events,
        };
        Ok((answer, true))
    }
}

/// Sends a body of `length` bytes, as the server makes room for it.
async fn send(body: &mut h2::SendStream<bytes::Bytes>, length: usize) -> Result<()> {
    let mut left = length;
    while left > 0 {
        body.reserve_capacity(left);
        let room = std::future::poll_fn(|context| body.poll_capacity(context)).await;
        let room = room.ok_or_else(|| Error::other("the server closed the stream"))?;
        let part = room.map_err(Error::other)?.min(left);
        left -= part;
        body.send_data(vec![b'x'; part].into(), left == 0)
            .map_err(Error::other)?;
    }
    Ok(())
}

async fn receive(mut body: RecvStream, ask: &Ask) -> Result<u64> {
    let mut events = Events::of(ask);
    while let Some(data) = body.data().await {
        let data = data.map_err(Error::other)?;
        body.flow_control()
            .release_capacity(data.len())
            .map_err(Error::other)?;
        events.take(&data);
        if ask.kind.cut && events.count() > 0 {
            break;
        }
    }
    Ok(events.count())
}
