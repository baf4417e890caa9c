//! Sockets whose TLS is the kernel's (kTLS): their hooks see plaintext. Both ends are given the
//! same keys, as a library gives them after its handshake. Source: `include/uapi/linux/tls.h`.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use profiler::ledger::{Outcome, Route};
use profiler::probes::requests::Losses;

use crate::watch::{Watch, outcome};
use crate::wire::{
    LAST_CHUNK, POST, chunk, exchange, listen, read_request, read_until, stream_head,
};

const SOL_TCP: i32 = 6;
const TCP_ULP: i32 = 31;
const SOL_TLS: i32 = 282;
const TLS_TX: i32 = 1;
const TLS_RX: i32 = 2;

/// `struct tls12_crypto_info_aes_gcm_128`
#[repr(C)]
struct Keys {
    version: u16,
    cipher: u16,
    iv: [u8; 8],
    key: [u8; 16],
    salt: [u8; 4],
    sequence: [u8; 8],
}

impl Keys {
    /// TLS 1.2, AES-128-GCM.
    const fn new(of: u8) -> Self {
        Self {
            version: 0x0303,
            cipher: 51,
            iv: [of; 8],
            key: [of; 16],
            salt: [of; 4],
            sequence: [0; 8],
        }
    }
}

fn set<T>(stream: &TcpStream, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: an open socket; the kernel reads `length` bytes of `value`.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            level,
            option,
            (&raw const *value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Hands TLS over to the kernel: what this end sends is of `sends`, what it receives of `receives`.
fn encrypt(stream: &TcpStream, sends: u8, receives: u8) -> io::Result<()> {
    set(stream, SOL_TCP, TCP_ULP, b"tls")?;
    set(stream, SOL_TLS, TLS_TX, &Keys::new(sends))?;
    set(stream, SOL_TLS, TLS_RX, &Keys::new(receives))
}

/// True if this kernel encrypts.
fn is_offered() -> bool {
    let (listener, port) = listen();
    let client = crate::wire::connect(port);
    let server = listener.accept();
    let offered = server.and_then(|(server, _)| {
        encrypt(&server, 1, 2)?;
        drop(client);
        Ok(())
    });
    match offered {
        Ok(()) => true,
        Err(error) => {
            end_to_end::skipped(&format!("kTLS: {error}"));
            false
        }
    }
}

#[test]
fn a_socket_that_the_kernel_encrypts_is_read_without_a_library() {
    if !is_offered() {
        return;
    }
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = exchange(
        |mut stream| {
            encrypt(&stream, 1, 2).expect("offered");
            for _ in 0..2 {
                assert_eq!(read_request(&mut stream), POST);
                let head = stream_head("text/event-stream");
                stream.write_all(head.as_bytes()).expect("sent");
                for token in 0..20 {
                    let event = chunk(&format!("data: {{\"token\":\"{token}\"}}\n\n"));
                    stream.write_all(event.as_bytes()).expect("sent");
                }
                stream.write_all(LAST_CHUNK.as_bytes()).expect("sent");
            }
        },
        |mut stream| {
            encrypt(&stream, 2, 1).expect("offered");
            for _ in 0..2 {
                stream.write_all(POST).expect("sent");
                assert!(read_until(&mut stream, LAST_CHUNK.as_bytes()));
            }
        },
    );
    for seen in watch.wait(port, 2) {
        assert_eq!(outcome(&seen), Some(Outcome::Done));
        assert_eq!((seen.request.status, seen.request.chunks), (200, 20));
        assert_eq!(seen.request.route, Route::Completions);
    }
    assert_eq!(watch.probe.losses(), Losses::default());
}
