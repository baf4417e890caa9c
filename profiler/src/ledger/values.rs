//! The plain values the ledger takes from its sources and gives to its sinks.
//!
//! Sources (`probes`, `meters`, `services`) speak [`Event`]; sinks (`export`, `report`) speak
//! [`Booked`]. Nothing here does I/O or reads a clock.

use serde::{Deserialize, Serialize};

use super::{EngineLoad, TokenCount};
use crate::clock::Timestamp;
use crate::units::{Microjoules, Watts};

/// A meter's place in the ledger, given by [`super::Ledger::add_meter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterId(pub u32);

/// A service's place in the ledger, given by `services`; stable for the life of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// One request; unique for the life of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// The part of the machine a meter measures. Summing over components is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// One GPU board.
    Gpu,
    /// One CPU package.
    Cpu,
    /// Memory of one CPU package.
    Dram,
}

/// How a meter's energy came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The device's own energy counter.
    Counter,
    /// Power readings, integrated over time.
    Integrated,
    /// A labelled estimate; class C.
    Model,
}

/// What the ledger must know of a meter.
#[derive(Debug, Clone)]
pub struct Meter {
    /// The part of the machine it measures.
    pub component: Component,
    /// Its stable name: a GPU's UUID, `package-0`, `dram-0`.
    pub device: String,
    /// How its energy is known.
    pub source: Source,
    /// The most the device can draw: a delta above 1.2 × this × (time + one tick) is refused.
    pub limit: Option<Watts>,
    /// Nominal time between two changes of the counter, nanoseconds.
    pub tick: u64,
    /// An interval longer than this had nobody looking: its energy is `gap`, nanoseconds.
    pub stale_after: u64,
    /// Systematic gain error of the sensor (0.05 = 5 %), stated beside the figures.
    pub gain_error_ratio: f64,
    /// The idle floor, if the user or a model fixes it; else it is learned when quiet.
    pub idle: Option<Watts>,
}

/// A counter was seen to change: it showed its old value at `after` and `energy` at `until`,
/// so that the change lies in (after, until].
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Which meter.
    pub meter: MeterId,
    /// The last moment at which the old value was still shown.
    pub after: Timestamp,
    /// The first moment at which the new value was shown.
    pub until: Timestamp,
    /// The counter's new value, cumulative since an arbitrary start.
    pub energy: Microjoules,
}

/// A power reading: places energy inside a tick and widens the bound; it is never booked.
#[derive(Debug, Clone, Copy)]
pub struct PowerSample {
    /// Which meter.
    pub meter: MeterId,
    /// When it was read.
    pub at: Timestamp,
    /// What it showed.
    pub power: Watts,
}

/// How big a request's prompt is, as far as it is known: a weight, never a published count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Tokens, truly known (from the engine, or a replayed log).
    Tokens(u64),
    /// Bytes of the request's body and head.
    Bytes(u64),
}

/// A request's tokens as its own server counted them. `None`: it did not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens.
    pub input: Option<u64>,
    /// Generated tokens.
    pub output: Option<u64>,
}

/// A W3C trace's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

impl std::fmt::Display for TraceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The whole response went out.
    Done,
    /// The client left before the end; its energy still counts.
    Aborted,
    /// The end was not seen (idle time-out, records lost, agent stopped): ends at the last data.
    Incomplete,
}

/// One request as it stands at some moment. The same value serves while the request is in
/// flight and when it has ended; a later one replaces an earlier one.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Its identity.
    pub id: RequestId,
    /// Who serves it.
    pub service: ServiceId,
    /// Which of the known routes.
    pub route: Route,
    /// When the server read its first byte.
    pub start: Timestamp,
    /// When the first byte of the response's *body* went out, if it has.
    pub first_data: Option<Timestamp>,
    /// When the latest byte of the response's body went out, if any has.
    pub last_data: Option<Timestamp>,
    /// Its prompt's size.
    pub input: Input,
    /// SSE events or NDJSON lines so far, without `[DONE]`; 0 where nothing streams.
    pub chunks: u64,
    /// True once the response is known to stream (SSE, NDJSON).
    pub streamed: bool,
    /// HTTP status, 0 until it is known.
    pub status: u16,
    /// Set when it has ended.
    pub end: Option<End>,
}

/// The end of a request.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// When.
    pub at: Timestamp,
    /// How.
    pub outcome: Outcome,
}

