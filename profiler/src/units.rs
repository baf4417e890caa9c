//! Units are types: what is booked is [`Microjoules`], an integer; what is shown is [`Joules`]
//! and [`Watts`], floating point, at the edge only.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use serde::{Deserialize, Serialize};

/// Energy in microjoules: the only unit that is ever booked. 2⁶⁴ µJ is 18 TJ.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Microjoules(pub u64);

/// Energy in joules, for display.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Joules(pub f64);

/// Power in watts.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Watts(pub f64);

/// A frequency in hertz.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct Hertz(pub f64);

/// A temperature in degrees Celsius.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct Celsius(pub f64);

/// A part of a whole, 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

impl Microjoules {
    /// No energy.
    pub const ZERO: Self = Self(0);

    /// NVML counts energy in millijoules.
    pub const fn from_millijoules(millijoules: u64) -> Self {
        Self(millijoules.saturating_mul(1_000))
    }

    /// `self - earlier`, or `None` if the counter fell.
    pub const fn checked_sub(self, earlier: Self) -> Option<Self> {
        match self.0.checked_sub(earlier.0) {
            Some(delta) => Some(Self(delta)),
            None => None,
        }
    }

    /// For display and for ratios; the nearest f64, so that 300,000 µJ prints as 0.3.
    pub const fn joules(self) -> Joules {
        Joules(self.0 as f64 / 1e6)
    }
}

impl Watts {
    /// Energy of this power over `nanos`; negative power counts as none.
    pub fn over(self, nanos: u64) -> Microjoules {
        Microjoules((self.0.max(0.0) * nanos as f64 * 1e-3).round() as u64)
    }
}

impl Hertz {
    /// NVML tells clocks in megahertz.
    pub fn from_megahertz(megahertz: u32) -> Self {
        Self(f64::from(megahertz) * 1e6)
    }
}

impl Ratio {
    /// NVML tells utilisation in percent.
    pub fn from_percent(percent: u32) -> Self {
        Self(f64::from(percent) / 100.0)
    }
}

impl Add for Microjoules {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for Microjoules {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Sub for Microjoules {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl SubAssign for Microjoules {
    fn sub_assign(&mut self, other: Self) {
        self.0 -= other.0;
    }
}

impl Sum for Microjoules {
    fn sum<I: Iterator<Item = Self>>(values: I) -> Self {
        values.fold(Self::ZERO, Add::add)
    }
}
