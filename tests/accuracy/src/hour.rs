//! A recording of a node that serves 1,000 requests a second, as long as one likes: all that an agent may
//! know of them is known, and has the size that it has on a machine that is up for a month.
//!
//! Eight GPUs, a package and its memory are read ten times a second; four services hold two GPUs each.
//! What was booked to requests in an interval is the energy of those that ended in it, so that the file's
//! sums are the ledger's.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use profiler::clock::Timestamp;
use profiler::ledger::{
    Accounts, Booked, BookedInterval, BookedRequest, Class, Component, End, ErrorRatios, Floor,
    FloorSource, GpuPhases, Input, Meter, MeterId, Outcome, Request, RequestId, Route, ServiceId,
    ServiceShare, Source, TokenCount, TokenSource,
};
use profiler::recording::{Recording, RecordingError};
use profiler::units::{Microjoules, Watts};

use crate::random::Random;

const GPUS: u32 = 8;
const PACKAGE: u32 = GPUS;
const DRAM: u32 = GPUS + 1;
const SERVICES: u32 = 4;

const SECOND: u64 = 1_000_000_000;
const TICK: u64 = SECOND / 10;
const REQUESTS_A_TICK: u64 = 100;
/// The kernel's clock on a machine that was started a month ago.
const START: u64 = 30 * 86_400 * SECOND;
const SLOT_BITS: u32 = 16;

const IDLE: Microjoules = Microjoules(8_000_000);
const CONTEXT: Microjoules = Microjoules(3_500_000);

/// What was written.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// Of requests.
    pub gpu: Microjoules,
    /// Time in which the recording was told and committed.
    pub append: Duration,
}

/// Writes so many requests, rounded up to a tenth of a second, and the intervals they end in.
///
/// # Errors
/// If the file cannot be written.
pub fn write(file: &Path, requests: u64) -> Result<Written, RecordingError> {
    let mut recording = Recording::create(file, "run", true)?;
    describe(&mut recording)?;
    let mut load = Load::new();
    let mut written = Written {
        gpu: Microjoules::ZERO,
        append: Duration::ZERO,
    };
    let ticks = requests.div_ceil(REQUESTS_A_TICK);
    let mut tick = 0;
    while tick < ticks || !load.open.is_empty() {
        let (from, to) = (START + tick * TICK, START + (tick + 1) * TICK);
        if tick < ticks {
            load.begin(from);
        }
        let ended = load.end(to);
        let intervals = intervals(from, to, &ended);
        written.gpu += ended.iter().filter_map(|request| request.gpu).sum();
        tick += 1;

        let began = Instant::now();
        for interval in &intervals {
            recording.interval(interval)?;
        }
        for request in ended {
            recording.book(&Booked::Request(request))?;
        }
        // As the agent does.
        if tick.is_multiple_of(SECOND / TICK) {
            recording.commit()?;
        }
        written.append += began.elapsed();
    }
    let began = Instant::now();
    recording.close()?;
    written.append += began.elapsed();
    Ok(written)
}

fn describe(recording: &mut Recording) -> Result<(), RecordingError> {
    for id in 0..=DRAM {
        let (component, device) = match id {
            PACKAGE => (Component::Cpu, "package-0".to_owned()),
            DRAM => (Component::Dram, "dram-0".to_owned()),
            gpu => (Component::Gpu, format!("GPU-{gpu}")),
        };
        let meter = Meter {
            component,
            device,
            source: Source::Counter,
            limit: (component == Component::Gpu).then_some(Watts(700.0)),
            tick: TICK,
            stale_after: 2 * SECOND,
            gain_error_ratio: 0.05,
            idle: None,
        };
        recording.meter(MeterId(id), &meter)?;
        let floor = Floor {
            watts: Watts(IDLE.joules().0 * 10.0),
            source: FloorSource::Learned,
        };
        recording.floor(MeterId(id), Some(floor))?;
    }
    for service in 0..SERVICES {
        let name = format!("service-{service}");
        recording.service(ServiceId(service), &name, Some("llama"))?;
    }
    Ok(())
}

/// Requests in flight, by their ends, in slots as the kernel side keeps them.
struct Load {
    random: Random,
    open: BTreeMap<(u64, u64), BookedRequest>,
    /// How often each free slot was written, the slot.
    free: Vec<(u64, u64)>,
    slots: u64,
}

impl Load {
    fn new() -> Self {
        Self {
            random: Random::new(1),
            open: BTreeMap::new(),
            free: Vec::new(),
            slots: 0,
        }
    }

    /// Those that begin in the tick from `from` on.
    fn begin(&mut self, from: u64) {
        for number in 0..REQUESTS_A_TICK {
            let spacing = TICK / REQUESTS_A_TICK;
            let start = from + number * spacing + self.below(spacing);
            let (sequence, slot) = self.free.pop().unwrap_or_else(|| {
                self.slots += 1;
                (1, self.slots)
            });
            let id = sequence << SLOT_BITS | slot;
            let booked = self.request(id, start);
            let end = booked.request.end.map_or(start, |end| end.at.0);
            self.open.insert((end, id), booked);
        }
    }

