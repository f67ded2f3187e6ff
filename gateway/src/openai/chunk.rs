//! Chunks of a streamed answer: read for text, end and usage; forwarded under our id and the client's model name.
//!
//! Members other than `id`, `model` and `usage` keep their bytes. Usage goes to the client only in a chunk of its own
//! at the end, and only if it was asked for; so a client sees it exactly once, whatever the upstream's habit is.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;

use super::{
    count::Delivered,
    json::{self, Member},
    response::{Choice, Usage, push_member, usage_of},
};

const PREFIX: &[u8] = b"data: ";

/// An upstream's bytes are not what the API says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer cannot be read: {why}")]
pub struct Malformed {
    /// Why, for the operator.
    pub why: String,
}

impl Malformed {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

/// Under which names an answer is forwarded; made once for each request.
#[derive(Debug, Clone)]
pub struct Naming {
    /// `{"id":"chatcmpl-...","model":"..."`, the beginning of every JSON object of the answer.
    head: Vec<u8>,
    id: String,
    model: String,
    include_usage: bool,
}

/// One chunk, read and rewritten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The server-sent event to forward; none if the chunk held nothing but usage.
    pub frame: Option<Bytes>,
    /// Text of the first choice.
    pub text: String,
    /// Text of all choices, counted.
    pub delivered: Delivered,
    /// Why choices ended in this chunk; of the first choice if it is among them.
    pub finish_reason: Option<String>,
    /// How many choices ended in this chunk.
    pub finished: u32,
    /// Usage, and the server-sent event that tells the client, if it asked.
    pub usage: Option<(Usage, Option<Bytes>)>,
    /// The upstream reports an error instead of a chunk: its JSON, for the operator.
    pub error: Option<String>,
}

#[derive(Serialize)]
struct UsageJson {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl Naming {
    /// Names an answer after our request id and the model the client asked for.
    pub fn new(request_id: &str, model: &str, include_usage: bool) -> Self {
        let id = format!("chatcmpl-{request_id}");
        let mut head = b"{\"id\":".to_vec();
        json::push_text(&mut head, &id);
        head.extend_from_slice(b",\"model\":");
        json::push_text(&mut head, model);
        Self { head, id, model: model.to_owned(), include_usage }
    }

    /// `chatcmpl-<request id>`.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn begin(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
    }

    /// Reads a chunk and rewrites it.
    ///
    /// # Errors
    /// The data is no JSON object with an array of choices, and no error either.
    pub fn chunk(&self, data: &[u8]) -> Result<Chunk, Malformed> {
        let text = std::str::from_utf8(data).map_err(|_| Malformed::new("a chunk is not UTF-8"))?;
        let members = json::members(text).map_err(|fault| Malformed::new(format!("a chunk: {fault:?}")))?;
        let mut chunk = Chunk::default();
        let mut choices = None;
        let mut usage = None;
        for (name, raw) in &members {
            match name.as_ref() {
                "choices" => {
                    let list: Vec<Choice<'_>> = serde_json::from_str(raw.get())
                        .map_err(|error| Malformed::new(format!("choices of a chunk: {error}")))?;
                    choices = Some(list);
                }
                "usage" => usage = usage_of(raw.get()),
                "error" if raw.get() != "null" => {
                    chunk.error = Some(raw.get().to_owned());
                    return Ok(chunk);
                }
                _ => {}
            }
        }
        let choices = choices.ok_or_else(|| Malformed::new("a chunk has no array of choices"))?;
        let is_empty = choices.is_empty();
        chunk.read(choices);
        chunk.usage = usage.map(|usage| (usage, self.usage_frame(&members, is_empty)));
        // A chunk without choices is passed on as well (servers open a stream with one), unless it is the usage.
        if !is_empty || chunk.usage.is_none() {
            chunk.frame = Some(self.frame(&members, Keep::Choices));
        }
        Ok(chunk)
    }

    /// Writes a chunk with no text that ends a choice, for a stream that is cut here.
    pub fn finish_frame(&self, created_s: u64, index: u32, finish_reason: &str) -> Bytes {
        let mut tail = format!("\"choices\":[{{\"index\":{index},\"delta\":{{}},\"finish_reason\":").into_bytes();
        json::push_text(&mut tail, finish_reason);
        tail.extend_from_slice(b"}]");
        self.own_frame(created_s, &tail)
    }

