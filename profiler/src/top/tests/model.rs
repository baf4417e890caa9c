//! What goes in comes out, and memory stays where it is.

use super::*;
use crate::top::figures::{Span, Window};
use crate::top::requests::{MOST, Order};

fn whole() -> Span {
    Span {
        seconds: 1.0,
        from: 0,
        to: 10_000,
    }
}

#[test]
fn every_joule_and_every_request_that_was_fed_is_in_the_sums() {
    let model = node();
    let span = whole();
    let energy: u64 = model
        .meters
        .values()
        .flat_map(|meter| meter.points.between(span.from, span.to))
        .flat_map(|point| point.accounts)
        .sum();
    // 45 busy seconds and 15 others; the second GPU; the package.
    let fed = joules(45.0 * 350.0 + 15.0 * 220.0 + 60.0 * 60.0 + 60.0 * 20.0);
    assert_eq!(energy, fed.0);
    assert_eq!(model.totals.energy, fed);
    assert_eq!(model.totals.requests, 300);
    let chat = model.services.get(&CHAT).unwrap();
    let points = || chat.points.between(span.from, span.to);
    let energy: u64 = points().flat_map(|point| point.energy).sum();
    assert_eq!(energy, joules(45.0 * 255.0 + 15.0 * 125.0 + 60.0 * 2.1).0);
    assert_eq!(
        points().map(|point| point.served.requests).sum::<u64>(),
        240
    );
    let nanos =
        |value: fn(&crate::top::model::ServicePoint) -> u64| points().map(value).sum::<u64>();
    assert_eq!(nanos(|point| point.cpu), 60 * 400_000_000);
    assert_eq!(nanos(|point| point.run_queue), 60 * 12_000_000);
    assert_eq!(nanos(|point| point.starved), 60 * 80_000_000);
    assert_eq!(nanos(|point| point.engine_output), 60 * 200);
}

#[test]
fn figures_are_sums_over_sums_of_the_window_that_is_complete() {
    let model = node();
    let span = model.span(Window::TenSeconds).unwrap();
    assert_eq!(
        span,
        Span {
            from: 1_050,
            to: 1_060,
            seconds: 10.0
        }
    );
    let chat = model.service(CHAT, Some(span)).unwrap();
    // Half of these seconds are busy.
    let close = |seen: Option<f64>, expected: f64| {
        let seen = seen.unwrap();
        assert!((seen / expected - 1.0).abs() < 1e-9, "{seen} {expected}");
    };
    close(chat.watts, 255.0 / 2.0 + 125.0 / 2.0 + 2.1);
    close(chat.requests, 4.0);
    close(chat.output, 200.0);
    close(chat.cpu, 0.4);
    close(chat.run_queue, 0.012);
    close(chat.starved, 0.08);
    let active: f64 = (1_050..1_060)
        .flat_map(|second| {
            (0..4).map(move |number| 60.0 + f64::from((second * 11 + number * 5) % 30))
        })
        .sum();
    close(chat.per_request, active / 40.0);
    close(chat.per_output, active / 40.0 / 50.0);
    close(chat.per_token, active / 40.0 / 200.0);
    assert_eq!(chat.class, Some(Class::A));
    let all = model.node(Some(span));
    close(all.power(), 350.0 / 2.0 + 220.0 / 2.0 + 80.0);
    close(all.requests, 5.0);
    close(all.per_request, (active + 135.0) / 50.0);
}

#[test]
fn the_first_second_counts_as_far_as_it_was_seen() {
    let mut model = Model::new(false);
    model.describe_meter(GPU, &meter(Component::Gpu, "GPU-1", Source::Counter));
    model.describe_service(CHAT, "chat", None);
    model.set_in_flight(CHAT, 0);
    model.advance(at(7.2));
    assert_eq!(model.span(Window::TenSeconds), None);
    model.add(&interval(
        GPU,
        7.3,
        8.1,
        [80.0, 8.0, 0.0],
        vec![share(CHAT, 40.0, 0.0)],
    ));
    for number in 0..4 {
        model.add(&Booked::Request(request(number, CHAT, 7.0, 7.9, 10.0)));
    }
    model.advance(at(8.2));
    let span = model.span(Window::TenSeconds).unwrap();
    let chat = model.service(CHAT, Some(span)).unwrap();
    assert!((chat.requests.unwrap() - 4.0 / 0.8).abs() < 1e-6);
    assert!((chat.watts.unwrap() - 50.0).abs() < 1e-3);
    assert!((model.node(Some(span)).power().unwrap() - 100.0).abs() < 1e-3);
}

#[test]
fn what_is_not_known_is_absent_and_what_is_known_to_be_none_is_zero() {
    let model = node();
    let span = model.span(Window::TenSeconds);
    let embed = model.service(EMBED, span).unwrap();
    assert_eq!(embed.output, None, "its requests say nothing of tokens");
    assert_eq!(embed.per_output, None);
    assert_eq!(embed.first_p50, None);
    assert_eq!(embed.starved, None, "nobody told");
    let quiet = model.service(QUIET, span).unwrap();
    assert_eq!(quiet.requests, Some(0.0));
    assert_eq!(quiet.watts, Some(0.0));
    assert_eq!(
        (quiet.per_request, quiet.class, quiet.p50),
        (None, None, None)
    );
    let devices = model.devices(span);
    assert_eq!(devices[1].limit, None);
    let nothing = Model::new(false);
    assert_eq!(nothing.span(Window::TenSeconds), None);
    assert_eq!(nothing.node(None).power(), None);
}

