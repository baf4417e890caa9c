//! A dashboard of Grafana as Perses' panels: the same places, titles, units, expressions and legends, with All chosen in
//! each variable. What has no counterpart is an error: a picture never shows less than the dashboard says.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{looks_back, number, prometheus};

/// One page for `xtask/render/page.jsx`.
pub(super) struct Drawing {
    pub(super) json: Value,
    /// How far back it looks.
    pub(super) seconds: u64,
}

impl Drawing {
    /// With this time range, or its own.
    pub(super) fn of(dashboard: &Value, seconds: Option<u64>) -> Result<Self> {
        let seconds = match seconds {
            Some(seconds) => seconds,
            None => looks_back(text(&dashboard["time"]["from"])?)?,
        };
        let variables = Variables::of(&dashboard["templating"]["list"], seconds)?;
        let items: Vec<Value> = list(&dashboard["panels"])?
            .iter()
            .map(|panel| {
                item(panel, &variables).with_context(|| format!("panel {}", panel["title"]))
            })
            .collect::<Result<_>>()?;
        let json = json!({
            "title": text(&dashboard["title"])?,
            "description": text(&dashboard["description"])?,
            "seconds": seconds,
            "scrape_interval": prometheus::INTERVAL,
            "items": items,
        });
        Ok(Self { json, seconds })
    }
}

/// What stands for each variable. Perses puts its own step for `$__interval` and `$__rate_interval`, by Grafana's rules.
struct Variables(Vec<(String, String)>);

impl Variables {
    fn of(list_of: &Value, seconds: u64) -> Result<Self> {
        let mut all = vec![("$__range".to_owned(), format!("{seconds}s"))];
        for variable in list(list_of)? {
            match text(&variable["type"])? {
                "datasource" => {}
                "query" => all.push((
                    format!("${}", text(&variable["name"])?),
                    text(&variable["allValue"])?.to_owned(),
                )),
                other => bail!("nothing stands for a variable of type {other}"),
            }
        }
        Ok(Self(all))
    }

    fn substituted(&self, expr: &str) -> Result<String> {
        let filled = self
            .0
            .iter()
            .fold(expr.to_owned(), |expr, (variable, value)| {
                expr.replace(variable, value)
            });
        let rest = filled
            .replace("$__rate_interval", "")
            .replace("$__interval", "");
        ensure!(!rest.contains('$'), "an unknown variable: {filled}");
        Ok(filled)
    }
}

fn item(panel: &Value, variables: &Variables) -> Result<Value> {
    let at = &panel["gridPos"];
    let place = json!({
        "x": number(&at["x"])?, "y": number(&at["y"])?, "w": number(&at["w"])?, "h": number(&at["h"])?,
    });
    let title = text(&panel["title"])?;
    let plugin = match text(&panel["type"])? {
        "row" => return Ok(json!({"place": place, "row": title})),
        "stat" => stat(panel)?,
        "timeseries" => time_series(panel)?,
        other => bail!("Perses draws nothing of type {other} here"),
    };
    let unit = unit(panel)?;
    let instant = plugin["kind"] == "StatChart";
    // A figure has no axis that could name it.
    let unnamed = instant && !unit.symbol.is_empty();
    let shown = if unnamed && title.split(' ').all(|word| word != unit.symbol) {
        format!("{title} ({})", unit.symbol)
    } else {
        title.to_owned()
    };
    let queries: Vec<Value> = list(&panel["targets"])?
        .iter()
        .map(|target| {
            ensure!(
                target["instant"] == instant,
                "an expression of another kind than its panel"
            );
            let query = variables.substituted(text(&target["expr"])?)?;
            let name = text(&target["legendFormat"])?;
            Ok(json!({
                "kind": "TimeSeriesQuery",
                "spec": {"plugin": {
                    "kind": "PrometheusTimeSeriesQuery",
                    "spec": {"query": query, "seriesNameFormat": name},
                }},
            }))
        })
        .collect::<Result<_>>()?;
    let definition = json!({
        "kind": "Panel",
        "spec": {
            "display": {"name": shown, "description": text(&panel["description"])?},
            "plugin": plugin,
            "queries": queries,
        },
    });
    Ok(json!({"place": place, "panel": {"instant": instant, "definition": definition}}))
}

