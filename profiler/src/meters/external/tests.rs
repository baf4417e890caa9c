//! A meter outside: what its place may look like, and what its text may hold.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<NodePower, ParseNodePowerError> {
    text.parse()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// What a file of this text says, with `selector` behind its path.
fn says(text: &str, selector: &str) -> Result<f64, String> {
    let file = file(text);
    let place = format!("{}{selector}", file.path().display());
    let read = parse(&place).unwrap().read();
    read.map(|watts| watts.0).map_err(|error| error.to_string())
}

/// Answers every request with this body.
fn server(body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).unwrap();
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let answer = if head.starts_with("GET /outlet?id=3 HTTP/1.1\r\n") {
                format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
            } else {
                "HTTP/1.1 404 Not Found\r\n\r\n".to_owned()
            };
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn the_first_number_is_taken_wherever_it_stands() {
    assert_eq!(says("612.5\n", ""), Ok(612.5));
    assert_eq!(says("Outlet P3: 1.2e3 W (max 1500)", ""), Ok(1200.0));
    assert_eq!(says("{\"apower\":230,\"unit\":\"W\"}", ""), Ok(230.0));
    assert_eq!(says("no reading", ""), Err("no number in it".into()));
    assert_eq!(says("nan inf", ""), Err("no number in it".into()));
}

#[test]
fn what_is_no_power_is_refused_and_never_zero() {
    assert_eq!(says("0", ""), Err("0 is no power in watts".into()));
    assert_eq!(says("-5", ""), Err("-5 is no power in watts".into()));
    assert_eq!(
        says("1e9", ""),
        Err("1000000000 is no power in watts".into())
    );
}

#[test]
fn a_prometheus_sample_is_found_by_name_and_labels() {
    let text = "# HELP pdu_watts Power.\npdu_amps{outlet=\"1\"} 2\n\
                pdu_watts{outlet=\"1\",phase=\"a\"} 300\npdu_watts{outlet=\"2\",phase=\"a\"} 450.5\n\
                total_watts 750.5 1700000000000\n";
    assert_eq!(says(text, "#total_watts"), Ok(750.5));
    assert_eq!(says(text, "#pdu_watts{outlet=\"2\"}"), Ok(450.5));
    assert_eq!(
        says(text, "#pdu_watts"),
        Err("2 samples pdu_watts; say which by its labels".into())
    );
    assert_eq!(says(text, "#missing"), Err("no sample missing".into()));
}

#[test]
fn a_url_is_asked_for_its_path() {
    let address = server("{\"watts\": 640.25}");
    let ask = |path: &str| parse(&format!("http://{address}{path}")).unwrap().read();
    assert_eq!(ask("/outlet?id=3").unwrap(), Watts(640.25));
    assert_eq!(ask("/other").unwrap_err().to_string(), "status 404");
    let nobody = parse("http://127.0.0.1:1/x").unwrap().read().unwrap_err();
    assert!(
        nobody.to_string().starts_with("cannot connect: "),
        "{nobody}"
    );
}

#[test]
fn a_place_that_cannot_work_is_refused_when_it_is_given() {
    let said = |text| parse(text).unwrap_err().to_string();
    assert!(said("https://pdu/power").contains("only plain http://"));
    assert!(said("http:///power").contains("names no host"));
    assert!(said("http://pdu/#").contains("`#` is followed by a metric's name"));
    assert!(said("/run/watts#a b").contains("`#` is followed"));
    assert!(said("").starts_with("empty"));
    assert_eq!(parse("/run/watts").unwrap().to_string(), "/run/watts");
    let bare = parse("http://pdu").unwrap().place;
    let (host, path) = ("pdu".to_owned(), "/".to_owned());
    assert_eq!(bare, Place::Url { host, path });
}

#[test]
fn readings_are_told_a_failure_too_and_recovery() {
    let file = file("500");
    let place = parse(&file.path().display().to_string()).unwrap();
    let (sender, news) = mpsc::channel();
    let mut running = Running::default();
    place.start(&mut running, Feed(sender)).unwrap();
    let next = || news.recv_timeout(Duration::from_secs(10)).unwrap();
    let News::Node(first) = next() else {
        panic!("a reading comes first");
    };
    assert_eq!(
        (&*first.device, first.power),
        ("external", Some(Watts(500.0)))
    );
    fs::write(file.path(), "broken").unwrap();
    let error = loop {
        if let News::State(state) = next()
            && let Some(error) = state.error
        {
            break error;
        }
    };
    assert!(error.ends_with(": no number in it"), "{error}");
    fs::write(file.path(), "700").unwrap();
    let second = loop {
        if let News::Node(reading) = next()
            && reading.power == Some(Watts(700.0))
        {
            break reading;
        }
    };
    let mean = second.energy.joules().0 / second.at.seconds_since(first.at);
    assert!((500.0..=700.0).contains(&mean), "{mean} W");
    assert!(running.stop().is_empty());
}

proptest! {
    #[test]
    fn no_place_and_no_text_makes_it_panic(place in ".{0,40}", text in ".{0,80}") {
        let _ = parse(&place);
        let _ = parse(&format!("http://{place}"));
        let _ = first_number(&text);
    }
}
