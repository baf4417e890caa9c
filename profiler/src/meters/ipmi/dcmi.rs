//! DCMI's "Get Power Reading": one request, one answer, all numbers little-endian. Pure.
//!
//! Source: Data Center Manageability Interface Specification 1.5, §6.6.1.

use thiserror::Error;

/// Group extension.
pub(super) const FUNCTION: u8 = 0x2c;
/// Get Power Reading.
pub(super) const COMMAND: u8 = 0x02;
/// DCMI's group; the present power and its statistics; two bytes that only other modes use.
pub(super) const REQUEST: [u8; 4] = [GROUP, 0x01, 0x00, 0x00];

const GROUP: u8 = 0xdc;
/// Completion code, group, four powers, time stamp, period, state.
const LENGTH: usize = 19;
/// Power is being measured.
const ACTIVE: u8 = 0x40;

/// Why an answer holds no power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The BMC does not know the request: it is no DCMI controller.
    #[error("the BMC has no DCMI power reading (completion code {0:#04x})")]
    Unknown(u8),
    /// The BMC is busy, or out of something.
    #[error("the BMC is busy (completion code {0:#04x})")]
    Busy(u8),
    /// The BMC refuses.
    #[error("the BMC refuses its power reading (completion code {0:#04x})")]
    Code(u8),
    /// Nothing, or less than DCMI says.
    #[error("the BMC's answer is cut after {0} bytes")]
    Short(usize),
    /// Another group's answer.
    #[error("the BMC's answer is not DCMI's")]
    Foreign,
    /// The BMC measures no power at present.
    #[error("the BMC measures no power at present")]
    Inactive,
}

/// The present power in watts, of an answer with its completion code.
pub(super) fn parse(answer: &[u8]) -> Result<u16, Refusal> {
    let short = Refusal::Short(answer.len());
    match answer.first().copied().ok_or(short)? {
        0x00 => {}
        code @ (0xc1 | 0xc2 | 0xcc) => return Err(Refusal::Unknown(code)),
        code @ (0xc0 | 0xc3 | 0xc4 | 0xd3) => return Err(Refusal::Busy(code)),
        code => return Err(Refusal::Code(code)),
    }
    let answer: &[u8; LENGTH] = answer.first_chunk().ok_or(short)?;
    let [_, group, low, high, .., state] = *answer;
    if group != GROUP {
        return Err(Refusal::Foreign);
    }
    // A machine that answers does not draw 0 W.
    match u16::from_le_bytes([low, high]) {
        watts if state & ACTIVE != 0 && watts != 0 => Ok(watts),
        _ => Err(Refusal::Inactive),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 214 W now, 2 to 468 W and 184 W on average over 1,000 ms.
    const ANSWER: [u8; 19] = [
        0x00, 0xdc, 214, 0, 2, 0, 0xd4, 0x01, 184, 0, 0x34, 0x84, 0x37, 0x66, 0xe8, 0x03, 0, 0,
        0x40,
    ];

    fn with(place: usize, byte: u8) -> Result<u16, Refusal> {
        let mut answer = ANSWER;
        answer[place] = byte;
        parse(&answer)
    }

    #[test]
    fn the_present_power_is_read_not_its_statistics() {
        assert_eq!(parse(&ANSWER), Ok(214));
        assert_eq!(with(3, 0x1b), Ok(0x1bd6), "two bytes, the low one first");
        let mut longer = ANSWER.to_vec();
        longer.push(7);
        assert_eq!(parse(&longer), Ok(214), "later versions may say more");
    }

    #[test]
    fn an_answer_without_power_says_why_and_is_never_zero() {
        assert_eq!(with(18, 0x00), Err(Refusal::Inactive));
        assert_eq!(with(2, 0), Err(Refusal::Inactive));
        assert_eq!(with(1, 0x52), Err(Refusal::Foreign));
        assert_eq!(with(0, 0xc1), Err(Refusal::Unknown(0xc1)));
        assert_eq!(with(0, 0xc0), Err(Refusal::Busy(0xc0)));
        assert_eq!(with(0, 0xd4), Err(Refusal::Code(0xd4)));
        assert_eq!(parse(&[]), Err(Refusal::Short(0)));
        assert_eq!(parse(&ANSWER[..18]), Err(Refusal::Short(18)));
        assert_eq!(
            Refusal::Unknown(0xc1).to_string(),
            "the BMC has no DCMI power reading (completion code 0xc1)"
        );
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(answer in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&answer);
        }
    }
}
