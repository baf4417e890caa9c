//! A server on loopback that answers as a test says, and remembers what it was asked.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// Of which connection, counted from 0.
    pub(super) connection: usize,
    /// The first line.
    pub(super) line: String,
    /// By name in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) form: BTreeMap<String, String>,
}

impl Asked {
    pub(super) fn query(&self) -> &str {
        &self.form["query"]
    }
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub(super) fn start(answers: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::over(|stream| stream, answers)
    }

    /// With TLS.
    pub(super) fn secure(
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        answers: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key);
        let config = Arc::new(config.unwrap());
        let secured = move |stream| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            StreamOwned::new(connection, stream)
        };
        Self::over(secured, answers)
    }

    fn over<S: Read + Write>(
        stream_of: impl Fn(TcpStream) -> S + Send + 'static,
        answers: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let seen = Arc::clone(&asked);
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let mut reader = BufReader::new(stream_of(stream.unwrap()));
                while let Some(asked) = read(&mut reader, connection) {
                    let answer = answers(&asked);
                    seen.lock().unwrap().push(asked);
                    if reader.get_mut().write_all(&answer).is_err()
                        || answer.windows(17).any(|part| part == b"Connection: close")
                    {
                        break;
                    }
                }
            }
        });
        Self { address, asked }
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn read(reader: &mut BufReader<impl Read>, connection: usize) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        match header.trim().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_lowercase(), value.trim().to_owned());
            }
            None => break,
        }
    }
    let length = headers.get("content-length")?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked {
        connection,
        line: line.trim().to_owned(),
        headers,
        form: form_urlencoded::parse(&body).into_owned().collect(),
    })
}

/// An answer with a body.
pub(super) fn answer(status: &str, head: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{head}\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}
