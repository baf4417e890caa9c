//! Made-up worlds: meters, services and requests, and the facts that sources tell of them.

use proptest::prelude::*;

use profiler::clock::Timestamp;
use profiler::ledger::*;
use profiler::units::{Microjoules, Watts};

/// Milliseconds, far enough from 0 that a prefill window fits before the first.
pub(crate) fn at(millis: u64) -> Timestamp {
    Timestamp((100_000 + millis) * 1_000_000)
}

/// A meter with a tick of 100 ms.
pub(crate) fn meter(component: Component, idle: Option<f64>) -> Meter {
    Meter {
        component,
        device: format!("{component:?}"),
        source: Source::Counter,
        limit: Some(Watts(700.0)),
        tick: 100_000_000,
        stale_after: 1_000_000_000,
        gain_error_ratio: 0.05,
        idle: idle.map(Watts),
    }
}

/// A reading whose edge is exactly at `millis`.
pub(crate) fn reading(meter: MeterId, millis: u64, microjoules: u64) -> Event {
    let edge = at(millis);
    let after = Timestamp(edge.0 - 1_000_000);
    let until = Timestamp(edge.0 + 1_000_000);
    Event::Reading(Reading {
        meter,
        after,
        until,
        energy: Microjoules(microjoules),
    })
}

/// A streamed request in flight, with nothing sent yet.
pub(crate) fn request(id: u64, service: u32, start: u64) -> Request {
    Request {
        id: RequestId(id),
        service: ServiceId(service),
        route: Route::ChatCompletions,
        start: at(start),
        first_data: None,
        last_data: None,
        input: Input::Tokens(500),
        chunks: 0,
        streamed: false,
        status: 0,
        end: None,
    }
}

/// One request's life, milliseconds.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) service: u32,
    pub(crate) start: u64,
    pub(crate) wait: u64,
    pub(crate) chunks: u64,
    pub(crate) spacing: u64,
    pub(crate) tokens: u64,
    pub(crate) streamed: bool,
    pub(crate) ends: bool,
    pub(crate) health: bool,
}

impl Life {
    fn end(&self) -> u64 {
        self.start + self.wait + self.chunks * self.spacing
    }

    /// The request as it stands at `now`; `None` before it started.
    fn seen(&self, id: u64, now: u64) -> Option<Request> {
        if now < self.start {
            return None;
        }
        let mut request = request(id, self.service, self.start);
        request.input = Input::Tokens(self.tokens);
        if self.health {
            request.route = Route::Health;
        }
        let over = now >= self.end();
        let first = if self.streamed {
            self.start + self.wait
        } else {
            self.end()
        };
        if now >= first {
            let sent = (now.min(self.end()) - first) / self.spacing.max(1);
            request.first_data = Some(at(first));
            request.last_data = Some(at(first + sent * self.spacing));
            request.streamed = self.streamed;
            request.chunks = if self.streamed { sent + 1 } else { 0 };
            request.status = 200;
        }
        if over && self.ends {
            request.end = Some(End {
                at: at(self.end()),
                outcome: Outcome::Done,
            });
        }
        Some(request)
    }
}

/// A whole world: what each source tells, in its own order.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) lives: Vec<Life>,
    /// Per tick of each meter: what the counter does.
    pub(crate) ticks: Vec<Vec<Tick>>,
    pub(crate) holders: Option<(Vec<u32>, u32)>,
    /// Slices and activity of the first GPU's instances, if it is split.
    pub(crate) split: Option<Vec<(u32, Option<f64>)>>,
    pub(crate) fixed_idle: Option<f64>,
    pub(crate) on_cpu: Vec<(u8, u64)>,
    pub(crate) losses: Vec<u64>,
    /// How late each source's facts come, ms.
    pub(crate) late: [u64; 4],
    /// Seed for the order of facts when any order is asked for.
    pub(crate) any_order: Option<u64>,
    /// The part of the facts that is told before the end.
    pub(crate) told: f64,
}

