//! Checks of JSON values by declared rules, with errors in OpenAI's words, codes and parameter paths.
//!
//! A rule is data: `parameter` declares the whole API as one table. A member that no rule names is refused, and an
//! optional member may be null, which means absent.

use std::fmt;

use super::{
    error::ApiError,
    json::{Node, echo},
};

/// What a value must be.
#[derive(Debug)]
pub(super) enum Rule {
    Boolean,
    Integer {
        min: i64,
        max: i64,
    },
    Decimal {
        min: f64,
        max: f64,
    },
    Text {
        chars_max: usize,
    },
    /// 1..=`NAME_CHARS_MAX` of `a-z`, `A-Z`, `0-9`, `_` and `-`.
    Name,
    OneOf(&'static [&'static str]),
    List {
        min: usize,
        max: usize,
        item: &'static Rule,
    },
    /// An object with free keys.
    Map {
        entries_max: usize,
        key_chars_max: usize,
        value: &'static Rule,
    },
    /// An object with these members and no others.
    Object(&'static [Field]),
    /// An object whose members depend on the text of one of them.
    ByKey {
        key: &'static str,
        variants: &'static [(&'static str, Variant)],
    },
    /// The first for plain values, the second for arrays and objects.
    Either(&'static Rule, &'static Rule),
    /// An object that is passed on as it is, such as a JSON schema.
    AnyObject,
    /// Known to OpenAI, refused here.
    Unsupported {
        why: &'static str,
    },
}

/// A member of an object.
#[derive(Debug)]
pub(super) struct Field {
    name: &'static str,
    rule: &'static Rule,
    required: bool,
}

