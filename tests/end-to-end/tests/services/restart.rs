//! A server that is started again under load stays the same service and is soon seen again.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use end_to_end::agent::Agent;
use end_to_end::is_root;
use end_to_end::server::free_port;

use crate::script::{Script, booked};

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(5);

/// One request, if somebody answers.
fn try_ask(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let _ = stream.write_all(b"GET /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).is_ok() && answer.ends_with(b"ok")
}

/// Asks for that long; how many requests were answered.
fn load(port: u16, time: Duration) -> usize {
    let began = Instant::now();
    let mut answered = 0;
    while began.elapsed() < time {
        answered += usize::from(try_ask(port));
        sleep(PAUSE);
    }
    answered
}

#[test]
fn a_server_that_somebody_else_starts_again_is_seen_again_within_its_first_second() {
    if !is_root("restarts") {
        return;
    }
    let port = free_port();
    let script = format!("front = listen({port}); background(front)\nready({port})");
    let mut server = Script::start(&script);
    let agent = Agent::start(&["--port", &port.to_string()]);
    let mut answered = load(port, Duration::from_millis(700));
    let restarts = 5;
    for number in 0..restarts {
        // Ended in the middle of the load; at another moment of the agent's second each time.
        drop(server);
        sleep(Duration::from_millis(300 + 170 * number));
        server = Script::start(&script);
        answered += load(port, Duration::from_millis(1_800));
    }
    let counts = booked(agent);
    drop(server);
    assert_eq!(counts.len(), 1, "one service throughout: {counts:?}");
    let seen: usize = counts.into_values().sum();
    let unseen = (answered - seen) as f64 / restarts as f64;
    let each = 700.0 + 1_800.0 * restarts as f64;
    let milliseconds = unseen * each / answered as f64;
    println!("{seen} of {answered} requests seen; a new server is unseen for {milliseconds:.0} ms");
    assert!(milliseconds < 1_000.0);
}

#[test]
fn workers_that_their_master_starts_again_are_never_unseen() {
    if !is_root("workers started again") {
        return;
    }
    // Every worker serves five requests and ends; its master forks the next.
    let script = Script::start(
        r#"
front = listen()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
def worker():
    for _ in range(5): answer(front.accept()[0], lambda: OK)
def master():
    while True:
        os.waitpid(child(worker), 0)
threading.Thread(target=master, daemon=True).start()
ready(port(front))
"#,
    );
    let agent = Agent::start(&["--pid", &script.pid().to_string()]);
    let answered = load(script.port(), Duration::from_secs(2));
    let counts = booked(agent);
    println!("{answered} requests, a new worker for every five");
    assert_eq!(counts.into_values().sum::<usize>(), answered);
}
