//! The forms of `stat` beside its table: intervals, repeats, separated fields.

use super::*;

/// A run in which one request took so many joules, of a meter with an idle floor.
fn run(joules: u64) -> Report {
    summary_of(joules).report(FullEnergy::default())
}

fn summary_of(joules: u64) -> Summary {
    let mut summary = with([request(joules as f64)]);
    book(&mut summary, joules);
    summary
}

fn book(summary: &mut Summary, joules: u64) {
    summary.set_floor(
        MeterId(0),
        Some(Floor {
            watts: Watts(83.0),
            source: FloorSource::Learned,
        }),
    );
    let accounts = Accounts {
        idle: Microjoules(83_000_000),
        requests: Microjoules(joules * 1_000_000),
        ..Accounts::default()
    };
    let all = share(0, joules * 1_000_000, 0);
    summary.add(&held_by(1, interval(accounts, vec![all])));
}

fn figures(repeats: &Repeats) -> Vec<Value> {
    let json: Value = serde_json::from_str(&repeats.to_json().unwrap()).unwrap();
    json["figures"].as_array().unwrap().clone()
}

fn figure_of(repeats: &Repeats, subject: &str, event: &str) -> Value {
    let all = figures(repeats);
    let mut found = all
        .iter()
        .filter(|one| one["subject"] == subject && one["event"] == event);
    let one = found.next().unwrap_or_else(|| panic!("no {event}"));
    assert!(found.next().is_none(), "{event} twice");
    one.clone()
}

#[test]
fn energy_is_told_gross_and_above_idle_and_without_a_floor_it_is_not_guessed() {
    let table = run(40).to_table();
    for line in [
        "             123.0 J  energy                  # 12.30 W, gross, from counter\n",
        "             40.00 J  energy above idle       # idle 83.00 W, learned\n",
    ] {
        assert!(table.contains(line), "{line}{table}");
    }
    let mut summary = summary();
    summary.set_floor(MeterId(0), None);
    let accounts = Accounts {
        unattributed: Microjoules(5_000_000),
        ..Accounts::default()
    };
    summary.add(&interval(accounts, vec![]));
    let report = summary.report(FullEnergy::default());
    assert_eq!(report.meters[0].energy_j, Some(5.0));
    assert_eq!(report.meters[0].above_idle_j, None);
    let table = report.to_table();
    assert!(table.contains("no idle floor is known"), "{table}");
}

#[test]
fn several_gpus_have_a_sum_which_is_unknown_where_one_of_them_is() {
    let mut summary = summary_of(40);
    summary.describe_meter(MeterId(2), &meter(Component::Gpu, "GPU-2"));
    let unknown = summary.report(FullEnergy::default()).to_table();
    assert!(unknown.contains("all 2 GPUs"), "{unknown}");
    let Booked::Interval(mut other) = interval(Accounts::default(), vec![]) else {
        unreachable!()
    };
    other.meter = MeterId(2);
    other.accounts.idle = Microjoules(7_000_000);
    other.energy = Microjoules(7_000_000);
    summary.add(&Booked::Interval(other));
    let known = summary.report(FullEnergy::default()).to_table();
    let sum = |table: &str| table.split("all 2 GPUs").nth(1).unwrap().to_owned();
    assert!(
        sum(&unknown).contains("<not counted>    energy"),
        "{unknown}"
    );
    assert!(sum(&known).contains("130.0 J  energy "), "{known}");
    assert!(
        sum(&known).contains("40.00 J  energy above idle"),
        "{known}"
    );
}

#[test]
fn nothing_ran_is_not_counted_and_a_meter_that_is_not_there_is_not_supported() {
    let mut idle = summary();
    idle.add(&interval(Accounts::default(), vec![]));
    let table = idle.report(FullEnergy::default()).to_table();
    for line in [
        "     <not counted>    per request\n",
        "     <not counted>    to first token, p50\n",
        "   <not supported>      dram\n",
        "     <not counted>    output tokens\n",
    ] {
        assert!(table.contains(line), "{line}{table}");
    }
}

#[test]
fn intervals_add_up_to_the_whole_and_what_was_known_is_zero_and_not_unknown() {
    let mut summary = summary_of(40);
    summary.set_losses(5, 1);
    let first = summary.cut().report(FullEnergy::default());
    let quiet = summary.cut().report(FullEnergy::default());
    book(&mut summary, 2);
    summary.set_losses(5, 3);
    let last = summary.report(FullEnergy::default());
    let totals = |report: &Report| report.services[0].requests.total;
    assert_eq!([&first, &quiet, &last].map(totals), [1, 0, 0]);
    assert_eq!(first.meters[0].energy_j, Some(123.0));
    assert_eq!(quiet.meters[0].energy_j, None, "its counter did not move");
    assert_eq!(quiet.services[0].service, "vllm");
    assert_eq!(last.meters[0].energy_j, Some(85.0));
    assert_eq!(last.meters[0].idle_w, Some(83.0));
    let lost = |report: &Report| (report.losses.events, report.losses.requests);
    assert_eq!(lost(&first), (Some(5), Some(1)));
    assert_eq!(lost(&quiet), (Some(0), Some(0)));
    assert_eq!(lost(&last), (Some(0), Some(2)));
}