/// What a counter does in one tick.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tick {
    /// Runs on by µJ.
    Runs(u64),
    /// Falls back.
    Reset,
    /// Jumps beyond what the board can draw.
    Jumps,
    /// Nobody looks for so many ticks.
    Unseen(u64),
}

fn tick() -> impl Strategy<Value = Tick> {
    prop_oneof![
        20 => (0..60_000_000_u64).prop_map(Tick::Runs),
        1 => Just(Tick::Reset),
        1 => Just(Tick::Jumps),
        1 => (1..20_u64).prop_map(Tick::Unseen),
    ]
}

fn life() -> impl Strategy<Value = Life> {
    let times = (
        0..4_000_u64,
        0..3_000_u64,
        0..30_u64,
        0..40_u64,
        0..5_000_u64,
    );
    let kinds = (
        0..3_u32,
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.8),
        0..20_u8,
    );
    (times, kinds).prop_map(|((start, wait, chunks, spacing, tokens), kinds)| {
        let (service, streamed, ends, health) = kinds;
        let health = health == 0;
        Life {
            service,
            start,
            wait,
            chunks,
            spacing,
            tokens,
            streamed,
            ends,
            health,
        }
    })
}

/// Any world.
pub(crate) fn world() -> impl Strategy<Value = World> {
    let sources = (
        prop::collection::vec(life(), 0..12),
        prop::collection::vec(prop::collection::vec(tick(), 0..60), 4),
        prop::option::of((prop::collection::vec(0..3_u32, 0..3), 0..2_u32)),
        prop::option::of(0.0..300.0_f64),
        prop::collection::vec((0..5_u8, 0..200_000_000_u64), 0..60),
        prop::collection::vec(0..5_000_u64, 0..3),
    );
    let order = (
        prop::array::uniform4(0..1_000_u64),
        prop::option::weighted(0.3, any::<u64>()),
    );
    let activity = prop::option::weighted(0.8, prop_oneof![Just(0.0), 0.0..1.0_f64]);
    let split = prop::option::of(prop::collection::vec((1..4_u32, activity), 1..4));
    (sources, order, 0.0..=1.0_f64, split).prop_map(|(sources, (late, any_order), told, split)| {
        let (lives, ticks, holders, fixed_idle, on_cpu, losses) = sources;
        let holders = holders.map(|(mut services, others)| {
            services.sort_unstable();
            services.dedup();
            (services, others)
        });
        World {
            lives,
            ticks,
            holders,
            split,
            fixed_idle,
            on_cpu,
            losses,
            late,
            any_order,
            told,
        }
    })
}

impl World {
    /// Its meters: two GPUs, a package, its memory.
    pub(crate) fn meters(&self) -> Vec<Meter> {
        use Component::{Cpu, Dram, Gpu};
        [Gpu, Gpu, Cpu, Dram]
            .into_iter()
            .map(|part| meter(part, self.fixed_idle))
            .collect()
    }

