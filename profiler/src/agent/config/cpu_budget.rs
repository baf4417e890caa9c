//! What the agent may cost, as its user writes it.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};
use thiserror::Error;

/// CPU time the agent may take, as a share of one core.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CpuBudget {
    /// Above 0.
    Share(f64),
    /// As much as it takes.
    Unlimited,
}

/// Not a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not per cent of a core, as in 1 or 0.5, nor `none`")]
pub struct ParseCpuBudgetError;

impl FromStr for CpuBudget {
    type Err = ParseCpuBudgetError;

    fn from_str(text: &str) -> Result<Self, ParseCpuBudgetError> {
        if text == "none" {
            return Ok(Self::Unlimited);
        }
        let number = text.strip_suffix('%').unwrap_or(text);
        number
            .parse()
            .ok()
            .and_then(Self::per_cent)
            .ok_or(ParseCpuBudgetError)
    }
}

impl CpuBudget {
    fn per_cent(number: f64) -> Option<Self> {
        (number.is_finite() && number > 0.0).then_some(Self::Share(number / 100.0))
    }
}

impl<'de> Deserialize<'de> for CpuBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
        }
        let budget = match Written::deserialize(deserializer)? {
            Written::Number(number) => Self::per_cent(number).ok_or(ParseCpuBudgetError),
            Written::Text(text) => text.parse(),
        };
        budget.map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_per_cent_of_a_core() {
        assert_eq!("1".parse(), Ok(CpuBudget::Share(0.01)));
        assert_eq!("0.5%".parse(), Ok(CpuBudget::Share(0.005)));
        assert_eq!("none".parse(), Ok(CpuBudget::Unlimited));
        for text in ["", "0", "-1", "x", "inf", "NaN", "1 core"] {
            assert_eq!(
                text.parse::<CpuBudget>(),
                Err(ParseCpuBudgetError),
                "{text}"
            );
        }
    }
}
