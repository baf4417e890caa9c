//! A running stack and a client that speaks HTTP by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpu_state::GpuState;
use inference_sim::truth::TruthRecord;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_inference-sim");

/// `inference-sim serve` with a folder of its own, or beside another one.
pub(crate) struct Stack {
    pub(crate) address: String,
    pub(crate) child: Child,
    pub(crate) folder: Arc<tempfile::TempDir>,
    truth_path: PathBuf,
}

impl Stack {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), "", arguments)
    }

    /// Another stack on the same GPUs.
    pub(crate) fn start_beside(&self, arguments: &[&str]) -> Self {
        Self::start_in(Arc::clone(&self.folder), "other-", arguments)
    }

    fn start_in(folder: Arc<tempfile::TempDir>, name: &str, arguments: &[&str]) -> Self {
        let truth_path = folder.path().join(format!("{name}truth.jsonl"));
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        command.arg("--gpu-state").arg(folder.path().join("gpu"));
        command.arg("--truth").arg(&truth_path);
        command
            .arg("--engine-socket")
            .arg(folder.path().join(format!("{name}socket")));
        command.args(arguments);
        let (child, address) = listening(command);
        Self {
            address,
            child,
            folder,
            truth_path,
        }
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.folder.path().join("gpu")
    }

    pub(crate) fn truth(&self) -> Vec<TruthRecord> {
        truth(&self.truth_path)
    }

    /// Waits until so many requests have ended.
    pub(crate) fn truth_of(&self, count: usize) -> Vec<TruthRecord> {
        let begun = Instant::now();
        loop {
            let records = self.truth();
            if records.len() >= count || begun.elapsed() > Duration::from_secs(10) {
                assert_eq!(records.len(), count, "{records:?}");
                return records;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Energy above idle that the engine has published, microjoules.
    pub(crate) fn published_uj(&self, device: usize) -> u64 {
        let state = GpuState::open_or_create(&self.state_path()).unwrap();
        state.energy_at(device, u64::MAX).unwrap()
    }

    /// Value of a metric, its labels included in `name`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = Client::new(&self.address).get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub(crate) fn stop(&mut self) -> ExitStatus {
        signal(&self.child, libc::SIGTERM);
        self.child.wait().unwrap()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.stop();
        }
    }
}

/// Starts a front and waits until it listens.
pub(crate) fn listening(mut command: Command) -> (Child, String) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line
        .trim()
        .strip_prefix("listening on http://")
        .unwrap()
        .to_owned();
    (child, address)
}

pub(crate) fn signal(child: &Child, signal: i32) {
    // SAFETY: sending a signal touches no memory; the child is not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

pub(crate) fn truth(path: &Path) -> Vec<TruthRecord> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// One connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Server-sent events, `[DONE]` included.
    pub(crate) fn events(&self) -> Vec<String> {
        let text = self.text();
        assert!(text.ends_with("\n\n"));
        let events = text.split_terminator("\n\n");
        events
            .map(|event| event.strip_prefix("data: ").unwrap().to_owned())
            .collect()
    }
}

impl Client {
    pub(crate) fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
        self.receive()
    }

    pub(crate) fn post(&mut self, path: &str, body: &str) -> Response {
        self.ask(path, body);
        self.receive()
    }

    pub(crate) fn ask(&mut self, path: &str, body: &str) {
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
    }

    fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Response {
        let head = self.head();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = Vec::new();
        if head.contains("transfer-encoding: chunked") {
            while let Some(chunk) = self.chunk() {
                body.extend(chunk);
            }
        } else {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            body.resize(length.unwrap().parse().unwrap(), 0);
            self.stream.read_exact(&mut body).unwrap();
        }
        Response { status, head, body }
    }

    /// Status line and headers.
    pub(crate) fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(
                self.stream.read_line(&mut head).unwrap(),
                0,
                "closed after {head:?}"
            );
        }
        head
    }

    /// The next chunk of the chunked coding; `None` at the end.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        self.stream.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).unwrap();
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }
}
