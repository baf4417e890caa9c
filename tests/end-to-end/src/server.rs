//! Plain servers from packages.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const NGINX: &str = "/usr/sbin/nginx";

/// A running server on loopback; ends with this value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    /// `python3 -m http.server` with one small file, `file.txt`.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn python() -> Self {
        let folder = folder_with_a_file();
        let port = free_port();
        let child = Command::new("python3")
            .args([
                "-m",
                "http.server",
                "--bind",
                "127.0.0.1",
                &port.to_string(),
            ])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is installed");
        Self::up(child, port, folder)
    }

    /// An OpenAI-shaped stream of four chunks for every request: 7 tokens in and 9 out, as its last
    /// event says.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn stream_with_usage() -> Self {
        const SERVER: &str = r#"
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        token = '{"object":"text_completion","choices":[{"index":0,"text":"a few words of output"}]}'
        usage = '{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9,"total_tokens":16}}'
        for data in [token] * 4 + [usage, "[DONE]"]:
            event = b"data: " + data.encode() + b"\n\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;
        let folder = folder_with_a_file();
        let port = free_port();
        let child = Command::new("python3")
            .args(["-c", SERVER, &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is installed");
        Self::up(child, port, folder)
    }

    /// nginx with two workers and one small file, `file.txt`; `None`, said, where it is not
    /// installed.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn nginx() -> Option<Self> {
        if !Path::new(NGINX).is_file() {
            crate::skipped("nginx is not installed (package nginx-light)");
            return None;
        }
        let folder = folder_with_a_file();
        let port = free_port();
        let root = folder.path().display();
        let config = format!(
            "daemon off; worker_processes 2; pid {root}/pid; error_log {root}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_body_temp_path {root}/body;\n\
               proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
               uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
               server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
        );
        let path = folder.path().join("nginx.conf");
        fs::write(&path, config).expect("a configuration");
        // Workers run as nobody and must reach the file.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.path(), mode).expect("a mode");
        let child = Command::new(NGINX)
            .arg("-c")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx starts");
        Some(Self::up(child, port, folder))
    }

    /// Where it listens.
    pub const fn port(&self) -> u16 {
        self.port
    }

    fn up(child: Child, port: u16, folder: tempfile::TempDir) -> Self {
        let server = Self {
            child,
            port,
            _folder: folder,
        };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the server does not come up"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM: nginx ends its workers too.
        // SAFETY: kill has no memory effects; the child is not yet waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let _ = self.child.wait();
    }
}

/// A port nobody listens on.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn folder_with_a_file() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file.txt"), "a small file\n").expect("a file");
    folder
}