/// The fixed list of inference routes; everything else is [`Route::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the variants are the routes' own names")]
pub enum Route {
    ChatCompletions,
    Completions,
    Responses,
    Embeddings,
    Rerank,
    Messages,
    Generate,
    GenerateStream,
    Completion,
    ApiGenerate,
    ApiChat,
    ApiEmbed,
    ModelInfer,
    /// KServe's gRPC streaming inference.
    ModelStreamInfer,
    /// Health and metrics paths: counted, but they cost nobody energy.
    Health,
    Other,
}

/// To whom on-CPU time belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A service.
    Service(ServiceId),
    /// Processes of no service.
    Other,
    /// perjoule itself.
    Agent,
}

/// On-CPU time of one owner on one package in a window.
#[derive(Debug, Clone, Copy)]
pub struct CpuTime {
    /// Whose.
    pub owner: Owner,
    /// Start of the window, the end of the previous one.
    pub from: Timestamp,
    /// End of the window.
    pub to: Timestamp,
    /// The package (socket) of the CPUs, by the kernel's number.
    pub package: u32,
    /// Nanoseconds on CPU, summed over the package's CPUs.
    pub on_cpu: u64,
    /// Cycles spent in it, where they are counted: of every owner or of none.
    pub cycles: Option<u64>,
}

/// Who holds a context on a GPU.
#[derive(Debug, Clone)]
pub struct Holders {
    /// The GPU's meter.
    pub meter: MeterId,
    /// When it was looked up; holds until the next one.
    pub at: Timestamp,
    /// Services with a process on it.
    pub services: Vec<ServiceId>,
    /// Processes on it that belong to no service.
    pub others: u32,
    /// Of a GPU that is split into instances: who of them holds which. A process whose instance is
    /// not known is in none.
    pub instances: Vec<InstanceHolders>,
}

/// Who holds a context on one instance of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceHolders {
    /// The instance's id on its GPU.
    pub instance: u32,
    /// Services with a process on it.
    pub services: Vec<ServiceId>,
    /// Processes on it that belong to no service.
    pub others: u32,
}

/// How busy a GPU was kept until some moment.
#[derive(Debug, Clone)]
pub struct Shares {
    /// The GPU's meter.
    pub meter: MeterId,
    /// The end of what was sampled: up to a second.
    pub at: Timestamp,
    /// By whom.
    pub busy: Busy,
}

/// How busy, and by whom.
#[derive(Debug, Clone)]
pub enum Busy {
    /// A whole GPU by its processes, as parts of its time.
    Processes {
        /// Sum over services' processes.
        services: f64,
        /// Sum over processes that serve nothing.
        others: f64,
    },
    /// A GPU that is split into instances (MIG), by these; they hold until others are told.
    Instances {
        /// The beginning of what was sampled.
        from: Timestamp,
        /// All that there are.
        instances: Vec<Instance>,
    },
}

/// An instance of a GPU that is split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Instance {
    /// Its id on its GPU.
    pub id: u32,
    /// How many of the GPU's slices it has.
    pub slices: u32,
    /// How busy it was, as part of what it can do; `None` where nobody tells.
    pub activity: Option<f64>,
}

/// What sources tell the ledger.
#[derive(Debug, Clone)]
pub enum Event {
    /// A counter changed.
    Reading(Reading),
    /// A power reading.
    Power(PowerSample),
    /// A request as it stood at `at`.
    Request {
        /// When the request was looked at; `chunks` counts what had gone out by then.
        at: Timestamp,
        /// The request.
        request: Request,
    },
    /// Every request event up to this moment has been told.
    RequestsUntil(Timestamp),
    /// Request records were lost before `at`: energy above the floor without a known user may
    /// have had one.
    RequestsLost {
        /// When the loss was noticed.
        at: Timestamp,
        /// How many.
        count: u64,
    },
    /// On-CPU time.
    Cpu(CpuTime),
    /// Every owner's on-CPU time up to this moment has been told.
    CpuUntil(Timestamp),
    /// Who holds a GPU.
    Holders(Holders),
    /// How busy it was kept.
    Shares(Shares),
    /// How many requests wait in an engine's queue.
    Load(EngineLoad),
}

/// Where one interval's energy went. The sum is the interval's energy, exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    /// min(ΔE, floor × Δt), also under load.
    pub idle: Microjoules,
    /// What a parked GPU context adds.
    pub context: Microjoules,
    /// Given to requests.
    pub requests: Microjoules,
    /// A service's energy with nothing in flight.
    pub overhead: Microjoules,
    /// Processes that belong to no service.
    pub other: Microjoules,
    /// perjoule's own CPU.
    pub agent: Microjoules,
    /// Above the floor with no known user.
    pub unattributed: Microjoules,
    /// The counter ran while nobody looked.
    pub gap: Microjoules,
}

