//! Loads the BPF object: one set of maps, and each program alone, so that one that fails leaves
//! the others running.
//!
//! In: [`Options`], to which each probe adds what it needs (map sizes, kernel fields, globals).
//! Out: attached programs, their maps, and a verdict for each program. Dropping the loader
//! detaches everything.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::Map;
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use aya_log::EbpfLogger;
use profiler_ebpf::ABSENT;
use profiler_ebpf::cost::{COST_WORDS, Cost, CpuCosts, Program};

use super::btf::{self, Types};
use super::health::{ProgramHealth, Tier, Verdict};
use super::load_error::{LoadError, ProbeError};
use super::requirements;
use super::shared_memory::{SharedArray, SharedMemory, Words};
use crate::finding::Status;

const COSTS: &str = "PROGRAM_COST";

// SAFETY: repr(C), u64 only.
unsafe impl Words for CpuCosts {}

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
    fields: Vec<Field>,
    entries: Vec<(&'static str, u32)>,
    globals: Vec<(&'static str, Vec<u8>)>,
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

#[derive(Debug, Clone)]
struct Fate {
    verdict: Verdict,
    text: String,
}

/// The loaded object. Dropping it detaches every program.
pub struct Loader {
    object: Ebpf,
    /// Only while programs are being attached: some ten megabytes.
    types: Option<Btf>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    costs: SharedArray<CpuCosts>,
    missing: Vec<(Field, String)>,
    fates: BTreeMap<&'static str, Fate>,
    map_bytes: Vec<(String, u64)>,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("fates", &self.fates)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// Checks that the machine can run probes, finds the fields' offsets and makes the maps. No
    /// program is loaded yet.
    pub fn new(options: &Options) -> Result<Self, LoadError> {
        if let Some(check) = requirements::check(Path::new("/"))
            .into_iter()
            .find(|check| check.status == Status::Fail)
        {
            return Err(LoadError::Requirement(check));
        }
        // It has read all types by itself, for relocations that the object does not have: freed
        // before they are read here, so that they are never held twice.
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        let bytes = btf::read(Path::new(btf::VMLINUX))?;
        let types = Types::parse(&bytes)?;
        let mut missing = Vec::new();
        let mut offsets = Vec::new();
        for field in &options.fields {
            let offset = types
                .offset(field.structure, field.member)
                .unwrap_or_else(|error| {
                    missing.push((*field, error.to_string()));
                    ABSENT
                });
            offsets.push((field.global, offset));
        }
        drop(types);

        let types = Btf::parse(&bytes, Endianness::default())
            .map_err(|error| LoadError::Object(error.into()))?;
        drop(bytes);
        let log_level = options.log_level as u8;
        for (global, offset) in &offsets {
            loader.override_global(global, offset, true);
        }
        for (global, value) in &options.globals {
            loader.override_global(global, value.as_slice(), true);
        }
        for (map, entries) in &options.entries {
            loader.map_max_entries(map, *entries);
        }
        loader.map_max_entries(COSTS, possible_cpus());
        loader.override_global(aya_log::LEVEL, &log_level, false);
        let mut object = loader.load(super::object()).map_err(LoadError::from_load)?;

        let map_bytes = object
            .maps()
            .filter_map(|(name, map)| Some((name.to_owned(), map_info(map)?.memory)))
            .collect();
        let costs = shared_memory(&object, COSTS, false)
            .ok()
            .and_then(SharedArray::new)
            .ok_or(LoadError::Incomplete(COSTS))?;
        // Without a log statement in the object there is no log to read.
        let logger = EbpfLogger::init(&mut object).ok();
        Ok(Self {
            object,
            types: Some(types),
            logger,
            costs,
            missing,
            fates: BTreeMap::new(),
            map_bytes,
        })
    }

    /// Loads `program` and attaches it to the typed raw tracepoint `tracepoint`. What goes wrong
    /// concerns this program only, and is kept for [`Self::health`].
    pub fn attach_btf_tracepoint(
        &mut self,
        program: &'static str,
        tracepoint: &str,
    ) -> Result<(), ProbeError> {
        let outcome = self.try_attach(program, tracepoint);
        let fate = match &outcome {
            Ok(()) => Fate {
                verdict: Verdict::Ok,
                text: String::new(),
            },
            Err(error) => {
                log::warn!("{error}");
                Fate {
                    verdict: error.verdict(),
                    text: error.to_string(),
                }
            }
        };
        self.fates.insert(program, fate);
        outcome
    }

    fn try_attach(&mut self, program: &'static str, tracepoint: &str) -> Result<(), ProbeError> {
        if let Some((field, error)) = self
            .missing
            .iter()
            .find(|(field, _)| field.programs.contains(&program))
        {
            return Err(ProbeError::MissingField {
                program,
                structure: field.structure,
                member: field.member,
                reason: error.clone(),
            });
        }
        let hook: &mut BtfTracePoint = self
            .object
            .program_mut(program)
            .and_then(|program| program.try_into().ok())
            .ok_or(ProbeError::NoProgram { program })?;
        let types = match &mut self.types {
            Some(types) => types,
            none => none.insert(
                Btf::from_sys_fs()
                    .map_err(|error| ProbeError::from_load(program, tracepoint, error.into()))?,
            ),
        };
        hook.load(tracepoint, types)
            .map_err(|error| ProbeError::from_load(program, tracepoint, error))?;
        hook.attach()
            .map_err(|error| ProbeError::from_attach(program, tracepoint, error))?;
        Ok(())
    }

    /// All programs that are wanted have been attached: frees what only that needed.
    pub fn settle(&mut self) {
        self.types = None;
        // SAFETY: it takes no pointers; the allocator locks itself.
        #[cfg(target_env = "gnu")]
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// Detaches and unloads `program`, if it is attached; it can be attached again.
    pub fn detach(&mut self, program: &'static str) {
        let Some(hook) = self.object.program_mut(program) else {
            return;
        };
        if let Ok(hook) = TryInto::<&mut BtfTracePoint>::try_into(hook) {
            // Not loaded is what is wanted.
            let _ = hook.unload();
        }
        self.fates.remove(program);
    }

    /// What a probe itself finds out about its program: attached, but it does no work; not for
    /// this machine.
    pub fn mark(&mut self, program: &'static str, verdict: Verdict, text: String) {
        log::warn!("{text}");
        self.fates.insert(program, Fate { verdict, text });
    }

    /// Takes a map out of the object, for one that is read by system calls or as a ring. Take it
    /// after the programs that use it are attached, or keep it until then.
    pub fn take_map(&mut self, name: &'static str) -> Result<Map, ProbeError> {
        self.object
            .take_map(name)
            .ok_or(ProbeError::NoMap { map: name })
    }

    /// An array (made with `BPF_F_MMAPABLE`) as memory to read.
    pub fn shared_array<T: Words>(&self, name: &'static str) -> Result<SharedArray<T>, ProbeError> {
        SharedArray::new(shared_memory(&self.object, name, false)?)
            .ok_or(ProbeError::MapShape { map: name })
    }

    /// An array of bytes (made with `BPF_F_MMAPABLE`) as memory to read and write.
    pub(crate) fn shared_bytes(&self, name: &'static str) -> Result<SharedMemory, ProbeError> {
        shared_memory(&self.object, name, true)
    }

    /// Kernel fields that were not found, with the reason.
    pub fn missing_fields(&self) -> impl Iterator<Item = (&Field, &str)> {
        self.missing
            .iter()
            .map(|(field, reason)| (field, reason.as_str()))
    }

    /// Bytes of kernel memory of each map, as the kernel counts them.
    pub fn map_bytes(&self) -> &[(String, u64)] {
        &self.map_bytes
    }

    /// Passes the kernel side's diagnostics on to the log; call it now and then.
    pub fn poll_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// What a program cost so far, over all CPUs. No system call.
    pub fn cost(&self, program: Program) -> Cost {
        let first = program as usize * COST_WORDS;
        (0..self.costs.len())
            .filter_map(|cpu| {
                Some(Cost {
                    runs: self.costs.word(cpu, first)?,
                    timed: self.costs.word(cpu, first + 1)?,
                    timed_ns: self.costs.word(cpu, first + 2)?,
                })
            })
            .fold(Cost::default(), Cost::plus)
    }

    /// Every program's verdict and cost.
    pub fn health(&self) -> Vec<ProgramHealth> {
        Program::ALL
            .into_iter()
            .map(|program| {
                let cost = self.cost(program);
                let fate = self.fates.get(program.name());
                ProgramHealth {
                    program: program.name(),
                    tier: Tier::TpBtf,
                    verdict: fate.map_or(Verdict::Off, |fate| fate.verdict),
                    text: fate.map_or_else(String::new, |fate| fate.text.clone()),
                    runs: cost.runs,
                    seconds: cost.seconds(),
                }
            })
            .collect()
    }

    /// Instructions the verifier walked for `program`; `None` if it is not loaded.
    pub fn verified_instructions(&self, program: &str) -> Option<u32> {
        self.object
            .program(program)?
            .info()
            .ok()?
            .verified_instruction_count()
    }
}

fn shared_memory(
    object: &Ebpf,
    name: &'static str,
    writable: bool,
) -> Result<SharedMemory, ProbeError> {
    let map = object.map(name).ok_or(ProbeError::NoMap { map: name })?;
    let (Map::Array(data), Some(info)) = (map, map_info(map)) else {
        return Err(ProbeError::MapShape { map: name });
    };
    SharedMemory::new(data.fd().as_fd(), info.entries, info.value_bytes, writable)
        .map_err(|source| ProbeError::Map { map: name, source })
}

struct MapInfo {
    value_bytes: usize,
    entries: usize,
    memory: u64,
}

/// A map's shape and memory, from the kernel's description of its descriptor: the library keeps
/// the first to itself and does not ask for the second.
fn map_info(map: &Map) -> Option<MapInfo> {
    use std::os::fd::AsRawFd as _;
    let (Map::Array(data)
    | Map::PerCpuArray(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuHashMap(data)
    | Map::PerCpuLruHashMap(data)
    | Map::RingBuf(data)) = map
    else {
        return None;
    };
    let fd = data.fd().as_fd().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let number = |name: &str| -> Option<u64> {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    Some(MapInfo {
        value_bytes: number("value_size:")? as usize,
        entries: number("max_entries:")? as usize,
        memory: number("memlock:")?,
    })
}

/// The most process ids the kernel gives out; `None` if /proc does not say.
pub(crate) fn pid_max() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// CPUs that may ever come online: entries of an array with one entry a CPU. If the kernel does
/// not say, its largest number: memory is then spent on CPUs that do not exist.
pub(crate) fn possible_cpus() -> u32 {
    const MOST_CPUS: u32 = 8_192;
    aya::util::nr_cpus()
        .ok()
        .and_then(|cpus| u32::try_from(cpus).ok())
        .unwrap_or(MOST_CPUS)
}
