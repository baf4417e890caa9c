//! Critical errors (XID) of boards, as the driver tells them.
//!
//! A set of events is asked once a round with hardly any wait: the driver keeps what has happened
//! in between, and no further thread has to sleep in the driver.

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use nvml_wrapper_sys::bindings::{nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t};

/// `nvmlEventTypeXidCriticalError`.
const XID_CRITICAL: u64 = 8;
/// Longer than 0, which some drivers take for "for ever".
const WAIT_MS: u32 = 1;
/// A board that floods cannot hold the thread.
const MOST_AT_ONCE: usize = 64;

/// A set of events of an open session. Not nvml-wrapper's, which panics when it is dropped where the
/// driver lacks one of the functions.
pub(super) struct Events<'n> {
    nvml: &'n Nvml,
    set: nvmlEventSet_t,
    /// The boards in it, by UUID: a board that is lost does not tell its own any more.
    registered: Vec<(nvmlDevice_t, String)>,
}

impl<'n> Events<'n> {
    /// # Errors
    /// The driver has no event sets.
    pub(super) fn new(nvml: &'n Nvml) -> Result<Self, NvmlError> {
        let library = nvml.lib();
        nvml_sym(library.nvmlEventSetFree.as_ref())?;
        let create = nvml_sym(library.nvmlEventSetCreate.as_ref())?;
        let mut set: nvmlEventSet_t = std::ptr::null_mut();
        // SAFETY: the session is open, and `set` is ours to be written.
        nvml_try(unsafe { create(&raw mut set) })?;
        Ok(Self {
            nvml,
            set,
            registered: Vec::new(),
        })
    }

    /// From now on tells this board's errors.
    ///
    /// # Errors
    /// The board does not tell them.
    pub(super) fn register(&mut self, device: &Device<'n>, uuid: &str) -> Result<(), NvmlError> {
        let register = nvml_sym(self.nvml.lib().nvmlDeviceRegisterEvents.as_ref())?;
        // SAFETY: device and set are of the same open session.
        let handle = unsafe { device.handle() };
        // SAFETY: as above.
        nvml_try(unsafe { register(handle, XID_CRITICAL, self.set) })?;
        self.registered.retain(|(_, known)| known != uuid);
        self.registered.push((handle, uuid.to_owned()));
        Ok(())
    }

    /// The errors since the last time: whose, and which.
    pub(super) fn take(&self) -> Vec<(String, u64)> {
        let mut taken = Vec::new();
        let Ok(wait) = nvml_sym(self.nvml.lib().nvmlEventSetWait_v2.as_ref()) else {
            return taken;
        };
        while !self.registered.is_empty() && taken.len() < MOST_AT_ONCE {
            let mut event = nvmlEventData_t {
                device: std::ptr::null_mut(),
                eventType: 0,
                eventData: 0,
                gpuInstanceId: 0,
                computeInstanceId: 0,
            };
            // SAFETY: the set is of the open session, and `event` is ours to be written.
            if nvml_try(unsafe { wait(self.set, &raw mut event, WAIT_MS) }).is_err() {
                // Nothing has happened, or the boards are lost, which their reads say.
                break;
            }
            let mut boards = self.registered.iter();
            if event.eventType & XID_CRITICAL != 0
                && let Some((_, uuid)) = boards.find(|(device, _)| *device == event.device)
            {
                taken.push((uuid.clone(), event.eventData));
            }
        }
        taken
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        if let Ok(free) = &self.nvml.lib().nvmlEventSetFree {
            // SAFETY: the set was created in this session, which is still open, and is not used
            // again.
            unsafe { free(self.set) };
        }
    }
}
