//! The load over HTTP/2 without TLS (h2c, by prior knowledge).

use std::io::{Error, Result};

use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{Answer, Ask, Client, Connection, Events};

/// Bytes of a frame's payload, and of what may be under way.
const WINDOW: u32 = 1 << 20;

/// Makes HTTP/2 connections to a port on loopback.
#[derive(Debug, Clone, Copy)]
pub struct Http2 {
    /// The server's port.
    pub port: u16,
}

impl Client for Http2 {
    type Connection = Multiplexed;

    async fn connect(&self) -> Result<Self::Connection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let (sender, connection) = builder.handshake(stream).await.map_err(Error::other)?;
        let driver = tokio::spawn(async move {
            // Its end is seen by the streams.
            let _ = connection.await;
        });
        Ok(Multiplexed { sender, driver })
    }
}

/// A connection; the requests of this load follow each other on it.
#[derive(Debug)]
pub struct Multiplexed {
    sender: SendRequest<bytes::Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Multiplexed {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection for Multiplexed {
    async fn exchange(&mut self, ask: &Ask) -> Result<(Answer, bool)> {
        let request = http::Request::builder()
            .method(ask.kind.method)
            .uri(format!("http://localhost{}", ask.target()))
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
    let mut events = Events::default();
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
