//! The kernel's own account of BPF programs: how often each ran and for how long, and the memory
//! of their maps. Which programs and maps belong to a process is read from its descriptors.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

// Commands, types and offsets of include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_ENABLE_STATS: libc::c_int = 32;
const BPF_STATS_RUN_TIME: u32 = 0;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const INFO_NAME: usize = 64;
const NAME_BYTES: usize = 16;

/// Run-time statistics are on while this value lives. They belong to a descriptor, so that the
/// kernel switches them off however this process ends; `kernel.bpf_stats_enabled` is not touched.
#[derive(Debug)]
pub(super) struct Statistics(#[expect(dead_code, reason = "it acts by being open")] OwnedFd);

impl Statistics {
    pub(super) fn on() -> Result<Self> {
        let attributes = Attributes::default().word(0, BPF_STATS_RUN_TIME);
        bpf(BPF_ENABLE_STATS, &attributes)
            .map(Self)
            .context("cannot switch BPF statistics on (kernel 5.8 or later, CAP_SYS_ADMIN)")
    }
}

/// What a program did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Runs {
    pub(super) runs: u64,
    pub(super) nanoseconds: u64,
}

impl Runs {
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            runs: self.runs.saturating_sub(earlier.runs),
            nanoseconds: self.nanoseconds.saturating_sub(earlier.nanoseconds),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            runs: self.runs + other.runs,
            nanoseconds: self.nanoseconds + other.nanoseconds,
        }
    }

    /// Nanoseconds a run; `None` if it never ran.
    pub(super) fn mean(self) -> Option<f64> {
        (self.runs > 0).then(|| self.nanoseconds as f64 / self.runs as f64)
    }
}

/// A loaded program of some process.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) id: u64,
    /// As the kernel keeps it: the first 15 characters.
    pub(super) name: String,
    pub(super) total: Runs,
}

/// The programs that a process holds.
pub(super) fn programs_of(process: u32) -> Vec<Program> {
    let mut programs: Vec<Program> = descriptors(process)
        .filter_map(|text| {
            let id = field(&text, "prog_id")?;
            let total = Runs {
                // A link names its program too, but not its runs.
                runs: field(&text, "run_cnt")?,
                nanoseconds: field(&text, "run_time_ns")?,
            };
            let name = name_of(id).unwrap_or_default();
            Some(Program { id, name, total })
        })
        .collect();
    programs.sort_by_key(|program| program.id);
    programs.dedup_by_key(|program| program.id);
    programs
}

/// Bytes of kernel memory of all maps that a process holds.
pub(super) fn map_bytes_of(process: u32) -> u64 {
    let mut maps: Vec<(u64, u64)> = descriptors(process)
        .filter_map(|text| Some((field(&text, "map_id")?, field(&text, "memlock")?)))
        .collect();
    maps.sort_unstable();
    maps.dedup();
    maps.iter().map(|(_, bytes)| bytes).sum()
}

/// A program that does nothing, at a hook: what the measurement itself reads.
#[derive(Debug)]
pub(super) struct Empty {
    hook: &'static str,
    program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    pub(super) fn at(hook: &'static str) -> Result<Self> {
        // r0 = 0; exit
        let program = load(&[0xb7, 0x95]).context("cannot load an empty program")?;
        let link = attach(hook, &program)?;
        Ok(Self {
            hook,
            program,
            _link: link,
        })
    }

    pub(super) fn hook(&self) -> &'static str {
        self.hook
    }

    pub(super) fn total(&self) -> Runs {
        let file = format!("/proc/self/fdinfo/{}", self.program.as_raw_fd());
        let text = fs::read_to_string(file).unwrap_or_default();
        Runs {
            runs: field(&text, "run_cnt").unwrap_or(0),
            nanoseconds: field(&text, "run_time_ns").unwrap_or(0),
        }
    }
}

/// Loads a raw tracepoint program.
pub(super) fn load(instructions: &[u64]) -> std::io::Result<OwnedFd> {
    let license = c"GPL";
    let attributes = Attributes::default()
        .word(0, BPF_PROG_TYPE_RAW_TRACEPOINT)
        .word(4, instructions.len() as u32)
        .long(8, instructions.as_ptr() as u64)
        .long(16, license.as_ptr() as u64);
    bpf(BPF_PROG_LOAD, &attributes)
}

/// Attaches a raw tracepoint program, behind those that are there.
pub(super) fn attach(hook: &str, program: &OwnedFd) -> Result<OwnedFd> {
    let name = CString::new(hook)?;
    let attributes = Attributes::default()
        .long(0, name.as_ptr() as u64)
        .word(8, program.as_raw_fd() as u32);
    bpf(BPF_RAW_TRACEPOINT_OPEN, &attributes)
        .with_context(|| format!("cannot attach a program to {hook}"))
}

fn descriptors(process: u32) -> impl Iterator<Item = String> {
    fs::read_dir(format!("/proc/{process}/fdinfo"))
        .into_iter()
        .flatten()
        // A descriptor may be closed meanwhile.
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(':')?
            .trim()
            .parse()
            .ok()
    })
}

fn name_of(id: u64) -> Option<String> {
    let program = bpf(
        BPF_PROG_GET_FD_BY_ID,
        &Attributes::default().word(0, u32::try_from(id).ok()?),
    )
    .ok()?;
    let mut info = [0_u8; INFO_NAME + NAME_BYTES];
    let attributes = Attributes::default()
        .word(0, program.as_raw_fd() as u32)
        .word(4, info.len() as u32)
        .long(8, info.as_mut_ptr() as u64);
    call(BPF_OBJ_GET_INFO_BY_FD, &attributes).ok()?;
    let name = info.get(INFO_NAME..)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(name.get(..end)?).into_owned())
}

/// `union bpf_attr`: as much of it as is used here, the rest zero.
#[derive(Default)]
#[repr(C, align(8))]
pub(super) struct Attributes([u32; 32]);

impl Attributes {
    /// `value` at this byte, a multiple of 4 below 128.
    pub(super) fn word(mut self, byte: usize, value: u32) -> Self {
        self.0[byte / 4] = value;
        self
    }

    /// `value` at this byte, a multiple of 8 below 128.
    pub(super) fn long(self, byte: usize, value: u64) -> Self {
        let bytes = value.to_ne_bytes();
        let half = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        self.word(byte, half(0)).word(byte + 4, half(4))
    }
}

/// A command that returns a new descriptor.
pub(super) fn bpf(command: libc::c_int, attributes: &Attributes) -> std::io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

pub(super) fn call(command: libc::c_int, attributes: &Attributes) -> std::io::Result<libc::c_long> {
    // SAFETY: the attributes live for the call, have the stated size, and hold only pointers to
    // memory of the caller that outlives it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_not_mistaken_for_one_that_begins_alike() {
        let text = "run_cnt_old:\t1\nrun_cnt:\t42\nprog_id:\t7\n";
        assert_eq!(field(text, "run_cnt"), Some(42));
        assert_eq!(field(text, "run"), None);
    }

    #[test]
    fn pointers_are_laid_out_as_the_kernel_reads_them() {
        let attributes = Attributes::default()
            .word(0, 1)
            .long(8, 0x1122_3344_5566_7788);
        let bytes: Vec<u8> = attributes.0.iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(bytes[8..16], 0x1122_3344_5566_7788_u64.to_ne_bytes());
        assert_eq!(bytes[0..4], 1_u32.to_ne_bytes());
    }
}
