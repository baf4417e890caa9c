//! Carbon intensity of countries' grids: the bundled table.

/// What `grid_intensity.csv` says of itself, for the report.
pub(super) const SOURCE: &str = "bundled table: Ember by Our World in Data (CC BY 4.0), from codecarbon 3.3.2 (MIT); \
     yearly average of the country's production, lifecycle, without imports";

const TABLE: &str = include_str!("carbon/grid_intensity.csv");

/// A country's grid, averaged over a year.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Its English name.
    pub country: String,
    /// Of the data.
    pub year: u16,
    /// gCO2e, location-based.
    pub g_per_kwh: f64,
}

impl Grid {
    /// The grid of a country by its ISO 3166-1 code, of two or three letters.
    pub(super) fn of_country(code: &str) -> Result<Self, String> {
        let mut near: Option<(f64, String)> = None;
        for row in rows() {
            let (alpha2, alpha3, grid) = row?;
            let country = grid.country.clone();
            for name in [&alpha2, &alpha3, &country] {
                if name.eq_ignore_ascii_case(code) {
                    return Ok(grid);
                }
            }
            let likeness = strsim::jaro_winkler(&country.to_lowercase(), &code.to_lowercase());
            if near.as_ref().is_none_or(|(best, _)| likeness > *best) {
                near = Some((likeness, format!("{alpha2} is {country}")));
            }
        }
        let hint = near
            .filter(|(likeness, _)| *likeness > 0.8)
            .map_or_else(String::new, |(_, near)| format!(" ({near})"));
        Err(format!(
            "no factor is known for this country{hint}; give its ISO 3166 code, e.g. DE or DEU, or a factor with \
             --carbon-intensity"
        ))
    }
}

fn rows() -> impl Iterator<Item = Result<(String, String, Grid), String>> {
    csv::ReaderBuilder::new()
        .comment(Some(b'#'))
        .from_reader(TABLE.as_bytes())
        .into_deserialize::<(String, String, String, u16, f64)>()
        .map(|row| {
            let (alpha2, alpha3, country, year, g_per_kwh) =
                row.map_err(|error| format!("the table of countries: {error}"))?;
            let grid = Grid {
                country,
                year,
                g_per_kwh,
            };
            Ok((alpha2, alpha3, grid))
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_of_the_table_is_a_country_with_a_plausible_factor() {
        let rows: Vec<_> = rows().collect::<Result<_, _>>().unwrap();
        assert!(rows.len() > 200, "{}", rows.len());
        let mut codes = BTreeSet::new();
        for (alpha2, alpha3, grid) in rows {
            assert_eq!((alpha2.len(), alpha3.len()), (2, 3), "{grid:?}");
            assert!(codes.insert(alpha2) && codes.insert(alpha3), "{grid:?}");
            assert!((1.0..1_500.0).contains(&grid.g_per_kwh), "{grid:?}");
            assert!((2000..2026).contains(&grid.year), "{grid:?}");
        }
    }

    #[test]
    fn a_country_is_found_by_both_codes_and_an_unknown_one_is_an_error_with_a_next_step() {
        let france = Grid::of_country("FR").unwrap();
        assert_eq!(france, Grid::of_country("fra").unwrap());
        assert_eq!((france.country.as_str(), france.year), ("France", 2023));
        assert!((france.g_per_kwh - 56.039).abs() < 1e-9);
        let error = Grid::of_country("Germny").unwrap_err();
        assert!(
            error.contains("DE is Germany") && error.contains("--carbon-intensity"),
            "{error}"
        );
    }
}
