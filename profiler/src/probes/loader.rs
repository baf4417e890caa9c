//! Loads the BPF object: one set of maps, and each program alone, so that one that fails leaves
//! the others running.
//!
//! In: [`Options`], to which each probe adds what it needs (map sizes, kernel fields, globals).
//! Out: attached programs, their maps, and a verdict for each program. Dropping the loader
//! detaches everything.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use aya::maps::Map;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{BtfTracePoint, FExit, KProbe, ProgramError, RawTracePoint, UProbe};
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

mod maps;
mod options;
mod software_event;

use maps::{map_info, shared_memory};
pub use options::{Field, Hook, Options};

const COSTS: &str = "PROGRAM_COST";

// SAFETY: repr(C), u64 only.
unsafe impl Words for CpuCosts {}

#[derive(Debug, Clone)]
struct Fate {
    tier: Tier,
    verdict: Verdict,
    text: String,
}

/// The loaded object. Dropping it detaches every program.
pub struct Loader {
    /// What keeps each program attached.
    links: Vec<(&'static str, Box<dyn Any>)>,
    loaded: HashSet<&'static str>,
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
        give_back_freed_memory();
        // Without a log statement in the object there is no log to read.
        let logger = EbpfLogger::init(&mut object).ok();
        Ok(Self {
            links: Vec::new(),
            loaded: HashSet::new(),
            object,
            types: Some(types),
            logger,
            costs,
            missing,
            fates: BTreeMap::new(),
            map_bytes,
        })
    }

    /// Loads `program` and attaches it to the typed raw tracepoint `tracepoint`; see
    /// [`Self::attach`].
    pub fn attach_btf_tracepoint(
        &mut self,
        program: &'static str,
        tracepoint: &str,
    ) -> Result<(), ProbeError> {
        let outcome = self.attach(program, Hook::BtfTracepoint(tracepoint));
        if let Err(error) = &outcome {
            log::warn!("{error}");
        }
        outcome
    }

    /// Loads `program`, if it is not yet loaded, and attaches it to `hook`. What goes wrong
    /// concerns this program only, and is kept for [`Self::health`].
    pub fn attach(&mut self, program: &'static str, hook: Hook<'_>) -> Result<(), ProbeError> {
        let outcome = self.try_attach(program, hook);
        self.note(program, hook.tier(), &outcome);
        outcome
    }

    fn note(&mut self, program: &'static str, tier: Tier, outcome: &Result<(), ProbeError>) {
        let fate = match outcome {
            Ok(()) => Fate {
                tier,
                verdict: Verdict::Ok,
                text: String::new(),
            },
            Err(error) => Fate {
                tier,
                verdict: error.verdict(),
                text: error.to_string(),
            },
        };
        self.fates.insert(program, fate);
    }

    /// Loads `program`, which runs at instructions of processes' own code. It runs nowhere until
    /// [`Self::attach_uprobe`].
    pub fn load_uprobe(&mut self, program: &'static str) -> Result<(), ProbeError> {
        let outcome = self.uprobe(program).and_then(|hook| {
            hook.load()
                .map_err(|error| ProbeError::from_load(program, "", error))
        });
        self.note(program, Tier::Uprobe, &outcome);
        outcome
    }

