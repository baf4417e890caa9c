//! What is doubtful of a service's requests whichever of them it is: taken once for all that are
//! booked together, from the meters that they may have run on.

use super::meter::MeterState;
use super::{Class, Component, Source};
use crate::clock::Timestamp;

/// How far the energy of the intervals at a request's two ends may be misplaced within them, as
/// part of a tick at the request's mean power; calibrated against known truth.
const TICK_PART: f64 = 0.15;

/// Of each figure the worst meter's.
#[derive(Debug, Clone)]
pub(super) struct Doubts {
    /// What an end of a request may misplace, seconds at its mean power.
    pub(super) edge: f64,
    /// What the idle floor may be off by, as part of the power above it.
    pub(super) floor: f64,
    /// Parts of the requests' energy: shared by time in service, contended for by services, beside what
    /// went to processes that serve nothing, and what may be another instance's.
    pub(super) by_time: f64,
    pub(super) contended: f64,
    pub(super) foreign: f64,
    pub(super) misplaced: f64,
    /// Mean power above idle while anything is in flight, all its GPUs together, watts.
    pub(super) watts: f64,
    /// A tick of power that is integrated, seconds.
    pub(super) integrated: Option<f64>,
    /// Until when no floor was known.
    pub(super) floorless_until: Timestamp,
    /// Until when its energy was divided over instances.
    pub(super) split_until: Timestamp,
    /// How the meters of a component measure.
    classes: [Class; 3],
    /// Meters of each component.
    meters: [usize; 3],
    holes: Vec<(Component, Timestamp, Timestamp)>,
}

const fn place(component: Component) -> usize {
    match component {
        Component::Gpu => 0,
        Component::Cpu => 1,
        Component::Dram => 2,
    }
}

impl Doubts {
    /// Of the service's requests that ended about `at`. If it is on no GPU then, which it may have left
    /// since, it may have been on any.
    pub(super) fn of(service: u32, at: Timestamp, meters: &[MeterState]) -> Self {
        let is_gpu = |meter: &MeterState| meter.meter.component == Component::Gpu;
        let on = |meter: &MeterState| meter.concerns(service, at);
        let on_any = meters.iter().any(|meter| is_gpu(meter) && on(meter));
        let concerned = meters.iter().filter(|meter| !on_any || on(meter));
        let mut doubts = Self {
            edge: 0.0,
            floor: 0.0,
            by_time: 0.0,
            contended: 0.0,
            foreign: 0.0,
            misplaced: 0.0,
            watts: 0.0,
            integrated: None,
            floorless_until: Timestamp(0),
            split_until: Timestamp(0),
            classes: [Class::A; 3],
            meters: [0; 3],
            holes: Vec::new(),
        };
        for meter in concerned {
            doubts.add(meter);
        }
        doubts
    }

    fn add(&mut self, meter: &MeterState) {
        let component = meter.meter.component;
        let place = place(component);
        self.meters[place] += 1;
        let class = match meter.meter.source {
            Source::Counter if component == Component::Gpu => Class::A,
            Source::Counter | Source::Integrated => Class::B,
            Source::Model => Class::C,
        };
        self.classes[place] = self.classes[place].max(class);
        self.floorless_until = self.floorless_until.max(meter.floorless_until);
        self.holes
            .extend(meter.hole.map(|(from, to)| (component, from, to)));
        if component != Component::Gpu {
            return;
        }
        let tick = meter.meter.tick as f64 * 1e-9;
        self.edge = self.edge.max(meter.edge_error + TICK_PART * tick);
        let busy = meter.busy_watts();
        let floor = busy.map_or(0.0, |watts| (2.0 * meter.levels.error() / watts).min(1.0));
        self.floor = self.floor.max(floor);
        self.by_time = self.by_time.max(meter.by_time_part());
        self.contended = self.contended.max(meter.contended_part());
        self.foreign = self.foreign.max(meter.foreign_part());
        if meter.split_until > Timestamp(0) {
            self.misplaced = self.misplaced.max(meter.misplaced_part());
            self.split_until = self.split_until.max(meter.split_until);
        }
        self.watts += busy.unwrap_or(0.0);
        if meter.meter.source == Source::Integrated {
            self.integrated = Some(self.integrated.map_or(tick, |known| known.max(tick)));
        }
    }

    /// The worst way in which one of the component's meters measures.
    pub(super) const fn class(&self, component: Component) -> Class {
        self.classes[place(component)]
    }

    /// True if one of the component's meters is an estimate.
    pub(super) fn is_estimate(&self, component: Component) -> bool {
        self.class(component) == Class::C
    }

    /// The part of (from, to) that lies in a hole of one of its meters.
    pub(super) fn in_hole(&self, from: Timestamp, to: Timestamp) -> f64 {
        let parts = self.holes.iter().map(|hole| overlap(*hole, from, to));
        parts.fold(0.0, f64::max)
    }

    /// False if all of the component's meters were blind for all of (from, to).
    pub(super) fn is_measured(&self, component: Component, from: Timestamp, to: Timestamp) -> bool {
        let blind = |hole: &&(Component, Timestamp, Timestamp)| {
            hole.0 == component && overlap(**hole, from, to) >= 1.0
        };
        let meters = self.meters[place(component)];
        meters == 0 || self.holes.iter().filter(blind).count() < meters
    }
}

fn overlap(hole: (Component, Timestamp, Timestamp), from: Timestamp, to: Timestamp) -> f64 {
    let (_, begun, until) = hole;
    let seconds = to.seconds_since(from);
    if seconds > 0.0 {
        until.min(to).seconds_since(begun.max(from)) / seconds
    } else {
        0.0
    }
}
