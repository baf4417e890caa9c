//! A fleet's report from servers that answer as they are told to.

mod database;
mod server;

use std::io::Write as _;
use std::time::{Duration, Instant};

use clap::Parser;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use self::database::{Database, series};
use self::server::{Asked, Server, answer};
use super::*;
use crate::ledger::Accounts;

/// The end of the tests' month.
const END: i64 = 1_793_491_200;

#[derive(Debug, Parser)]
struct Line {
    /// As the verb has it.
    #[arg(required_unless_present = "prometheus")]
    file: Option<String>,
    #[command(flatten)]
    source: FleetSource,
    #[command(flatten)]
    inputs: Inputs,
}

fn line(server: &str, more: &[&str]) -> Result<Line, clap::Error> {
    let month = [
        "report",
        "--prometheus",
        server,
        "--from",
        "1790899200",
        "--to",
        "1793491200",
    ];
    Line::try_parse_from(month.iter().chain(more))
}

/// The report from a server on loopback.
fn report_of(server: &Server, more: &[&str]) -> Result<Report, FleetError> {
    let line = line(&format!("http://{}", server.address), more).unwrap();
    read_fleet(
        &line.source,
        FullEnergy {
            pue: 1.5,
            ..FullEnergy::default()
        },
        &line.inputs,
    )
}

fn error(answers: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> String {
    report_of(&Server::start(answers), &["--timeout", "1"])
        .unwrap_err()
        .to_string()
}

#[test]
fn a_month_is_asked_in_sixty_parts_over_one_connection() {
    let server = Server::start(Database::of_two_nodes().answers());
    report_of(&server, &[]).unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 60);
    assert!(asked.iter().all(|asked| asked.connection == 0));
    for (place, asked) in (1..).zip(&asked) {
        assert_eq!(asked.line, "POST /api/v1/query HTTP/1.1");
        assert_eq!(
            asked.headers["content-type"],
            "application/x-www-form-urlencoded"
        );
        // Twelve hours each, without the millisecond that is the part's before.
        assert_eq!(
            asked.form["time"],
            (END - 2_592_000 + place * 43_200).to_string()
        );
        assert_eq!(asked.query().matches("{}[43199999ms]").count(), 17);
        assert!(!asked.headers.contains_key("authorization"));
    }
}

#[test]
fn matchers_headers_and_users_go_with_every_question() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "t0ken\n").unwrap();
    let file = file.to_str().unwrap();
    let server = Server::start(Database::of_two_nodes().answers());
    let matchers = ["--match", "cluster=\"a\"", "--match", "dc!~\"x|y\""];
    let tenant = [
        "--header",
        "X-Scope-OrgID: team",
        "--bearer-token-file",
        file,
    ];
    report_of(&server, &[&matchers[..], &tenant].concat()).unwrap();
    for asked in server.asked() {
        let selector = "{cluster=\"a\",dc!~\"x|y\"}[";
        assert_eq!(asked.query().matches(selector).count(), 17);
        assert_eq!(asked.headers["x-scope-orgid"], "team");
        assert_eq!(asked.headers["authorization"], "Bearer t0ken");
    }
    let named = format!("me:{file}");
    let asked = |address: String, more: &[&str]| {
        let server = Server::start(Database::of_two_nodes().answers());
        let address = address.replace("HOST", &server.address.to_string());
        let line = line(&address, more).unwrap();
        read_fleet(&line.source, FullEnergy::default(), &line.inputs).unwrap();
        server.asked().remove(0)
    };
    // me:t0ken and me:p@ss in base 64.
    let by_file = asked("http://HOST".to_owned(), &["--basic-auth", &named]);
    assert_eq!(by_file.headers["authorization"], "Basic bWU6dDBrZW4=");
    let by_address = asked("http://me:p%40ss@HOST/prometheus/".to_owned(), &[]);
    assert_eq!(by_address.headers["authorization"], "Basic bWU6cEBzcw==");
    assert!(
        by_address
            .line
            .starts_with("POST /prometheus/api/v1/query ")
    );
    assert!(!by_address.headers["host"].contains('@'));
}

#[test]
fn nodes_that_are_picked_leave_out_what_is_of_no_node() {
    let server = Server::start(Database::of_two_nodes().answers());
    let report = report_of(&server, &["--match", "instance=~\"n1.*\""]).unwrap();
    assert!(
        server
            .asked()
            .iter()
            .all(|asked| !asked.query().contains("model:"))
    );
    let fleet = report.fleet.unwrap();
    assert!(fleet.models.is_empty() && fleet.gpu_types.is_empty());
    assert!(
        fleet
            .missing
            .contains(&"version:perjoule_requests:increase5m".to_owned())
    );
}

