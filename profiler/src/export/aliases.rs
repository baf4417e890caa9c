//! Other names under which a few families are shown too, for dashboards made for them.

use std::str::FromStr;

use serde::Deserialize;

use crate::ledger::{Component, Route};

/// Whose names are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aliases {
    /// Nobody's.
    #[default]
    None,
    /// OpenTelemetry's semantic conventions, as Prometheus writes them.
    Otel,
}

impl FromStr for Aliases {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "otel" => Ok(Self::Otel),
            _ => Err("neither none nor otel"),
        }
    }
}

/// `hw.type`.
pub(super) const fn hardware_type(component: Component) -> &'static str {
    match component {
        Component::Gpu => "gpu",
        Component::Cpu => "cpu",
        Component::Dram => "memory",
    }
}

/// `gen_ai.operation.name`: the convention's where it has one, else the route's; `None` for health
/// checks.
pub(super) const fn operation(route: Route) -> Option<&'static str> {
    match route {
        Route::ChatCompletions | Route::Responses | Route::Messages | Route::ApiChat => {
            Some("chat")
        }
        Route::Completions
        | Route::Generate
        | Route::GenerateStream
        | Route::Completion
        | Route::ApiGenerate => Some("text_completion"),
        Route::Embeddings | Route::ApiEmbed => Some("embeddings"),
        Route::Rerank | Route::ModelInfer | Route::ModelStreamInfer | Route::Other => {
            Some(route.name())
        }
        Route::Health => None,
    }
}
