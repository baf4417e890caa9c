//! Who holds a context on a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{GpuState, PublishError};

/// A process that holds a context on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// What it has allocated on the device, bytes.
    pub memory_bytes: u64,
}

/// A context; it is closed when this is dropped.
#[derive(Debug)]
pub struct ProcessSlot {
    state: Arc<GpuState>,
    device: usize,
    slot: usize,
}

impl GpuState {
    /// Opens a context for `process` on `device`.
    ///
    /// # Errors
    /// There is no such device, or no room for one more process.
    pub fn open_context(
        self: &Arc<Self>,
        device: usize,
        process: Process,
    ) -> Result<ProcessSlot, PublishError> {
        let slots = &self
            .device(device)
            .ok_or(PublishError::NoSuchDevice(device))?
            .processes;
        for (slot, entry) in slots.iter().enumerate() {
            // A killed process cannot close its context; the driver does that for it.
            let holder = entry.pid.load(Ordering::Acquire);
            if holder != 0 && is_alive(holder) {
                continue;
            }
            if claim(&entry.pid, holder, process.pid) {
                entry
                    .memory_bytes
                    .store(process.memory_bytes, Ordering::Release);
                return Ok(ProcessSlot {
                    state: Arc::clone(self),
                    device,
                    slot,
                });
            }
        }
        Err(PublishError::TooManyProcesses(device))
    }

    /// The living processes that hold a context on `device`.
    pub fn processes(&self, device: usize) -> Vec<Process> {
        let Some(layout) = self.device(device) else {
            return Vec::new();
        };
        layout
            .processes
            .iter()
            .map(|entry| (entry.pid.load(Ordering::Acquire), &entry.memory_bytes))
            .filter(|(pid, _)| *pid != 0 && is_alive(*pid))
            .map(|(pid, memory)| Process {
                pid: pid as u32,
                memory_bytes: memory.load(Ordering::Acquire),
            })
            .collect()
    }
}

impl Drop for ProcessSlot {
    fn drop(&mut self) {
        let entry = self
            .state
            .device(self.device)
            .and_then(|layout| layout.processes.get(self.slot));
        if let Some(entry) = entry {
            entry.pid.store(0, Ordering::Release);
        }
    }
}

fn claim(pid: &AtomicU64, holder: u64, new: u32) -> bool {
    pid.compare_exchange(holder, u64::from(new), Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

fn is_alive(pid: u64) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else {
        return false;
    };
    // SAFETY: signal 0 is sent to nobody; it only asks whether the process exists.
    let found = unsafe { libc::kill(pid, 0) } == 0;
    found || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_listed_until_it_is_closed() {
        let state = Arc::new(GpuState::anonymous().unwrap());
        let process = Process {
            pid: std::process::id(),
            memory_bytes: 70 << 30,
        };
        let context = state.open_context(1, process).unwrap();
        assert_eq!(state.processes(1), [process]);
        assert_eq!(state.processes(0), []);
        drop(context);
        assert_eq!(state.processes(1), []);
    }

    #[test]
    fn a_dead_process_holds_no_context() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = Process {
            pid: child.id(),
            memory_bytes: 1,
        };
        child.wait().unwrap();
        let state = Arc::new(GpuState::anonymous().unwrap());
        let _context = state.open_context(0, dead).unwrap();
        assert_eq!(state.processes(0), []);
    }
}
