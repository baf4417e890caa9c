//! Whether processes were made or have ended, for the price of one small read.
//!
//! In: `/proc/loadavg`. Out: yes or no. Its fourth field counts the machine's threads and its fifth
//! is the process id given out last: who comes moves the second, who goes the first (a process
//! that has ended once it is waited for). Nothing is seen of a process that stays and changes: its
//! program, its cgroup, where it listens.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Longer than the file ever is.
const LONGEST: usize = 128;

/// All processes of the machine, as far as that they are still the same.
#[derive(Debug)]
pub struct Population {
    file: Option<File>,
    latest: Option<Count>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    threads: u64,
    last_given: u64,
}

impl Population {
    /// As of now. `proc` is `/proc`.
    pub fn new(proc: &Path) -> Self {
        let mut population = Self {
            file: File::open(proc.join("loadavg")).ok(),
            latest: None,
        };
        population.latest = population.count();
        population
    }

    /// Whether anybody has come or gone since the last call; yes where that cannot be read.
    pub fn has_changed(&mut self) -> bool {
        let count = self.count();
        let before = std::mem::replace(&mut self.latest, count);
        count.is_none() || before != count
    }

    fn count(&self) -> Option<Count> {
        let mut bytes = [0; LONGEST];
        let length = self.file.as_ref()?.read_at(&mut bytes, 0).ok()?;
        Count::parse(std::str::from_utf8(bytes.get(..length)?).ok()?)
    }
}

impl Count {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace().skip(3);
        let (_, threads) = fields.next()?.split_once('/')?;
        Some(Self {
            threads: threads.parse().ok()?,
            last_given: fields.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn who_comes_and_who_goes_is_noticed() {
        let mut population = Population::new(Path::new("/proc"));
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep");
        assert!(population.has_changed(), "a child was made");
        child.kill().expect("it can be killed");
        child.wait().expect("it has ended");
        assert!(population.has_changed(), "it has ended");
    }

    #[test]
    fn load_alone_is_no_change() {
        let count = Count::parse("0.61 0.65 0.36 1/118 3476\n");
        assert_eq!(count, Count::parse("9.00 2.00 0.36 7/118 3476\n"));
        assert_ne!(count, Count::parse("0.61 0.65 0.36 1/117 3476\n"));
        assert_ne!(count, Count::parse("0.61 0.65 0.36 1/118 3477\n"));
        assert!(count.is_some());
    }

    #[test]
    fn where_nothing_can_be_read_everything_may_have_changed() {
        let mut population = Population::new(Path::new("/nonexistent"));
        assert!(population.has_changed() && population.has_changed());
        assert_eq!(Count::parse("0.61 0.65"), None);
    }
}
