//! One bounded HTTP GET of a server on this machine.

use std::io;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::broker::Broker;
use super::connect::connect;
use super::{Connection, Endpoint};
use crate::clock::Timestamp;
use crate::http::{self, HttpError};

/// Why a server's metrics could not be read.
#[derive(Debug, Error)]
pub(super) enum ScrapeError {
    /// The server's network namespace cannot be entered.
    #[error("cannot enter its network namespace: {0}")]
    Namespace(#[source] io::Error),
    /// Nobody takes the connection.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// It does not answer as it should.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// The body at `path`. `connected` is called when the connection stands and nothing has been sent.
pub(super) fn get(
    endpoint: &Endpoint,
    broker: Option<&Broker>,
    path: &str,
    limit: Duration,
    connected: impl FnOnce(Connection),
) -> Result<String, ScrapeError> {
    let deadline = Instant::now() + limit;
    let address = endpoint.address;
    let stream = connect(endpoint, broker, limit)?;
    connected(Connection {
        from: stream.local_addr().map_err(HttpError::Io)?.port(),
        to: address.port(),
        network: endpoint.network.number,
        at: Timestamp::now(),
    });
    Ok(http::get(stream, &address.to_string(), path, deadline)?)
}
