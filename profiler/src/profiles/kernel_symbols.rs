//! Names of the kernel's functions, from /proc/kallsyms.
//!
//! Read once, when the first address is asked for: to write the list takes the kernel a tenth of a second.
//! Kept as one text with places, a few megabytes; what is loaded into the kernel later has no name.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// The kernel's own list.
pub(super) const KALLSYMS: &str = "/proc/kallsyms";

/// All functions of the kernel.
#[derive(Debug, Default)]
pub(super) struct KernelSymbols {
    /// Where each begins, and its name's place and length in the text; in order.
    functions: Vec<(u64, u32, u16)>,
    names: String,
}

impl KernelSymbols {
    /// Reads a list; one that hides its addresses, as it does from a process without the right to see
    /// them, names nothing.
    pub(super) fn read(list: &Path) -> io::Result<Self> {
        Self::parse(BufReader::new(File::open(list)?))
    }

    fn parse(mut list: impl BufRead) -> io::Result<Self> {
        let mut symbols = Self::default();
        let mut line = String::new();
        while list.read_line(&mut line)? > 0 {
            if let Some((start, name)) = function(&line)
                && let (Ok(place), Ok(length)) = (
                    u32::try_from(symbols.names.len()),
                    u16::try_from(name.len()),
                )
            {
                symbols.functions.push((start, place, length));
                symbols.names.push_str(name);
            }
            line.clear();
        }
        symbols.functions.sort_unstable();
        symbols.functions.shrink_to_fit();
        symbols.names.shrink_to_fit();
        Ok(symbols)
    }

    /// The function that the address lies in.
    pub(super) fn name(&self, address: u64) -> Option<&str> {
        let above = self
            .functions
            .partition_point(|(start, ..)| *start <= address);
        let (_, place, length) = *self.functions.get(above.checked_sub(1)?)?;
        let place = place as usize;
        self.names.get(place..place + usize::from(length))
    }
}

/// Start and name of a line's function: `ffffffff81000000 T _stext`, a module's name behind it.
fn function(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let start = u64::from_str_radix(words.next()?, 16).ok()?;
    let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
    // All are 0 where they are hidden.
    (is_code && start != 0).then_some((start, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_function_that_begins_last_before_it() {
        let list = "ffffffff81000000 T _text\nffffffff81000100 t read\nffffffff81000180 d data\n\
            ffffffffc0000000 t in_module [some]\nffffffff81000200 T write\n";
        let symbols = KernelSymbols::parse(list.as_bytes()).unwrap();
        for (address, name) in [
            (0xffff_ffff_c000_0010, Some("in_module")),
            (0xffff_ffff_8100_0200, Some("write")),
            (0xffff_ffff_8100_0190, Some("read")),
            (0xffff_ffff_8100_01ff, Some("read")),
            (0x10, None),
        ] {
            assert_eq!(symbols.name(address), name, "{address:x}");
        }
    }

    #[test]
    fn a_hidden_list_names_nothing() {
        let list = "0000000000000000 T _text\n0000000000000000 t read\n";
        let symbols = KernelSymbols::parse(list.as_bytes()).unwrap();
        assert_eq!(symbols.name(0xffff_ffff_8100_0200), None);
    }
}
