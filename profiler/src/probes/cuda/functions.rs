//! Which functions of CUDA's driver library are probed, and where probes on them go.
//!
//! In: an ELF file. Out: places by file offset. Names: cuda.h; `_ptsz` are the twins of programs
//! that are built with a default stream of each thread's own.

use std::fs::File;
use std::io;

use memmap2::Mmap;
use object::read::elf::ElfFile64;
use profiler_ebpf::cost::Program;
use profiler_ebpf::cuda::{GRAPH, KERNEL};

use crate::probes::uprobes::prologue::{self, LOOKED_AT};
use crate::probes::uprobes::{Point, addresses, file_offset};

/// Launch one kernel.
const KERNELS: [&[u8]; 6] = [
    b"cuLaunchKernel",
    b"cuLaunchKernel_ptsz",
    b"cuLaunchKernelEx",
    b"cuLaunchKernelEx_ptsz",
    b"cuLaunchCooperativeKernel",
    b"cuLaunchCooperativeKernel_ptsz",
];

/// Launch a graph.
const GRAPHS: [&[u8]; 2] = [b"cuGraphLaunch", b"cuGraphLaunch_ptsz"];

/// Wait for the GPU.
const SYNCS: [&[u8]; 7] = [
    b"cuStreamSynchronize",
    b"cuStreamSynchronize_ptsz",
    b"cuEventSynchronize",
    b"cuEventSynchronize_ptsz",
    b"cuCtxSynchronize",
    b"cuCtxSynchronize_ptsz",
    b"cuCtxSynchronize_v2",
];

/// The places of `file`; `None` if it launches nothing.
///
/// The file must not shrink meanwhile; a library that is in use is replaced, not cut.
pub(super) fn find(file: &File) -> io::Result<Option<Vec<Point>>> {
    // SAFETY: see above; what is read is checked by the parser, whatever it is.
    let map = unsafe { Mmap::map(file) }?;
    Ok(points(&map))
}

fn points(file: &[u8]) -> Option<Vec<Point>> {
    let elf = ElfFile64::<object::Endianness>::parse(file).ok()?;
    let code = |address: u64| {
        let offset = file_offset(&elf, address)?;
        let code = file.get(usize::try_from(offset).ok()?..)?;
        Some((offset, code.get(..LOOKED_AT).unwrap_or(code)))
    };
    let mut points: Vec<Point> = Vec::new();
    // Two names of one function are one place.
    let mut add = |point: Point| {
        let same = |known: &Point| (known.program, known.offset) == (point.program, point.offset);
        if !points.iter().any(same) {
            points.push(point);
        }
    };
    let launches = addresses(&elf, KERNELS).map(|address| (address, KERNEL));
    let graphs = addresses(&elf, GRAPHS).map(|address| (address, GRAPH));
    for (address, cookie) in launches.into_iter().chain(graphs) {
        if let Some((offset, code)) = address.and_then(code) {
            let place = prologue::entry(code);
            add(Point {
                program: Program::CudaLaunch.name(),
                offset: offset + place.offset,
                cookie,
                emulated: place.emulated,
            });
        }
    }
    for address in addresses(&elf, SYNCS) {
        if let Some((offset, code)) = address.and_then(code) {
            // Both at the first instruction, where a return must be asked for: one stop, not two.
            let place = prologue::first(code);
            for program in [Program::CudaSyncReturn, Program::CudaSync] {
                add(Point {
                    program: program.name(),
                    offset,
                    cookie: 0,
                    emulated: place.emulated,
                });
            }
        }
    }
    let launches = |point: &Point| point.program == Program::CudaLaunch.name();
    points.iter().any(launches).then_some(points)
}
