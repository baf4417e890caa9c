//! What a board is split into (MIG), and what its parts do (GPM).
//!
//! An instance has no meter of its own: energy and power are the board's. What it is good for is how
//! busy each kept its part, between two samples; the ledger divides the board's energy by that.

use std::time::Duration;

use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::nvmlDeviceAttributes_t;

use super::gpm::{self, Sample};
use super::support::{Figure, Record, is_absent, is_lost};
use crate::clock::Timestamp;
use crate::ledger::{Busy, Instance};
use crate::meters::source::Health;
use crate::telemetry::{Activity, MigInstance};

/// Instances come and go without a change of the mode.
const LIST_EVERY: Duration = Duration::from_secs(5);
/// Samples take this part of the time at most.
const DUTY: u32 = 100;
const SELDOM: Duration = Duration::from_secs(10);
/// Samples that are closer say nothing.
const LEAST: Duration = Duration::from_millis(200);

/// The parts of a board in one session of the driver.
#[derive(Debug, Default)]
pub(super) struct Parts<'n> {
    /// Whether it was split when it was looked at last.
    split: Option<bool>,
    instances: Vec<Part<'n>>,
    listed: Timestamp,
    whole: Option<Sample<'n>>,
    sampled: Timestamp,
    next: Timestamp,
}

#[derive(Debug)]
struct Part<'n> {
    instance: MigInstance,
    last: Option<Sample<'n>>,
}

/// What a look at them found.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// For the ledger, when there is something new, and up to when it is told.
    pub(super) busy: Option<(Timestamp, Busy)>,
    /// Of a board that is not split.
    pub(super) activity: Option<Activity>,
    /// What it is split into.
    pub(super) instances: Vec<MigInstance>,
}

impl<'n> Parts<'n> {
    /// Looks at them. `mig` says whether it is split, if it does; `used` are the instances that
    /// processes hold.
    ///
    /// # Errors
    /// The board itself does not answer.
    pub(super) fn look(
        &mut self,
        device: &Device<'n>,
        mig: Option<bool>,
        used: &[u32],
        record: &mut Record,
        health: &mut Health,
    ) -> Result<Seen, NvmlError> {
        let now = Timestamp::now();
        let is_split = mig.or(self.split).unwrap_or(false);
        let before = self.split.replace(is_split);
        if before != Some(is_split) {
            (self.instances, self.whole) = (Vec::new(), None);
            (self.listed, self.next) = (Timestamp::default(), now);
        }
        if !is_split {
            let activity = self.sample_whole(device, record, health)?;
            let none = Busy::Instances {
                from: now,
                instances: Vec::new(),
            };
            let busy = (before == Some(true)).then_some((now, none));
            return Ok(Seen {
                busy,
                activity,
                instances: Vec::new(),
            });
        }
        let unknown = |id: &u32| self.instances.iter().all(|part| part.instance.id != *id);
        if now >= self.listed.plus(LIST_EVERY) || used.iter().any(unknown) {
            self.list(device, record, health)?;
        }
        let busy = self.sample_instances(device, record, health)?;
        Ok(Seen {
            busy,
            activity: None,
            instances: self
                .instances
                .iter()
                .map(|part| part.instance.clone())
                .collect(),
        })
    }

    fn list(
        &mut self,
        device: &Device<'n>,
        record: &mut Record,
        health: &mut Health,
    ) -> Result<(), NvmlError> {
        let listed = record.ask(Figure::Instances, health, || list(device))?;
        let mut known = std::mem::take(&mut self.instances);
        for instance in listed.unwrap_or_default() {
            let place = known.iter().position(|part| part.instance == instance);
            self.instances.push(match place {
                Some(place) => known.swap_remove(place),
                None => Part {
                    instance,
                    last: None,
                },
            });
        }
        self.listed = Timestamp::now();
        Ok(())
    }

    /// Samples every instance; without monitors they are told without what they do.
    fn sample_instances(
        &mut self,
        device: &Device<'n>,
        record: &mut Record,
        health: &mut Health,
    ) -> Result<Option<(Timestamp, Busy)>, NvmlError> {
        let (from, start) = (self.sampled, Timestamp::now());
        let supported = self.is_due(start) && is_supported(device, record, health)?;
        if supported {
            self.begin(start);
        } else if record.wants(Figure::Activity, start) {
            return Ok(None);
        }
        let mut instances = Vec::with_capacity(self.instances.len());
        let mut gone = false;
        for part in &mut self.instances {
            let MigInstance { id, slices, .. } = part.instance;
            let activity = if supported {
                let sampled = sample(device, Some(id), &mut part.last, record, health)?;
                gone |= part.last.is_none();
                sampled
            } else {
                None
            };
            instances.push(Instance {
                id,
                slices,
                activity: activity
                    .as_ref()
                    .and_then(Activity::work)
                    .map(|work| work.0),
            });
        }
        if gone {
            self.listed = Timestamp::default();
        }
        self.rest(start);
        Ok(Some((start, Busy::Instances { from, instances })))
    }