#[test]
fn an_interval_has_its_time_before_each_of_its_main_figures() {
    let text = run(40).to_interval(1.5);
    assert!(
        text.lines().all(|line| line.starts_with("     1.500000 ")),
        "{text}"
    );
    let line =
        "     1.500000              40.00 J    GPU-1, energy above idle  # idle 83.00 W, learned\n";
    assert!(text.contains(line), "{text}");
    assert!(!text.contains("migrations"), "{text}");
    let json: Value = serde_json::from_str(&run(40).to_interval_json(1.5).unwrap()).unwrap();
    assert_eq!((&json["time_s"], &json["schema"]), (&json!(1.5), &json!(1)));
}

#[test]
fn repeats_are_means_with_students_interval() {
    let repeats = Repeats::new([10, 12, 14].map(run).into());
    let each = figure_of(&repeats, "vllm", "j_per_request");
    assert_eq!(each["mean"], 12.0);
    assert_eq!(each["values"], json!([10.0, 12.0, 14.0]));
    // t of 2 degrees of freedom at 95 % is 4.303; the deviation is 2.
    let half = each["half_width"].as_f64().unwrap();
    assert!((half - 4.302_65 * 2.0 / 3f64.sqrt()).abs() < 1e-4, "{half}");
    assert_eq!(each["noisy"], true);
    let requests = figure_of(&repeats, "vllm", "requests");
    assert_eq!(
        (&requests["half_width"], &requests["noisy"]),
        (&json!(0.0), &json!(false))
    );
    let table = repeats.to_table();
    let line = "             12.00 J  per request             ± 4.968      (41.4 %) noisy\n";
    assert!(table.contains(line), "{table}");
    assert!(table.contains("Mean of 3 runs of 10.00 s"), "{table}");
    let lines = repeats.to_separated(",".parse().unwrap()).unwrap();
    let line = "vllm,12,J,j_per_request,41.40%,10000000000,100.00,,\n";
    assert!(lines.contains(line), "{lines}");
}

#[test]
fn noise_is_named_with_what_to_do_and_calm_runs_have_none() {
    let noise = Repeats::new([10, 12, 14].map(run).into()).noise().unwrap();
    assert!(
        noise.starts_with("noisy, beyond ± 5.0 % of the mean: "),
        "{noise}"
    );
    assert!(noise.contains("per request of vllm (± 41.4 %)"), "{noise}");
    // 16.7 % of deviation: t · 16.7 % ÷ √n is 5 % at 46.
    assert!(noise.contains("(-r 46 would do"), "{noise}");
    assert_eq!(Repeats::new([100, 100, 101].map(run).into()).noise(), None);
    let wild = Repeats::new([1, 1_000].map(run).into()).noise().unwrap();
    assert!(wild.contains("make each run longer"), "{wild}");
    assert_eq!(
        Repeats::new(vec![run(1)]).noise(),
        None,
        "one run has no interval"
    );
}

#[test]
fn what_a_run_leaves_out_is_zero_where_that_is_meant_and_else_unknown() {
    let mut failed = request(10.0);
    failed.request.status = 500;
    let mut aborted = request(10.0);
    if let Some(end) = &mut aborted.request.end {
        end.outcome = Outcome::Aborted;
    }
    let other = with([failed, aborted]).report(FullEnergy::default());
    let repeats = Repeats::new(vec![run(10), other]);
    for (event, values) in [
        ("requests_5xx", json!([0.0, 1.0])),
        ("requests_2xx", json!([1.0, 1.0])),
        ("requests_aborted", json!([0.0, 1.0])),
    ] {
        assert_eq!(
            figure_of(&repeats, "vllm", event)["values"],
            values,
            "{event}"
        );
    }
    // The other run's meter told nothing.
    for event in ["meter_energy", "account_idle"] {
        let figure = figure_of(&repeats, "GPU-1", event);
        assert_eq!(figure["values"][1], Value::Null, "{event}");
        assert_eq!(figure["half_width"], Value::Null, "{event}");
    }
    let table = repeats.to_table();
    assert!(
        table.contains("83.00 J    idle                   in 1 of 2 runs"),
        "{table}"
    );
}

#[test]
fn separated_lines_hold_every_figure_of_the_table_once() {
    let lines = run(40).to_separated(";".parse().unwrap(), None).unwrap();
    for line in [
        "vllm;1;;requests;10000000000;100.00;0.1;/s\n",
        "vllm;1;;requests_2xx;10000000000;100.00;;\n",
        "vllm;40;J;j_per_request_p95;10000000000;100.00;;\n",
        "vllm;<not supported>;J;energy_dram;0;100.00;;\n",
        "GPU-1;123;J;meter_energy;10000000000;100.00;12.3;W\n",
        "package-0;<not counted>;J;meter_energy;0;0.00;;\n",
        "ledger;0;µJ;ledger_residual;10000000000;100.00;;\n",
    ] {
        assert!(lines.contains(line), "{line}{lines}");
    }
    let mut names: Vec<(&str, &str)> = lines
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(';').collect();
            assert_eq!(fields.len(), 8, "{line}");
            (fields[0], fields[3])
        })
        .collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "an event is told twice");
}
