//! A chat-completions request: checked in full, bounded in tokens, and written again for an upstream.
//!
//! Invariants: what is sent upstream is what was checked (duplicate keys are refused, unknown members too); the token
//! bound is always set explicitly; members that are not ours to change keep their bytes.
//! Deliberately absent: whether the order of messages makes sense to a model is the upstream's to judge.

use std::{borrow::Cow, iter::Sum};

use bytes::Bytes;
use events_model::Tokens;
use serde::Serialize;

use super::{
    count::{TOKEN_BYTES_TYPICAL, text_tokens_estimate},
    error::ApiError,
    json::{self, Context, DEPTH_MAX, Fault, Member, Node, VALUES_MAX},
    parameter::PARAMETERS,
    rule::Path,
};

pub use super::parameter::{
    CHOICES_MAX, COMPLETION_TOKENS_MAX, LABEL_CHARS_MAX, LOGIT_BIAS_MAX, MESSAGES_MAX, MODEL_CHARS_MAX, PARTS_MAX,
    STOPS_MAX, TOOLS_MAX,
};

/// Tokens a chat template may add to each message: role, separators.
pub const MESSAGE_TOKENS: u64 = 8;
/// Tokens a chat template may add to each part of a content.
pub const PART_TOKENS: u64 = 2;
/// Tokens a chat template may add when there are tools, functions or a response format: it explains them to the model.
pub const TOOLS_TOKENS: u64 = 512;
/// Tokens a chat template usually adds to each message.
pub const MESSAGE_TOKENS_TYPICAL: u64 = 3;
/// Tokens a chat template usually adds to a whole prompt: the beginning of the answer.
pub const PROMPT_TOKENS_TYPICAL: u64 = 3;
const _: () = assert!(MESSAGE_TOKENS_TYPICAL + PROMPT_TOKENS_TYPICAL <= MESSAGE_TOKENS);

/// Limits an operator may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLimits {
    /// Largest body, bytes.
    pub body_bytes_max: usize,
    /// Tokens a chat template may add to a whole prompt, such as a default system message.
    pub prompt_template_tokens: Tokens,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { body_bytes_max: 4 * 1024 * 1024, prompt_template_tokens: Tokens(128) }
    }
}

/// Name under which an upstream knows the bound of a choice's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MaxTokensParameter {
    /// `max_tokens`: the old name, which most compatible servers know.
    #[default]
    MaxTokens,
    /// `max_completion_tokens`: the new name, the only one OpenAI's reasoning models take.
    MaxCompletionTokens,
}

impl MaxTokensParameter {
    /// The name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// A request that passed every check.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// The model the client asked for.
    pub model: String,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Whether the client asked for a usage chunk at the end of the stream.
    pub include_usage: bool,
    /// Choices to generate, 1..=`CHOICES_MAX`.
    pub n: u32,
    /// The client's bound of each choice's tokens.
    pub completion_tokens_max: Option<Tokens>,
    prompt: PromptTokens,
    max_tokens_parameter: Option<MaxTokensParameter>,
    include_obfuscation: Option<bool>,
    /// Every other member as `,"name":value`, in the client's order and bytes.
    rest: Vec<u8>,
}

/// A request as typed fields, for surfaces other than HTTP.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatFields {
    /// The model.
    pub model: String,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// Bound of the choice's tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// 0..=2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// 0..=1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// At most `STOPS_MAX`; empty = none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// For sampling that repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// The end user; empty = none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Whether the answer is to be streamed.
    pub stream: bool,
}

/// One message of `ChatFields`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// Empty = none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Empty = none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tool_call_id: String,
}

impl ChatRequest {
    /// Reads and checks the body of `POST /v1/chat/completions`.
    ///
    /// # Errors
    /// 413 for a body over the limit, 400 with parameter and code for everything else that is wrong with it.
    pub fn parse(body: &[u8], limits: &RequestLimits) -> Result<Self, ApiError> {
        if body.len() > limits.body_bytes_max {
            return Err(ApiError::too_large(limits.body_bytes_max));
        }
        let text = std::str::from_utf8(body).map_err(|error| {
            let message = format!("The request body is not valid UTF-8 (byte {}).", error.valid_up_to());
            ApiError::bad_request(Some("invalid_utf8"), None, message)
        })?;
        let members = json::members(text).map_err(|fault| document_error(fault, None))?;
        let mut draft = Draft::default();
        let context = Context::default();
        for member in &members {
            draft.take(&context, member)?;
        }
        draft.finish(&members, limits)
    }

