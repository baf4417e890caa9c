//! The sums of one agent, for the next one to go on from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::totals::{MeterTotals, ServiceTotals, Totals};
use crate::ledger::Component;

/// All that must never fall while agents come and go. Keys may be added; one that is missing is a
/// sum of nothing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    meters: Vec<SavedMeter>,
    services: Vec<SavedService>,
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
        let services = totals.service_names.all().zip(&totals.services);
        Self {
            meters: meters
                .map(|((component, device), totals)| SavedMeter {
                    component: *component,
                    device: device.clone(),
                    totals: totals.clone(),
                })
                .collect(),
            services: services
                .map(|(name, totals)| SavedService {
                    name: name.to_owned(),
                    totals: totals.clone(),
                })
                .collect(),
            dropped: totals
                .dropped
                .iter()
                .map(|(reason, dropped)| (reason.to_string(), dropped.sum()))
                .collect(),
        }
    }

    pub(super) fn put_into(self, totals: &mut Totals) {
        for meter in self.meters {
            let key = (meter.component, meter.device);
            totals.meters.insert(key, meter.totals);
        }
        for service in self.services {
            let number = totals.service_names.number(&service.name);
            if let Some(place) = totals.service(number) {
                *place = service.totals;
            }
        }
        for (reason, before) in self.dropped {
            let dropped = totals.dropped.entry(Cow::Owned(reason)).or_default();
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
