//! Real stacks: the h2 crate, grpcio from PyPI, and Node's own.

#[path = "grpcio.rs"]
mod grpcio;

use std::process::Command;
use std::time::Duration;

use h2::client::SendRequest;
use hyper::body::Bytes;
use hyper::{Request, Response};
use profiler::clock::Timestamp;
use profiler::ledger::{Outcome, Route};
use profiler::probes::requests::Observed;
use tokio::net::{TcpListener, TcpStream};

use crate::servers::{free_port, start};
use crate::watch::{Watch, outcome};

/// A server of the h2 crate, whose streams send `events` events `pause` apart.
async fn serve(listener: TcpListener, events: usize, pause: Duration) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            return;
        };
        socket.set_nodelay(true).expect("a socket");
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    let head = Response::builder()
                        .header("content-type", "text/event-stream")
                        .body(())
                        .expect("a response");
                    let mut body = respond.send_response(head, false).expect("sent");
                    for n in 0..events {
                        tokio::time::sleep(pause).await;
                        let event = Bytes::from(format!("data: {{\"token\": {n}}}\n\n"));
                        if body.send_data(event, false).is_err() {
                            return;
                        }
                    }
                    let _ = body.send_data(Bytes::from_static(b"data: [DONE]\n\n"), true);
                });
            }
        });
    }
}

async fn client(port: u16) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("listens");
    socket.set_nodelay(true).expect("a socket");
    let (client, connection) = h2::client::Builder::new()
        .initial_max_send_streams(1_000)
        // Hundreds of streams have small frames waiting; a client that is slow refuses them.
        .data_frame_budget(64 << 20)
        .handshake(socket)
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    client.ready().await.expect("a connection")
}

/// Asks for a stream; returns the status, and when its first data came.
async fn ask(client: &mut SendRequest<Bytes>, port: u16) -> (u16, Timestamp) {
    let request = Request::post(format!("http://127.0.0.1:{port}/v1/completions?x=1"))
        .header("authorization", "Bearer secret")
        .body(())
        .expect("a request");
    let (response, mut body) = client.send_request(request, false).expect("sent");
    body.send_data(Bytes::from_static(b"{}"), true)
        .expect("sent");
    let response = response.await.expect("a response");
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut first = None;
    while let Some(piece) = body.data().await {
        let piece = piece.expect("data");
        first.get_or_insert_with(Timestamp::now);
        let _ = body.flow_control().release_capacity(piece.len());
    }
    (status, first.expect("data"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn several_hundred_streams_of_one_connection_are_as_many_requests() {
    const STREAMS: usize = 400;
    const EVENTS: usize = 5;
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(serve(listener, EVENTS, Duration::from_millis(20)));
        let client = client(port).await;
        let asked: Vec<_> = (0..STREAMS)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { ask(&mut client, port).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        watch.poll();
        for one in asked {
            assert_eq!(one.await.expect("answered").0, 200);
        }
        port
    });
    let seen = watch.wait(port, STREAMS);
    for seen in &seen {
        assert_eq!(outcome(seen), Some(Outcome::Done));
        assert_eq!(
            (seen.request.status, seen.request.chunks),
            (200, EVENTS as u64)
        );
        assert_eq!(seen.request.route, Route::Completions);
        assert!(seen.request.streamed);
    }
    assert_eq!(watch.probe.http2_connections(), 1);
    assert_eq!(
        watch.probe.losses().events(),
        0,
        "{:?}",
        watch.probe.losses()
    );
}

#[test]
fn first_data_is_the_moment_at_which_it_went_out() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let mut late = Vec::new();
    let port = runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(serve(listener, 3, Duration::from_millis(30)));
        let mut client = client(port).await;
        for _ in 0..21 {
            late.push(ask(&mut client, port).await.1);
        }
        port
    });
    let seen = watch.wait(port, 21);
    let mut late: Vec<i64> = late
        .iter()
        .zip(&seen)
        .map(|(client, seen)| {
            let first = seen.request.first_data.expect("data");
            assert!(first.since(seen.request.start) >= 29_000_000);
            client.0 as i64 - first.0 as i64
        })
        .collect();
    late.sort_unstable();
    println!("the client has it {late:?} ns later");
    // The client cannot have it before it went out; half of the time it has it soon.
    let soon = end_to_end::scaled(Duration::from_millis(20)).as_nanos() as i64;
    assert!(late[0] > 0 && late[10] < soon, "{late:?}");
}

