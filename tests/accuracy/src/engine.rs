//! A serving engine whose energy is known: continuous batching on one A100-like GPU, in discrete
//! events, with each request's true joules above idle.
//!
//! One prompt a prefill step, prefill before decode; a decode step gives every running request a
//! token. True energy: a prefill step's is its request's, a decode step's is equal among those
//! that got a token. Variants: a prompt read in parts beside decode steps, prompts that are cached
//! in part or short, several tokens a step, several GPUs that all do every step, several engines
//! that take turns on one GPU.

use std::collections::VecDeque;

use crate::random::Random;

/// Power of one GPU while nothing runs, watts.
pub const IDLE: f64 = 83.0;
const NOISE: f64 = 8.0;
const NOISE_STEP: f64 = 0.025;
/// Between the server's read and the engine's knowledge of a request, seconds.
const HANDOVER: f64 = 0.001;
/// Between a client's response and its next request, seconds.
const THINKING: f64 = 0.01;
/// The part of a prompt that is still to be read when its prefix is cached.
const UNCACHED: f64 = 0.2;
/// Tokens of a short prompt.
const SHORT: f64 = 64.0;
/// Most tokens that one step accepts with speculative decoding, and what the step takes longer.
const SPECULATED: (usize, f64) = (4, 1.2);

/// What is served.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests a second, at random moments.
    pub rate: f64,
    /// Instead: so many clients, each with one request in flight at a time.
    pub clients: Option<usize>,
    /// Seconds of arrivals.
    pub seconds: f64,
    /// Seconds of quiet before them.
    pub quiet: f64,
    /// Makes the load.
    pub seed: u64,
    /// The engine's prefill speed, tokens a second.
    pub prefill_speed: f64,
    /// A prefill step's power, watts.
    pub prefill_watts: f64,
    /// The part of requests that do not stream.
    pub unstreamed: f64,
    /// Requests that run together at most.
    pub most: usize,
    /// Tokens in a chunk after the first.
    pub tokens_a_chunk: usize,
    /// A prompt is read in parts of so many tokens, each beside a decode step.
    pub prompt_parts: Option<f64>,
    /// The part of requests whose prompt is mostly cached.
    pub cached: f64,
    /// The part of requests whose prompt is read in less than a decode step.
    pub short: f64,
    /// A step may give a request several tokens, in one chunk.
    pub speculates: bool,
    /// GPUs that do every step together.
    pub gpus: usize,
    /// Engines that take turns on the GPU; requests go to each in turn.
    pub engines: usize,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            rate: 2.5,
            clients: None,
            seconds: 40.0,
            quiet: 3.0,
            seed: 1,
            prefill_speed: 14_000.0,
            prefill_watts: 480.0,
            unstreamed: 0.0,
            most: 256,
            tokens_a_chunk: 1,
            prompt_parts: None,
            cached: 0.0,
            short: 0.0,
            speculates: false,
            gpus: 1,
            engines: 1,
        }
    }
}

/// One request, served. Times in seconds.
#[derive(Debug)]
pub struct Served {
    /// When the server read it.
    pub start: f64,
    /// When each chunk went out, or would have if it does not stream.
    pub chunks_at: Vec<f64>,
    /// Size of its body and head.
    pub input_bytes: u64,
    /// Its chunks are seen.
    pub streamed: bool,
    /// True energy above idle, joules.
    pub joules: f64,
    /// When its prompt was taken up.
    pub taken: f64,
    /// The engine that serves it.
    pub engine: usize,
    /// Tokens of its prompt that are still to be read.
    unread: f64,
    outputs: usize,
    generated: usize,
    unsent: usize,
}

impl Served {
    /// When its last chunk went out.
    pub fn last(&self) -> f64 {
        self.chunks_at.last().copied().unwrap_or(self.start)
    }
}

/// What happened.
#[derive(Debug)]
pub struct History {
    /// By start.
    pub requests: Vec<Served>,
    /// Per GPU, energy at each noise step's end, cumulative, joules.
    energy: Vec<Vec<f64>>,
    /// When it ends, seconds.
    pub end: f64,
}

