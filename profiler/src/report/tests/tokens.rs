//! Tokens, and joules per token.

use super::*;

#[test]
fn joules_per_token_are_of_the_requests_whose_tokens_are_known() {
    let mut whole = request(90.0);
    whole.request.streamed = false;
    whole.request.chunks = 0;
    let service = only_service(&with([request(10.0), whole]));
    assert_eq!(service.energy_j.total, Some(100.0));
    assert_eq!(service.j_per_output_token, Some(0.1));
    assert_eq!(service.ttft_s.p50, Some(0.25));
}

/// What the engine counted in these tenths of a second.
fn counted(from: u64, to: u64, input: u64, output: u64) -> TokenDelta {
    TokenDelta {
        service: ServiceId(0),
        from: Timestamp(from * SECOND / 10),
        to: Timestamp(to * SECOND / 10),
        input: Some(input),
        output: Some(output),
    }
}

#[test]
fn the_engines_own_count_is_taken_where_it_covers_the_requests() {
    let plain = || {
        let mut plain = request(90.0);
        plain.request.streamed = false;
        plain.request.chunks = 0;
        plain
    };
    let requests = || vec![request(10.0), plain()];
    // The requests last from 1 s to 3 s.
    let whole = [
        counted(5, 5, 0, 0),
        counted(5, 15, 60, 0),
        counted(15, 31, 0, 140),
    ];
    let before = only_service(&{
        let mut summary = summary();
        whole.iter().for_each(|delta| summary.add_tokens(delta));
        for request in requests() {
            summary.add(&Booked::Request(request));
        }
        summary
    });
    let after = only_service(&{
        let mut summary = summary();
        summary.add_tokens(&whole[0]);
        for request in requests() {
            summary.add(&Booked::Request(request));
        }
        whole[1..]
            .iter()
            .for_each(|delta| summary.add_tokens(delta));
        summary
    });
    assert_eq!(before, after, "requests and counts come in any order");
    let Tokens {
        input,
        output,
        source,
        by_source,
        ..
    } = before.tokens;
    let sources: Vec<&str> = by_source.keys().map(String::as_str).collect();
    assert_eq!(sources, ["server_metrics"], "nothing is counted twice");
    assert_eq!((input, output), (Some(60), Some(140)));
    assert_eq!(source.as_deref(), Some("server_metrics"));
    assert_eq!(before.j_per_output_token, Some(100.0 / 140.0));
    assert_eq!(before.j_per_token, Some(0.5));

    for (why, partial) in [
        (
            "first read late",
            vec![counted(11, 11, 0, 0), counted(11, 31, 60, 140)],
        ),
        (
            "last read early",
            vec![counted(5, 5, 0, 0), counted(5, 29, 60, 140)],
        ),
        (
            "a restart in between",
            vec![
                counted(5, 5, 0, 0),
                counted(16, 16, 0, 0),
                counted(16, 31, 1, 1),
            ],
        ),
        ("no read", vec![]),
    ] {
        let mut summary = summary();
        partial.iter().for_each(|delta| summary.add_tokens(delta));
        for request in requests() {
            summary.add(&Booked::Request(request));
        }
        let service = only_service(&summary);
        assert_eq!(service.tokens.source.as_deref(), Some("chunks"), "{why}");
        assert_eq!(service.tokens.output, Some(100), "{why}");
        assert_eq!(service.tokens.input, None, "{why}");
        assert_eq!(service.j_per_output_token, Some(0.1), "{why}");
        assert_eq!(service.j_per_token, None, "{why}");
    }

    // One request in a hundred may have begun before the first read.
    let mut summary = summary();
    summary.add_tokens(&counted(5, 31, 6_000, 14_000));
    let mut early = request(1.0);
    early.request.start = Timestamp(SECOND / 3);
    for request in std::iter::repeat_n(request(1.0), 99).chain([early]) {
        summary.add(&Booked::Request(request));
    }
    let service = only_service(&summary);
    assert_eq!(service.tokens.source.as_deref(), Some("server_metrics"));
    assert_eq!(service.j_per_token, Some(100.0 / 20_000.0));

    // Nothing streamed: what was counted is shown, and no energy divided by it.
    let mut summary = with([plain()]);
    summary.add_tokens(&counted(20, 31, 60, 140));
    let service = only_service(&summary);
    assert_eq!(service.tokens.output, Some(140));
    assert_eq!(service.j_per_output_token, None);
    assert_eq!(service.j_per_token, None);
}

#[test]
fn what_servers_say_of_single_requests_and_chunks_are_summed_and_kept_apart() {
    let with_usage = |input, output| {
        let mut booked = request(10.0);
        booked.tokens = Some(Usage { input, output }.into());
        booked
    };
    // All known: J per token too.
    let all = [
        with_usage(Some(30), Some(110)),
        with_usage(Some(40), Some(120)),
    ];
    let service = only_service(&with(all));
    assert_eq!(service.tokens.input, Some(70));
    assert_eq!(service.tokens.output, Some(230));
    assert_eq!(service.tokens.source.as_deref(), Some("usage"));
    assert_eq!(service.tokens.calibrated, None);
    assert_eq!(service.j_per_output_token, Some(20.0 / 230.0));
    assert_eq!(service.j_per_token, Some(20.0 / 300.0));

    // A client that left early got no counts; the embedding has no output; one did not stream
    // and said nothing.
    let mut embedding = with_usage(Some(8), None);
    embedding.request.streamed = false;
    embedding.request.chunks = 0;
    let mut silent = request(50.0);
    silent.request.streamed = false;
    silent.request.chunks = 0;
    let mixed = [
        with_usage(Some(30), Some(110)),
        request(10.0),
        embedding,
        silent,
    ];
    let service = only_service(&with(mixed));
    let tokens = &service.tokens;
    assert_eq!(tokens.input, None, "one prompt is not known");
    assert_eq!(tokens.output, Some(210));
    assert_eq!(tokens.source.as_deref(), Some("chunks"));
    assert_eq!(tokens.calibrated, Some(false));
    let part = |requests, input, output| SourceTokens {
        requests,
        input,
        output,
    };
    assert_eq!(tokens.by_source["usage"], part(2, Some(38), Some(110)));
    assert_eq!(tokens.by_source["chunks"], part(1, None, Some(100)));
    assert_eq!(service.j_per_output_token, Some(20.0 / 210.0));
    assert_eq!(
        service.j_per_token,
        Some(20.0 / 148.0),
        "where both are known"
    );
    assert!(service.energy_j.total == Some(80.0));
}
