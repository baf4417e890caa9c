//! How the agent's memory goes back to the system.

/// Blocks of this size have pages of their own, which go back when they are freed; of the heap's
/// end as much is kept. Left alone, the allocator raises both to tens of megabytes with the first
/// large block that is freed, and what loading took at the start, or a burst of requests, would
/// stay the agent's for good.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 * 1024;

/// To be called once, before anything large is allocated.
pub(super) fn give_back_what_is_freed() {
    #[cfg(target_env = "gnu")]
    for setting in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: it takes two integers; the allocator locks itself.
        if unsafe { libc::mallopt(setting, LARGE) } == 0 {
            log::debug!("the allocator keeps freed memory as it likes");
        }
    }
}
