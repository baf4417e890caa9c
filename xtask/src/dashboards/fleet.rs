//! What a fleet's requests cost, from recorded series: for planners, over days.

use super::panel::{lines, stat};
use super::{CLUSTER, Choice, Dashboard, Row};

const MODEL: Choice = Choice {
    name: "model",
    label: "Model",
    series: "model:perjoule_energy_kwh:increase1h{@fleet}",
    of: "model",
    all: ".*",
};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        name: "fleet-efficiency",
        title: "Fleet efficiency",
        description: "Energy, money and carbon of all nodes, by cluster, model and type of GPU. Needs rules.yaml; each \
                      figure is of the hour before it.",
        choices: &[CLUSTER, MODEL],
        from: "now-7d",
        rows: vec![totals(), efficiency()],
    }
}

fn totals() -> Row {
    Row {
        title: "Totals",
        panels: vec![
            stat(
                "Energy in the last hour",
                "kwatth",
                "Energy of all GPUs, CPUs and memory.",
                "sum(cluster:perjoule_energy_kwh:increase1h{@fleet})",
            )
            .wide(6),
            stat(
                "Cost in the last hour",
                "none",
                "That energy times the price in rules.yaml (perjoule:price_per_kwh), which is a placeholder until you \
                 put yours there.",
                "sum(cluster:perjoule_cost:increase1h{@fleet})",
            )
            .wide(6),
            stat(
                "Carbon in the last hour",
                "massg",
                "That energy times the grams per kWh in rules.yaml (perjoule:carbon_grams_per_kwh): the world's \
                 average until you put your grid's there.",
                "sum(cluster:perjoule_carbon_grams:increase1h{@fleet})",
            )
            .wide(6),
            stat(
                "Idle share of the GPUs",
                "percentunit",
                "Idle floor and parked contexts ÷ energy of the GPUs, in the last hour.",
                "sum(gpu_type:perjoule_idle_share:ratio_rate1h{@fleet} * on (cluster, name) \
                 gpu_type:perjoule_energy_kwh:increase1h{@fleet}) \
                 / (sum(gpu_type:perjoule_energy_kwh:increase1h{@fleet}) > 0)",
            )
            .wide(6),
            lines(
                "Energy by component",
                "kwatth",
                "Energy of the hour before, by cluster and component.",
            )
            .line(
                "cluster:perjoule_energy_kwh:increase1h{@fleet}",
                "{{cluster}} {{component}}",
            )
            .stacked(),
            lines(
                "Energy by model",
                "kwatth",
                "Energy of the services of each model in the hour before: their requests and their overhead.",
            )
            .line(
                "model:perjoule_energy_kwh:increase1h{@fleet,model=~\"$model\"}",
                "{{cluster}} {{model}}",
            )
            .stacked(),
            lines(
                "Energy by type of GPU",
                "kwatth",
                "Energy of the GPUs in the hour before, by their name.",
            )
            .line(
                "gpu_type:perjoule_energy_kwh:increase1h{@fleet}",
                "{{cluster}} {{name}}",
            )
            .stacked(),
        ],
    }
}

fn efficiency() -> Row {
    Row {
        title: "Efficiency",
        panels: vec![
            lines(
                "Energy per request",
                "joule",
                "Active joules ÷ requests of the hour before, by model.",
            )
            .line(
                "model:perjoule_joules_per_request:ratio_rate1h{@fleet,model=~\"$model\"}",
                "{{cluster}} {{model}}",
            )
            .wide(12),
            lines(
                "Energy per output token",
                "suffix:J/token",
                "Joules of the requests whose output tokens are counted ÷ these tokens, by model. Batch and length \
                 of prompts move it.",
            )
            .line(
                "model:perjoule_joules_per_output_token:ratio_rate1h{@fleet,model=~\"$model\"}",
                "{{cluster}} {{model}}",
            )
            .wide(12),
            lines(
                "Energy per token",
                "suffix:J/token",
                "The same ÷ input and output tokens, where input is known.",
            )
            .line(
                "model:perjoule_joules_per_token:ratio_rate1h{@fleet,model=~\"$model\"}",
                "{{cluster}} {{model}}",
            )
            .wide(12),
            lines(
                "Idle share",
                "percentunit",
                "Idle floor and parked contexts ÷ energy of the GPUs, by type.",
            )
            .line(
                "gpu_type:perjoule_idle_share:ratio_rate1h{@fleet}",
                "{{cluster}} {{name}}",
            )
            .wide(12),
        ],
    }
}
