//! Keeps the list of services fresh, on a thread of its own: reading /proc takes milliseconds.
//!
//! In: who holds which GPU. Out: [`Update`]s, each with the services as of one look, what changed
//! since the one before, and who of them holds a GPU.
//!
//! A look takes milliseconds and is due once a second; while a service that has ended may be
//! being started again, ten times a second.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::ledger::{Holders, MeterId, ServiceId};
use crate::meters::GpuProcesses;
use crate::services::{Changes, Selection, Service, Services, Target};

/// Between two checks whether every service still runs. One that has ended is looked for at each
/// of them, for it may be being started again: what a new process does is not seen until it is
/// known.
const CHECK: Duration = Duration::from_millis(100);
/// So long a service that has ended is looked for at each check.
const RESTART: Duration = Duration::from_secs(10);

/// What one look found.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) services: Vec<Service>,
    pub(super) changes: Changes,
    pub(super) holders: Vec<Holders>,
}

/// The thread's other end. Dropping it ends the thread at its next look.
#[derive(Debug)]
pub(super) struct Watch {
    gpus: Sender<GpuProcesses>,
    updates: Receiver<Update>,
}

impl Watch {
    /// Looks once, here, and then every `period` on the thread. Also returns the targets behind
    /// which nothing was found.
    pub(super) fn start(
        selection: Selection,
        period: Duration,
    ) -> io::Result<(Self, Update, Vec<Target>)> {
        let mut services = Services::new(selection);
        let first = look(&mut services, &BTreeMap::new())?;
        let missing = services.missing().into_iter().cloned().collect();
        let (gpus, told) = mpsc::channel();
        let (sender, updates) = mpsc::channel();
        thread::Builder::new()
            .name("services".into())
            .spawn(move || watch(services, period, &told, &sender))?;
        Ok((Self { gpus, updates }, first, missing))
    }

    /// Who holds a GPU; the next update says which services they are.
    pub(super) fn tell(&self, processes: GpuProcesses) {
        // A thread that has ended has said so in the log.
        let _ = self.gpus.send(processes);
    }

    /// The oldest update not yet taken.
    pub(super) fn next(&self) -> Option<Update> {
        self.updates.try_recv().ok()
    }
}

fn watch(
    mut services: Services,
    period: Duration,
    told: &Receiver<GpuProcesses>,
    updates: &Sender<Update>,
) {
    let mut gpus: BTreeMap<MeterId, GpuProcesses> = BTreeMap::new();
    let mut ended = HashMap::new();
    let mut next = Instant::now() + period;
    loop {
        let check = Instant::now() + CHECK;
        match told.recv_timeout(next.min(check).saturating_duration_since(Instant::now())) {
            Ok(processes) => {
                let known = gpus.insert(processes.meter, processes.clone());
                // A process that is new on a GPU is looked up at once: its requests count.
                if known.is_some_and(|known| known.pids == processes.pids) {
                    continue;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                if now < next && !may_be_starting(&services, &mut ended, now) {
                    continue;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        next = Instant::now() + period;
        match look(&mut services, &gpus) {
            Ok(update) => {
                if updates.send(update).is_err() {
                    return;
                }
            }
            Err(error) => log::warn!("services are not looked for: /proc: {error}"),
        }
    }
}

/// Whether a service has ended of late; `ended` says since when each has.
fn may_be_starting(
    services: &Services,
    ended: &mut HashMap<ServiceId, Instant>,
    now: Instant,
) -> bool {
    let before = std::mem::take(ended);
    ended.extend(services.ended().map(|id| {
        let since = before.get(&id).copied().unwrap_or(now);
        (id, since)
    }));
    ended
        .values()
        .any(|since| now.duration_since(*since) < RESTART)
}

fn look(services: &mut Services, gpus: &BTreeMap<MeterId, GpuProcesses>) -> io::Result<Update> {
    let pids: Vec<(MeterId, Vec<u32>)> = gpus
        .iter()
        .map(|(meter, processes)| (*meter, processes.pids.clone()))
        .collect();
    let changes = services.refresh(&pids)?;
    let now = Timestamp::now();
    let holders = pids
        .iter()
        .map(|(meter, pids)| services.holders(*meter, now, pids))
        .collect();
    Ok(Update {
        services: services.iter().cloned().collect(),
        changes,
        holders,
    })
}
