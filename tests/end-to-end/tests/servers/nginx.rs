//! nginx: files, and as a proxy in front of uvicorn, plain and with TLS.
//!
//! Its log has milliseconds of a clock that it reads once a turn of its event loop.

use std::fs;
use std::sync::Arc;

use end_to_end::is_root;
use end_to_end::load::http1::{Http1, Https1};
use end_to_end::load::{INFERENCE, Kind};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::compare::Key;
use crate::run::{Case, own_log};
use crate::start::{Place, Server, installed, python};
use crate::truth::Logged;
use crate::{SIBLINGS, TLS, UNREAD_CLOSE};

/// Files of some sizes; nothing of it streams.
const FILES: &[(u64, Kind)] = &[
    (50, Kind::get("/small")),
    (20, Kind::get("/large")),
    (5, Kind::get("/slow")),
    (
        5,
        Kind {
            cut: true,
            ..Kind::get("/slow")
        },
    ),
    (
        10,
        Kind {
            method: "HEAD",
            ..Kind::get("/large")
        },
    ),
    (6, Kind::get("/absent")),
    (4, Kind::get("/none")),
];

/// Reads the access log. It has no first data and no events.
fn access_log(server: &Server) -> Vec<Logged> {
    let text = server.read("access.log");
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        // The agent asks the server for an engine's metrics; that is no request of the load.
        .filter(|line| !line.starts_with("- "))
        .map(|line| {
            let mut fields = line.split(' ');
            let mut next = || fields.next().unwrap_or_default();
            let (n, status, end, took, completion) = (next(), next(), next(), next(), next());
            let number = |text: &str| text.parse::<f64>().expect("a number");
            let end_s = number(end);
            Logged {
                n: n.parse().unwrap_or_else(|error| panic!("{error}: {line}")),
                status: status.parse().expect("a status"),
                read_s: end_s - number(took),
                first_s: None,
                end_s,
                chunks: None,
                doubtful: 0,
                aborted: completion != "OK",
            }
        })
        .collect()
}

/// The access log, with what the application behind the proxy knows better: events, and how long
/// it took to the first.
fn both_logs(server: &Server) -> Vec<Logged> {
    let behind = own_log(server);
    let mut logged = access_log(server);
    for front in &mut logged {
        if let Some(behind) = behind.iter().find(|behind| behind.n == front.n) {
            front.chunks = Some(behind.chunks.unwrap_or(0));
            // What nginx had not passed on when its client left was sent to nobody.
            front.doubtful = if behind.aborted {
                behind.chunks.unwrap_or(0)
            } else {
                behind.doubtful
            };
            front.first_s = behind
                .first_s
                .map(|first| front.read_s + (first - behind.read_s));
        }
    }
    logged
}

#[test]
fn nginx_with_files() {
    if !is_root("nginx") {
        return;
    }
    let Some(mut command) = installed("nginx", "nginx-light") else {
        return;
    };
    let place = Place::new();
    let folder = place.path().display().to_string();
    let port = place.port.to_string();
    fs::write(place.path().join("small"), "a small file\n").expect("a file");
    fs::write(place.path().join("large"), vec![b'x'; 300_000]).expect("a file");
    let configuration =
        place.template("nginx_static.conf", &[("folder", &folder), ("port", &port)]);
    let server = place.start(command.arg("-c").arg(configuration));
    Case {
        name: "nginx files",
        agent: &["--port", &port],
        mix: FILES,
        key: Key::Length,
        aborted: UNREAD_CLOSE.aborted("nginx files"),
        log: access_log,
    }
    .check(&server, |load| load.run(Http1 { port: server.port }));
}

/// nginx and uvicorn behind it, both below one shell; with `tls`, the lines that make nginx speak
/// it.
fn proxy(listen: &str, tls: impl FnOnce(&Place) -> String) -> Option<Server> {
    let nginx = installed("nginx", "nginx-light")?;
    let uvicorn = python("uvicorn")?;
    let place = Place::new();
    let behind = Place::new().port;
    let tls = tls(&place);
    let configuration = place.template(
        "nginx_proxy.conf",
        &[
            ("folder", &place.path().display().to_string()),
            ("port", &place.port.to_string()),
            ("upstream", &behind.to_string()),
            ("listen", listen),
            ("tls", &tls),
        ],
    );
    let script = format!(
        "{} app:app --lifespan off --no-access-log --loop uvloop --http httptools \
         --timeout-keep-alive 75 --host 127.0.0.1 --port {behind} & {} -c {} & wait",
        uvicorn.get_program().display(),
        nginx.get_program().display(),
        configuration.display()
    );
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]);
    shell.envs(
        uvicorn
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let mut server = place.start(&mut shell);
    server.wait_for(behind);
    Some(server)
}

#[test]
fn nginx_in_front_of_uvicorn_in_one_service() {
    if !is_root("nginx as a proxy") || !SIBLINGS.is_ready("nginx as a proxy") {
        return;
    }
    let Some(server) = proxy("", |_| String::new()) else {
        return;
    };
    Case {
        name: "nginx proxy",
        agent: &["--pid", &server.pid().to_string()],
        mix: INFERENCE,
        key: Key::Length,
        aborted: UNREAD_CLOSE.aborted("nginx proxy"),
        log: both_logs,
    }
    .check(&server, |load| load.run(Http1 { port: server.port }));
}

#[test]
fn nginx_with_tls() {
    if !is_root("nginx with TLS") || !TLS.is_ready("nginx with TLS") {
        return;
    }
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
    let server = proxy("ssl", |place| {
        let (certificate, key) = (place.path().join("certificate"), place.path().join("key"));
        fs::write(&certificate, certified.cert.pem()).expect("a file");
        fs::write(&key, certified.signing_key.serialize_pem()).expect("a file");
        format!(
            "ssl_certificate {}; ssl_certificate_key {};",
            certificate.display(),
            key.display()
        )
    });
    let Some(server) = server else { return };
    let mut trusted = RootCertStore::empty();
    trusted
        .add(certified.cert.der().clone())
        .expect("a certificate");
    let trust = ClientConfig::builder()
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let trust = Arc::new(trust);
    Case {
        name: "nginx TLS",
        agent: &["--pid", &server.pid().to_string(), "--tls"],
        mix: INFERENCE,
        key: Key::Length,
        aborted: UNREAD_CLOSE.aborted("nginx TLS"),
        log: both_logs,
    }
    .check(&server, |load| {
        load.run(Https1 {
            port: server.port,
            trust: trust.clone(),
        })
    });
}
