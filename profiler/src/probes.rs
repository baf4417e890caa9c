//! User side of each probe, one module a subject with the same name as in the kernel.

include!(concat!(env!("OUT_DIR"), "/object.rs"));
