//! Every field, and one clear message for each mistake.

pub(in crate::export) mod certificates;

use std::fs;

use tempfile::TempDir;
use tokio_rustls::rustls::{CipherSuite, NamedGroup};

use super::*;
use certificates::Authority;

/// "secret", as `htpasswd -nBC 4` hashes it.
pub(in crate::export) fn secret() -> String {
    bcrypt::hash("secret", 4).unwrap()
}

/// A folder with a certificate, its key and the authority's certificate.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("one");
    let server = authority.server();
    fs::write(folder.path().join("cert.pem"), server.certificate).unwrap();
    fs::write(folder.path().join("key.pem"), server.key).unwrap();
    fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    folder
}

fn open_in(folder: &TempDir, text: &str) -> Result<Web, String> {
    let path = folder.path().join("web.yaml");
    fs::write(&path, text).unwrap();
    let place = format!("{}/", folder.path().display());
    Web::open(&path).map_err(|error| error.to_string().replace(&place, ""))
}

fn open(text: &str) -> Result<Web, String> {
    open_in(&folder(), text)
}

fn settings(text: &str) -> Arc<Settings> {
    let folder = folder();
    let web = open_in(&folder, text).unwrap();
    web.settings().unwrap()
}

const TLS: &str = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n";

#[test]
fn every_field_can_be_set() {
    let user = secret();
    let settings = settings(&format!(
        "{TLS}  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.pem
  client_allowed_sans: [prometheus.example, 'spiffe://example/prometheus']
  min_version: TLS12
  max_version: TLS13
  cipher_suites:
    - TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    - TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    - TLS_RSA_WITH_AES_128_CBC_SHA
  prefer_server_cipher_suites: false
  curve_preferences: [CurveP384, X25519, CurveP521]
http_server_config:
  http2: true
  headers:
    Strict-Transport-Security: max-age=60
    X-Content-Type-Options: nosniff
    X-Frame-Options: deny
    X-XSS-Protection: '0'
    Content-Security-Policy: default-src 'none'
basic_auth_users:
  prometheus: {user}
  1234: {user}
rate_limit:
  interval: 1s
  burst: 5
"
    ));
    let tls = settings.tls.as_ref().unwrap();
    let provider = tls.crypto_provider();
    let suites: Vec<CipherSuite> = provider.cipher_suites.iter().map(|s| s.suite()).collect();
    assert_eq!(
        suites,
        [
            CipherSuite::TLS13_AES_256_GCM_SHA384,
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        ]
    );
    let curves: Vec<NamedGroup> = provider
        .kx_groups
        .iter()
        .map(|group| group.name())
        .collect();
    assert_eq!(curves, [NamedGroup::secp384r1, NamedGroup::X25519]);
    assert!(!tls.ignore_client_order);
    assert_eq!(settings.client_auth, ClientAuth::RequireAndVerifyClientCert);
    assert_eq!(settings.headers.len(), 5);
    assert_eq!(settings.headers["x-frame-options"], "deny");
    assert_eq!(settings.users.len(), 2);
    let limit = settings.rate_limit.unwrap();
    assert_eq!((limit.interval.as_secs(), limit.burst.get()), (1, 5));
    assert_eq!(
        settings.to_string(),
        "TLS, RequireAndVerifyClientCert, 2 users"
    );
}

#[test]
fn certificates_can_stand_in_the_file_itself() {
    let folder = folder();
    let inline = |name: &str, file: &str| {
        let text = fs::read_to_string(folder.path().join(file)).unwrap();
        let lines: Vec<String> = text.lines().map(|line| format!("    {line}\n")).collect();
        format!("  {name}: |\n{}", lines.concat())
    };
    let text = format!(
        "tls_server_config:\n{}{}{}  client_auth_type: VerifyClientCertIfGiven\n",
        inline("cert", "cert.pem"),
        inline("key", "key.pem"),
        inline("client_ca", "ca.pem"),
    );
    assert!(open_in(&folder, &text).unwrap().is_tls());
}

#[test]
fn nothing_set_is_plain_http_for_everybody() {
    for text in [
        "",
        "# nothing\n",
        "{}",
        "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\nrate_limit:\n",
        "tls_server_config:\n  cert_file: ''\n  client_ca:\nrate_limit: {interval: 0, burst: 1}\n",
        "http_server_config: {http2: off, headers: {X-Frame-Options: ''}}\n",
    ] {
        let settings = settings(text);
        assert!(
            settings.tls.is_none() && settings.users.is_empty(),
            "{text}"
        );
        assert!(settings.headers.is_empty(), "{text}");
        assert!(settings.rate_limit.is_none(), "{text}");
    }
}

