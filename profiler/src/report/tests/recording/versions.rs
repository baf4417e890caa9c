//! A service whose engine is replaced after 100 of 200 s; a request every two seconds.

use super::forms::line;
use super::*;
use crate::report::planner::model::VersionPlan;

const REPLACED: u64 = 100;

/// 10 J and, with the second version, 20 % more; 30 tokens in, 50 out.
fn served_by(service: u32, from: u64) -> BookedRequest {
    let gpu = if from < REPLACED { 10 } else { 12 };
    let mut booked = served(from, from, from + 3, 50, gpu, 0);
    booked.request.service = ServiceId(service);
    booked.tokens = Some(TokenCount {
        source: TokenSource::Usage,
        input: Some(30),
        output: Some(50),
        calibrated: true,
    });
    booked
}

fn write(
    file: &Path,
    engines: &[RecordedEngine],
    requests: impl IntoIterator<Item = BookedRequest>,
) {
    let mut recording = Recording::create(file, "run", true).unwrap();
    let gpu = meter(Component::Gpu, "GPU-0");
    recording.meter(MeterId(0), &gpu).unwrap();
    for id in [0, 1] {
        recording
            .service(ServiceId(id), "chat", Some("llama"))
            .unwrap();
    }
    for told in engines {
        recording.engine(told).unwrap();
    }
    for now in 0..2 * REPLACED + 3 {
        let accounts = Accounts {
            requests: joules(6),
            ..Accounts::default()
        };
        recording.book(&second(0, now, accounts, vec![])).unwrap();
    }
    for request in requests {
        recording.book(&Booked::Request(request)).unwrap();
    }
    recording.close().unwrap();
}

fn every_two_seconds() -> impl Iterator<Item = u64> {
    (0..2 * REPLACED).step_by(2)
}

/// What is said of these engines and requests.
fn of(
    engines: &[RecordedEngine],
    requests: impl IntoIterator<Item = BookedRequest>,
) -> (Report, Vec<VersionPlan>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    write(&file, engines, requests);
    let report = read(&file, FullEnergy::default(), &Inputs::default()).unwrap();
    let versions = report.planner.as_ref().unwrap().versions.clone();
    (report, versions)
}

/// The first one is told after its first requests, the second one while one is in flight.
fn replaced() -> [RecordedEngine; 2] {
    [vllm(0, "0.11.0", 7), vllm(0, "0.12.0", REPLACED)]
}

#[test]
fn a_version_that_costs_a_fifth_more_is_told_as_such() {
    let (report, versions) = of(
        &replaced(),
        every_two_seconds().map(|from| served_by(0, from)),
    );
    let [before, now] = versions.as_slice() else {
        panic!("two versions, not {versions:?}")
    };
    assert_eq!(
        (before.engine.as_str(), before.model.as_deref()),
        ("vllm 0.11.0", Some("llama"))
    );
    assert_eq!(now.engine, "vllm 0.12.0");
    // The request that began at 98 s ends with the second version, and is the first one's.
    assert_eq!((before.requests, now.requests), (50, 50));
    assert_eq!((before.from_s, now.from_s), (0.0, 100.0));
    assert_eq!((before.active_j, now.active_j), (Some(500.0), Some(600.0)));
    assert_eq!(
        (before.j_per_request, now.j_per_request),
        (Some(10.0), Some(12.0))
    );
    near(now.error_ratio, 0.04);
    assert_eq!(now.j_per_output_token, Some(0.24));
    assert_eq!(
        (now.mean_input_tokens, now.mean_output_tokens),
        (Some(30.0), Some(50.0))
    );
    assert_eq!(
        (
            before.j_per_request_change,
            before.j_per_output_token_change
        ),
        (None, None),
        "there is none before"
    );
    near(now.j_per_request_change, 0.2);
    near(now.j_per_output_token_change, 0.2);

    let page = report.to_markdown("a.pj");
    assert!(
        page.contains(
            "chat: vllm 0.12.0 with llama came after vllm 0.11.0 with llama. A request took 12.00 J ± 4.0 %, before \
             that 10.00 J ± 4.0 %: 20.0 % more, more than the bounds of both explain. An output token took 20.0 % more. \
             A request had on average 30.00 tokens in, before 30.00; 50.00 tokens out, before 50.00: other lengths"
        ),
        "{page}"
    );
    assert!(report.to_html("a.pj").contains("id=\"versions\""));
    let csv = report.to_csv().unwrap();
    near(
        line(&csv, "versions", "chat: version 2", "j_per_request_change"),
        0.2,
    );
    assert_eq!(
        line(&csv, "versions", "chat: version 1", "j_per_request_change"),
        None
    );
}

#[test]
fn versions_in_the_json_have_exactly_these_keys_and_older_reports_have_none() {
    let requests = every_two_seconds().map(|from| served_by(0, from));
    let (report, versions) = of(&replaced(), requests);
    let mut json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    let mut found = Vec::new();
    super::super::forms::keys(&json["planner"]["versions"], "", &mut found);
    found.sort();
    assert_eq!(
        found,
        [
            "[].active_j",
            "[].engine",
            "[].error_ratio",
            "[].from_s",
            "[].j_per_output_token",
            "[].j_per_output_token_change",
            "[].j_per_request",
            "[].j_per_request_change",
            "[].mean_input_tokens",
            "[].mean_output_tokens",
            "[].model",
            "[].requests",
            "[].service",
        ]
    );
    let read_back: Report = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(read_back.planner.unwrap().versions, versions);
    json["planner"].as_object_mut().unwrap().remove("versions");
    let older: Report = serde_json::from_value(json).unwrap();
    assert_eq!(older.planner.unwrap().versions, []);
}

