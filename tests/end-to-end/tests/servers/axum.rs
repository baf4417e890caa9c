//! axum on hyper.

use std::process::Command;

use end_to_end::is_root;
use end_to_end::load::INFERENCE;
use end_to_end::load::http1::Http1;
use end_to_end::load::http2::Http2;

use crate::compare::Key;
use crate::run::{Case, LOADS, own_log};
use crate::start::{Place, Server};

fn axum() -> Server {
    let place = Place::new();
    let port = place.port.to_string();
    place.start(Command::new(env!("CARGO_BIN_EXE_axum-server")).arg(port))
}

#[test]
fn axum_with_http1() {
    if !is_root("axum") {
        return;
    }
    let server = axum();
    Case {
        name: "axum",
        agent: &["--port", &server.port.to_string()],
        loads: LOADS,
        mix: INFERENCE,
        key: Key::Length,
        log: own_log,
    }
    .check(&server, |load| load.run(Http1 { port: server.port }));
}

#[test]
fn axum_with_http2_without_tls() {
    if !is_root("axum") {
        return;
    }
    let server = axum();
    Case {
        name: "axum http2, shared",
        agent: &["--port", &server.port.to_string(), "--trace-ids"],
        loads: LOADS,
        mix: INFERENCE,
        key: Key::Trace,
        log: own_log,
    }
    .check(&server, |load| load.run(Http2::new(server.port, 4)));
}
