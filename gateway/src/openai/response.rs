//! A plain answer: read once for its usage, forwarded under our id and the model's name the client used.
//!
//! Members other than `id` and `model` keep their bytes. What the choices say is parsed only for those who ask.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use events_model::Tokens;
use serde::Deserialize;

use super::{
    chunk::{Malformed, Naming},
    count::Delivered,
    json::{self, Member},
};

/// What the upstream says it will bill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: Tokens,
    /// Tokens of all choices.
    pub completion: Tokens,
}

#[derive(Deserialize)]
struct WireUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// A plain answer.
#[derive(Debug, Clone)]
pub struct PlainAnswer {
    /// The JSON to forward.
    pub body: Bytes,
    /// What the upstream bills, if it says.
    pub usage: Option<Usage>,
    choices: Range<usize>,
}

/// What the choices of a plain answer say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choices {
    /// The text of the first choice.
    pub text: String,
    /// Why the first choice ended.
    pub finish_reason: Option<String>,
    /// How much text all choices hold.
    pub delivered: Delivered,
}

/// A text that is borrowed if it holds no escapes.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// One choice of an answer or a chunk; `message` and `delta` have the same members.
#[derive(Debug, Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(default)]
    pub(super) index: u32,
    #[serde(borrow, default, alias = "delta")]
    pub(super) message: Option<Message<'a>>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow, default)]
    pub(super) content: Option<Text<'a>>,
    #[serde(borrow, default)]
    refusal: Option<Text<'a>>,
    /// Not OpenAI's, but what DeepSeek and vLLM call visible reasoning.
    #[serde(borrow, default)]
    reasoning_content: Option<Text<'a>>,
    #[serde(borrow, default)]
    function_call: Option<Called<'a>>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<ToolCall<'a>>>,
}

#[derive(Debug, Deserialize)]
struct ToolCall<'a> {
    #[serde(borrow, default)]
    function: Option<Called<'a>>,
    #[serde(borrow, default)]
    custom: Option<Called<'a>>,
}

#[derive(Debug, Deserialize)]
struct Called<'a> {
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    #[serde(borrow, default)]
    arguments: Option<Text<'a>>,
    #[serde(borrow, default)]
    input: Option<Text<'a>>,
}

fn length(text: Option<&Text<'_>>) -> usize {
    text.map_or(0, |text| text.0.len())
}

impl Message<'_> {
    /// Bytes of everything the model wrote in it.
    pub(super) fn text_bytes(&self) -> usize {
        let called = |call: &Called<'_>| {
            length(call.name.as_ref()) + length(call.arguments.as_ref()) + length(call.input.as_ref())
        };
        let tools = self.tool_calls.iter().flatten().flat_map(|call| call.function.iter().chain(&call.custom));
        length(self.content.as_ref())
            + length(self.refusal.as_ref())
            + length(self.reasoning_content.as_ref())
            + tools.chain(&self.function_call).map(called).sum::<usize>()
    }
}

/// Reads the value of a `usage` member; null, and usage of an unknown form, is none.
pub(super) fn usage_of(raw: &str) -> Option<Usage> {
    let wire: Option<WireUsage> = serde_json::from_str(raw).ok()?;
    wire.map(|wire| Usage { prompt: Tokens(wire.prompt_tokens), completion: Tokens(wire.completion_tokens) })
}

impl PlainAnswer {
    /// Reads an upstream's answer and renames it.
    ///
    /// # Errors
    /// The body is not a JSON object with an array of choices.
    pub fn parse(body: &[u8], naming: &Naming) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(body).map_err(|_| Malformed::new("it is not UTF-8"))?;
        let members = json::members(text).map_err(|fault| Malformed::new(format!("{fault:?}")))?;
        let mut out = Vec::with_capacity(body.len() + 128);
        let mut usage = None;
        let mut choices = None;
        naming.begin(&mut out);
        for (name, raw) in &members {
            match name.as_ref() {
                "id" | "model" => continue,
                "usage" => usage = usage_of(raw.get()),
                _ => {}
            }
            let value = push_member(&mut out, &(Cow::Borrowed(name), raw));
            if name == "choices" && raw.get().starts_with('[') {
                choices = Some(value);
            }
        }
        out.push(b'}');
        let choices = choices.ok_or_else(|| Malformed::new("it has no array of choices"))?;
        Ok(Self { body: out.into(), usage, choices })
    }

    /// Parses the choices.
    ///
    /// # Errors
    /// The choices are not of OpenAI's form.
    pub fn choices(&self) -> Result<Choices, Malformed> {
        let raw = self.body.get(self.choices.clone()).unwrap_or_default();
        let list: Vec<Choice<'_>> =
            serde_json::from_slice(raw).map_err(|error| Malformed::new(format!("choices: {error}")))?;
        let mut choices = Choices::default();
        for choice in list {
            let message = choice.message.unwrap_or_default();
            choices.delivered.add_piece(message.text_bytes());
            if choice.index == 0 {
                choices.text = message.content.map(|text| text.0.into_owned()).unwrap_or_default();
                choices.finish_reason = choice.finish_reason.map(|text| text.0.into_owned());
            }
        }
        Ok(choices)
    }
}

/// Appends a member after others and returns where its value lies.
pub(super) fn push_member(out: &mut Vec<u8>, (name, raw): &Member<'_>) -> Range<usize> {
    out.push(b',');
    json::push_text(out, name);
    out.push(b':');
    let start = out.len();
    out.extend_from_slice(raw.get().as_bytes());
    start..out.len()
}
