//! TLS with a real client, and what a web configuration asks for while it changes.

use std::fs;
use std::path::PathBuf;

use rcgen::SanType;
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ALL_VERSIONS, CipherSuite, ClientConfig, ProtocolVersion, RootCertStore,
    SupportedProtocolVersion,
};

use super::*;
use crate::export::web::tests::certificates::{Authority, Signed, dns};
use crate::export::web::tests::secret;

/// A server's certificate and key, its authority, and a web configuration beside them.
pub(super) struct Files {
    folder: TempDir,
    authority: Authority,
}

impl Files {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Self {
            folder,
            authority: Authority::new("one"),
        };
        files.serve(&files.authority.server());
        files.write("ca.pem", &files.authority.pem());
        files
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.path().join(name), content).unwrap();
    }

    /// Replaces the server's certificate.
    fn serve(&self, signed: &Signed) {
        self.write("cert.pem", &signed.certificate);
        self.write("key.pem", &signed.key);
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("web.yaml")
    }

    /// A web configuration without TLS.
    pub(super) fn plain(&self, text: &str) -> Arc<Web> {
        self.write("web.yaml", text);
        Arc::new(Web::open(&self.path()).unwrap())
    }

    /// A client that trusts the authority, and shows a certificate if it has one.
    pub(super) fn client(&self, own: Option<&Signed>) -> Client {
        Client::new(&self.authority, own, ALL_VERSIONS)
    }
}

const TLS: &str = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n";

/// A web configuration with TLS and these lines more.
pub(super) fn web(files: &Files, more: &str) -> Arc<Web> {
    files.plain(&format!("{TLS}{more}"))
}

pub(super) struct Client(ClientConfig);

impl Client {
    fn new(
        trusted: &Authority,
        own: Option<&Signed>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        let mut roots = RootCertStore::empty();
        let trusted = CertificateDer::from_pem_slice(trusted.pem().as_bytes()).unwrap();
        roots.add(trusted).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Self(match own {
            Some(own) => {
                let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes());
                let chain = chain.map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        })
    }

    async fn connect(&self, served: &Served) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(served.address).await?;
        let connector = TlsConnector::from(Arc::new(self.0.clone()));
        connector
            .connect("localhost".try_into().unwrap(), stream)
            .await
    }

    /// With TLS 1.3 a server refuses after the client has sent its request.
    pub(super) async fn ask(&self, served: &Served, head: &str, more: &str) -> io::Result<String> {
        ask(self.connect(served).await?, head, more).await
    }

    async fn status(&self, served: &Served) -> Option<u16> {
        status(&self.ask(served, "GET /-/healthy", "").await.ok()?)
    }
}

fn status(answer: &str) -> Option<u16> {
    answer.split(' ').nth(1)?.parse().ok()
}

