//! The period cut in equal lengths, and what falls into each.

use crate::clock::Timestamp;

/// Equal lengths of time, one behind the other; what lies outside belongs to the nearest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cuts {
    pub(super) start: u64,
    /// Nanoseconds, at least 1.
    pub(super) length: u64,
    pub(super) count: usize,
}

/// A span's part in one length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) place: usize,
    pub(super) nanos: u64,
    /// Nanoseconds of the span up to this piece's end.
    until: u64,
}

/// What is spread evenly over a span.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    amount: u64,
    span: u64,
    given: u64,
}

impl Cuts {
    pub(super) fn place(self, at: Timestamp) -> usize {
        let place = at.0.saturating_sub(self.start) / self.length;
        usize::try_from(place).map_or(usize::MAX, |place| place.min(self.count.saturating_sub(1)))
    }

    /// Where something ended: a moment between two lengths belongs to the earlier.
    pub(super) fn place_of_end(self, at: Timestamp) -> usize {
        self.place(Timestamp(at.0.saturating_sub(1)))
    }

    /// A span by lengths of time; the first takes what lies before all, the last what lies behind.
    pub(super) fn pieces(
        self,
        from: Timestamp,
        to: Timestamp,
    ) -> impl Iterator<Item = Piece> + use<> {
        let (first, last) = (self.place(from), self.place(to));
        let mut start = from.0;
        (first..=last).filter_map(move |place| {
            let cut = self.start + self.length * (place as u64 + 1);
            let end = if place == last { to.0 } else { cut.min(to.0) };
            let nanos = end.saturating_sub(start);
            start = end;
            (nanos > 0 || first == last).then_some(Piece {
                place,
                nanos,
                until: end.saturating_sub(from.0),
            })
        })
    }
}

impl Spread {
    pub(super) const fn new(amount: u64, from: Timestamp, to: Timestamp) -> Self {
        Self {
            amount,
            span: to.since(from),
            given: 0,
        }
    }

    /// The next piece's part: the parts of all pieces add up to the amount, exactly.
    pub(super) fn part(&mut self, piece: Piece) -> u64 {
        let until = if piece.until >= self.span {
            self.amount
        } else {
            let share = u128::from(self.amount) * u128::from(piece.until) / u128::from(self.span);
            u64::try_from(share).unwrap_or(self.amount)
        };
        let part = until.saturating_sub(self.given);
        self.given = until;
        part
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_and_parts_add_up_wherever_the_span_lies(
            start in 0u64..1_000, length in 1u64..50, count in 1usize..20,
            from in 0u64..2_500, span in 0u64..500, amount in 0u64..1_000_000,
        ) {
            let cuts = Cuts { start, length, count };
            let (from, to) = (Timestamp(from), Timestamp(from + span));
            let mut spread = Spread::new(amount, from, to);
            let (mut nanos, mut given, mut latest) = (0, 0, None);
            for piece in cuts.pieces(from, to) {
                prop_assert!(piece.place < count);
                prop_assert!(latest < Some(piece.place));
                latest = Some(piece.place);
                nanos += piece.nanos;
                given += spread.part(piece);
            }
            prop_assert_eq!((nanos, given), (span, amount));
        }
    }

    #[test]
    fn a_span_lies_where_the_clock_says() {
        let cuts = Cuts {
            start: 100,
            length: 10,
            count: 3,
        };
        let pieces: Vec<(usize, u64)> = cuts
            .pieces(Timestamp(95), Timestamp(125))
            .map(|piece| (piece.place, piece.nanos))
            .collect();
        assert_eq!(pieces, [(0, 15), (1, 10), (2, 5)]);
        assert_eq!(cuts.place(Timestamp(7)), 0);
        assert_eq!(cuts.place(Timestamp(1_000)), 2);
    }
}
