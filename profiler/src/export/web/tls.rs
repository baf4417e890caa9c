//! `tls_server_config` for rustls.
//!
//! No session is taken up again, so that each connection shows its certificate and each certificate is
//! looked at; HTTP/1.1 alone is offered.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
};

use super::WebError;
use super::client_certificates::ClientCertificates;
use super::file::{Cipher, ClientAuth, Curve, Tls, Version};
use super::files::Files;

/// `None`: nothing is told, and TLS is off. `of`: the web configuration.
pub(super) fn server_config(
    told: &Tls,
    of: &Path,
    files: &mut Files,
) -> Result<Option<Arc<ServerConfig>>, WebError> {
    if *told == Tls::default() {
        return Ok(None);
    }
    let invalid = |message: String| WebError::Invalid {
        path: of.to_owned(),
        message: format!("tls_server_config: {message}"),
    };
    let mut pem = |name: &str, inline: &Option<String>, file: &Option<PathBuf>| {
        Ok(match (inline, file) {
            (Some(_), Some(_)) => {
                let twice = format!("{name} and {name}_file are both set; take one out");
                return Err(invalid(twice));
            }
            (Some(text), None) => Some((of.to_owned(), text.clone().into_bytes())),
            (None, Some(file)) => {
                let folder = of.parent().unwrap_or_else(|| Path::new(""));
                let path = folder.join(file);
                let content = files.read(&path)?;
                Some((path, content))
            }
            (None, None) => None,
        })
    };
    let chain = pem("cert", &told.cert, &told.cert_file)?.ok_or_else(|| {
        invalid("cert_file is missing; without a certificate there is no TLS".to_owned())
    })?;
    let key = pem("key", &told.key, &told.key_file)?
        .ok_or_else(|| invalid("key_file is missing; add the certificate's key".to_owned()))?;
    let authority = pem("client_ca", &told.client_ca, &told.client_ca_file)?;

    let provider = Arc::new(provider(told, of).map_err(invalid)?);
    let verifier = client_certificates(told, authority, &provider, of)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions(told).map_err(invalid)?)
        .map_err(|error| invalid(error.to_string()))?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(Arc::new(verifier)),
        None => builder.with_no_client_auth(),
    };
    let (chain_path, key_path) = (chain.0.clone(), key.0.clone());
    let key = PrivateKeyDer::from_pem_slice(&key.1).map_err(|error| WebError::Invalid {
        path: key_path.clone(),
        message: format!("no private key in PEM ({error}); it must not be encrypted"),
    })?;
    let mut config = builder
        .with_single_cert(certificates(&chain)?, key)
        .map_err(|error| WebError::Invalid {
            path: chain_path,
            message: format!(
                "the certificate cannot be used with the key of {} ({error}); replace both",
                key_path.display()
            ),
        })?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.ignore_client_order = told.prefer_server_cipher_suites.unwrap_or(true);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}

/// The certificates in a file's PEM; at least one.
fn certificates(pem: &(PathBuf, Vec<u8>)) -> Result<Vec<CertificateDer<'static>>, WebError> {
    let (path, content) = pem;
    let invalid = |message| WebError::Invalid {
        path: path.clone(),
        message,
    };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    let read = read.map_err(|error| invalid(format!("not PEM ({error}); correct the file")))?;
    if read.is_empty() {
        return Err(invalid(
            "no certificate in PEM; correct the file".to_owned(),
        ));
    }
    Ok(read)
}

