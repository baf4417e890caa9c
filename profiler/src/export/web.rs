//! Who may read the metrics, and over what: the web configuration file of Prometheus' exporter-toolkit
//! (`--web.config.file`, docs/web-config.md).
//!
//! In: the file, and the certificates it names. Out: a TLS configuration for each new connection and a
//! verdict for each request. Files are looked at again each time, for the price of a `stat`; one that
//! cannot be used is logged and lets nobody in until it can. While the agent runs a file may ask for
//! more than before, never for less: a file that is being written is short for a moment.

mod client_certificates;
mod file;
mod files;
mod passwords;
mod rate;
mod tls;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use log::{error, info};
use thiserror::Error;
use tokio_rustls::rustls::ServerConfig;

use super::http::Peer;
use file::{ClientAuth, Headers, RateLimit};
use files::Files;
use passwords::{Passwords, Users};
use rate::Bucket;

/// Tells a client how to log in.
const CHALLENGE: HeaderValue =
    HeaderValue::from_static("Basic realm=\"perjoule\", charset=\"UTF-8\"");

/// Why the file cannot be used, and what to do.
#[derive(Debug, Error)]
pub enum WebError {
    /// A file is not there, or may not be read.
    #[error("cannot read {}: {source}; correct the path or the file's permissions", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The web configuration says something that is not understood.
    #[error("{}, line {line}: {message}; correct the line or take it out", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong, with the field's name.
        message: String,
    },
    /// What is said does not fit together, or a certificate cannot be used.
    #[error("{}: {message}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Nothing can be kept secret.
    #[error(
        "the kernel gives no random numbers, so nothing can be kept secret; check /dev/urandom"
    )]
    NoRandomNumbers,
}

/// What one state of the files says.
struct Settings {
    tls: Option<Arc<ServerConfig>>,
    client_auth: ClientAuth,
    headers: HeaderMap,
    users: Arc<Users>,
    rate_limit: Option<RateLimit>,
}

/// What clients have had to show since the agent started.
#[derive(Debug, Clone, Copy, Default)]
struct Demanded {
    tls: bool,
    client_certificate: bool,
    password: bool,
}

impl Demanded {
    fn by(settings: &Settings) -> Self {
        Self {
            tls: settings.tls.is_some(),
            client_certificate: settings.client_auth != ClientAuth::NoClientCert,
            password: !settings.users.is_empty(),
        }
    }

    /// The name of what the file no longer asks for.
    fn dropped_by(self, now: Self) -> Option<&'static str> {
        let dropped = [
            ("tls_server_config", self.tls && !now.tls),
            (
                "client_auth_type",
                self.client_certificate && !now.client_certificate,
            ),
            ("basic_auth_users", self.password && !now.password),
        ];
        let mut names = dropped.into_iter().filter(|(_, dropped)| *dropped);
        names.next().map(|(name, _)| name)
    }
}

struct State {
    files: Files,
    /// `None`: the files cannot be used, which has been logged.
    settings: Option<Arc<Settings>>,
    demanded: Demanded,
}

/// A web configuration in use.
pub struct Web {
    path: PathBuf,
    state: Mutex<State>,
    passwords: Passwords,
    bucket: Mutex<Bucket>,
}

