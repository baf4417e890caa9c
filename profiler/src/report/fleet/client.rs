//! Instant queries of Prometheus' API, over one connection that is kept.
//!
//! On hyper and rustls, which the exporter stands on: crate::http reads one plain answer of a neighbour, without TLS, POST
//! or gzip, and a client with pools, proxies and redirects is more than questions to one server need.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::MultiGzDecoder;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap,
    HeaderValue, LOCATION, USER_AGENT,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::source::{Address, FleetSource};

/// The longest answer that is read, before and after it is unpacked.
const MOST_BYTES: usize = 256 << 20;
/// Characters of an answer that is not the API's.
const EXCERPT: usize = 200;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// A file cannot be used.
    #[error("{file}: {what}")]
    File {
        /// Which.
        file: String,
        /// Why.
        what: String,
    },
    /// Nobody is there, or the connection broke.
    #[error("cannot ask {address}: {what}")]
    Connection {
        /// Who was asked.
        address: String,
        /// Why not.
        what: String,
    },
    /// It took too long.
    #[error(
        "{address} gave no whole answer within {seconds} s; give a longer --timeout, or ask for less with --match"
    )]
    Timeout {
        /// Who was asked.
        address: String,
        /// How long it had.
        seconds: u64,
    },
    /// It wants to know who asks.
    #[error("{address} says {status}: give --basic-auth, --bearer-token-file or --header ({said})")]
    Refused {
        /// Who was asked.
        address: String,
        /// Its status.
        status: StatusCode,
        /// What it says.
        said: String,
    },
    /// It understood, and says no.
    #[error("{address} says {status}: {said}")]
    Status {
        /// Who was asked.
        address: String,
        /// Its status.
        status: StatusCode,
        /// What it says.
        said: String,
    },
    /// It is something else.
    #[error(
        "{address} does not speak Prometheus' API ({said}); the address is what stands before /api/v1, for Mimir …/prometheus"
    )]
    NotTheApi {
        /// Who was asked.
        address: String,
        /// What it says.
        said: String,
    },
}

/// The rows of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) rows: Vec<Row>,
    /// What the server says beside them, as where stores of a Thanos are away.
    pub(super) warnings: Vec<String>,
}

/// A series at a moment.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// One server.
pub(super) struct Client {
    address: Address,
    shown: String,
    headers: HeaderMap,
    tls: Option<TlsConnector>,
    timeout: Duration,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Connects to nobody yet.
    pub(super) fn new(source: &FleetSource) -> Result<Self, ClientError> {
        let shown = source.shown();
        let address = source
            .address()
            .cloned()
            .ok_or_else(|| ClientError::Connection {
                address: shown.clone(),
                what: "no address is given".to_owned(),
            })?;
        let mut client = Self {
            tls: match address.is_tls {
                true => Some(connector(source.ca_file().map(|file| &**file))?),
                false => None,
            },
            timeout: source.timeout(),
            connection: None,
            headers: HeaderMap::new(),
            shown,
            address,
        };
        client.headers = client.headers(source)?;
        Ok(client)
    }

    fn headers(&self, source: &FleetSource) -> Result<HeaderMap, ClientError> {
        let mut headers = HeaderMap::new();
        let mut set = |name, value: String| {
            let value = HeaderValue::from_str(&value);
            value
                .map_err(|_| {
                    self.failed("a name or a secret has a character that no header may have")
                })
                .map(|mut value| {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                })
        };
        set(HOST, self.address.authority.clone())?;
        set(
            USER_AGENT,
            format!("perjoule/{}", env!("CARGO_PKG_VERSION")),
        )?;
        set(ACCEPT, "application/json".to_owned())?;
        set(ACCEPT_ENCODING, "gzip".to_owned())?;
        set(CONTENT_TYPE, "application/x-www-form-urlencoded".to_owned())?;
        let basic = |user: &str, password: &str| {
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        };
        if let Some((user, password)) = &self.address.user {
            set(AUTHORIZATION, basic(user, password))?;
        }
        if let Some((user, file)) = source.basic_auth() {
            set(AUTHORIZATION, basic(user, &secret(file)?))?;
        }
        if let Some(file) = source.bearer_token_file() {
            set(AUTHORIZATION, format!("Bearer {}", secret(file)?))?;
        }
        for (name, value) in source.headers() {
            headers.insert(name.clone(), value.clone());
        }
        Ok(headers)
    }

