//! What a GPU shows beside its energy: plain values that a source fills in and a sink shows. What
//! the board does not tell is `None`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::units::{Celsius, Hertz, Ratio, Watts};

/// One look at one GPU. Counters run since the agent's first look at the board.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuTelemetry {
    /// Its meter's device.
    pub device: String,
    /// When the look ended.
    pub at: Timestamp,
    /// Power limits.
    pub limits: PowerLimits,
    /// Power of a superchip's whole module, CPU included; never to be added to the GPU's.
    pub module_power: Option<Watts>,
    /// Clock of the streaming multiprocessors.
    pub sm_clock: Option<Hertz>,
    /// Clock of the memory.
    pub memory_clock: Option<Hertz>,
    /// Temperature of the GPU.
    pub temperature: Option<Celsius>,
    /// Memory.
    pub memory: Option<Memory>,
    /// How busy it was lately.
    pub utilization: Option<Utilization>,
    /// Nanoseconds for which each of [`ThrottleReason::ALL`] held the clocks down.
    pub throttled: Option<[u64; ThrottleReason::ALL.len()]>,
    /// Over PCIe.
    pub pcie: Traffic,
    /// Over all NVLinks.
    pub nvlink: Traffic,
    /// How it is set up.
    pub modes: Modes,
    /// What its parts did of late, where it is not split.
    pub activity: Option<Activity>,
    /// What it is split into (MIG).
    pub instances: Vec<MigInstance>,
    /// The longest that the driver needed for one of the values that it reads in a batch, as it says
    /// itself.
    pub field_latency: Option<Duration>,
}

/// What a GPU's parts, or an instance's, did between two samples (GPM), as parts of what they can.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Activity {
    /// Time in which the graphics or compute engine was busy.
    pub graphics: Option<Ratio>,
    /// Streaming multiprocessors that were busy.
    pub sm: Option<Ratio>,
    /// Warps that were resident on them.
    pub occupancy: Option<Ratio>,
    /// Time in which tensor cores were busy.
    pub tensor: Option<Ratio>,
    /// Bandwidth of the memory that was used.
    pub memory: Option<Ratio>,
}

impl Activity {
    /// As one number, to weigh instances of one GPU against each other: the mean of multiprocessors,
    /// tensor cores and memory, since no coefficients hold from one load to another (arXiv
    /// 2501.17752).
    pub fn work(&self) -> Option<Ratio> {
        let Some(sm) = self.sm else {
            return self.graphics;
        };
        let known = [Some(sm), self.tensor, self.memory];
        let known: Vec<f64> = known.into_iter().flatten().map(|part| part.0).collect();
        Some(Ratio(known.iter().sum::<f64>() / known.len() as f64))
    }
}

/// A GPU instance. It has no energy of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigInstance {
    /// Its id on its GPU.
    pub id: u32,
    /// How many of the GPU's slices it has.
    pub slices: u32,
    /// Of its (first) MIG device; empty where the driver does not tell.
    pub uuid: String,
}

/// A GPU's critical errors since the agent's start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CriticalErrors {
    /// Its meter's device.
    pub device: String,
    /// By the driver's number (XID); 0 for all beyond the first few numbers.
    pub counts: BTreeMap<u64, u64>,
}

/// A board's power limits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PowerLimits {
    /// In force.
    pub enforced: Option<Watts>,
    /// The lowest that can be set.
    pub min: Option<Watts>,
    /// The highest that can be set.
    pub max: Option<Watts>,
}

/// A board's memory, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Held by processes.
    pub used: u64,
    /// Free.
    pub free: u64,
    /// Held by the driver and the firmware.
    pub reserved: u64,
}

/// Share of the driver's last sample period (a sixth of a second to one second).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Utilization {
    /// In which any kernel ran; not how much of the chip it used.
    pub gpu: Ratio,
    /// In which memory was read or written.
    pub memory: Ratio,
}

/// Bytes that went over a bus.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Sent by the GPU, counted.
    pub sent: Option<u64>,
    /// Received by the GPU, counted.
    pub received: Option<u64>,
    /// Bytes a second sent over a short moment, where they are not counted.
    pub sent_rate: Option<f64>,
    /// Bytes a second received over a short moment, where they are not counted.
    pub received_rate: Option<f64>,
}

/// How a board is set up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modes {
    /// Whether it is split into instances (MIG) at present.
    pub mig: Option<bool>,
    /// Who may open a context: `default`, `exclusive_process`, `exclusive_thread` or `prohibited`.
    pub compute: Option<&'static str>,
    /// `none`, `passthrough`, `vgpu`, `host_vgpu` or `host_vsga`.
    pub virtualization: Option<&'static str>,
}

/// What holds a GPU's clocks below what they could be. That nothing runs is no reason here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThrottleReason {
    /// Clocks that somebody has set.
    ApplicationClocks,
    /// The power limit.
    SwPowerCap,
    /// Too hot, too much power at once, or an external brake.
    HwSlowdown,
    /// Another GPU of its group.
    SyncBoost,
    /// The driver found GPU or memory too hot.
    SwThermal,
    /// The hardware found it too hot.
    HwThermal,
    /// An external brake, by the power supply for instance.
    HwPowerBrake,
    /// A display's needs.
    DisplayClocks,
}

impl ThrottleReason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::ApplicationClocks,
        Self::SwPowerCap,
        Self::HwSlowdown,
        Self::SyncBoost,
        Self::SwThermal,
        Self::HwThermal,
        Self::HwPowerBrake,
        Self::DisplayClocks,
    ];

    /// As in labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ApplicationClocks => "application_clocks",
            Self::SwPowerCap => "sw_power_cap",
            Self::HwSlowdown => "hw_slowdown",
            Self::SyncBoost => "sync_boost",
            Self::SwThermal => "sw_thermal",
            Self::HwThermal => "hw_thermal",
            Self::HwPowerBrake => "hw_power_brake",
            Self::DisplayClocks => "display_clocks",
        }
    }

    /// Its bit in NVML's `nvmlClocksEventReason…`.
    pub const fn bit(self) -> u64 {
        match self {
            Self::ApplicationClocks => 0x2,
            Self::SwPowerCap => 0x4,
            Self::HwSlowdown => 0x8,
            Self::SyncBoost => 0x10,
            Self::SwThermal => 0x20,
            Self::HwThermal => 0x40,
            Self::HwPowerBrake => 0x80,
            Self::DisplayClocks => 0x100,
        }
    }
}
