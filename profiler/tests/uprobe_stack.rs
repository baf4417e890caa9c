//! The built BPF object: no program on a process's own code may get a per-CPU stack.
//!
//! Since 6.13 the kernel gives programs of this kind such a stack if one of their functions has
//! 64 bytes or more. They can be preempted by each other on their CPU, and then write over each
//! other's stack; the machine may panic. A program with a tail call keeps to the thread's stack,
//! reached or not (kernel/bpf/verifier.c, `check_max_stack_depth`). Either is accepted here.

use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

const STACK: i16 = 64;

/// An instruction: operation, registers (destination low, source high), offset, immediate.
struct Instruction {
    operation: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

fn instructions(code: &[u8]) -> impl Iterator<Item = Instruction> {
    code.chunks_exact(8).map(|bytes| Instruction {
        operation: bytes[0],
        destination: bytes[1] & 0xf,
        source: bytes[1] >> 4,
        offset: i16::from_le_bytes([bytes[2], bytes[3]]),
        immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    })
}

/// `call 12`: the helper `bpf_tail_call`.
fn has_tail_call(code: &[u8]) -> bool {
    const CALL: u8 = 0x85;
    const TAIL_CALL: i32 = 12;
    instructions(code).any(|instruction| {
        let helper = instruction.operation == CALL && instruction.source == 0;
        helper && instruction.immediate == TAIL_CALL
    })
}

/// Bytes of stack a function uses itself, by its accesses relative to the frame pointer.
fn stack(code: &[u8]) -> i16 {
    const FRAME: u8 = 10;
    let mut deepest = 0;
    let mut copies = 0u16;
    for instruction in instructions(code) {
        let Instruction {
            operation,
            destination,
            source,
            offset,
            immediate,
        } = instruction;
        let class = operation & 0x7;
        // Loads take the address from the source, stores from the destination.
        let address = if class == 1 { source } else { destination };
        if (1..=3).contains(&class) && address == FRAME {
            deepest = deepest.max(-offset);
        }
        match operation {
            // mov register, register
            0xbf if source == FRAME => copies |= 1 << destination,
            0xbf => copies &= !(1 << destination),
            // add register, immediate
            0x07 if copies & 1 << destination != 0 => {
                deepest = deepest.max(i16::try_from(-immediate).unwrap_or(i16::MAX));
            }
            _ => {}
        }
    }
    deepest
}

#[test]
fn programs_on_processes_code_keep_to_the_threads_stack() {
    let file = ElfFile64::<object::Endianness>::parse(profiler::probes::object()).expect("an ELF");
    let mut programs = 0;
    let mut tracing = 0;
    for symbol in file.symbols() {
        let Some(section) = symbol
            .section_index()
            .and_then(|index| file.section_by_index(index).ok())
        else {
            continue;
        };
        if symbol.kind() != SymbolKind::Text || symbol.size() == 0 {
            continue;
        }
        let name = symbol.name().expect("a name");
        let kind = section.name().expect("a name");
        let data = section.data().expect("code");
        let start = (symbol.address() - section.address()) as usize;
        let code = &data[start..start + symbol.size() as usize];
        if kind.starts_with("uprobe") || kind.starts_with("uretprobe") {
            programs += 1;
            println!("{name}: {} bytes of stack", stack(code));
            assert!(
                has_tail_call(code) || stack(code) < STACK,
                "{name} would get a stack that a program that preempts it writes over"
            );
        } else if kind.starts_with("tp_btf") {
            tracing += 1;
            assert!(!has_tail_call(code), "{name} needs none");
        }
    }
    assert!(programs >= 4 && tracing >= 4, "{programs}, {tracing}");
}
