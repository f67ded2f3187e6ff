//! Templates: JSON in which texts hold expressions. A text that is exactly `${expr}` is the expression's value with its
//! type; `${expr}` inside other text is put in as text; `$${` is a plain `${`.

use serde_json::Value;

use super::{
    expression::{Failure, Invalid},
    tree::{Content, Node},
};

/// Largest rendered value, bytes of JSON.
pub const RENDERED_BYTES_MAX: usize = 64 * 1024;

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As it is.
    Plain(String),
    /// An expression, and how many characters are before it.
    Expression {
        /// The expression.
        text: String,
        /// Characters before it.
        offset: u32,
    },
}

/// Why a template has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An expression has none.
    #[error("${{{expression}}}: {failure}")]
    Expression {
        /// Which.
        expression: String,
        /// Why.
        failure: Failure,
    },
    /// It is too long.
    #[error("it is longer than {RENDERED_BYTES_MAX} bytes")]
    TooLong,
    /// It has a blank, a control character, or a segment `.` or `..` that would lead elsewhere.
    #[error("it is not the text of a URL")]
    NoUrl,
}

/// Splits a text at its expressions.
///
/// # Errors
/// An expression has no end.
pub fn split(text: &str) -> Result<Vec<Part>, Invalid> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let (mut rest, mut offset) = (text, 0_u32);
    let count = |text: &str| u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
    while let Some((before, after)) = rest.split_once("${") {
        offset = offset.saturating_add(count(before)).saturating_add(2);
        if let Some(escaped) = before.strip_suffix('$') {
            plain.push_str(escaped);
            plain.push_str("${");
            rest = after;
            continue;
        }
        plain.push_str(before);
        let Some(end) = closing(after) else {
            return Err(Invalid { message: "${ has no }".to_owned(), offset: offset.saturating_sub(2) });
        };
        if !plain.is_empty() {
            parts.push(Part::Plain(std::mem::take(&mut plain)));
        }
        let (expression, behind) = after.split_at(end);
        parts.push(Part::Expression { text: expression.to_owned(), offset });
        offset = offset.saturating_add(count(expression)).saturating_add(1);
        rest = behind.get(1..).unwrap_or_default();
    }
    plain.push_str(rest);
    if !plain.is_empty() || parts.is_empty() {
        parts.push(Part::Plain(plain));
    }
    Ok(parts)
}

/// Where the brace is that ends an expression: braces nest, quotes hide them.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0_u32, None, false);
    for (index, letter) in text.char_indices() {
        match (quote, letter) {
            (Some(_), '\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(open), letter) if open == letter && !escaped => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(letter),
            (None, '{') => depth = depth.saturating_add(1),
            (None, '}') if depth == 0 => return Some(index),
            (None, '}') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        escaped = false;
    }
    None
}

/// Renders the template of a URL: what is put into it is percent-encoded, except at the very start, where it says which
/// service. So no value can add a segment, a query or another host.
///
/// # Errors
/// An expression has no value, the whole is too long, or it is not a URL's text.
pub fn render_url(text: &str, evaluate: &mut impl FnMut(&str) -> Result<Value, Failure>) -> Result<String, Error> {
    let url = match render_parts(text, evaluate, &|index, text| if index == 0 { text } else { encoded(&text) })? {
        Value::String(text) => text,
        value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            value.to_string()
        }
    };
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let climbs = path.split('/').any(|segment| matches!(segment, "." | ".."));
    if climbs || url.is_empty() || url.chars().any(|letter| letter.is_control() || letter == ' ') {
        return Err(Error::NoUrl);
    }
    Ok(url)
}

/// Everything but RFC 3986's unreserved letters as `%XX`.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Renders a template; `evaluate` gives the values of expressions.
///
/// # Errors
/// An expression has no value, or the whole is too long.
pub fn render(node: &Node, evaluate: &mut impl FnMut(&str) -> Result<Value, Failure>) -> Result<Value, Error> {
    let mut left = RENDERED_BYTES_MAX;
    render_within(node, evaluate, &mut left)
}

fn render_within(
    node: &Node,
    evaluate: &mut impl FnMut(&str) -> Result<Value, Failure>,
    left: &mut usize,
) -> Result<Value, Error> {
    let value = match &node.content {
        Content::Text(text) => render_text(text, evaluate)?,
        Content::List(nodes) => {
            let values = nodes.iter().map(|node| render_within(node, evaluate, left)).collect::<Result<_, _>>()?;
            spend(left, 2)?;
            return Ok(Value::Array(values));
        }
        Content::Map(entries) => {
            let mut values = serde_json::Map::new();
            for (key, node) in entries {
                spend(left, key.text.len().saturating_add(4))?;
                values.insert(key.text.clone(), render_within(node, evaluate, left)?);
            }
            return Ok(Value::Object(values));
        }
        Content::Null | Content::Bool(_) | Content::Int(_) | Content::Float(_) => node.to_json(),
    };
    let size = match &value {
        Value::String(text) => text.len(),
        Value::Array(_) | Value::Object(_) => value.to_string().len(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    };
    spend(left, size)?;
    Ok(value)
}

fn spend(left: &mut usize, size: usize) -> Result<(), Error> {
    *left = left.checked_sub(size).ok_or(Error::TooLong)?;
    Ok(())
}

fn render_text(text: &str, evaluate: &mut impl FnMut(&str) -> Result<Value, Failure>) -> Result<Value, Error> {
    render_parts(text, evaluate, &|_, text| text)
}

/// Puts a text together; `put` makes of a value what is put in at that piece.
fn render_parts(
    text: &str,
    evaluate: &mut impl FnMut(&str) -> Result<Value, Failure>,
    put: &impl Fn(usize, String) -> String,
) -> Result<Value, Error> {
    if !text.contains("${") {
        return Ok(Value::String(text.to_owned()));
    }
    let invalid = |failure: Invalid| Error::Expression { expression: String::new(), failure: failure.into() };
    let parts = split(text).map_err(invalid)?;
    let mut value_of = |expression: &str| {
        let shown = || expression.chars().take(80).collect();
        evaluate(expression).map_err(|failure| Error::Expression { expression: shown(), failure })
    };
    if let [Part::Expression { text, .. }] = parts.as_slice() {
        return value_of(text);
    }
    let mut rendered = String::new();
    for (index, part) in parts.iter().enumerate() {
        match part {
            Part::Plain(plain) => rendered.push_str(plain),
            Part::Expression { text, .. } => {
                let text = match value_of(text)? {
                    Value::String(text) => text,
                    value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                        value.to_string()
                    }
                };
                rendered.push_str(&put(index, text));
            }
        }
        if rendered.len() > RENDERED_BYTES_MAX {
            return Err(Error::TooLong);
        }
    }
    Ok(Value::String(rendered))
}

/// All expressions in a template, with the node they stand in.
pub fn expressions<'n>(node: &'n Node, found: &mut impl FnMut(&'n Node, Result<Part, Invalid>)) {
    match &node.content {
        Content::Text(text) => match split(text) {
            Ok(parts) => parts.into_iter().for_each(|part| found(node, Ok(part))),
            Err(invalid) => found(node, Err(invalid)),
        },
        Content::List(nodes) => nodes.iter().for_each(|node| expressions(node, found)),
        Content::Map(entries) => entries.iter().for_each(|(_, node)| expressions(node, found)),
        Content::Null | Content::Bool(_) | Content::Int(_) | Content::Float(_) => {}
    }
}