impl History {
    /// Requests in the engine's queue; `counts_prompts`: until their first token is out.
    pub fn waiting(&self, time: f64, counts_prompts: bool) -> u64 {
        let until = |served: &Served| match served.chunks_at.first() {
            Some(first) if counts_prompts => *first,
            _ => served.taken,
        };
        let waits = |served: &&Served| served.start + HANDOVER <= time && until(served) > time;
        self.requests.iter().filter(waits).count() as u64
    }

    /// A GPU's energy since the beginning, joules.
    pub fn energy_at(&self, gpu: usize, time: f64) -> f64 {
        let energy = &self.energy[gpu];
        let steps = time.max(0.0) / NOISE_STEP;
        let place = (steps as usize).min(energy.len() - 1);
        let next = (place + 1).min(energy.len() - 1);
        energy[place] + (energy[next] - energy[place]) * (steps - place as f64)
    }

    /// Mean power of all GPUs over the `window` seconds before `time`, watts.
    pub fn mean_power(&self, time: f64, window: f64) -> f64 {
        let gpus = 0..self.gpus();
        gpus.map(|gpu| self.energy_at(gpu, time) - self.energy_at(gpu, time - window))
            .sum::<f64>()
            / window
    }

    /// How many GPUs there are.
    pub fn gpus(&self) -> usize {
        self.energy.len()
    }

    /// Requests in flight on average, between the first request and the last's start.
    pub fn mean_in_flight(&self) -> f64 {
        let (Some(first), Some(last)) = (self.requests.first(), self.requests.last()) else {
            return 0.0;
        };
        let (from, to) = (first.start, last.start.max(first.start + 1.0));
        let within = |served: &Served| served.last().min(to) - served.start;
        self.requests.iter().map(within).sum::<f64>() / (to - from)
    }
}

/// One engine's requests.
#[derive(Default)]
struct Engine {
    queue: VecDeque<usize>,
    running: Vec<usize>,
}

impl Engine {
    /// The prompt that is to be read now, if any.
    fn prompt(&self, most: usize) -> Option<usize> {
        let next = self.queue.front().copied();
        next.filter(|_| self.running.len() < most)
    }

    fn has_work(&self) -> bool {
        !(self.queue.is_empty() && self.running.is_empty())
    }
}

/// Serves the load.
pub fn serve(load: Load) -> History {
    let mut random = Random::new(load.seed);
    let mut requests = arrivals(load, &mut random);
    let mut steps: Vec<(f64, f64, f64)> = Vec::new();
    let mut engines: Vec<Engine> = Vec::new();
    engines.resize_with(load.engines.max(1), Engine::default);
    let (mut now, mut next, mut turn) = (0.0_f64, 0, 0);
    loop {
        while let Some(request) = requests.get(next)
            && request.start + HANDOVER <= now
        {
            engines[request.engine].queue.push_back(next);
            next += 1;
        }
        let count = engines.len();
        let busy = (0..count).map(|offset| (turn + offset) % count);
        let Some(at_work) = busy.clone().find(|&place| engines[place].has_work()) else {
            let Some(request) = requests.get(next) else {
                break;
            };
            now = request.start + HANDOVER;
            continue;
        };
        turn = at_work + 1;
        let engine = &mut engines[at_work];

        let prompt = engine.prompt(load.most);
        let decoding = match prompt {
            Some(_) if load.prompt_parts.is_none() => Vec::new(),
            _ => engine.running.clone(),
        };
        if !decoding.is_empty() {
            let batch = decoding.len() as f64;
            let slower = if load.speculates { SPECULATED.1 } else { 1.0 };
            let seconds = slower * (0.0115 + 0.00006 * batch);
            let watts = 285.0 + 0.6 * batch;
            steps.push((now, now + seconds, watts));
            now += seconds;
            for &place in &decoding {
                requests[place].joules += load.gpus as f64 * (watts - IDLE) * seconds / batch;
            }
        }
        let mut given = decoding;
        if let Some(place) = prompt {
            let request = &mut requests[place];
            request.taken = request.taken.min(now);
            let tokens = request
                .unread
                .min(load.prompt_parts.unwrap_or(f64::INFINITY));
            request.unread -= tokens;
            let seconds = tokens / load.prefill_speed;
            steps.push((now, now + seconds, load.prefill_watts));
            now += seconds;
            request.joules += load.gpus as f64 * (load.prefill_watts - IDLE) * seconds;
            if request.unread <= 0.0 {
                engine.queue.pop_front();
                given.push(place);
            }
        }
        for place in given {
            let is_first = requests[place].generated == 0;
            let tokens = match load.speculates && !is_first {
                true => 1 + random.between(0.0, SPECULATED.0 as f64) as usize,
                false => 1,
            };
            let request = &mut requests[place];
            let sent = now + random.between(0.0, 0.001);
            request.generated += tokens;
            request.unsent += tokens;
            let done = request.generated >= request.outputs;
            if is_first || done || request.unsent >= load.tokens_a_chunk {
                request.chunks_at.push(sent);
                request.unsent = 0;
            }
            match engine.running.iter().position(|running| *running == place) {
                Some(found) if done => {
                    engine.running.remove(found);
                }
                None if !done => engine.running.push(place),
                _ => {}
            }
            if done && load.clients.is_some() && now < load.quiet + load.seconds {
                let engine = requests.len() % load.engines.max(1);
                requests.push(arrival(now + THINKING, engine, load, &mut random));
            }
        }
    }
    let end = now + 2.0;
    let gpus = 0..load.gpus.max(1);
    History {
        energy: gpus.map(|_| integrate(&steps, end, &mut random)).collect(),
        requests,
        end,
    }
}