    /// Builds a request from typed fields; it passes the same checks.
    ///
    /// # Errors
    /// As `parse`.
    pub fn new(fields: &ChatFields, limits: &RequestLimits) -> Result<Self, ApiError> {
        // JSON knows no NaN and no infinity; a serializer would write null, which means absent.
        for (name, value) in [("temperature", fields.temperature), ("top_p", fields.top_p)] {
            if value.is_some_and(|value| !value.is_finite()) {
                let message = format!("Invalid type for '{name}': expected a decimal number.");
                return Err(Path::Top(name).error("invalid_type", message));
            }
        }
        Self::parse(&json::bytes_of(fields), limits)
    }

    /// An upper bound of the prompt's tokens.
    ///
    /// A byte-level BPE token is at least one byte, so every UTF-8 byte of text that reaches the prompt counts as a
    /// token: contents, names, tool calls; tools, functions, tool choice and response format as JSON. Added is what a
    /// chat template writes around them: `MESSAGE_TOKENS` a message, `PART_TOKENS` a part, `TOOLS_TOKENS` if there are
    /// tools or a format, and `RequestLimits::prompt_template_tokens` once. The bound does not hold for tokenizers that
    /// first expand text (such as NFKC normalisation).
    pub const fn prompt_tokens_bound(&self) -> Tokens {
        Tokens(self.prompt.bound)
    }

    /// What the prompt's tokens probably are: at least 1, at most `prompt_tokens_bound`.
    ///
    /// Texts are estimated by `text_tokens_estimate`, JSON at `TOKEN_BYTES_TYPICAL` bytes a token. Added is what chat
    /// templates usually write: `MESSAGE_TOKENS_TYPICAL` a message and `PROMPT_TOKENS_TYPICAL` once. For settling a
    /// request whose upstream never told its usage; what an upstream adds unseen, such as a default system message, is
    /// not in it.
    pub const fn prompt_tokens_estimate(&self) -> Tokens {
        Tokens(self.prompt.estimate)
    }

    /// Writes the request for an upstream.
    ///
    /// `completion_tokens_max` is the bound of each choice, under the name the client used or else under
    /// `default_parameter`. When streaming, usage is always asked for.
    pub fn upstream_body(
        &self,
        upstream_model: &str,
        completion_tokens_max: Tokens,
        default_parameter: MaxTokensParameter,
    ) -> Bytes {
        let parameter = self.max_tokens_parameter.unwrap_or(default_parameter).as_str();
        let mut out = Vec::with_capacity(self.rest.len() + upstream_model.len() + 128);
        out.extend_from_slice(b"{\"model\":");
        json::push_text(&mut out, upstream_model);
        out.extend_from_slice(format!(",\"{parameter}\":{completion_tokens_max}").as_bytes());
        if self.stream {
            out.extend_from_slice(b",\"stream_options\":{\"include_usage\":true");
            if let Some(obfuscation) = self.include_obfuscation {
                out.extend_from_slice(format!(",\"include_obfuscation\":{obfuscation}").as_bytes());
            }
            out.push(b'}');
        }
        out.extend_from_slice(&self.rest);
        out.push(b'}');
        out.into()
    }
}

/// Tokens of (a part of) a prompt, counted twice.
#[derive(Debug, Clone, Copy, Default)]
struct PromptTokens {
    /// They are never more.
    bound: u64,
    /// They are probably so many; at most `bound`.
    estimate: u64,
}

impl PromptTokens {
    fn of_text(text: &str) -> Self {
        Self { bound: text.len() as u64, estimate: text_tokens_estimate(text) }
    }

    const fn of_json(bytes: u64) -> Self {
        Self { bound: bytes, estimate: bytes.div_ceil(TOKEN_BYTES_TYPICAL) }
    }