#[test]
fn a_clients_reset_aborts_its_stream_and_no_other() {
    let Some(mut watch) = Watch::this_process() else {
        return;
    };
    let port = runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(serve(listener, 10, Duration::from_millis(20)));
        let mut client = client(port).await;
        let mut other = client.clone();
        let other = tokio::spawn(async move { ask(&mut other, port).await });
        let request = Request::get(format!("http://127.0.0.1:{port}/v1/completions"))
            .body(())
            .expect("a request");
        let (response, _) = client.send_request(request, true).expect("sent");
        let mut body = response.await.expect("a response").into_body();
        assert!(body.data().await.is_some());
        drop(body);
        assert_eq!(other.await.expect("answered").0, 200);
        port
    });
    let mut seen = watch.wait(port, 2);
    seen.sort_by_key(|seen| seen.request.chunks);
    assert_eq!(outcome(&seen[0]), Some(Outcome::Aborted));
    assert!((1..10).contains(&seen[0].request.chunks));
    assert_eq!(outcome(&seen[1]), Some(Outcome::Done));
    assert_eq!(seen[1].request.chunks, 10);
}

const GRPC_SERVER: &str = r#"
import sys, time, grpc
from concurrent import futures
def unary(request, context):
    if request == b"missing":
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
    if request == b"crash":
        raise RuntimeError("crash")
    time.sleep(0.05)
    return b"y" * 100000
def stream(request, context):
    for n in range(10):
        time.sleep(0.03)
        yield b"token %d" % n
service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {
    "ModelInfer": grpc.unary_unary_rpc_method_handler(unary),
    "ModelStreamInfer": grpc.unary_stream_rpc_method_handler(stream),
})
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((service,))
server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
server.wait_for_termination()
"#;

/// Prints what the client saw: seconds to the first message and to the end of each stream.
const GRPC_CLIENT: &str = r#"
import sys, time, grpc
name = "/inference.GRPCInferenceService/"
channel = grpc.insecure_channel("127.0.0.1:" + sys.argv[1])
infer = channel.unary_unary(name + "ModelInfer")
stream = channel.unary_stream(name + "ModelStreamInfer")
for n in range(3):
    assert len(infer(b"x" * 200000)) == 100000
for wrong in (b"missing", b"crash"):
    try:
        infer(wrong)
    except grpc.RpcError:
        pass
for n in range(3):
    start = time.monotonic(); first = None
    for message in stream(b"x"):
        first = first or time.monotonic() - start
    print("stream", first, time.monotonic() - start)
calls = [stream(b"x") for n in range(12)]
for call in calls:
    assert len(list(call)) == 10
call = stream(b"x")
next(call); next(call)
call.cancel()
time.sleep(0.3)
"#;

#[test]
fn grpcio_calls_are_requests_with_their_messages_and_statuses() {
    let Some(python) = grpcio::python() else {
        return;
    };
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let port = free_port();
    let mut command = Command::new(&python);
    command.args(["-c", GRPC_SERVER, &port.to_string()]);
    let Some(server) = start(&mut command, port) else {
        return;
    };
    watch.serve(server.child.id());
    let client = Command::new(&python)
        .args(["-c", GRPC_CLIENT, &port.to_string()])
        .output()
        .expect("python");
    assert!(
        client.status.success(),
        "{}",
        String::from_utf8_lossy(&client.stderr)
    );
    let seen = watch.wait(port, 3 + 2 + 3 + 12 + 1);
    let of = |route: Route| seen.iter().filter(move |seen| seen.request.route == route);
    let mut statuses: Vec<u16> = of(Route::ModelInfer)
        .map(|seen| seen.request.status)
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 200, 404, 500]);
    for seen in of(Route::ModelInfer) {
        assert_eq!(outcome(seen), Some(Outcome::Done));
        assert_eq!((seen.request.chunks, seen.request.streamed), (0, false));
    }
    let streams: Vec<&Observed> = of(Route::ModelStreamInfer).collect();
    assert_eq!(streams.len(), 16);
    let aborted: Vec<_> = streams
        .iter()
        .filter(|seen| outcome(seen) == Some(Outcome::Aborted))
        .collect();
    let [aborted] = aborted[..] else {
        panic!("one call was cancelled: {streams:?}")
    };
    assert!((2..10).contains(&aborted.request.chunks), "{aborted:?}");
    for seen in streams
        .iter()
        .filter(|seen| outcome(seen) == Some(Outcome::Done))
    {
        assert_eq!((seen.request.chunks, seen.request.status), (10, 200));
        assert!(seen.request.streamed);
    }
    // The client's own clock, for the calls that it made one by one.
    let told = String::from_utf8_lossy(&client.stdout);
    for (line, seen) in told.lines().zip(&streams) {
        let times: Vec<f64> = line
            .split(' ')
            .skip(1)
            .filter_map(|time| time.parse().ok())
            .collect();
        let since =
            |at: Option<Timestamp>| at.map_or(0.0, |at| at.since(seen.request.start) as f64 / 1e9);
        let here = [
            since(seen.request.first_data),
            since(seen.request.end.map(|end| end.at)),
        ];
        println!("client: {times:?} s, seen: {here:?} s");
        let late = end_to_end::scaled(Duration::from_millis(250)).as_secs_f64();
        for (client, here) in times.iter().zip(here) {
            assert!(
                here <= client + 0.005 && here > client - late,
                "{here} of {client}"
            );
        }
    }
    assert_eq!(
        watch.probe.losses().events(),
        0,
        "{:?}",
        watch.probe.losses()
    );
}

