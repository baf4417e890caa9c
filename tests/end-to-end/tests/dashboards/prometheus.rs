//! A real Prometheus on loopback, asked through its own API.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How often targets are scraped and rules evaluated.
const INTERVAL: &str = "500ms";

/// Prometheus with its own data folder; killed when dropped.
pub(crate) struct Prometheus {
    address: SocketAddr,
    child: Child,
    _data: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `agents` and itself, and evaluates the rules of these files.
    pub(crate) fn start(agents: &[SocketAddr], rules: &[PathBuf]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let address = free_address();
        let targets: Vec<String> = agents.iter().map(|agent| format!("'{agent}'")).collect();
        let files: Vec<String> = rules
            .iter()
            .map(|file| format!("'{}'", file.display()))
            .collect();
        let config = data.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: {INTERVAL}, evaluation_interval: {INTERVAL}}}\n\
             rule_files: [{}]\n\
             scrape_configs:\n\
             - {{job_name: perjoule, static_configs: [{{targets: [{}], labels: {{cluster: lab}}}}]}}\n\
             - {{job_name: prometheus, static_configs: [{{targets: ['{address}']}}]}}\n",
            files.join(","),
            targets.join(","),
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.path().display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdout(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => panic!(
                "cannot run prometheus: {error}; it is in Debian's and Ubuntu's package \
                 `prometheus`: apt-get install prometheus"
            ),
        };
        let prometheus = Self {
            address,
            child,
            _data: data,
        };
        let started = Instant::now();
        while prometheus.get("/-/ready").is_none_or(|answer| !answer.0) {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "prometheus is not ready after a minute"
            );
            thread::sleep(Duration::from_millis(100));
        }
        prometheus
    }

    /// An instant query; the labels and value of each series, or Prometheus's error.
    pub(crate) fn query(&self, expr: &str) -> Result<Vec<(Value, f64)>, String> {
        let data = self.api(&format!("/api/v1/query?query={}", encoded(expr)))?;
        let series = data["result"].as_array().ok_or("a scalar, not series")?;
        series
            .iter()
            .map(|series| {
                let value = series["value"][1].as_str().ok_or("no value")?;
                let value = value.parse().map_err(|error| format!("{value}: {error}"))?;
                Ok((series["metric"].clone(), value))
            })
            .collect()
    }

    /// The `data` of an API answer.
    pub(crate) fn api(&self, path: &str) -> Result<Value, String> {
        let (_, body) = self.get(path).ok_or("prometheus does not answer")?;
        let answer: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].clone()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// Whether the status is 200, and the body. HTTP/1.0, so that the body is not chunked.
    fn get(&self, path: &str) -> Option<(bool, String)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.contains(" 200 OK"), body.to_owned()))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
