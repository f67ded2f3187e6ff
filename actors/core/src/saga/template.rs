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
}

/// Splits a text at its expressions.
///
/// # Errors
/// An expression has no end.
pub fn split(text: &str) -> Result<Vec<Part>, Invalid> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    let count = |text: &str| u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
    while let Some((before, after)) = rest.split_once("${") {
        if let Some(escaped) = before.strip_suffix('$') {
            plain.push_str(escaped);
            plain.push_str("${");
            rest = after;
            continue;
        }
        plain.push_str(before);
        let offset = count(text).saturating_sub(count(after));
        let Some(end) = closing(after) else {
            return Err(Invalid { message: "${ has no }".to_owned(), offset: offset.saturating_sub(2) });
        };
        if !plain.is_empty() {
            parts.push(Part::Plain(std::mem::take(&mut plain)));
        }
        let (expression, behind) = after.split_at(end);
        parts.push(Part::Expression { text: expression.to_owned(), offset });
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
    for part in &parts {
        match part {
            Part::Plain(plain) => rendered.push_str(plain),
            Part::Expression { text, .. } => match value_of(text)? {
                Value::String(text) => rendered.push_str(&text),
                value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                    rendered.push_str(&value.to_string())
                }
            },
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
