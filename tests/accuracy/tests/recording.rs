//! A recording's size, of a node of which everything is known; `cargo xtask bench recording` writes a whole
//! hour.

use accuracy::hour;
use profiler::ledger::Component;
use profiler::report::{FullEnergy, Inputs, read};

const REQUESTS: u64 = 100_000;
/// Of a file, a request.
const MOST_BYTES: f64 = 100.0;

#[test]
fn a_request_takes_a_hundred_bytes_at_most_and_the_file_adds_up() {
    let folder = std::env::temp_dir().join(format!("perjoule-size-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("hour.pj");
    let written = hour::write(&file, REQUESTS).unwrap();
    let bytes = file.metadata().unwrap().len() as f64 / REQUESTS as f64;
    println!("{bytes:.1} bytes a request");

    let report = read(&file, FullEnergy::default(), &Inputs::default()).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(report.ledger.residual_microjoules, Some(0));
    let services = &report.services;
    let requests: u64 = services.iter().map(|service| service.requests.total).sum();
    assert_eq!(requests, REQUESTS);
    let meters = report.meters.iter();
    let gpus = meters.filter(|meter| meter.component == Component::Gpu);
    let booked: f64 = gpus.filter_map(|meter| meter.accounts_j.requests).sum();
    assert!((booked - written.gpu.joules().0).abs() < 1e-3, "{booked}");
    let of_requests: f64 = services
        .iter()
        .filter_map(|service| service.energy_j.gpu)
        .sum();
    assert!(
        (of_requests - booked).abs() < 1e-3,
        "{of_requests} {booked}"
    );
    assert!(bytes <= MOST_BYTES, "{bytes:.1} bytes a request");
}
