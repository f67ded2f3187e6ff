//! Strict JSON: a tree that borrows its texts, refuses duplicate keys, and is bounded in depth and size.
//!
//! `serde_json::Value` keeps the last of two equal keys silently, so that a proxy and its upstream could read two
//! different requests; this tree refuses them. Members of the top level are also kept as the bytes they came in.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    fmt,
};

use bytes::Bytes;
use serde::{
    Deserializer, Serialize,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// Deepest nesting of arrays and objects, the top level included.
pub(crate) const DEPTH_MAX: usize = 64;
/// Most values in one document: a tree takes some 50 bytes for each, so this bounds memory.
pub(crate) const VALUES_MAX: usize = 262_144;
/// Longest piece of a client's text that an error repeats, characters.
const ECHO_CHARS_MAX: usize = 80;

/// Says what is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not JSON, or a number that no 64-bit float holds.
    Syntax(String),
    /// The top level is no object.
    NotAnObject,
    /// Two members of one object have the same name.
    DuplicateKey(String),
    /// Nested deeper than `DEPTH_MAX`.
    TooDeep,
    /// More than `VALUES_MAX` values.
    TooManyValues,
}

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node<'a> {
    Null,
    Bool(bool),
    Integer(i64),
    /// Not an integer, or one that does not fit 64 bits.
    Decimal(f64),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

/// One member of the top level: its name and the bytes of its value.
pub(crate) type Member<'a> = (Cow<'a, str>, &'a RawValue);

/// Cuts a client's text for use in an error.
pub(crate) fn echo(text: &str) -> String {
    text.chars().take(ECHO_CHARS_MAX).collect()
}

/// Serialises one of our own structures.
pub(crate) fn bytes_of(value: &impl Serialize) -> Bytes {
    // Structures of texts and numbers always serialise; an empty body is the harmless answer to the impossible.
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// Appends a text as a JSON string.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &str) {
    // Writing a text into memory does not fail.
    serde_json::to_writer(out, text).ok();
}

/// Splits the top-level object into its members without looking into their values.
pub(crate) fn members(text: &str) -> Result<Vec<Member<'_>>, Fault> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let context = Context::default();
    let members = deserializer.deserialize_any(MembersVisitor { context: &context }).and_then(|members| {
        deserializer.end()?;
        Ok(members)
    });
    members.map_err(|error| context.fault(&error))
}

/// Parses the values of one document; the bound on their number holds for all of them together.
#[derive(Debug)]
pub(crate) struct Context {
    values_left: Cell<usize>,
    fault: RefCell<Option<Fault>>,
}

impl Default for Context {
    fn default() -> Self {
        Self { values_left: Cell::new(VALUES_MAX), fault: RefCell::new(None) }
    }
}

impl Context {
    /// Parses a member of the top level.
    pub(crate) fn parse<'a>(&self, raw: &'a RawValue) -> Result<Node<'a>, Fault> {
        let mut deserializer = serde_json::Deserializer::from_str(raw.get());
        NodeSeed { context: self, depth: 2 }.deserialize(&mut deserializer).map_err(|error| self.fault(&error))
    }

    fn refuse<E: serde::de::Error>(&self, fault: Fault) -> E {
        self.fault.replace(Some(fault));
        E::custom("refused")
    }

    fn fault(&self, error: &serde_json::Error) -> Fault {
        self.fault.take().unwrap_or_else(|| Fault::Syntax(error.to_string()))
    }

    fn check_keys<'k, E: serde::de::Error>(&self, keys: impl Iterator<Item = &'k str>) -> Result<(), E> {
        let mut keys: Vec<_> = keys.collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair.first() == pair.last()) {
            Some(pair) => Err(self.refuse(Fault::DuplicateKey(echo(pair.first().copied().unwrap_or_default())))),
            None => Ok(()),
        }
    }
}

struct MembersVisitor<'c> {
    context: &'c Context,
}

impl<'de> Visitor<'de> for MembersVisitor<'_> {
    type Value = Vec<Member<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(16);
        while let Some(key) = map.next_key_seed(TextSeed)? {
            members.push((key, map.next_value::<&'de RawValue>()?));
        }
        self.context.check_keys(members.iter().map(|(key, _)| key.as_ref()))?;
        Ok(members)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Self::Value, E> {
        Err(self.context.refuse(Fault::NotAnObject))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Err(self.context.refuse(Fault::NotAnObject))
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Self::Value, E> {
        Err(self.context.refuse(Fault::NotAnObject))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Err(self.context.refuse(Fault::NotAnObject))
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(self.context.refuse(Fault::NotAnObject))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Err(self.context.refuse(Fault::NotAnObject))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.context.refuse(Fault::NotAnObject))
    }
}

struct TextSeed;

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for TextSeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[derive(Clone, Copy)]
struct NodeSeed<'c> {
    context: &'c Context,
    depth: usize,
}

