//! Which functions of a TLS library a file holds, and where probes on them go.
//!
//! In: an ELF file. Out: places by file offset. OpenSSL, its forks and BoringSSL have the same
//! names; a program that has the library inside is found by them too, if it kept its symbols.

use std::fs::File;
use std::io;

use memmap2::Mmap;
use object::read::elf::ElfFile64;
use profiler_ebpf::tls::EXTENDED;

use crate::probes::uprobes::prologue::{self, LOOKED_AT};
use crate::probes::uprobes::{Point, addresses, file_offset};

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
    let names: [&[u8]; 5] = [
        b"SSL_read",
        b"SSL_read_ex",
        b"SSL_write",
        b"SSL_write_ex",
        b"SSL_free",
    ];
    let [read, read_ex, write, write_ex, free] = addresses(&elf, names);
    let code = |address: u64| {
        let offset = file_offset(&elf, address)?;
        let code = file.get(usize::try_from(offset).ok()?..)?;
        Some((offset, code.get(..LOOKED_AT).unwrap_or(code)))
    };
    let mut reads = vec![(read, 0), (read_ex, EXTENDED)];
    if let Some(inner) = inner_read(read.zip(read_ex), code) {
        reads = vec![(Some(inner), EXTENDED)];
    }
    let mut points = Vec::new();
    for (address, cookie) in reads {
        let Some((offset, code)) = address.and_then(code) else {
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
    for (program, address, cookie) in [
        (WRITE, write, 0),
        (WRITE, write_ex, EXTENDED),
        (FREE, free, 0),
    ] {
        let Some((offset, code)) = address.and_then(code) else {
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

/// OpenSSL's own `ssl_read_internal(SSL *, void *, size_t, size_t *)` (1.1.1 and later), which
/// has no name in a stripped library: what both functions pass their arguments on to. A probe on
/// a function's return needs its first instruction, and compilers give a wrapper one that the
/// kernel steps through; this one keeps registers first. `None` if that would gain nothing.
fn inner_read<'a>(
    wrappers: Option<(u64, u64)>,
    code: impl Fn(u64) -> Option<(u64, &'a [u8])>,
) -> Option<u64> {
    let (read, read_ex) = wrappers?;
    let inner = prologue::passes_on_to(code(read)?.1, read)?;
    let same = prologue::passes_on_to(code(read_ex)?.1, read_ex)? == inner;
    let gains =
        !prologue::first(code(read)?.1).emulated && prologue::first(code(inner)?.1).emulated;
    (same && gains).then_some(inner)
}