    /// Those that end before `to`, in this order.
    fn end(&mut self, to: u64) -> Vec<BookedRequest> {
        let open = self.open.split_off(&(to, 0));
        let ended: Vec<BookedRequest> = std::mem::replace(&mut self.open, open)
            .into_values()
            .collect();
        for booked in &ended {
            let (id, chunks) = (booked.request.id.0, booked.request.chunks);
            // A write when it begins and ends, and at each chunk, odd while it is under way.
            let sequence = (id >> SLOT_BITS) + 2 * (chunks + 2);
            self.free.push((sequence, id & ((1 << SLOT_BITS) - 1)));
        }
        ended
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.between(0.0, limit as f64) as u64
    }

    fn request(&mut self, id: u64, start: u64) -> BookedRequest {
        let prefill_time = 30_000_000 + self.below(300_000_000);
        let output = 1 + (180.0 * (0.6 * self.random.normal()).exp()) as u64;
        let decode_time = output * (15_000_000 + self.below(10_000_000));
        let input = 50 + self.below(8_000);
        let prefill = prefill_time / 1_000 + self.below(10_000_000);
        let decode = output * (60_000 + self.below(100_000));
        let wait = self.below(3).saturating_sub(1) * self.below(5_000);
        let cpu = 20_000 + self.below(400_000);
        let last_data = start + prefill_time + decode_time;
        // The end of a stream is often in the last write, and else in one of its own.
        let end = last_data + self.below(2) * self.below(80_000);
        let (outcome, status) = match self.below(100) {
            0 => (Outcome::Aborted, 200),
            1 => (Outcome::Done, 429),
            _ => (Outcome::Done, 200),
        };
        BookedRequest {
            request: Request {
                id: RequestId(id),
                service: ServiceId(self.below(u64::from(SERVICES)) as u32),
                route: Route::ChatCompletions,
                start: Timestamp(start),
                first_data: Some(Timestamp(start + prefill_time)),
                last_data: Some(Timestamp(last_data)),
                input: Input::Bytes(input * 4),
                chunks: output,
                streamed: true,
                status,
                end: Some(End {
                    at: Timestamp(end),
                    outcome,
                }),
            },
            gpu: Some(Microjoules(prefill + decode + wait)),
            phases: Some(GpuPhases {
                prefill: Microjoules(prefill),
                decode: Microjoules(decode),
                wait: Microjoules(wait),
            }),
            cpu: Some(Microjoules(cpu)),
            dram: Some(Microjoules(cpu / 6)),
            class: Class::A,
            errors: Some(ErrorRatios {
                own: self.random.between(0.02, 0.09),
                common: self.random.between(0.005, 0.02),
            }),
            tokens: Some(TokenCount {
                source: TokenSource::Usage,
                input: Some(input),
                output: Some(output),
                calibrated: true,
            }),
        }
    }
}

/// All meters' between two reads.
fn intervals(from: u64, to: u64, ended: &[BookedRequest]) -> Vec<BookedInterval> {
    (0..=DRAM)
        .map(|meter| {
            let shares: Vec<ServiceShare> = (0..SERVICES)
                .filter(|service| meter >= GPUS || meter / 2 == *service)
                .map(|service| share(meter, service, ended))
                .collect();
            let requests = shares.iter().map(|share| share.requests).sum();
            let accounts = Accounts {
                idle: IDLE,
                context: if meter < GPUS {
                    CONTEXT
                } else {
                    Microjoules::ZERO
                },
                requests,
                other: Microjoules(if meter < GPUS { 0 } else { 283_095 }),
                agent: Microjoules(if meter < GPUS { 0 } else { 32_285 }),
                ..Accounts::default()
            };
            BookedInterval {
                meter: MeterId(meter),
                from: Timestamp(from),
                to: Timestamp(to),
                energy: accounts.total(),
                accounts,
                services: shares,
                holders: (meter < GPUS).then_some(1),
            }
        })
        .collect()
}

/// A service's requests on one meter; of two GPUs the first has half of it and what is left.
fn share(meter: u32, service: u32, ended: &[BookedRequest]) -> ServiceShare {
    let own = ended
        .iter()
        .filter(|booked| booked.request.service == ServiceId(service));
    let part = |energy: u64| match meter % 2 {
        0 => energy - energy / 2,
        _ => energy / 2,
    };
    let sum = |of: &dyn Fn(&BookedRequest) -> Option<Microjoules>| -> u64 {
        own.clone().filter_map(of).map(|energy| energy.0).sum()
    };
    let phase =
        |of: fn(&GpuPhases) -> Microjoules| part(sum(&|booked| booked.phases.as_ref().map(of)));
    let (requests, phases) = match meter {
        PACKAGE => (sum(&|booked| booked.cpu), None),
        DRAM => (sum(&|booked| booked.dram), None),
        _ => {
            let phases = GpuPhases {
                prefill: Microjoules(phase(|phases| phases.prefill)),
                decode: Microjoules(phase(|phases| phases.decode)),
                wait: Microjoules(phase(|phases| phases.wait)),
            };
            (
                (phases.prefill + phases.decode + phases.wait).0,
                Some(phases),
            )
        }
    };
    ServiceShare {
        service: ServiceId(service),
        requests: Microjoules(requests),
        overhead: Microjoules::ZERO,
        phases,
    }
}
