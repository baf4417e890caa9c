//! The same figures in every form.

use super::*;

fn whole() -> Report {
    report_of(Some, FullEnergy::default(), &inputs())
}

/// Value and unit by section, subject and figure.
fn lines(csv: &str) -> BTreeMap<(String, String, String), (String, String)> {
    let mut reader = ::csv::Reader::from_reader(csv.as_bytes());
    assert_eq!(
        reader.headers().unwrap(),
        vec!["section", "subject", "figure", "value", "unit"]
    );
    let mut lines = BTreeMap::new();
    for row in reader.deserialize() {
        let (section, subject, figure, value, unit): (String, String, String, String, String) =
            row.unwrap();
        let before = lines.insert((section, subject, figure), (value, unit));
        assert_eq!(before, None, "a figure has one line");
    }
    lines
}

pub(super) fn line(csv: &str, section: &str, subject: &str, figure: &str) -> Option<f64> {
    let key = (section.to_owned(), subject.to_owned(), figure.to_owned());
    lines(csv)
        .get(&key)
        .map(|(value, _)| value.parse().unwrap())
}

#[test]
fn totals_are_equal_in_every_form_and_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    ten_minutes(&file, Some);
    let sql = "SELECT sum(energy_uj) FROM intervals";
    let booked: u64 = Connection::open(&file)
        .unwrap()
        .query_row(sql, [], |row| row.get(0))
        .unwrap();
    let report = read(&file, FullEnergy::default(), &inputs()).unwrap();
    let (html, markdown, csv) = (
        report.to_html("x"),
        report.to_markdown("x"),
        report.to_csv().unwrap(),
    );
    let table = report.to_table();
    let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    let totals = &json["planner"]["totals"];
    assert_eq!(totals["measured_j"], json!(booked as f64 / 1e6));
    for (figure, pointer, shown) in [
        ("measured_energy", "/measured_j", "203,400"),
        ("total_kwh", "/total/energy_kwh", "0.05650"),
        ("total_cost", "/total/cost", "0.01130"),
        ("total_carbon", "/total/carbon_g", "21.52"),
        ("active_energy", "/active_j", "70,800"),
        ("requests_per_kwh", "/requests_per_kwh", "12,212"),
        (
            "carbon_per_1000_requests",
            "/per_1000_requests/all/carbon_g",
            "31.19",
        ),
        (
            "cost_per_million_output_tokens",
            "/per_million_output_tokens/all/cost",
            "0.09076",
        ),
    ] {
        let exact = totals.pointer(pointer).unwrap().as_f64();
        let of_csv = line(&csv, "answers", "all", figure).unwrap();
        assert!(
            (of_csv / exact.unwrap() - 1.0).abs() < 1e-12,
            "{figure} {of_csv}"
        );
        assert!(
            html.contains(&format!("<b>{shown}</b>")),
            "{figure} in HTML"
        );
        assert!(
            markdown.contains(&format!("| {shown} |")),
            "{figure} in Markdown"
        );
        assert!(table.contains(shown), "{figure} in {table}");
    }
    let meters: f64 = ["gpu GPU-0", "gpu GPU-1", "cpu package-0"]
        .iter()
        .map(|meter| line(&csv, "meters", meter, "energy").unwrap())
        .sum();
    assert_eq!(meters, 203_400.0);
    let read_back: Report = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(read_back.to_html("x"), html);
}

#[test]
fn what_is_not_given_has_no_figure_in_any_form() {
    let report = report_of(Some, FullEnergy::default(), &Inputs::default());
    let csv = report.to_csv().unwrap();
    for ((section, subject, figure), (value, _)) in lines(&csv) {
        let priced = ["cost", "carbon", "sci_i", "sci_o", "sci_m", "market"];
        let priced = priced.iter().any(|name| figure.contains(name));
        assert!(!priced, "{section} {subject} {figure} {value}");
    }
    let json: Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    for pointer in [
        "/totals/total/cost",
        "/totals/total/carbon_g",
        "/carbon/operational_g",
        "/carbon/embodied_g",
    ] {
        assert_eq!(
            json["planner"].pointer(pointer),
            Some(&Value::Null),
            "{pointer}"
        );
    }
    let html = report.to_html("x");
    assert!(html.contains("give --price and --currency") && html.contains("not known"));
    assert!(!html.contains("EUR"));
}

