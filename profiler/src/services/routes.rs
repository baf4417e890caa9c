//! The fixed list of inference routes: a request's path becomes one of them or `other`, and no
//! path is kept.
//!
//! In: the first bytes of a request's path. Out: a [`Route`]. The routes are those of OpenAI's
//! API as vLLM, SGLang, TGI and llama.cpp serve it, Anthropic's messages, TGI's and llama.cpp's
//! own, Ollama's, and KServe's version 2 as Triton serves it, over HTTP and gRPC.

use crate::ledger::Route;

/// As many bytes of a path as are looked at; the kernel side keeps no more.
pub const LONGEST_PATH: usize = 64;

/// The route of a request path, of which the first [`LONGEST_PATH`] bytes are enough. What
/// follows a `?`, `#` or blank is not part of the path.
pub fn route(path: &[u8]) -> Route {
    let cut = path.len() >= LONGEST_PATH;
    let path = path.get(..LONGEST_PATH).unwrap_or(path);
    let end = path
        .iter()
        .position(|byte| matches!(byte, b'?' | b'#' | b' ' | b'\r' | 0));
    let cut = cut && end.is_none();
    let path = end.and_then(|end| path.get(..end)).unwrap_or(path);
    let path = origin_form(path);
    // Gateways and KServe put OpenAI's routes below this prefix.
    let path = path.strip_prefix(b"/openai").unwrap_or(path);
    let path = match path {
        [shorter @ .., b'/'] => shorter,
        other => other,
    };
    match path {
        b"/v1/chat/completions" | b"/chat/completions" => Route::ChatCompletions,
        b"/v1/completions" | b"/completions" => Route::Completions,
        b"/v1/responses" | b"/responses" => Route::Responses,
        b"/v1/embeddings" | b"/embeddings" | b"/embed" => Route::Embeddings,
        b"/v1/rerank" | b"/v2/rerank" | b"/rerank" => Route::Rerank,
        b"/v1/messages" => Route::Messages,
        b"/generate" => Route::Generate,
        b"/generate_stream" => Route::GenerateStream,
        b"/completion" => Route::Completion,
        b"/api/generate" => Route::ApiGenerate,
        b"/api/chat" => Route::ApiChat,
        b"/api/embed" | b"/api/embeddings" => Route::ApiEmbed,
        b"/inference.GRPCInferenceService/ModelInfer" => Route::ModelInfer,
        b"/inference.GRPCInferenceService/ModelStreamInfer" => Route::ModelStreamInfer,
        b"/inference.GRPCInferenceService/ServerLive"
        | b"/inference.GRPCInferenceService/ServerReady"
        | b"/inference.GRPCInferenceService/ModelReady"
        | b"/grpc.health.v1.Health/Check"
        | b"/grpc.health.v1.Health/Watch" => Route::Health,
        b"/health"
        | b"/healthz"
        | b"/livez"
        | b"/readyz"
        | b"/ping"
        | b"/metrics"
        | b"/v1/metrics"
        | b"/prometheus/metrics"
        | b"/version"
        | b"/health_generate"
        | b"/-/healthy"
        | b"/-/ready" => Route::Health,
        _ if path.starts_with(b"/v1/health/") || path.starts_with(b"/v2/health/") => Route::Health,
        _ => path
            .strip_prefix(b"/v2/models/")
            .map_or(Route::Other, |rest| model_route(rest, cut)),
    }
}

/// The path of a request target that names scheme and host too, as proxies are sent.
fn origin_form(target: &[u8]) -> &[u8] {
    let Some(rest) = target.strip_prefix(b"http://") else {
        return target;
    };
    let path = rest
        .iter()
        .position(|byte| *byte == b'/')
        .and_then(|start| rest.get(start..));
    path.unwrap_or(b"/")
}