    /// What the expression is at that time.
    pub(super) async fn instant(&mut self, asked: &str, at: i64) -> Result<Answer, ClientError> {
        let seconds = self.timeout.as_secs();
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("query", asked)
            .append_pair("time", &at.to_string())
            .append_pair("timeout", &format!("{seconds}s"))
            .finish();
        let answer = tokio::time::timeout(self.timeout, self.post(form.into())).await;
        let (status, location, text) = answer.map_err(|_| ClientError::Timeout {
            address: self.shown.clone(),
            seconds,
        })??;
        self.understood(status, location.as_deref(), &text)
    }

    /// A connection that was kept may have been closed meanwhile: then a new one.
    async fn post(
        &mut self,
        form: Bytes,
    ) -> Result<(StatusCode, Option<String>, Vec<u8>), ClientError> {
        let kept = self.connection.take();
        let was_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) if !connection.is_closed() => connection,
            _ => self.connect().await?,
        };
        let sent = connection.send_request(self.request(&form)?).await;
        let answer = match sent {
            Err(_) if was_kept => {
                connection = self.connect().await?;
                connection.send_request(self.request(&form)?).await
            }
            sent => sent,
        };
        let answer = answer.map_err(|error| self.failed(&told(&error)))?;
        let status = answer.status();
        let location = answer.headers().get(LOCATION);
        let location = location.and_then(|to| Some(to.to_str().ok()?.to_owned()));
        let text = self.body(answer).await?;
        self.connection = Some(connection);
        Ok((status, location, text))
    }

    fn request(&self, form: &Bytes) -> Result<Request<Full<Bytes>>, ClientError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/api/v1/query", self.address.path))
            .body(Full::new(form.clone()));
        let mut request = request.map_err(|error| self.failed(&error.to_string()))?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }

    async fn body(&self, answer: Response<Incoming>) -> Result<Vec<u8>, ClientError> {
        let packed = answer
            .headers()
            .get(CONTENT_ENCODING)
            .is_some_and(|how| how == "gzip");
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        let bytes = body.map_err(|error| self.failed(&format!("the answer broke off: {error}")))?;
        let bytes = bytes.to_bytes();
        if !packed {
            return Ok(bytes.into());
        }
        let mut text = Vec::new();
        let unpacked = MultiGzDecoder::new(&*bytes)
            .take(MOST_BYTES as u64)
            .read_to_end(&mut text);
        unpacked
            .map_err(|error| self.failed(&format!("the answer cannot be unpacked: {error}")))?;
        Ok(text)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let Address { host, port, .. } = &self.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await;
        let stream = stream.map_err(|error| self.failed(&error.to_string()))?;
        // Questions are short, and each waits for its answer.
        stream
            .set_nodelay(true)
            .map_err(|error| self.failed(&error.to_string()))?;
        match &self.tls {
            None => self.speak(stream).await,
            Some(tls) => {
                let name = ServerName::try_from(host.clone());
                let name = name.map_err(|error| self.failed(&error.to_string()))?;
                let stream = tls.connect(name, stream).await;
                let stream = stream.map_err(|error| {
                    self.failed(&format!(
                        "TLS: {error} (--ca-file names other certificates to trust)"
                    ))
                })?;
                self.speak(stream).await
            }
        }
    }

    async fn speak(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let shaken = handshake(TokioIo::new(stream)).await;
        let (send, connection) = shaken.map_err(|error| self.failed(&told(&error)))?;
        // How it ends is told to whoever waits for an answer.
        tokio::spawn(async move { drop(connection.await) });
        Ok(send)
    }

    fn understood(
        &self,
        status: StatusCode,
        location: Option<&str>,
        text: &[u8],
    ) -> Result<Answer, ClientError> {
        let address = || self.shown.clone();
        let parsed = serde_json::from_slice::<Told>(text);
        let said = match &parsed {
            Ok(Told {
                error: Some(error), ..
            }) => error.clone(),
            _ => excerpt(text),
        };
        match (status, parsed) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Err(ClientError::Refused {
                address: address(),
                status,
                said,
            }),
            (status, _) if status.is_redirection() => Err(ClientError::NotTheApi {
                address: address(),
                said: format!("{status} to {}", location.unwrap_or("nowhere")),
            }),
            (
                StatusCode::OK,
                Ok(Told {
                    data: Some(data),
                    warnings,
                    is_partial,
                    ..
                }),
            ) => {
                let mut warnings = warnings.unwrap_or_default();
                if is_partial {
                    warnings.push("the answer is partial: some storage was away".to_owned());
                }
                let rows = data.result.into_iter().map(|row| {
                    let (_, value) = row.value;
                    let value = value.parse().ok()?;
                    Some(Row {
                        labels: row.metric,
                        value,
                    })
                });
                let rows = rows
                    .collect::<Option<_>>()
                    .ok_or_else(|| ClientError::NotTheApi {
                        address: address(),
                        said: "a value is no number".to_owned(),
                    })?;
                Ok(Answer { rows, warnings })
            }
            (StatusCode::OK, Ok(_)) => Err(ClientError::Status {
                address: address(),
                status,
                said,
            }),
            (status, Ok(Told { error: Some(_), .. })) => Err(ClientError::Status {
                address: address(),
                status,
                said,
            }),
            (StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, _) => {
                Err(ClientError::NotTheApi {
                    address: address(),
                    said: format!("{status}: {said}"),
                })
            }
            (status, _) => Err(ClientError::Status {
                address: address(),
                status,
                said,
            }),
        }
    }

    fn failed(&self, what: &str) -> ClientError {
        ClientError::Connection {
            address: self.shown.clone(),
            what: what.to_owned(),
        }
    }
}

