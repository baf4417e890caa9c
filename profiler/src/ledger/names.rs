//! The one spelling of every value that is shown: metric labels, JSON keys and tables agree.

use super::{Class, Component, Outcome, Request, Route, Source};

impl Component {
    /// All components, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Gpu, Self::Cpu, Self::Dram];

    /// `gpu`, `cpu` or `dram`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
            Self::Dram => "dram",
        }
    }
}

impl Source {
    /// `counter`, `integrated` or `model`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Integrated => "integrated",
            Self::Model => "model",
        }
    }
}

impl Outcome {
    /// `done`, `aborted` or `incomplete`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Aborted => "aborted",
            Self::Incomplete => "incomplete",
        }
    }
}

impl Class {
    /// `A`, `B` or `C`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
        }
    }
}

impl Route {
    /// The route's name, as in metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat_completions",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
            Self::Messages => "messages",
            Self::Generate => "generate",
            Self::GenerateStream => "generate_stream",
            Self::Completion => "completion",
            Self::ApiGenerate => "api_generate",
            Self::ApiChat => "api_chat",
            Self::ApiEmbed => "api_embed",
            Self::ModelInfer => "model_infer",
            Self::ModelStreamInfer => "model_stream_infer",
            Self::Health => "health",
            Self::Other => "other",
        }
    }
}

impl Request {
    /// The status code's class, as in `2xx`; `None` where no status line was seen.
    pub const fn code(&self) -> Option<&'static str> {
        match self.status {
            0 => None,
            100..=199 => Some("1xx"),
            200..=299 => Some("2xx"),
            300..=399 => Some("3xx"),
            400..=499 => Some("4xx"),
            500..=599 => Some("5xx"),
            _ => Some("other"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_serialised_spelling() {
        let spelling = |value: serde_json::Value| value.as_str().map(str::to_owned);
        for component in Component::ALL {
            let json = serde_json::to_value(component).unwrap();
            assert_eq!(spelling(json).as_deref(), Some(component.name()));
        }
        for route in [
            Route::ChatCompletions,
            Route::Completions,
            Route::Responses,
            Route::Embeddings,
            Route::Rerank,
            Route::Messages,
            Route::Generate,
            Route::GenerateStream,
            Route::Completion,
            Route::ApiGenerate,
            Route::ApiChat,
            Route::ApiEmbed,
            Route::ModelInfer,
            Route::ModelStreamInfer,
            Route::Health,
            Route::Other,
        ] {
            let json = serde_json::to_value(route).unwrap();
            assert_eq!(spelling(json).as_deref(), Some(route.name()));
        }
        for outcome in [Outcome::Done, Outcome::Aborted, Outcome::Incomplete] {
            let json = serde_json::to_value(outcome).unwrap();
            assert_eq!(spelling(json).as_deref(), Some(outcome.name()));
        }
        for source in [Source::Counter, Source::Integrated, Source::Model] {
            let json = serde_json::to_value(source).unwrap();
            assert_eq!(spelling(json).as_deref(), Some(source.name()));
        }
        for class in [Class::A, Class::B, Class::C] {
            let json = serde_json::to_value(class).unwrap();
            assert_eq!(spelling(json).as_deref(), Some(class.name()));
        }
    }
}
