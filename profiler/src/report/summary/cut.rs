//! A summary in parts, each of the time since the one before.

use std::collections::BTreeMap;

use super::{MeterSums, ServiceSums, Summary};
use crate::units::Microjoules;

impl Summary {
    /// What was summed up so far. What follows is summed up anew, on the same meters and services: what was known
    /// of them is 0 from here on, and not unknown.
    pub fn cut(&mut self) -> Self {
        let next = Self {
            simulated: self.simulated,
            window: None,
            meters: self
                .meters
                .iter()
                .map(|(id, meter)| (*id, meter.emptied()))
                .collect(),
            places: self.places.clone(),
            services: self
                .services
                .iter()
                .map(|(name, service)| (name.clone(), service.emptied()))
                .collect(),
            context_unknown: false,
            lost: self.lost,
            lost_before: self.lost.unwrap_or(self.lost_before),
            expects_cuda: self.expects_cuda,
            expects_pmc: self.expects_pmc,
        };
        std::mem::replace(self, next)
    }
}

impl ServiceSums {
    fn emptied(&self) -> Self {
        Self {
            model: self.model.clone(),
            tokens: self.tokens.emptied(),
            cpu_nanos: self.cpu_nanos.map(|_| 0),
            host: self.host.emptied(),
            activity: self.activity.emptied(),
            cpu_energy: self.cpu_energy.map(|_| Microjoules::ZERO),
            waits: self.waits.emptied(),
            ..Self::default()
        }
    }
}

impl MeterSums {
    fn emptied(&self) -> Self {
        Self {
            component: self.component,
            device: self.device.clone(),
            source: self.source,
            intervals: 0,
            energy: Microjoules::ZERO,
            accounts: [Microjoules::ZERO; 8],
            by_service: BTreeMap::new(),
            floor: self.floor,
        }
    }
}
