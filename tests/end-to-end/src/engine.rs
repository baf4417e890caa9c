//! Real databases of time series on loopback, asked through the API that they share.

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

/// One with its own data folder; killed when dropped.
#[derive(Debug)]
pub struct Engine {
    address: SocketAddr,
    /// Who tells how the rules are.
    rules: SocketAddr,
    children: Vec<Child>,
    _data: TempDir,
}

impl Engine {
    /// A Prometheus that scrapes `agents` and itself, keeps their exemplars, and evaluates the rules of
    /// these files.
    ///
    /// # Panics
    /// If it is not installed or does not come up.
    pub fn prometheus(agents: &[SocketAddr], rules: &[PathBuf]) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let address = free_address();
        let files: Vec<String> = often(rules, &data)
            .iter()
            .map(|file| format!("'{}'", file.display()))
            .collect();
        let config = data.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: {INTERVAL}, evaluation_interval: {INTERVAL}}}\n\
             rule_files: [{}]\n{}",
            files.join(","),
            scraped(agents, address),
        );
        fs::write(&config, text).expect("a file");
        let child = start(
            Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", data.path().display()))
                .arg(format!("--web.listen-address={address}"))
                .arg("--enable-feature=exemplar-storage")
                .arg("--log.level=error"),
        );
        Self::ready(address, address, vec![child], data)
    }

    /// A Prometheus that scrapes nobody, over the blocks in this folder.
    ///
    /// # Panics
    /// If it is not installed or does not come up.
    pub fn prometheus_over(blocks: TempDir) -> Self {
        let address = free_address();
        let config = blocks.path().join("prometheus.yml");
        fs::write(&config, "{}\n").expect("a file");
        let child = start(
            Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", blocks.path().display()))
                .arg("--storage.tsdb.retention.time=1y")
                .arg(format!("--web.listen-address={address}"))
                .arg("--log.level=error"),
        );
        Self::ready(address, address, vec![child], blocks)
    }

    /// A VictoriaMetrics that scrapes nobody.
    ///
    /// # Panics
    /// If it is not installed or does not come up.
    pub fn victoria_of_nobody() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let address = free_address();
        let child = start(
            Command::new("victoria-metrics")
                .arg(format!("-storageDataPath={}", data.path().display()))
                .arg(format!("-httpListenAddr={address}"))
                .args(["-retentionPeriod=1y", "-loggerLevel=ERROR"]),
        );
        Self::ready(address, address, vec![child], data)
    }

    /// A VictoriaMetrics that scrapes `agents` and itself, with a vmalert that evaluates the rules.
    ///
    /// # Panics
    /// If it is not installed or does not come up.
    pub fn victoria(agents: &[SocketAddr], rules: &[PathBuf]) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let (address, alerts) = (free_address(), free_address());
        let config = data.path().join("scrape.yml");
        let text = format!(
            "global: {{scrape_interval: {INTERVAL}}}\n{}",
            scraped(agents, address)
        );
        fs::write(&config, text).expect("a file");
        let store = start(
            Command::new("victoria-metrics")
                .arg(format!("-storageDataPath={}", data.path().display()))
                .arg(format!("-httpListenAddr={address}"))
                .arg(format!("-promscrape.config={}", config.display()))
                // What was scraped last is asked for.
                .args(["-search.latencyOffset=0s", "-loggerLevel=ERROR"]),
        );
        let mut vmalert = Command::new("vmalert");
        for file in often(rules, &data) {
            vmalert.arg(format!("-rule={}", file.display()));
        }
        let url = format!("http://{address}");
        let alert = start(
            vmalert
                .arg(format!("-httpListenAddr={alerts}"))
                .arg(format!("-datasource.url={url}"))
                .arg(format!("-remoteWrite.url={url}"))
                // Nobody is told.
                .arg(format!("-notifier.url={url}"))
                .arg(format!("-evaluationInterval={INTERVAL}"))
                .args(["-datasource.queryStep=5s", "-loggerLevel=ERROR"]),
        );
        Self::ready(address, alerts, vec![store, alert], data)
    }

    fn ready(address: SocketAddr, rules: SocketAddr, children: Vec<Child>, data: TempDir) -> Self {
        let engine = Self {
            address,
            rules,
            children,
            _data: data,
        };
        let started = Instant::now();
        let answers = |address| get(address, "/-/ready").is_some_and(|answer| answer.0);
        while !answers(address) || !answers(rules) {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "it is not ready after a minute"
            );
            thread::sleep(Duration::from_millis(100));
        }
        engine
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// An instant query; the labels and value of each series.
    ///
    /// # Errors
    /// What it says, or that its answer is no series.
    pub fn query(&self, expr: &str) -> Result<Vec<(Value, f64)>, String> {
        let data = api(
            self.address,
            &format!("/api/v1/query?query={}", encoded(expr)),
        )?;
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

    /// The values at a moment, of each series; seconds since 1970.
    ///
    /// # Errors
    /// What it says.
    pub fn query_at(&self, expr: &str, at: u64) -> Result<Vec<Vec<f64>>, String> {
        let path = format!("/api/v1/query?query={}&time={at}", encoded(expr));
        values(&api(self.address, &path)?, |series| {
            vec![series["value"].clone()]
        })
    }

    /// The values over a range, of each series.
    ///
    /// # Errors
    /// What it says.
    pub fn query_range(&self, expr: &str, range: Range) -> Result<Vec<Vec<f64>>, String> {
        let Range { start, end, step } = range;
        let expr = encoded(expr);
        let path = format!("/api/v1/query_range?query={expr}&start={start}&end={end}&step={step}");
        values(&api(self.address, &path)?, |series| {
            series["values"].as_array().cloned().unwrap_or_default()
        })
    }

    /// The values that a label has in these series, over a range.
    ///
    /// # Errors
    /// What it says.
    pub fn label_values(
        &self,
        label: &str,
        selector: &str,
        range: Range,
    ) -> Result<Vec<String>, String> {
        let Range { start, end, .. } = range;
        let of = encoded(selector);
        let path = format!("/api/v1/label/{label}/values?match[]={of}&start={start}&end={end}");
        let values = api(self.address, &path)?;
        let values = values.as_array().ok_or("no list")?;
        let text = |value: &Value| {
            value
                .as_str()
                .map(str::to_owned)
                .ok_or("no text".to_owned())
        };
        values.iter().map(text).collect()
    }

    /// Takes samples in Prometheus' text format, with times in milliseconds; of a VictoriaMetrics.
    ///
    /// # Panics
    /// If it does not.
    pub fn import(&self, text: &[u8]) {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        let head = format!(
            "POST /api/v1/import/prometheus HTTP/1.0\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            text.len()
        );
        stream.write_all(head.as_bytes()).expect("it reads");
        stream.write_all(text).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.contains(" 204 "), "{answer}");
    }

    /// The exemplars of these series, as the API gives them; of a Prometheus.
    ///
    /// # Errors
    /// What it says.
    pub fn exemplars(&self, selector: &str) -> Result<Value, String> {
        let selector = encoded(selector);
        let range = "start=0&end=9999999999";
        let path = format!("/api/v1/query_exemplars?query={selector}&{range}");
        api(self.address, &path)
    }

    /// The groups of rules, as they are being evaluated.
    ///
    /// # Errors
    /// What it says.
    pub fn rules(&self) -> Result<Value, String> {
        api(self.rules, "/api/v1/rules")
    }
}