fn arrivals(load: Load, random: &mut Random) -> Vec<Served> {
    let mut requests = Vec::new();
    let mut at = load.quiet;
    let engines = load.engines.max(1);
    if let Some(clients) = load.clients {
        for place in 0..clients {
            requests.push(arrival(at, place % engines, load, random));
            at += HANDOVER;
        }
        return requests;
    }
    loop {
        at += random.exponential() / load.rate;
        if at > load.quiet + load.seconds {
            return requests;
        }
        requests.push(arrival(at, requests.len() % engines, load, random));
    }
}

fn arrival(start: f64, engine: usize, load: Load, random: &mut Random) -> Served {
    let likely = (900.0 * (1.0 * random.normal()).exp())
        .clamp(8.0, 8_000.0)
        .round();
    let is_short = load.short > 0.0 && random.between(0.0, 1.0) < load.short;
    let input_tokens = if is_short { SHORT } else { likely };
    let outputs = (140.0 * (0.8 * random.normal()).exp()).clamp(1.0, 1_000.0) as usize;
    let input_bytes = (input_tokens * random.between(4.0, 6.0)) as u64 + 150;
    let streamed = random.between(0.0, 1.0) >= load.unstreamed;
    let is_cached = load.cached > 0.0 && random.between(0.0, 1.0) < load.cached;
    Served {
        start,
        chunks_at: Vec::new(),
        input_bytes,
        streamed,
        joules: 0.0,
        taken: f64::INFINITY,
        engine,
        unread: input_tokens * if is_cached { UNCACHED } else { 1.0 },
        outputs,
        generated: 0,
        unsent: 0,
    }
}

/// Cumulative energy of one GPU at every noise step, with noise.
fn integrate(steps: &[(f64, f64, f64)], end: f64, random: &mut Random) -> Vec<f64> {
    let count = (end / NOISE_STEP) as usize + 2;
    let mut above = vec![0.0; count + 1];
    for &(from, to, watts) in steps {
        let mut at = from;
        while at < to {
            let place = (at / NOISE_STEP) as usize;
            let until = (((place + 1) as f64) * NOISE_STEP).min(to).max(at + 1e-9);
            above[place.min(count)] += (watts - IDLE) * (until - at);
            at = until;
        }
    }
    let mut sum = 0.0;
    let mut energy = vec![0.0];
    for joules in above {
        sum += joules + (IDLE + NOISE * random.normal()).max(0.0) * NOISE_STEP;
        energy.push(sum);
    }
    energy
}