fn stat(panel: &Value) -> Result<Value> {
    let calculation = calculation(&panel["options"]["reduceOptions"]["calcs"][0])?;
    let steps = list(&panel["fieldConfig"]["defaults"]["thresholds"]["steps"])?;
    let (first, rest) = steps.split_first().context("no colour")?;
    let rest: Vec<Value> = rest
        .iter()
        .map(|step| Ok(json!({"value": step["value"], "color": color(&step["color"])?})))
        .collect::<Result<_>>()?;
    Ok(json!({
        "kind": "StatChart",
        "spec": {
            "calculation": calculation,
            "format": unit(panel)?.format,
            "thresholds": {"defaultColor": color(&first["color"])?, "steps": rest},
        },
    }))
}

fn time_series(panel: &Value) -> Result<Value> {
    let unit = unit(panel)?;
    let defaults = &panel["fieldConfig"]["defaults"];
    let custom = &defaults["custom"];
    let legend = &panel["options"]["legend"];
    let values: Vec<&str> = list(&legend["calcs"])?
        .iter()
        .map(calculation)
        .collect::<Result<_>>()?;
    let stack = match text(&custom["stacking"]["mode"])? {
        "none" => "none",
        "normal" => "all",
        other => bail!("Perses does not stack as {other}"),
    };
    ensure!(
        custom["drawStyle"] == "line" && custom["showPoints"] == "never",
        "it has more than lines"
    );
    Ok(json!({
        "kind": "TimeSeriesChart",
        "spec": {
            "legend": {
                "mode": text(&legend["displayMode"])?,
                "position": text(&legend["placement"])?,
                "size": "small",
                "values": values,
            },
            "yAxis": {"show": true, "label": unit.symbol, "format": unit.format, "min": defaults["min"]},
            "visual": {
                "display": "line",
                "lineWidth": number(&custom["lineWidth"])?,
                "areaOpacity": number(&custom["fillOpacity"])? as f64 / 100.0,
                "stack": stack,
                "connectNulls": custom["spanNulls"],
                // Perses would show points in a short range.
                "pointRadius": 0,
            },
        },
    }))
}

/// How a value is written, and what is to be written beside it.
struct Unit {
    format: Value,
    symbol: String,
}

/// Perses has no units of energy: these are numbers, with the unit beside them.
fn unit(panel: &Value) -> Result<Unit> {
    let id = text(&panel["fieldConfig"]["defaults"]["unit"])?;
    let written = |unit: &str| Unit {
        format: json!({"unit": unit, "shortValues": true}),
        symbol: String::new(),
    };
    let beside = |symbol: &str| Unit {
        symbol: symbol.to_owned(),
        ..written("decimal")
    };
    Ok(match id {
        "none" | "short" => written("decimal"),
        "percentunit" => written("percent-decimal"),
        "s" => written("seconds"),
        "bytes" => written("bytes"),
        "Bps" => written("bytes/sec"),
        "joule" => beside("J"),
        "watt" => beside("W"),
        "kwatth" => beside("kWh"),
        "massg" => beside("g"),
        "hertz" => beside("Hz"),
        "celsius" => beside("°C"),
        "ops" => beside("1/s"),
        "reqps" => beside("requests/s"),
        other => match other.strip_prefix("suffix:") {
            Some(symbol) => beside(symbol),
            None => bail!("nothing stands for the unit {other}"),
        },
    })
}

fn calculation(of: &Value) -> Result<&'static str> {
    Ok(match text(of)? {
        "mean" => "mean",
        "max" => "max",
        "lastNotNull" => "last-number",
        other => bail!("Perses calculates no {other}"),
    })
}

/// Grafana's colours, as they are on white.
fn color(named: &Value) -> Result<&'static str> {
    Ok(match text(named)? {
        "text" => "rgb(36, 41, 46)",
        "green" => "#1A7F4B",
        "yellow" => "#CC9D00",
        "red" => "#E02F44",
        other => bail!("nothing stands for the colour {other}"),
    })
}

fn text(json: &Value) -> Result<&str> {
    json.as_str().with_context(|| format!("not a text: {json}"))
}

