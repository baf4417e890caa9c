//! The sums of one agent, for the next one to go on from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fold::{Finished, Folded};
use super::labels::OTHER;
use super::metrics::Metrics;
use super::totals::{MeterTotals, ServiceTotals, Totals};
use crate::ledger::Component;

/// All that must never fall while agents come and go. Keys may be added; one that is missing is a
/// sum of nothing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    meters: Vec<SavedMeter>,
    services: Vec<SavedService>,
    finished: Finished,
    folded: Folded,
    /// Lost events by reason.
    dropped: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedMeter {
    component: Component,
    device: String,
    #[serde(flatten)]
    totals: MeterTotals,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedService {
    name: String,
    #[serde(flatten)]
    totals: ServiceTotals,
}

impl Saved {
    pub(super) fn of(totals: &Totals) -> Self {
        let meters = totals.meters.iter();
        Self {
            meters: meters
                .map(|((component, device), totals)| SavedMeter {
                    component: *component,
                    device: device.clone(),
                    totals: totals.clone(),
                })
                .collect(),
            services: totals
                .named_services()
                .map(|(name, totals)| SavedService {
                    name: name.to_owned(),
                    totals: totals.clone(),
                })
                .collect(),
            finished: totals.finished.clone(),
            folded: totals.folded,
            dropped: totals
                .dropped
                .iter()
                .map(|(reason, dropped)| (reason.to_string(), dropped.sum()))
                .collect(),
        }
    }

    pub(super) fn put_into(self, metrics: &mut Metrics) {
        for meter in self.meters {
            let key = (meter.component, meter.device);
            metrics.totals.meters.insert(key, meter.totals);
        }
        metrics.totals.finished = self.finished;
        metrics.totals.folded = self.folded;
        for service in self.services {
            let number = metrics.number_of_name(&service.name);
            let is_other = metrics.totals.service_names.name(number) == OTHER;
            let Some(place) = metrics.totals.service(number) else {
                continue;
            };
            // The budget may be smaller than it was.
            if is_other {
                place.absorb(&service.totals);
            } else {
                *place = service.totals;
            }
        }
        for (reason, before) in self.dropped {
            let reason = Cow::Owned(reason);
            let dropped = metrics.totals.dropped.entry(reason).or_default();
            dropped.before = before;
        }
    }
}

/// Maps whose keys are no text, as lists of pairs.
pub(super) mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub(in super::super) fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        let pairs: Vec<(K, V)> = Vec::deserialize(from)?;
        Ok(pairs.into_iter().collect())
    }
}
