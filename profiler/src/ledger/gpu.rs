//! The GPU rule: how an interval's energy above idle goes to the requests in flight.
//!
//! In: each service's work in the interval, κ, the idle levels, who holds the GPU. Out: accounts,
//! and energy per service and kind of work.
//!
//! A prefill step takes as long alone as in company, so its whole energy is its own request's. A
//! decode step costs nearly the same for one as for many, so it is split by the chunks it
//! produced. With p the prefill time, c the chunks and T the time with anything in flight:
//! w = κ·p + (T − Σp)·c ⁄ Σc. Given the steps' energies this is their Shapley value. Where services
//! share the GPU, T − Σp is first divided among those that decode, by the time in which they do.
//!
//! Processes that serve nothing get their part first, by how busy they kept the GPU: of them no
//! time line is known. A GPU that is split (MIG) is divided over its instances before (`instances`),
//! and each by these rules.
//!
//! A response that does not stream shows neither prefill nor chunks. Alone it weighs by time in
//! service; beside streams it is taken to be in every decode step, which is what a stream is.

use super::floor::Base;
use super::holding::Held;
use super::split::split;
use super::walk::Stretch;
use super::work::{CHUNK, KINDS, Kind, RATE_ONE, Timeline};
use super::{Accounts, GpuPhases, ServiceShare};
use crate::units::Microjoules;

/// A service that has put something out has had this time at least, seconds.
const LEAST_TURN: f64 = 1e-9;

/// An interval to divide.
pub(super) struct Question<'a> {
    pub(super) energy: Microjoules,
    pub(super) base: Base,
    pub(super) kappa: f64,
    pub(super) stretch: &'a Stretch,
    pub(super) timeline: &'a Timeline,
    /// Who holds the GPU, if that is known.
    pub(super) held: Option<&'a Held>,
    /// The GPU as a whole, or its instances.
    pub(super) parts: &'a [Part],
    /// Seconds between two chunks of one stream, by service's place.
    pub(super) spacing: &'a dyn Fn(u32) -> f64,
    /// True if requests were lost.
    pub(super) lost: bool,
}

/// A GPU, or one instance of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    /// What it gets of the energy above idle, beside the others'.
    pub(super) weight: f64,
    /// The services whose requests count, by place.
    pub(super) services: Vec<u32>,
    /// Who pays where nothing is in flight, if that is known.
    pub(super) payers: Option<Payers>,
    /// The part of the work that processes did which serve nothing.
    pub(super) foreign: f64,
}

/// Who holds a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Payers {
    /// By place.
    pub(super) services: Vec<u32>,
    pub(super) others: u32,
}

/// Where an interval's energy goes.
#[derive(Debug, Default)]
pub(super) struct Division {
    pub(super) accounts: Accounts,
    /// By service's place.
    pub(super) shares: Vec<(u32, ServiceShareParts)>,
    /// µJ by service's place and kind of work.
    pub(super) energies: Vec<[u64; KINDS]>,
    /// Time in each phase, if it can teach κ.
    pub(super) phases: Option<Phases>,
    /// Seconds in which something was in flight.
    pub(super) busy: f64,
    /// µJ of requests over which services contend: all where two have equal parts, none where
    /// there is one.
    pub(super) contended: f64,
    /// The same of the GPU's instances, and of all that is above idle.
    pub(super) across: f64,
}

impl Division {
    /// A service's energy by what its requests did.
    pub(super) fn phases_of(&self, service: u32) -> GpuPhases {
        let kinds = self.energies.get(service as usize);
        let energy = |kind: Kind| {
            let energy = kinds.and_then(|kinds| kinds.get(kind as usize));
            Microjoules(energy.copied().unwrap_or(0))
        };
        GpuPhases {
            prefill: energy(Kind::Prefill),
            decode: energy(Kind::Decode),
            wait: energy(Kind::Residency),
        }
    }

    /// µJ of requests that were shared by time in service.
    pub(super) fn by_time(&self) -> f64 {
        let [unstreamed, resident] = [Kind::Unstreamed as usize, Kind::Residency as usize];
        self.energies
            .iter()
            .map(|kinds| (kinds[unstreamed] + kinds[resident]) as f64)
            .sum()
    }

