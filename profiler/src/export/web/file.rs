//! The web configuration's fields, as Prometheus' exporter-toolkit has them.
//!
//! In: YAML. Out: values that can each be used alone; what does not fit together is found where it is
//! put together. A field that is empty is a field that is not set.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use serde_saphyr::UserMessageFormatter;
use tokio_rustls::rustls::crypto::SupportedKxGroup;
use tokio_rustls::rustls::crypto::ring::{ALL_CIPHER_SUITES, kx_group};
use tokio_rustls::rustls::{CipherSuite, SupportedCipherSuite};

use super::files::Files;
use super::{WebError, rate};
use crate::suggestion::unknown_field;

/// The whole file. Holds secrets: it cannot be printed.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) tls_server_config: Tls,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) http_server_config: Http,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) basic_auth_users: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) rate_limit: Option<RateLimit>,
}

/// `tls_server_config`. A path is relative to the file that names it.
#[derive(Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    #[serde(default, deserialize_with = "filled")]
    pub(super) cert: Option<String>,
    #[serde(default, deserialize_with = "filled")]
    pub(super) key: Option<String>,
    #[serde(default, deserialize_with = "filled")]
    pub(super) client_ca: Option<String>,
    #[serde(default, deserialize_with = "path")]
    pub(super) cert_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "path")]
    pub(super) key_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "path")]
    pub(super) client_ca_file: Option<PathBuf>,
    pub(super) client_auth_type: Option<ClientAuth>,
    pub(super) client_allowed_sans: Option<Vec<String>>,
    pub(super) min_version: Option<Version>,
    pub(super) max_version: Option<Version>,
    pub(super) cipher_suites: Option<Vec<Cipher>>,
    pub(super) prefer_server_cipher_suites: Option<bool>,
    pub(super) curve_preferences: Option<Vec<Curve>>,
}

/// What is asked of clients' certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(super) enum ClientAuth {
    #[default]
    #[serde(alias = "")]
    NoClientCert,
    RequestClientCert,
    /// The other name is the toolkit's older one.
    #[serde(alias = "RequireClientCert")]
    RequireAnyClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

/// A version of TLS that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Version {
    Tls12,
    Tls13,
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "TLS12" => Ok(Self::Tls12),
            "TLS13" => Ok(Self::Tls13),
            "TLS10" | "TLS11" => Err(format!(
                "{name} is broken and not spoken here; the oldest is TLS12"
            )),
            _ => Err(format!("no TLS version `{name}`; one of TLS12, TLS13")),
        }
    }
}

/// A cipher suite that the toolkit knows; `None`: it is without forward secrecy or authenticated
/// encryption, and not offered here.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Cipher {
    pub(super) name: String,
    pub(super) suite: Option<SupportedCipherSuite>,
}

/// Names that Go knows and rustls has not.
const WEAK_SUITES: [&str; 8] = [
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];

impl TryFrom<String> for Cipher {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let mut suites = ALL_CIPHER_SUITES.iter();
        let suite = suites.find(|suite| go_name(suite.suite()) == name).copied();
        if suite.is_none() && !WEAK_SUITES.contains(&name.as_str()) {
            return Err(format!("unknown cipher suite `{name}`"));
        }
        Ok(Self { name, suite })
    }
}

/// Go calls the suites of TLS 1.3 `TLS_…`.
fn go_name(suite: CipherSuite) -> String {
    format!("{suite:?}").replacen("TLS13_", "TLS_", 1)
}

impl PartialEq for Cipher {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// An elliptic curve that the toolkit knows; `None`: not offered here.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) group: Option<&'static dyn SupportedKxGroup>,
}

impl TryFrom<String> for Curve {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let group = match name.as_str() {
            "X25519" => Some(kx_group::X25519),
            "CurveP256" => Some(kx_group::SECP256R1),
            "CurveP384" => Some(kx_group::SECP384R1),
            "CurveP521" => None,
            _ => {
                return Err(format!(
                    "unknown curve `{name}`; one of X25519, CurveP256, CurveP384"
                ));
            }
        };
        Ok(Self { name, group })
    }
}

impl PartialEq for Curve {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// `http_server_config`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    pub(super) http2: Option<bool>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) headers: Headers,
}

/// The headers that may be set.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Headers {
    #[serde(rename = "Strict-Transport-Security")]
    pub(super) strict_transport_security: Option<String>,
    #[serde(
        rename = "X-Content-Type-Options",
        default,
        deserialize_with = "content_type_options"
    )]
    pub(super) x_content_type_options: Option<String>,
    #[serde(
        rename = "X-Frame-Options",
        default,
        deserialize_with = "frame_options"
    )]
    pub(super) x_frame_options: Option<String>,
    #[serde(rename = "X-XSS-Protection")]
    pub(super) x_xss_protection: Option<String>,
    #[serde(rename = "Content-Security-Policy")]
    pub(super) content_security_policy: Option<String>,
}

/// `rate_limit`: one request an `interval`, and `burst` at once.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RateLimit {
    #[serde(deserialize_with = "interval")]
    pub(super) interval: Duration,
    pub(super) burst: NonZeroU32,
}

/// Reads the file at `path`.
pub(super) fn read(path: &Path, files: &mut Files) -> Result<File, WebError> {
    let content = files.read(path)?;
    let options = serde_saphyr::options! { with_snippet: false };
    match serde_saphyr::from_slice_with_options::<Option<File>>(&content, options) {
        Ok(file) => Ok(file.unwrap_or_default()),
        Err(error) => {
            let line = error.location().map(|place| place.line());
            let message = message(&error);
            let path = path.to_owned();
            Err(match line {
                Some(line) => WebError::Line {
                    path,
                    line,
                    message,
                },
                None => WebError::Invalid { path, message },
            })
        }
    }
}

/// What is wrong, in one line and without the place, which is told before it.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.render_with_formatter(&UserMessageFormatter);
    let text = text.replace('\n', " ");
    let told = text
        .rsplit_once(" at line ")
        .map_or(&*text, |(told, _)| told);
    match unknown_field(told) {
        Some((unknown, Some(meant))) => {
            format!("unknown field `{unknown}` (did you mean `{meant}`?)")
        }
        _ => told.to_owned(),
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn filled<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.filter(|text| !text.is_empty()))
}

fn path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(filled(from)?.map(PathBuf::from))
}

fn content_type_options<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    one_of(from, &["nosniff"])
}

fn frame_options<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    one_of(from, &["deny", "sameorigin"])
}

fn one_of<'de, D: Deserializer<'de>>(from: D, values: &[&str]) -> Result<Option<String>, D::Error> {
    let Some(value) = filled(from)? else {
        return Ok(None);
    };
    if values.contains(&value.as_str()) {
        return Ok(Some(value));
    }
    Err(de::Error::custom(Wrong(&value, values)))
}

/// A value that is none of those there are.
struct Wrong<'a>(&'a str, &'a [&'a str]);

impl fmt::Display for Wrong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not one of {}", self.0, self.1.join(", "))
    }
}

fn interval<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    rate::duration(&text)
        .ok_or_else(|| de::Error::custom(format!("`{text}` is no time, such as 1s or 100ms")))
}
