//! The parameters of `POST /v1/chat/completions`: one table of every name OpenAI knows, with its type and range.
//!
//! Taken from the request types of the openai-python package 3.51.0. What the upstream would bill in a way that no
//! bound is known for (images, audio, files, web searches, predicted output, priority tiers) is refused: a budget is a
//! hard ceiling.

use super::rule::{
    Field,
    Rule::{
        self, AnyObject, Boolean, ByKey, Decimal, Either, Integer, List, Map, Name, Object, OneOf, Text, Unsupported,
    },
    Variant,
};

/// Most messages in a request.
pub const MESSAGES_MAX: usize = 2_048;
/// Most parts of one message's content.
pub const PARTS_MAX: usize = 2_048;
/// Most tools, and most tool calls in one message.
pub const TOOLS_MAX: usize = 128;
/// Longest model name, visible ASCII characters.
pub const MODEL_CHARS_MAX: usize = 128;
/// Most choices in one answer.
pub const CHOICES_MAX: i64 = 8;
/// Largest bound of tokens in one choice.
pub const COMPLETION_TOKENS_MAX: i64 = 1_000_000;
/// Most stop sequences.
pub const STOPS_MAX: usize = 4;
/// Longest stop sequence, user name, identifier or cache key, characters.
pub const LABEL_CHARS_MAX: usize = 512;
/// Most entries of `logit_bias`.
pub const LOGIT_BIAS_MAX: usize = 1_024;

/// Text is bounded by the body as a whole.
const TEXT: Rule = Text { chars_max: usize::MAX };
const LABEL: Rule = Text { chars_max: LABEL_CHARS_MAX };
const TOKENS: Rule = Integer { min: 1, max: COMPLETION_TOKENS_MAX };
const PENALTY: Rule = Decimal { min: -2.0, max: 2.0 };

const NO_BOUND: &str = "its cost has no bound that is known before the call, so no budget could be kept";

const fn required(name: &'static str, rule: &'static Rule) -> Field {
    Field::required(name, rule)
}

const fn optional(name: &'static str, rule: &'static Rule) -> Field {
    Field::optional(name, rule)
}

/// Every parameter of the top level.
pub(super) static PARAMETERS: &[Field] = &[
    required("model", &Text { chars_max: MODEL_CHARS_MAX }),
    required("messages", &List { min: 1, max: MESSAGES_MAX, item: &MESSAGE }),
    optional("audio", &Unsupported { why: NO_BOUND }),
    optional("frequency_penalty", &PENALTY),
    optional("function_call", &Either(&OneOf(&["none", "auto"]), &Object(&[required("name", &Name)]))),
    optional("functions", &List { min: 1, max: TOOLS_MAX, item: &Object(FUNCTION) }),
    optional(
        "logit_bias",
        &Map { entries_max: LOGIT_BIAS_MAX, key_chars_max: 20, value: &Decimal { min: -100.0, max: 100.0 } },
    ),
    optional("logprobs", &Boolean),
    optional("max_completion_tokens", &TOKENS),
    optional("max_tokens", &TOKENS),
    optional("metadata", &Map { entries_max: 16, key_chars_max: 64, value: &Text { chars_max: 512 } }),
    optional("modalities", &List { min: 1, max: 1, item: &OneOf(&["text"]) }),
    optional("moderation", &Object(&[required("model", &LABEL), optional("policy", &MODERATION_POLICY)])),
    optional("n", &Integer { min: 1, max: CHOICES_MAX }),
    optional("parallel_tool_calls", &Boolean),
    optional("prediction", &Unsupported { why: NO_BOUND }),
    optional("presence_penalty", &PENALTY),
    optional("prompt_cache_key", &LABEL),
    optional(
        "prompt_cache_options",
        &Object(&[optional("mode", &OneOf(&["implicit", "explicit"])), optional("ttl", &OneOf(&["30m"]))]),
    ),
    optional("prompt_cache_retention", &OneOf(&["in_memory", "24h"])),
    optional("reasoning_effort", &OneOf(&["none", "minimal", "low", "medium", "high", "xhigh", "max"])),
    optional("response_format", &RESPONSE_FORMAT),
    optional("safety_identifier", &Text { chars_max: 128 }),
    optional("seed", &Integer { min: i64::MIN, max: i64::MAX }),
    // `priority` and `fast` have other prices than the price book's.
    optional("service_tier", &OneOf(&["auto", "default", "flex", "scale"])),
    optional("stop", &Either(&LABEL, &List { min: 1, max: STOPS_MAX, item: &LABEL })),
    optional("store", &Boolean),
    optional("stream", &Boolean),
    optional(
        "stream_options",
        &Object(&[optional("include_usage", &Boolean), optional("include_obfuscation", &Boolean)]),
    ),
    optional("temperature", &Decimal { min: 0.0, max: 2.0 }),
    optional("tool_choice", &Either(&OneOf(&["none", "auto", "required"]), &TOOL_CHOICE)),
    optional("tools", &List { min: 1, max: TOOLS_MAX, item: &TOOL }),
    optional("top_logprobs", &Integer { min: 0, max: 20 }),
    optional("top_p", &Decimal { min: 0.0, max: 1.0 }),
    optional("user", &LABEL),
    optional("verbosity", &OneOf(&["low", "medium", "high"])),
    optional("web_search_options", &Unsupported { why: NO_BOUND }),
];

