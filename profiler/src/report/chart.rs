//! Charts as inline SVG: lines, stacked areas, bars, points. The same values give the same text; colours
//! come from the page's style, so that light, dark and print have their own. A title and a description
//! tell what the picture shows to whoever does not see it.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::figures::figure;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
const BAR: f64 = 26.0;
const BAR_LABEL: f64 = 200.0;
const BAR_VALUE: f64 = 130.0;
/// Characters of a bar's label.
const LABEL: usize = 28;

/// A chart with what it says in words.
#[derive(Debug, Clone)]
pub(super) struct Chart {
    /// Unique in its document.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) description: String,
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    pub(super) marks: Marks,
}

/// What is drawn.
#[derive(Debug, Clone)]
pub(super) enum Marks {
    /// Broken where a value is not known.
    Lines(Vec<Series>),
    /// One on the other, the first below; all at the same places.
    Areas(Vec<Series>),
    Points(Vec<Series>),
    Bars(Vec<Bar>),
}

/// Values of one kind over x.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// A value with its name.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: f64,
    /// Half-width of its bound.
    pub(super) error: Option<f64>,
    /// As it is written beside the bar.
    pub(super) shown: String,
}

impl Chart {
    /// The picture with its caption and, of several series, their names.
    pub(super) fn markup(&self) -> Markup {
        let (title, description) = (format!("{}-title", self.id), format!("{}-desc", self.id));
        let (height, inner, names) = match &self.marks {
            Marks::Bars(bars) => (bars.len() as f64 * BAR + 8.0, bars_markup(bars), vec![]),
            Marks::Lines(series) | Marks::Areas(series) | Marks::Points(series) => {
                let names = series.iter().map(|series| series.name.as_str()).collect();
                (HEIGHT, self.plot(series), names)
            }
        };
        html! {
            figure.chart {
                svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-labelledby=(format!("{title} {description}")) {
                    title id=(title) { (self.title) }
                    desc id=(description) { (self.description) }
                    (inner)
                }
                @if names.len() > 1 {
                    ul.legend {
                        @for (number, name) in names.iter().enumerate() {
                            li { span class=(format!("swatch c{number}")) {} " " (name) }
                        }
                    }
                }
                figcaption { b { (self.title) ". " } (self.description) }
            }
        }
    }

    fn plot(&self, series: &[Series]) -> Markup {
        let stacked = matches!(self.marks, Marks::Areas(_));
        let drawn = if stacked {
            stack(series)
        } else {
            series.to_vec()
        };
        let points = || drawn.iter().flat_map(|series| &series.points);
        let known = points().filter_map(|(x, y)| Some((*x, (*y)?)));
        let x = Scale::new(known.clone().map(|(x, _)| x), LEFT, WIDTH - RIGHT);
        let y = Scale::new(known.map(|(_, y)| y), HEIGHT - BOTTOM, TOP);
        html! {
            @for tick in y.ticks() {
                line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(at(y.place(tick))) y2=(at(y.place(tick))) {}
                text.tick x=(LEFT - 6.0) y=(at(y.place(tick) + 4.0)) text-anchor="end" { (short(tick)) }
            }
            @for tick in x.ticks() {
                text.tick x=(at(x.place(tick))) y=(HEIGHT - BOTTOM + 16.0) text-anchor="middle" { (short(tick)) }
            }
            line.axis x1=(LEFT) x2=(WIDTH - RIGHT) y1=(HEIGHT - BOTTOM) y2=(HEIGHT - BOTTOM) {}
            text.label x=(f64::midpoint(LEFT, WIDTH - RIGHT)) y=(HEIGHT - 6.0) text-anchor="middle" { (self.x) }
            text.label x="12" y=(f64::midpoint(TOP, HEIGHT - BOTTOM)) text-anchor="middle"
                transform=(format!("rotate(-90 12 {})", f64::midpoint(TOP, HEIGHT - BOTTOM))) { (self.y) }
            // Areas reach down to zero: the highest is drawn first, and the lower ones over it.
            @for (number, series) in drawn.iter().enumerate().rev() {
                @match self.marks {
                    Marks::Areas(_) => path class=(format!("area c{number}")) d=(area(series, &x, &y)) {},
                    Marks::Lines(_) => path class=(format!("line c{number}")) d=(line(series, &x, &y)) {},
                    _ => {}
                }
                @if !stacked {
                    @for (place, value) in &series.points {
                        @if let Some(value) = value {
                            circle class=(format!("dot c{number}")) cx=(at(x.place(*place))) cy=(at(y.place(*value))) r="3" {}
                        }
                    }
                }
            }
        }
    }
}

fn bars_markup(bars: &[Bar]) -> Markup {
    let reach = |bar: &Bar| bar.value + bar.error.unwrap_or(0.0);
    let x = Scale::new(bars.iter().map(reach), BAR_LABEL, WIDTH - BAR_VALUE);
    html! {
        @for (number, bar) in bars.iter().enumerate() {
            @let top = number as f64 * BAR + 4.0;
            @let (middle, end) = (top + 9.0, x.place(bar.value));
            text.tick x=(BAR_LABEL - 8.0) y=(at(middle + 4.0)) text-anchor="end" { (cut(&bar.label)) }
            rect class="bar c0" x=(BAR_LABEL) y=(at(top)) width=(at(end - BAR_LABEL)) height="18" {}
            @if let Some(error) = bar.error {
                @let (low, high) = (x.place((bar.value - error).max(0.0)), x.place(bar.value + error));
                line.bound x1=(at(low)) x2=(at(high)) y1=(at(middle)) y2=(at(middle)) {}
            }
            text.tick x=(at(x.place(reach(bar)) + 6.0)) y=(at(middle + 4.0)) { (bar.shown) }
        }
    }
}

