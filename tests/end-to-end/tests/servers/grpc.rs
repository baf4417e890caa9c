//! gRPC: grpcio's server in Python, with one response and with many.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::Stdio;

use end_to_end::is_root;
use end_to_end::load::{Answer, Ask, Kind, Load};
use end_to_end::python;
use serde_json::{Value, json};

use crate::compare::Key;
use crate::run::{Case, LOADS, own_log};
use crate::start::{Place, Server, source};

/// Half of them stream, a tenth of those are left.
const CALLS: &[(u64, Kind)] = &[
    (45, STREAM),
    (
        5,
        Kind {
            events: (24, 32),
            cut: true,
            ..STREAM
        },
    ),
    (
        40,
        Kind::get("/inference.GRPCInferenceService/ModelInfer").after(10),
    ),
    (
        10,
        Kind::get("/inference.GRPCInferenceService/ModelMetadata"),
    ),
];

const STREAM: Kind = Kind {
    events: (1, 24),
    pause: 2,
    ..Kind::get("/inference.GRPCInferenceService/ModelStreamInfer")
};

/// Sends a load by Python's client.
fn send(load: &Load, port: u16) -> Vec<Answer> {
    let mut asks: HashMap<u64, Ask> = HashMap::new();
    let connections: Vec<Vec<Value>> = (0..load.connections)
        .map(|connection| {
            let requests = load.of(connection).map(|(ask, think)| {
                asks.insert(ask.n, ask);
                let Ask {
                    n, kind, events, ..
                } = ask;
                let Kind {
                    path, pause, cut, ..
                } = kind;
                json!({"n": n, "path": path, "events": events, "pause": pause, "cut": cut,
                       "think": think, "trace": ask.trace()})
            });
            requests.collect()
        })
        .collect();
    let mut client = python::program("python")
        .expect("the server's")
        .arg(source("grpc_client.py"))
        .arg(port.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a client");
    let plan = serde_json::to_vec(&connections).expect("JSON");
    client
        .stdin
        .take()
        .expect("a pipe")
        .write_all(&plan)
        .expect("it reads");
    let output = client.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    let answer = |line: &str| -> Option<Answer> {
        let line: Value = serde_json::from_str(line).ok()?;
        Some(Answer {
            ask: *asks.get(&line["n"].as_u64()?)?,
            status: line["status"].as_u64()?.try_into().ok()?,
            events: line["messages"].as_u64()?,
        })
    };
    let answers: Vec<Answer> = text.lines().filter_map(answer).collect();
    assert_eq!(answers.len(), asks.len(), "{text}");
    answers
}

fn server() -> Option<Server> {
    let place = Place::new();
    let mut command = python::program("python")?;
    command
        .arg(source("grpc_server.py"))
        .arg(place.port.to_string());
    Some(place.start(&mut command))
}

#[test]
fn grpcio_with_unary_calls_and_streams() {
    if !is_root("grpcio") {
        return;
    }
    let Some(server) = server() else { return };
    Case {
        name: "grpcio",
        agent: &["--port", &server.port.to_string(), "--trace-ids"],
        loads: LOADS,
        mix: CALLS,
        key: Key::Trace,
        log: own_log,
    }
    .check(&server, |load| send(load, server.port));
}
