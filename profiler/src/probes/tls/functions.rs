//! Which functions of a TLS library a file holds, and where probes on them go.
//!
//! In: an ELF file. Out: places by file offset. OpenSSL, its forks and BoringSSL have the same
//! names; a program that has the library inside is found by them too, if it kept its symbols.

use std::fs::File;
use std::io;

use memmap2::Mmap;
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _};
use profiler_ebpf::tls::EXTENDED;

use super::prologue::{self, LOOKED_AT};

/// A place of a file where a program is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    /// The program.
    pub(super) program: &'static str,
    /// Of the instruction, in the file.
    pub(super) offset: u64,
    /// What the program learns of the function.
    pub(super) cookie: u64,
    /// True where the kernel carries the instruction out itself.
    pub(super) emulated: bool,
}

/// The programs, and what they run on.
pub(super) const READ: &str = "ssl_read";
pub(super) const READ_RETURN: &str = "ssl_read_return";
pub(super) const WRITE: &str = "ssl_write";
pub(super) const FREE: &str = "ssl_free";

/// The places of `file`; `None` if it holds no TLS library that can be seen.
///
/// The file must not shrink meanwhile; a library that is in use is replaced, not cut.
pub(super) fn find(file: &File) -> io::Result<Option<Vec<Point>>> {
    // SAFETY: see above; what is read is checked by the parser, whatever it is.
    let map = unsafe { Mmap::map(file) }?;
    Ok(points(&map))
}

fn points(file: &[u8]) -> Option<Vec<Point>> {
    let elf = ElfFile64::<object::Endianness>::parse(file).ok()?;
    let mut found: [Option<u64>; 5] = [None; 5];
    let take = |found: &mut [Option<u64>; 5], name: object::Result<&[u8]>, address: u64| {
        let place = match name {
            Ok(b"SSL_read") => 0,
            Ok(b"SSL_read_ex") => 1,
            Ok(b"SSL_write") => 2,
            Ok(b"SSL_write_ex") => 3,
            Ok(b"SSL_free") => 4,
            _ => return,
        };
        if address != 0
            && let Some(found) = found.get_mut(place)
        {
            *found = Some(address);
        }
    };
    for symbol in elf.dynamic_symbols() {
        take(&mut found, symbol.name_bytes(), symbol.address());
    }
    // A program that has it inside may keep it for itself.
    if !found.iter().any(Option::is_some) {
        for symbol in elf.symbols() {
            take(&mut found, symbol.name_bytes(), symbol.address());
        }
    }
    let [read, read_ex, write, write_ex, free] = found.map(|address| {
        let offset = offset(&elf, address?)?;
        let start = usize::try_from(offset).ok()?;
        let code = file.get(start..)?;
        Some((offset, code.get(..LOOKED_AT).unwrap_or(code)))
    });
    let mut points = Vec::new();
    for (function, cookie) in [(read, 0), (read_ex, EXTENDED)] {
        let Some((offset, code)) = function else {
            continue;
        };
        // Both at the first instruction, where a return must be asked for: one stop, not two.
        let place = prologue::first(code);
        for program in [READ_RETURN, READ] {
            points.push(Point {
                program,
                offset,
                cookie,
                emulated: place.emulated,
            });
        }
    }
    for (program, function, cookie) in [
        (WRITE, write, 0),
        (WRITE, write_ex, EXTENDED),
        (FREE, free, 0),
    ] {
        let Some((offset, code)) = function else {
            continue;
        };
        let place = prologue::entry(code);
        points.push(Point {
            program,
            offset: offset + place.offset,
            cookie,
            emulated: place.emulated,
        });
    }
    let has = |program| points.iter().any(|point| point.program == program);
    (has(READ) && has(WRITE)).then_some(points)
}

/// Where the byte at `address` lies in the file.
fn offset(elf: &ElfFile64<'_>, address: u64) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let (start, length) = segment.file_range();
        let inside = address.checked_sub(segment.address())?;
        (inside < length).then_some(start + inside)
    })
}