/// What an object with one value of its key must be.
#[derive(Debug)]
pub(super) enum Variant {
    /// These members besides the key.
    Fields(&'static [Field]),
    /// Known to OpenAI, refused here.
    Unsupported { why: &'static str },
}

/// Longest name of a function, a tool or a schema, characters.
const NAME_CHARS_MAX: usize = 64;

/// The place of a value in the request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Path<'a> {
    Top(&'a str),
    Member(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top(name) => f.write_str(&echo(name)),
            Self::Member(parent, name) => write!(f, "{parent}.{}", echo(name)),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl Path<'_> {
    pub(super) fn error(&self, code: &str, message: impl Into<String>) -> ApiError {
        ApiError::bad_request(Some(code), Some(self.to_string()), message)
    }

    fn invalid(&self, code: &str, what: &str, expected: impl fmt::Display, got: impl fmt::Display) -> ApiError {
        self.error(code, format!("Invalid '{self}': {what}. Expected {expected}, but got {got} instead."))
    }

    fn wrong_type(&self, expected: &str, node: &Node<'_>) -> ApiError {
        let got = node.type_name();
        let message = format!("Invalid type for '{self}': expected {expected}, but got {got} instead.");
        self.error("invalid_type", message)
    }

    pub(super) fn missing(&self) -> ApiError {
        self.error("missing_required_parameter", format!("Missing required parameter: '{self}'."))
    }
}

impl Field {
    pub(super) const fn required(name: &'static str, rule: &'static Rule) -> Self {
        Self { name, rule, required: true }
    }

    pub(super) const fn optional(name: &'static str, rule: &'static Rule) -> Self {
        Self { name, rule, required: false }
    }

    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    /// Checks the value of this member; null stands for absent where absent is allowed.
    pub(super) fn check(&self, node: &Node<'_>, path: Path<'_>) -> Result<(), ApiError> {
        if *node == Node::Null && !self.required { Ok(()) } else { self.rule.check(node, path) }
    }

    pub(super) const fn is_required(&self) -> bool {
        self.required
    }
}

impl Rule {
    /// Checks a value.
    pub(super) fn check(&self, node: &Node<'_>, path: Path<'_>) -> Result<(), ApiError> {
        match self {
            Self::Boolean if matches!(node, Node::Bool(_)) => Ok(()),
            Self::Boolean => Err(path.wrong_type("a boolean", node)),
            Self::Integer { min, max } => check_integer(node, path, *min, *max),
            Self::Decimal { min, max } => check_decimal(node, path, *min, *max),
            Self::Text { chars_max } => check_text(node, path, *chars_max).map(|_| ()),
            Self::Name => check_name(node, path),
            Self::OneOf(values) => check_one_of(node, path, values),
            Self::List { min, max, item } => check_list(node, path, *min, *max, item),
            Self::Map { entries_max, key_chars_max, value } => {
                check_map(node, path, *entries_max, *key_chars_max, value)
            }
            Self::Object(fields) => check_fields(object(node, path)?, path, None, fields),
            Self::ByKey { key, variants } => check_by_key(node, path, key, variants),
            Self::Either(plain, nested) => match node {
                Node::List(_) | Node::Object(_) => nested.check(node, path),
                Node::Null | Node::Bool(_) | Node::Integer(_) | Node::Decimal(_) => {
                    let expected = format!("{} or {}", plain.type_name(), nested.type_name());
                    Err(path.wrong_type(&expected, node))
                }
                Node::Text(_) => plain.check(node, path),
            },
            Self::AnyObject => object(node, path).map(|_| ()),
            Self::Unsupported { why } => {
                Err(path.error("unsupported_parameter", format!("Unsupported parameter: '{path}': {why}.")))
            }
        }
    }

    const fn type_name(&self) -> &'static str {
        match self {
            Self::Boolean => "a boolean",
            Self::Integer { .. } => "an integer",
            Self::Decimal { .. } => "a number",
            Self::Text { .. } | Self::Name | Self::OneOf(_) => "a string",
            Self::List { .. } => "an array",
            Self::Map { .. } | Self::Object(_) | Self::ByKey { .. } | Self::AnyObject => "an object",
            Self::Either(plain, _) => plain.type_name(),
            Self::Unsupported { .. } => "nothing",
        }
    }
}

type Object<'n, 'a> = &'n [(std::borrow::Cow<'a, str>, Node<'a>)];

fn object<'n, 'a>(node: &'n Node<'a>, path: Path<'_>) -> Result<Object<'n, 'a>, ApiError> {
    if let Node::Object(members) = node { Ok(members) } else { Err(path.wrong_type("an object", node)) }
}

fn check_integer(node: &Node<'_>, path: Path<'_>, min: i64, max: i64) -> Result<(), ApiError> {
    let (too_small, too_large, got) = if let Node::Integer(value) = node {
        (*value < min, *value > max, value.to_string())
    } else if let Node::Decimal(value) = node
        && value.abs() >= i64::MAX as f64
    {
        // Whole numbers beyond 64 bits arrive as decimals; every decimal this large is whole.
        (*value < 0.0, *value > 0.0, format!("{value:?}"))
    } else {
        return Err(path.wrong_type("an integer", node));
    };
    let (below, above) = ("integer below minimum value", "integer above maximum value");
    if too_small {
        return Err(path.invalid("integer_below_min_value", below, format_args!("a value >= {min}"), got));
    }
    if too_large {
        return Err(path.invalid("integer_above_max_value", above, format_args!("a value <= {max}"), got));
    }
    Ok(())
}

fn check_decimal(node: &Node<'_>, path: Path<'_>, min: f64, max: f64) -> Result<(), ApiError> {
    let value = if let Node::Integer(value) = node {
        *value as f64
    } else if let Node::Decimal(value) = node {
        *value
    } else {
        return Err(path.wrong_type("a decimal number", node));
    };
    let (below, above) = ("decimal below minimum value", "decimal above maximum value");
    if value < min {
        return Err(path.invalid("decimal_below_min_value", below, format_args!("a value >= {min}"), value));
    }
    if value > max {
        return Err(path.invalid("decimal_above_max_value", above, format_args!("a value <= {max}"), value));
    }
    Ok(())
}

fn check_text<'n>(node: &'n Node<'_>, path: Path<'_>, chars_max: usize) -> Result<&'n str, ApiError> {
    let text = node.as_text().ok_or_else(|| path.wrong_type("a string", node))?;
    // Bytes are at least as many as characters, so most texts need no counting.
    if text.len() > chars_max {
        let chars = text.chars().count();
        if chars > chars_max {
            let expected = format!("a string with maximum length {chars_max}");
            let got = format!("a string with length {chars}");
            return Err(path.invalid("string_above_max_length", "string too long", expected, got));
        }
    }
    Ok(text)
}

