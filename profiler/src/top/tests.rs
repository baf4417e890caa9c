//! A model that is always the same, and what is drawn of it.

mod keys;
mod model;
mod view;

use super::model::Model;
use crate::clock::Timestamp;
use crate::ledger::{
    Accounts, Booked, BookedInterval, BookedRequest, Class, Component, CpuTime, End, EngineInfo,
    ErrorRatios, Input, Meter, MeterId, Outcome, Owner, Request, RequestId, Route, ServiceId,
    ServiceShare, Source, TokenCount, TokenDelta, TokenSource,
};
use crate::telemetry::{GpuTelemetry, PowerLimits, Utilization};
use crate::units::{Microjoules, Ratio, Watts};

const CHAT: ServiceId = ServiceId(0);
const EMBED: ServiceId = ServiceId(1);
const QUIET: ServiceId = ServiceId(2);
const GPU: MeterId = MeterId(0);
const SECOND_GPU: MeterId = MeterId(1);
const PACKAGE: MeterId = MeterId(2);

fn at(seconds: f64) -> Timestamp {
    Timestamp((seconds * 1e9) as u64)
}

fn joules(joules: f64) -> Microjoules {
    Microjoules((joules * 1e6) as u64)
}

fn meter(component: Component, device: &str, source: Source) -> Meter {
    Meter {
        component,
        device: device.to_owned(),
        source,
        limit: None,
        tick: 100_000_000,
        stale_after: 1_000_000_000,
        gain_error_ratio: 0.05,
        idle: None,
    }
}

fn share(service: ServiceId, requests: f64, overhead: f64) -> ServiceShare {
    ServiceShare {
        service,
        requests: joules(requests),
        overhead: joules(overhead),
        phases: None,
    }
}

/// An interval; what is left of its energy is unattributed.
fn interval(
    meter: MeterId,
    from: f64,
    to: f64,
    [energy, idle, context]: [f64; 3],
    services: Vec<ServiceShare>,
) -> Booked {
    let sum = |part: fn(&ServiceShare) -> Microjoules| services.iter().map(part).sum();
    let mut accounts = Accounts {
        idle: joules(idle),
        context: joules(context),
        requests: sum(|share| share.requests),
        overhead: sum(|share| share.overhead),
        ..Accounts::default()
    };
    let energy = joules(energy);
    accounts.unattributed = energy - accounts.total();
    Booked::Interval(BookedInterval {
        meter,
        from: at(from),
        to: at(to),
        energy,
        accounts,
        services,
        holders: Some(1),
    })
}

/// A streamed request that ended well.
fn request(id: u64, service: ServiceId, start: f64, end: f64, energy: f64) -> BookedRequest {
    BookedRequest {
        request: Request {
            id: RequestId(id),
            service,
            route: Route::ChatCompletions,
            start: at(start),
            first_data: Some(at(start + 0.1)),
            last_data: Some(at(end)),
            input: Input::Bytes(100),
            chunks: 50,
            streamed: true,
            status: 200,
            end: Some(End {
                at: at(end),
                outcome: Outcome::Done,
            }),
        },
        gpu: Some(joules(energy * 0.99)),
        phases: None,
        cpu: Some(joules(energy * 0.01)),
        dram: None,
        class: Class::A,
        errors: Some(ErrorRatios {
            own: 0.03,
            common: 0.02,
        }),
        tokens: Some(TokenCount {
            source: TokenSource::Usage,
            input: Some(150),
            output: Some(50),
            calibrated: true,
        }),
    }
}

/// Sixty seconds of two GPUs and three services: one busy, one that embeds, one that nobody asks.
fn node() -> Model {
    let mut model = Model::new(true);
    let gpu = |number: u32| format!("GPU-51300000-0000-4000-8000-{number:012}");
    for (id, component, device, source) in [
        (GPU, Component::Gpu, gpu(0), Source::Counter),
        (SECOND_GPU, Component::Gpu, gpu(1), Source::Integrated),
        (PACKAGE, Component::Cpu, "package-0".into(), Source::Model),
    ] {
        model.describe_meter(id, &meter(component, &device, source));
    }
    model.describe_gpu(&gpu(0), "NVIDIA A100-SXM4-80GB (simulated)");
    model.add_telemetry(&GpuTelemetry {
        device: gpu(0),
        limits: PowerLimits {
            enforced: Some(Watts(400.0)),
            ..PowerLimits::default()
        },
        utilization: Some(Utilization {
            gpu: Ratio(0.87),
            memory: Ratio(0.4),
        }),
        ..GpuTelemetry::default()
    });
    model.describe_service(CHAT, "vllm-chat", None);
    model.describe_service(EMBED, "embedder", Some("bge-m3"));
    model.describe_service(QUIET, "nobody-asks", None);
    model.describe_engine(&EngineInfo {
        service: CHAT,
        engine: "vllm",
        counts: crate::ledger::Counts::Step,
        version: Some("0.9.2".into()),
        model: Some("llama-3-70b".into()),
    });
    model.advance(at(999.5));
    for second in 1_000..1_060_u32 {
        let from = f64::from(second);
        let busy = if second % 20 < 15 { 250.0 } else { 120.0 };
        let services = vec![share(CHAT, busy, 5.0), share(EMBED, 12.5, 0.0)];
        model.add(&interval(
            GPU,
            from,
            from + 1.0,
            [busy + 100.0, 60.0, 20.0],
            services,
        ));
        model.add(&interval(
            SECOND_GPU,
            from,
            from + 1.0,
            [60.0, 58.0, 0.0],
            Vec::new(),
        ));
        let host = vec![share(CHAT, 2.0, 0.1), share(EMBED, 1.0, 0.0)];
        model.add(&interval(
            PACKAGE,
            from,
            from + 1.0,
            [20.0, 15.0, 0.0],
            host,
        ));
        for number in 0..4 {
            let id = u64::from(second * 10 + number);
            let end = from + 0.2 * f64::from(number) + 0.05;
            let took = 1.0 + f64::from((second * 7 + number * 13) % 40) / 10.0;
            let energy = 60.0 + f64::from((second * 11 + number * 5) % 30);
            model.add(&Booked::Request(request(id, CHAT, end - took, end, energy)));
        }
        let mut embedding = request(u64::from(second), EMBED, from, from + 0.04, 13.5);
        embedding.request.streamed = false;
        embedding.request.route = Route::Embeddings;
        embedding.request.first_data = None;
        embedding.class = Class::B;
        embedding.tokens = None;
        model.add(&Booked::Request(embedding));
        model.add_tokens(&TokenDelta {
            service: CHAT,
            from: at(from),
            to: at(from + 1.0),
            input: Some(600),
            output: Some(200),
        });
        for (service, nanos) in [(CHAT, 400_000_000), (EMBED, 50_000_000)] {
            model.add_cpu(&CpuTime {
                owner: Owner::Service(service),
                from: at(from),
                to: at(from + 1.0),
                package: 0,
                on_cpu: nanos,
                cycles: None,
            });
        }
        model.add_run_queue(CHAT, 12_000_000);
        model.add_starved(CHAT, 80_000_000);
        model.set_in_flight(CHAT, 11);
        model.set_in_flight(EMBED, 0);
        model.set_in_flight(QUIET, 0);
        model.set_losses(0, 0);
        model.set_residual(0);
        model.advance(at(from + 1.0));
    }
    model.advance(at(1_061.2));
    model
}
