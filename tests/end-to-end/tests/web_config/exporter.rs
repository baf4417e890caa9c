//! Debian's node-exporter, started by hand on a port of its own.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::server::free_port;
use end_to_end::{scaled, skipped};

const PROGRAM: &str = "/usr/bin/prometheus-node-exporter";

/// True if it can be compared with; else says that the test is skipped.
pub(crate) fn is_installed(test: &str) -> bool {
    let found = Path::new(PROGRAM).is_file();
    if !found {
        skipped(&format!(
            "{test}: not installed (package prometheus-node-exporter)"
        ));
    }
    found
}

/// A running one; ends with this value.
pub(crate) struct NodeExporter {
    child: Child,
    port: u16,
}

impl NodeExporter {
    pub(crate) fn start(web_config: &Path) -> Self {
        let mut exporter = Self::spawn(web_config);
        assert!(exporter.comes_up(), "node-exporter does not start");
        exporter
    }

    /// True if it starts with such a file.
    pub(crate) fn starts(web_config: &Path) -> bool {
        Self::spawn(web_config).comes_up()
    }

    fn spawn(web_config: &Path) -> Self {
        let port = free_port();
        let child = Command::new(PROGRAM)
            .args(["--collector.disable-defaults", "--collector.loadavg"])
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg(format!("--web.config.file={}", web_config.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it can be started");
        Self { child, port }
    }

    /// It listens a moment before it looks at its file, and ends if it cannot use it.
    fn comes_up(&mut self) -> bool {
        let start = Instant::now();
        let mut connected = None;
        while start.elapsed() < scaled(Duration::from_secs(10)) {
            if self.child.try_wait().expect("a child").is_some() {
                return false;
            }
            if connected.is_none() && TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                connected = Some(Instant::now());
            }
            if connected.is_some_and(|at| at.elapsed() > scaled(Duration::from_millis(300))) {
                return true;
            }
            sleep(Duration::from_millis(10));
        }
        false
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for NodeExporter {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