#[test]
fn an_unknown_field_and_a_wrong_value_are_named_with_their_line() {
    let tls = |rest: &str| format!("{TLS}  {rest}\n");
    for (text, line, said) in [
        (
            "tls_server_confg: {}".to_owned(),
            1,
            "unknown field `tls_server_confg` (did you mean `tls_server_config`?)",
        ),
        (tls("cert_fil: x"), 4, "unknown field `cert_fil`"),
        (
            "http_server_config:\n  http3: true".to_owned(),
            2,
            "unknown field `http3`",
        ),
        (
            "http_server_config:\n  headers:\n    Server: x".to_owned(),
            3,
            "unknown field `Server`",
        ),
        (
            "rate_limit:\n  brst: 1".to_owned(),
            2,
            "unknown field `brst`",
        ),
        (tls("client_auth_type: Always"), 4, "`Always`"),
        (
            tls("min_version: TLS10"),
            4,
            "TLS10 is broken and not spoken here",
        ),
        (tls("max_version: TLS11"), 4, "the oldest is TLS12"),
        (tls("min_version: SSL3"), 4, "no TLS version `SSL3`"),
        (
            tls("cipher_suites: [TLS_NULL]"),
            4,
            "unknown cipher suite `TLS_NULL`",
        ),
        (tls("curve_preferences: [P1]"), 4, "unknown curve `P1`"),
        (tls("prefer_server_cipher_suites: perhaps"), 4, "bool"),
        (tls("client_allowed_sans: {a: b}"), 4, "sequence"),
        ("http_server_config: {http2: 7}".to_owned(), 1, "bool"),
        (
            "http_server_config:\n  headers:\n    X-Frame-Options: allow".to_owned(),
            3,
            "`allow` is not one of deny, sameorigin",
        ),
        (
            "http_server_config:\n  headers:\n    X-Content-Type-Options: sniff".to_owned(),
            3,
            "`sniff` is not one of nosniff",
        ),
        (
            "rate_limit:\n  burst: 1\n  interval: soon".to_owned(),
            3,
            "`soon` is no time",
        ),
        (
            "rate_limit: {interval: 1s, burst: 0}".to_owned(),
            1,
            "nonzero",
        ),
        ("basic_auth_users: [a]".to_owned(), 1, "map"),
        (
            "tls_server_config: {}\ntls_server_config: {}".to_owned(),
            2,
            "duplicate",
        ),
        ("a: [".to_owned(), 1, ""),
    ] {
        let error = open(&text).unwrap_err();
        assert!(
            error.starts_with(&format!("web.yaml, line {line}: ")),
            "{text}: {error}"
        );
        assert!(error.contains(said), "{text}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!error.contains("column"), "the place is told once: {error}");
    }
}

#[test]
fn what_does_not_fit_together_is_named() {
    let tls = |rest: &str| format!("{TLS}  {rest}\n");
    for (text, said) in [
        (
            "tls_server_config: {cert_file: cert.pem}".to_owned(),
            "key_file is missing",
        ),
        (
            "tls_server_config: {key_file: key.pem}".to_owned(),
            "cert_file is missing",
        ),
        (
            "tls_server_config: {min_version: TLS13}".to_owned(),
            "cert_file is missing",
        ),
        (tls("cert: x"), "cert and cert_file are both set"),
        (tls("client_ca_file: ca.pem"), "client_auth_type is not"),
        (
            tls("client_auth_type: RequireAndVerifyClientCert"),
            "needs client_ca_file",
        ),
        (
            tls("client_auth_type: VerifyClientCertIfGiven"),
            "needs client_ca_file",
        ),
        (
            tls("client_allowed_sans: [a]"),
            "needs a certificate to look at",
        ),
        (
            tls("client_allowed_sans: [a]\n  client_auth_type: RequestClientCert"),
            "needs a certificate to look at",
        ),
        (
            tls("client_allowed_sans: []\n  client_auth_type: RequireAnyClientCert"),
            "nobody could connect",
        ),
        (
            tls("min_version: TLS13\n  max_version: TLS12"),
            "min_version is above",
        ),
        (
            tls("cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]"),
            "none of cipher_suites",
        ),
        (
            tls("curve_preferences: [CurveP521]"),
            "none of curve_preferences",
        ),
        (
            "basic_auth_users: {prometheus: secret}".to_owned(),
            "beside `prometheus` is no bcrypt hash",
        ),
        (
            "tls_server_config: {cert_file: cert.pem, key_file: cert.pem}".to_owned(),
            "no private key in PEM",
        ),
        (
            "tls_server_config: {cert_file: key.pem, key_file: key.pem}".to_owned(),
            "key.pem: no certificate in PEM",
        ),
        (
            "tls_server_config: {cert_file: ca.pem, key_file: key.pem}".to_owned(),
            "ca.pem: the certificate cannot be used with the key of key.pem",
        ),
        (
            "tls_server_config: {cert_file: none.pem, key_file: key.pem}".to_owned(),
            "cannot read none.pem: No such file",
        ),
    ] {
        let error = open(&text).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn no_message_shows_a_secret() {
    for text in [
        "basic_auth_users: {prometheus: hunter2}",
        "tls_server_config: {cert_file: cert.pem, key: hunter2}",
        "tls_server_config: {key: [hunter2]}",
        "basic_auth_users: {prometheus: [hunter2]}",
    ] {
        let error = open(text).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
