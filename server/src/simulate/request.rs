//! Reads the body of `POST /v1/chat/completions`.
//!
//! Only what decides the answer is kept: message texts are counted and hashed while they are parsed, not stored.
//! Fields that change nothing here (`temperature`, `stop`, `tools`, ...) are accepted and ignored; the simulator is not
//! a validator of the whole API. What is read is checked, and every refusal is an OpenAI error body.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};
use serde_json::{Value, error::Category};

use super::{
    dice::{hash, mix},
    error::ApiError,
};

/// Most choices (`n`) of one request.
pub(super) const CHOICES_MAX: u32 = 128;
/// Prompt tokens that every request costs, whatever it says.
const TOKENS_PER_REQUEST: u64 = 3;
/// Prompt tokens that every message costs besides its text.
const TOKENS_PER_MESSAGE: u64 = 3;
/// UTF-8 bytes of message text that make one prompt token; the last token of a message may be smaller.
const BYTES_PER_TOKEN: u64 = 4;
/// The roles a message can have.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// A checked request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chat {
    /// Place in the list of models.
    pub(super) model: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Bound for each choice.
    pub(super) completion_tokens_max: Option<u32>,
    pub(super) choices: u32,
    pub(super) prompt_tokens: u64,
    pub(super) prompt_hash: u64,
}

impl Chat {
    /// Parses and checks a body against the models served.
    pub(super) fn parse(body: &[u8], models: &[String]) -> Result<Self, ApiError> {
        let wire: Wire<'_> = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
        let choices = positive("n", &wire.n, CHOICES_MAX)?.unwrap_or(1);
        let current = positive("max_completion_tokens", &wire.max_completion_tokens, u32::MAX)?;
        let deprecated = positive("max_tokens", &wire.max_tokens, u32::MAX)?;
        let stream = wire.stream.unwrap_or(false);
        if wire.stream_options.is_some() && !stream {
            let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
            return Err(ApiError::bad_request(message, Some("stream_options"), None));
        }
        if wire.messages.is_empty() {
            return Err(ApiError::bad_request("[] is too short - 'messages'", Some("messages"), Some("empty_array")));
        }
        let mut prompt_tokens = TOKENS_PER_REQUEST;
        let mut prompt_hash = 0;
        for (index, message) in wire.messages.iter().enumerate() {
            let text = message.check(index)?;
            prompt_tokens += TOKENS_PER_MESSAGE + text.bytes.div_ceil(BYTES_PER_TOKEN);
            prompt_hash = mix(mix(prompt_hash ^ hash(0, message.role.as_bytes())) ^ text.hash);
        }
        let Some(model) = models.iter().position(|name| *name == wire.model) else {
            return Err(ApiError::model_not_found(&wire.model));
        };
        Ok(Self {
            model,
            stream,
            include_usage: wire.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
            completion_tokens_max: current.or(deprecated),
            choices,
            prompt_tokens,
            prompt_hash,
        })
    }
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
    messages: Vec<Message<'a>>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    // Numbers are read as they are, so that a refusal can name the parameter.
    #[serde(default)]
    n: Value,
    #[serde(default)]
    max_tokens: Value,
    #[serde(default)]
    max_completion_tokens: Value,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    content: Option<Text>,
}

impl Message<'_> {
    fn check(&self, index: usize) -> Result<Text, ApiError> {
        if !ROLES.contains(&self.role.as_ref()) {
            let message = format!("Invalid value for 'messages[{index}].role': {:?}.", clipped(&self.role));
            return Err(ApiError::bad_request(message, Some("messages"), Some("invalid_value")));
        }
        match self.content {
            Some(text) => Ok(text),
            // An assistant message may consist of tool calls alone.
            None if self.role == "assistant" => Ok(Text::default()),
            None => {
                let message = format!("Missing required parameter: 'messages[{index}].content'.");
                Err(ApiError::bad_request(message, Some("messages"), Some("missing_required_parameter")))
            }
        }
    }
}

/// Text that was counted and hashed while it was parsed: a string, or the text parts of an array.
#[derive(Clone, Copy, Debug, Default)]
struct Text {
    bytes: u64,
    hash: u64,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    text: Option<String>,
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string or an array of content parts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text { bytes: text.len() as u64, hash: hash(0, text.as_bytes()) })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Text, A::Error> {
        let mut all = Text::default();
        while let Some(part) = parts.next_element::<Part<'_>>()? {
            if part.kind == "text" {
                let text = part.text.ok_or_else(|| de::Error::missing_field("text"))?;
                all.bytes += text.len() as u64;
                all.hash = mix(all.hash ^ hash(0, text.as_bytes()));
            }
        }
        Ok(all)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

