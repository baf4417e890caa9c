//! What clients ask for: the part of OpenAI's request bodies that matters here.
//!
//! Unknown keys are ignored, as vLLM does. What would change the answer's shape and is not
//! simulated (several choices, several prompts) is refused.

use serde::Deserialize;

use crate::text::count_tokens;

/// What an answer has where the client does not say how long it may be.
const DEFAULT_OUTPUT_TOKENS: u64 = 128;

/// The two routes that generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// A request as the engine needs it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) kind: Kind,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
    /// The client set the length, so that is why the answer ends.
    pub(crate) limited: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

#[derive(Deserialize)]
struct Body {
    messages: Option<Vec<Message>>,
    prompt: Option<Prompt>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    n: Option<u64>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
struct Message {
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u64>),
}

impl Kind {
    /// Path of the route.
    pub(crate) fn route(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
        }
    }

    /// What the answer's id begins with.
    pub(crate) fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl",
            Self::Completion => "cmpl",
        }
    }
}

impl Wish {
    /// Reads a body; the error is what the client is told.
    pub(crate) fn read(kind: Kind, body: &[u8], max_model_len: u64) -> Result<Self, String> {
        let body: Body = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if body.n.is_some_and(|choices| choices != 1) {
            return Err("only n = 1 is simulated".to_owned());
        }
        let prompt_tokens = match kind {
            Kind::Chat => body
                .messages
                .as_deref()
                .map(chat_tokens)
                .ok_or("messages: missing")?,
            Kind::Completion => match body.prompt {
                Some(Prompt::Text(text)) => count_tokens(&text),
                Some(Prompt::Texts(texts)) if texts.len() == 1 => {
                    texts.iter().map(|text| count_tokens(text)).sum()
                }
                Some(Prompt::Tokens(tokens)) => tokens.len() as u64,
                Some(Prompt::Texts(_)) => return Err("only one prompt is simulated".to_owned()),
                None => return Err("prompt: missing".to_owned()),
            },
        };
        if prompt_tokens == 0 {
            return Err("the prompt is empty".to_owned());
        }
        let limit = body.max_completion_tokens.or(body.max_tokens);
        let output_tokens = limit.unwrap_or(DEFAULT_OUTPUT_TOKENS);
        if output_tokens == 0 {
            return Err("max_tokens must be at least 1".to_owned());
        }
        if prompt_tokens.saturating_add(output_tokens) > max_model_len {
            return Err(format!(
                "this model's context is {max_model_len} tokens; {prompt_tokens} of prompt and \
                 {output_tokens} of answer were asked for"
            ));
        }
        Ok(Self {
            kind,
            prompt_tokens,
            output_tokens,
            limited: limit.is_some(),
            stream: body.stream,
            include_usage: body
                .stream_options
                .is_some_and(|options| options.include_usage),
        })
    }

    /// Why the answer ends.
    pub(crate) fn finish_reason(&self) -> &'static str {
        if self.limited { "length" } else { "stop" }
    }
}

fn chat_tokens(messages: &[Message]) -> u64 {
    messages
        .iter()
        .filter_map(|message| message.content.as_ref())
        .map(|content| match content {
            Content::Text(text) => count_tokens(text),
            Content::Parts(parts) => parts
                .iter()
                .filter_map(|part| part.text.as_deref())
                .map(count_tokens)
                .sum(),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chats_and_completions_are_counted_in_words() {
        let chat = br#"{"messages": [{"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "how are you"}]}],
            "max_tokens": 7, "stream": true, "stream_options": {"include_usage": true}}"#;
        let wish = Wish::read(Kind::Chat, chat, 100).unwrap();
        assert_eq!((wish.prompt_tokens, wish.output_tokens), (5, 7));
        assert!(wish.stream && wish.include_usage && wish.limited);
        let completion = br#"{"prompt": [1, 2, 3], "model": "x", "temperature": 0}"#;
        let wish = Wish::read(Kind::Completion, completion, 1_000).unwrap();
        assert_eq!((wish.prompt_tokens, wish.output_tokens), (3, 128));
        assert_eq!(wish.finish_reason(), "stop");
    }

    #[test]
    fn what_is_not_simulated_is_refused_and_not_answered_wrongly() {
        for body in [
            r#"{"prompt": "a b", "n": 2}"#,
            r#"{"prompt": ["a", "b"]}"#,
            r#"{"prompt": ""}"#,
            r#"{"prompt": "a", "max_tokens": 0}"#,
            r#"{"prompt": "a", "max_tokens": 18446744073709551615}"#,
            r#"{"messages": []}"#,
            "{",
        ] {
            assert!(
                Wish::read(Kind::Completion, body.as_bytes(), 1_000).is_err(),
                "{body}"
            );
        }
    }
}
