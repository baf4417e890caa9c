//! The services of a request log. Requests of one service that ran on different devices are
//! different services to the ledger, which knows of each device who uses it; their name is one.

use std::collections::HashMap;

use crate::clock::Timestamp;
use crate::ledger::{Holders, MeterId, ServiceId};

/// The devices that requests ran on, by place; `None`: all.
pub(super) type DeviceSet = Option<Box<[usize]>>;

/// All services so far.
#[derive(Debug, Default)]
pub(super) struct Services {
    by_name: HashMap<String, Vec<(DeviceSet, ServiceId)>>,
    /// By id.
    devices: Vec<DeviceSet>,
    /// Some requests name their devices.
    apart: bool,
}

impl Services {
    /// The service of this name on these devices; true if it is new.
    pub(super) fn of(&mut self, name: &str, devices: DeviceSet) -> (ServiceId, bool) {
        if let Some(known) = self.by_name.get(name)
            && let Some((_, id)) = known.iter().find(|(set, _)| *set == devices)
        {
            return (*id, false);
        }
        let id = ServiceId(self.devices.len() as u32);
        self.apart |= devices.is_some();
        self.devices.push(devices.clone());
        let of_name = self.by_name.entry(name.to_owned()).or_default();
        of_name.push((devices, id));
        (id, true)
    }

    /// Whose requests count on each of `meters` devices from `at` on; nothing as long as all do.
    pub(super) fn holders(&self, meters: usize, at: Timestamp) -> Vec<Holders> {
        if !self.apart {
            return Vec::new();
        }
        let on = |meter: usize| {
            let services = (0..).zip(&self.devices);
            let counts =
                services.filter(|(_, set)| set.as_ref().is_none_or(|set| set.contains(&meter)));
            counts.map(|(id, _)| ServiceId(id)).collect()
        };
        let holders = (0..meters).map(|meter| Holders {
            meter: MeterId(meter as u32),
            at,
            services: on(meter),
            // Nobody knows when a device was free: its level is one, held or not.
            others: 1,
            instances: Vec::new(),
        });
        holders.collect()
    }
}
