//! Names of the code that samples were taken in: ELF symbols through /proc (so that containers' own files
//! are read), perf maps of JITs (`/tmp/perf-PID.map`; Node, Java, CPython ≥ 3.12 with `-X perf`), the
//! kernel's list.
//!
//! In: addresses and their process. Out: a stack's text. Each address is asked for once; a process
//! that has ended before the first time keeps no names. What is kept has a bound, beyond which all
//! is asked for anew.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use blazesym::symbolize::source::{Process, Source};
use blazesym::symbolize::{Input, Symbolized, Symbolizer};

use super::kernel_symbols::{KALLSYMS, KernelSymbols};
use super::{KERNEL_MARK, SEPARATOR};

/// Addresses whose names are kept, some 100 bytes each.
const MOST_NAMES: usize = 40_000;
/// A process from which no sample came for so many rounds is forgotten.
const FORGET_AFTER: u32 = 240;
/// Longer names are cut: templates of C++ reach kilobytes.
const LONGEST: usize = 160;

const UNKNOWN: &str = "[unknown]";
const KERNEL: &str = "[kernel]";
const ENDED: &str = "[ended process]";

/// Addresses of one sample, the innermost first.
#[derive(Debug, Clone, Copy)]
pub struct Addresses<'a> {
    /// The process.
    pub pid: u32,
    /// In the kernel.
    pub kernel: &'a [u64],
    /// In the process.
    pub user: &'a [u64],
}

/// What is known of a process.
#[derive(Debug)]
struct Known {
    /// Its name and start: another process has others, and so has another program in it.
    identity: Option<(String, u64)>,
    names: HashMap<u64, Arc<str>>,
    idle_rounds: u32,
}

/// Names of code.
#[derive(Debug, Default)]
pub struct Symbols {
    processes: HashMap<u32, Known>,
    kernel: HashMap<u64, Arc<str>>,
    /// Once an address of the kernel was asked for.
    functions: Option<KernelSymbols>,
}

impl Symbols {
    /// The stacks' texts, in the order of the samples.
    pub fn name(&mut self, samples: &[Addresses<'_>]) -> Vec<String> {
        self.forget();
        let mut kernel: HashSet<u64> = HashSet::new();
        let mut user: HashMap<u32, HashSet<u64>> = HashMap::new();
        for sample in samples {
            kernel.extend(instructions(sample.kernel));
            user.entry(sample.pid)
                .or_default()
                .extend(instructions(sample.user));
        }
        self.name_kernel(kernel);
        // It holds the files that it reads, and they count as the agent's memory: no longer than this.
        let mut symbolizer = None;
        for (pid, addresses) in user {
            self.name_process(pid, addresses, &mut symbolizer);
        }
        samples.iter().map(|sample| self.text(sample)).collect()
    }

    fn forget(&mut self) {
        let kept: usize = self.processes.values().map(|known| known.names.len()).sum();
        if kept + self.kernel.len() > MOST_NAMES {
            self.processes.clear();
            self.kernel.clear();
        }
        self.processes.retain(|_, known| {
            known.idle_rounds += 1;
            known.idle_rounds < FORGET_AFTER
        });
    }

    fn name_kernel(&mut self, mut addresses: HashSet<u64>) {
        addresses.retain(|address| !self.kernel.contains_key(address));
        if addresses.is_empty() {
            return;
        }
        let functions = self.functions.get_or_insert_with(|| {
            let list = Path::new(KALLSYMS);
            KernelSymbols::read(list).unwrap_or_else(|error| {
                log::warn!(
                    "{}: {error}; the kernel's functions have no names",
                    list.display()
                );
                KernelSymbols::default()
            })
        });
        for address in addresses {
            let name = functions.name(address);
            let name = name.map_or(KERNEL.to_owned(), |name| clean(name) + KERNEL_MARK);
            self.kernel.insert(address, name.into());
        }
    }

    fn name_process(
        &mut self,
        pid: u32,
        mut addresses: HashSet<u64>,
        symbolizer: &mut Option<Symbolizer>,
    ) {
        let identity = identity(pid);
        let known = self.processes.entry(pid).or_insert_with(|| Known {
            identity: None,
            names: HashMap::new(),
            idle_rounds: 0,
        });
        known.idle_rounds = 0;
        // One that has ended keeps the names it had.
        if identity.is_some() && known.identity != identity {
            known.names.clear();
            known.identity = identity;
        }
        addresses.retain(|address| !known.names.contains_key(address));
        if addresses.is_empty() {
            return;
        }
        let symbolizer = symbolizer.get_or_insert_with(|| {
            Symbolizer::builder()
                .enable_code_info(false)
                .enable_inlined_fns(false)
                .build()
        });
        let addresses: Vec<u64> = addresses.into_iter().collect();
        let ask = |map_files| {
            let mut process = Process::new(pid.into());
            process.map_files = map_files;
            let source = Source::Process(process);
            let named = symbolizer.symbolize(&source, Input::AbsAddr(&addresses))?;
            let name = |named: Symbolized<'_>| {
                let name = named.into_sym().map(|symbol| clean(&symbol.name));
                name.unwrap_or_else(|| UNKNOWN.to_owned())
            };
            Ok::<Vec<String>, blazesym::Error>(named.into_iter().map(name).collect())
        };
        // Without CAP_CHECKPOINT_RESTORE the files are opened by their paths.
        match ask(true).or_else(|_| ask(false)) {
            Ok(names) => {
                let names = names.into_iter().map(Arc::from);
                known.names.extend(addresses.into_iter().zip(names));
            }
            Err(error) => log::debug!("process {pid} has no names: {error}"),
        }
    }

