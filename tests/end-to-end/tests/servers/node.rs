//! Node's servers.

use end_to_end::is_root;
use end_to_end::load::INFERENCE;
use end_to_end::load::http1::Http1;
use end_to_end::load::http2::Http2;

use crate::compare::Key;
use crate::run::{Case, LOADS, own_log};
use crate::start::{Place, Server, installed, source};

fn node(protocol: &str) -> Option<Server> {
    let place = Place::new();
    let mut command = installed("node", "nodejs")?;
    command
        .arg(source("node.mjs"))
        .args([protocol, &place.port.to_string()]);
    Some(place.start(&mut command))
}

#[test]
fn node_http() {
    if !is_root("node http") {
        return;
    }
    let Some(server) = node("http") else { return };
    Case {
        name: "node http",
        agent: &["--port", &server.port.to_string()],
        loads: LOADS,
        mix: INFERENCE,
        key: Key::Length,
        log: own_log,
    }
    .check(&server, |load| load.run(Http1 { port: server.port }));
}

#[test]
fn node_http2_without_tls() {
    if !is_root("node http2") {
        return;
    }
    let Some(server) = node("http2") else { return };
    Case {
        name: "node http2",
        agent: &["--port", &server.port.to_string(), "--trace-ids"],
        loads: LOADS,
        mix: INFERENCE,
        key: Key::Trace,
        log: own_log,
    }
    .check(&server, |load| load.run(Http2::new(server.port, 1)));
}