/// What the API says.
#[derive(Debug, Deserialize)]
struct Told {
    data: Option<Data>,
    error: Option<String>,
    warnings: Option<Vec<String>>,
    /// VictoriaMetrics'.
    #[serde(default, rename = "isPartial")]
    is_partial: bool,
}

#[derive(Debug, Deserialize)]
struct Data {
    result: Vec<Series>,
}

#[derive(Debug, Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

/// An error with its cause: hyper's own text does not hold it.
fn told(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The first line of something.
fn excerpt(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text.get(..EXCERPT * 4).unwrap_or(text)).into_owned();
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    let line = line
        .unwrap_or("nothing")
        .chars()
        .filter(|character| !character.is_control());
    line.take(EXCERPT).collect()
}

/// The first line of a file with a password or a token.
fn secret(file: &Path) -> Result<String, ClientError> {
    let read = fs::read_to_string(file).map_err(|error| unusable(file, &error))?;
    let line = read.lines().next().unwrap_or_default().trim();
    if line.is_empty() {
        return Err(unusable(
            file,
            &"its first line is empty; a password or token is needed",
        ));
    }
    Ok(line.to_owned())
}

fn connector(ca: Option<&Path>) -> Result<TlsConnector, ClientError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let of = |error: &dyn std::fmt::Display| unusable(file, error);
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| of(&error))? {
                let certificate = certificate.map_err(|error| of(&error))?;
                roots.add(certificate).map_err(|error| of(&error))?;
            }
            if roots.is_empty() {
                return Err(of(&"it holds no certificate in PEM"));
            }
        }
        // Those that rustls does not take are left out, as browsers do.
        None => {
            let known = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(known.certs);
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)
        .map_err(|error| unusable(Path::new("TLS"), &error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn unusable(file: &Path, what: &dyn std::fmt::Display) -> ClientError {
    ClientError::File {
        file: file.display().to_string(),
        what: what.to_string(),
    }
}