    /// Adds what another part of the same GPU got.
    fn join(&mut self, part: Self) {
        let Self {
            accounts,
            shares,
            energies,
            phases: _,
            busy: _,
            contended,
            across: _,
        } = part;
        self.accounts.requests += accounts.requests;
        self.accounts.overhead += accounts.overhead;
        self.accounts.other += accounts.other;
        self.accounts.unattributed += accounts.unattributed;
        for (service, share) in shares {
            match self.shares.iter_mut().find(|(known, _)| *known == service) {
                Some((_, known)) => {
                    known.requests += share.requests;
                    known.overhead += share.overhead;
                }
                None => self.shares.push((service, share)),
            }
        }
        if self.energies.len() < energies.len() {
            self.energies.resize(energies.len(), [0; KINDS]);
        }
        for (all, more) in self.energies.iter_mut().zip(energies) {
            for (all, more) in all.iter_mut().zip(more) {
                *all += more;
            }
        }
        self.contended += contended;
    }
}

/// How much of `parts` is in doubt where only their sum is sure.
fn in_doubt(parts: impl Iterator<Item = u64> + Clone) -> f64 {
    let all = parts.clone().sum::<u64>() as f64;
    let most = parts.max().unwrap_or(0) as f64;
    (2.0 * (all - most)).min(all)
}

/// A service's part of an interval, µJ.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ServiceShareParts {
    pub(super) requests: u64,
    pub(super) overhead: u64,
}

impl ServiceShareParts {
    /// The same, for the world outside.
    pub(super) fn of(self, service: super::ServiceId) -> ServiceShare {
        ServiceShare {
            service,
            requests: Microjoules(self.requests),
            overhead: Microjoules(self.overhead),
            phases: None,
        }
    }
}

/// Seconds in each phase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phases {
    pub(super) prefill: f64,
    pub(super) decode: f64,
}

/// The accounts of an interval's base, and what is left above it.
pub(super) fn above(energy: Microjoules, base: Base) -> (Accounts, u64) {
    let idle = energy.min(base.idle);
    let context = (energy - idle).min(base.context);
    (
        Accounts {
            idle,
            context,
            ..Accounts::default()
        },
        (energy - idle - context).0,
    )
}

fn seconds(amount: u128) -> f64 {
    amount as f64 / RATE_ONE as f64 * 1e-9
}

/// Seconds in which something was in flight, and those of them in prefill; what `told` is to be
/// multiplied with so that it does not exceed them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InFlight {
    pub(super) busy: f64,
    pub(super) prefill: f64,
    scale: f64,
}

/// What `services` did in a stretch; `None` where nothing of theirs was in flight.
pub(super) fn in_flight(
    stretch: &Stretch,
    timeline: &Timeline,
    services: &[u32],
) -> Option<InFlight> {
    let total = |kind| {
        let amounts = services
            .iter()
            .map(|&service| stretch.amount(service, kind));
        amounts.sum::<u128>()
    };
    if total(Kind::Residency) == 0 {
        return None;
    }
    let busy = stretch.busy(timeline, services) as f64 * 1e-9;
    let told = seconds(total(Kind::Prefill));
    let prefill = told.min(busy);
    let scale = if told > 0.0 { prefill / told } else { 0.0 };
    Some(InFlight {
        busy,
        prefill,
        scale,
    })
}

/// Divides an interval.
pub(super) fn divide(question: &Question<'_>) -> Division {
    let (accounts, left) = above(question.energy, question.base);
    let mut whole = Division {
        accounts,
        ..Division::default()
    };
    let weights: Vec<f64> = question.parts.iter().map(|part| part.weight).collect();
    let energies = split(left, &weights);
    for (part, &energy) in question.parts.iter().zip(&energies) {
        let division = divide_part(question, part, energy);
        if question.parts.len() == 1 {
            whole.phases = division.phases;
        }
        whole.busy = whole.busy.max(division.busy);
        whole.join(division);
    }
    let given: u64 = energies.iter().sum();
    whole.accounts.unattributed += Microjoules(left - given);
    whole.across = in_doubt(energies.iter().copied());
    // Every other service that holds the GPU is named too.
    for &service in question.held.into_iter().flat_map(|held| &held.services) {
        if whole.shares.iter().all(|(known, _)| *known != service) {
            whole.shares.push((service, ServiceShareParts::default()));
        }
    }
    whole
}

