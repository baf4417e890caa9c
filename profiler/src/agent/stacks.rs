//! Sampled stacks on their way from the ring to what is on disk. To find names takes files and time, so a
//! thread of its own does it.

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use super::sinks::Sinks;
use crate::clock::Timestamp;
use crate::ledger::ServiceId;
use crate::probes::stacks::{Sampled, StackReader};
use crate::profiles::SEPARATOR;
use crate::profiles::symbols::{Addresses, Symbols};
use crate::recording::{RecordedSample, RecordedWait, StackId};
use crate::waits::Reason;

/// Between two looks into the ring. A process that ends within this time may go without names.
const PERIOD: Duration = Duration::from_millis(250);
/// Samples that are named together: addresses of more would take megabytes.
const BATCH: usize = 1_024;
/// Where the kernel's scheduler begins.
const SCHEDULER: [&str; 3] = ["schedule_[k]", "__schedule_[k]", "schedule_idle_[k]"];
/// So long the agent waits at its end for the names of the last samples.
const PATIENCE: Duration = Duration::from_secs(2);

/// A sample with its name.
#[derive(Debug)]
struct Named {
    at: Timestamp,
    waited: Option<(Reason, u64)>,
    owner: u8,
    package: u32,
    stack: StackId,
    /// The stack's text, with the first sample of it among those that were named together: files take turns
    /// between such, and each is to hold the texts of its own samples.
    text: Option<String>,
}

/// The thread's other end.
#[derive(Debug)]
pub(super) struct Stacks {
    named: Receiver<Vec<Named>>,
    /// The thread goes on while this is there.
    running: Option<Sender<()>>,
}

impl Stacks {
    /// Starts the thread.
    pub(super) fn start(mut reader: StackReader) -> io::Result<Self> {
        let (running, stop) = mpsc::channel::<()>();
        let (sender, named) = mpsc::channel();
        thread::Builder::new()
            .name("stacks".into())
            .spawn(move || {
                let mut naming = Naming::default();
                loop {
                    let is_last = stop.recv_timeout(PERIOD) == Err(RecvTimeoutError::Disconnected);
                    loop {
                        let samples: Vec<Sampled> =
                            std::iter::from_fn(|| reader.read()).take(BATCH).collect();
                        if samples.is_empty() {
                            break;
                        }
                        if sender.send(naming.name(&samples)).is_err() {
                            return;
                        }
                    }
                    if is_last {
                        return;
                    }
                }
            })?;
        Ok(Self {
            named,
            running: Some(running),
        })
    }

    /// Writes what was named since. Does not wait. `service`: whose an index is.
    pub(super) fn drain(&self, service: impl Fn(u8) -> Option<ServiceId>, sinks: &mut Sinks) {
        while let Ok(named) = self.named.try_recv() {
            write(named, &service, sinks);
        }
    }

    /// Ends the thread and writes what it has left.
    pub(super) fn finish(mut self, service: impl Fn(u8) -> Option<ServiceId>, sinks: &mut Sinks) {
        self.running = None;
        loop {
            match self.named.recv_timeout(PATIENCE) {
                Ok(named) => write(named, &service, sinks),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    log::warn!("the last stacks have no names yet and are left out");
                    return;
                }
            }
        }
    }
}

fn write(named: Vec<Named>, service: impl Fn(u8) -> Option<ServiceId>, sinks: &mut Sinks) {
    for sample in named {
        if let Some(text) = sample.text {
            sinks.stack(sample.stack, &text);
        }
        // One whose service was forgotten meanwhile is nobody's.
        let Some(service) = service(sample.owner) else {
            continue;
        };
        let Named { at, stack, .. } = sample;
        match sample.waited {
            Some((reason, nanos)) => sinks.stack_wait(&RecordedWait {
                service,
                at,
                nanos,
                reason,
                stack,
            }),
            None => sinks.stack_sample(&RecordedSample {
                service,
                at,
                package: Some(sample.package),
                stack,
            }),
        }
    }
}

#[derive(Debug, Default)]
struct Naming {
    symbols: Symbols,
    /// By CPU.
    packages: Vec<Option<u32>>,
}

impl Naming {
    fn name(&mut self, samples: &[Sampled]) -> Vec<Named> {
        let addresses: Vec<Addresses<'_>> = samples
            .iter()
            .map(|sample| Addresses {
                pid: sample.pid,
                kernel: &sample.kernel,
                user: &sample.user,
            })
            .collect();
        let texts = self.symbols.name(&addresses);
        let mut told = HashSet::new();
        let named = samples.iter().zip(texts).map(|(sample, text)| {
            let text = match sample.waited {
                Some((reason, _)) => where_it_waits(&text, reason),
                None => text,
            };
            let stack = id(&text);
            Named {
                at: sample.at,
                waited: sample.waited,
                owner: sample.owner,
                package: package(&mut self.packages, sample.cpu),
                stack,
                text: told.insert(stack).then_some(text),
            }
        });
        named.collect()
    }
}

/// A stack that ends where the thread gave its CPU away, with the reason on top: the scheduler's and
/// the probe's own functions are left out.
fn where_it_waits(stack: &str, reason: Reason) -> String {
    let mut frames: Vec<&str> = stack.split(SEPARATOR).collect();
    if let Some(first) = frames.iter().position(|frame| SCHEDULER.contains(frame)) {
        frames.truncate(first);
    }
    let mut text = frames.join("\n");
    text.push(SEPARATOR);
    text += &format!("[{}]", reason.name());
    text
}

/// The same for the same text. Of a million stacks, two share one in one of sixteen million
/// recordings.
fn id(text: &str) -> StackId {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    StackId(hasher.finish().cast_signed())
}

/// A CPU's package; 0 where the machine tells none, as for its time.
fn package(known: &mut Vec<Option<u32>>, cpu: u32) -> u32 {
    let place = cpu as usize;
    if known.len() <= place {
        known.resize(place + 1, None);
    }
    let Some(package) = known.get_mut(place) else {
        return 0;
    };
    *package.get_or_insert_with(|| {
        let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id");
        let text = fs::read_to_string(file).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_that_are_named_together_tell_each_text_once_and_the_next_ones_tell_it_again() {
        let sample = || Sampled {
            at: Timestamp(1),
            waited: None,
            pid: std::process::id(),
            cpu: 0,
            owner: 0,
            kernel: Vec::new(),
            user: Vec::new(),
        };
        let mut naming = Naming::default();
        for _ in 0..2 {
            let named = naming.name(&[sample(), sample()]);
            let told: Vec<bool> = named.iter().map(|named| named.text.is_some()).collect();
            assert_eq!(told, [true, false]);
        }
    }

    #[test]
    fn a_wait_stands_on_what_waits_and_not_on_the_scheduler() {
        let stack = "p\nmain\ndo_futex_[k]\nschedule_[k]\n__schedule_[k]\nbpf_prog_1_[k]";
        assert_eq!(
            where_it_waits(stack, Reason::Futex),
            "p\nmain\ndo_futex_[k]\n[futex]"
        );
        assert_eq!(where_it_waits("p\nmain", Reason::Poll), "p\nmain\n[poll]");
    }
}
