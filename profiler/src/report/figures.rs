//! How figures look to people: four digits, thousands apart, `<not supported>` for unknown.

/// What stands where a figure is not known.
pub(crate) const UNKNOWN: &str = "<not supported>";

/// What stands where a figure could be known, and nothing ran that it would count.
pub(crate) const UNCOUNTED: &str = "<not counted>";

/// A count with thousands separators.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut shown = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// A figure of at least four significant digits; whole numbers are not cut.
pub(crate) fn figure(value: f64) -> String {
    if !value.is_finite() {
        return UNKNOWN.to_owned();
    }
    let size = value.abs();
    let decimals = if size == 0.0 || size >= 1_000.0 {
        0
    } else {
        // At least one digit before the point, at most six after it.
        (3 - size.log10().floor() as i32).clamp(1, 6) as usize
    };
    let shown = format!("{size:.decimals$}");
    let (whole, fraction) = shown.split_once('.').unwrap_or((&shown, ""));
    let sign = if value < 0.0 { "-" } else { "" };
    let whole = whole.parse().map_or_else(|_| whole.to_owned(), count);
    if fraction.is_empty() {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{fraction}")
    }
}

/// A figure that may be unknown.
pub(crate) fn known(value: Option<f64>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), figure)
}

/// A figure with its unit, or [`UNKNOWN`] without.
pub(crate) fn with_unit(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(
        || UNKNOWN.to_owned(),
        |value| format!("{} {unit}", figure(value)),
    )
}

/// A share in per cent.
pub(crate) fn percent(ratio: f64) -> String {
    format!("{:.1} %", ratio * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_four_digits_and_unknown_is_never_zero() {
        for (value, shown) in [
            (0.0, "0"),
            (0.031_49, "0.03149"),
            (0.999_99, "1.0000"),
            (4.2, "4.200"),
            (44.1, "44.10"),
            (999.96, "1,000.0"),
            (11_024.6, "11,025"),
            (1_234_567.0, "1,234,567"),
            (-2.5, "-2.500"),
            (f64::NAN, UNKNOWN),
        ] {
            assert_eq!(figure(value), shown);
        }
        assert_eq!(known(None), UNKNOWN);
        assert_eq!(with_unit(None, "J"), UNKNOWN);
        assert_eq!(count(0), "0");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(percent(0.041), "4.1 %");
    }
}
