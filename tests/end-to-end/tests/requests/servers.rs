//! Servers as they come from their packages, and a load generator.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use profiler::ledger::Outcome;
use profiler::probes::requests::{Losses, Observed};

use crate::watch::{Watch, outcome};
use crate::wire::{connect, listen, read_all, read_until};

/// A server process; ended when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port nobody listens on at this moment.
pub(crate) fn free_port() -> u16 {
    listen().1
}

/// Starts `command` and waits until it listens; `None`, with the reason printed, if it is not
/// installed. The probe does not follow it yet: the connection that asks is not counted.
pub(crate) fn start(command: &mut Command, port: u16) -> Option<Server> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = child else {
        end_to_end::skipped(&format!("{:?} is not installed", command.get_program()));
        return None;
    };
    let server = Server { child, port };
    let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(20));
    while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
        assert!(Instant::now() < give_up, "{command:?} does not listen");
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(50));
    Some(server)
}

fn python(folder: &Path) -> Option<Server> {
    let port = free_port();
    let mut command = Command::new("python3");
    command
        .args(["-m", "http.server", "--bind", "127.0.0.1"])
        .arg(port.to_string())
        .current_dir(folder);
    start(&mut command, port)
}

fn nginx(folder: &Path) -> Option<Server> {
    let port = free_port();
    let folder = folder.display();
    let config = format!(
        "daemon off; master_process off; pid {folder}/pid; error_log {folder}/error;
         events {{ worker_connections 256; }}
         http {{
            access_log {folder}/access; sendfile on; keepalive_requests 1000000;
            client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
            fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
            server {{ listen 127.0.0.1:{port}; root {folder}; }}
         }}"
    );
    fs::write(format!("{folder}/nginx.conf"), config).expect("a file");
    let mut command = Command::new("nginx");
    command.args(["-p", &folder.to_string(), "-e", &format!("{folder}/error")]);
    command.args(["-c", &format!("{folder}/nginx.conf")]);
    start(&mut command, port)
}

fn done(seen: &[Observed], status: u16) -> usize {
    let done =
        |seen: &&Observed| seen.request.status == status && outcome(seen) == Some(Outcome::Done);
    seen.iter().filter(done).count()
}

/// Sends `requests` on one connection and waits for each one's response.
fn keep_alive(port: u16, requests: &[(&str, &[u8])]) {
    let mut stream = connect(port);
    for (request, end) in requests {
        stream.write_all(request.as_bytes()).expect("sent");
        assert!(read_until(&mut stream, end), "{request}");
    }
}

#[test]
fn a_thousand_requests_to_a_threaded_server_are_a_thousand() {
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("large"), vec![b'x'; 300_000]).expect("a file");
    let Some(server) = python(folder.path()) else {
        return;
    };
    watch.serve(server.child.id());
    let port = server.port;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                for n in 0..250 {
                    let path = if n % 10 == 0 { "large" } else { "absent" };
                    let mut stream = connect(port);
                    let request = format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n");
                    stream.write_all(request.as_bytes()).expect("sent");
                    read_all(&mut stream);
                }
            });
        }
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(20));
            watch.poll();
        }
    });
    let seen = watch.wait(port, 1_000);
    assert_eq!((done(&seen, 200), done(&seen, 404)), (100, 900));
    let large = seen
        .iter()
        .find(|seen| seen.request.status == 200)
        .expect("one of 100");
    assert!(large.response_bytes > 300_000);
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn files_that_the_kernel_sends_end_by_their_length() {
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = vec![b'x'; 2_000_000];
    file.extend_from_slice(b"the-end");
    fs::write(folder.path().join("file"), &file).expect("a file");
    let Some(server) = nginx(folder.path()) else {
        return;
    };
    watch.serve(server.child.id());
    let get = "GET /file HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = "HEAD /file HTTP/1.1\r\nHost: x\r\n\r\n";
    let absent = "GET /absent HTTP/1.1\r\nHost: x\r\n\r\n";
    keep_alive(
        server.port,
        &[
            (get, b"the-end"),
            (head, b"\r\n\r\n"),
            (absent, b"</html>\r\n"),
            (get, b"the-end"),
            (get, b"the-end"),
        ],
    );
    let seen = watch.wait(server.port, 5);
    assert_eq!((done(&seen, 200), done(&seen, 404)), (4, 1));
    assert!(seen[0].response_bytes > file.len() as u64);
    assert!(seen[1].response_bytes < 1_000);
    assert_eq!(seen[1].request.first_data, None);
    assert_eq!(watch.probe.losses(), Losses::default());
}

#[test]
fn under_load_every_request_the_server_logs_is_seen() {
    let Some(mut watch) = Watch::attach() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file"), "ok").expect("a file");
    let Some(server) = nginx(folder.path()) else {
        return;
    };
    watch.serve(server.child.id());
    let url = format!("http://127.0.0.1:{}/file", server.port);
    let load = Command::new("wrk")
        .args(["-t1", "-c16", "-d2s", &url])
        .stdout(Stdio::null())
        .spawn();
    let Ok(mut load) = load else {
        end_to_end::skipped("wrk is not installed");
        return;
    };
    while load.try_wait().expect("a child").is_none() {
        thread::sleep(Duration::from_millis(20));
        watch.poll();
    }
    thread::sleep(Duration::from_millis(100));
    watch.poll();
    let logged = fs::read_to_string(folder.path().join("access"))
        .expect("a log")
        .lines()
        .count();
    let seen = watch.wait(server.port, logged);
    println!("{logged} requests in 2 s");
    // It was a load, for this machine.
    assert!(logged > 1_000 / end_to_end::slowness() as usize);
    assert!(
        done(&seen, 200) >= logged - 16,
        "all but those cut off at the end"
    );
    assert_eq!(watch.probe.losses(), Losses::default());
}
