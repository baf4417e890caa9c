//! aarch64: branches and address computations are carried out by the kernel itself
//! (arch/arm64/kernel/probes/decode-insn.c: `arm_probe_decode_insn`). They stand at a function's
//! beginning only where it is a mere jump, so probes go to its first instruction. Never run on
//! such a machine.

use super::Place;

/// What the kernel carries out: the instruction's bits under a mask.
const EMULATED: [(u32, u32); 7] = [
    // b, bl
    (0x7c00_0000, 0x1400_0000),
    // b.cond
    (0xff00_0010, 0x5400_0000),
    // cbz, cbnz
    (0x7e00_0000, 0x3400_0000),
    // tbz, tbnz
    (0x7e00_0000, 0x3600_0000),
    // adr, adrp
    (0x1f00_0000, 0x1000_0000),
    // br, blr, ret
    (0xff9f_fc1f, 0xd61f_0000),
    // ldr of a literal
    (0xbf00_0000, 0x1800_0000),
];

/// The best place for a probe that reads a function's arguments: `code` is its beginning.
pub(in crate::probes) fn entry(code: &[u8]) -> Place {
    first(code)
}

/// The function's first instruction, where a probe for its return must stand.
pub(in crate::probes) fn first(code: &[u8]) -> Place {
    let instruction = code.first_chunk().copied().map(u32::from_le_bytes);
    Place {
        offset: 0,
        emulated: instruction.is_some_and(|instruction| {
            let is = |(mask, bits): &(u32, u32)| instruction & mask == *bits;
            EMULATED.iter().any(is)
        }),
    }
}

/// Where a function passes its first two arguments on to: not looked for.
pub(in crate::probes) const fn passes_on_to(_: &[u8], _: u64) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_cheap_and_what_keeps_registers_is_not() {
        let is_emulated = |instruction: u32| entry(&instruction.to_le_bytes()).emulated;
        // b .+8; ret; cbz x0, .+16; adrp x16, .; ldr x0, .+8
        for cheap in [
            0x1400_0002,
            0xd65f_03c0,
            0xb400_0080,
            0x9000_0010,
            0x5800_0040,
        ] {
            assert!(is_emulated(cheap), "{cheap:x}");
        }
        // stp x29, x30, [sp, #-16]!; sub sp, sp, #16; bti c; mov x0, x1
        for dear in [0xa9bf_7bfd, 0xd100_43ff, 0xd503_245f, 0xaa01_03e0] {
            assert!(!is_emulated(dear), "{dear:x}");
        }
        assert!(!first(&[]).emulated);
        assert_eq!(passes_on_to(&[0; 64], 0), None);
    }
}
