//! What boards of a GPU model draw when idle, from a table with its sources: the last resort for
//! one that is never quiet.

use std::sync::LazyLock;

use serde::Deserialize;

use crate::ledger::{FloorSource, TypicalIdle};
use crate::units::Watts;

static TABLE: LazyLock<Vec<Entry>> =
    LazyLock::new(|| match toml::from_str(include_str!("typical_idle.toml")) {
        Ok(Table { gpu }) => gpu,
        // Part of the program, and read by its tests.
        Err(error) => {
            log::error!("the table of idle levels: {error}");
            Vec::new()
        }
    });

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    gpu: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    bare_watts: f64,
    parked_watts: f64,
    error_watts: f64,
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers of the table"))]
    source: String,
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers of the table"))]
    read: String,
}

/// The levels of a board with this product name; `None` if nobody has published any. Older drivers
/// leave the maker's name out.
pub fn of(name: &str) -> Option<TypicalIdle> {
    let entry = TABLE
        .iter()
        .find(|entry| entry.name == name || entry.name.strip_prefix("NVIDIA ") == Some(name))?;
    Some(TypicalIdle {
        source: FloorSource::Table,
        bare: Watts(entry.bare_watts),
        parked: Watts(entry.parked_watts),
        error: Watts(entry.error_watts),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_by_its_whole_name_alone() {
        let levels = of("NVIDIA H100 80GB HBM3").expect("it is in the table");
        assert_eq!((levels.bare, levels.parked), (Watts(70.0), Watts(108.0)));
        assert_eq!(of("H100 80GB HBM3"), Some(levels));
        for unknown in [
            "NVIDIA H100 PCIe",
            "NVIDIA H100 80GB HBM3 (simulated)",
            "H100",
            "",
        ] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn every_entry_has_levels_in_order_a_source_and_its_date() {
        assert!(TABLE.len() >= 5);
        for entry in TABLE.iter() {
            let added = entry.parked_watts - entry.bare_watts;
            assert!(
                entry.bare_watts > 5.0 && (20.0..=70.0).contains(&added),
                "{entry:?}"
            );
            assert!(
                entry.error_watts >= 5.0 && entry.error_watts < added,
                "{entry:?}"
            );
            assert!(entry.source.contains("https://"), "{entry:?}");
            let date: Vec<u32> = entry.read.split('-').flat_map(str::parse).collect();
            assert!(
                matches!(date[..], [2026..=2099, 1..=12, 1..=31]),
                "{entry:?}"
            );
        }
    }
}