impl Web {
    /// Reads the file and all that it names.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(path: &Path) -> Result<Self, WebError> {
        let mut files = Files::default();
        let settings = load(path, &mut files)?;
        Ok(Self {
            path: path.to_owned(),
            passwords: Passwords::new().ok_or(WebError::NoRandomNumbers)?,
            bucket: Mutex::new(Bucket::full(Instant::now())),
            state: Mutex::new(State {
                files,
                demanded: Demanded::by(&settings),
                settings: Some(Arc::new(settings)),
            }),
        })
    }

    /// True if connections are encrypted.
    pub fn is_tls(&self) -> bool {
        self.demanded().tls
    }

    /// TLS for a new connection; `Ok(None)`: none is asked for.
    pub(super) fn tls(&self) -> Result<Option<Arc<ServerConfig>>, Unusable> {
        match self.settings() {
            Some(settings) => Ok(settings.tls.clone()),
            // The requests on it are refused one by one, with a status.
            None if !self.is_tls() => Ok(None),
            None => Err(Unusable),
        }
    }

    /// Whether a request is answered: the headers that its response gets, or the status that refuses it.
    pub(super) async fn admit(&self, headers: &HeaderMap, peer: Peer) -> Verdict {
        let Some(settings) = self.settings() else {
            return Verdict::Refused(StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new());
        };
        let allowed = settings.rate_limit.is_none_or(|limit| {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(limit, Instant::now())
        });
        if !allowed {
            return Verdict::Refused(StatusCode::TOO_MANY_REQUESTS, HeaderMap::new());
        }
        if self.passwords.admit(&settings.users, headers, peer).await {
            return Verdict::Admitted(settings.headers.clone());
        }
        let mut refusal = settings.headers.clone();
        refusal.insert(WWW_AUTHENTICATE, CHALLENGE);
        Verdict::Refused(StatusCode::UNAUTHORIZED, refusal)
    }

    /// What the files say now.
    fn settings(&self) -> Option<Arc<Settings>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.files.have_changed() {
            return state.settings.clone();
        }
        let mut files = Files::default();
        let loaded = load(&self.path, &mut files).and_then(|settings| {
            let demanded = Demanded::by(&settings);
            match state.demanded.dropped_by(demanded) {
                None => Ok((settings, demanded)),
                Some(name) => Err(WebError::Invalid {
                    path: self.path.clone(),
                    message: format!(
                        "{name} is no longer there or asks for nothing; put it back, or restart \
                         perjoule to serve without it"
                    ),
                }),
            }
        });
        state.files = files;
        state.settings = match loaded {
            Ok((settings, demanded)) => {
                info!("{} was read anew: {settings}", self.path.display());
                state.demanded = demanded;
                Some(Arc::new(settings))
            }
            Err(error) => {
                error!("{error}; the metrics port refuses everybody until then");
                None
            }
        };
        state.settings.clone()
    }

    fn demanded(&self) -> Demanded {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.demanded
    }
}

/// What it asks of clients, for people.
impl fmt::Display for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.settings() {
            Some(settings) => settings.fmt(f),
            None => f.write_str("cannot be used"),
        }
    }
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.tls, self.client_auth) {
            (None, _) => f.write_str("no TLS")?,
            (Some(_), ClientAuth::NoClientCert) => f.write_str("TLS")?,
            (Some(_), told) => write!(f, "TLS, {told:?}")?,
        }
        match self.users.len() {
            0 => f.write_str(", no passwords"),
            1 => f.write_str(", 1 user"),
            users => write!(f, ", {users} users"),
        }
    }
}

/// The files cannot be used; it has been logged.
#[derive(Debug)]
pub(super) struct Unusable;

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is answered, with these headers beside the answer's own.
    Admitted(HeaderMap),
    /// It is not.
    Refused(StatusCode, HeaderMap),
}

fn load(path: &Path, files: &mut Files) -> Result<Settings, WebError> {
    let file = file::read(path, files)?;
    let invalid = |message| WebError::Invalid {
        path: path.to_owned(),
        message,
    };
    if file.http_server_config.http2 == Some(true) {
        info!(
            "{}: http2: HTTP/1.1 is spoken, which every client can",
            path.display()
        );
    }
    let tls = tls::server_config(&file.tls_server_config, path, files)?;
    Ok(Settings {
        client_auth: file.tls_server_config.client_auth_type.unwrap_or_default(),
        tls,
        headers: headers(&file.http_server_config.headers).map_err(invalid)?,
        users: Arc::new(Users::checked(file.basic_auth_users).map_err(invalid)?),
        rate_limit: file.rate_limit.filter(|limit| !limit.interval.is_zero()),
    })
}

fn headers(told: &Headers) -> Result<HeaderMap, String> {
    let named: [(&'static str, &Option<String>); 5] = [
        ("strict-transport-security", &told.strict_transport_security),
        ("x-content-type-options", &told.x_content_type_options),
        ("x-frame-options", &told.x_frame_options),
        ("x-xss-protection", &told.x_xss_protection),
        ("content-security-policy", &told.content_security_policy),
    ];
    let mut headers = HeaderMap::new();
    for (name, value) in named {
        let Some(value) = value.as_deref().filter(|value| !value.is_empty()) else {
            continue;
        };
        let value = HeaderValue::from_str(value).map_err(|_| {
            format!("headers: the value of {name} cannot stand in a header; correct it")
        })?;
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(headers)
}

#[cfg(test)]
pub(super) mod tests;