    fn text(&self, sample: &Addresses<'_>) -> String {
        let process = self.processes.get(&sample.pid);
        let program = process.and_then(|known| known.identity.as_ref());
        let mut text = program.map_or(ENDED, |(name, _)| name).to_owned();
        let mut push = |frame: &str| {
            text.push(SEPARATOR);
            text.push_str(frame);
        };
        let user: Vec<u64> = instructions(sample.user).collect();
        for address in user.iter().rev() {
            let name = process.and_then(|known| known.names.get(address));
            push(name.map_or(UNKNOWN, |name| name));
        }
        let kernel: Vec<u64> = instructions(sample.kernel).collect();
        for address in kernel.iter().rev() {
            push(self.kernel.get(address).map_or(KERNEL, |name| name));
        }
        text
    }
}

/// Where the instructions are: all but the innermost are return addresses, which may lie behind the
/// function that called last.
fn instructions(addresses: &[u64]) -> impl Iterator<Item = u64> {
    addresses
        .iter()
        .enumerate()
        .map(|(depth, address)| address.saturating_sub(u64::from(depth > 0)))
}

/// A process's name and when it was started, ticks of the kernel's clock.
fn identity(pid: u32) -> Option<(String, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold any character.
    let (head, rest) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let start = rest.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some((clean(name), start))
}

/// A name that breaks no stack's text.
fn clean(name: &str) -> String {
    let printable = |letter: char| if letter.is_control() { ' ' } else { letter };
    name.chars().take(LONGEST).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    extern "C" fn perjoule_test_symbol() -> u32 {
        std::hint::black_box(7)
    }

    #[test]
    fn code_of_a_process_has_its_name_and_what_is_none_is_unknown() {
        let mut symbols = Symbols::default();
        let function = perjoule_test_symbol as *const () as u64;
        assert_eq!(perjoule_test_symbol(), 7);
        let user = [function, function + 1, 0x10];
        let own = Addresses {
            pid: std::process::id(),
            kernel: &[],
            user: &user,
        };
        let texts = symbols.name(&[own]);
        let frames: Vec<&str> = texts[0].split(SEPARATOR).collect();
        // The program's name, then from the outermost in.
        assert_eq!(frames[1], UNKNOWN);
        for frame in &frames[2..] {
            assert!(frame.contains("perjoule_test_symbol"), "{frames:?}");
        }
        // The second time from memory.
        assert_eq!(symbols.name(&[own]), texts);
    }

    #[test]
    fn a_perf_map_names_what_a_jit_made() {
        let file = format!("/tmp/perf-{}.map", std::process::id());
        // Executable, and of no file, as a JIT's code is.
        let code = memmap2::MmapMut::map_anon(4_096).unwrap();
        let code = code.make_exec().unwrap();
        let start = code.as_ptr() as u64;
        fs::write(&file, format!("{start:x} 40 py::serve:/srv/app.py\n")).unwrap();
        let mut symbols = Symbols::default();
        let texts = symbols.name(&[Addresses {
            pid: std::process::id(),
            kernel: &[],
            user: &[start + 8],
        }]);
        fs::remove_file(&file).unwrap();
        assert!(texts[0].ends_with("py::serve:/srv/app.py"), "{texts:?}");
    }

    #[test]
    fn a_process_that_has_ended_is_called_so() {
        let mut symbols = Symbols::default();
        let texts = symbols.name(&[Addresses {
            pid: u32::MAX - 1,
            kernel: &[],
            user: &[0x1000],
        }]);
        assert_eq!(texts, [format!("{ENDED}\n{UNKNOWN}")]);
    }
}
