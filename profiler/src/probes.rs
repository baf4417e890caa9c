//! User side of each probe, one module a subject with the same name as in the kernel, and what
//! they stand on: the object's loader, the kernel's types, the machine's requirements.

pub mod btf;
pub mod cuda;
pub mod events;
pub mod guard;
pub mod health;
pub mod load_error;
pub mod loader;
pub mod owners;
pub mod pmc;
pub mod requests;
pub mod requirements;
pub mod sched;
pub mod shared_memory;
pub mod stacks;
pub mod syscalls;
pub mod tls;
pub mod uprobes;

include!(concat!(env!("OUT_DIR"), "/object.rs"));