#[test]
fn an_answer_is_read_chunked_zipped_or_over_connections_that_close() {
    let database = Database::of_two_nodes;
    let plain = report_of(&Server::start(database().answers()), &[]).unwrap();
    let zipped = Server::start(move |asked| {
        assert_eq!(asked.headers["accept-encoding"], "gzip");
        let mut zip = GzEncoder::new(Vec::new(), Compression::fast());
        zip.write_all(database().body(asked).as_bytes()).unwrap();
        answer(
            "200 OK",
            "Content-Encoding: gzip\r\n",
            zip.finish().unwrap(),
        )
    });
    let chunked = Server::start(move |asked| {
        let mut told = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in database().body(asked).as_bytes().chunks(1_000) {
            told.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            told.extend_from_slice(chunk);
            told.extend_from_slice(b"\r\n");
        }
        told.extend_from_slice(b"0\r\n\r\n");
        told
    });
    let closed = Server::start(move |asked| {
        answer("200 OK", "Connection: close\r\n", database().body(asked))
    });
    for server in [zipped, chunked, closed] {
        let other = report_of(&server, &[]).unwrap();
        assert_eq!(
            other.planner.unwrap().totals,
            plain.planner.clone().unwrap().totals
        );
    }
}

#[test]
fn certificates_are_trusted_that_a_file_names_and_no_others() {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, own.cert.pem()).unwrap();
    let (certificate, key) = (own.cert.der().clone(), own.signing_key.serialize_der());
    let key = PrivateKeyDer::Pkcs8(key.into());
    let server = Server::secure(certificate, key, Database::of_two_nodes().answers());
    let read = |more: &[&str]| {
        let line = line(&format!("https://{}", server.address), more).unwrap();
        read_fleet(&line.source, FullEnergy::default(), &line.inputs)
    };
    assert!(read(&["--ca-file", file.to_str().unwrap()]).is_ok());
    let told = read(&[]).unwrap_err().to_string();
    assert!(told.contains("TLS") && told.contains("--ca-file"), "{told}");
    std::fs::write(&file, "no certificate").unwrap();
    let told = read(&["--ca-file", file.to_str().unwrap()])
        .unwrap_err()
        .to_string();
    assert!(told.contains("ca.pem") && told.contains("PEM"), "{told}");
}

#[test]
fn a_refusal_says_what_the_server_says_and_what_to_do() {
    let told = error(|_| answer("401 Unauthorized", "", "Unauthorized\n"));
    assert!(
        told.contains("401 Unauthorized") && told.contains("--basic-auth"),
        "{told}"
    );
    let body = json!({"status": "error", "errorType": "bad_data", "error": "parse error: no such function"});
    let told = error(move |_| answer("400 Bad Request", "", body.to_string()));
    assert!(
        told.contains("400") && told.contains("no such function"),
        "{told}"
    );
    let body = json!({"status": "error", "error": "query processing would load too many samples into memory"});
    let told = error(move |_| answer("422 Unprocessable Entity", "", body.to_string()));
    assert!(told.contains("too many samples"), "{told}");
    let told = error(|_| answer("502 Bad Gateway", "", "<html>\n<h1>Bad Gateway</h1>"));
    assert!(told.contains("502") && told.contains("<html>"), "{told}");
    let told = error(|_| answer("404 Not Found", "", "404 page not found"));
    assert!(
        told.contains("does not speak") && told.contains("before /api/v1"),
        "{told}"
    );
    let told = error(|_| answer("302 Found", "Location: https://login\r\n", ""));
    assert!(told.contains("302 Found to https://login"), "{told}");
    let told = error(|_| answer("200 OK", "", "<html>Welcome</html>"));
    assert!(told.contains("<html>Welcome"), "{told}");
    let told = error(|_| b"SSH-2.0-OpenSSH\r\n".to_vec());
    assert!(told.contains("cannot ask http://127.0.0.1:"), "{told}");
}

#[test]
fn nobody_there_and_nobody_who_answers_are_errors_in_time() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let gone = line(&format!("http://{nobody}"), &[]).unwrap();
    let told = read_fleet(&gone.source, FullEnergy::default(), &gone.inputs).unwrap_err();
    assert!(told.to_string().contains("refused"), "{told}");
    let began = Instant::now();
    let told = error(|_| {
        std::thread::sleep(Duration::from_secs(3));
        Vec::new()
    });
    assert!(
        told.contains("within 1 s") && told.contains("--timeout"),
        "{told}"
    );
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[test]
fn nothing_recorded_names_the_series_and_the_rules() {
    let empty = || Server::start(|_| answer("200 OK", "", database::told(Vec::new())));
    let told = report_of(&empty(), &[]).unwrap_err().to_string();
    for part in [
        "instance:perjoule_energy_joules:increase5m",
        "dashboards/rules.yaml",
        "2026-10-02T00:00:00Z",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("matcher"), "{told}");
    let told = report_of(&empty(), &["--match", "model=\"x\""])
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("where model=\"x\"") && told.contains("as cluster is"),
        "{told}"
    );
}

