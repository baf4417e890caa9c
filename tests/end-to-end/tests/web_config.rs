//! The metrics port under a web configuration, beside Debian's node-exporter, which has Prometheus'
//! own reader of such files inside: the same file lets in the same clients, with the same status.

#[path = "web_config/certificates.rs"]
mod certificates;
#[path = "web_config/exporter.rs"]
mod exporter;

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::{Agent, perjoule};
use end_to_end::server::free_port;
use end_to_end::{http, is_root, scaled};

use certificates::Certificates;
use exporter::NodeExporter;

const TLS: &str = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n";
/// What a client meets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Met {
    Status(u16),
    /// No answer: the connection or the handshake is refused.
    Refused,
}

/// What `curl` meets, which runs in the folder of the certificates.
fn curl(folder: &Path, port: u16, scheme: &str, arguments: &[&str]) -> Met {
    let output = Command::new("curl")
        .args(["--silent", "--max-time", "10", "--output", "/dev/null"])
        .args(["--write-out", "%{http_code}"])
        .args(["--resolve", &format!("localhost:{port}:127.0.0.1")])
        .args(arguments)
        .arg(format!("{scheme}://localhost:{port}/metrics"))
        .current_dir(folder)
        .output()
        .expect("curl is installed");
    let code = String::from_utf8_lossy(&output.stdout).parse().unwrap_or(0);
    if output.status.success() && code != 0 {
        Met::Status(code)
    } else {
        Met::Refused
    }
}

/// The agent and node-exporter under one file.
struct Both {
    certificates: Certificates,
    agent: Agent,
    exporter: NodeExporter,
}

impl Both {
    /// `None`, said, where node-exporter is not installed.
    fn start(test: &str, config: &str) -> Option<Self> {
        if !is_root(test) || !exporter::is_installed(test) {
            return None;
        }
        let certificates = Certificates::new();
        certificates.write("web.yaml", config);
        let file = certificates.path("web.yaml");
        let exporter = NodeExporter::start(&file);
        let agent = Agent::start(&["--web.config.file", &file.to_string_lossy()]);
        Some(Self {
            certificates,
            agent,
            exporter,
        })
    }

    /// What both say to the same client, which must be `expected`.
    fn meet(&self, scheme: &str, arguments: &[&str], expected: Met) {
        let folder = self.certificates.folder();
        let meet = |port| curl(folder, port, scheme, arguments);
        let config = fs::read_to_string(self.certificates.path("web.yaml")).unwrap_or_default();
        let met = (meet(self.agent.port()), meet(self.exporter.port()));
        assert_eq!(
            met,
            (expected, expected),
            "perjoule, node-exporter; curl {arguments:?} {scheme}; under\n{config}\n{}",
            self.agent.log()
        );
    }

    /// The same file, with this in it from now on.
    fn write(&self, name: &str, content: &str) {
        self.certificates.write(name, content);
    }
}

fn users() -> String {
    let hash = |password| bcrypt::hash(password, 4).expect("a hash");
    format!(
        "basic_auth_users:\n  prometheus: {}\n  sre: {}\n",
        hash("secret"),
        hash("other")
    )
}

#[test]
fn passwords_are_asked_for_as_node_exporter_asks() {
    let headers = "http_server_config: {headers: {X-Frame-Options: deny}}\n";
    let config = format!("{headers}{}", users());
    let Some(both) = Both::start("passwords beside node-exporter", &config) else {
        return;
    };
    let ok = Met::Status(200);
    let denied = Met::Status(401);
    for (arguments, expected) in [
        (&["--user", "prometheus:secret"][..], ok),
        (&["--user", "sre:other"][..], ok),
        (&["--user", "prometheus:other"][..], denied),
        (&["--user", "prometheus:"][..], denied),
        (&["--user", "nobody:secret"][..], denied),
        (&["--header", "Authorization: Bearer secret"][..], denied),
        (&[][..], denied),
    ] {
        both.meet("http", arguments, expected);
    }
    for port in [both.agent.port(), both.exporter.port()] {
        let answer = http::get(port, "/metrics").to_lowercase();
        assert!(answer.contains("\r\nwww-authenticate: basic"), "{answer}");
        assert!(answer.contains("\r\nx-frame-options: deny"), "{answer}");
    }
    // While the file cannot be read, nobody gets in; afterwards the file holds as it is.
    let right = &["--user", "prometheus:secret"];
    both.write("web.yaml", "basic_auth_users: [");
    both.meet("http", right, Met::Status(500));
    both.write("web.yaml", &users().replace("prometheus:", "grafana:"));
    both.meet("http", right, denied);
    both.meet("http", &["--user", "grafana:secret"], ok);
}