/// Divides what one part of the GPU got.
fn divide_part(question: &Question<'_>, part: &Part, left: u64) -> Division {
    let stretch = question.stretch;
    let services = part.services.as_slice();
    let mut accounts = Accounts::default();
    let Some(InFlight {
        busy,
        prefill,
        scale: prefill_scale,
    }) = in_flight(stretch, question.timeline, services)
    else {
        let shares = quiet(question.lost, part, left, &mut accounts);
        return Division {
            accounts,
            shares,
            ..Division::default()
        };
    };
    let total = |kind| {
        services
            .iter()
            .map(|&s| stretch.amount(s, kind))
            .sum::<u128>()
    };
    let decode = busy - prefill;
    let chunks = |service| stretch.amount(service, Kind::Decode) as f64 / CHUNK as f64;
    let unstreamed = |service| {
        let streams = seconds(stretch.amount(service, Kind::Unstreamed)) / busy;
        streams * decode / (question.spacing)(service)
    };
    let own_prefill = |service| seconds(stretch.amount(service, Kind::Prefill)) * prefill_scale;
    // Engines that share a GPU decode in steps of their own: while two of them do, each has half of
    // the time, however many tokens its steps give.
    let outputs = |service| chunks(service) + unstreamed(service);
    let turn = |service| {
        if outputs(service) > 0.0 {
            let resident = seconds(stretch.amount(service, Kind::Residency));
            (resident - own_prefill(service)).clamp(LEAST_TURN, decode.max(LEAST_TURN))
        } else {
            0.0
        }
    };
    let all_turns: f64 = services.iter().map(|&s| turn(s)).sum();
    let per_chunk = |service| {
        if outputs(service) > 0.0 {
            decode * (turn(service) / all_turns) / outputs(service)
        } else {
            0.0
        }
    };

    let mut weights = vec![0.0; stretch.amounts.len() * KINDS];
    let mut put = |service: u32, kind: Kind, weight: f64| {
        if stretch.amount(service, kind) > 0
            && let Some(place) = weights.get_mut(service as usize * KINDS + kind as usize)
        {
            *place = weight;
        }
    };
    for &service in services {
        let per_chunk = per_chunk(service);
        put(
            service,
            Kind::Prefill,
            question.kappa * own_prefill(service),
        );
        put(service, Kind::Decode, per_chunk * chunks(service));
        put(service, Kind::Unstreamed, per_chunk * unstreamed(service));
    }
    let weightless = !weights.iter().any(|weight| *weight > 0.0);
    if weightless {
        for &service in services {
            let time = seconds(stretch.amount(service, Kind::Residency));
            if let Some(place) =
                weights.get_mut(service as usize * KINDS + Kind::Residency as usize)
            {
                *place = time;
            }
        }
    }
    let (left, foreign) = part_off(left, part.foreign);
    accounts.other = foreign;
    let parts = split(left, &weights);
    let energies: Vec<[u64; KINDS]> = parts
        .chunks_exact(KINDS)
        .map(|parts| std::array::from_fn(|kind| parts.get(kind).copied().unwrap_or(0)))
        .collect();
    let shares = services
        .iter()
        .filter_map(|&service| {
            let requests = energies.get(service as usize)?.iter().sum();
            let share = ServiceShareParts {
                requests,
                overhead: 0,
            };
            (requests > 0).then_some((service, share))
        })
        .collect();
    accounts.requests = Microjoules(left);
    let teaches = !weightless && total(Kind::Unstreamed) == 0 && foreign == Microjoules::ZERO;
    let decode = if total(Kind::Decode) > 0 { decode } else { 0.0 };
    let phases = teaches.then_some(Phases { prefill, decode });
    let contended = in_doubt(energies.iter().map(|kinds| kinds.iter().sum()));
    Division {
        accounts,
        shares,
        energies,
        phases,
        busy,
        contended,
        across: 0.0,
    }
}

/// What is left when a part between 0 and 1 is taken off, and that part.
fn part_off(energy: u64, part: f64) -> (u64, Microjoules) {
    let part = ((energy as f64 * part) as u64).min(energy);
    (energy - part, Microjoules(part))
}

/// Nothing was in flight: what is above the floor belongs to whoever holds the GPU.
fn quiet(
    lost: bool,
    part: &Part,
    left: u64,
    accounts: &mut Accounts,
) -> Vec<(u32, ServiceShareParts)> {
    let energy = Microjoules(left);
    match &part.payers {
        Some(held) if !lost && !held.services.is_empty() => {
            let (left, foreign) = part_off(left, part.foreign);
            accounts.other = foreign;
            accounts.overhead = Microjoules(left);
            let parts = split(left, &vec![1.0; held.services.len()]);
            held.services
                .iter()
                .zip(parts)
                .filter(|(_, overhead)| *overhead > 0)
                .map(|(&service, overhead)| {
                    (
                        service,
                        ServiceShareParts {
                            requests: 0,
                            overhead,
                        },
                    )
                })
                .collect()
        }
        Some(held) if !lost && held.others > 0 => {
            accounts.other = energy;
            Vec::new()
        }
        _ => {
            accounts.unattributed = energy;
            Vec::new()
        }
    }
}
