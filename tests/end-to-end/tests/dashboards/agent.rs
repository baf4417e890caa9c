//! Agents as Prometheus sees them: the real exporter, fed with booked values by hand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use profiler::activity::{CudaCalls, HardwareCounts};
use profiler::clock::Timestamp;
use profiler::durations::Durations;
use profiler::export::http::{self, Listener};
use profiler::export::{Metrics, NodeTotals, SourceCalls};
use profiler::ledger::*;
use profiler::telemetry::{
    GpuTelemetry, Memory, PowerLimits, ThrottleReason, Traffic, Utilization,
};
use profiler::units::{Celsius, Hertz, Microjoules, Ratio, Watts};
use profiler::waits::{Reason, Waits};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

const TICK: Duration = Duration::from_millis(200);

/// One exporter on a thread of its own; ends when dropped.
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    serving: Arc<AtomicBool>,
    busy: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts one that books load of the services `vllm` and `tgi`.
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Arc::new(AtomicBool::new(true));
        let busy = Arc::new(AtomicBool::new(true));
        let (goes_on, load) = (Arc::clone(&serving), Arc::clone(&busy));
        let thread = thread::spawn(move || {
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let mut metrics = described();
                let exposition = metrics.exposition();
                let feed = async {
                    let mut tick = 0;
                    while goes_on.load(Ordering::Relaxed) {
                        if load.load(Ordering::Relaxed) {
                            tick += 1;
                            book(&mut metrics, tick);
                        }
                        metrics.publish(Timestamp::now(), None);
                        tokio::time::sleep(TICK).await;
                    }
                };
                http::serve(vec![Listener::Tcp(listener)], None, exposition, None, feed).await;
            });
        });
        Self {
            address,
            serving,
            busy,
            thread: Some(thread),
        }
    }

    /// No more load: from here on every counter stands still.
    pub(crate) fn go_quiet(&self) {
        self.busy.store(false, Ordering::Relaxed);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.serving.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn described() -> Metrics {
    let mut metrics = Metrics::new("0.1.0");
    let meters = [
        (Component::Gpu, "GPU-1"),
        (Component::Gpu, "GPU-2"),
        (Component::Cpu, "package-0"),
    ];
    for (id, (component, device)) in (0..).zip(meters) {
        metrics.describe_meter(
            MeterId(id),
            &Meter {
                component,
                device: device.to_owned(),
                source: Source::Counter,
                limit: Some(Watts(400.0)),
                tick: 100_000_000,
                stale_after: 1_000_000_000,
                gain_error_ratio: 0.05,
                idle: None,
            },
        );
    }
    metrics.describe_service(ServiceId(0), "vllm", Some("llama-3-8b"));
    metrics.describe_service(ServiceId(1), "tgi", None);
    for device in ["GPU-1", "GPU-2"] {
        metrics.record_gpu(device, "NVIDIA A100-SXM4-80GB", "550.54.15");
    }
    metrics.record_probe("sched_switch", "tp_btf", true);
    metrics.record_dropped("ring_full", 0);
    metrics
}

/// One tick of load: two services on two GPUs, requests of every kind.
fn book(metrics: &mut Metrics, tick: u64) {
    let now = Timestamp::now();
    for meter in 0..3 {
        let accounts = Accounts {
            idle: Microjoules(16_600_000),
            context: Microjoules(5_200_000),
            requests: Microjoules(40_000_000),
            overhead: Microjoules(1_000_000),
            other: Microjoules(300_000),
            agent: Microjoules(if meter == 2 { 20_000 } else { 0 }),
            unattributed: Microjoules(100_000),
            gap: Microjoules(0),
        };
        let share = |service| ServiceShare {
            service: ServiceId(service),
            requests: Microjoules(20_000_000),
            overhead: Microjoules(500_000),
            phases: None,
        };
        metrics.book(&Booked::Interval(BookedInterval {
            meter: MeterId(meter),
            from: now.minus(TICK),
            to: now,
            energy: accounts.total(),
            accounts,
            services: vec![share(0), share(1)],
            holders: Some(2),
        }));
    }
    for service in 0..2 {
        for (status, outcome, route) in [
            (200, Outcome::Done, Route::ChatCompletions),
            (200, Outcome::Done, Route::Completions),
            (200, Outcome::Aborted, Route::ChatCompletions),
            (0, Outcome::Incomplete, Route::ChatCompletions),
            (400, Outcome::Done, Route::ChatCompletions),
            (503, Outcome::Done, Route::ChatCompletions),
            (200, Outcome::Done, Route::Health),
        ] {
            metrics.book(&Booked::Request(request(
                service, tick, status, outcome, route, now,
            )));
        }
        metrics.record_cpu(&CpuTime {
            owner: Owner::Service(ServiceId(service)),
            from: now.minus(TICK),
            to: now,
            package: 0,
            on_cpu: 100_000_000,
            cycles: None,
        });
        host(metrics, ServiceId(service));
    }
    for device in ["GPU-1", "GPU-2"] {
        metrics.record_gpu_power(device, Some(Watts(285.0)));
        metrics.record_gpu_telemetry(board(device, now, tick));
        metrics.record_gpu_errors(device, [(31, 0)].into());
        let busy = [(ServiceId(0), Ratio(0.6)), (ServiceId(1), Ratio(0.3))];
        metrics.record_gpu_utilization(device, &busy.into(), now);
        metrics.record_gpu_idle(
            device,
            Some(Floor {
                watts: Watts(83.0),
                source: FloorSource::Learned,
            }),
        );
    }
    metrics.record_node(
        "psu",
        NodeTotals {
            at: now,
            power: Some(Watts(900.0)),
            stale_after: Duration::from_secs(10),
            energy: Microjoules(tick * 180_000_000),
            gap: Duration::ZERO,
            gain_error_ratio: 0.02,
        },
    );
    metrics.record_source("nvml", true, Some(now));
    metrics.record_source_calls(
        "nvml",
        SourceCalls {
            count: tick,
            errors: 0,
            busy: Duration::from_micros(200 * tick),
            p50: Some(Duration::from_micros(150)),
            p99: Some(Duration::from_millis(2)),
        },
    );
    metrics.record_probe_cost("sched_switch", tick * 1_000, tick * 1_000_000);
}

/// What a service's threads and calls did in a tick.
fn host(metrics: &mut Metrics, service: ServiceId) {
    metrics.record_syscalls(service, "read", 1_000);
    let mut timed = Durations {
        nanos: 40_000_000,
        ..Durations::default()
    };
    timed.counts[6] = 1_000;
    metrics.record_syscall_durations(service, "read", &timed);
    metrics.record_page_faults(service, "minor", 500);
    let mut waits = Waits::default();
    waits.run_queue = 3_000_000;
    (waits.voluntary, waits.involuntary, waits.migrations) = (300, 20, 5);
    waits.histogram[13] = 300;
    waits.disk_histogram[20] = 4;
    waits.add_off_cpu(Reason::Disk, 6_000_000);
    waits.add_off_cpu(Reason::Poll, 150_000_000);
    metrics.record_waits(service, &waits);
    metrics.record_starved(service, "run_queue", 2_000_000);
    metrics.record_starved(service, "futex", 5_000_000);
    metrics.record_cuda(&CudaCalls {
        service,
        kernels: 2_000,
        graphs: 20,
        syncs: 20,
        sync_nanos: 60_000_000,
        watched_nanos: 200_000_000,
        complete: true,
    });
    metrics.record_hardware(&HardwareCounts {
        service,
        cycles: Some(300_000_000),
        instructions: Some(500_000_000),
        cache_misses: Some(1_000_000),
        wanted_nanos: 100_000_000,
        counted_nanos: 100_000_000,
    });
    metrics.record_engine_load(&EngineLoad {
        service,
        asked: Timestamp::now(),
        answered: Timestamp::now(),
        running: Some(8),
        waiting: Some(2),
    });
}

fn board(device: &str, now: Timestamp, tick: u64) -> GpuTelemetry {
    let traffic = Traffic {
        sent: Some(tick * 1_000_000),
        received: Some(tick * 2_000_000),
        ..Traffic::default()
    };
    let mut throttled = [0; ThrottleReason::ALL.len()];
    throttled[ThrottleReason::SwPowerCap as usize] = tick * 100_000_000;
    GpuTelemetry {
        device: device.to_owned(),
        at: now,
        limits: PowerLimits {
            enforced: Some(Watts(400.0)),
            ..PowerLimits::default()
        },
        sm_clock: Some(Hertz(1.4e9)),
        temperature: Some(Celsius(61.0)),
        memory: Some(Memory {
            used: 60 << 30,
            free: 19 << 30,
            reserved: 1 << 30,
        }),
        utilization: Some(Utilization {
            gpu: Ratio(0.9),
            memory: Ratio(0.4),
        }),
        throttled: Some(throttled),
        pcie: traffic,
        nvlink: traffic,
        ..GpuTelemetry::default()
    }
}

fn request(
    service: u32,
    tick: u64,
    status: u16,
    outcome: Outcome,
    route: Route,
    now: Timestamp,
) -> BookedRequest {
    let streamed = status == 200 && route != Route::Health;
    let duration = Duration::from_millis(500 + tick % 7 * 400);
    BookedRequest {
        request: Request {
            id: RequestId(tick),
            service: ServiceId(service),
            route,
            start: now.minus(duration),
            first_data: streamed.then(|| now.minus(duration / 2)),
            last_data: streamed.then_some(now),
            input: Input::Bytes(4_000),
            chunks: if streamed { 140 } else { 0 },
            streamed,
            status,
            end: Some(End { at: now, outcome }),
        },
        gpu: Some(Microjoules(5_000_000 + tick % 11 * 3_000_000)),
        phases: None,
        cpu: Some(Microjoules(400_000)),
        dram: None,
        class: Class::A,
        errors: Some(ErrorRatios {
            own: 0.0,
            common: 0.03,
        }),
        // One of the services says at each response's end what it counted.
        tokens: (streamed && service == 1).then_some(TokenCount {
            source: TokenSource::Usage,
            input: Some(1_000),
            output: Some(140),
            calibrated: true,
        }),
    }
}