#[test]
fn what_is_recorded_too_often_or_by_other_rules_is_refused() {
    let mut often = Database::of_two_nodes();
    often.every = 60;
    let told = error(often.answers());
    assert!(
        told.contains("43200 samples") && told.contains("interval: 5m"),
        "{told}"
    );
    let mut foreign = Database::of_two_nodes();
    let name = "instance:perjoule_account_joules:increase5m";
    foreign.rows.push(series(
        name,
        &[("instance", "n1"), ("account", "coffee")],
        1.0,
    ));
    let told = error(foreign.answers());
    assert!(told.contains(name) && told.contains("coffee"), "{told}");
    let mut nan = Database::of_two_nodes();
    nan.rows.push(series(
        "version:perjoule_requests:increase5m",
        &[],
        f64::NAN,
    ));
    assert!(error(nan.answers()).contains("NaN"));
}

#[test]
fn totals_are_sums_over_nodes_and_time_and_replicas_count_once() {
    let inputs = [
        "--price",
        "0.5",
        "--currency",
        "EUR",
        "--carbon-intensity",
        "100",
    ];
    let server = Server::start(Database::of_two_nodes().answers());
    let report = report_of(&server, &inputs).unwrap();
    assert!(server.asked()[0].query().starts_with(
        "label_replace(max by (cluster, job, instance) (count_over_time(instance:perjoule_energy_joules:increase5m{}["
    ));
    let plan = report.planner.as_ref().unwrap();
    // Two nodes of 900 J of GPU and 300 J of CPU in five minutes, one with a half of its samples.
    let measured = 1_200.0 * 8_640.0 * 1.5;
    assert_eq!(plan.totals.measured_j, Some(measured));
    assert_eq!(plan.totals.total.energy_kwh, Some(measured * 1.5 / 3.6e6));
    assert_eq!(plan.totals.total.cost, Some(measured * 1.5 / 3.6e6 * 0.5));
    assert_eq!(plan.requests.count, 3 * 8_640 * 3 / 2);
    assert_eq!(plan.requests.j_per_request.mean, Some(600.0 / 3.0));
    assert_eq!(plan.requests.j_per_output_token, Some(2.0));
    assert_eq!(plan.requests.j_per_token, Some(0.5));
    assert_eq!(plan.shares.gpu_idle, Some(200.0 / 900.0));
    assert_eq!(plan.shares.host, Some(0.25));
    assert_eq!(
        (plan.requests.j_per_request.p50, plan.requests.error_ratio),
        (None, None)
    );
    let fleet = report.fleet.as_ref().unwrap();
    assert_eq!((fleet.nodes, fleet.coverage_ratio), (2, 0.75));
    assert!(fleet.missing.is_empty(), "{:?}", fleet.missing);
    let names: Vec<&str> = fleet
        .by_node
        .iter()
        .map(|node| node.name.as_str())
        .collect();
    assert_eq!(names, ["a/n1:27182", "b/n2:27182"]);
    assert_eq!(fleet.by_node[1].coverage_ratio, Some(0.5));
    assert_eq!(fleet.clusters[0].energy_ratio, Some(1.0 / 1.5));
    assert_eq!(fleet.gpu_types[0].gpus, Some(16.0));
    let saved: Vec<&str> = plan
        .savings
        .iter()
        .map(|saving| saving.name.as_str())
        .collect();
    assert_eq!(saved, ["quiet_gpus", "parked_models", "overhead"]);
    // The parts are the whole, and each account is in one place of them.
    let parts = &plan.trend.parts;
    assert_eq!(parts.len(), 60);
    assert_eq!(
        parts.iter().map(|part| part.energy_j).sum::<f64>(),
        measured
    );
    let accounts = parts.iter().flat_map(|part| part.accounts_j.rows());
    assert_eq!(
        accounts
            .clone()
            .filter_map(|(_, energy)| energy)
            .sum::<f64>(),
        measured
    );
    assert_eq!(accounts.count(), 60 * Accounts::NAMES.len());
    assert_eq!(plan.trend.change, None, "a node came in the second half");
}