    /// All facts with the moment at which the ledger hears them (ms), in that order.
    pub(crate) fn facts(&self) -> Vec<(u64, Event)> {
        let mut facts = Vec::new();
        for (place, ticks) in self.ticks.iter().enumerate() {
            let id = MeterId(place as u32);
            let (mut energy, mut now) = (5_000_000_000_u64, 37 * place as u64);
            for tick in ticks {
                now += 100;
                match tick {
                    Tick::Runs(more) => energy += more,
                    Tick::Reset => energy = 1_000 * now,
                    Tick::Jumps => energy += 400_000_000,
                    Tick::Unseen(ticks) => {
                        now += 100 * ticks;
                        energy += 9_000_000 * ticks;
                    }
                }
                facts.push((now + self.late[0], reading(id, now, energy)));
            }
            if let (true, Some((services, others))) = (place < 2, &self.holders) {
                let split = self.split.as_ref().filter(|_| place == 0);
                let services: Vec<ServiceId> = services.iter().copied().map(ServiceId).collect();
                let instances = split.map_or(Vec::new(), |split| placed(&services, *others, split));
                let holders = Holders {
                    meter: id,
                    at: at(0),
                    services,
                    others: *others,
                    instances,
                };
                facts.push((0, Event::Holders(holders)));
                facts.extend((0..8).map(|second| {
                    let busy = match split {
                        Some(split) => Busy::Instances {
                            from: at((second * 1_000_u64).saturating_sub(1_000)),
                            instances: instances_of(split),
                        },
                        None => Busy::Processes {
                            services: 0.5,
                            others: 0.3 * f64::from(*others),
                        },
                    };
                    let shares = Shares {
                        meter: id,
                        at: at(second * 1_000),
                        busy,
                    };
                    (second * 1_000, Event::Shares(shares))
                }));
            }
        }
        for poll in 0..150 {
            let now = poll * 50;
            let heard = now + self.late[1];
            for (id, life) in self.lives.iter().enumerate() {
                let ended_before = poll > 0 && life.ends && now - 50 >= life.end();
                let seen = life.seen(id as u64, now).filter(|_| !ended_before);
                facts.extend(seen.map(|request| {
                    (
                        heard,
                        Event::Request {
                            at: at(now),
                            request,
                        },
                    )
                }));
            }
            facts.push((heard, Event::RequestsUntil(at(now))));
        }
        for (window, (owner, on_cpu)) in self.on_cpu.iter().enumerate() {
            let owner = match owner {
                0 => Owner::Agent,
                1 => Owner::Other,
                service => Owner::Service(ServiceId(u32::from(*service) - 2)),
            };
            let from = window as u64 / 2 * 200;
            let time = CpuTime {
                owner,
                from: at(from),
                to: at(from + 200),
                package: 0,
                on_cpu: *on_cpu,
                cycles: None,
            };
            facts.push((from + 200 + self.late[2], Event::Cpu(time)));
            facts.push((from + 200 + self.late[2], Event::CpuUntil(at(from))));
        }
        for &lost in &self.losses {
            let loss = Event::RequestsLost {
                at: at(lost),
                count: 1,
            };
            facts.push((lost + self.late[3], loss));
        }
        // Engines may say anything of their queues.
        for (place, &(service, waiting)) in (0..).zip(&self.on_cpu) {
            let asked = at(70 * place);
            let load = EngineLoad {
                service: ServiceId(u32::from(service)),
                asked,
                answered: asked,
                running: None,
                waiting: Some(waiting % 7),
            };
            facts.push((70 * place + self.late[3], Event::Load(load)));
        }
        match self.any_order {
            // A shuffle that keeps nothing of the order, not even within a source.
            Some(seed) => {
                let mut place = 0_u64;
                facts.sort_by_cached_key(|_| {
                    place += 1;
                    (place ^ seed)
                        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                        .rotate_left(29)
                });
            }
            None => facts.sort_by_key(|(heard, _)| *heard),
        }
        let told = (facts.len() as f64 * self.told) as usize;
        facts.truncate(told);
        facts
    }
}

fn instances_of(split: &[(u32, Option<f64>)]) -> Vec<Instance> {
    let instances = (1..).zip(split);
    let instances = instances.map(|(id, &(slices, activity))| Instance {
        id,
        slices,
        activity,
    });
    instances.collect()
}

/// Services on the instances in turn, the first on none that is known; the others on the last.
fn placed(
    services: &[ServiceId],
    others: u32,
    split: &[(u32, Option<f64>)],
) -> Vec<InstanceHolders> {
    let count = split.len();
    let instances = (0..count).map(|place| InstanceHolders {
        instance: place as u32 + 1,
        services: services
            .iter()
            .copied()
            .filter(|id| id.0 > 0 && id.0 as usize % count == place)
            .collect(),
        others: if place + 1 == count { others } else { 0 },
    });
    instances.collect()
}
