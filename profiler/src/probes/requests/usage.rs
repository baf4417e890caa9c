//! The token counts that a server writes at a response's end.
//!
//! In: the last bytes of a finished response's body, at most a few hundred; their beginning may be
//! cut anywhere, and HTTP/1 chunk framing may stand between events. Out: the counts of the last
//! event, or nothing; never a wrong number.
//!
//! JSON is read backwards from its end, where it is known to stand outside of any string: there a
//! quote closes a string, and the quote that opens it is the next one without a backslash before
//! it. So keys are told from text whatever the text holds: in a string every quote is escaped.
//! Behind the first comma that is surely structure the rest is ordinary JSON and goes to the JSON
//! reader, with as many brackets put before it as it closes.
//!
//! Limit: a server that sends a model's text bare, not inside a JSON string, is believed.
//!
//! Who says what: OpenAI `usage` (also vLLM, SGLang, TGI, llama.cpp, TensorRT-LLM, NIM), OpenAI
//! Responses and Anthropic `usage`, TGI `details`, SGLang `meta_info`, llama.cpp
//! `tokens_predicted` and `timings`, Ollama `eval_count`.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ledger::Usage;

/// What a response's last event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The counts; at least one is known.
    pub usage: Usage,
    /// The event carries nothing else: no output of its own.
    pub only: bool,
}

/// No request has so many tokens; what counts more is no count.
const MOST: u64 = 1 << 32;
/// Objects within objects.
const MOST_DEPTH: usize = 24;
/// Events that only mark the end, and lines between events.
const MOST_MARKS: usize = 16;

/// The counts in the last event of a body that ends with `tail`.
pub fn usage(tail: &[u8]) -> Option<Found> {
    let mut end = tail.len();
    for _ in 0..MOST_MARKS {
        end = skip_marks(tail.get(..end)?)?;
        let object = Object::ending(tail.get(..end)?)?;
        let json = object.json(tail.get(..end)?)?;
        let event: Event<'_> = serde_json::from_slice(&json).ok()?;
        if let Some(found) = event.found() {
            return Some(found);
        }
        if !event.is_mark() {
            return None;
        }
        end = object.start?;
    }
    None
}

/// The end of the last object, behind which there are only marks of an end: `data: [DONE]`, chunk
/// sizes, fields of an event that are not its data.
fn skip_marks(tail: &[u8]) -> Option<usize> {
    let mut rest = tail.trim_ascii_end();
    for _ in 0..MOST_MARKS {
        if rest.ends_with(b"}") {
            return Some(rest.len());
        }
        let line = rest.rsplit(|byte| *byte == b'\n').next()?;
        if !is_mark(line.trim_ascii()) {
            return None;
        }
        rest = rest.get(..rest.len() - line.len())?.trim_ascii_end();
    }
    None
}

fn is_mark(line: &[u8]) -> bool {
    let field = [&b"event:"[..], b"id:", b"retry:", b":"];
    let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
    match line.strip_prefix(b"data:") {
        // What stood before the object that has been read, or the last event.
        Some(data) => matches!(data.trim_ascii(), b"" | b"[DONE]"),
        None => {
            field.iter().any(|name| line.starts_with(name))
                || (!size.is_empty() && size.len() <= 8 && size.iter().all(u8::is_ascii_hexdigit))
        }
    }
}

/// A JSON object that ends where the text ends.
#[derive(Debug, Default)]
struct Object {
    /// Where it begins, if it is whole.
    start: Option<usize>,
    /// The brackets that are open at the end of what was read, outermost first, as they close.
    closers: [u8; MOST_DEPTH],
    /// The first comma that is structure, and the brackets open there.
    comma: Option<(usize, usize)>,
}

impl Object {
    /// Reads backwards; `text` ends with the object's closing brace.
    fn ending(text: &[u8]) -> Option<Self> {
        let mut object = Self::default();
        let mut depth = 0;
        let mut at = text.len();
        while let Some(next) = at.checked_sub(1) {
            at = next;
            match *text.get(at)? {
                closer @ (b'}' | b']') => {
                    *object.closers.get_mut(depth)? = closer;
                    depth += 1;
                }
                opener @ (b'{' | b'[') => {
                    depth = depth.checked_sub(1)?;
                    // `{` and `}`, `[` and `]` are two apart.
                    if object.closers.get(depth) != Some(&(opener + 2)) {
                        return None;
                    }
                    if depth == 0 {
                        object.start = Some(at);
                        return begins_a_value(text.get(..at)?).then_some(object);
                    }
                }
                b',' => object.comma = Some((at, depth)),
                b'"' => match opening_quote(text.get(..at)?) {
                    Some(opening) => at = opening,
                    None => break,
                },
                _ => {}
            }
        }
        Some(object)
    }

    /// The object, or of one whose beginning is cut what is surely its end: members of unknown
    /// objects are in objects under the key "".
    fn json(&self, text: &[u8]) -> Option<Vec<u8>> {
        if let Some(start) = self.start {
            return Some(text.get(start..)?.to_vec());
        }
        let (comma, depth) = self.comma?;
        let rest = text.get(comma + 1..)?;
        let open = self.closers.get(..depth)?;
        let mut json = Vec::with_capacity(rest.len() + 4 * depth);
        for (level, closer) in open.iter().enumerate() {
            match (closer, level + 1 == depth) {
                (b'}', false) => json.extend(b"{\"\":"),
                (b'}', true) => json.push(b'{'),
                _ => json.push(b'['),
            }
        }
        json.extend(rest);
        Some(json)
    }
}