#[test]
fn a_model_served_by_a_second_version_says_what_changed() {
    let one = report_of(&Server::start(Database::of_two_nodes().answers()), &[]).unwrap();
    assert!(one.planner.as_ref().unwrap().versions.is_empty());
    assert!(!one.to_markdown("x").contains("Versions of"));
    let report = report_of(&Server::start(Database::of_two_versions().answers()), &[]).unwrap();
    let fleet = report.fleet.as_ref().unwrap();
    // A model is all of its versions.
    assert_eq!(fleet.models.len(), 1);
    assert_eq!(fleet.models[0].requests, Some(8_640 * 3 + 4_320 * 2));
    let [before, now] = &report.planner.as_ref().unwrap().versions[..] else {
        panic!("{:?}", report.planner);
    };
    assert_eq!(
        (before.service.as_str(), before.engine.as_str()),
        ("org/model-8b", "vllm 0.11.0")
    );
    assert_eq!(
        (now.engine.as_str(), now.from_s),
        ("vllm 0.12.0", 15.0 * 86_400.0)
    );
    assert_eq!((now.requests, now.j_per_request), (8_640, Some(240.0)));
    assert_eq!(now.mean_output_tokens, Some(100.0));
    assert_eq!((before.j_per_request_change, now.error_ratio), (None, None));
    for change in [now.j_per_request_change, now.j_per_output_token_change] {
        assert!((change.unwrap() - 0.2).abs() < 1e-12, "{change:?}");
    }
    let told = "org/model-8b: vllm 0.12.0 came after vllm 0.11.0. A request took 240.0 J, before that 200.0 J: 20.0 % more. An output \
                token took 20.0 % more.";
    for text in [report.to_html("x"), report.to_markdown("x")] {
        assert!(text.contains(told) && text.contains("Versions of models"));
    }
    let csv = report.to_csv().unwrap();
    let versions = || csv.lines().filter(|line| line.starts_with("versions,"));
    let change = "versions,org/model-8b: version 2,j_per_request_change,0.";
    assert!(versions().any(|line| line.starts_with(change)), "{csv}");
    assert!(!versions().any(|line| line.contains("mean_input_tokens")));
}

#[test]
fn every_form_has_the_same_totals_and_says_what_it_cannot_know() {
    let server = Server::start(Database::of_two_nodes().answers());
    let report = report_of(&server, &["--country", "DE"]).unwrap();
    let total = report.planner.as_ref().unwrap().totals.total;
    let kwh = total.energy_kwh.unwrap();
    let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(json["planner"]["totals"]["total"]["energy_kwh"], kwh);
    assert_eq!(json["ledger"]["residual_microjoules"], Value::Null);
    let csv = report.to_csv().unwrap();
    assert!(
        csv.contains(&format!("answers,all,total_kwh,{kwh},kWh\n")),
        "{csv}"
    );
    assert!(
        csv.contains("answers,all,coverage_ratio,0.75,ratio\n"),
        "{csv}"
    );
    assert!(
        csv.contains("nodes,b/n2:27182,coverage_ratio,0.5,ratio\n"),
        "{csv}"
    );
    assert!(
        !csv.contains("j_per_request_p50") && !csv.contains("residual"),
        "{csv}"
    );
    let shown = crate::report::figures::figure(kwh);
    let (html, markdown, table) = (
        report.to_html("x"),
        report.to_markdown("x"),
        report.to_table(),
    );
    for text in [&html, &markdown, &table] {
        assert!(text.contains(&shown), "{shown}: {text}");
        assert!(text.contains("org/model-8b"), "{text}");
        assert!(text.contains("75.0 %"), "{text}");
    }
    for text in [&html, &markdown] {
        assert!(text.contains("there is no p50"), "{text}");
        assert!(!text.contains("perjoule doctor"), "{text}");
    }
    let lines = table.lines().take_while(|line| !line.contains("saving"));
    let widest = lines.map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{widest:?}: {table}");
    let read: Report = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(read, report);
}

#[test]
fn warnings_of_the_server_are_in_the_report() {
    let database = Database::of_two_nodes();
    let server = Server::start(move |asked| {
        let mut told: Value = serde_json::from_str(&database.body(asked)).unwrap();
        told["warnings"] = json!(["store of b is away"]);
        told["isPartial"] = json!(true);
        answer("200 OK", "", told.to_string())
    });
    let markdown = report_of(&server, &[]).unwrap().to_markdown("x");
    assert!(markdown.contains("store of b is away"), "{markdown}");
    assert!(markdown.contains("answer is partial"), "{markdown}");
}

#[test]
fn a_recording_and_a_fleet_are_not_asked_for_at_once() {
    for (more, told) in [
        (&["night.pj"][..], "cannot be used with"),
        (&["--basic-auth", "me"], "USER:FILE"),
        (&["--match", "cluster=a"], "double quotes"),
        (&["--timeout", "0"], "at least one second"),
    ] {
        let error = line("http://prom:9090", more).unwrap_err().to_string();
        assert!(error.contains(told), "{told}: {error}");
    }
    let error = Line::try_parse_from(["report", "--prometheus", "http://prom:9090"]).unwrap_err();
    assert!(error.to_string().contains("--from"), "{error}");
    assert!(Line::try_parse_from(["report", "night.pj", "--from", "30d"]).is_err());
    assert!(Line::try_parse_from(["report", "night.pj"]).is_ok());
    assert!(Line::try_parse_from(["report"]).is_err());
}