/// `<model>[/versions/<version>]/<verb>`; `cut` if the verb may lie behind what was kept.
fn model_route(rest: &[u8], cut: bool) -> Route {
    let mut segments = rest.rsplit(|byte| *byte == b'/');
    let verb = segments.next().unwrap_or_default();
    let named = segments.next().is_some();
    match verb {
        b"infer" | b"generate" | b"generate_stream" if named => Route::ModelInfer,
        b"ready" if named => Route::Health,
        // A model's name so long that the verb is lost: by far most requests are inference.
        _ if cut => Route::ModelInfer,
        _ => Route::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_path_leads_to_its_own_route() {
        for (path, expected) in [
            ("/v1/chat/completions", Route::ChatCompletions),
            ("/v1/completions", Route::Completions),
            ("/v1/responses", Route::Responses),
            ("/v1/embeddings", Route::Embeddings),
            ("/v1/rerank", Route::Rerank),
            ("/v1/messages", Route::Messages),
            ("/generate", Route::Generate),
            ("/generate_stream", Route::GenerateStream),
            ("/completion", Route::Completion),
            ("/api/generate", Route::ApiGenerate),
            ("/api/chat", Route::ApiChat),
            ("/api/embed", Route::ApiEmbed),
            ("/v2/models/m/infer", Route::ModelInfer),
            (
                "/inference.GRPCInferenceService/ModelInfer",
                Route::ModelInfer,
            ),
            (
                "/inference.GRPCInferenceService/ModelStreamInfer",
                Route::ModelStreamInfer,
            ),
            ("/grpc.health.v1.Health/Check", Route::Health),
            ("/health", Route::Health),
            ("/", Route::Other),
        ] {
            assert_eq!(route(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn query_trailing_slash_prefix_and_the_rest_of_the_line_do_not_matter() {
        for path in [
            "/v1/chat/completions?api-version=2024-06-01",
            "/v1/chat/completions/",
            "/v1/chat/completions HTTP/1.1\r\nHost: x",
            "/openai/v1/chat/completions",
            "http://localhost:8000/v1/chat/completions",
        ] {
            assert_eq!(route(path.as_bytes()), Route::ChatCompletions, "{path}");
        }
    }

    #[test]
    fn health_and_metrics_paths_cost_nobody_energy() {
        for path in [
            "/health",
            "/healthz",
            "/livez",
            "/readyz",
            "/ping",
            "/metrics",
            "/v1/metrics",
            "/prometheus/metrics",
            "/metrics?name=x",
            "/version",
            "/v1/health/ready",
            "/v2/health/live",
            "/v2/models/llama/ready",
        ] {
            assert_eq!(route(path.as_bytes()), Route::Health, "{path}");
        }
    }

    #[test]
    fn model_inference_is_known_by_its_verb_even_behind_a_long_name() {
        for path in [
            "/v2/models/llama/infer",
            "/v2/models/llama/versions/3/infer",
            "/v2/models/llama/generate_stream",
        ] {
            assert_eq!(route(path.as_bytes()), Route::ModelInfer, "{path}");
        }
        let long = format!("/v2/models/{}/infer", "m".repeat(80));
        assert_eq!(route(long.as_bytes()), Route::ModelInfer);
        assert_eq!(route(&long.as_bytes()[..LONGEST_PATH]), Route::ModelInfer);
        assert_eq!(route(b"/v2/models/infer"), Route::Other);
        assert_eq!(route(b"/v2/models/llama/stats"), Route::Other);
        assert_eq!(route(b"/v2/models/llama"), Route::Other);
    }

    #[test]
    fn everything_else_is_other() {
        for path in [
            "",
            "/",
            "/v1/models",
            "/v1/chat/completions2",
            "*",
            "/api/tags",
            "/\u{fc}",
        ] {
            assert_eq!(route(path.as_bytes()), Route::Other, "{path}");
        }
        let long = format!("/{}", "a".repeat(100));
        assert_eq!(route(long.as_bytes()), Route::Other);
    }
}
