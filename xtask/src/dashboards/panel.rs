//! One panel: what it shows, in which unit, by which expressions.

use serde_json::{Value, json};

use super::expanded;

/// A panel; its place comes from its row.
pub(super) struct Panel {
    title: &'static str,
    description: &'static str,
    unit: &'static str,
    look: Look,
    pub(super) width: u64,
    pub(super) height: u64,
    targets: Vec<Target>,
}

#[derive(Clone, Copy)]
enum Look {
    /// One figure of the time range; from each of these values on in its colour.
    Stat(&'static [(&'static str, f64)]),
    /// Lines over time, on top of each other if stacked.
    Lines { stacked: bool },
}

struct Target {
    expr: String,
    legend: &'static str,
    exemplars: bool,
}

/// The data source that is chosen.
pub(super) fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// One figure. The first colour is that of all values below the first threshold.
pub(super) fn stat(
    title: &'static str,
    unit: &'static str,
    description: &'static str,
    expr: &str,
) -> Panel {
    Panel {
        title,
        description,
        unit,
        look: Look::Stat(&[]),
        width: 4,
        height: 4,
        targets: vec![Target::new(expr, "")],
    }
}

/// Lines over time; [`Panel::line`] adds them.
pub(super) fn lines(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    Panel {
        title,
        description,
        unit,
        look: Look::Lines { stacked: false },
        width: 8,
        height: 8,
        targets: Vec::new(),
    }
}

/// Median and 95th percentile of a histogram of a service; nothing where nothing was counted.
pub(super) fn quantiles(
    title: &'static str,
    unit: &'static str,
    description: &'static str,
    histogram: &str,
    selector: &str,
) -> Panel {
    let quantile = |quantile: &str| {
        format!(
            "histogram_quantile({quantile}, sum by (le, service) \
             (rate({histogram}_bucket{{{selector}}}[$__rate_interval]))) and on (service) \
             (sum by (service) (rate({histogram}_count{{{selector}}}[$__rate_interval])) > 0)"
        )
    };
    lines(title, unit, description)
        .line(&quantile("0.5"), "{{service}} p50")
        .line(&quantile("0.95"), "{{service}} p95")
}

impl Target {
    fn new(expr: &str, legend: &'static str) -> Self {
        Self {
            expr: expanded(expr),
            legend,
            exemplars: false,
        }
    }
}

impl Panel {
    /// One more expression, and the name of its series.
    pub(super) fn line(mut self, expr: &str, legend: &'static str) -> Self {
        self.targets.push(Target::new(expr, legend));
        self
    }

    /// Shows the requests behind the latest expression as points.
    pub(super) fn with_exemplars(mut self) -> Self {
        if let Some(target) = self.targets.last_mut() {
            target.exemplars = true;
        }
        self
    }

    /// Lines on top of each other.
    pub(super) fn stacked(mut self) -> Self {
        self.look = Look::Lines { stacked: true };
        self
    }

    /// Colours from these values on; green below.
    pub(super) fn warning_from(mut self, steps: &'static [(&'static str, f64)]) -> Self {
        self.look = Look::Stat(steps);
        self
    }

    /// How many of 24 columns it takes.
    pub(super) const fn wide(mut self, width: u64) -> Self {
        self.width = width;
        self
    }

    pub(super) fn json(&self, id: usize, place: &Value) -> Value {
        let is_stat = matches!(self.look, Look::Stat(_));
        let targets: Vec<Value> = self
            .targets
            .iter()
            .zip('A'..)
            .map(|(target, letter)| {
                let mut json = json!({
                    "refId": letter.to_string(),
                    "datasource": source(),
                    "expr": target.expr,
                    "legendFormat": target.legend,
                    "instant": is_stat,
                    "range": !is_stat,
                });
                if target.exemplars {
                    json["exemplar"] = true.into();
                }
                json
            })
            .collect();
        json!({
            "id": id,
            "type": if is_stat { "stat" } else { "timeseries" },
            "title": self.title,
            "description": self.description,
            "datasource": source(),
            "gridPos": place,
            "fieldConfig": {"defaults": self.defaults(), "overrides": []},
            "options": self.options(),
            "targets": targets,
        })
    }

    fn defaults(&self) -> Value {
        match self.look {
            Look::Stat(thresholds) => {
                let lowest = if thresholds.is_empty() {
                    "text"
                } else {
                    "green"
                };
                let mut steps = vec![json!({"color": lowest, "value": null})];
                steps.extend(
                    thresholds
                        .iter()
                        .map(|(color, value)| json!({"color": color, "value": value})),
                );
                json!({"unit": self.unit, "thresholds": {"mode": "absolute", "steps": steps}})
            }
            Look::Lines { stacked } => json!({
                "unit": self.unit,
                "min": 0,
                "custom": {
                    "drawStyle": "line",
                    "lineWidth": 1,
                    "fillOpacity": if stacked { 30 } else { 5 },
                    "showPoints": "never",
                    "spanNulls": false,
                    "stacking": {"mode": if stacked { "normal" } else { "none" }, "group": "A"},
                },
            }),
        }
    }

    fn options(&self) -> Value {
        match self.look {
            Look::Stat(_) => json!({
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
                "colorMode": "value",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "textMode": "auto",
            }),
            Look::Lines { .. } => json!({
                "legend": {
                    "displayMode": "table",
                    "placement": "bottom",
                    "showLegend": true,
                    "calcs": ["mean", "max"],
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
        }
    }
}
