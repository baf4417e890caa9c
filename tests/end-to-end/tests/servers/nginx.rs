//! nginx: files, and as a proxy in front of uvicorn, plain and with TLS.
//!
//! Its log has milliseconds of a clock that it reads once a turn of its event loop.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use end_to_end::is_root;
use end_to_end::load::http1::{Http1, Https1};
use end_to_end::load::{INFERENCE, Kind};
use end_to_end::python;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::compare::Key;
use crate::run::{Case, LOADS, Size, own_log};
use crate::start::{Place, Server, installed};
use crate::truth::Logged;

/// Files of some sizes; nothing of it streams.
const FILES: &[(u64, Kind)] = &[
    (50, Kind::get("/small")),
    (20, Kind::get("/large")),
    (1, Kind::get("/slow")),
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

/// A line of the access log.
struct Line {
    logged: Logged,
    /// Bytes of the body that were sent, with the sizes of its chunks.
    body_bytes: u64,
}

/// Reads the access log. It has no first data and no events; files have none.
fn access_log(server: &Server) -> Vec<Logged> {
    access_lines(server).map(|line| line.logged).collect()
}

fn access_lines(server: &Server) -> impl Iterator<Item = Line> {
    let text = server.read("access.log");
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines: Vec<Line> = whole
        .lines()
        // The agent asks the server for an engine's metrics; that is no request of the load.
        .filter(|line| !line.starts_with("- "))
        .map(|line| {
            let mut fields = line.split(' ');
            let mut next = || fields.next().unwrap_or_default();
            let (n, status, end, took) = (next(), next(), next(), next());
            let (body_bytes, completion) = (next(), next());
            let number = |text: &str| text.parse::<f64>().expect("a number");
            let end_s = number(end);
            let logged = Logged {
                n: n.parse().unwrap_or_else(|error| panic!("{error}: {line}")),
                status: status.parse().expect("a status"),
                read_s: end_s - number(took),
                first_s: None,
                end_s,
                chunks: 0,
                doubtful: 0,
                refused: 0,
                aborted: completion != "OK",
            };
            Line {
                logged,
                body_bytes: body_bytes.parse().expect("a number"),
            }
        })
        .collect();
    lines.into_iter()
}

/// The events of app.py's streams that `bytes` of a body hold, which nginx framed in chunks of
/// its own: at least and at most.
fn events_in(bytes: u64) -> (u64, u64) {
    /// Bytes around a chunk's data: a size of two digits, and two line ends.
    const FRAME: u64 = 6;
    let (mut least, mut most, mut length) = (0, 0, 0);
    for event in 0.. {
        let text = format!("data: {{\"choices\": [{{\"text\": \"token {event}\"}}]}}\n\n");
        length += text.len() as u64;
        if length + FRAME > bytes {
            break;
        }
        most = event + 1;
        // An event may be split over two chunks.
        if length + 2 * most * FRAME <= bytes {
            least = most;
        }
    }
    (least, most)
}

/// The access log, with what the application behind the proxy knows better: events, and how long
/// it took to the first.
fn both_logs(server: &Server) -> Vec<Logged> {
    let behind: HashMap<u64, Logged> = own_log(server)
        .into_iter()
        .map(|behind| (behind.n, behind))
        .collect();
    let with_events = |line: Line| {
        let mut front = line.logged;
        let Some(behind) = behind.get(&front.n) else {
            return front;
        };
        front.chunks = behind.chunks;
        if front.aborted || behind.aborted {
            // What nginx had not passed on when its client left was sent to nobody.
            let (least, most) = events_in(line.body_bytes);
            (front.chunks, front.doubtful) = (most, most - least);
        }
        front.first_s = behind
            .first_s
            .map(|first| front.read_s + (first - behind.read_s));
        front
    };
    access_lines(server).map(with_events).collect()
}

/// The same for responses inside TLS, whose writes are seen as they begin: the one that finds its
/// client gone is seen too, with at most what the application had written by then.
fn both_logs_with_tls(server: &Server) -> Vec<Logged> {
    let written: HashMap<u64, u64> = own_log(server)
        .into_iter()
        .map(|behind| (behind.n, behind.chunks))
        .collect();
    let mut logged = both_logs(server);
    for front in logged.iter_mut().filter(|front| front.aborted) {
        let written = written.get(&front.n).copied().unwrap_or(0);
        front.refused = written.saturating_sub(front.chunks);
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
        loads: LOADS,
        mix: FILES,
        key: Key::Length,
        log: access_log,
    }
    .check(&server, |load| load.run(Http1 { port: server.port }));
}

/// nginx and uvicorn behind it, both below one shell; with `tls`, the lines that make nginx speak
/// it.
fn proxy(listen: &str, tls: impl FnOnce(&Place) -> String) -> Option<Server> {
    let nginx = installed("nginx", "nginx-light")?;
    let uvicorn = python::program("uvicorn")?;
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
    if !is_root("nginx as a proxy") {
        return;
    }
    let Some(server) = proxy("", |_| String::new()) else {
        return;
    };
    Case {
        name: "nginx proxy",
        agent: &["--pid", &server.pid().to_string()],
        loads: LOADS,
        mix: INFERENCE,
        key: Key::Length,
        log: both_logs,
    }
    .check(&server, |load| load.run(Http1 { port: server.port }));
}

/// No more requests a second than the probes on TLS libraries may cost: above 1 % of a core over
/// 10 s their guard takes them off. A request is some ten stops, at up to 9 µs each.
const TLS_LOADS: &[Size] = &[
    (1, 300, 5),
    (8, 40, 80),
    (100, 8, 1_000),
    (1_000, 2, 12_000),
];

#[test]
fn nginx_with_tls() {
    if !is_root("nginx with TLS") {
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
        loads: TLS_LOADS,
        mix: INFERENCE,
        key: Key::Length,
        log: both_logs_with_tls,
    }
    .check(&server, |load| {
        load.run(Https1 {
            port: server.port,
            trust: trust.clone(),
        })
    });
}
