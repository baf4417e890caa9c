//! A serving engine whose energy is known: continuous batching on one A100-like GPU, in discrete
//! events, with each request's true joules above idle.
//!
//! One prompt a prefill step, prefill before decode; a decode step gives every running request a
//! token. True energy: a prefill step's is its request's, a decode step's is equal among those
//! that got a token.

use crate::random::Random;

/// Power while nothing runs, watts.
pub(crate) const IDLE: f64 = 83.0;
const NOISE: f64 = 8.0;
const NOISE_STEP: f64 = 0.025;
/// Between the server's read and the engine's knowledge of a request, seconds.
const HANDOVER: f64 = 0.001;

/// What is served.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    /// Requests a second.
    pub(crate) rate: f64,
    /// Seconds of arrivals.
    pub(crate) seconds: f64,
    /// Seconds of quiet before them.
    pub(crate) quiet: f64,
    pub(crate) seed: u64,
    /// The engine's prefill speed, tokens a second.
    pub(crate) prefill_speed: f64,
    /// A prefill step's power, watts.
    pub(crate) prefill_watts: f64,
    /// The part of requests that do not stream.
    pub(crate) unstreamed: f64,
    /// Seconds between two reads of the engine's queue, if it is read.
    pub(crate) gauges: Option<f64>,
    /// It counts a request until its first token is out, not until its prompt is taken up.
    pub(crate) counts_prompts: bool,
    /// Requests that run together at most.
    pub(crate) most: usize,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            rate: 2.5,
            seconds: 40.0,
            quiet: 3.0,
            seed: 1,
            prefill_speed: 14_000.0,
            prefill_watts: 480.0,
            unstreamed: 0.0,
            gauges: None,
            counts_prompts: false,
            most: 256,
        }
    }
}

/// One request, served. Times in seconds.
pub(crate) struct Served {
    pub(crate) start: f64,
    /// When each token went out.
    pub(crate) tokens_at: Vec<f64>,
    pub(crate) input_tokens: f64,
    pub(crate) input_bytes: u64,
    pub(crate) streamed: bool,
    /// True energy above idle.
    pub(crate) joules: f64,
    /// When its prompt was taken up.
    pub(crate) taken: f64,
    outputs: usize,
}

/// What happened.
pub(crate) struct History {
    pub(crate) requests: Vec<Served>,
    /// Energy at each noise step's end, cumulative, joules.
    energy: Vec<f64>,
    pub(crate) end: f64,
}

impl History {
    /// Requests in the engine's queue, as `load` counts them.
    pub(crate) fn waiting(&self, time: f64, load: Load) -> u64 {
        let until = |served: &Served| match served.tokens_at.first() {
            Some(first) if load.counts_prompts => *first,
            _ => served.taken,
        };
        let waits = |served: &&Served| served.start + HANDOVER <= time && until(served) > time;
        self.requests.iter().filter(waits).count() as u64
    }

    /// Energy since the beginning, joules.
    pub(crate) fn energy_at(&self, time: f64) -> f64 {
        let steps = time / NOISE_STEP;
        let place = (steps as usize).min(self.energy.len() - 1);
        let next = (place + 1).min(self.energy.len() - 1);
        self.energy[place] + (self.energy[next] - self.energy[place]) * (steps - place as f64)
    }
}

/// Serves the load.
pub(crate) fn serve(load: Load) -> History {
    let mut random = Random::new(load.seed);
    let mut requests = Vec::new();
    let mut at = load.quiet;
    loop {
        at += random.exponential() / load.rate;
        if at > load.quiet + load.seconds {
            break;
        }
        let input_tokens = (900.0 * (1.0 * random.normal()).exp())
            .clamp(8.0, 8_000.0)
            .round();
        let outputs = (140.0 * (0.8 * random.normal()).exp()).clamp(1.0, 1_000.0) as usize;
        requests.push(Served {
            start: at,
            tokens_at: Vec::new(),
            input_tokens,
            input_bytes: (input_tokens * random.between(4.0, 6.0)) as u64 + 150,
            streamed: random.between(0.0, 1.0) >= load.unstreamed,
            joules: 0.0,
            taken: f64::INFINITY,
            outputs,
        });
    }
    let mut steps: Vec<(f64, f64, f64)> = Vec::new();
    let (mut now, mut next) = (0.0_f64, 0);
    let mut running: Vec<usize> = Vec::new();
    while next < requests.len() || !running.is_empty() {
        let ready = requests.get(next).map(|request| request.start + HANDOVER);
        let (seconds, watts, tokened) = match ready {
            Some(ready) if ready <= now && running.len() < load.most => {
                next += 1;
                requests[next - 1].taken = now;
                let seconds = requests[next - 1].input_tokens / load.prefill_speed;
                (seconds, load.prefill_watts, vec![next - 1])
            }
            Some(ready) if running.is_empty() => {
                now = ready;
                continue;
            }
            _ => {
                let batch = running.len() as f64;
                (
                    0.0115 + 0.00006 * batch,
                    285.0 + 0.6 * batch,
                    running.clone(),
                )
            }
        };
        steps.push((now, now + seconds, watts));
        now += seconds;
        let each = (watts - IDLE) * seconds / tokened.len() as f64;
        for &place in &tokened {
            let request = &mut requests[place];
            request.joules += each;
            let sent = now + random.between(0.0, 0.001);
            request.tokens_at.push(sent);
            let done = request.tokens_at.len() >= request.outputs;
            match running.iter().position(|running| *running == place) {
                Some(found) if done => {
                    running.remove(found);
                }
                None if !done => running.push(place),
                _ => {}
            }
        }
    }
    let end = now + 2.0;
    History {
        energy: integrate(&steps, end, &mut random),
        requests,
        end,
    }
}

/// Cumulative energy at every noise step, with noise.
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
