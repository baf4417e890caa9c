//! Event sets: which devices each watches, and up to when it has told their errors.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gpu_state::boottime_ns;

use crate::abi::{INVALID_ARGUMENT, TIMEOUT};
use crate::library::{Failure, Machine};

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// All sets, by handle.
#[derive(Default)]
pub(crate) struct Events(Mutex<Sets>);

#[derive(Default)]
struct Sets {
    made: usize,
    /// By device: the errors told so far.
    open: HashMap<usize, HashMap<usize, usize>>,
}

impl Events {
    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn create(&self) -> usize {
        let mut sets = self.sets();
        sets.made += 1;
        let handle = sets.made;
        sets.open.insert(handle, HashMap::new());
        handle
    }

    pub(crate) fn register(&self, set: usize, device: usize, watched: bool) -> Result<(), Failure> {
        let mut sets = self.sets();
        let devices = sets.open.get_mut(&set).ok_or(Failure(INVALID_ARGUMENT))?;
        if watched {
            devices.insert(device, 0);
        }
        Ok(())
    }

    /// The next error of a watched device, and that device.
    pub(crate) fn wait(
        &self,
        machine: &Machine,
        set: usize,
        timeout_ms: u32,
    ) -> Result<(usize, u64), Failure> {
        let begun = Instant::now();
        loop {
            if let Some(found) = self.next(machine, set)? {
                return Ok(found);
            }
            if begun.elapsed() >= Duration::from_millis(u64::from(timeout_ms)) {
                return Err(Failure(TIMEOUT));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn next(&self, machine: &Machine, set: usize) -> Result<Option<(usize, u64)>, Failure> {
        let age = machine.age_s(boottime_ns());
        let mut sets = self.sets();
        let devices = sets.open.get_mut(&set).ok_or(Failure(INVALID_ARGUMENT))?;
        for (device, told) in devices {
            let xids = machine
                .scenario
                .devices
                .get(*device)
                .map(|device| &device.xids);
            let next = xids.and_then(|xids| xids.get(*told));
            if let Some(xid) = next.filter(|xid| xid.at_s <= age) {
                *told += 1;
                return Ok(Some((*device, xid.code)));
            }
        }
        Ok(None)
    }

    pub(crate) fn free(&self, set: usize) -> Result<(), Failure> {
        let freed = self.sets().open.remove(&set);
        freed.map(|_| ()).ok_or(Failure(INVALID_ARGUMENT))
    }
}
