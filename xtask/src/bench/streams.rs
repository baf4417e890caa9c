//! A server that streams, and its clients, as threads that do nothing else: each request is
//! answered with a head, events and an end, each sent by a call of its own, as inference servers
//! do. Before each event the server computes for a while, as they do too; with none it sends as
//! fast as sockets take it, so that the hooks have much to do.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Events of a response, and bytes of one's data: a token in an engine's JSON.
const EVENTS: usize = 64;
const EVENT_BYTES: usize = 240;

const CONNECTIONS: usize = 8;

const REQUEST: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\
    Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\nserver: bench\r\n\
    cache-control: no-cache\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
    Transfer-Encoding: chunked\r\n\r\n";
const END: &[u8] = b"0\r\n\r\n";

/// What to be.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Role {
    /// Serve on a free port of loopback, which is printed
    Serve {
        /// Work before each event, in rounds of a multiplication
        #[arg(long)]
        work: u64,
    },
    /// Ask for streams as fast as they are answered; prints requests a second
    Load {
        /// Where the server listens
        #[arg(long)]
        address: SocketAddr,
        /// How long
        #[arg(long)]
        seconds: f64,
    },
}

/// The hidden task by which the bench starts these as processes.
pub(crate) fn run(role: &Role) -> Result<()> {
    match role {
        Role::Serve { work } => serve(*work),
        Role::Load { address, seconds } => load(*address, Duration::from_secs_f64(*seconds)),
    }
}

fn serve(work: u64) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        // A client that leaves ends its thread.
        spawn(move || answer(stream, work));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, work: u64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let text = "x".repeat(EVENT_BYTES - "data: {}\n\n".len());
    let event = format!("{EVENT_BYTES:x}\r\ndata: {{{text}}}\n\n\r\n");
    let mut request = vec![0; REQUEST.len()];
    loop {
        stream.read_exact(&mut request)?;
        stream.write_all(HEAD)?;
        for _ in 0..EVENTS {
            compute(work);
            stream.write_all(event.as_bytes())?;
        }
        stream.write_all(END)?;
    }
}

/// Time on the CPU that no other thread's time shortens.
fn compute(rounds: u64) {
    let mut value = 1_u64;
    for round in 0..rounds {
        value = black_box(value.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round);
    }
}

fn load(address: SocketAddr, time: Duration) -> Result<()> {
    let answered = Arc::new(AtomicU64::new(0));
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(address).context("the streaming server does not answer")?;
        let answered = Arc::clone(&answered);
        spawn(move || ask(stream, &answered));
    }
    sleep(time);
    let answered = answered.load(Ordering::Relaxed);
    if answered == 0 {
        bail!("the streaming server answered nothing");
    }
    println!("{}", answered as f64 / time.as_secs_f64());
    Ok(())
}

fn ask(mut stream: TcpStream, answered: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        stream.write_all(REQUEST)?;
        let mut last = [0; END.len()];
        // Nothing but the end of a response ends so: the data are one letter.
        while last != *END {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            for byte in buffer.iter().take(read).rev().take(END.len()).rev() {
                last.rotate_left(1);
                last[END.len() - 1] = *byte;
            }
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
}