const NODE_SERVER: &str = r#"
const http2 = require("http2");
const server = http2.createServer();
server.on("stream", (stream, headers) => {
  if (headers[":path"] === "/missing") {
    stream.respond({ ":status": 404 }); stream.end("no"); return;
  }
  if (headers[":path"] === "/health") {
    stream.respond({ ":status": 204 }, { endStream: true }); return;
  }
  if (headers[":path"] === "/lines") {
    stream.respond({ ":status": 200, "content-type": "application/x-ndjson" });
    for (let n = 0; n < 3; n++) stream.write(`{"response":"token ${n}"}\n`);
    setTimeout(() => stream.end('{"response":"the last, with no line\'s end"}'), 20);
    return;
  }
  stream.respond({ ":status": 200, "content-type": "text/event-stream" });
  let n = 0;
  const timer = setInterval(() => {
    stream.write("data: token " + n + "\n\n");
    if (++n === 5) { clearInterval(timer); stream.end("data: [DONE]\n\n"); }
  }, 20);
});
server.listen(Number(process.argv[1]), "127.0.0.1");
"#;

#[test]
fn node_servers_streams_are_requests() {
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let port = free_port();
    let mut command = Command::new("node");
    command.args(["-e", NODE_SERVER, &port.to_string()]);
    let Some(server) = start(&mut command, port) else {
        return;
    };
    watch.serve(server.child.id());
    runtime().block_on(async {
        let mut client = client(port).await;
        let mut asked = Vec::new();
        for _ in 0..20 {
            let mut client = client.clone();
            asked.push(tokio::spawn(async move { ask(&mut client, port).await }));
        }
        for one in asked {
            assert_eq!(one.await.expect("answered").0, 200);
        }
        for (path, status) in [("missing", 404), ("health", 204), ("lines", 200)] {
            let request = Request::get(format!("http://127.0.0.1:{port}/{path}"))
                .body(())
                .expect("a request");
            let (response, _) = client.send_request(request, true).expect("sent");
            let response = response.await.expect("a response");
            assert_eq!(response.status(), status);
            let mut body = response.into_body();
            while body.data().await.is_some() {}
        }
    });
    let seen = watch.wait(port, 23);
    let events = seen
        .iter()
        .filter(|seen| seen.request.route == Route::Completions);
    let events: Vec<_> = events
        .map(|seen| (seen.request.status, seen.request.chunks))
        .collect();
    assert_eq!(events, [(200, 5); 20]);
    let health: Vec<_> = seen
        .iter()
        .filter(|seen| seen.request.route == Route::Health)
        .collect();
    assert_eq!(health.len(), 1);
    assert_eq!(health[0].request.status, 204);
    assert!(seen.iter().any(|seen| seen.request.status == 404));
    let lines = seen
        .iter()
        .filter(|seen| seen.request.route == Route::Other && seen.request.status == 200);
    let lines: Vec<_> = lines
        .map(|seen| (seen.request.chunks, seen.request.streamed))
        .collect();
    assert_eq!(lines, [(4, true)]);
    assert!(seen.iter().all(|seen| outcome(seen) == Some(Outcome::Done)));
}