    /// Writes the last chunk: no choices, usage as settled.
    pub fn final_usage_frame(&self, created_s: u64, usage: Usage) -> Bytes {
        let mut tail = b"\"choices\":[],\"usage\":".to_vec();
        tail.extend_from_slice(&json::bytes_of(&UsageJson {
            prompt_tokens: usage.prompt.0,
            completion_tokens: usage.completion.0,
            total_tokens: usage.prompt.plus(usage.completion).0,
        }));
        self.own_frame(created_s, &tail)
    }

    fn own_frame(&self, created_s: u64, tail: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(self.head.len() + tail.len() + 80);
        out.extend_from_slice(PREFIX);
        self.begin(&mut out);
        out.extend_from_slice(format!(",\"object\":\"chat.completion.chunk\",\"created\":{created_s},").as_bytes());
        out.extend_from_slice(tail);
        out.extend_from_slice(b"}\n\n");
        out.into()
    }

    /// The usage chunk for the client, if it asked: the upstream's members, with details, but no choices.
    fn usage_frame(&self, members: &[Member<'_>], is_empty: bool) -> Option<Bytes> {
        let keep = if is_empty { Keep::ChoicesAndUsage } else { Keep::Usage };
        self.include_usage.then(|| self.frame(members, keep))
    }

    fn frame(&self, members: &[Member<'_>], keep: Keep) -> Bytes {
        let bytes: usize = members.iter().map(|(name, raw)| name.len() + raw.get().len() + 8).sum();
        let mut out = Vec::with_capacity(self.head.len() + bytes + 32);
        out.extend_from_slice(PREFIX);
        self.begin(&mut out);
        for (name, raw) in members {
            match (name.as_ref(), keep) {
                ("id" | "model", _) => {}
                ("usage", Keep::Choices) => {
                    if self.include_usage {
                        out.extend_from_slice(b",\"usage\":null");
                    }
                }
                ("choices", Keep::Usage) => out.extend_from_slice(b",\"choices\":[]"),
                _ => {
                    push_member(&mut out, &(Cow::Borrowed(name), raw));
                }
            }
        }
        out.extend_from_slice(b"}\n\n");
        one_line(&mut out);
        out.into()
    }

    /// The model's name as the client gave it.
    pub fn model(&self) -> &str {
        &self.model
    }
}

/// Data that an upstream sent in several lines is written as one: between JSON tokens a space is as good as a break.
fn one_line(frame: &mut [u8]) {
    let Some(end) = frame.len().checked_sub(2) else { return };
    for byte in frame.iter_mut().take(end) {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// What of a chunk is written.
#[derive(Debug, Clone, Copy)]
enum Keep {
    Choices,
    Usage,
    ChoicesAndUsage,
}

impl Chunk {
    fn read(&mut self, choices: Vec<Choice<'_>>) {
        for choice in choices {
            let message = choice.message.unwrap_or_default();
            self.delivered.add_piece(message.text_bytes());
            if choice.index == 0 {
                self.text.push_str(&message.content.unwrap_or_default().0);
            }
            if let Some(reason) = choice.finish_reason {
                self.finished = self.finished.saturating_add(1);
                if choice.index == 0 || self.finish_reason.is_none() {
                    self.finish_reason = Some(reason.0.into_owned());
                }
            }
        }
    }

    /// The JSON inside the frame.
    pub fn json(&self) -> Option<Bytes> {
        let frame = self.frame.as_ref()?;
        let end = frame.len().checked_sub(2)?;
        (PREFIX.len() <= end).then(|| frame.slice(PREFIX.len()..end))
    }
}

#[cfg(test)]
mod tests {
    use events_model::Tokens;
    use serde_json::{Value, json};

    use super::*;

    fn value(frame: &[u8]) -> Value {
        let data = frame.strip_prefix(b"data: ").unwrap().strip_suffix(b"\n\n").unwrap();
        assert!(!data.contains(&b'\n'));
        serde_json::from_slice(data).unwrap()
    }

    fn naming(include_usage: bool) -> Naming {
        Naming::new("r-1", "our-model", include_usage)
    }

    const TEXT_CHUNK: &str = r#"{"id":"up","object":"chat.completion.chunk","created":7,"model":"secret",
        "system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":"Grüß \u00e9"},"logprobs":null,
        "finish_reason":null}],"usage":null,"x":1.10}"#;