/// A label that fits.
fn cut(label: &str) -> String {
    if label.chars().count() <= LABEL {
        return label.to_owned();
    }
    let mut short: String = label.chars().take(LABEL - 1).collect();
    short.push('…');
    short
}

/// Each series on those before it.
fn stack(series: &[Series]) -> Vec<Series> {
    let mut sums: Vec<f64> = Vec::new();
    let on_top = |series: &Series| {
        sums.resize(series.points.len(), 0.0);
        let points = series.points.iter().zip(&mut sums);
        let points = points.map(|((x, y), sum)| {
            *sum += y.unwrap_or(0.0);
            (*x, Some(*sum))
        });
        Series {
            name: series.name.clone(),
            points: points.collect(),
        }
    };
    series.iter().map(on_top).collect()
}

fn line(series: &Series, x: &Scale, y: &Scale) -> String {
    let mut path = String::new();
    let mut pen = 'M';
    for (place, value) in &series.points {
        match value {
            Some(value) => {
                // Writing to a String cannot fail.
                let _ = write!(path, "{pen}{} {}", at(x.place(*place)), at(y.place(*value)));
                pen = 'L';
            }
            None => pen = 'M',
        }
    }
    path
}

fn area(series: &Series, x: &Scale, y: &Scale) -> String {
    let mut path = line(series, x, y);
    if let (Some((first, _)), Some((last, _))) = (series.points.first(), series.points.last()) {
        let zero = at(y.place(0.0));
        let (first, last) = (at(x.place(*first)), at(x.place(*last)));
        let _ = write!(path, "L{last} {zero}L{first} {zero}Z");
    }
    path
}

/// From 0 to the greatest value, onto the picture.
struct Scale {
    top: f64,
    step: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let greatest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let greatest = if greatest > 0.0 { greatest } else { 1.0 };
        // Steps of 1, 2 or 5: four to eight of them.
        let size = 10f64.powf((greatest / 4.0).log10().floor());
        let step = [5.0, 2.0, 1.0]
            .map(|step| step * size)
            .into_iter()
            .find(|step| greatest / step >= 4.0)
            .unwrap_or(size);
        Self {
            top: greatest,
            step,
            from,
            to,
        }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (self.to - self.from) * (value / self.top).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = (self.top / self.step + 1e-9).floor() as u32;
        let step = self.step;
        (0..=count).map(move |tick| f64::from(tick) * step)
    }
}

fn at(place: f64) -> String {
    format!("{place:.1}")
}

/// A tick's value, without digits that say nothing.
fn short(value: f64) -> String {
    let shown = figure(value);
    if shown.contains('.') {
        let shown = shown.trim_end_matches('0').trim_end_matches('.');
        return shown.to_owned();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(marks: Marks) -> String {
        let chart = Chart {
            id: "c",
            title: "Power",
            description: "What was drawn <when>".to_owned(),
            x: "s",
            y: "W",
            marks,
        };
        chart.markup().into_string()
    }

    #[test]
    fn a_line_breaks_where_a_value_is_not_known_and_text_is_escaped() {
        let points = vec![
            (0.0, Some(1.0)),
            (1.0, None),
            (2.0, Some(2.0)),
            (3.0, Some(2.0)),
        ];
        let name = "a".to_owned();
        let drawn = chart(Marks::Lines(vec![Series { name, points }]));
        assert!(
            drawn.contains("d=\"M64.0 111.0M493.3 12.0L708.0 12.0\""),
            "{drawn}"
        );
        assert!(
            drawn.contains("drawn &lt;when&gt;") && !drawn.contains("<when"),
            "{drawn}"
        );
        assert!(
            drawn.contains("<title id=\"c-title\">Power</title>"),
            "{drawn}"
        );
    }

    #[test]
    fn areas_stand_on_each_other() {
        let series = |name: &str, value| Series {
            name: name.to_owned(),
            points: vec![(0.0, Some(value)), (1.0, Some(value))],
        };
        let drawn = chart(Marks::Areas(vec![
            series("idle", 30.0),
            series("busy", 10.0),
        ]));
        // 198 pixels are 40 W: the lower one ends at 30 W, the upper one at 40 W.
        assert!(
            drawn.contains("d=\"M64.0 61.5L708.0 61.5L708.0 210.0L64.0 210.0Z\""),
            "{drawn}"
        );
        assert!(
            drawn.contains("d=\"M64.0 12.0L708.0 12.0L708.0 210.0L64.0 210.0Z\""),
            "{drawn}"
        );
        assert!(drawn.contains("idle") && drawn.contains("busy"));
    }

    #[test]
    fn ticks_are_round_and_nothing_is_drawn_out_of_the_picture() {
        let scale = Scale::new([0.0, 873.0].into_iter(), 0.0, 100.0);
        let ticks: Vec<f64> = scale.ticks().collect();
        assert_eq!(ticks, [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!(scale.place(2_000.0), 100.0);
        assert_eq!(
            (short(0.02).as_str(), short(1_500.0).as_str()),
            ("0.02", "1,500")
        );
        assert!(Scale::new(std::iter::empty(), 0.0, 1.0).ticks().count() > 1);
    }
}