impl NodeSeed<'_> {
    fn inner<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth > DEPTH_MAX {
            return Err(self.context.refuse(Fault::TooDeep));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for NodeSeed<'_> {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.context.values_left.get().checked_sub(1) {
            Some(left) => self.context.values_left.set(left),
            None => return Err(self.context.refuse(Fault::TooManyValues)),
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeSeed<'_> {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Node::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(value).map_or(Node::Decimal(value as f64), Node::Integer))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
        if value.is_finite() { Ok(Node::Decimal(value)) } else { Err(E::custom("number out of range")) }
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let inner = self.inner()?;
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element_seed(inner)? {
            nodes.push(node);
        }
        Ok(Node::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let inner = self.inner()?;
        let mut members = Vec::new();
        while let Some(key) = map.next_key_seed(TextSeed)? {
            members.push((key, map.next_value_seed(inner)?));
        }
        self.context.check_keys(members.iter().map(|(key, _): &(Cow<'_, str>, Node<'_>)| key.as_ref()))?;
        Ok(Node::Object(members))
    }
}

impl Node<'_> {
    /// What it is, in words for an error.
    pub(crate) const fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Decimal(_) => "a decimal number",
            Self::Text(_) => "a string",
            Self::List(_) => "an array",
            Self::Object(_) => "an object",
        }
    }

    /// The text, if it is one.
    pub(crate) fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The member of this name, unless it is absent or null.
    pub(crate) fn member(&self, name: &str) -> Option<&Self> {
        let Self::Object(members) = self else { return None };
        members.iter().find(|(key, _)| key == name).map(|(_, node)| node).filter(|node| **node != Self::Null)
    }

    /// An upper bound of the bytes of this value as compact JSON.
    pub(crate) fn json_bytes(&self) -> u64 {
        /// The longest number that is printed, bytes.
        const NUMBER_BYTES: u64 = 25;
        match self {
            Self::Null | Self::Bool(_) => 5,
            Self::Integer(_) | Self::Decimal(_) => NUMBER_BYTES,
            Self::Text(text) => text_bytes(text),
            Self::List(nodes) => nodes.iter().map(|node| node.json_bytes() + 1).sum::<u64>() + 2,
            Self::Object(members) => {
                members.iter().map(|(key, node)| text_bytes(key) + 2 + node.json_bytes()).sum::<u64>() + 2
            }
        }
    }
}

/// Bytes of a text as a JSON string.
fn text_bytes(text: &str) -> u64 {
    let bytes = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        0..0x20 => 6,
        _ => 1,
    });
    bytes.sum::<u64>() + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(), Fault> {
        let context = Context::default();
        for (_, raw) in members(text)? {
            context.parse(raw)?;
        }
        Ok(())
    }

    #[test]
    fn duplicate_keys_are_found_at_every_depth_and_through_escapes() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"b":2,"a":3}]}"#, r#"{"x":{"a":1,"\u0061":2}}"#] {
            assert_eq!(parse(text), Err(Fault::DuplicateKey("a".to_owned())), "{text}");
        }
        assert_eq!(parse(r#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}"#), Ok(()));
    }

    #[test]
    fn nesting_is_allowed_to_the_limit_and_no_further() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(parse(&nested(DEPTH_MAX - 1)), Ok(()));
        assert_eq!(parse(&nested(DEPTH_MAX)), Err(Fault::TooDeep));
        assert_eq!(parse(&nested(1_000_000)), Err(Fault::TooDeep));
    }

    #[test]
    fn the_number_of_values_is_bounded() {
        let list = |count: usize| format!("{{\"a\":[{}0]}}", "0,".repeat(count - 1));
        assert_eq!(parse(&list(VALUES_MAX - 1)), Ok(()));
        assert_eq!(parse(&list(VALUES_MAX)), Err(Fault::TooManyValues));
    }

    #[test]
    fn what_is_no_object_or_no_json_is_told_apart() {
        for text in ["[]", "1", "-1", "1.5", "\"x\"", "null", "true", "[{}]"] {
            assert_eq!(parse(text), Err(Fault::NotAnObject), "{text}");
        }
        for text in ["", "{", "{\"a\":}", "{\"a\":NaN}", "{\"a\":1e400}", "{\"a\":01}", "{} {}", "{\"a\":\"\\ud800\"}"]
        {
            assert!(matches!(parse(text), Err(Fault::Syntax(_))), "{text}: {:?}", parse(text));
        }
    }

    #[test]
    fn the_bound_of_printed_bytes_holds_and_is_tight_for_texts() {
        let context = Context::default();
        for (value, slack) in [
            (r#""a\"\\\n\t\r\u0001é""#, 0),
            (r#"{"k\"":"\"\"\"\""}"#, 1),
            ("-9223372036854775808", 5),
            ("1.7976931348623157e308", 3),
            ("[null,true,false,[],{}]", 3),
        ] {
            let text = format!("{{\"a\":{value}}}");
            let bound = context.parse(members(&text).unwrap()[0].1).unwrap().json_bytes();
            let printed = serde_json::from_str::<serde_json::Value>(value).unwrap().to_string().len() as u64;
            assert!((printed..=printed + slack).contains(&bound), "{value}: {printed} bytes, bound {bound}");
        }
    }

    #[test]
    fn texts_without_escapes_are_borrowed() {
        let context = Context::default();
        let text = r#"{"a":"plain"}"#;
        let raw = members(text).unwrap();
        assert!(matches!(context.parse(raw[0].1).unwrap(), Node::Text(Cow::Borrowed("plain"))));
    }
}
