//! The thread against small servers that stand in for engines.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;
use crate::ledger::Counts;

const SERVICE: ServiceId = ServiceId(4);
const SECOND: Duration = Duration::from_secs(1);

/// Answers each request for one path with the next of its texts, the last one again and again;
/// everything else with 404. Keeps the requests' heads.
struct Server {
    endpoint: Endpoint,
    heads: Arc<Mutex<Vec<String>>>,
    peers: Arc<Mutex<Vec<u16>>>,
}

impl Server {
    fn start(path: &'static str, texts: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heads);
        let peers = Arc::new(Mutex::new(Vec::new()));
        let kept_peers = Arc::clone(&peers);
        let mut texts: VecDeque<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    head.extend(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let answer = if head.starts_with(&format!("GET {path} ")) {
                    let text = texts.front().cloned().unwrap_or_default();
                    if texts.len() > 1 {
                        texts.pop_front();
                    }
                    format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
                        text.len()
                    )
                } else if head.starts_with("GET /version ") {
                    "HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\n{\"version\":\"0.9\"}\n"
                        .to_owned()
                } else {
                    "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()
                };
                kept.lock().unwrap().push(head);
                let peer = stream.peer_addr().unwrap().port();
                kept_peers.lock().unwrap().push(peer);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self {
            endpoint: Endpoint::here(address),
            heads,
            peers,
        }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn watched(endpoints: Vec<Endpoint>) -> Vec<Watched> {
    vec![Watched {
        service: SERVICE,
        endpoints,
    }]
}

fn vllm(input: u64, output: u64, running: u64) -> String {
    format!(
        "vllm:num_requests_running{{model_name=\"m\"}} {running}\n\
         vllm:num_requests_waiting{{model_name=\"m\"}} 0\n\
         vllm:prompt_tokens_total{{model_name=\"m\"}} {input}\n\
         vllm:generation_tokens_total{{model_name=\"m\"}} {output}\n"
    )
}

fn news(tokens: &Tokens) -> Vec<News> {
    std::iter::from_fn(|| tokens.next()).collect()
}

fn deltas(news: &[News]) -> Vec<TokenDelta> {
    let deltas = news.iter().filter_map(|news| match news {
        News::Tokens(delta) => Some(*delta),
        _ => None,
    });
    deltas.collect()
}

#[test]
fn an_engine_is_found_behind_its_second_port_and_read_to_the_last_token() {
    let api = Server::start("/health", &[""]);
    let metrics = Server::start(
        "/v1/metrics",
        &[&vllm(100, 50, 0), &vllm(110, 55, 2), &vllm(117, 58, 1)],
    );
    let tokens = Tokens::start(None).unwrap();
    tokens.watch(
        watched(vec![api.endpoint, metrics.endpoint]),
        Some(2 * SECOND),
    );
    let first = news(&tokens);
    let base = deltas(&first)[0];
    assert_eq!((base.input, base.output), (Some(0), Some(0)));
    assert_eq!(base.from, base.to, "the first read is the base");
    assert!(first.contains(&News::Engine(EngineInfo {
        service: SERVICE,
        engine: "vllm",
        counts: Counts::Step,
        version: Some("0.9".to_owned()),
        model: Some("m".to_owned()),
    })));

    thread::sleep(SECOND + SECOND / 2);
    tokens.finish();
    tokens.end(2 * SECOND);
    let rest = news(&tokens);
    let [second, last] = deltas(&rest)[..] else {
        panic!("{rest:?}")
    };
    assert_eq!((second.input, second.output), (Some(10), Some(5)));
    assert_eq!((last.input, last.output), (Some(7), Some(3)));
    assert_eq!(
        (second.from, last.from),
        (base.to, second.to),
        "no time is left out"
    );
    let loads = rest.iter().filter_map(|news| match news {
        News::Load(load) => Some((load.running, load.waiting)),
        _ => None,
    });
    assert_eq!(
        loads.collect::<Vec<_>>(),
        [(Some(2), Some(0)), (Some(1), Some(0))]
    );

    // Every request was announced, once, with both its ports, and says who asks.
    let mut all = first;
    all.extend(rest);
    for server in [&api, &metrics] {
        let announced = all.iter().filter_map(|news| match news {
            News::Connected(own) if own.to == server.endpoint.address.port() => Some(own.from),
            _ => None,
        });
        let heads = server.heads();
        let announced: Vec<u16> = announced.collect();
        assert_eq!(announced, *server.peers.lock().unwrap());
        assert_eq!(announced.len(), heads.len());
        assert!(
            heads
                .iter()
                .all(|head| head.contains("User-Agent: perjoule/"))
        );
        assert!(heads.iter().all(|head| head.contains("Connection: close")));
    }
}

#[test]
fn a_restarted_server_has_a_new_base_and_its_loss_is_told() {
    let server = Server::start(
        "/metrics",
        &[&vllm(900, 700, 0), &vllm(5, 3, 0), &vllm(9, 8, 0)],
    );
    let tokens = Tokens::start(None).unwrap();
    tokens.watch(watched(vec![server.endpoint]), Some(2 * SECOND));
    thread::sleep(SECOND + SECOND / 2);
    tokens.finish();
    tokens.end(2 * SECOND);
    let news = news(&tokens);
    let outputs: Vec<_> = deltas(&news).iter().map(|delta| delta.output).collect();
    assert_eq!(outputs, [Some(0), Some(0), Some(5)]);
    assert_eq!(
        news.iter()
            .filter(|news| **news == News::Reset(SERVICE))
            .count(),
        1
    );
}

#[test]
fn several_processes_behind_one_port_are_not_counted() {
    // Every read is another worker's.
    let worker = |start: u64| {
        format!(
            "{}process_start_time_seconds 17{start}.25\n",
            vllm(start, start, 0)
        )
    };
    let texts: Vec<String> = (100..120).map(worker).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let server = Server::start("/metrics", &texts);
    let tokens = Tokens::start(None).unwrap();
    tokens.watch(watched(vec![server.endpoint]), Some(2 * SECOND));
    thread::sleep(4 * SECOND);
    let news = news(&tokens);
    assert!(deltas(&news).iter().all(|delta| delta.output == Some(0)));
    assert!(news.contains(&News::Lost(SERVICE)), "{news:?}");
    let reads = server.heads();
    let reads = reads
        .iter()
        .filter(|head| head.starts_with("GET /metrics "));
    assert_eq!(reads.count(), 4, "and it is left in peace");
}

#[test]
fn a_service_without_metrics_is_asked_seldom_and_a_port_that_is_not_http_once() {
    let plain = Server::start("/health", &[""]);
    let garbage = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::here(garbage.local_addr().unwrap());
    let connections = thread::spawn(move || {
        garbage.set_nonblocking(true).unwrap();
        let until = Instant::now() + 3 * SECOND;
        let mut count = 0;
        while Instant::now() < until {
            if let Ok((mut stream, _)) = garbage.accept() {
                count += 1;
                let _ = stream.write_all(b"\x15\x03\x01\0\x02\x02\x46");
            }
            thread::sleep(Duration::from_millis(5));
        }
        count
    });
    let tokens = Tokens::start(None).unwrap();
    tokens.watch(watched(vec![endpoint, plain.endpoint]), Some(2 * SECOND));
    assert_eq!(connections.join().unwrap(), 1);
    assert_eq!(
        plain.heads().len(),
        2 * engines::paths().len(),
        "once at the start and once after two seconds"
    );
    assert!(deltas(&news(&tokens)).is_empty());
}