/// Who looks at clients' certificates; `None`: nobody asks for them.
fn client_certificates(
    told: &Tls,
    authority: Option<(PathBuf, Vec<u8>)>,
    provider: &Arc<CryptoProvider>,
    of: &Path,
) -> Result<Option<ClientCertificates>, WebError> {
    let invalid = |message: String| WebError::Invalid {
        path: of.to_owned(),
        message: format!("tls_server_config: {message}"),
    };
    let auth = told.client_auth_type.unwrap_or_default();
    let is_verified = matches!(
        auth,
        ClientAuth::VerifyClientCertIfGiven | ClientAuth::RequireAndVerifyClientCert
    );
    let is_required = matches!(
        auth,
        ClientAuth::RequireAnyClientCert | ClientAuth::RequireAndVerifyClientCert
    );
    if told.client_allowed_sans.is_some() && !is_required {
        return Err(invalid(
            "client_allowed_sans needs a certificate to look at; set client_auth_type to \
             RequireAndVerifyClientCert"
                .to_owned(),
        ));
    }
    if told.client_allowed_sans.as_ref().is_some_and(Vec::is_empty) {
        return Err(invalid(
            "client_allowed_sans is empty, so that nobody could connect; name some, or take it out"
                .to_owned(),
        ));
    }
    if auth == ClientAuth::NoClientCert {
        return match authority {
            None => Ok(None),
            Some(_) => Err(invalid(
                "client_ca_file is there and client_auth_type is not; set it to \
                 RequireAndVerifyClientCert"
                    .to_owned(),
            )),
        };
    }
    let roots = match (is_verified, authority) {
        (true, Some(authority)) => Some(Arc::new(roots(&authority)?)),
        (true, None) => {
            return Err(invalid(format!(
                "{auth:?} needs client_ca_file; add it, else nothing says whose certificates are good"
            )));
        }
        (false, _) => None,
    };
    ClientCertificates::new(
        roots,
        is_required,
        told.client_allowed_sans.clone(),
        provider,
    )
    .map(Some)
    .map_err(|error| invalid(format!("client_ca_file: {error}")))
}

fn roots(authority: &(PathBuf, Vec<u8>)) -> Result<RootCertStore, WebError> {
    let mut roots = RootCertStore::empty();
    let (_, ignored) = roots.add_parsable_certificates(certificates(authority)?);
    let path = &authority.0;
    if roots.is_empty() {
        return Err(WebError::Invalid {
            path: path.clone(),
            message: "no certificate of an authority can be read; correct the file".to_owned(),
        });
    }
    if ignored > 0 {
        warn!("{}: {ignored} certificates cannot be read", path.display());
    }
    Ok(roots)
}

fn versions(told: &Tls) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
    let lowest = told.min_version.unwrap_or(Version::Tls12);
    let highest = told.max_version.unwrap_or(Version::Tls13);
    if lowest > highest {
        return Err("min_version is above max_version; no client could connect".to_owned());
    }
    let all = [(Version::Tls13, &TLS13), (Version::Tls12, &TLS12)];
    let wanted = |(version, _): &(Version, _)| (lowest..=highest).contains(version);
    Ok(all
        .into_iter()
        .filter(wanted)
        .map(|(_, version)| version)
        .collect())
}

/// What is offered: all of it, or what is told. As in Go, the suites of TLS 1.3 are not chosen.
fn provider(told: &Tls, of: &Path) -> Result<CryptoProvider, String> {
    let mut provider = ring::default_provider();
    let told_suites = told.cipher_suites.as_deref().unwrap_or_default();
    if !told_suites.is_empty() {
        warn_of(
            of,
            told_suites
                .iter()
                .filter(|told| told.suite.is_none())
                .map(|told| &told.name),
        );
        let chosen: Vec<SupportedCipherSuite> = told_suites
            .iter()
            .filter_map(|told: &Cipher| told.suite)
            .collect();
        if chosen.is_empty() {
            return Err(
                "none of cipher_suites is offered here; add one with ECDHE and GCM or \
                        CHACHA20, or take cipher_suites out"
                    .to_owned(),
            );
        }
        let is_chosen = |suite: &&SupportedCipherSuite| suite.tls13().is_none();
        let mut suites = provider.cipher_suites;
        suites.retain(|suite| suite.tls13().is_some());
        suites.extend(chosen.iter().filter(is_chosen));
        provider.cipher_suites = suites;
    }
    let told_curves = told.curve_preferences.as_deref().unwrap_or_default();
    if !told_curves.is_empty() {
        warn_of(
            of,
            told_curves
                .iter()
                .filter(|told| told.group.is_none())
                .map(|told| &told.name),
        );
        provider.kx_groups = told_curves
            .iter()
            .filter_map(|told: &Curve| told.group)
            .collect();
        if provider.kx_groups.is_empty() {
            return Err(
                "none of curve_preferences is offered here; add X25519 or CurveP256".to_owned(),
            );
        }
    }
    Ok(provider)
}

fn warn_of<'a>(of: &Path, names: impl Iterator<Item = &'a String>) {
    for name in names {
        warn!("{}: {name} is not offered here and left out", of.display());
    }
}
