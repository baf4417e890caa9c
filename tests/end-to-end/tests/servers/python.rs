//! Python's servers: uvicorn in two builds, gunicorn with workers.

use end_to_end::is_root;
use end_to_end::load::INFERENCE;
use end_to_end::load::http1::Http1;
use end_to_end::python;

use crate::compare::Key;
use crate::run::{Case, LOADS, own_log};
use crate::start::{Place, Server};

fn uvicorn(event_loop: &str, parser: &str) -> Option<Server> {
    let place = Place::new();
    let port = place.port.to_string();
    let mut command = python::program("uvicorn")?;
    command
        .args(["app:app", "--lifespan", "off", "--no-access-log"])
        .args(["--host", "127.0.0.1", "--port", &port])
        .args(["--loop", event_loop, "--http", parser])
        .args(["--timeout-keep-alive", "75"]);
    Some(place.start(&mut command))
}

fn gunicorn() -> Option<Server> {
    let place = Place::new();
    let mut command = python::program("gunicorn")?;
    command
        .args(["wsgi:app", "--workers", "4", "--worker-class", "gthread"])
        .args(["--threads", "64", "--keep-alive", "75", "--backlog", "2048"])
        .args(["--bind", &format!("127.0.0.1:{}", place.port)]);
    Some(place.start(&mut command))
}

fn check(name: &str, server: Option<Server>) {
    let Some(server) = server else { return };
    let port = server.port;
    Case {
        name,
        agent: &["--port", &port.to_string()],
        loads: LOADS,
        mix: INFERENCE,
        key: Key::Length,
        log: own_log,
    }
    .check(&server, |load| load.run(Http1 { port }));
}

#[test]
fn uvicorn_with_asyncio_and_h11() {
    if is_root("uvicorn") {
        check("uvicorn asyncio+h11", uvicorn("asyncio", "h11"));
    }
}

#[test]
fn uvicorn_with_uvloop_and_httptools() {
    if is_root("uvicorn") {
        check("uvicorn uvloop+httptools", uvicorn("uvloop", "httptools"));
    }
}

#[test]
fn gunicorn_with_four_workers_and_threads() {
    if is_root("gunicorn") {
        check("gunicorn 4 workers", gunicorn());
    }
}
