//! A YAML or JSON text as a tree in which every node knows its line and column.
//!
//! Invariants: time and memory are bounded by the text's length, which is bounded by `DEFINITION_BYTES_MAX`; anchors,
//! aliases, tags, merge keys, duplicate keys and second documents are refused, so that a definition says what it says
//! and cannot unfold. Scalars are typed by the core schema of YAML 1.2 alone: `yes` and `on` are texts.

use events_model::saga::Json;
use serde_json::Value;
use serde_saphyr::granit_parser::{Event, Marker, Options, Parser, ScalarStyle};

/// Longest definition, bytes.
pub const DEFINITION_BYTES_MAX: usize = 256 * 1024;
/// Deepest nesting of lists and maps.
pub const DEPTH_MAX: usize = 64;

/// Where something is in a text, both from 1; 0 = not from a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Column, characters.
    pub column: u32,
}

/// What is wrong with a definition, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Finding {
    /// Where.
    pub at: Place,
    /// What.
    pub message: String,
}

/// A key of a map.
#[derive(Debug, Clone)]
pub struct Key {
    /// The key.
    pub text: String,
    /// Where it stands.
    pub at: Place,
}

/// A value and its place.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// The value.
    pub content: Content,
    /// Where it begins.
    pub at: Place,
    /// How many characters of it are before its text, a quote at most; `None` = its lines are not those of the text.
    pub inset: Option<u32>,
}

/// A value.
#[derive(Debug, Clone, Default)]
pub enum Content {
    /// Nothing.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number; finite.
    Float(f64),
    /// A text.
    Text(String),
    /// Values.
    List(Vec<Node>),
    /// Values by key, in the order of the text; no key twice.
    Map(Vec<(Key, Node)>),
}

/// Places say where a value came from, not what it is.
impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.to_json() == other.to_json()
    }
}

impl Node {
    /// The value without its places; keys in ascending order.
    pub fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Int(value) => Value::from(*value),
            Content::Float(value) => Value::from(*value),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(nodes) => Value::Array(nodes.iter().map(Self::to_json).collect()),
            Content::Map(entries) => {
                Value::Object(entries.iter().map(|(key, node)| (key.text.clone(), node.to_json())).collect())
            }
        }
    }

    /// A tree without places.
    pub fn from_json(value: &Value) -> Self {
        let content = match value {
            Value::Null => Content::Null,
            Value::Bool(value) => Content::Bool(*value),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Content::Int(whole),
                None => Content::Float(number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => Content::Text(text.clone()),
            Value::Array(values) => Content::List(values.iter().map(Self::from_json).collect()),
            Value::Object(entries) => Content::Map(
                entries
                    .iter()
                    .map(|(key, value)| (Key { text: key.clone(), at: Place::default() }, Self::from_json(value)))
                    .collect(),
            ),
        };
        Self { content, at: Place::default(), inset: None }
    }

    /// The value under a key of a map.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|(found, _)| found.text == key).map(|(_, node)| node),
            Content::Null
            | Content::Bool(_)
            | Content::Int(_)
            | Content::Float(_)
            | Content::Text(_)
            | Content::List(_) => None,
        }
    }

    /// What it is, in a word.
    pub const fn what(&self) -> &'static str {
        match &self.content {
            Content::Null => "nothing",
            Content::Bool(_) => "true or false",
            Content::Int(_) | Content::Float(_) => "a number",
            Content::Text(_) => "a text",
            Content::List(_) => "a list",
            Content::Map(_) => "a map",
        }
    }
}

/// A value as compact JSON, keys in ascending order.
pub fn compact(value: &Value) -> Json {
    Json::from(value.to_string())
}

/// Reads a text.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read(text: &str) -> Result<Node, Finding> {
    if text.len() > DEFINITION_BYTES_MAX {
        let (size, at) = (text.len(), Place { line: 1, column: 1 });
        let message = format!("a definition has at most {DEFINITION_BYTES_MAX} bytes, this one has {size}");
        return Err(Finding { at, message });
    }
    let mut options = Options::default();
    (options.flow_nesting_limit, options.block_nesting_limit) = (DEPTH_MAX, DEPTH_MAX);
    options.disallow_directives = true;
    options.set_emit_comments(false);
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| Finding { at: place(error.marker()), message: error.info() })?;
        builder.take(event, place(&span.start))?;
    }
    builder
        .root
        .ok_or_else(|| Finding { at: Place { line: 1, column: 1 }, message: "there is nothing in it".to_owned() })
}

