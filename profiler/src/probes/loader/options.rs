//! What the object is loaded with, and where its programs are attached.

#[cfg(doc)]
use profiler_ebpf::ABSENT;

#[cfg(doc)]
use super::super::btf::Types;
use super::super::health::Tier;

/// A kernel struct's member whose offset a program reads as a global.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// The object's global (`u32`) that takes the offset, or [`ABSENT`].
    pub global: &'static str,
    /// The kernel's struct.
    pub structure: &'static str,
    /// The member's path in it, see [`Types::offset`].
    pub member: &'static str,
    /// Programs that cannot run without it. Others see [`ABSENT`] and leave the feature out.
    pub programs: &'static [&'static str],
}

/// What the object is loaded with.
#[derive(Debug, Clone)]
pub struct Options {
    pub(super) fields: Vec<Field>,
    pub(super) entries: Vec<(&'static str, u32)>,
    pub(super) globals: Vec<(&'static str, Vec<u8>)>,
    /// Kernel-side diagnostics below this level are removed before the verifier sees them.
    pub log_level: log::LevelFilter,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fields: Vec::new(),
            entries: Vec::new(),
            globals: Vec::new(),
            log_level: log::LevelFilter::Warn,
        }
    }
}

impl Options {
    /// The offsets of `fields` are wanted.
    pub fn fields(&mut self, fields: &[Field]) -> &mut Self {
        self.fields.extend_from_slice(fields);
        self
    }

    /// The map called `name` gets `entries` entries (bytes, for a ring). A map that nobody sizes
    /// keeps the object's own size, which is one entry for large maps.
    pub fn map_entries(&mut self, name: &'static str, entries: u32) -> &mut Self {
        self.entries.push((name, entries));
        self
    }

    /// The object's read-only global `name`, an integer, gets `value`. Switches that are off cost
    /// nothing: the verifier removes what they guard.
    pub fn global<const N: usize>(&mut self, name: &'static str, value: [u8; N]) -> &mut Self {
        self.globals.push((name, value.to_vec()));
        self
    }
}

/// Where a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook<'a> {
    /// A tracepoint with typed arguments.
    BtfTracepoint(&'a str),
    /// The exit of a kernel function.
    FunctionExit(&'a str),
    /// A kernel function's entry or return, as the program was written for.
    Function(&'a str),
    /// A raw tracepoint.
    RawTracepoint(&'a str),
}

impl Hook<'_> {
    pub(super) const fn name(&self) -> &str {
        match self {
            Self::BtfTracepoint(name)
            | Self::FunctionExit(name)
            | Self::Function(name)
            | Self::RawTracepoint(name) => name,
        }
    }

    pub(super) const fn tier(self) -> Tier {
        match self {
            Self::BtfTracepoint(_) => Tier::TpBtf,
            Self::FunctionExit(_) => Tier::Fexit,
            Self::Function(_) => Tier::Kprobe,
            Self::RawTracepoint(_) => Tier::RawTp,
        }
    }
}