    const fn plus(self, other: Self) -> Self {
        Self { bound: self.bound.saturating_add(other.bound), estimate: self.estimate.saturating_add(other.estimate) }
    }
}

impl Sum for PromptTokens {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Self::plus)
    }
}

/// What has been read of a request so far.
#[derive(Default)]
struct Draft {
    model: String,
    stream: bool,
    include_usage: bool,
    include_obfuscation: Option<bool>,
    has_stream_options: bool,
    n: Option<i64>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    logprobs: bool,
    has_top_logprobs: bool,
    prompt: PromptTokens,
    has_tools: bool,
}

impl Draft {
    fn take(&mut self, context: &Context, (name, raw): &Member<'_>) -> Result<(), ApiError> {
        let Some(field) = PARAMETERS.iter().find(|field| field.name() == name) else {
            let name = json::echo(name);
            let message = format!("Unrecognized request argument supplied: {name}");
            return Err(ApiError::bad_request(Some("unknown_parameter"), Some(name), message));
        };
        let node = context.parse(raw).map_err(|fault| document_error(fault, Some(name)))?;
        let path = Path::Top(name);
        field.check(&node, path)?;
        if node != Node::Null {
            self.keep(&node, path, field.name(), raw.get().len() as u64)?;
        }
        Ok(())
    }