#[test]
fn the_planners_part_of_the_json_has_exactly_these_keys() {
    let json: Value = serde_json::from_str(&whole().to_json().unwrap()).unwrap();
    let mut found = Vec::new();
    super::super::forms::keys(&json["planner"], "", &mut found);
    found.sort();
    let amount = |of: &str| ["energy_kwh", "cost", "carbon_g"].map(|key| format!("{of}.{key}"));
    let mut expected: Vec<String> = include_str!("planner_keys.txt")
        .lines()
        .map(str::to_owned)
        .collect();
    for of in [
        ".totals.total",
        ".totals.per_1000_requests.all",
        ".totals.per_1000_requests.active",
        ".totals.per_million_output_tokens.all",
        ".totals.per_million_output_tokens.active",
        ".services[].active",
        ".savings[].amount",
    ] {
        expected.extend(amount(of));
    }
    expected.extend(Accounts::NAMES.map(|account| format!(".trend.parts[].accounts_j.{account}")));
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn every_figure_of_the_csv_is_in_the_documentation() {
    let docs = include_str!("../../../../../docs/report.md");
    let all = lines(&whole().to_csv().unwrap());
    assert!(all.len() > 300, "{}", all.len());
    for (section, _, figure) in all.keys() {
        assert!(docs.contains(&format!("`{section}`")), "section {section}");
        assert!(docs.contains(&format!("`{figure}`")), "{section} {figure}");
    }
}

#[test]
fn every_input_has_a_source_and_a_date_and_a_default_is_called_so() {
    let plan = plan();
    let input = |name: &str| {
        plan.inputs
            .iter()
            .find(|input| input.name.contains(name))
            .unwrap()
    };
    assert!(input("usage effectiveness").source.starts_with("default"));
    let grid = input("grid carbon intensity");
    assert!(
        grid.source.contains("Germany") && grid.source.contains("Ember"),
        "{}",
        grid.source
    );
    assert_eq!(grid.date.as_deref(), Some("2023"));
    let price = input("price");
    assert_eq!(
        (price.source.as_str(), price.unit.as_str()),
        ("given", "EUR/kWh")
    );
    assert_eq!(
        price.date.as_deref().map(str::len),
        Some("2026-11-23".len())
    );
    assert!(
        input("market-based").source.contains("unknown") && input("market-based").value.is_none()
    );
}

/// Names of the tags in order, ends with a slash.
fn tags(html: &str) -> Vec<&str> {
    let tags = html.split('<').skip(1);
    tags.map(|tag| {
        let end = tag.find(|character: char| character.is_whitespace() || character == '>');
        &tag[..end.unwrap()]
    })
    .collect()
}

fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    let attribute = format!(" {attribute}=\"");
    let found = html.split(attribute.as_str()).skip(1);
    found.map(|rest| rest.split_once('"').unwrap().0).collect()
}

#[test]
fn the_page_is_one_file_that_fetches_nothing_and_reads_well_aloud() {
    let html = whole().to_html("Energy report: a.pj");
    assert!(html.len() < 1_000_000, "{}", html.len());
    for fetched in [
        "http:", "https:", "//", "src=", "url(", "@import", "<link", "<script", "<iframe", "srcset",
    ] {
        assert!(!html.contains(fetched), "{fetched}");
    }
    let mut open = Vec::new();
    for tag in tags(&html) {
        match tag.strip_prefix('/') {
            _ if ["!DOCTYPE", "meta", "br"].contains(&tag) => {}
            Some(end) => assert_eq!(open.pop(), Some(end)),
            None => open.push(tag),
        }
    }
    assert_eq!(open, Vec::<&str>::new());
    let count = |tag: &str| tags(&html).iter().filter(|found| **found == tag).count();
    assert_eq!(count("h1"), 1);
    assert_eq!(count("svg"), 5);
    assert_eq!(count("desc"), count("svg"));
    assert_eq!(count("title"), count("svg") + 1, "the page's own");
    assert!(!html.contains("<title></title>"));
    assert_eq!(
        values(&html, "role")
            .iter()
            .filter(|role| **role == "img")
            .count(),
        count("svg")
    );
    assert_eq!(values(&html, "scope").len(), count("th"));
    assert_eq!(count("caption"), count("table"));
    let ids = values(&html, "id");
    for (number, id) in ids.iter().enumerate() {
        assert!(!ids[..number].contains(id), "{id} twice");
    }
    for named in values(&html, "aria-labelledby")
        .iter()
        .flat_map(|named| named.split(' '))
    {
        assert!(ids.contains(&named), "{named}");
    }
    for link in values(&html, "href") {
        assert!(ids.contains(&link.trim_start_matches('#')), "{link}");
    }
    for media in ["prefers-color-scheme: dark", "@media print"] {
        assert!(html.contains(media), "{media}");
    }
    let first_screen = html.find("id=\"answers\"").unwrap();
    assert!(first_screen < html.find("id=\"savings\"").unwrap());
    assert!(html.contains("A rebound") && html.contains("Simulated"));
}

