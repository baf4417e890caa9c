//! x86-64: a few kinds of instruction are carried out by the kernel itself
//! (arch/x86/kernel/uprobes.c: `branch_setup_insn`, `push_setup_insn`).

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess,
    Register,
};

use super::Place;

/// The arguments that are read.
const ARGUMENTS: [Register; 3] = [Register::RDI, Register::RSI, Register::RDX];

/// The best place for a probe that reads a function's arguments: `code` is its beginning.
pub(in crate::probes) fn entry(code: &[u8]) -> Place {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if is_emulated(&instruction) {
            return Place {
                offset: instruction.ip(),
                emulated: true,
            };
        }
        let changes_an_argument = changes(&mut info, &instruction, &ARGUMENTS);
        let goes_elsewhere = instruction.flow_control() != FlowControl::Next;
        if changes_an_argument || goes_elsewhere || instruction.is_invalid() {
            break;
        }
    }
    first(code)
}

/// The function's first instruction, where a probe for its return must stand.
pub(in crate::probes) fn first(code: &[u8]) -> Place {
    let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
    Place {
        offset: 0,
        emulated: is_emulated(&instruction),
    }
}

/// Where a function that lies at `address` passes its first two arguments on to, unchanged: its
/// first call, with no branch taken.
pub(in crate::probes) fn passes_on_to(code: &[u8], address: u64) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.code() == Code::Call_rel32_64 {
            return Some(instruction.near_branch_target());
        }
        let goes_on = matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::ConditionalBranch
        );
        if instruction.is_invalid() || !goes_on || changes(&mut info, &instruction, &ARGUMENTS[..2])
        {
            return None;
        }
    }
    None
}

/// True if the instruction may write one of `registers`.
fn changes(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
    registers: &[Register],
) -> bool {
    info.info(instruction).used_registers().iter().any(|used| {
        registers.contains(&used.register().full_register())
            && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead)
    })
}

fn is_emulated(instruction: &Instruction) -> bool {
    match instruction.code() {
        // One byte, or two with the prefix of r8 to r15.
        Code::Push_r64 => instruction.len() <= 2,
        Code::Call_rel32_64 | Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => true,
        Code::Nopd => instruction.len() == 1,
        _ => instruction.is_jcc_short_or_near(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_is_taken_behind_an_endbr64() {
        // endbr64; push rbp
        let place = entry(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5]);
        assert_eq!((place.offset, place.emulated), (4, true));
    }

    #[test]
    fn a_prologue_without_a_push_goes_up_to_its_first_branch() {
        // Debian's SSL_write: sub rsp; mov rax, fs:0x28; mov [rsp+8], rax; xor eax, eax;
        // test edx, edx; js
        let code = [
            0x48, 0x83, 0xec, 0x18, 0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0, 0x48, 0x89, 0x44,
            0x24, 0x08, 0x31, 0xc0, 0x85, 0xd2, 0x78, 0x2f,
        ];
        let place = entry(&code);
        assert_eq!((place.offset, place.emulated), (22, true));
        assert!(!first(&code).emulated);
    }

    #[test]
    fn a_call_is_taken_where_the_arguments_are_passed_on() {
        // Debian's SSL_write_ex: sub rsp, 8; call
        let code = [0x48, 0x83, 0xec, 0x08, 0xe8, 0x87, 0xfb, 0xff, 0xff];
        assert_eq!(entry(&code).offset, 4);
    }

    #[test]
    fn nothing_is_taken_behind_a_changed_argument() {
        // mov esi, esi; push rbp
        let place = entry(&[0x89, 0xf6, 0x55]);
        assert_eq!((place.offset, place.emulated), (0, false));
        // mov edx, 1; push rbp
        let place = entry(&[0xba, 1, 0, 0, 0, 0x55]);
        assert_eq!((place.offset, place.emulated), (0, false));
    }

    #[test]
    fn a_wrapper_says_what_it_wraps() {
        // Debian's SSL_read: as above, then mov rcx, rsp; movsxd rdx, edx; call
        let read = [
            0x48, 0x83, 0xec, 0x18, 0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0, 0x48, 0x89, 0x44,
            0x24, 0x08, 0x31, 0xc0, 0x85, 0xd2, 0x78, 0x2f, 0x48, 0x89, 0xe1, 0x48, 0x63, 0xd2,
            0xe8, 0x3d, 0xfe, 0xff, 0xff,
        ];
        // SSL_read_ex: sub rsp, 8; call
        let read_ex = [0x48, 0x83, 0xec, 0x08, 0xe8, 0xc7, 0xfd, 0xff, 0xff];
        assert_eq!(passes_on_to(&read, 0x35430), Some(0x35290));
        assert_eq!(passes_on_to(&read_ex, 0x354c0), Some(0x35290));
        // mov rdi, rbx; call
        let other = [0x48, 0x89, 0xdf, 0xe8, 0, 0, 0, 0];
        assert_eq!(passes_on_to(&other, 0), None);
        assert_eq!(passes_on_to(&[0xc3], 0), None);
    }

    #[test]
    fn what_is_no_code_is_probed_at_its_beginning() {
        for code in [&[][..], &[0x06], &[0xc3, 0x55]] {
            assert_eq!(entry(code).offset, 0);
        }
    }
}