/// Reads a parameter that is absent, null, or an integer from 1 to `max`.
fn positive(name: &'static str, value: &Value, max: u32) -> Result<Option<u32>, ApiError> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_u64().filter(|number| (1..=u64::from(max)).contains(number));
    match number.and_then(|number| u32::try_from(number).ok()) {
        Some(number) => Ok(Some(number)),
        None => {
            let shown = value.to_string();
            let message = format!("Invalid '{name}': {} is not an integer from 1 to {max}.", clipped(&shown));
            Err(ApiError::bad_request(message, Some(name), Some("invalid_value")))
        }
    }
}

fn unreadable(error: &serde_json::Error) -> ApiError {
    match error.classify() {
        Category::Data => ApiError::bad_request(format!("Invalid request body: {error}."), None, Some("invalid_type")),
        Category::Syntax | Category::Eof | Category::Io => ApiError::bad_request(
            format!("We could not parse the JSON body of your request: {error}."),
            None,
            Some("invalid_json"),
        ),
    }
}

/// The start of a text that came from outside, short enough for an error message.
pub(super) fn clipped(text: &str) -> &str {
    /// Most bytes of foreign text in a message.
    const SHOWN_BYTES_MAX: usize = 64;
    text.get(..text.floor_char_boundary(SHOWN_BYTES_MAX)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Chat, ApiError> {
        Chat::parse(body.as_bytes(), &["m".to_owned(), "k".to_owned()])
    }

    #[test]
    fn prompt_tokens_follow_the_documented_rule() {
        for (messages, tokens) in [
            (r#"{"role":"user","content":""}"#, 6),
            (r#"{"role":"user","content":"abcd"}"#, 7),
            (r#"{"role":"user","content":"abcde"}"#, 8),
            (r#"{"role":"user","content":"äöü"}"#, 8),
            (r#"{"role":"user","content":"\u00e4\n"}"#, 7),
            (r#"{"role":"assistant","content":null},{"role":"user","content":"a"}"#, 10),
            (
                r#"{"role":"user","content":[{"type":"text","text":"abc"},{"type":"image_url","image_url":{}},
                {"type":"text","text":"de"}]}"#,
                8,
            ),
        ] {
            let chat = parse(&format!(r#"{{"model":"k","messages":[{messages}]}}"#)).unwrap();
            assert_eq!((chat.prompt_tokens, chat.model), (tokens, 1), "{messages}");
        }
    }

    #[test]
    fn what_decides_the_answer_is_read() {
        let chat = parse(
            r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true,"n":3,"max_tokens":9,
            "max_completion_tokens":7,"stream_options":{"include_usage":true},"temperature":0.5,"stop":["a"]}"#,
        )
        .unwrap();
        assert!(chat.stream && chat.include_usage);
        assert_eq!((chat.choices, chat.completion_tokens_max), (3, Some(7)));
    }

    #[test]
    fn bad_input_is_refused_with_the_parameter_named() {
        let with = |field: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],{field}}}"#);
        for (body, param, code) in [
            (with(r#""max_tokens":0"#), Some("max_tokens"), "invalid_value"),
            (with(r#""max_tokens":-1"#), Some("max_tokens"), "invalid_value"),
            (with(r#""max_tokens":1.5"#), Some("max_tokens"), "invalid_value"),
            (with(r#""max_tokens":99999999999999999999"#), Some("max_tokens"), "invalid_value"),
            (with(r#""max_completion_tokens":"7""#), Some("max_completion_tokens"), "invalid_value"),
            (with(r#""n":129"#), Some("n"), "invalid_value"),
            (with(r#""stream":"yes""#), None, "invalid_type"),
            (with(r#""max_tokens":NaN"#), None, "invalid_json"),
            (r#"{"model":"m","messages":[]}"#.to_owned(), Some("messages"), "empty_array"),
            (r#"{"model":"m"}"#.to_owned(), None, "invalid_type"),
            (
                r#"{"model":"m","messages":[{"role":"king","content":"x"}]}"#.to_owned(),
                Some("messages"),
                "invalid_value",
            ),
            (
                r#"{"model":"m","messages":[{"role":"user"}]}"#.to_owned(),
                Some("messages"),
                "missing_required_parameter",
            ),
            (r#"{"model":"m","messages":[{"role":"user","content":7}]}"#.to_owned(), None, "invalid_type"),
            (r#"{"model":"m","messages":[{"role":"us"#.to_owned(), None, "invalid_json"),
            (String::new(), None, "invalid_json"),
        ] {
            let error = parse(&body).unwrap_err();
            assert_eq!((error.param, error.code, error.status.as_u16()), (param, Some(code), 400), "{body}");
        }
        let error = parse(r#"{"model":"z","messages":[{"role":"user","content":"x"}]}"#).unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (404, Some("model_not_found")));
        assert!(Chat::parse(b"{\"model\":\"\xff\"}", &[]).is_err());
    }
}
