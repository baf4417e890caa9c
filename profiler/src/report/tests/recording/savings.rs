//! What could be saved, of what was measured.

use super::*;

#[test]
fn savings_are_what_was_measured_and_the_biggest_come_first() {
    let plan = plan();
    let savings: Vec<(&str, f64)> = plan
        .savings
        .iter()
        .map(|saving| {
            (
                saving.name.as_str(),
                saving.amount.energy_kwh.unwrap() * 3.6e6,
            )
        })
        .collect();
    let names: Vec<&str> = savings.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["quiet_gpus", "small_batches", "parked_models"]);
    // GPU-0 for 120 s and GPU-1 for 600 s: 70 W idle, 30 W parked.
    near(Some(savings[0].1), 70.0 * 720.0);
    // 4,500 tokens at 300 W for 25 a second, where 360 W made 400 a second.
    near(Some(savings[1].1), 4_500.0 * (12.0 - 0.9));
    near(Some(savings[2].1), 30.0 * 720.0);
    near(plan.savings[0].amount.cost, 70.0 * 720.0 / 3.6e6 * 0.2);

    let never_quiet = |booked: Booked| match booked {
        Booked::Interval(mut interval) if interval.meter != MeterId(2) => {
            let all = interval.accounts.total();
            interval.accounts = Accounts {
                requests: all,
                ..Accounts::default()
            };
            Some(Booked::Interval(interval))
        }
        Booked::Request(request) if request.request.start >= at(EIGHT) => {
            Some(Booked::Request(request))
        }
        Booked::Request(_) => None,
        other => Some(other),
    };
    let report = report_of(never_quiet, FullEnergy::default(), &inputs());
    let names: Vec<String> = report
        .planner
        .unwrap()
        .savings
        .into_iter()
        .map(|saving| saving.name)
        .collect();
    assert_eq!(names, ["waiting_gpus"], "none is invented");
}

#[test]
fn aborted_requests_are_a_saving_by_their_own_energy() {
    let abort = |booked: Booked| match booked {
        Booked::Request(mut request) if request.request.start < at(EIGHT) => {
            request.request.end = request.request.end.map(|end| End {
                outcome: Outcome::Aborted,
                ..end
            });
            Some(Booked::Request(request))
        }
        other => Some(other),
    };
    let plan = plan_of(abort);
    assert_eq!(plan.services[0].aborted_j, Some(19_800.0));
    assert!(
        plan.savings
            .iter()
            .all(|saving| saving.name != "aborted_requests"),
        "three are bigger"
    );
}

#[test]
fn a_gpu_that_another_program_uses_is_not_idle_for_nothing() {
    let training = |booked: Booked| match booked {
        Booked::Interval(mut interval) if interval.meter == MeterId(1) => {
            interval.accounts.other = joules(200);
            interval.energy = interval.accounts.total();
            Some(Booked::Interval(interval))
        }
        other => Some(other),
    };
    let plan = plan_of(training);
    let mut quiet = plan
        .savings
        .iter()
        .filter(|saving| saving.name == "quiet_gpus");
    near(
        quiet.next().unwrap().amount.energy_kwh,
        70.0 * 120.0 / 3.6e6,
    );
}

#[test]
fn tokens_that_are_not_known_give_no_figure_per_token() {
    let silent = |booked: Booked| match booked {
        Booked::Request(mut request) if request.request.start < at(EIGHT) => {
            request.request.streamed = false;
            request.request.chunks = 0;
            Some(Booked::Request(request))
        }
        other => Some(other),
    };
    let plan = plan_of(silent);
    assert_eq!(plan.requests.output_tokens, None);
    assert_eq!(plan.totals.per_million_output_tokens, Default::default());
    assert!(
        plan.load_curve
            .iter()
            .all(|point| point.j_per_output_token.is_none())
    );
    assert!(
        plan.savings
            .iter()
            .all(|saving| saving.name != "small_batches")
    );
}