/// A range of time, seconds since 1970, and between two points.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    /// Its start.
    pub start: u64,
    /// Its end.
    pub end: u64,
    /// From point to point.
    pub step: u64,
}

/// The values of each series of an answer; `points` finds its pairs of time and value.
fn values(data: &Value, points: impl Fn(&Value) -> Vec<Value>) -> Result<Vec<Vec<f64>>, String> {
    let all = data["result"].as_array().ok_or("a scalar, not series")?;
    let value = |point: &Value| {
        let value = point[1].as_str().ok_or("no value")?;
        value.parse().map_err(|error| format!("{value}: {error}"))
    };
    all.iter()
        .map(|series| points(series).iter().map(value).collect())
        .collect()
}

/// The `data` of an API answer.
fn api(address: SocketAddr, path: &str) -> Result<Value, String> {
    let (_, body) = get(address, path).ok_or("it does not answer")?;
    let answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
    match answer["status"].as_str() {
        Some("success") => Ok(answer["data"].clone()),
        _ => Err(answer["error"].to_string()),
    }
}

/// Whether the status is 200, and the body. HTTP/1.0, so that the body is not chunked.
fn get(address: SocketAddr, path: &str) -> Option<(bool, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.contains(" 200 OK"), body.to_owned()))
}

/// Copies of rules whose groups are evaluated as often as all others.
fn often(rules: &[PathBuf], folder: &TempDir) -> Vec<PathBuf> {
    let copy = |file: &PathBuf| {
        let text = fs::read_to_string(file).expect("rules");
        let own = |line: &&str| !line.starts_with("    interval: ");
        let text: String = text
            .lines()
            .filter(own)
            .map(|line| format!("{line}\n"))
            .collect();
        let copy = folder.path().join(file.file_name().expect("a file"));
        fs::write(&copy, text).expect("a file");
        copy
    };
    rules.iter().map(copy).collect()
}

/// The part of a configuration that says what is scraped: the agents, and the database itself.
fn scraped(agents: &[SocketAddr], own: SocketAddr) -> String {
    let targets: Vec<String> = agents.iter().map(|agent| format!("'{agent}'")).collect();
    format!(
        "scrape_configs:\n\
         - {{job_name: perjoule, static_configs: [{{targets: [{}], labels: {{cluster: lab}}}}]}}\n\
         - {{job_name: prometheus, static_configs: [{{targets: ['{own}']}}]}}\n",
        targets.join(","),
    )
}

fn start(command: &mut Command) -> Child {
    let spawned = command.stdout(Stdio::null()).spawn();
    spawned.unwrap_or_else(|error| {
        let program = command.get_program().to_string_lossy().into_owned();
        panic!(
            "cannot run {program}: {error}; Debian and Ubuntu have it in the packages `prometheus` \
             and `victoria-metrics`"
        )
    })
}

impl Drop for Engine {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
