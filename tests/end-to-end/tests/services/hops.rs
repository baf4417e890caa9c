//! A request is counted once, where it enters its service.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use end_to_end::agent::Agent;
use end_to_end::server::free_port;
use end_to_end::{http, is_root, skipped};

use crate::script::{Script, booked, get_unix, tell};

const REQUESTS: usize = 40;

/// An agent that follows these process trees.
pub(crate) fn follow(scripts: &[&Script]) -> Agent {
    let pids: Vec<String> = scripts
        .iter()
        .map(|script| script.pid().to_string())
        .collect();
    let arguments: Vec<&str> = pids.iter().flat_map(|pid| ["--pid", pid]).collect();
    Agent::start(&arguments)
}

fn ask(port: u16, times: usize) {
    for _ in 0..times {
        assert!(http::get(port, "/v1/completions").ends_with("ok"));
        sleep(Duration::from_millis(3));
    }
}

/// The number booked for the only service.
fn only(agent: Agent) -> usize {
    let counts = booked(agent);
    assert_eq!(counts.len(), 1, "{counts:?}");
    counts.into_values().sum()
}

#[test]
fn a_child_that_starts_with_the_first_request_does_not_count_it_again() {
    if !is_root("hops over loopback") {
        return;
    }
    // As a model server does that starts a runner on a port of its own when a model is asked for.
    let script = Script::start(
        r#"
front, lock, runner = listen(), threading.Lock(), []
def work():
    with lock:
        if not runner:
            inner = listen()
            child(lambda: serve(inner))
            runner.append(to(port(inner)))
    return ask(runner[0])
background(front, work)
ready(port(front))
"#,
    );
    let agent = follow(&[&script]);
    ask(script.port(), REQUESTS);
    assert_eq!(only(agent), REQUESTS);
}

#[test]
fn a_hop_over_a_unix_socket_is_counted_once_and_an_outside_client_there_is_counted() {
    if !is_root("hops over Unix sockets") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inner");
    let script = Script::start(&format!(
        "front, inner, path = listen(), unix('{0}'), '{0}'\n\
         child(lambda: (front.close(), serve(inner)))\n\
         background(front, lambda: ask(to_unix(path)))\n\
         ready(port(front))",
        path.display()
    ));
    let agent = follow(&[&script]);
    ask(script.port(), REQUESTS);
    for _ in 0..7 {
        get_unix(&path, "/v1/completions");
    }
    assert_eq!(only(agent), REQUESTS + 7);
}

#[test]
fn nginx_in_front_of_a_server_on_a_port_and_on_a_unix_socket_counts_once() {
    if !is_root("nginx as a proxy") {
        return;
    }
    if !Path::new("/usr/sbin/nginx").is_file() {
        skipped("nginx is not installed (package nginx-light)");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // Its workers run as nobody.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("a mode");
    let (root, port) = (folder.path().display(), free_port());
    let script = Script::start(&format!(
        r#"
import subprocess
inner = listen(); background(inner); background(unix('{root}/socket'))
open('{root}/nginx.conf', 'w').write("""
daemon off; worker_processes 2; pid {root}/pid; error_log {root}/error;
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path {root}/a; proxy_temp_path {root}/b;
  fastcgi_temp_path {root}/c; uwsgi_temp_path {root}/d; scgi_temp_path {root}/e;
  server {{ listen 127.0.0.1:{port};
    location /v1/completions {{ proxy_pass http://127.0.0.1:%d; }}
    location /v1/embeddings {{ proxy_pass http://unix:{root}/socket; }} }} }}
""" % port(inner))
subprocess.Popen(["/usr/sbin/nginx", "-e", "{root}/error", "-c", "{root}/nginx.conf"])
while True:
    try: to({port})().close(); break
    except OSError: time.sleep(0.02)
ready({port})
"#
    ));
    let agent = follow(&[&script]);
    for _ in 0..REQUESTS {
        for path in ["/v1/completions", "/v1/embeddings"] {
            assert!(http::get(port, path).ends_with("ok"));
        }
    }
    assert_eq!(only(agent), 2 * REQUESTS);
}

#[test]
fn a_service_on_a_unix_socket_is_seen_beside_a_port_of_its_own() {
    if !is_root("Unix listeners") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    // Behind a proxy that is not of the service; the port is for metrics.
    let script = Script::start(&format!(
        "metrics = listen(); background(metrics)\n\
         background(unix('{}'))\nready(port(metrics))",
        path.display()
    ));
    let proxy = Script::start(&format!(
        "front = listen(); background(front, lambda: ask(to_unix('{}')))\nready(port(front))",
        path.display()
    ));
    let agent = follow(&[&script]);
    ask(proxy.port(), REQUESTS);
    assert_eq!(only(agent), REQUESTS);
}

#[test]
fn a_benchmark_that_starts_its_server_sees_its_own_requests() {
    if !is_root("a client in the tree") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = Script::start(&format!(
        r#"
server = listen()
child(lambda: serve(server))
number = port(server)
server.close()
run = lambda: [ask(to(number)) for _ in range({REQUESTS})]
threading.Thread(target=when_told, args=("{}", "done", run), daemon=True).start()
ready(number)
"#,
        folder.path().display()
    ));
    let agent = follow(&[&script]);
    tell(folder.path(), &["done"]);
    assert_eq!(only(agent), REQUESTS);
}

#[test]
fn a_service_that_calls_another_leaves_both_their_own_requests() {
    if !is_root("two services") {
        return;
    }
    let called = Script::start("front = listen(); background(front)\nready(port(front))");
    let calling = Script::start(&format!(
        "front = listen(); background(front, lambda: ask(to({})))\nready(port(front))",
        called.port()
    ));
    let agent = follow(&[&calling, &called]);
    ask(calling.port(), REQUESTS);
    ask(called.port(), 5);
    let counts = booked(agent);
    assert_eq!(counts["python3"], REQUESTS);
    assert_eq!(counts["python3-2"], REQUESTS + 5);
}

#[test]
fn workers_of_a_front_and_of_an_engine_keep_their_connections_open() {
    if !is_root("kept connections") {
        return;
    }
    // The connections between them are older than the agent.
    let script = Script::start(
        r#"
front, inner = listen(), listen()
inner_address = inner.getsockname()
def engine():
    front.close()
    def keep(s):
        while s.recv(65536): s.sendall(OK)
    while True:
        threading.Thread(target=keep, args=(inner.accept()[0],), daemon=True).start()
child(engine)
inner.close()
def worker():
    upstream = socket.create_connection(inner_address)
    upstream.sendall(b"GET /health HTTP/1.1\r\n\r\n"); upstream.recv(4096)
    def work():
        upstream.sendall(b"GET /v1/completions HTTP/1.1\r\n\r\n")
        return upstream.recv(65536)
    while True: answer(front.accept()[0], work)
for _ in range(3): child(worker)
time.sleep(0.5)
ready(port(front))
"#,
    );
    let agent = follow(&[&script]);
    ask(script.port(), REQUESTS);
    assert_eq!(only(agent), REQUESTS);
}
