//! Servers written for one test, in Python, and what the agent booked of them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use serde_json::Value;

/// What the scripts are written with: listeners, a server, a proxy, children.
const PRELUDE: &str = r#"
import os, signal, socket, sys, threading, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
def listen(port=0, host="127.0.0.1"):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port)); s.listen(128); return s
def unix(path):
    s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen(128); os.chmod(path, 0o777); return s
def port(s): return s.getsockname()[1]
def to(port): return lambda: socket.create_connection(("127.0.0.1", port))
def to_unix(path):
    def connect():
        s = socket.socket(socket.AF_UNIX); s.connect(path); return s
    return connect
def ask(connect, path="/v1/completions"):
    s = connect()
    s.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while part := s.recv(65536): answer += part
    s.close()
    return answer
def answer(s, work):
    try:
        if s.recv(65536): s.sendall(work())
        s.shutdown(socket.SHUT_RDWR)
    except OSError: pass
    s.close()
def serve(listener, work=lambda: OK):
    while True:
        s, _ = listener.accept()
        threading.Thread(target=answer, args=(s, work), daemon=True).start()
def background(listener, work=lambda: OK):
    threading.Thread(target=serve, args=(listener, work), daemon=True).start()
def child(body):
    pid = os.fork()
    if pid == 0:
        body(); os._exit(0)
    return pid
def when_told(folder, name, body):
    while not os.path.exists(folder + "/go"): time.sleep(0.01)
    body()
    open(f"{folder}/{name}", "w").close()
def ready(*values):
    print("ready", *values, flush=True)
    sys.stdin.read(); os._exit(0)
"#;

/// A script's process tree; ends with this value.
pub(crate) struct Script {
    child: Child,
    told: Vec<u32>,
}

impl Script {
    /// Starts it and waits until it says `ready`, with the numbers it tells.
    pub(crate) fn start(script: &str) -> Self {
        Self::start_behind(&[], script)
    }

    /// The same behind another command, as in `ip netns exec`.
    pub(crate) fn start_behind(wrapper: &[&str], script: &str) -> Self {
        let text = format!("{PRELUDE}\n{script}");
        let mut words = wrapper.to_vec();
        words.extend(["python3", "-c", &text]);
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("python3 is installed");
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("its output is ours");
        BufReader::new(output)
            .read_line(&mut line)
            .expect("it says a line");
        assert!(line.starts_with("ready"), "{line}");
        let told = line.split_whitespace().skip(1);
        let told = told.filter_map(|word| word.parse().ok()).collect();
        Self { child, told }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The port it told first.
    pub(crate) fn port(&self) -> u16 {
        self.told[0] as u16
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // SAFETY: kill takes no pointers; the group is the one this child was made leader of.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

/// Lets scripts that wait in this folder begin (`when_told`), and waits until all have ended.
pub(crate) fn tell(folder: &Path, names: &[&str]) {
    std::fs::write(folder.join("go"), "").expect("a file");
    let give_up = Instant::now() + Duration::from_secs(20);
    while !names.iter().all(|name| folder.join(name).exists()) {
        assert!(Instant::now() < give_up, "{names:?} are not through");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One request over a Unix socket.
pub(crate) fn get_unix(path: &Path, route: &str) {
    let mut stream = UnixStream::connect(path).expect("it listens");
    let request = format!("GET {route} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    assert!(answer.ends_with(b"ok"));
}

/// Ends the agent; how many requests it booked for each service, by name.
pub(crate) fn booked(mut agent: Agent) -> BTreeMap<String, usize> {
    agent.end_with(libc::SIGTERM);
    let rows = agent.rows(
        "SELECT name, count(request) AS requests
        FROM services LEFT JOIN requests USING (service) GROUP BY name",
    );
    let booked = |row: &Value| {
        let count = row["requests"].as_u64().expect("a count");
        (
            row["name"].as_str().expect("a name").to_owned(),
            count as usize,
        )
    };
    rows.iter().map(booked).collect()
}
