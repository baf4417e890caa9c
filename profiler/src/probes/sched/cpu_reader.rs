//! One CPU's account turned into windows: pure.
//!
//! A read tells the running slice up to now. When that slice ends the kernel side books it whole,
//! under the owner its process has *then*. So what was told early must be taken off what is told
//! later, exactly, also when the owner changed in between or a read was torn: the sum told never
//! runs ahead of the clock, and nothing is told twice or lost.

/// What has been told of one CPU.
#[derive(Debug)]
pub(super) struct CpuReader {
    /// Nanoseconds accounted for by owner: booked, and running up to the last read.
    told: Vec<u64>,
    /// Told to an owner who then did not get it: comes off the next gains.
    debt: u64,
    begun: bool,
}

impl CpuReader {
    pub(super) fn new(owners: usize) -> Self {
        Self {
            told: vec![0; owners],
            debt: 0,
            begun: false,
        }
    }

    /// Adds to `gains` what each owner got since the last call.
    ///
    /// `booked`: ended slices by owner; `since` and `running`: start and owner of the slice that
    /// runs; `now`: the window's end, which may lie before `since` if the CPU switched meanwhile.
    /// The CPU's first slice before its first call is told to nobody.
    pub(super) fn advance(
        &mut self,
        booked: &[u64],
        since: u64,
        running: usize,
        now: u64,
        gains: &mut [u64],
    ) {
        let mut gained = vec![0u64; booked.len()];
        for (index, ((booked, told), gained)) in booked
            .iter()
            .zip(&mut self.told)
            .zip(&mut gained)
            .enumerate()
        {
            let slice = if index == running {
                now.saturating_sub(since)
            } else {
                0
            };
            let now_known = booked + slice;
            *gained = now_known.saturating_sub(*told);
            self.debt += told.saturating_sub(now_known);
            *told = now_known;
        }
        self.debt = take(&mut gained, self.debt, |_, _| {});
        // Slices that ended after the window are left for the next one.
        let told = &mut self.told;
        take(&mut gained, since.saturating_sub(now), |index, later| {
            if let Some(told) = told.get_mut(index) {
                *told -= later;
            }
        });
        if std::mem::replace(&mut self.begun, true) {
            for (gain, gained) in gains.iter_mut().zip(gained) {
                *gain += gained;
            }
        }
    }
}

/// Takes `amount` off the largest parts, tells `taken` of each, and returns what they could not
/// give.
fn take(parts: &mut [u64], amount: u64, mut taken: impl FnMut(usize, u64)) -> u64 {
    let mut left = amount;
    while left > 0 {
        let Some((index, part)) = parts
            .iter_mut()
            .enumerate()
            .max_by_key(|(_, part)| **part)
            .filter(|(_, part)| **part > 0)
        else {
            break;
        };
        let off = left.min(*part);
        *part -= off;
        left -= off;
        taken(index, off);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWNERS: usize = 4;

    /// A CPU as the kernel side sees it.
    struct Cpu {
        booked: [u64; OWNERS],
        since: u64,
    }

    impl Cpu {
        fn switch(&mut self, at: u64, owner: usize) {
            self.booked[owner] += at - self.since;
            self.since = at;
        }
    }

    fn begun(at: u64) -> (CpuReader, Cpu) {
        let cpu = Cpu {
            booked: [0; OWNERS],
            since: at,
        };
        let mut reader = CpuReader::new(OWNERS);
        reader.advance(&cpu.booked, at, 0, at, &mut [0; OWNERS]);
        (reader, cpu)
    }

    #[test]
    fn a_slice_that_never_ends_is_told_at_each_read() {
        let (mut reader, cpu) = begun(100);
        for read in 1..=5 {
            let mut gains = [0; OWNERS];
            reader.advance(&cpu.booked, cpu.since, 3, 100 + read * 10, &mut gains);
            assert_eq!(gains, [0, 0, 0, 10]);
        }
    }

    #[test]
    fn an_ended_slice_is_not_told_twice() {
        let (mut reader, mut cpu) = begun(0);
        let mut gains = [0; OWNERS];
        reader.advance(&cpu.booked, cpu.since, 3, 40, &mut gains);
        cpu.switch(50, 3);
        reader.advance(&cpu.booked, cpu.since, 2, 60, &mut gains);
        assert_eq!(gains, [0, 0, 10, 50]);
    }

    #[test]
    fn an_owner_that_changes_within_a_slice_gets_only_what_was_not_told() {
        let (mut reader, mut cpu) = begun(0);
        let mut gains = [0; OWNERS];
        reader.advance(&cpu.booked, cpu.since, 0, 40, &mut gains);
        cpu.switch(100, 3);
        reader.advance(&cpu.booked, cpu.since, 0, 100, &mut gains);
        assert_eq!(gains, [40, 0, 0, 60]);
    }

    #[test]
    fn a_slice_that_ended_after_the_window_waits_for_the_next() {
        let (mut reader, mut cpu) = begun(0);
        let mut gains = [0; OWNERS];
        cpu.switch(70, 3);
        reader.advance(&cpu.booked, cpu.since, 1, 50, &mut gains);
        assert_eq!(gains, [0, 0, 0, 50]);
        reader.advance(&cpu.booked, cpu.since, 1, 80, &mut gains);
        assert_eq!(gains, [0, 10, 0, 70]);
    }

    #[test]
    fn what_ran_before_the_first_read_is_told_to_nobody() {
        let mut reader = CpuReader::new(OWNERS);
        let mut gains = [0; OWNERS];
        reader.advance(&[0, 500, 0, 70], 600, 3, 650, &mut gains);
        assert_eq!(gains, [0; OWNERS]);
    }

    proptest! {
        /// Whatever runs, whoever changes owner, however late the window's end is stamped, and
        /// also with torn reads: what is told is the time that passed, to the nanosecond.
        #[test]
        fn every_nanosecond_is_told_once(
            steps in prop::collection::vec(
                (1u64..1_000, 0..OWNERS, any::<bool>(), 0u64..300, any::<bool>()), 1..200)
        ) {
            let (mut reader, mut cpu) = begun(0);
            let mut clock = 0;
            let mut window = 0;
            let mut told = 0u64;
            for (length, owner, read, early, torn) in steps {
                let before = cpu.booked;
                clock += length;
                cpu.switch(clock, owner);
                if read {
                    let end = clock.saturating_sub(early).max(window);
                    let mut gains = [0; OWNERS];
                    // A torn read sees the new start without the booking.
                    let booked = if torn { before } else { cpu.booked };
                    reader.advance(&booked, cpu.since, owner, end, &mut gains);
                    told += gains.iter().sum::<u64>();
                    window = end;
                    prop_assert!(told <= end, "told {told} by {end}");
                    if !torn {
                        prop_assert_eq!(told, end);
                    }
                }
            }
            let mut gains = [0; OWNERS];
            reader.advance(&cpu.booked, cpu.since, 0, clock, &mut gains);
            prop_assert_eq!(told + gains.iter().sum::<u64>(), clock);
        }
    }
}
