//! What the two sides tell each other about io_urings.

/// Whether completions are followed, and need be.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Rings {
    /// Not 0 once a service's process moved bytes of a socket through a ring. Kernel to agent.
    pub seen: u64,
    /// Not 0 while rings' completions are followed. Agent to kernel.
    pub followed: u64,
}

/// The word of [`Rings::seen`].
pub const SEEN: usize = core::mem::offset_of!(Rings, seen) / 8;
/// The byte of [`Rings::followed`].
pub const FOLLOWED: usize = core::mem::offset_of!(Rings, followed);