#[test]
fn certificates_are_asked_for_as_node_exporter_asks() {
    let Some(both) = Both::start("certificates beside node-exporter", TLS) else {
        return;
    };
    let ok = Met::Status(200);
    let trust = ["--cacert", "ca.pem"];
    let with = |own: &'static str, more: &[&'static str]| {
        let mut arguments = trust.to_vec();
        if !own.is_empty() {
            arguments.extend(["--cert", own]);
        }
        arguments.extend(more);
        arguments
    };
    both.meet("https", &with("", &[]), ok);
    both.meet("https", &with("", &["--tls-max", "1.2"]), ok);
    both.meet("https", &["--cacert", "other-ca.pem"], Met::Refused);
    both.meet("http", &[], Met::Status(400));

    both.write("web.yaml", &format!("{TLS}  min_version: TLS13\n"));
    both.meet("https", &with("", &["--tls-max", "1.2"]), Met::Refused);
    both.meet("https", &with("", &[]), ok);
    both.write("web.yaml", &format!("{TLS}  max_version: TLS12\n"));
    both.meet("https", &with("", &["--tlsv1.3"]), Met::Refused);
    both.meet("https", &with("", &[]), ok);

    let ca = "  client_ca_file: ca.pem\n";
    // With no certificate, a good one, one of another authority, an expired one.
    for (auth, more, expected) in [
        ("RequestClientCert", "", [true, true, true, true]),
        ("RequireAnyClientCert", "", [false, true, true, true]),
        ("VerifyClientCertIfGiven", ca, [true, true, false, false]),
        (
            "RequireAndVerifyClientCert",
            ca,
            [false, true, false, false],
        ),
    ] {
        both.write(
            "web.yaml",
            &format!("{TLS}  client_auth_type: {auth}\n{more}"),
        );
        let shown = ["", "client.pem", "foreign.pem", "expired.pem"];
        for (own, admitted) in shown.into_iter().zip(expected) {
            let expected = if admitted { ok } else { Met::Refused };
            both.meet("https", &with(own, &[]), expected);
        }
    }

    let all = format!(
        "{TLS}  client_auth_type: RequireAndVerifyClientCert\n{ca}{}",
        users()
    );
    both.write("web.yaml", &all);
    let user = ["--user", "prometheus:secret"];
    both.meet("https", &with("client.pem", &user), ok);
    both.meet("https", &with("client.pem", &[]), Met::Status(401));
    both.meet("https", &with("foreign.pem", &user), Met::Refused);

    // The server's certificate ends, and is renewed while both run.
    let server = both.certificates.read("cert.pem");
    both.write("cert.pem", &both.certificates.read("server-expired.pem"));
    both.meet("https", &with("client.pem", &user), Met::Refused);
    both.write("cert.pem", &server);
    both.meet("https", &with("client.pem", &user), ok);

    for broken in [
        "tls_server_config: [",
        "",
        "tls_server_config:\n  cert_file: none.pem\n  key_file: key.pem\n",
    ] {
        both.write("web.yaml", broken);
        both.meet("https", &with("client.pem", &user), Met::Refused);
    }
    both.write("web.yaml", &all);
    both.meet("https", &with("client.pem", &user), ok);
}

