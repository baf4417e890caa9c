//! What a probe costs its process beside the program: the stop at the breakpoint. Measured on
//! functions of this very process, at the two kinds of instruction, when the probes are loaded;
//! which is also the proof that they run.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::programs::uprobe::UProbeScope;
use procfs::process::{MMPermissions, Process};

use crate::probes::load_error::ProbeError;
use crate::probes::loader::Loader;
use profiler_ebpf::cost::Program;

const THIS_PROGRAM: &str = "/proc/self/exe";

/// Calls that are timed together, and how often: the fastest counts.
const CALLS: u32 = 200;
const ROUNDS: u32 = 5;

/// Nanoseconds of one call with a probe that finds nothing to do, its program included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopCost {
    /// At an instruction that the kernel carries out itself.
    pub emulated: u64,
    /// At one that it steps through.
    pub stepped: u64,
    /// What a probe on the function's return adds.
    pub returned: u64,
}

/// The programs that it is measured with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tried {
    /// Runs at a function's entry.
    pub(super) alone: Program,
    /// Runs at the entry, where [`Self::returned`] runs at the return.
    pub(super) entry: Program,
    /// Runs at a function's return.
    pub(super) returned: Program,
}

/// A function that begins with an instruction of the first kind.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn begins_emulated() {
    core::arch::naked_asm!("push rbp", "pop rbp", "ret")
}

/// A function that begins with one of the second.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn begins_stepped() {
    core::arch::naked_asm!("sub rsp, 24", "add rsp, 24", "ret")
}

/// A function that begins with an instruction of the first kind: a branch
/// (`arm_probe_decode_insn` in arch/arm64/kernel/probes/decode-insn.c).
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
extern "C" fn begins_emulated() {
    core::arch::naked_asm!("b 2f", "2: ret")
}

/// A function that begins with one of the second.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
extern "C" fn begins_stepped() {
    core::arch::naked_asm!("sub sp, sp, #16", "add sp, sp, #16", "ret")
}

impl StopCost {
    /// Measures; fails if the programs, which must be loaded, do not run here.
    pub(super) fn measure(loader: &mut Loader, tried: Tried) -> Result<Self, ProbeError> {
        let Tried {
            alone,
            entry,
            returned,
        } = tried;
        let bare = time(begins_emulated);
        let before = loader.cost(alone).runs;
        let emulated = probed(loader, begins_emulated, &[alone])?;
        if loader.cost(alone).runs == before {
            let program = alone.name();
            return Err(ProbeError::Silent { program });
        }
        let stepped = probed(loader, begins_stepped, &[alone])?;
        let before = loader.cost(returned).runs;
        let both = probed(loader, begins_emulated, &[returned, entry])?;
        if loader.cost(returned).runs == before {
            let program = returned.name();
            return Err(ProbeError::Silent { program });
        }
        Ok(Self {
            emulated: emulated.saturating_sub(bare),
            stepped: stepped.saturating_sub(bare),
            returned: both.saturating_sub(emulated),
        })
    }
}

/// Nanoseconds of a call of `function` with `programs` on it.
fn probed(
    loader: &mut Loader,
    function: extern "C" fn(),
    programs: &[Program],
) -> Result<u64, ProbeError> {
    let offset = file_offset(function as usize as u64).map_err(|source| ProbeError::Machine {
        what: "this process's own code",
        source,
    })?;
    let mut links = Vec::new();
    for program in programs {
        links.push(loader.attach_uprobe(
            program.name(),
            Path::new(THIS_PROGRAM),
            offset,
            0,
            UProbeScope::CallingProcess,
        )?);
    }
    Ok(time(function))
}

fn time(function: extern "C" fn()) -> u64 {
    let round = || {
        let began = Instant::now();
        for _ in 0..CALLS {
            black_box(function)();
        }
        began.elapsed()
    };
    let best = (0..ROUNDS).map(|_| round()).min().unwrap_or(Duration::MAX);
    best.as_nanos() as u64 / u64::from(CALLS)
}

/// Where an address of this process's code lies in its file.
fn file_offset(address: u64) -> std::io::Result<u64> {
    let maps = Process::myself()
        .and_then(|process| process.maps())
        .map_err(std::io::Error::other)?;
    maps.0
        .iter()
        .find(|map| {
            let (start, end) = map.address;
            (start..end).contains(&address) && map.perms.contains(MMPermissions::EXECUTE)
        })
        .map(|map| address - map.address.0 + map.offset)
        .ok_or_else(|| std::io::ErrorKind::NotFound.into())
}