impl Accounts {
    /// The accounts' names, in the order of [`Self::values`].
    pub const NAMES: [&'static str; 8] = [
        "idle",
        "context",
        "requests",
        "overhead",
        "other",
        "agent",
        "unattributed",
        "gap",
    ];

    /// Each account's energy, in the order of [`Self::NAMES`].
    pub const fn values(&self) -> [Microjoules; 8] {
        let Self {
            idle,
            context,
            requests,
            overhead,
            other,
            agent,
            unattributed,
            gap,
        } = *self;
        [
            idle,
            context,
            requests,
            overhead,
            other,
            agent,
            unattributed,
            gap,
        ]
    }

    /// Sum over all accounts.
    pub fn total(&self) -> Microjoules {
        self.values().into_iter().sum()
    }
}

/// A service's part of one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceShare {
    /// Whose.
    pub service: ServiceId,
    /// Given to its requests.
    pub requests: Microjoules,
    /// With nothing of its in flight.
    pub overhead: Microjoules,
    /// What its requests did with their part; `None` on other meters than GPUs, and where nobody wrote it
    /// down.
    pub phases: Option<GpuPhases>,
}

impl ServiceShare {
    pub(super) fn in_phases(self, phases: GpuPhases) -> Self {
        Self {
            phases: Some(phases),
            ..self
        }
    }
}

/// A service's part of a GPU's interval, or a request's GPU energy, by what the requests did. What is
/// left of it is of responses that do not stream: their phases are not seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GpuPhases {
    /// Reading prompts.
    pub prefill: Microjoules,
    /// Producing tokens that were streamed.
    pub decode: Microjoules,
    /// In flight while none was seen to do either.
    pub wait: Microjoules,
}

/// One closed interval of one meter.
#[derive(Debug, Clone)]
pub struct BookedInterval {
    /// Which meter.
    pub meter: MeterId,
    /// Its start: the end of the one before, or the first reading of an epoch.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
    /// The counter's delta.
    pub energy: Microjoules,
    /// Where it went; sums to `energy`.
    pub accounts: Accounts,
    /// The services' parts of `requests` and `overhead`; sum to those accounts. Every service that is
    /// known to hold the device is among them.
    pub services: Vec<ServiceShare>,
    /// How many hold the device, services and other processes, if that is known: its context is
    /// theirs in equal parts.
    pub holders: Option<u32>,
}

/// How a figure was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Measured with a full timeline.
    A,
    /// Measured with a coarser share.
    B,
    /// Estimated.
    C,
}

/// How far a request's energy may be off: half-widths of 95 % intervals ÷ value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ErrorRatios {
    /// By what may be another request's of its service instead: it cancels in their sum.
    pub own: f64,
    /// By what hits all of its service's requests alike: the idle floor, other services on the
    /// same device, the host's shares, holes.
    pub common: f64,
}

impl ErrorRatios {
    /// Both together.
    pub fn total(self) -> f64 {
        (self.own * self.own + self.common * self.common).sqrt()
    }
}

/// One request, wholly booked: every interval it overlaps on every meter is closed.
#[derive(Debug, Clone, Copy)]
pub struct BookedRequest {
    /// The request as it ended.
    pub request: Request,
    /// Energy from GPUs; `None` if no GPU meter exists.
    pub gpu: Option<Microjoules>,
    /// What it did with that; `None` with it, and where nobody wrote it down.
    pub phases: Option<GpuPhases>,
    /// Energy from CPU packages; `None` if no CPU meter exists.
    pub cpu: Option<Microjoules>,
    /// Energy from memory; `None` if no such meter exists.
    pub dram: Option<Microjoules>,
    /// How the figure was made.
    pub class: Class,
    /// How far its energy may be off; `None` if nobody knows.
    pub errors: Option<ErrorRatios>,
    /// Its tokens, where more is known of them than its chunks show.
    pub tokens: Option<TokenCount>,
}

/// What the ledger gives out, in the order it was booked.
#[derive(Debug, Clone)]
pub enum Booked {
    /// A closed interval.
    Interval(BookedInterval),
    /// A request, wholly booked.
    Request(BookedRequest),
    /// A hole in a meter's time whose energy nobody knows (reset, refused delta).
    Hole {
        /// Which meter.
        meter: MeterId,
        /// Its start.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
        /// Why: `reset` or `refused`.
        reason: &'static str,
    },
}