#[test]
fn every_figure_of_versions_is_documented_and_recomputes_from_the_file() {
    let docs = include_str!("../../../../../docs/report.md");
    let (_, section) = docs.split_once("### `versions`").unwrap();
    let (_, sql) = section.split_once("```sql\n").unwrap();
    let (sql, _) = sql.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    let requests = every_two_seconds().map(|from| served_by(0, from));
    write(&file, &replaced(), requests);
    let report = read(&file, FullEnergy::default(), &Inputs::default()).unwrap();
    let plain = Connection::open(&file).unwrap();
    let mut statement = plain.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| {
        let engine: String = row.get("engine")?;
        let version: String = row.get("version")?;
        Ok((
            format!("{engine} {version}"),
            row.get("requests")?,
            row.get("j_per_request_mean")?,
            row.get("j_per_output_token")?,
        ))
    });
    let rows: Vec<(String, u64, Option<f64>, Option<f64>)> =
        rows.unwrap().collect::<Result<_, _>>().unwrap();
    let versions = &report.planner.as_ref().unwrap().versions;
    let told = versions.iter().map(|version| {
        (
            version.engine.clone(),
            version.requests,
            version.j_per_request,
            version.j_per_output_token,
        )
    });
    assert_eq!(rows, told.collect::<Vec<_>>());

    let csv = report.to_csv().unwrap();
    let figures = csv.lines().filter_map(|line| {
        let mut cells = line.split(',');
        (cells.next() == Some("versions")).then(|| cells.nth(1).unwrap())
    });
    let figures: Vec<&str> = figures.collect();
    assert_eq!(figures.len(), 2 * 12 - 2);
    for figure in figures {
        assert!(section.contains(&format!("`{figure}`")), "{figure}");
    }
}

#[test]
fn a_service_with_one_version_has_no_section() {
    let one = [vllm(0, "0.11.0", 0), vllm(0, "0.11.0", REPLACED)];
    let requests = || every_two_seconds().map(|from| served_by(0, from));
    let (report, versions) = of(&one, requests());
    assert_eq!(versions, []);
    assert!(!report.to_html("a.pj").contains("id=\"versions\""));
    assert!(!report.to_csv().unwrap().contains("versions,"));
    // One that served nobody is none, and an engine may name its model later than itself.
    let unused = [
        vllm(0, "0.11.0", 0),
        RecordedEngine {
            model: Some("llama".to_owned()),
            ..vllm(0, "0.11.0", 20)
        },
        vllm(0, "0.12.0", 3 * REPLACED),
    ];
    assert_eq!(of(&unused, requests()).1, []);
}

#[test]
fn a_container_that_takes_anothers_place_and_name_is_its_next_version() {
    let engines = [
        vllm(0, "0.11.0", 0),
        RecordedEngine {
            model: Some("qwen".to_owned()),
            ..vllm(1, "0.11.0", REPLACED + 50)
        },
    ];
    let requests = every_two_seconds().map(|from| served_by(u32::from(from >= REPLACED), from));
    let (_, versions) = of(&engines, requests);
    let models: Vec<Option<&str>> = versions
        .iter()
        .map(|version| version.model.as_deref())
        .collect();
    assert_eq!(models, [Some("llama"), Some("qwen")]);
    near(versions[1].j_per_request_change, 0.2);
}

#[test]
fn what_is_not_known_of_a_version_is_not_compared() {
    let without_tokens = |from| {
        let mut booked = served_by(0, from);
        if from >= REPLACED {
            booked.tokens = None;
            booked.request.streamed = false;
        }
        booked
    };
    let (report, versions) = of(&replaced(), every_two_seconds().map(without_tokens));
    let now = &versions[1];
    assert_eq!(
        (now.j_per_output_token, now.j_per_output_token_change),
        (None, None)
    );
    assert_eq!(
        (now.mean_input_tokens, now.mean_output_tokens),
        (None, None)
    );
    near(now.j_per_request_change, 0.2);
    let page = report.to_markdown("a.pj");
    assert!(
        page.contains("What an output token took cannot be compared: tokens or energy of one of the two are not known"),
        "{page}"
    );

    let without_energy = |from| {
        let mut booked = served_by(0, from);
        if from < REPLACED {
            (booked.gpu, booked.cpu, booked.errors) = (None, None, None);
        }
        booked
    };
    let (report, versions) = of(&replaced(), every_two_seconds().map(without_energy));
    assert_eq!(
        (versions[0].active_j, versions[0].j_per_request),
        (None, None)
    );
    assert_eq!(versions[1].j_per_request_change, None);
    let page = report.to_markdown("a.pj");
    assert!(
        page.contains("What a request took cannot be compared"),
        "{page}"
    );
}

#[test]
fn a_change_within_the_bounds_is_called_so() {
    let vague = |from| {
        let mut booked = served_by(0, from);
        booked.errors = Some(ErrorRatios {
            own: 0.0,
            common: 0.2,
        });
        booked
    };
    let (report, _) = of(&replaced(), every_two_seconds().map(vague));
    let page = report.to_markdown("a.pj");
    assert!(
        page.contains("20.0 % more, which may be nothing, for their bounds overlap"),
        "{page}"
    );
}

#[test]
fn files_that_do_not_say_when_have_one_version_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    let requests = every_two_seconds().map(|from| served_by(0, from));
    write(&file, &replaced(), requests);
    Connection::open(&file)
        .unwrap()
        .execute_batch("ALTER TABLE engines DROP COLUMN at_ns")
        .unwrap();
    let report = read(&file, FullEnergy::default(), &Inputs::default()).unwrap();
    let plan = report.planner.unwrap();
    assert_eq!(plan.versions, []);
    assert_eq!(plan.services[0].engines, ["vllm 0.11.0", "vllm 0.12.0"]);
}