    /// Keeps what the gateway itself needs of a checked parameter.
    fn keep(&mut self, node: &Node<'_>, path: Path<'_>, name: &str, raw_bytes: u64) -> Result<(), ApiError> {
        let flag = *node == Node::Bool(true);
        let integer = if let Node::Integer(value) = node { Some(*value) } else { None };
        match name {
            "model" => self.model = model_name(node, path)?,
            "messages" => self.prompt = self.prompt.plus(check_messages(node, path)?),
            "stream" => self.stream = flag,
            "stream_options" => {
                self.has_stream_options = true;
                self.include_usage = node.member("include_usage") == Some(&Node::Bool(true));
                self.include_obfuscation = node.member("include_obfuscation").map(|node| *node == Node::Bool(true));
            }
            "n" => self.n = integer,
            "max_tokens" => self.max_tokens = integer,
            "max_completion_tokens" => self.max_completion_tokens = integer,
            "logprobs" => self.logprobs = flag,
            "top_logprobs" => self.has_top_logprobs = true,
            "tools" | "functions" | "response_format" | "tool_choice" | "function_call" => {
                self.has_tools = true;
                self.prompt = self.prompt.plus(PromptTokens::of_json(raw_bytes));
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(self, members: &[Member<'_>], limits: &RequestLimits) -> Result<ChatRequest, ApiError> {
        let absent = |name: &str| !members.iter().any(|(key, _)| key == name);
        if let Some(field) = PARAMETERS.iter().find(|field| field.is_required() && absent(field.name())) {
            return Err(Path::Top(field.name()).missing());
        }
        self.check_combinations()?;
        let tools = if self.has_tools { TOOLS_TOKENS } else { 0 };
        let bound = tools.saturating_add(limits.prompt_template_tokens.0);
        let template = PromptTokens { bound, estimate: PROMPT_TOKENS_TYPICAL };
        let max_tokens_parameter = match (self.max_tokens, self.max_completion_tokens) {
            (Some(_), _) => Some(MaxTokensParameter::MaxTokens),
            (None, Some(_)) => Some(MaxTokensParameter::MaxCompletionTokens),
            (None, None) => None,
        };
        let completion_tokens_max = self.max_tokens.or(self.max_completion_tokens).map(i64::unsigned_abs).map(Tokens);
        Ok(ChatRequest {
            model: self.model,
            stream: self.stream,
            include_usage: self.include_usage,
            n: self.n.and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
            completion_tokens_max,
            prompt: self.prompt.plus(template),
            max_tokens_parameter,
            include_obfuscation: self.include_obfuscation,
            rest: rest_of(members),
        })
    }

    fn check_combinations(&self) -> Result<(), ApiError> {
        if self.max_tokens.is_some() && self.max_completion_tokens.is_some() {
            let message = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.";
            return Err(Path::Top("max_tokens").error("invalid_parameter_combination", message));
        }
        if self.has_stream_options && !self.stream {
            let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
            return Err(Path::Top("stream_options").error("invalid_parameter_combination", message));
        }
        if self.has_top_logprobs && !self.logprobs {
            let message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.";
            return Err(Path::Top("top_logprobs").error("invalid_parameter_combination", message));
        }
        Ok(())
    }
}

/// The members that an upstream gets as they came.
fn rest_of(members: &[Member<'_>]) -> Vec<u8> {
    let ours = ["model", "max_tokens", "max_completion_tokens", "stream_options"];
    let members = members.iter().filter(|(name, _)| !ours.contains(&name.as_ref()));
    let mut rest = Vec::with_capacity(members.clone().map(|(name, raw)| name.len() + raw.get().len() + 8).sum());
    for (name, raw) in members {
        rest.push(b',');
        json::push_text(&mut rest, name);
        rest.push(b':');
        rest.extend_from_slice(raw.get().as_bytes());
    }
    rest
}

fn model_name(node: &Node<'_>, path: Path<'_>) -> Result<String, ApiError> {
    let name = node.as_text().unwrap_or_default();
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("Invalid '{path}': expected 1 to {MODEL_CHARS_MAX} visible ASCII characters.");
        return Err(path.error("invalid_value", message));
    }
    Ok(name.to_owned())
}

/// Checks what a message's rule cannot say and counts the tokens of all messages.
fn check_messages(node: &Node<'_>, path: Path<'_>) -> Result<PromptTokens, ApiError> {
    let Node::List(messages) = node else { return Ok(PromptTokens::default()) };
    let mut tokens = PromptTokens::default();
    for (index, message) in messages.iter().enumerate() {
        let role = message.member("role").and_then(Node::as_text);
        let speaks =
            ["content", "refusal", "tool_calls", "function_call"].iter().any(|name| message.member(name).is_some());
        if role == Some("assistant") && !speaks {
            return Err(Path::Member(&Path::Item(&path, index), "content").missing());
        }
        tokens = tokens.plus(message_tokens(message));
    }
    Ok(tokens)
}

fn message_tokens(message: &Node<'_>) -> PromptTokens {
    let Node::Object(members) = message else { return PromptTokens::default() };
    let member_tokens = |(name, node): &(Cow<'_, str>, Node<'_>)| match (name.as_ref(), node) {
        ("role", _) | (_, Node::Null) => PromptTokens::default(),
        (_, Node::Text(text)) => PromptTokens::of_text(text),
        ("content", Node::List(parts)) => parts.iter().map(part_tokens).sum(),
        (_, other) => PromptTokens::of_json(other.json_bytes()),
    };
    let template = PromptTokens { bound: MESSAGE_TOKENS, estimate: MESSAGE_TOKENS_TYPICAL };
    members.iter().map(member_tokens).sum::<PromptTokens>().plus(template)
}

fn part_tokens(part: &Node<'_>) -> PromptTokens {
    let text = part.member("text").or_else(|| part.member("refusal")).and_then(Node::as_text);
    let template = PromptTokens { bound: PART_TOKENS, estimate: 0 };
    text.map(PromptTokens::of_text).unwrap_or_default().plus(template)
}

fn document_error(fault: Fault, parameter: Option<&str>) -> ApiError {
    let param = parameter.map(json::echo);
    let place = param.as_ref().map(|name| format!(" in '{name}'")).unwrap_or_default();
    let (code, message) = match fault {
        Fault::Syntax(why) => ("invalid_json", format!("The request body is not valid JSON{place}: {why}.")),
        Fault::NotAnObject => ("invalid_type", "The request body must be a JSON object.".to_owned()),
        Fault::DuplicateKey(key) => ("duplicate_key", format!("The key '{key}' appears twice in one object{place}.")),
        Fault::TooDeep => ("too_deep", format!("The request body is nested deeper than {DEPTH_MAX} levels{place}.")),
        Fault::TooManyValues => ("too_many_values", format!("The request body has more than {VALUES_MAX} values.")),
    };
    ApiError::bad_request(Some(code), param, message)
}
