//! Names of the kernel's functions, from /proc/kallsyms.
//!
//! Read through once for all addresses that are asked for, and forgotten: held in memory, its 200,000
//! names would take a third of what the agent may.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// The kernel's own list.
pub(super) const KALLSYMS: &str = "/proc/kallsyms";

/// The function that each of `addresses` lies in; `None` where the list does not tell, which it does
/// not to a process without the right to see it.
pub(super) fn names(list: &Path, addresses: &[u64]) -> io::Result<Vec<Option<String>>> {
    names_in(BufReader::new(File::open(list)?), addresses)
}

fn names_in(mut list: impl BufRead, addresses: &[u64]) -> io::Result<Vec<Option<String>>> {
    let mut sorted: Vec<(u64, usize)> = addresses
        .iter()
        .enumerate()
        .map(|(place, address)| (*address, place))
        .collect();
    sorted.sort_unstable();
    // The nearest symbol below each address and above the one before it.
    let mut nearest: Vec<Option<(u64, String)>> = vec![None; sorted.len()];
    let mut line = String::new();
    while list.read_line(&mut line)? > 0 {
        if let Some((start, name)) = function(&line) {
            let above = sorted.partition_point(|(address, _)| *address < start);
            if let Some(known) = nearest.get_mut(above)
                && known.as_ref().is_none_or(|(best, _)| *best < start)
            {
                *known = Some((start, name.to_owned()));
            }
        }
        line.clear();
    }
    let mut names = vec![None; addresses.len()];
    let mut latest: Option<String> = None;
    for ((_, place), known) in sorted.into_iter().zip(nearest) {
        if let Some((_, name)) = known {
            latest = Some(name);
        }
        if let Some(cell) = names.get_mut(place) {
            cell.clone_from(&latest);
        }
    }
    Ok(names)
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
            ffffffff81000200 T write\nffffffffc0000000 t in_module [some]\n";
        let ask = [
            0xffff_ffff_c000_0010,
            0xffff_ffff_8100_0200,
            0xffff_ffff_8100_0190,
            0xffff_ffff_8100_01ff,
            0x10,
        ];
        let names = names_in(list.as_bytes(), &ask).unwrap();
        let expected = [
            Some("in_module"),
            Some("write"),
            Some("read"),
            Some("read"),
            None,
        ];
        assert_eq!(names, expected.map(|name| name.map(str::to_owned)));
    }

    #[test]
    fn a_hidden_list_names_nothing() {
        let list = "0000000000000000 T _text\n0000000000000000 t read\n";
        let names = names_in(list.as_bytes(), &[0xffff_ffff_8100_0200]).unwrap();
        assert_eq!(names, [None]);
    }
}
