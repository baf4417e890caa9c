//! Keeps the list of services fresh, on a thread of its own: reading /proc takes milliseconds.
//!
//! In: who holds which GPU, and whether processes come and go. Out: [`Update`]s, each with the
//! services as of one look, what changed since the one before, and who of them holds a GPU.
//!
//! The thread looks at once when processes have come or gone, but at most once a second (seldomer
//! where a look takes long, as among ten thousand processes), and sleeps for ten seconds where nothing
//! stirs; while a service that has ended may be being started
//! again it looks ten times a second.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::ledger::{Holders, MeterId, ServiceId};
use crate::meters::{GpuProcess, GpuProcesses};
use crate::services::{Changes, LISTENERS_EVERY, Population, Selection, Service, Services, Target};

/// Between two checks whether processes have come or gone. A service that has ended is looked for
/// as often, for it may be being started again: what a new process does is not seen until it is
/// known.
const CHECK: Duration = Duration::from_millis(100);
/// So long a service that has ended is looked for at each check.
const RESTART: Duration = Duration::from_secs(10);

/// Looks may take no more than one part of so many of the time: half a percent of a core.
const REST_PER_LOOK: u32 = 200;

/// What one look found.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) services: Vec<Service>,
    pub(super) changes: Changes,
    pub(super) holders: Vec<Holders>,
}

/// What the thread is told.
#[derive(Debug)]
enum Told {
    /// Others than before hold this GPU.
    Holders(MeterId, Vec<GpuProcess>),
    /// Processes have come or gone.
    Stirred,
}

/// The thread's other end. Dropping it ends the thread at its next look.
#[derive(Debug)]
pub(super) struct Watch {
    tell: Sender<Told>,
    updates: Receiver<Update>,
    /// As told last.
    holders: BTreeMap<MeterId, Vec<GpuProcess>>,
    population: Population,
    checked: Timestamp,
}

impl Watch {
    /// Looks once, here, and then on the thread whenever something may have changed, but at most
    /// every `period`. Also returns the targets behind which nothing was found.
    pub(super) fn start(
        selection: Selection,
        host_root: &Path,
        period: Duration,
    ) -> io::Result<(Self, Update, Vec<Target>)> {
        // Before the look: who comes while it lasts is a change.
        let population = Population::new(Path::new("/proc"));
        let mut services = Services::new(selection, Path::new("/proc"), host_root);
        let first = look(&mut services, &BTreeMap::new(), Timestamp::now())?;
        let missing = services.missing().into_iter().cloned().collect();
        let (tell, told) = mpsc::channel();
        let (sender, updates) = mpsc::channel();
        thread::Builder::new()
            .name("services".into())
            .spawn(move || watch(services, period, &told, &sender))?;
        let watch = Self {
            tell,
            updates,
            holders: BTreeMap::new(),
            population,
            checked: Timestamp::now(),
        };
        Ok((watch, first, missing))
    }

    /// One behind which there is no thread.
    #[cfg(test)]
    pub(super) fn of_nobody() -> Self {
        Self {
            tell: mpsc::channel().0,
            updates: mpsc::channel().1,
            holders: BTreeMap::new(),
            population: Population::new(Path::new("/nonexistent")),
            checked: Timestamp::now(),
        }
    }

    /// Who holds a GPU; the next update says which services they are.
    pub(super) fn tell(&mut self, processes: GpuProcesses) {
        let GpuProcesses {
            meter, processes, ..
        } = processes;
        if self.holders.get(&meter) != Some(&processes) {
            self.holders.insert(meter, processes.clone());
            // A thread that has ended has said so in the log.
            let _ = self.tell.send(Told::Holders(meter, processes));
        }
    }

    /// Who holds which GPU, as told last.
    pub(super) const fn holders(&self) -> &BTreeMap<MeterId, Vec<GpuProcess>> {
        &self.holders
    }

    /// Wakes the thread if processes have come or gone; to be called with every tick. Here, since
    /// a thread that wakes for this alone costs more than the check.
    pub(super) fn check(&mut self, now: Timestamp) {
        if now >= self.checked.plus(CHECK) {
            self.checked = now;
            if self.population.has_changed() {
                let _ = self.tell.send(Told::Stirred);
            }
        }
    }

    /// The oldest update not yet taken.
    pub(super) fn next(&self) -> Option<Update> {
        self.updates.try_recv().ok()
    }
}

fn watch(
    mut services: Services,
    period: Duration,
    told: &Receiver<Told>,
    updates: &Sender<Update>,
) {
    let mut gpus = BTreeMap::new();
    let mut ended = HashMap::new();
    let mut looked = Instant::now();
    let shortest = period;
    let mut period = period;
    let (mut stirred, mut starting) = (false, false);
    loop {
        let due = looked
            + if stirred || services.is_settling() {
                period
            } else {
                period.max(LISTENERS_EVERY)
            };
        let next = if starting {
            due.min(looked + CHECK)
        } else {
            due
        };
        let mut is_new = false;
        match told.recv_timeout(next.saturating_duration_since(Instant::now())) {
            // A process that is new on a GPU is looked up at once: its requests count.
            Ok(Told::Holders(meter, processes)) => {
                gpus.insert(meter, processes);
                is_new = true;
            }
            Ok(Told::Stirred) => stirred = true,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        if stirred || starting {
            starting = may_be_starting(&services, &mut ended, now);
        }
        let is_due = now >= if stirred { looked + period } else { due };
        let is_awaited = starting && now >= looked + CHECK;
        if !(is_new || is_due || is_awaited) {
            continue;
        }
        stirred = false;
        let found = look(&mut services, &gpus, Timestamp::now());
        looked = Instant::now();
        period = shortest.max((looked - now) * REST_PER_LOOK);
        match found {
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

/// Looks at all services; `gpus`: who holds them.
pub(super) fn look(
    services: &mut Services,
    gpus: &BTreeMap<MeterId, Vec<GpuProcess>>,
    now: Timestamp,
) -> io::Result<Update> {
    let pids: Vec<(MeterId, Vec<u32>)> = gpus
        .iter()
        .map(|(meter, on)| (*meter, on.iter().map(|process| process.pid).collect()))
        .collect();
    let changes = services.refresh(&pids, now)?;
    let holders = gpus.iter().map(|(meter, on)| {
        let on: Vec<(u32, Option<u32>)> = on.iter().map(|on| (on.pid, on.instance)).collect();
        services.holders(*meter, now, &on)
    });
    let holders = holders.collect();
    Ok(Update {
        services: services.iter().cloned().collect(),
        changes,
        holders,
    })
}