/// The quote that opens a string, in the text before the one that closes it. `None` where it is
/// cut off, or may be an escaped one whose backslash is.
fn opening_quote(text: &[u8]) -> Option<usize> {
    let mut end = text.len();
    loop {
        end = text.get(..end)?.iter().rposition(|byte| *byte == b'"')?;
        if *text.get(end.checked_sub(1)?)? != b'\\' {
            return Some(end);
        }
    }
}

/// True if a body, a line or an event's data begins behind this.
fn begins_a_value(before: &[u8]) -> bool {
    let whole = before.rsplit(|byte| *byte == b'\n').next();
    let whole = whole.unwrap_or_default();
    let is_cut = whole.len() == before.len();
    let line = whole.trim_ascii();
    line.is_empty() || line == b"data:" || (is_cut && b"data:".ends_with(line))
}

/// What is looked at of an event, or of a whole body.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    /// An object of OpenAI's Responses, a text of Ollama's.
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    /// The object whose beginning is cut.
    #[serde(borrow, rename = "")]
    cut: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
    #[serde(borrow)]
    meta_info: Option<&'a RawValue>,
    #[serde(borrow)]
    timings: Option<&'a RawValue>,
    #[serde(borrow)]
    tokens_predicted: Option<&'a RawValue>,
    #[serde(borrow)]
    tokens_evaluated: Option<&'a RawValue>,
    #[serde(borrow)]
    eval_count: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_eval_count: Option<&'a RawValue>,
    #[serde(borrow)]
    done: Option<&'a RawValue>,
}

/// `usage` of OpenAI and Anthropic, `meta_info` of SGLang.
#[derive(Deserialize)]
struct Counts {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    /// Anthropic's cached prompt tokens are not in its `input_tokens`.
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    total_tokens: Option<u64>,
}

/// `details` of TGI.
#[derive(Deserialize)]
struct Details {
    generated_tokens: Option<u64>,
    input_length: Option<u64>,
}

/// `timings` of llama.cpp.
#[derive(Deserialize)]
struct Timings {
    predicted_n: Option<u64>,
    /// Without those that were in the cache.
    prompt_n: Option<u64>,
    cache_n: Option<u64>,
}

/// The final `response` of OpenAI's Responses.
#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

/// `message` of Ollama.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}

fn read<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(raw?.get()).ok()
}

fn found(input: Option<u64>, output: Option<u64>, only: bool) -> Option<Found> {
    let usage = Usage {
        input: input.filter(|count| *count < MOST),
        output: output.filter(|count| *count < MOST),
    };
    (usage.input.is_some() || usage.output.is_some()).then_some(Found { usage, only })
}

impl Counts {
    fn found(&self, only: bool) -> Option<Found> {
        let cached = [
            self.cache_creation_input_tokens,
            self.cache_read_input_tokens,
        ];
        let whole = |input: u64| {
            let cached = cached.into_iter().flatten();
            cached.fold(input, u64::saturating_add)
        };
        let input = self.prompt_tokens.or(self.input_tokens.map(whole));
        found(input, self.completion_tokens.or(self.output_tokens), only)
    }
}

impl Event<'_> {
    /// Comes behind the last event with counts and says nothing.
    fn is_mark(&self) -> bool {
        let is = |name| self.kind.is_some_and(|kind| kind.get() == name);
        is("\"message_stop\"") || is("\"ping\"")
    }

    fn found(&self) -> Option<Found> {
        self.in_usage()
            .or_else(|| self.in_response())
            .or_else(|| {
                let details: Details = read(self.details)?;
                found(details.input_length, details.generated_tokens, false)
            })
            .or_else(|| read::<Counts>(self.meta_info)?.found(false))
            .or_else(|| self.of_llama())
            .or_else(|| self.of_ollama())
    }

    fn in_usage(&self) -> Option<Found> {
        let is = |raw: Option<&RawValue>, text| raw.is_some_and(|raw| raw.get() == text);
        let no_choices = self.choices.is_some_and(|choices| {
            let inside = choices.get().strip_prefix('[');
            inside.is_some_and(|inside| inside.trim_start() == "]")
        });
        let only = no_choices || is(self.kind, "\"message_delta\"");
        read::<Counts>(self.usage)?.found(only)
    }

    /// The last event of OpenAI's Responses holds the whole response a second time.
    fn in_response(&self) -> Option<Found> {
        let response: Response<'_> = read(self.response.or(self.cut))?;
        // Anthropic's first event, whose count of output is no sum yet, has no total.
        let counts: Counts = read(response.usage)?;
        counts.total_tokens.and_then(|_| counts.found(true))
    }

    fn of_llama(&self) -> Option<Found> {
        let timings: Option<Timings> = read(self.timings);
        let (mut input, mut output) = (read(self.tokens_evaluated), read(self.tokens_predicted));
        if let Some(timings) = timings {
            let whole = timings.prompt_n.zip(timings.cache_n);
            input = input.or(whole.and_then(|(read, cached)| read.checked_add(cached)));
            output = output.or(timings.predicted_n);
        }
        let empty = self.content.is_none_or(|content| content.get() == "\"\"");
        // Until the prompt is read nothing is counted of it.
        let output = output?;
        found(input, Some(output), empty && self.choices.is_none())
    }

    fn of_ollama(&self) -> Option<Found> {
        if self.done.is_some_and(|done| done.get() != "true") {
            return None;
        }
        let output = read(self.eval_count)?;
        let empty = |text: Option<&RawValue>| text.is_none_or(|text| text.get() == "\"\"");
        let message: Option<Message<'_>> = read(self.message);
        let silent =
            message.is_none_or(|message| empty(message.content) && message.tool_calls.is_none());
        found(
            read(self.prompt_eval_count),
            Some(output),
            silent && empty(self.response),
        )
    }
}

#[cfg(test)]
mod tests;