#[test]
fn what_node_exporter_does_not_start_with_the_agent_does_not_start_with_and_says_why() {
    if !exporter::is_installed("bad web configurations beside node-exporter") {
        return;
    }
    let certificates = Certificates::new();
    let tls = |more: &str| format!("{TLS}  {more}\n");
    for (config, named) in [
        ("tls_server_confg: {}".to_owned(), "`tls_server_confg`"),
        (tls("cert_fil: x"), "`cert_fil`"),
        (tls("client_auth_type: Always"), "`Always`"),
        (tls("client_ca_file: ca.pem"), "client_ca_file"),
        (tls("min_version: TLS9"), "`TLS9`"),
        (tls("cipher_suites: [TLS_NULL]"), "`TLS_NULL`"),
        (tls("curve_preferences: [P1]"), "`P1`"),
        (
            "tls_server_config: {cert_file: cert.pem}".to_owned(),
            "key_file",
        ),
        (
            "tls_server_config: {key_file: key.pem}".to_owned(),
            "cert_file",
        ),
        (
            "tls_server_config: {cert_file: none.pem, key_file: key.pem}".to_owned(),
            "none.pem",
        ),
        (
            "http_server_config: {headers: {Server: x}}".to_owned(),
            "`Server`",
        ),
        (
            "http_server_config: {headers: {X-Frame-Options: allow}}".to_owned(),
            "`allow`",
        ),
        ("basic_auth_users: {a: secret}".to_owned(), "`a`"),
        ("basic_auth_users: {a: x, a: y}".to_owned(), "`a`"),
        ("basic_auth_users: [".to_owned(), "line 1"),
    ] {
        certificates.write("web.yaml", &config);
        let file = certificates.path("web.yaml");
        assert!(
            !NodeExporter::starts(&file),
            "node-exporter starts: {config}"
        );
        let file = file.to_string_lossy();
        let ended = perjoule(&["run", "--listen", "127.0.0.1:0", "--web.config.file", &file]);
        assert_eq!(ended.status.code(), Some(64), "{config}: {ended:?}");
        assert_eq!(ended.log.lines().count(), 1, "{config}: {ended:?}");
        assert!(ended.log.contains(named), "{config}: {ended:?}");
    }
}

#[test]
fn two_hundred_stuck_clients_delay_neither_measurements_nor_a_scrape() {
    if !is_root("stuck clients") {
        return;
    }
    let agent = Agent::start(&[]);
    let mut stuck = Vec::new();
    let unread = "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n".repeat(100);
    let mut seen = Vec::new();
    for round in 0..10 {
        for client in 0..200 {
            let sent = [unread.as_str(), "", "GET /met"][client % 3];
            let mut stream = TcpStream::connect(("127.0.0.1", agent.port())).expect("it accepts");
            // One that was crowded out already cannot write.
            let _ = stream.write_all(sent.as_bytes());
            stuck.push(stream);
        }
        let asked = Instant::now();
        let answer = http::get(agent.port(), "/metrics");
        let waited = asked.elapsed();
        assert!(
            waited < scaled(Duration::from_millis(500)),
            "round {round}: {waited:?}"
        );
        let line = http::body(&answer).lines();
        let mut time = line.filter_map(|line| line.strip_prefix("process_cpu_seconds_total "));
        seen.push(time.next().unwrap_or_default().to_owned());
        sleep(scaled(Duration::from_millis(500)));
    }
    // A snapshot a second, and none is left out.
    seen.dedup();
    assert!(seen.len() >= 5, "{seen:?}");
}

#[test]
fn stat_serves_nothing_whatever_it_is_told() {
    if !is_root("stat serves nothing") {
        return;
    }
    let port = free_port();
    let mut child = Command::new(end_to_end::binary("perjoule"))
        .args(["stat", "--", "sleep", "2"])
        .env("PERJOULE_LISTEN", format!("127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it can be started");
    while child.try_wait().expect("a child").is_none() {
        assert!(
            TcpStream::connect(("127.0.0.1", port)).is_err(),
            "it listens"
        );
        sleep(Duration::from_millis(50));
    }
}