fn list(json: &Value) -> Result<&Vec<Value>> {
    json.as_array()
        .with_context(|| format!("not a list: {json}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboards::shipped;

    fn drawing(dashboard: &Value) -> Result<Drawing> {
        Drawing::of(dashboard, None)
    }

    /// The first dashboard, with the first panel of this type changed.
    fn changed(of_type: &str, change: impl Fn(&mut Value)) -> Value {
        let mut dashboard = shipped().remove(0).json;
        let panels = dashboard["panels"].as_array_mut().unwrap();
        let panel = panels.iter_mut().find(|panel| panel["type"] == of_type);
        change(panel.unwrap());
        dashboard
    }

    #[test]
    fn every_panel_that_is_shipped_has_its_place_title_description_and_all_of_its_lines() {
        for dashboard in shipped() {
            let drawn = drawing(&dashboard.json).unwrap().json;
            let panels = dashboard.json["panels"].as_array().unwrap();
            let items = drawn["items"].as_array().unwrap();
            assert_eq!(panels.len(), items.len());
            for (panel, item) in panels.iter().zip(items) {
                let title = panel["title"].as_str().unwrap();
                assert_eq!(panel["gridPos"], item["place"], "{title}");
                if panel["type"] == "row" {
                    assert_eq!(item["row"], title);
                    continue;
                }
                let spec = &item["panel"]["definition"]["spec"];
                assert!(spec["display"]["name"].as_str().unwrap().starts_with(title));
                assert_eq!(spec["display"]["description"], panel["description"]);
                let queries = spec["queries"].as_array().unwrap();
                let targets = panel["targets"].as_array().unwrap();
                assert_eq!(queries.len(), targets.len(), "{title}");
                for (query, target) in queries.iter().zip(targets) {
                    let query = &query["spec"]["plugin"]["spec"];
                    assert_eq!(query["seriesNameFormat"], target["legendFormat"]);
                }
            }
        }
    }

    #[test]
    fn variables_stand_for_what_grafana_puts_there() {
        let dashboards = shipped();
        let service = dashboards
            .iter()
            .find(|dashboard| dashboard.name == "inference-service")
            .unwrap();
        let drawn = Drawing::of(&service.json, Some(300)).unwrap().json;
        let all = drawn.to_string();
        for filled in [
            r#"{job=~\".+\",instance=~\".+\",service=~\".+\"}[300s]"#,
            "[$__rate_interval]",
        ] {
            assert!(all.contains(filled), "{filled}");
        }
        let unknown = changed("timeseries", |panel| {
            panel["targets"][0]["expr"] = "up{job=\"$host\"}".into();
        });
        let told = format!("{:#}", drawing(&unknown).err().unwrap());
        assert!(told.contains("an unknown variable: up"), "{told}");
    }

    #[test]
    fn units_without_a_counterpart_stand_beside_the_figure_or_the_axis() {
        let joules = changed("stat", |panel| {
            panel["title"] = "Energy".into();
            panel["fieldConfig"]["defaults"]["unit"] = "suffix:J/req".into();
        });
        let drawn = drawing(&joules).unwrap().json;
        let figure = &drawn["items"][1]["panel"]["definition"]["spec"];
        assert_eq!(figure["display"]["name"], "Energy (J/req)");
        let share = changed("timeseries", |panel| {
            panel["fieldConfig"]["defaults"]["unit"] = "celsius".into();
        });
        let drawn = drawing(&share).unwrap().json;
        let items = drawn["items"].as_array().unwrap();
        let axis = items
            .iter()
            .map(|item| &item["panel"]["definition"]["spec"]["plugin"]["spec"]["yAxis"])
            .find(|axis| axis.is_object())
            .unwrap();
        assert_eq!(axis["label"], "°C");
        assert_eq!(axis["format"]["unit"], "decimal");
    }

    #[test]
    fn what_has_no_counterpart_is_an_error_that_names_it() {
        for (dashboard, told) in [
            (
                changed("stat", |panel| panel["type"] = "gauge".into()),
                "type gauge",
            ),
            (
                changed("stat", |panel| {
                    panel["fieldConfig"]["defaults"]["unit"] = "furlong".into();
                }),
                "unit furlong",
            ),
            (
                changed("timeseries", |panel| {
                    panel["options"]["legend"]["calcs"][0] = "variance".into();
                }),
                "no variance",
            ),
            (
                changed("timeseries", |panel| {
                    panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] =
                        "percent".into();
                }),
                "stack as percent",
            ),
        ] {
            let error = drawing(&dashboard).err().unwrap();
            assert!(format!("{error:#}").contains(told), "{error:#}");
        }
    }

    #[test]
    fn a_time_range_is_read_and_nonsense_refused() {
        assert_eq!(looks_back("now-7d").unwrap(), 604_800);
        assert_eq!(looks_back("now-30m").unwrap(), 1_800);
        for wrong in ["now", "now-", "now-h", "now-3y", "yesterday", "now-7µ"] {
            assert!(looks_back(wrong).is_err(), "{wrong}");
        }
    }
}