fn place(marker: &Marker) -> Place {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Place { line: number(marker.line()), column: number(marker.col()).saturating_add(1) }
}

/// A list or map whose end is still to come, with the key that waits for its value.
struct Open {
    node: Node,
    key: Option<Key>,
}

#[derive(Default)]
struct Builder {
    stack: Vec<Open>,
    root: Option<Node>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Place) -> Result<(), Finding> {
        let refuse = |message: &str| Err(Finding { at, message: message.to_owned() });
        match event {
            Event::Alias(_) | Event::UnresolvedAlias(_) | Event::Anchor(..) => refuse("aliases are not allowed"),
            Event::Scalar(_, _, anchor, _) | Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _)
                if anchor != 0 =>
            {
                refuse("anchors are not allowed")
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, _, Some(_))
            | Event::MappingStart(_, _, Some(_)) => refuse("tags are not allowed"),
            Event::Scalar(text, style, ..) => {
                let (content, inset) = match style {
                    ScalarStyle::Plain => (plain(&text), Some(0)),
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                        (Content::Text(text.into_owned()), Some(1))
                    }
                    ScalarStyle::Literal | ScalarStyle::Folded => (Content::Text(text.into_owned()), None),
                };
                self.add(Node { content, at, inset })
            }
            Event::SequenceStart(..) => self.open(Content::List(Vec::new()), at),
            Event::MappingStart(..) => self.open(Content::Map(Vec::new()), at),
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(open) => self.add(open.node),
                None => Ok(()),
            },
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd => Ok(()),
            // The parser's list may grow; what it says then is refused.
            _ => refuse("this is not allowed"),
        }
    }

    fn open(&mut self, content: Content, at: Place) -> Result<(), Finding> {
        if self.stack.len() >= DEPTH_MAX {
            return Err(Finding { at, message: format!("nested deeper than {DEPTH_MAX}") });
        }
        if let Some(Open { node: Node { content: Content::Map(_), .. }, key: None }) = self.stack.last() {
            return Err(Finding { at, message: "a key must be a text".to_owned() });
        }
        self.stack.push(Open { node: Node { content, at, inset: None }, key: None });
        Ok(())
    }

    fn add(&mut self, node: Node) -> Result<(), Finding> {
        let at = node.at;
        let Some(open) = self.stack.last_mut() else {
            if self.root.is_some() {
                return Err(Finding { at, message: "there must be one document".to_owned() });
            }
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.node.content, open.key.take()) {
            (Content::Map(entries), Some(key)) => entries.push((key, node)),
            (Content::Map(entries), None) => {
                let text = match node.content {
                    Content::Text(text) => text,
                    // A key is a text whatever it looks like: `404:` is a key of a map.
                    Content::Int(number) => number.to_string(),
                    Content::Bool(value) => value.to_string(),
                    Content::Null | Content::Float(_) | Content::List(_) | Content::Map(_) => {
                        return Err(Finding { at, message: "a key must be a text".to_owned() });
                    }
                };
                if text == "<<" {
                    return Err(Finding { at, message: "merge keys are not allowed".to_owned() });
                }
                // Maps are short; a quadratic search would cost seconds at the bound, so long ones are refused.
                if entries.len() >= MAP_LEN_MAX {
                    return Err(Finding { at, message: format!("a map has at most {MAP_LEN_MAX} keys") });
                }
                if entries.iter().any(|(key, _)| key.text == text) {
                    return Err(Finding { at, message: format!("{text} is there twice") });
                }
                open.key = Some(Key { text, at });
            }
            (Content::List(nodes), _) => nodes.push(node),
            (Content::Null | Content::Bool(_) | Content::Int(_) | Content::Float(_) | Content::Text(_), _) => {}
        }
        Ok(())
    }
}

/// Most keys of one map.
pub const MAP_LEN_MAX: usize = 1_024;

/// The core schema of YAML 1.2.
fn plain(text: &str) -> Content {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Content::Null,
        "true" | "True" | "TRUE" => return Content::Bool(true),
        "false" | "False" | "FALSE" => return Content::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return Content::Text(text.to_owned());
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(whole) = text.parse()
    {
        return Content::Int(whole);
    }
    let number = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'-' | b'+'));
    match text.parse::<f64>() {
        Ok(value) if number && value.is_finite() => Content::Float(value),
        Ok(_) | Err(_) => Content::Text(text.to_owned()),
    }
}
