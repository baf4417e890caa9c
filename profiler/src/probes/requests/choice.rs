//! Which tier the probe runs on: the first whose programs load and see one exchange as it was.
//! No kernel's version is asked.

use std::time::{Duration, Instant};

use super::self_test::Exchange;
use super::{RequestProbe, next_record, tiers};
use crate::probes::health::{Tier, Verdict};
use crate::probes::load_error::ProbeError;
use crate::probes::loader::Loader;
use crate::probes::owners::Owners;

/// How the tier in use was chosen.
#[derive(Debug, Clone)]
pub struct Choice {
    tier: Tier,
    forced: bool,
    /// Tiers tried before, and why each does not work.
    refused: Vec<(Tier, String)>,
    /// Why the tier in use could not be tested.
    untested: Option<String>,
    /// To load and attach the tier in use.
    loading: Duration,
    /// Its self-test alone.
    test: Duration,
}

impl Choice {
    pub(super) const fn new(forced: Option<Tier>) -> Self {
        Self {
            tier: match forced {
                Some(tier) => tier,
                None => Tier::TpBtf,
            },
            forced: forced.is_some(),
            refused: Vec::new(),
            untested: None,
            loading: Duration::ZERO,
            test: Duration::ZERO,
        }
    }

    /// The tier in use.
    pub const fn tier(&self) -> Tier {
        self.tier
    }

    /// Tiers that were tried before it, and why each does not work here.
    pub fn refused(&self) -> &[(Tier, String)] {
        &self.refused
    }

    /// True if the tier in use saw its self-test; a machine without loopback has none.
    pub const fn is_tested(&self) -> bool {
        self.untested.is_none()
    }

    /// In one line: the tier, its test, and why those before it are not in use.
    pub fn story(&self) -> String {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let mut story = format!("tier {}", self.tier.name());
        if self.forced {
            story += ", as told";
        }
        story += &format!(", loaded in {:.0} ms", millis(self.loading));
        match &self.untested {
            None => story += &format!(", self-test passed in {:.1} ms", millis(self.test)),
            Some(why) => story += &format!(", not tested: {why}"),
        }
        for (tier, why) in &self.refused {
            story += &format!("; not {}: {why}", tier.name());
        }
        story
    }

    /// What is worse on this tier than on the first; `None` where nothing is.
    pub const fn drawback(&self) -> Option<&'static str> {
        match self.tier {
            Tier::TpBtf | Tier::Fexit | Tier::Uprobe | Tier::PerfEvent => None,
            Tier::Kprobe => Some(
                "of more threads that block in a receive at once than twice the CPUs, some \
                 requests are missed (and counted); Linux 6.3 or later has better hooks",
            ),
            Tier::RawTp => Some(
                "every system call of the machine is slowed a little; Linux 6.3 or later has \
                 better hooks, and so have kernels that allow fexit or kprobes",
            ),
        }
    }
}

impl RequestProbe {
    /// Attaches the first tier that works.
    pub(super) fn choose(
        &mut self,
        loader: &mut Loader,
        owners: &mut Owners,
    ) -> Result<(), ProbeError> {
        let mut verdict = Verdict::Unsupported;
        for tier in Tier::ALL {
            if self.choice.forced && tier != self.choice.tier {
                continue;
            }
            let start = Instant::now();
            let attached = tiers::attach(loader, tier);
            let tested = Instant::now();
            let why = match attached {
                Ok(sees_ends) => match self.test(owners) {
                    Ok(untested) => {
                        self.sees_ends = sees_ends;
                        self.attached = true;
                        self.choice.tier = tier;
                        self.choice.untested = untested;
                        self.choice.loading = tested.duration_since(start);
                        self.choice.test = tested.elapsed();
                        return Ok(());
                    }
                    Err(why) => {
                        verdict = Verdict::Broken;
                        tiers::detach(loader, tier);
                        why
                    }
                },
                Err(error) => {
                    if error.verdict() == Verdict::Broken {
                        verdict = Verdict::Broken;
                    }
                    error.to_string()
                }
            };
            self.forget_sockets();
            self.choice.refused.push((tier, why));
        }
        let first = match self.choice.forced {
            true => self.choice.tier,
            false => Tier::TpBtf,
        };
        let program = tiers::first_program(first);
        let reasons = self.choice.refused.iter();
        let reasons: Vec<String> = reasons
            .map(|(tier, why)| format!("{}: {why}", tier.name()))
            .collect();
        let error = ProbeError::NoTier {
            program,
            reasons: reasons.join("; "),
            verdict,
        };
        loader.mark(program, verdict, error.to_string());
        Err(error)
    }

    /// Makes one exchange and looks for it. `Ok` with a reason if none could be made.
    fn test(&mut self, owners: &mut Owners) -> Result<Option<String>, String> {
        let exchange = match owners.with_self_followed(Exchange::make) {
            Ok(exchange) => exchange,
            Err(error) => return Ok(Some(format!("no exchange over loopback: {error}"))),
        };
        let records: Vec<_> = std::iter::from_fn(|| next_record(&mut self.ring)).collect();
        exchange.check(records.iter()).map(|()| None)
    }
}
