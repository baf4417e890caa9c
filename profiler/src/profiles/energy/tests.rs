use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

fn names() -> HashMap<ServiceId, String> {
    [
        (ServiceId(1), "vllm".to_owned()),
        (ServiceId(2), "other".to_owned()),
    ]
    .into()
}

fn share(service: u32, requests: u64, overhead: u64, phases: Option<GpuPhases>) -> ServiceShare {
    ServiceShare {
        service: ServiceId(service),
        requests: Microjoules(requests),
        overhead: Microjoules(overhead),
        phases,
    }
}

/// An interval of 100 ms with an idle account of 7 µJ.
fn interval(at: u64, services: Vec<ServiceShare>) -> BookedInterval {
    let sum = |of: fn(&ServiceShare) -> Microjoules| services.iter().map(of).sum();
    let accounts = Accounts {
        idle: Microjoules(7),
        requests: sum(|share| share.requests),
        overhead: sum(|share| share.overhead),
        ..Accounts::default()
    };
    BookedInterval {
        meter: MeterId(0),
        from: Timestamp(at * MS),
        to: Timestamp((at + 100) * MS),
        energy: accounts.total(),
        accounts,
        services,
        holders: None,
    }
}

fn sample(at: u64, stack: &str) -> Sample {
    Sample {
        at: Timestamp(at * MS),
        stack: stack.into(),
    }
}

/// Places intervals, each with the samples of service 1 in it; stacks with their energy.
fn place(
    component: Component,
    intervals: &[(BookedInterval, Option<Vec<Sample>>)],
) -> Vec<(String, u64)> {
    let names = names();
    let mut placer = Placer::new(&names);
    let mut all = Vec::new();
    let mut put = |placed: Placed| {
        all.push((placed.stack.replace(SEPARATOR, ";"), placed.energy.0));
    };
    for (interval, samples) in intervals {
        let of_service = |_| Ok::<_, Infallible>(samples.clone());
        let Ok(()) = placer.interval(component, interval, of_service, &mut put);
    }
    placer.finish(&mut put);
    all
}

fn found(all: &[(String, u64)], stack: &str) -> Option<u64> {
    let energies = all.iter().filter(|(known, _)| known == stack);
    energies
        .map(|(_, energy)| *energy)
        .reduce(|one, other| one + other)
}

#[test]
fn a_gpus_energy_stands_in_what_requests_did_and_accounts_by_name() {
    let phases = GpuPhases {
        prefill: Microjoules(30),
        decode: Microjoules(50),
        wait: Microjoules(5),
    };
    let services = vec![share(1, 100, 0, Some(phases)), share(2, 9, 4, None)];
    let all = place(Component::Gpu, &[(interval(0, services), None)]);
    for (stack, energy) in [
        ("vllm;[GPU prefill]", 30),
        ("vllm;[GPU decode]", 50),
        ("vllm;[GPU wait]", 5),
        ("vllm;[GPU not streamed]", 15),
        ("other;[GPU]", 9),
        ("other;[GPU overhead]", 4),
        ("[idle];[GPU]", 7),
    ] {
        assert_eq!(found(&all, stack), Some(energy), "{stack}: {all:?}");
    }
    assert_eq!(all.len(), 7);
}

#[test]
fn a_cpus_energy_follows_the_samples_of_its_own_interval() {
    let busy = |at| interval(at, vec![share(1, 90, 10, None)]);
    let all = place(
        Component::Cpu,
        &[
            (
                busy(0),
                Some(vec![
                    sample(10, "p\nmain\nhot"),
                    sample(30, "p\nmain\nhot"),
                    sample(60, "p\nmain"),
                ]),
            ),
            (busy(100), Some(vec![sample(150, "p\nmain\ncold")])),
        ],
    );
    assert_eq!(found(&all, "vllm;p;main;hot"), Some(67));
    assert_eq!(found(&all, "vllm;p;main"), Some(33));
    assert_eq!(found(&all, "vllm;p;main;cold"), Some(100));
}

#[test]
fn energy_without_a_sample_waits_for_the_next_one_but_not_for_long() {
    let busy = |at| interval(at, vec![share(1, 100, 0, None)]);
    let none = || Some(Vec::new());
    let soon = place(
        Component::Cpu,
        &[
            (busy(0), none()),
            (busy(100), none()),
            (busy(200), Some(vec![sample(250, "p\nf")])),
        ],
    );
    assert_eq!(found(&soon, "vllm;p;f"), Some(300));
    let late = place(
        Component::Cpu,
        &[
            (busy(0), none()),
            (busy(5_000), Some(vec![sample(5_050, "p\nf")])),
            (busy(5_100), none()),
        ],
    );
    assert_eq!(found(&late, "vllm;p;f"), Some(100));
    assert_eq!(found(&late, "vllm;[CPU, no sample]"), Some(200));
    let untold = place(Component::Cpu, &[(busy(0), None)]);
    assert_eq!(found(&untold, "vllm;[CPU]"), Some(100));
}

proptest! {
    #[test]
    fn all_that_is_placed_is_all_that_was_booked(
        shares in prop::collection::vec((0..9_u64, 0..1_000_000_u64, 0..1_000_u64, 0..6_usize), 1..20),
    ) {
        let mut at = 0;
        let mut booked = 0;
        let mut intervals = Vec::new();
        for (pause, requests, overhead, samples) in shares {
            at += 100 + pause * 500;
            let interval = interval(at, vec![share(1, requests, overhead, None)]);
            booked += interval.energy.0;
            let samples = (0..samples).map(|n| sample(at + n as u64, "p\nf")).collect();
            intervals.push((interval, Some(samples)));
        }
        let all = place(Component::Cpu, &intervals);
        prop_assert_eq!(all.iter().map(|(_, energy)| energy).sum::<u64>(), booked);
    }
}
