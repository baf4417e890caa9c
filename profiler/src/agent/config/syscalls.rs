//! How system calls are counted, as settings say it: a switch, or which of them are timed.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::sources::switch;
use crate::probes::syscalls::Timing;

/// Off, or counted. A plain switch that is on stands for [`Timing::Exact`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyscallSetting {
    /// Not counted.
    Off,
    /// Counted, and timed so.
    On(Timing),
}

impl SyscallSetting {
    /// Which calls are timed; `None` if none are counted.
    pub const fn timing(self) -> Option<Timing> {
        match self {
            Self::Off => None,
            Self::On(timing) => Some(timing),
        }
    }

    fn switched(on: bool) -> Self {
        if on {
            Self::On(Timing::default())
        } else {
            Self::Off
        }
    }
}

impl FromStr for SyscallSetting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(timing) => Ok(Self::On(timing)),
            Err(_) => switch(text)
                .map(Self::switched)
                .map_err(|_| "neither on nor off, exact or sampled"),
        }
    }
}

impl<'de> Deserialize<'de> for SyscallSetting {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Setting;

        impl Visitor<'_> for Setting {
            type Value = SyscallSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean, \"exact\" or \"sampled\"")
            }

            fn visit_bool<E: Error>(self, on: bool) -> Result<SyscallSetting, E> {
                Ok(SyscallSetting::switched(on))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<SyscallSetting, E> {
                text.parse()
                    .map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        from.deserialize_any(Setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_that_is_on_times_every_call() {
        for (text, setting) in [
            ("on", SyscallSetting::On(Timing::Exact)),
            ("exact", SyscallSetting::On(Timing::Exact)),
            ("sampled", SyscallSetting::On(Timing::Sampled)),
            ("off", SyscallSetting::Off),
        ] {
            assert_eq!(text.parse(), Ok(setting), "{text}");
        }
        assert!("maybe".parse::<SyscallSetting>().is_err());
    }
}
