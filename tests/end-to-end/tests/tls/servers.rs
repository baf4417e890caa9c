//! Servers that speak TLS, and a client that counts.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running server with a certificate of its own.
pub(crate) struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    pub(crate) port: u16,
    folder: tempfile::TempDir,
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tls/programs")
        .join(name)
}

/// A folder with `cert.pem` and `key.pem`; `None`, said, without openssl.
fn certificate() -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().expect("a folder");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder.path())
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        end_to_end::skipped("openssl is not installed");
        return None;
    }
    Some(folder)
}

impl Server {
    /// Starts `interpreter program cert key arguments…`, which says its port first.
    pub(crate) fn start(interpreter: &str, name: &str, arguments: &[&str]) -> Option<Self> {
        let folder = certificate()?;
        let output = folder.path().join("out");
        let child = Command::new(interpreter)
            .arg(program(name))
            .args(["cert.pem", "key.pem"])
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(File::create(&output).expect("a file"))
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else {
            end_to_end::skipped(&format!("{interpreter} is not installed"));
            return None;
        };
        let stdin = child.stdin.take();
        let mut server = Self {
            child,
            stdin,
            port: 0,
            folder,
        };
        let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(20));
        server.port = loop {
            let said = fs::read_to_string(&output).unwrap_or_default();
            if let Some((port, _)) = said.split_once('\n') {
                break port.parse().expect("a port");
            }
            assert!(Instant::now() < give_up, "{name} does not come up");
            std::thread::sleep(Duration::from_millis(20));
        };
        Some(server)
    }

    /// nginx with two workers and the files `plain` and `large`.
    pub(crate) fn nginx() -> Option<Self> {
        let folder = certificate()?;
        let open = |mode| fs::Permissions::from_mode(mode);
        fs::set_permissions(folder.path(), open(0o755)).expect("a mode");
        fs::write(folder.path().join("plain"), "small").expect("a file");
        fs::write(folder.path().join("large"), vec![b'x'; 3_000_000]).expect("a file");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let at = folder.path().display();
        let config = format!(
            "daemon off; worker_processes 2; pid {at}/pid; error_log {at}/error;
             events {{ worker_connections 256; }}
             http {{
                access_log {at}/access; sendfile on; keepalive_requests 100000;
                client_body_temp_path {at}/a; proxy_temp_path {at}/b; fastcgi_temp_path {at}/c;
                uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;
                server {{
                    listen 127.0.0.1:{port} ssl; root {at};
                    ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;
                }}
             }}"
        );
        fs::write(folder.path().join("nginx.conf"), config).expect("a file");
        let child = Command::new("nginx")
            .args(["-p", &at.to_string(), "-e", &format!("{at}/error")])
            .args(["-c", &format!("{at}/nginx.conf")])
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            end_to_end::skipped("nginx is not installed");
            return None;
        };
        let server = Self {
            child,
            stdin: None,
            port,
            folder,
        };
        let give_up = Instant::now() + end_to_end::scaled(Duration::from_secs(10));
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < give_up, "nginx does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(server)
    }

    /// The file with its certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process and its children.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        std::iter::once(pid).chain(children).collect()
    }

    /// Lets it go on.
    pub(crate) fn go_on(&mut self) {
        let stdin = self.stdin.as_mut().expect("it has one");
        stdin.write_all(b"\n").expect("it reads");
    }

    /// The requests it has logged.
    pub(crate) fn logged(&self) -> usize {
        let lines = |name| {
            let text = fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
            text.lines().count()
        };
        // The programs' first line is the port.
        lines("access") + lines("out").saturating_sub(1)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its children go with it.
        let signal = |pid: u32, signal| {
            // SAFETY: kill has no memory effects; these are this test's own processes.
            unsafe { libc::kill(pid as libc::pid_t, signal) }
        };
        for pid in self.pids() {
            signal(pid, libc::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// A client at work.
pub(crate) struct Client {
    child: Child,
    stdin: ChildStdin,
    out: BufReader<ChildStdout>,
}

impl Client {
    /// Does what `words` say; see `client.py`.
    pub(crate) fn start(port: u16, words: &[&str]) -> Self {
        let mut child = Command::new("python3")
            .arg(program("client.py"))
            .arg(port.to_string())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let stdin = child.stdin.take().expect("piped");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdin, out }
    }

    /// Waits until the client waits.
    pub(crate) fn until_it_waits(&mut self) {
        let mut line = String::new();
        while !line.contains("waits") {
            line.clear();
            assert!(self.out.read_line(&mut line).expect("a pipe") > 0);
        }
    }

    /// Lets it go on.
    pub(crate) fn go_on(&mut self) {
        self.stdin.write_all(b"\n").expect("it reads");
    }

    /// What it got from here on, at its end.
    pub(crate) fn finish(mut self) -> Vec<Value> {
        let lines = self.out.by_ref_lines();
        let status = self.child.wait().expect("a child");
        assert!(status.success(), "the client failed: {lines:?}");
        lines
    }
}

trait Lines {
    fn by_ref_lines(&mut self) -> Vec<Value>;
}

impl Lines for BufReader<ChildStdout> {
    fn by_ref_lines(&mut self) -> Vec<Value> {
        self.lines()
            .map(|line| serde_json::from_str(&line.expect("a pipe")).expect("JSON"))
            .collect()
    }
}