    /// Runs a loaded program at `offset` of `file`, with `cookie`, in the processes of `scope`,
    /// until the link is dropped. At a function's first instruction, if it is one for returns.
    pub fn attach_uprobe(
        &mut self,
        program: &'static str,
        file: &Path,
        offset: u64,
        cookie: u64,
        scope: UProbeScope,
    ) -> Result<UProbeLink, ProbeError> {
        let refused = |error| ProbeError::from_attach(program, "", error);
        let hook = self.uprobe(program)?;
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(offset),
            cookie: Some(cookie),
        };
        let link = hook.attach(point, file, scope).map_err(refused)?;
        hook.take_link(link).map_err(refused)
    }

    fn uprobe(&mut self, program: &'static str) -> Result<&mut UProbe, ProbeError> {
        self.object
            .program_mut(program)
            .and_then(|program| program.try_into().ok())
            .ok_or(ProbeError::NoProgram { program })
    }

    /// The same, where the kernel may well lack the hook: then `false`, and nothing is kept.
    pub fn attach_if_there(
        &mut self,
        program: &'static str,
        hook: Hook<'_>,
    ) -> Result<bool, ProbeError> {
        match self.try_attach(program, hook) {
            Err(ProbeError::NoHook { .. }) => Ok(false),
            outcome => {
                let fate = self.fates.entry(program).or_insert_with(|| Fate {
                    tier: hook.tier(),
                    verdict: Verdict::Ok,
                    text: String::new(),
                });
                if let Err(error) = &outcome {
                    log::warn!("{error}");
                    fate.verdict = error.verdict();
                    fate.text = error.to_string();
                }
                outcome.map(|()| true)
            }
        }
    }

    fn try_attach(&mut self, program: &'static str, hook: Hook<'_>) -> Result<(), ProbeError> {
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
        // A program that is loaded for one hook serves the next one too.
        if !self.loaded.contains(program) {
            self.load(program, hook)?;
            self.loaded.insert(program);
        }
        let missing = ProbeError::NoProgram { program };
        let Some(loaded) = self.object.program_mut(program) else {
            return Err(missing);
        };
        let name = hook.name();
        // What a link is differs by hook; dropping it detaches.
        macro_rules! attach {
            ($kind:ty $(, $argument:expr)*) => {{
                let hook: &mut $kind = loaded.try_into().map_err(|_| missing)?;
                hook.attach($($argument),*)
                    .and_then(|id| hook.take_link(id))
                    .map(|link| Box::new(link) as Box<dyn Any>)
            }};
        }
        let link = match hook {
            Hook::BtfTracepoint(_) => attach!(BtfTracePoint),
            Hook::FunctionExit(_) => attach!(FExit),
            Hook::Function(_) => attach!(KProbe, name, 0),
            Hook::RawTracepoint(_) => attach!(RawTracePoint, name),
        }
        .map_err(|error| ProbeError::from_attach(program, name, error))?;
        self.links.push((program, link));
        Ok(())
    }

    /// All programs that are wanted have been attached: frees what only that needed.
    pub fn settle(&mut self) {
        self.types = None;
        give_back_freed_memory();
    }

    fn load(&mut self, program: &'static str, hook: Hook<'_>) -> Result<(), ProbeError> {
        let name = hook.name();
        let refused = |error| ProbeError::from_load(program, name, error);
        let missing = ProbeError::NoProgram { program };
        let Some(unloaded) = self.object.program_mut(program) else {
            return Err(missing);
        };
        macro_rules! load {
            ($kind:ty $(, $argument:expr)*) => {{
                let hook: &mut $kind = unloaded.try_into().map_err(|_| missing)?;
                hook.load($($argument),*)
            }};
        }
        match hook {
            Hook::BtfTracepoint(_) => load!(
                BtfTracePoint,
                name,
                types(&mut self.types).map_err(refused)?
            ),
            Hook::FunctionExit(_) => load!(FExit, name, types(&mut self.types).map_err(refused)?),
            Hook::Function(_) => load!(KProbe),
            Hook::RawTracepoint(_) => load!(RawTracePoint),
        }
        .map_err(refused)
    }

    /// Takes `program` off its hooks and keeps it loaded: to attach it again is quick.
    pub fn release(&mut self, program: &'static str) {
        self.links.retain(|(of, _)| *of != program);
        self.fates.remove(program);
    }

    /// Detaches and unloads `program`, if it is attached; it can be attached again.
    pub fn detach(&mut self, program: &'static str) {
        self.release(program);
        self.loaded.remove(program);
        // Not loaded is what is wanted.
        let _ = match self.object.program_mut(program) {
            Some(aya::programs::Program::BtfTracePoint(loaded)) => loaded.unload(),
            Some(aya::programs::Program::FExit(loaded)) => loaded.unload(),
            Some(aya::programs::Program::KProbe(loaded)) => loaded.unload(),
            Some(aya::programs::Program::RawTracePoint(loaded)) => loaded.unload(),
            Some(aya::programs::Program::PerfEvent(loaded)) => loaded.unload(),
            _ => Ok(()),
        };
    }

    /// Takes programs that run off for good and keeps why as their verdict. `false` if none of
    /// them ran.
    pub fn retire(&mut self, programs: &[&'static str], why: &str) -> bool {
        let runs = |program: &&&'static str| {
            let fate = self.fates.get(**program);
            fate.is_some_and(|fate| fate.verdict == Verdict::Ok)
        };
        let running: Vec<&'static str> = programs.iter().filter(runs).copied().collect();
        if !running.is_empty() {
            log::warn!("{why}");
        }
        for program in &running {
            let tier = self.fates.get(program).map(|fate| fate.tier);
            self.detach(program);
            let fate = Fate {
                tier: tier.unwrap_or(Tier::TpBtf),
                verdict: Verdict::Detached,
                text: why.to_owned(),
            };
            self.fates.insert(program, fate);
        }
        !running.is_empty()
    }

    /// What a probe itself finds out about its program: attached, but it does no work; not for
    /// this machine.
    pub fn mark(&mut self, program: &'static str, verdict: Verdict, text: String) {
        log::warn!("{text}");
        let tier = self
            .fates
            .get(program)
            .map_or(Tier::TpBtf, |fate| fate.tier);
        self.fates.insert(
            program,
            Fate {
                tier,
                verdict,
                text,
            },
        );
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
                    tier: fate.map_or(Tier::TpBtf, |fate| fate.tier),
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

/// What was freed would else stay with the process, beside what it has still to map.
fn give_back_freed_memory() {
    // SAFETY: it takes no pointers; the allocator locks itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The kernel's types, read anew if they have been freed.
fn types(types: &mut Option<Btf>) -> Result<&Btf, ProgramError> {
    Ok(match types {
        Some(types) => types,
        none => none.insert(Btf::from_sys_fs()?),
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
