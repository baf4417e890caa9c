//! What a service did beside serving: CUDA launches and waits, and what the CPUs' counters say.

use serde::{Deserialize, Serialize};

use super::figures::{figure, percent};
use super::rows::{Row, Value};
use crate::activity::{CudaCalls, HardwareCounts};
use crate::units::Microjoules;

/// Launches and waits through CUDA's driver library; null where no such library was seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct CudaReport {
    pub kernel_launches: Option<u64>,
    pub graph_launches: Option<u64>,
    /// Calls that waited for the GPU and returned.
    pub syncs: Option<u64>,
    /// Time inside them, summed over threads.
    pub sync_s: Option<f64>,
    /// For how long all this was counted.
    pub watched_s: Option<f64>,
    /// False where the probes were taken off before the end, for what they cost.
    pub complete: bool,
}

/// What the CPUs' counters say; null where they do not count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the keys are the documentation's own words")]
pub struct PmcReport {
    pub cycles: Option<u64>,
    pub instructions: Option<u64>,
    pub cache_misses: Option<u64>,
    pub instructions_per_cycle: Option<f64>,
    /// The service's energy on CPU packages, overhead included, over its instructions.
    pub j_per_instruction: Option<f64>,
    /// The part of the threads' time for which they counted; the rest is extrapolated.
    pub counted_ratio: Option<f64>,
}

/// A service's sums.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Activity {
    cuda: Option<CudaSums>,
    cycles: Option<u64>,
    instructions: Option<u64>,
    cache_misses: Option<u64>,
    wanted_nanos: u64,
    counted_nanos: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct CudaSums {
    kernels: u64,
    graphs: u64,
    syncs: u64,
    sync_nanos: u64,
    watched_nanos: u64,
    incomplete: bool,
}

impl Activity {
    /// The same counters, at 0.
    pub(super) fn emptied(&self) -> Self {
        Self {
            cuda: self.cuda.map(|sums| CudaSums {
                incomplete: sums.incomplete,
                ..CudaSums::default()
            }),
            cycles: self.cycles.map(|_| 0),
            instructions: self.instructions.map(|_| 0),
            cache_misses: self.cache_misses.map(|_| 0),
            ..Self::default()
        }
    }

    pub(super) fn add_cuda(&mut self, calls: &CudaCalls) {
        let sums = self.cuda.get_or_insert_default();
        sums.kernels += calls.kernels;
        sums.graphs += calls.graphs;
        sums.syncs += calls.syncs;
        sums.sync_nanos += calls.sync_nanos;
        sums.watched_nanos += calls.watched_nanos;
        sums.incomplete |= !calls.complete;
    }

    pub(super) fn add_hardware(&mut self, counts: &HardwareCounts) {
        for (sum, more) in [
            (&mut self.cycles, counts.cycles),
            (&mut self.instructions, counts.instructions),
            (&mut self.cache_misses, counts.cache_misses),
        ] {
            if let Some(more) = more {
                *sum.get_or_insert_default() += more;
            }
        }
        self.wanted_nanos += counts.wanted_nanos;
        self.counted_nanos += counts.counted_nanos;
    }

    pub(super) fn cuda(&self) -> CudaReport {
        let Some(sums) = self.cuda else {
            return CudaReport {
                complete: true,
                ..CudaReport::default()
            };
        };
        CudaReport {
            kernel_launches: Some(sums.kernels),
            graph_launches: Some(sums.graphs),
            syncs: Some(sums.syncs),
            sync_s: Some(sums.sync_nanos as f64 / 1e9),
            watched_s: Some(sums.watched_nanos as f64 / 1e9),
            complete: !sums.incomplete,
        }
    }

    /// `energy`: the service's on CPU packages, if they are metered.
    pub(super) fn pmc(&self, energy: Option<Microjoules>) -> PmcReport {
        let over = |part: Option<f64>, whole: Option<u64>| {
            let whole = whole.filter(|whole| *whole > 0)?;
            Some(part? / whole as f64)
        };
        let float = |count: u64| count as f64;
        PmcReport {
            cycles: self.cycles,
            instructions: self.instructions,
            cache_misses: self.cache_misses,
            instructions_per_cycle: over(self.instructions.map(float), self.cycles),
            j_per_instruction: over(energy.map(|energy| energy.joules().0), self.instructions),
            counted_ratio: over(Some(float(self.counted_nanos)), Some(self.wanted_nanos)),
        }
    }
}

