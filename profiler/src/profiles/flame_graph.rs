//! The picture: widths are energy, or waiting. A file that needs nothing else, also offline.

use std::io::{self, Write};

use inferno::flamegraph::{self, Options, color};

use super::folded::Figure;

/// Draws folded lines; lines with two figures become a differential graph: red is what costs more
/// now, blue what costs less.
///
/// # Errors
/// If `out` cannot be written, or nothing is in the lines.
pub fn draw(
    title: &str,
    subtitle: &str,
    figure: Figure,
    lines: &[String],
    out: impl Write,
) -> io::Result<()> {
    let mut options = Options::default();
    options.title = title.to_owned();
    options.subtitle = Some(subtitle.to_owned());
    // Lines hold millionths, and the picture's `total_samples` too.
    options.factor = 1e-3;
    options.name_type = "Stack:".to_owned();
    let (unit, palette) = match figure {
        Figure::Energy => ("mJ", color::BasicPalette::Hot),
        Figure::Waiting => ("ms", color::BasicPalette::Blue),
    };
    options.count_name = unit.to_owned();
    options.colors = color::Palette::Basic(palette);
    // The same recording gives the same picture.
    options.deterministic = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_holds_all_energy_and_asks_nobody_for_anything() {
        let lines = [
            "vllm;[GPU decode] 2000000",
            "vllm;p;main;hot 30000",
            "[idle];[GPU] 70001",
        ];
        let mut svg = Vec::new();
        draw(
            "Energy",
            "SIMULATED GPU",
            Figure::Energy,
            &lines.map(str::to_owned),
            &mut svg,
        )
        .unwrap();
        let svg = String::from_utf8(svg).unwrap();
        assert!(svg.contains("total_samples=\"2100001\""));
        assert!(svg.contains("[GPU decode] (2,000 mJ"));
        for outside in ["href=\"http", "src=", "@import", "url(http"] {
            assert!(!svg.contains(outside), "{outside}");
        }
        assert!(draw("Energy", "", Figure::Energy, &[], io::sink()).is_err());
    }
}
