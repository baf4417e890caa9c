//! The load generator: seeded requests that come at random and are read to their end.
//!
//! In: an address and a [`LoadConfig`]. Out: a [`Summary`]. Requests arrive as a Poisson process
//! whatever the server does (an open loop), each on an idle keep-alive connection or a new one.
//! After the last one nothing is sent, but all that is in flight is read to its end.

mod client;
mod plan;
mod summary;

use std::cell::RefCell;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::Instant;

pub use plan::{LoadConfig, Planned, Routes, plan};
pub use summary::{RequestLog, Summary};

use self::client::Client;
use self::summary::Tally;

/// Sends the planned requests to `address` (`host:port`); writes a [`RequestLog`] line of each to
/// `log`.
///
/// # Errors
/// Rate or seconds make no sense, the server cannot be reached at all, or the log cannot be written. Single requests that fail
/// are counted.
pub async fn run(
    address: &str,
    config: &LoadConfig,
    log: Option<Box<dyn Write>>,
) -> anyhow::Result<Summary> {
    for (name, value) in [("rate", config.rate), ("seconds", config.seconds)] {
        anyhow::ensure!(
            value > 0.0 && value < 1e9,
            "--{name} {value} makes no sense"
        );
    }
    let client = Rc::new(Client::new(address.to_owned()));
    client
        .connect()
        .await
        .with_context(|| format!("no server at {address}"))?;
    let tally = Rc::new(RefCell::new(Tally::new(log)));
    let local = LocalSet::new();
    local
        .run_until(send_all(client, config.clone(), Rc::clone(&tally)))
        .await;
    let summary = tally.borrow_mut().summary();
    summary.context("cannot write the log")
}

async fn send_all(client: Rc<Client>, config: LoadConfig, tally: Rc<RefCell<Tally>>) {
    let start = Instant::now();
    let mut flights = JoinSet::new();
    for planned in plan(&config) {
        tokio::time::sleep_until(start + Duration::from_secs_f64(planned.at_s)).await;
        while flights.try_join_next().is_some() {}
        let (client, config, tally) = (Rc::clone(&client), config.clone(), Rc::clone(&tally));
        flights.spawn_local(async move {
            tally.borrow_mut().sent();
            let flown = client.send(&planned, &config).await;
            tally
                .borrow_mut()
                .landed(&planned, &flown, &config, client.connections());
        });
    }
    while flights.join_next().await.is_some() {}
}