/// The rows of `stat`.
pub(super) fn cuda_rows(cuda: &CudaReport) -> Vec<Row> {
    let watched = cuda.watched_s.filter(|watched| *watched > 0.0);
    let mut rows: Vec<Row> = [
        ("kernel_launches", "kernel launches", cuda.kernel_launches),
        ("graph_launches", "graph launches", cuda.graph_launches),
    ]
    .into_iter()
    .map(|(event, what, number)| {
        let rate = number.zip(watched);
        let rate = rate.map(|(number, watched)| number as f64 / watched);
        Row::new(event, counted(number), "", what).metric(rate, "/s")
    })
    .collect();
    let waits = cuda.sync_s.map_or(Value::NotSupported, Value::Figure);
    let syncs = cuda.syncs.map(Value::Count);
    rows.push(Row::new("cuda_waits", waits, "s", "in CUDA waits").also(
        "cuda_syncs",
        syncs,
        "",
        |syncs| format!("{syncs} waits for the GPU"),
    ));
    if let (false, Some(watched)) = (cuda.complete, cuda.watched_s) {
        let note = format!("counted for {} s, then too costly", figure(watched));
        rows.push(Row::more(note));
    }
    rows
}

/// The rows of `stat`.
pub(super) fn pmc_rows(pmc: &PmcReport) -> Vec<Row> {
    let part = pmc.counted_ratio.filter(|ratio| *ratio < 0.995);
    let note = part.map_or_else(String::new, |ratio| {
        format!("counted {} of the time", percent(ratio))
    });
    let nanojoules = pmc.j_per_instruction.map(|joules| joules * 1e9);
    let nanojoules = nanojoules.map_or(Value::NotSupported, Value::Figure);
    let mut rows = vec![
        Row::new("cycles", counted(pmc.cycles), "", "cycles").note(note),
        Row::new(
            "instructions",
            counted(pmc.instructions),
            "",
            "instructions",
        )
        .metric(pmc.instructions_per_cycle, "per cycle"),
        Row::new(
            "cache_misses",
            counted(pmc.cache_misses),
            "",
            "cache misses",
        ),
        Row::new("nj_per_instruction", nanojoules, "nJ", "per instruction"),
    ];
    for row in &mut rows {
        row.counted = pmc.counted_ratio;
    }
    rows
}

fn counted(number: Option<u64>) -> Value {
    number.map_or(Value::NotSupported, Value::Count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::ServiceId;
    use crate::report::figures::UNKNOWN;

    fn calls(complete: bool) -> CudaCalls {
        CudaCalls {
            service: ServiceId(0),
            kernels: 3_000,
            graphs: 40,
            syncs: 8,
            sync_nanos: 250_000_000,
            watched_nanos: 2_000_000_000,
            complete,
        }
    }

    fn counts(cycles: Option<u64>, counted_nanos: u64) -> HardwareCounts {
        HardwareCounts {
            service: ServiceId(0),
            cycles,
            instructions: Some(4_000_000_000),
            cache_misses: None,
            wanted_nanos: 1_000,
            counted_nanos,
        }
    }

    fn shown(rows: &[Row]) -> String {
        let line = |row: &Row| {
            let (value, remark) = (row.value.shown(), row.remark());
            format!("{value} {} {} # {remark}\n", row.unit, row.what)
        };
        rows.iter().map(line).collect()
    }

    fn cuda(activity: &Activity) -> String {
        shown(&cuda_rows(&activity.cuda()))
    }

    fn pmc(activity: &Activity, energy: Option<u64>) -> String {
        shown(&pmc_rows(&activity.pmc(energy.map(Microjoules))))
    }

    #[test]
    fn launches_are_told_by_the_second_they_were_counted_for() {
        let mut activity = Activity::default();
        activity.add_cuda(&calls(true));
        let shown = cuda(&activity);
        for part in ["3,000", "1500 /s", "20.00 /s", "0.2500 s", "8 waits"] {
            assert!(
                shown.replace("1,500", "1500").contains(part),
                "{part}: {shown}"
            );
        }
        assert!(!shown.contains("costly"), "{shown}");
        activity.add_cuda(&calls(false));
        assert!(cuda(&activity).contains("then too costly"), "{shown}");
        assert!(!activity.cuda().complete);
    }

    #[test]
    fn what_was_not_seen_is_not_supported_and_never_zero() {
        let nothing = Activity::default();
        let shown = cuda(&nothing) + &pmc(&nothing, Some(5));
        assert_eq!(shown.matches(UNKNOWN).count(), 7, "{shown}");
        assert_eq!(nothing.cuda().kernel_launches, None);
        assert_eq!(nothing.pmc(None), PmcReport::default());
    }

    #[test]
    fn ratios_of_counters_are_of_what_the_machine_counts() {
        let mut activity = Activity::default();
        activity.add_hardware(&counts(Some(2_000_000_000), 750));
        let report = activity.pmc(Some(Microjoules(8_000_000)));
        assert_eq!(report.instructions_per_cycle, Some(2.0));
        assert_eq!(report.j_per_instruction, Some(2e-9));
        assert_eq!(report.cache_misses, None);
        assert_eq!(report.counted_ratio, Some(0.75));
        let shown = pmc(&activity, Some(8_000_000));
        assert!(shown.contains("counted 75"), "{shown}");
        assert_eq!(activity.pmc(None).j_per_instruction, None);

        let mut no_cycles = Activity::default();
        no_cycles.add_hardware(&counts(None, 1_000));
        let report = no_cycles.pmc(None);
        assert_eq!((report.cycles, report.instructions_per_cycle), (None, None));
    }
}