#[test]
fn what_is_booked_late_counts_when_it_happened_and_the_window_waits_for_it() {
    let mut model = node();
    let before = model.span(Window::TwoSeconds).unwrap();
    // The GPU waits for somebody's first data; the package goes on.
    model.add(&interval(
        PACKAGE,
        1_060.0,
        1_063.0,
        [60.0, 45.0, 0.0],
        vec![],
    ));
    model.add(&interval(
        SECOND_GPU,
        1_060.0,
        1_063.0,
        [180.0, 174.0, 0.0],
        vec![],
    ));
    model.advance(at(1_063.0));
    assert_eq!(model.span(Window::TwoSeconds), Some(before));
    model.add(&interval(
        GPU,
        1_060.0,
        1_063.0,
        [1_050.0, 180.0, 60.0],
        vec![],
    ));
    model.add(&Booked::Request(request(9, CHAT, 1_061.0, 1_062.5, 70.0)));
    model.advance(at(1_063.1));
    let span = model.span(Window::TwoSeconds).unwrap();
    assert_eq!(
        span,
        Span {
            from: 1_061,
            to: 1_063,
            seconds: 2.0
        }
    );
    assert_eq!(model.node(Some(span)).requests, Some(0.5));
    assert_eq!(model.node(Some(span)).watts[0], Some(410.0));
}

#[test]
fn a_meter_that_has_failed_does_not_stop_the_display_and_is_told() {
    let mut model = node();
    for second in 1_060..1_080 {
        let from = f64::from(second);
        model.add(&interval(GPU, from, from + 1.0, [300.0, 60.0, 0.0], vec![]));
        model.advance(at(from + 1.0));
    }
    let span = model.span(Window::TwoSeconds).unwrap();
    assert_eq!(span.to, 1_080);
    let all = model.node(Some(span));
    assert_eq!(
        (all.watts[0], all.watts[1], all.silent),
        (Some(300.0), None, 2)
    );
    assert_eq!(model.devices(Some(span))[1].watts, None);
}

#[test]
fn the_slowest_and_the_costliest_are_those_of_all() {
    let model = node();
    let slowest = model.requests(CHAT, Order::Slowest);
    let costliest = model.requests(CHAT, Order::Costliest);
    assert_eq!((slowest.len(), costliest.len()), (MOST, MOST));
    assert!(slowest.is_sorted_by(|one, other| one.duration >= other.duration));
    assert!(costliest.is_sorted_by(|one, other| one.energy >= other.energy));
    assert_eq!(costliest[0].energy.unwrap().0.div_ceil(1_000_000), 89);
    assert!(slowest[0].duration.abs_diff(4_900_000_000) < 1_000);
    // Without a bound below itself its energy is no figure.
    let mut model = node();
    let mut vague = request(1, CHAT, 1_059.0, 1_060.5, 1e6);
    vague.errors = None;
    model.add(&Booked::Request(vague));
    assert_eq!(
        model.requests(CHAT, Order::Costliest)[0].id,
        costliest[0].id
    );
}

#[test]
fn five_minutes_later_a_request_is_no_longer_among_the_slowest() {
    let mut model = node();
    model.add(&Booked::Request(request(1, CHAT, 1_000.0, 1_059.0, 70.0)));
    assert_eq!(model.requests(CHAT, Order::Slowest)[0].id, RequestId(1));
    model.advance(at(1_059.0 + 301.0));
    let left = model.requests(CHAT, Order::Slowest);
    assert!(left.iter().all(|shown| shown.id != RequestId(1)));
    for minute in 0..20 {
        let end = 1_400.0 + 60.0 * f64::from(minute);
        model.add(&Booked::Request(request(2, CHAT, end - 1.0, end, 70.0)));
    }
    model.advance(at(2_600.0));
    assert_eq!(model.requests(CHAT, Order::Slowest).len(), 5);
}

#[test]
fn memory_is_bounded_under_requests_and_services_that_come_and_go() {
    let mut model = Model::new(false);
    model.describe_meter(GPU, &meter(Component::Gpu, "GPU-1", Source::Counter));
    model.advance(at(0.0));
    let mut most = 0;
    let mut fed = Microjoules::ZERO;
    for number in 0..100_000_u32 {
        // A hundred a second, of ten services at a time; each lives for ten seconds.
        let now = f64::from(number) * 0.01;
        let life = number / 1_000;
        let id = ServiceId(life * 10 + number % 10);
        if number % 1_000 < 10 {
            model.describe_service(id, "comes-and-goes", None);
            if let Some(gone) = id.0.checked_sub(20) {
                model.forget_service(ServiceId(gone));
            }
        }
        let took = 0.01 + f64::from(number % 977) * 0.01;
        let request = request(u64::from(number), id, now, now + took, 1.0 + took);
        fed += request.active().unwrap();
        model.add(&Booked::Request(request));
        if number % 10 == 0 {
            let shares = vec![share(id, 3.0, 0.0)];
            model.add(&interval(GPU, now, now + 0.1, [10.0, 1.0, 0.0], shares));
        }
        if number % 100 == 0 {
            model.advance(at(now));
            most = most.max(model.held());
        }
    }
    assert_eq!(model.totals.requests, 100_000);
    assert_eq!(model.totals.active, fed, "also of services that have ended");
    assert_eq!(model.totals.energy, joules(100_000.0));
    assert_eq!(model.services.len(), 20);
    // 320 seconds of two rings; at most 20 seconds of 20 services, each with its sizes; requests.
    assert!(most < 20_000, "{most}");
}

#[test]
fn health_checks_and_sessions_are_no_requests() {
    let mut model = node();
    let mut health = request(1, CHAT, 1_059.0, 1_059.1, 1.0);
    health.request.route = Route::Health;
    let mut session = request(2, CHAT, 1_059.0, 1_059.1, 1.0);
    session.request.status = 101;
    model.add(&Booked::Request(health));
    model.add(&Booked::Request(session));
    assert_eq!(model.totals.requests, 300);
}
