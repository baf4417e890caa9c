//! Grafana's dashboards, written from short descriptions: `cargo xtask dashboards` writes
//! `dashboards/*.json`, and its test fails where a file differs from its description.
//!
//! In an expression `@node` stands for the choice of job and node, `@service` for that and of the service, and
//! `@fleet` for the choice of clusters. `--render` draws them, too.

mod agent;
mod fleet;
mod host;
mod node;
mod panel;
mod render;
mod service;

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use self::panel::Panel;
use crate::project::root as checkout;

/// A dashboard.
struct Dashboard {
    /// Of its file, and behind `perjoule-` in its address.
    name: &'static str,
    title: &'static str,
    description: &'static str,
    /// What can be chosen, beside the data source.
    choices: &'static [Choice],
    /// How far back it looks at first.
    from: &'static str,
    rows: Vec<Row>,
}

/// Panels under a heading, laid out from left to right and top to bottom.
struct Row {
    title: &'static str,
    panels: Vec<Panel>,
}

/// A variable: all values of a label.
struct Choice {
    name: &'static str,
    label: &'static str,
    /// The series that have it.
    series: &'static str,
    of: &'static str,
    /// What *All* stands for: where a label may be missing, it matches nothing too.
    all: &'static str,
}

const JOB: Choice = Choice {
    name: "job",
    label: "Job",
    series: "perjoule_build_info",
    of: "job",
    all: ".+",
};
const INSTANCE: Choice = Choice {
    name: "instance",
    label: "Node",
    series: "perjoule_build_info{job=~\"$job\"}",
    of: "instance",
    all: ".+",
};
const SERVICE: Choice = Choice {
    name: "service",
    label: "Service",
    series: "perjoule_service_info{@node}",
    of: "service",
    all: ".+",
};
const CLUSTER: Choice = Choice {
    name: "cluster",
    label: "Cluster",
    series: "cluster:perjoule_energy_kwh:increase1h",
    of: "cluster",
    all: ".*",
};

/// Choices of every dashboard of nodes.
const NODE_CHOICES: &[Choice] = &[JOB, INSTANCE, SERVICE];

/// What to do beside writing the files.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Draw them with simulated data into this folder, docs/dashboards by default (root; fetches chromium and Perses)
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "docs/dashboards")]
    render: Option<PathBuf>,
    /// How long a simulated node is watched before it is drawn
    #[arg(long, default_value_t = 300, requires = "render")]
    seconds: u64,
}

/// A dashboard as it is shipped.
struct Shipped {
    name: &'static str,
    json: Value,
}

/// `cargo xtask dashboards`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let all = shipped();
    for dashboard in &all {
        let path = dashboard.path();
        fs::write(&path, dashboard.text()?)?;
        println!("wrote {}", path.display());
    }
    match &options.render {
        Some(folder) => render::run(&all, folder, options.seconds),
        None => Ok(()),
    }
}

fn shipped() -> Vec<Shipped> {
    let all = [
        fleet::dashboard(),
        node::dashboard(),
        service::dashboard(),
        host::dashboard(),
        agent::dashboard(),
    ];
    let links: Vec<Value> = all.iter().map(link).collect();
    all.iter()
        .map(|dashboard| Shipped {
            name: dashboard.name,
            json: dashboard.json(&links),
        })
        .collect()
}

impl Shipped {
    fn path(&self) -> PathBuf {
        checkout().join(format!("dashboards/{}.json", self.name))
    }

    fn text(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(&self.json)?;
        text.push('\n');
        Ok(text)
    }
}

fn uid(name: &str) -> String {
    format!("perjoule-{name}")
}

/// To another dashboard, with the time range and what is chosen.
fn link(to: &Dashboard) -> Value {
    json!({
        "title": to.title,
        "type": "link",
        "url": format!("/d/{}", uid(to.name)),
        "keepTime": true,
        "includeVars": true,
        "targetBlank": false,
        "asDropdown": false,
        "icon": "dashboard",
        "tags": [],
        "tooltip": to.description,
    })
}

/// An expression with what its marks stand for.
fn expanded(expr: &str) -> String {
    expr.replace(
        "@service",
        "job=~\"$job\",instance=~\"$instance\",service=~\"$service\"",
    )
    .replace("@node", "job=~\"$job\",instance=~\"$instance\"")
    .replace("@fleet", "cluster=~\"$cluster\"")
}

impl Dashboard {
    fn json(&self, links: &[Value]) -> Value {
        let own = format!("/d/{}", uid(self.name));
        let others: Vec<&Value> = links.iter().filter(|link| link["url"] != own).collect();
        let mut variables = vec![json!({
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "hide": 0,
            "multi": false,
            "includeAll": false,
            "options": [],
            "refresh": 1,
            "regex": "",
            "skipUrlSync": false,
            "current": {},
        })];
        variables.extend(self.choices.iter().map(Choice::json));
        json!({
            "uid": uid(self.name),
            "title": format!("perjoule / {}", self.title),
            "description": self.description,
            "tags": ["perjoule", "energy", "gpu"],
            "schemaVersion": 41,
            "version": 1,
            "editable": false,
            "graphTooltip": 1,
            "refresh": "30s",
            "timezone": "browser",
            "time": {"from": self.from, "to": "now"},
            "fiscalYearStartMonth": 0,
            "liveNow": false,
            "links": others,
            "annotations": {"list": []},
            "templating": {"list": variables},
            "panels": self.panels(),
        })
    }

    fn panels(&self) -> Vec<Value> {
        const WIDTH: u64 = 24;
        let mut all = Vec::new();
        let mut top = 0;
        for row in &self.rows {
            all.push(json!({
                "id": all.len() + 1,
                "type": "row",
                "title": row.title,
                "collapsed": false,
                "panels": [],
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
            }));
            top += 1;
            let (mut left, mut height) = (0, 0);
            for panel in &row.panels {
                if left + panel.width > WIDTH {
                    (left, top) = (0, top + height);
                    height = 0;
                }
                let place = json!({"h": panel.height, "w": panel.width, "x": left, "y": top});
                all.push(panel.json(all.len() + 1, &place));
                left += panel.width;
                height = height.max(panel.height);
            }
            top += height;
        }
        all
    }
}

impl Choice {
    fn json(&self) -> Value {
        let query = format!("label_values({}, {})", expanded(self.series), self.of);
        json!({
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": panel::source(),
            "query": {"query": query, "refId": self.name},
            "definition": query,
            "refresh": 2,
            "multi": true,
            "includeAll": true,
            "allValue": self.all,
            "sort": 1,
            "hide": 0,
            "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
            "options": [],
            "regex": "",
            "skipUrlSync": false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_what_their_descriptions_say() {
        for dashboard in shipped() {
            let path = dashboard.path();
            let file = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                file == dashboard.text().unwrap(),
                "{} differs from its description; run cargo xtask dashboards",
                path.display()
            );
        }
    }
}