fn check_name(node: &Node<'_>, path: Path<'_>) -> Result<(), ApiError> {
    let text = check_text(node, path, NAME_CHARS_MAX)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if text.is_empty() || !text.bytes().all(fits) {
        let message = format!("Invalid '{path}': expected 1 to {NAME_CHARS_MAX} of a-z, A-Z, 0-9, '_' and '-'.");
        return Err(path.error("invalid_value", message));
    }
    Ok(())
}

fn check_one_of(node: &Node<'_>, path: Path<'_>, values: &[&str]) -> Result<(), ApiError> {
    let text = node.as_text().ok_or_else(|| path.wrong_type("a string", node))?;
    if values.contains(&text) { Ok(()) } else { Err(unknown_value(text, path, values.iter().copied())) }
}

fn unknown_value<'v>(text: &str, path: Path<'_>, values: impl Iterator<Item = &'v str>) -> ApiError {
    let values: Vec<_> = values.map(|value| format!("'{value}'")).collect();
    let message = format!("Invalid value: '{}'. Supported values are: {}.", echo(text), values.join(", "));
    path.error("invalid_value", message)
}

fn check_list(node: &Node<'_>, path: Path<'_>, min: usize, max: usize, item: &Rule) -> Result<(), ApiError> {
    let Node::List(nodes) = node else { return Err(path.wrong_type("an array", node)) };
    let got = format!("an array with length {}", nodes.len());
    if nodes.len() < min {
        let (code, what) = if nodes.is_empty() {
            ("empty_array", "empty array")
        } else {
            ("array_below_min_length", "array too short")
        };
        return Err(path.invalid(code, what, format_args!("an array with minimum length {min}"), got));
    }
    if nodes.len() > max {
        let expected = format!("an array with maximum length {max}");
        return Err(path.invalid("array_above_max_length", "array too long", expected, got));
    }
    nodes.iter().enumerate().try_for_each(|(index, node)| item.check(node, Path::Item(&path, index)))
}

fn check_map(
    node: &Node<'_>,
    path: Path<'_>,
    entries_max: usize,
    key_chars_max: usize,
    value: &Rule,
) -> Result<(), ApiError> {
    let members = object(node, path)?;
    if members.len() > entries_max {
        let expected = format!("an object with at most {entries_max} properties");
        let got = format!("an object with {} properties", members.len());
        return Err(path.invalid("object_above_max_properties", "too many properties", expected, got));
    }
    members.iter().try_for_each(|(key, node)| {
        let path = Path::Member(&path, key);
        if key.chars().count() > key_chars_max {
            let message = format!("Invalid key '{path}': longer than {key_chars_max} characters.");
            return Err(path.error("string_above_max_length", message));
        }
        value.check(node, path)
    })
}

fn check_by_key(
    node: &Node<'_>,
    path: Path<'_>,
    key: &'static str,
    variants: &[(&'static str, Variant)],
) -> Result<(), ApiError> {
    let members = object(node, path)?;
    let at_key = Path::Member(&path, key);
    let (_, choice) = members.iter().find(|(name, _)| name == key).ok_or_else(|| at_key.missing())?;
    let choice = choice.as_text().ok_or_else(|| at_key.wrong_type("a string", choice))?;
    match variants.iter().find(|(name, _)| *name == choice) {
        Some((_, Variant::Fields(fields))) => check_fields(members, path, Some(key), fields),
        Some((_, Variant::Unsupported { why })) => {
            let message = format!("Unsupported content at '{path}': '{choice}' is not supported: {why}.");
            Err(path.error("unsupported_content", message))
        }
        None => {
            let supported = variants.iter().filter(|(_, variant)| matches!(variant, Variant::Fields(_)));
            Err(unknown_value(choice, at_key, supported.map(|(name, _)| *name)))
        }
    }
}

fn check_fields(members: Object<'_, '_>, path: Path<'_>, key: Option<&str>, fields: &[Field]) -> Result<(), ApiError> {
    for (name, node) in members {
        let path = Path::Member(&path, name);
        match fields.iter().find(|field| field.name == name) {
            Some(field) => field.check(node, path)?,
            None if key == Some(name) => {}
            None => return Err(path.error("unknown_parameter", format!("Unknown parameter: '{path}'."))),
        }
    }
    let missing = fields.iter().find(|field| field.required && !members.iter().any(|(name, _)| name == field.name));
    missing.map_or(Ok(()), |field| Err(Path::Member(&path, field.name).missing()))
}