#[test]
fn the_page_stays_small_however_many_services_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    ten_minutes(&file, Some);
    let writer = Connection::open(&file).unwrap();
    let many =
        "WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more WHERE n < 2000)
        INSERT INTO services SELECT n, printf('%0128d', n), printf('%0128d', n) FROM more";
    writer.execute_batch(many).unwrap();
    drop(writer);
    let report = read(&file, FullEnergy::default(), &inputs()).unwrap();
    let html = report.to_html("x");
    assert!(html.len() < 1_000_000, "{}", html.len());
    assert!(html.contains("1,901 more rows are in the report's CSV and JSON"));
    let csv = report.to_csv().unwrap();
    assert_eq!(
        line(&csv, "services", &format!("{:0128}", 2_000), "requests"),
        Some(0.0)
    );
}

#[test]
fn the_same_recording_gives_the_same_page() {
    assert_eq!(whole().to_html("x"), whole().to_html("x"));
}

#[test]
fn no_name_becomes_markup_or_a_formula() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    ten_minutes(&file, Some);
    let writer = Connection::open(&file).unwrap();
    writer
        .execute(
            "UPDATE services SET name = ?1, model = '=cmd()'",
            ["=<img src=x>|a"],
        )
        .unwrap();
    drop(writer);
    let report = read(&file, FullEnergy::default(), &inputs()).unwrap();
    let html = report.to_html("<b>");
    assert!(
        html.contains("=&lt;img src=x&gt;|a")
            && !html.contains("<img")
            && html.contains("<h1>&lt;b&gt;")
    );
    let markdown = report.to_markdown("x");
    assert!(markdown.contains("=&lt;img src=x>\\|a"), "{markdown}");
    let csv = report.to_csv().unwrap();
    assert!(csv.contains("'=<img src=x>|a") && csv.contains("'=cmd()") && !csv.contains(",=<img"));
    let columns = |line: &str| line.replace("\\|", "").matches('|').count();
    let lines: Vec<&str> = markdown.lines().collect();
    for pair in lines
        .windows(2)
        .filter(|pair| pair.iter().all(|line| line.starts_with('|')))
    {
        assert_eq!(columns(pair[0]), columns(pair[1]), "{pair:?}");
    }
}

#[test]
fn a_recording_without_energy_says_so_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pj");
    let mut recording = Recording::create(&file, "run", false).unwrap();
    recording.service(ServiceId(0), "nginx", None).unwrap();
    let mut plain = request(0.0);
    (plain.gpu, plain.cpu, plain.errors) = (None, None, None);
    recording.book(&Booked::Request(plain)).unwrap();
    recording.close().unwrap();
    let report = read(&file, FullEnergy::default(), &inputs()).unwrap();
    assert_eq!(report.planner, None);
    for form in [report.to_html("x"), report.to_markdown("x")] {
        assert!(
            form.contains("No meter's energy is in this recording") && form.contains("nginx"),
            "{form}"
        );
    }
    assert_eq!(
        line(&report.to_csv().unwrap(), "services", "nginx", "requests"),
        Some(1.0)
    );
    assert!(report.to_table().contains("no meter"));
}