static MESSAGE: Rule = ByKey {
    key: "role",
    variants: &[
        ("system", Variant::Fields(INSTRUCTION)),
        ("developer", Variant::Fields(INSTRUCTION)),
        ("user", Variant::Fields(INSTRUCTION)),
        ("assistant", Variant::Fields(ASSISTANT)),
        ("tool", Variant::Fields(&[required("content", &CONTENT), required("tool_call_id", &LABEL)])),
        ("function", Variant::Fields(&[optional("content", &TEXT), required("name", &Name)])),
    ],
};

const INSTRUCTION: &[Field] = &[required("content", &CONTENT), optional("name", &LABEL)];

/// `annotations` is no documented input, but answers carry it and clients send answers back as they came.
const ASSISTANT: &[Field] = &[
    optional("content", &CONTENT),
    optional("name", &LABEL),
    optional("refusal", &TEXT),
    optional("tool_calls", &TOOL_CALLS),
    optional("function_call", &CALLED_FUNCTION),
    optional("annotations", &List { min: 0, max: PARTS_MAX, item: &AnyObject }),
    optional("audio", &Unsupported { why: NO_BOUND }),
];

static CONTENT: Rule = Either(&TEXT, &List { min: 1, max: PARTS_MAX, item: &PART });

static PART: Rule = ByKey {
    key: "type",
    variants: &[
        ("text", Variant::Fields(&[required("text", &TEXT), optional("prompt_cache_breakpoint", &BREAKPOINT)])),
        ("refusal", Variant::Fields(&[required("refusal", &TEXT)])),
        ("image_url", Variant::Unsupported { why: NO_BOUND }),
        ("input_audio", Variant::Unsupported { why: NO_BOUND }),
        ("file", Variant::Unsupported { why: NO_BOUND }),
    ],
};

static BREAKPOINT: Rule = Object(&[required("mode", &OneOf(&["explicit"])), optional("ttl", &OneOf(&["30m", "12h"]))]);

static CALLED_FUNCTION: Rule = Object(&[required("name", &Name), required("arguments", &TEXT)]);

static TOOL_CALLS: Rule = List { min: 1, max: TOOLS_MAX, item: &TOOL_CALL };

static TOOL_CALL: Rule = ByKey {
    key: "type",
    variants: &[
        ("function", Variant::Fields(&[required("id", &LABEL), required("function", &CALLED_FUNCTION)])),
        (
            "custom",
            Variant::Fields(&[
                required("id", &LABEL),
                required("custom", &Object(&[required("name", &Name), required("input", &TEXT)])),
            ]),
        ),
    ],
};

const FUNCTION: &[Field] = &[
    required("name", &Name),
    optional("description", &TEXT),
    optional("parameters", &AnyObject),
    optional("strict", &Boolean),
];

static TOOL: Rule = ByKey {
    key: "type",
    variants: &[
        ("function", Variant::Fields(&[required("function", &Object(FUNCTION))])),
        (
            "custom",
            Variant::Fields(&[required(
                "custom",
                &Object(&[required("name", &Name), optional("description", &TEXT), optional("format", &CUSTOM_FORMAT)]),
            )]),
        ),
    ],
};

static CUSTOM_FORMAT: Rule = ByKey {
    key: "type",
    variants: &[
        ("text", Variant::Fields(&[])),
        (
            "grammar",
            Variant::Fields(&[required(
                "grammar",
                &Object(&[required("definition", &TEXT), required("syntax", &OneOf(&["lark", "regex"]))]),
            )]),
        ),
    ],
};

static TOOL_CHOICE: Rule = ByKey {
    key: "type",
    variants: &[
        ("function", Variant::Fields(&[required("function", &Object(&[required("name", &Name)]))])),
        ("custom", Variant::Fields(&[required("custom", &Object(&[required("name", &Name)]))])),
        (
            "allowed_tools",
            Variant::Fields(&[required(
                "allowed_tools",
                &Object(&[
                    required("mode", &OneOf(&["auto", "required"])),
                    required("tools", &List { min: 1, max: TOOLS_MAX, item: &AnyObject }),
                ]),
            )]),
        ),
    ],
};

static RESPONSE_FORMAT: Rule = ByKey {
    key: "type",
    variants: &[
        ("text", Variant::Fields(&[])),
        ("json_object", Variant::Fields(&[])),
        (
            "json_schema",
            Variant::Fields(&[required(
                "json_schema",
                &Object(&[
                    required("name", &Name),
                    optional("description", &TEXT),
                    optional("schema", &AnyObject),
                    optional("strict", &Boolean),
                ]),
            )]),
        ),
    ],
};

static MODERATION_POLICY: Rule = Object(&[optional("input", &MODERATION_MODE), optional("output", &MODERATION_MODE)]);

static MODERATION_MODE: Rule = Object(&[required("mode", &OneOf(&["score", "block"]))]);