    #[test]
    fn a_chunk_is_renamed_and_otherwise_kept() {
        let chunk = naming(true).chunk(TEXT_CHUNK.as_bytes()).unwrap();
        assert_eq!(chunk.text, "Grüß é");
        assert_eq!(chunk.delivered, Delivered { pieces: 1, bytes: 9 });
        let frame = chunk.frame.clone().unwrap();
        assert!(frame.windows(8).any(|bytes| bytes == b"\"x\":1.10"), "numbers keep their digits");
        let got = value(&frame);
        assert_eq!(
            (&got["id"], &got["model"], &got["created"]),
            (&json!("chatcmpl-r-1"), &json!("our-model"), &json!(7))
        );
        assert_eq!(got["choices"][0]["delta"]["content"], "Grüß é");
        assert_eq!(got.get("usage"), Some(&Value::Null));
        assert_eq!(serde_json::from_slice::<Value>(&chunk.json().unwrap()).unwrap(), got);
        let unasked = naming(false).chunk(TEXT_CHUNK.as_bytes()).unwrap();
        assert_eq!(value(&unasked.frame.unwrap()).get("usage"), None);
    }

    #[test]
    fn the_usage_chunk_is_kept_and_forwarded_only_if_asked_for() {
        let data =
            br#"{"id":"u","model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,
            "prompt_tokens_details":{"cached_tokens":1}}}"#;
        let usage = Usage { prompt: Tokens(3), completion: Tokens(5) };
        let unasked = naming(false).chunk(data).unwrap();
        assert_eq!((unasked.frame, unasked.usage), (None, Some((usage, None))));
        let asked = naming(true).chunk(data).unwrap();
        assert_eq!(asked.frame, None);
        let got = value(&asked.usage.unwrap().1.unwrap());
        assert_eq!(got["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
        assert_eq!(got["id"], "chatcmpl-r-1");
    }

    #[test]
    fn usage_beside_choices_is_moved_to_a_chunk_of_its_own() {
        let data = br#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],
            "usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        let chunk = naming(true).chunk(data).unwrap();
        assert_eq!((chunk.finish_reason.as_deref(), chunk.finished), (Some("stop"), 1));
        assert_eq!(value(&chunk.frame.unwrap())["usage"], Value::Null);
        let usage = value(&chunk.usage.unwrap().1.unwrap());
        assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(2)));
    }

    #[test]
    fn tool_calls_refusals_and_reasoning_count_as_text() {
        let data = br#"{"choices":[
            {"index":1,"delta":{"tool_calls":[{"index":0,"function":{"name":"ab","arguments":"{}"}}]}},
            {"index":0,"delta":{"refusal":"no","reasoning_content":"hm"},"finish_reason":null}]}"#;
        let chunk = naming(false).chunk(data).unwrap();
        assert_eq!(chunk.delivered, Delivered { pieces: 2, bytes: 8 });
        assert_eq!(chunk.text, "");
    }

    #[test]
    fn errors_in_the_stream_are_seen_and_anything_else_is_malformed() {
        let chunk = naming(false).chunk(br#"{"error":{"message":"boom"}}"#).unwrap();
        assert_eq!(chunk.error.as_deref(), Some(r#"{"message":"boom"}"#));
        for data in
            [&b"{}"[..], b"[]", b"{\"choices\":1}", b"{\"choices\":[", b"\xff", b"{\"choices\":[],\"choices\":[]}"]
        {
            assert!(naming(false).chunk(data).is_err(), "{data:?}");
        }
    }

    #[test]
    fn our_own_chunks_end_a_stream() {
        let naming = naming(true);
        let end = value(&naming.finish_frame(9, 1, "length"));
        assert_eq!((&end["choices"][0]["finish_reason"], &end["created"]), (&json!("length"), &json!(9)));
        let usage = value(&naming.final_usage_frame(9, Usage { prompt: Tokens(2), completion: Tokens(3) }));
        assert_eq!(usage["usage"], json!({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}));
        assert_eq!(usage["object"], "chat.completion.chunk");
    }
}
