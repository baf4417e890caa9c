//! What no meter knows: prices, carbon factors, what the machine's making cost. Somebody gives it, or
//! it stays unknown.

use std::str::FromStr;

use clap::Args;

use super::carbon::{self, Grid};
use super::full::FullEnergy;
use super::planner::model::{Amount, Input};

const JOULES_PER_KWH: f64 = 3.6e6;
const SECONDS_PER_YEAR: f64 = 365.25 * 86_400.0;

/// Prices and factors for a report.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Money and carbon (what is not given stays unknown)")]
pub struct Inputs {
    /// Price of a kWh of electricity, e.g. 0.21
    #[arg(long, value_name = "PRICE", value_parser = price, requires = "currency")]
    pub price: Option<f64>,
    /// Currency of the price, e.g. EUR
    #[arg(long, value_name = "CODE", requires = "price", value_parser = currency)]
    pub currency: Option<String>,
    /// Country whose grid the site draws from (ISO 3166, e.g. DE or DEU): its yearly average, location-based
    #[arg(long, value_name = "CC", value_parser = Grid::of_country, conflicts_with = "carbon_intensity")]
    pub country: Option<Grid>,
    /// Location-based carbon intensity of the site's electricity, gCO2e per kWh
    #[arg(long, value_name = "G_PER_KWH", value_parser = not_negative)]
    pub carbon_intensity: Option<f64>,
    /// Market-based carbon intensity (a contract's), gCO2e per kWh: shown beside, never in the SCI
    #[arg(long, value_name = "G_PER_KWH", value_parser = not_negative)]
    pub carbon_market: Option<f64>,
    /// What making the machine emitted, kgCO2e; a part of it by time
    #[arg(long, value_name = "KG", value_parser = not_negative, requires = "lifetime_years")]
    pub embodied_kg: Option<f64>,
    /// For how many years the machine is used
    #[arg(long, value_name = "YEARS", value_parser = years, requires = "embodied_kg")]
    pub lifetime_years: Option<f64>,
}

impl Inputs {
    /// gCO2e per kWh, location-based.
    pub(super) fn intensity(&self) -> Option<f64> {
        let of_country = self.country.as_ref().map(|grid| grid.g_per_kwh);
        self.carbon_intensity.or(of_country)
    }

    /// What energy at the meters means for the site.
    pub(super) fn amount(&self, full: FullEnergy, joules: Option<f64>) -> Amount {
        let energy = joules.map(|joules| joules * full.pue / JOULES_PER_KWH);
        let times = |factor: Option<f64>| Some(energy? * factor?);
        Amount {
            energy_kwh: energy,
            cost: times(self.price),
            carbon_g: times(self.intensity()),
        }
    }

    /// Embodied carbon of a time, g.
    pub(super) fn embodied(&self, seconds: f64) -> Option<f64> {
        let lifetime = self.lifetime_years? * SECONDS_PER_YEAR;
        Some(self.embodied_kg? * 1e3 * seconds / lifetime)
    }

    /// Every input, known or not; `today` is the day they were given on.
    pub(super) fn list(&self, full: FullEnergy, today: Option<&str>) -> Vec<Input> {
        let input = |name: &str, value: Option<f64>, unit: String, unknown: &str| Input {
            name: name.to_owned(),
            value,
            unit,
            source: value.map_or(unknown, |_| "given").to_owned(),
            date: value.and(today).map(str::to_owned),
        };
        let not_given = |flag: &str| format!("not given ({flag}): unknown");
        let currency = self.currency.as_deref().unwrap_or("money");
        let mut pue = input("power usage effectiveness", Some(full.pue), "1".into(), "");
        if full.pue <= 1.0 {
            pue.source = "default: the machine alone, without the site's cooling (--pue)".into();
            pue.date = None;
        }
        let mut intensity = input(
            "grid carbon intensity, location-based",
            self.intensity(),
            "gCO2e/kWh".into(),
            &not_given("--country or --carbon-intensity"),
        );
        if let Some(grid) = &self.country {
            intensity.source = format!("{}, {}", grid.country, carbon::SOURCE);
            intensity.date = Some(grid.year.to_string());
        }
        vec![
            pue,
            input(
                "price of electricity",
                self.price,
                format!("{currency}/kWh"),
                &not_given("--price"),
            ),
            intensity,
            input(
                "carbon intensity, market-based",
                self.carbon_market,
                "gCO2e/kWh".into(),
                &not_given("--carbon-market"),
            ),
            input(
                "embodied carbon of the machine",
                self.embodied_kg,
                "kgCO2e".into(),
                &not_given("--embodied-kg"),
            ),
            input(
                "lifetime of the machine",
                self.lifetime_years,
                "years".into(),
                &not_given("--lifetime-years"),
            ),
        ]
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    let value = f64::from_str(text).map_err(|error| error.to_string())?;
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err("a number of 0 or more is needed".to_owned())
    }
}

fn price(text: &str) -> Result<f64, String> {
    not_negative(text.strip_suffix("/kWh").unwrap_or(text))
}

fn years(text: &str) -> Result<f64, String> {
    match not_negative(text)? {
        years if years > 0.0 => Ok(years),
        _ => Err("a lifetime is longer than 0, e.g. 5".to_owned()),
    }
}

fn currency(text: &str) -> Result<String, String> {
    if (1..=8).contains(&text.chars().count()) && text.chars().all(char::is_alphabetic) {
        Ok(text.to_owned())
    } else {
        Err("a currency's code is needed, e.g. EUR".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        inputs: Inputs,
    }

    fn given(flags: &str) -> Result<Inputs, String> {
        let line = Line::try_parse_from(["report"].into_iter().chain(flags.split_whitespace()));
        line.map(|line| line.inputs)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_price_has_a_currency_and_a_factor_has_one_source() {
        let inputs = given("--price 0.2/kWh --currency EUR --country de").unwrap();
        let amount = inputs.amount(FullEnergy::default(), Some(3.6e6));
        assert_eq!((amount.energy_kwh, amount.cost), (Some(1.0), Some(0.2)));
        assert_eq!(amount.carbon_g, Some(380.95));
        let own = given("--carbon-intensity 25").unwrap();
        assert_eq!(own.intensity(), Some(25.0));
        for (flags, told) in [
            ("--price 0.2", "--currency"),
            ("--country DE --carbon-intensity 25", "cannot be used with"),
            ("--embodied-kg 1500", "--lifetime-years"),
            ("--embodied-kg 1500 --lifetime-years 0", "longer than 0"),
            ("--price=-1 --currency EUR", "0 or more"),
            ("--country Germny", "DE is Germany"),
            ("--price 1 --currency <b>", "currency's code"),
        ] {
            let error = given(flags).unwrap_err();
            assert!(error.contains(told), "{flags}: {error}");
        }
    }

    #[test]
    fn nothing_given_is_nothing_assumed() {
        let inputs = given("").unwrap();
        let amount = inputs.amount(FullEnergy::default(), Some(3.6e6));
        assert_eq!((amount.cost, amount.carbon_g), (None, None));
        assert_eq!(inputs.embodied(60.0), None);
        let unknown = inputs.list(FullEnergy::default(), Some("2026-11-23"));
        let known: Vec<&str> = unknown
            .iter()
            .filter(|input| input.value.is_some())
            .map(|input| input.name.as_str())
            .collect();
        assert_eq!(known, ["power usage effectiveness"]);
    }
}
