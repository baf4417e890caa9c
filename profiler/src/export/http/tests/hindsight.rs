//! Who may have the last minutes saved.

use std::net::{IpAddr, UdpSocket};

use super::*;

/// Saves at once, or fails.
fn saves(result: Result<&'static str, &'static str>) -> SaveHindsight {
    Arc::new(move |answer| {
        let saved = result.map(Into::into).map_err(str::to_owned);
        answer.send(saved).unwrap();
    })
}

#[tokio::test]
async fn a_program_on_this_machine_is_told_which_file_holds_the_last_minutes() {
    let served = served_with(None, Some(saves(Ok("/var/h-2026.pj")))).await;
    let answer = exchange(served.address, "POST /hindsight/save").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n/var/h-2026.pj\n"), "{answer}");
    let answer = exchange(served.address, "GET /hindsight/save").await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert!(answer.contains("allow: POST"), "{answer}");

    let full = served_with(None, Some(saves(Err("the disk is full")))).await;
    let answer = exchange(full.address, "POST /hindsight/save").await;
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(answer.contains("the disk is full"), "{answer}");

    let without = super::served().await;
    let answer = exchange(without.address, "POST /hindsight/save").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.contains("--hindsight"), "{answer}");
}

#[tokio::test]
async fn a_page_in_a_browser_on_this_machine_may_not_ask() {
    let served = served_with(None, Some(saves(Ok("/var/h.pj")))).await;
    let stream = TcpStream::connect(served.address).await.unwrap();
    let origin = "Origin: http://127.0.0.1:27182\r\n";
    let answer = ask(stream, "POST /hindsight/save", origin).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

/// From its own address, which others could have as well. A machine without a network has none.
#[tokio::test]
async fn who_comes_over_an_address_of_the_network_may_not_ask() {
    let own = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own: Option<IpAddr> = (own.connect("192.0.2.1:9"))
        .and_then(|()| own.local_addr())
        .map(|address| address.ip())
        .ok();
    let Some(own) = own.filter(|own| !own.is_loopback()) else {
        return eprintln!("skipped: no network");
    };
    let served = served_with(None, Some(saves(Ok("/var/h.pj")))).await;
    let address = SocketAddr::from((own, served.address.port()));
    let answer = exchange(address, "POST /hindsight/save").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(!answer.contains("/var"), "{answer}");
}
