//! Facts of applications: an opaque payload under a type name of the application's own.
//!
//! Their streams, `app/<tenant>/<id>`, have no actor: whoever appends says which version is expected, and the log
//! decides. In the log every such event has the one type `TYPE`; the application's own name lies in its payload, so a
//! name can never be taken for one of ours.

use serde::Serialize;

use crate::{
    unit::Version,
    wire::{DecodeError, Fault, Fields},
};

/// Full protobuf name of every application's event.
pub const TYPE: &str = "freehold.log.v1.ApplicationEvent";
/// What no application's type may begin with.
pub const RESERVED: &str = "freehold.";
/// Longest name of a type, bytes.
pub const TYPE_BYTES_MAX: usize = 200;
/// Longest content type, bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 100;
/// Largest payload of one event, bytes.
pub const DATA_BYTES_MAX: usize = 512 * 1024;
/// Most events in one append.
pub const EVENTS_PER_APPEND_MAX: usize = 256;

/// What the appender says about the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Expected {
    /// It is at this version.
    Exact(Version),
    /// It does not exist.
    None,
    /// Nothing.
    Any,
    /// It exists.
    Exists,
}

/// A wish of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Command {
    /// Appends events; they lie beside this in the commit.
    Append {
        /// In which case.
        expected: Expected,
    },
}

/// A fact of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// The application's own name of it.
    pub kind: String,
    /// Media type of the payload.
    pub content_type: String,
    /// The payload, opaque.
    pub data: Vec<u8>,
}

/// Why an event cannot be one of an application.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The name of the type.
    #[error("must be 1 to {TYPE_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_', '/' and '-'")]
    Type,
    /// The name belongs to Freehold.
    #[error("must not begin with {RESERVED}")]
    Reserved,
    /// The content type.
    #[error("must be 1 to {CONTENT_TYPE_BYTES_MAX} visible ASCII characters")]
    ContentType,
    /// The payload is too large.
    #[error("is {bytes} bytes, more than {DATA_BYTES_MAX}")]
    Data {
        /// Its size.
        bytes: usize,
    },
}

/// Checks the name of an application's type.
///
/// # Errors
/// `Type`, `Reserved`.
pub fn check_type(kind: &str) -> Result<(), Invalid> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    if kind.is_empty() || kind.len() > TYPE_BYTES_MAX || !kind.bytes().all(allowed) {
        return Err(Invalid::Type);
    }
    if kind.get(..RESERVED.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED)) {
        return Err(Invalid::Reserved);
    }
    Ok(())
}

impl Event {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is not what it must be.
    pub fn check(&self) -> Result<(), Invalid> {
        check_type(&self.kind)?;
        let length = self.content_type.len();
        let visible = self.content_type.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if length == 0 || length > CONTENT_TYPE_BYTES_MAX || !visible {
            return Err(Invalid::ContentType);
        }
        if self.data.len() > DATA_BYTES_MAX {
            return Err(Invalid::Data { bytes: self.data.len() });
        }
        Ok(())
    }
}

/// An application's event as it lies in stored bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventView<'a> {
    /// The application's own name of it.
    pub kind: &'a str,
    /// Media type of the payload.
    pub content_type: &'a str,
    /// The payload.
    pub data: &'a [u8],
}

impl<'a> EventView<'a> {
    /// Reads a payload of the type `TYPE`; nothing is copied.
    ///
    /// # Errors
    /// The bytes are not an application's event.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        parse(bytes).map_err(DecodeError::from)
    }
}

fn parse(bytes: &[u8]) -> Result<EventView<'_>, Fault> {
    let mut view = EventView::default();
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next_field()? {
        match field {
            1 => view.kind = value.text(field)?,
            2 => view.content_type = value.text(field)?,
            3 => view.data = value.bytes(field)?,
            _ => {}
        }
    }
    Ok(view)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stored as _;

    #[test]
    fn names_that_are_ours_or_hold_other_characters_are_refused() {
        for text in ["", "a b", "ü", "a\n", &"x".repeat(TYPE_BYTES_MAX + 1)] {
            assert_eq!(check_type(text), Err(Invalid::Type), "{text:?}");
        }
        for text in ["freehold.log.v1.RequestAdmitted", "freehold.", "FreeHold.x"] {
            assert_eq!(check_type(text), Err(Invalid::Reserved), "{text:?}");
        }
        for text in ["order.placed", "freeholder", "com.acme/Order-1_2", "freehold"] {
            assert_eq!(check_type(text), Ok(()), "{text:?}");
        }
    }

    #[test]
    fn a_view_shows_what_was_stored() {
        let event = Event { kind: "a".to_owned(), content_type: "text/plain".to_owned(), data: vec![0, 255] };
        let payload = event.to_payload();
        let view = EventView::parse(&payload.bytes).unwrap();
        assert_eq!((view.kind, view.content_type, view.data), ("a", "text/plain", &[0, 255][..]));
        assert!(EventView::parse(&payload.bytes[..payload.bytes.len() - 1]).is_err());
    }
}