#[tokio::test]
async fn clients_show_the_certificate_that_is_asked_for() {
    let files = Files::new();
    let good = files.authority.client(vec![dns("prometheus")]);
    let foreign = Authority::new("two").client(vec![dns("prometheus")]);
    let expired = files.authority.expired();
    let ca = "  client_ca_file: ca.pem\n";
    // Admitted with no certificate, a good one, one of another authority, an expired one.
    for (auth, more, expected) in [
        ("NoClientCert", "", [true, true, true, true]),
        ("RequestClientCert", "", [true, true, true, true]),
        ("RequireAnyClientCert", "", [false, true, true, true]),
        ("RequireClientCert", ca, [false, true, true, true]),
        ("VerifyClientCertIfGiven", ca, [true, true, false, false]),
        (
            "RequireAndVerifyClientCert",
            ca,
            [false, true, false, false],
        ),
    ] {
        let more = format!("  client_auth_type: {auth}\n{more}");
        let served = served_to(Some(web(&files, &more))).await;
        let shown = [None, Some(&good), Some(&foreign), Some(&expired)];
        for (place, (own, expected)) in shown.into_iter().zip(expected).enumerate() {
            for version in [&TLS12, &TLS13] {
                let client = Client::new(&files.authority, own, &[version]);
                let admitted = client.status(&served).await == Some(200);
                assert_eq!(
                    admitted, expected,
                    "{auth}, case {place}, {:?}",
                    version.version
                );
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_has_one_of_the_names_that_are_allowed() {
    let files = Files::new();
    let text = |text: &str| text.try_into().unwrap();
    let cases: Vec<(Vec<SanType>, bool)> = vec![
        (vec![dns("prometheus.example")], true),
        (vec![dns("other.example"), dns("prometheus.example")], true),
        (vec![SanType::Rfc822Name(text("sre@example"))], true),
        (
            vec![SanType::URI(text("spiffe://example/prometheus"))],
            true,
        ),
        (vec![SanType::IpAddress([10, 0, 0, 7].into())], true),
        (
            vec![SanType::IpAddress("2001:db8::7".parse().unwrap())],
            true,
        ),
        (vec![dns("other.example")], false),
        (vec![dns("*.example")], false),
        (vec![SanType::IpAddress([10, 0, 0, 8].into())], false),
        (vec![], false),
    ];
    for (auth, trusted) in [
        ("RequireAndVerifyClientCert\n  client_ca_file: ca.pem", true),
        ("RequireAnyClientCert", false),
    ] {
        let more = format!(
            "  client_auth_type: {auth}\n  client_allowed_sans:\n    - prometheus.example\n    - \
             sre@example\n    - spiffe://example/prometheus\n    - 10.0.0.7\n    - 2001:db8::7\n"
        );
        let served = served_to(Some(web(&files, &more))).await;
        for (names, expected) in &cases {
            let own = files.authority.client(names.clone());
            let admitted = files.client(Some(&own)).status(&served).await == Some(200);
            assert_eq!(admitted, *expected, "{auth}, {names:?}");
        }
        let foreign = Authority::new("two").client(vec![dns("prometheus.example")]);
        let admitted = files.client(Some(&foreign)).status(&served).await == Some(200);
        assert_eq!(admitted, !trusted, "{auth}");
    }
}

#[tokio::test]
async fn versions_and_suites_are_those_that_are_told() {
    let files = Files::new();
    for (more, expected) in [
        ("", [true, true]),
        ("  min_version: TLS13\n", [false, true]),
        ("  max_version: TLS12\n", [true, false]),
        // As in Go: this chooses among the suites of TLS 1.2 alone.
        (
            "  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n",
            [false, true],
        ),
        ("  curve_preferences: [CurveP384]\n", [true, true]),
    ] {
        let served = served_to(Some(web(&files, more))).await;
        for (version, expected) in [&TLS12, &TLS13].into_iter().zip(expected) {
            let client = Client::new(&files.authority, None, &[version]);
            let admitted = client.status(&served).await == Some(200);
            assert_eq!(admitted, expected, "{more}{:?}", version.version);
        }
    }
    let chosen = "  cipher_suites: [TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256]\n";
    let served = served_to(Some(web(&files, chosen))).await;
    let client = Client::new(&files.authority, None, &[&TLS12]);
    let stream = client.connect(&served).await.unwrap();
    let connection = stream.get_ref().1;
    assert_eq!(
        connection.protocol_version(),
        Some(ProtocolVersion::TLSv1_2)
    );
    let suite = connection.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(
        suite,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
    );
}

#[tokio::test]
async fn http_1_is_spoken_and_a_client_that_insists_on_another_protocol_is_refused() {
    let files = Files::new();
    let served = served_to(Some(web(&files, "http_server_config: {http2: true}\n"))).await;
    for (offered, expected) in [
        (&["h2", "http/1.1"][..], Some(b"http/1.1".to_vec())),
        (&["h2"][..], None),
    ] {
        let mut client = files.client(None);
        client.0.alpn_protocols = offered
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let stream = client.connect(&served).await.ok();
        let chosen = stream.and_then(|stream| Some(stream.get_ref().1.alpn_protocol()?.to_vec()));
        assert_eq!(chosen, expected);
    }
}

#[tokio::test]
async fn a_client_that_speaks_no_tls_is_told_so() {
    let files = Files::new();
    let served = served_to(Some(web(&files, ""))).await;
    let answer = exchange(served.address, "GET /metrics").await;
    assert_eq!(status(&answer), Some(400), "{answer}");
    assert!(answer.contains("use https"), "{answer}");
}

#[tokio::test]
async fn certificates_are_renewed_while_it_runs() {
    let files = Files::new();
    let served = served_to(Some(web(&files, ""))).await;
    let client = files.client(None);
    assert_eq!(client.status(&served).await, Some(200));

    files.serve(&files.authority.expired());
    let error = client.connect(&served).await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");

    files.serve(&files.authority.server());
    assert_eq!(client.status(&served).await, Some(200));

    let other = Authority::new("two");
    files.serve(&other.server());
    assert_eq!(client.status(&served).await, None);
    let client = Client::new(&other, None, ALL_VERSIONS);
    assert_eq!(client.status(&served).await, Some(200));
}

#[tokio::test]
async fn while_files_cannot_be_used_nobody_gets_in() {
    let files = Files::new();
    let served = served_to(Some(web(&files, ""))).await;
    let client = files.client(None);
    let (signed, next) = (files.authority.server(), files.authority.server());
    for (name, broken) in [
        ("web.yaml", "tls_server_config: ["),
        (
            "web.yaml",
            "tls_server_config:\n  cert_file: none.pem\n  key_file: key.pem\n",
        ),
        ("cert.pem", ""),
        // The certificate is new, its key is not yet.
        ("cert.pem", &next.certificate),
        ("key.pem", "none"),
    ] {
        files.write(name, broken);
        assert_eq!(client.status(&served).await, None, "{name}: {broken}");
        assert_eq!(client.status(&served).await, None, "{name}: {broken}");
        files.write("web.yaml", TLS);
        files.serve(&signed);
        assert_eq!(client.status(&served).await, Some(200), "{name}: {broken}");
    }
    fs::remove_file(files.path()).unwrap();
    assert_eq!(client.status(&served).await, None);
    files.write("web.yaml", TLS);
    assert_eq!(client.status(&served).await, Some(200));
}

#[tokio::test]
async fn what_was_asked_for_is_asked_for_until_a_restart() {
    let files = Files::new();
    let users = format!("basic_auth_users: {{prometheus: {}}}\n", secret());
    let auth = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n";
    let all = format!("{TLS}{auth}{users}");
    let own = files.authority.client(vec![]);
    let client = files.client(Some(&own));
    let served = served_to(Some(files.plain(&all))).await;
    assert_eq!(client.status(&served).await, Some(401));
    // A file that is being written is the beginning of itself.
    for shorter in [
        "",
        &users,
        TLS,
        &format!("{TLS}{auth}"),
        &format!("{TLS}{users}"),
    ] {
        files.write("web.yaml", shorter);
        assert_eq!(client.status(&served).await, None, "{shorter}");
        assert_eq!(status_of_plain(&served).await, None, "{shorter}");
    }
    files.write("web.yaml", &all);
    assert_eq!(client.status(&served).await, Some(401));

    let served = served_to(Some(files.plain(&users))).await;
    assert_eq!(status_of_plain(&served).await, Some(401));
    files.write("web.yaml", "");
    assert_eq!(status_of_plain(&served).await, Some(500));
    // More than before is asked for at once.
    files.write("web.yaml", &all);
    assert_eq!(client.status(&served).await, Some(401));
}

/// A client that is refused with a status gets it, whatever the port speaks.
async fn status_of_plain(served: &Served) -> Option<u16> {
    let stream = TcpStream::connect(served.address).await.ok()?;
    status(&ask(stream, "GET /-/healthy", "").await.ok()?)
}

#[tokio::test]
async fn a_password_is_asked_for_on_every_path_and_headers_are_on_every_answer() {
    let files = Files::new();
    let text = format!(
        "http_server_config: {{headers: {{X-Frame-Options: deny}}}}\n\
         basic_auth_users: {{prometheus: {}}}\n",
        secret()
    );
    let mut served = served_to(Some(web(&files, &text))).await;
    book_one(&mut served.metrics);
    served.metrics.publish(Timestamp(1), None);
    let client = files.client(None);
    // prometheus:secret
    let right = "Authorization: Basic cHJvbWV0aGV1czpzZWNyZXQ=\r\n";
    for path in ["/", "/metrics", "/-/healthy", "/-/ready", "/none"] {
        let head = format!("GET {path}");
        let refused = client.ask(&served, &head, "").await.unwrap();
        assert_eq!(status(&refused), Some(401), "{refused}");
        assert!(
            refused.contains("\r\nwww-authenticate: Basic realm="),
            "{refused}"
        );
        assert!(
            refused.contains("\r\nx-frame-options: deny\r\n"),
            "{refused}"
        );
        assert!(!refused.contains("perjoule_"), "{refused}");
        let answer = client.ask(&served, &head, right).await.unwrap();
        let expected = if path == "/none" { 404 } else { 200 };
        assert_eq!(status(&answer), Some(expected), "{answer}");
        assert!(answer.contains("\r\nx-frame-options: deny\r\n"), "{answer}");
    }
    // Another user comes while it runs, and his password is taken at once.
    files.write(
        "web.yaml",
        &format!("{TLS}basic_auth_users: {{sre: {}}}\n", secret()),
    );
    assert_eq!(
        status(&client.ask(&served, "GET /", right).await.unwrap()),
        Some(401)
    );
    // sre:secret
    let right = "Authorization: Basic c3JlOnNlY3JldA==\r\n";
    assert_eq!(
        status(&client.ask(&served, "GET /", right).await.unwrap()),
        Some(200)
    );
}

#[tokio::test]
async fn requests_beyond_the_rate_are_refused() {
    let files = Files::new();
    let served = served_to(Some(files.plain("rate_limit: {interval: 1h, burst: 2}\n"))).await;
    for expected in [200, 200, 429, 429] {
        assert_eq!(status_of_plain(&served).await, Some(expected));
    }
}