    fn sample_whole(
        &mut self,
        device: &Device<'n>,
        record: &mut Record,
        health: &mut Health,
    ) -> Result<Option<Activity>, NvmlError> {
        let start = Timestamp::now();
        if !self.is_due(start) || !is_supported(device, record, health)? {
            return Ok(None);
        }
        self.begin(start);
        let activity = sample(device, None, &mut self.whole, record, health)?;
        self.rest(start);
        Ok(activity)
    }

    fn is_due(&self, now: Timestamp) -> bool {
        now >= self.next && now >= self.sampled.plus(LEAST)
    }

    fn begin(&mut self, now: Timestamp) {
        self.sampled = now;
    }

    /// A driver that takes long is asked the more seldom.
    fn rest(&mut self, start: Timestamp) {
        let took = Duration::from_nanos(Timestamp::now().since(start));
        self.next = start.plus((took * DUTY).min(SELDOM));
    }
}

fn is_supported(
    device: &Device<'_>,
    record: &mut Record,
    health: &mut Health,
) -> Result<bool, NvmlError> {
    let told = record.ask(Figure::Activity, health, || gpm::is_supported(device))?;
    Ok(told.is_some())
}

/// What was done since the last sample, which the new one replaces; `None` where there was none, or
/// the driver does not tell.
fn sample<'n>(
    device: &Device<'n>,
    instance: Option<u32>,
    last: &mut Option<Sample<'n>>,
    record: &mut Record,
    health: &mut Health,
) -> Result<Option<Activity>, NvmlError> {
    let earlier = last.take();
    let start = Timestamp::now();
    let taken = Sample::take(device, instance).and_then(|sample| {
        let told = earlier.as_ref().map(|earlier| sample.since(earlier));
        Ok((sample, told.transpose()?))
    });
    let end = Timestamp::now();
    health.called(start, end, taken.as_ref().err().is_none_or(is_absent));
    match taken {
        Ok((sample, activity)) => {
            *last = Some(sample);
            Ok(activity)
        }
        Err(error) if is_lost(&error) => Err(error),
        Err(error) => {
            // An instance may be gone; that says nothing of the others.
            if !matches!(error, NvmlError::NotFound | NvmlError::InvalidArg) {
                record.note(Figure::Activity, Err(&error), end);
            }
            Ok(None)
        }
    }
}

/// The board's instances. Several MIG devices can be on one: they share its slices.
fn list(device: &Device<'_>) -> Result<Vec<MigInstance>, NvmlError> {
    let mut instances: Vec<MigInstance> = Vec::new();
    for index in 0..device.mig_device_count()? {
        let mig = match device.mig_device_by_index(index) {
            Ok(mig) => mig,
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => continue,
            Err(error) => return Err(error),
        };
        let id = instance_id(&mig)?;
        if instances.iter().all(|known| known.id != id) {
            instances.push(MigInstance {
                id,
                slices: slices(&mig)?,
                uuid: mig.uuid().unwrap_or_default(),
            });
        }
    }
    Ok(instances)
}

fn instance_id(mig: &Device<'_>) -> Result<u32, NvmlError> {
    let symbol = nvml_sym(mig.nvml().lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let mut id = 0;
    // SAFETY: the handle is of an open session, which `mig` borrows, and `id` is ours.
    nvml_try(unsafe { symbol(mig.handle(), &raw mut id) })?;
    Ok(id)
}

fn slices(mig: &Device<'_>) -> Result<u32, NvmlError> {
    let symbol = nvml_sym(mig.nvml().lib().nvmlDeviceGetAttributes_v2.as_ref())?;
    // SAFETY: a plain C struct of numbers, for which all zeros are valid.
    let mut attributes: nvmlDeviceAttributes_t = unsafe { std::mem::zeroed() };
    // SAFETY: the handle is of an open session, which `mig` borrows, and `attributes` is ours.
    nvml_try(unsafe { symbol(mig.handle(), &raw mut attributes) })?;
    Ok(attributes.gpuInstanceSliceCount)
}
