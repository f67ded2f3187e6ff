//! The envelope's bytes: protobuf, written and read without intermediate structures, so that appending clones
//! nothing and a reader that filters on stream or type decodes no payload.
//!
//! The layout is `freehold.log.v1.Commit`; a test holds both directions against prost's own code.

use crate::envelope::{Commit, CommitView, DecisionContext, EventView, PayloadView};

/// Bytes are not a commit (or not a payload of the type they claim).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field runs past the end, or a number is too long.
    #[error("protobuf ends or breaks in field {field}")]
    Truncated {
        /// Number of the field.
        field: u32,
    },
    /// A field has another wire type than it must.
    #[error("protobuf field {field} has wire type {wire_type}")]
    WireType {
        /// Number of the field.
        field: u32,
        /// What was found.
        wire_type: u32,
    },
    /// A value is not what the field allows.
    #[error("{what} is not valid")]
    Value {
        /// Which field.
        what: &'static str,
    },
    /// A payload says it is of a type this program does not know.
    #[error("type {kind} version {schema_version} is not known")]
    UnknownType {
        /// Full protobuf name.
        kind: String,
        /// Its schema version.
        schema_version: u32,
    },
    /// A payload is not valid protobuf of its type.
    #[error("payload of {kind} does not decode: {reason}")]
    Payload {
        /// Full protobuf name.
        kind: &'static str,
        /// What prost says.
        reason: String,
    },
}

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "the low seven bits are meant")]
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80 here")]
    out.push(value as u8);
}

fn put_u64(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        put_varint(out, u64::from(field << 3 | VARINT));
        put_varint(out, value);
    }
}

fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_len(out, field, bytes.len());
        out.extend_from_slice(bytes);
    }
}

fn put_len(out: &mut Vec<u8>, field: u32, len: usize) {
    put_varint(out, u64::from(field << 3 | BYTES));
    put_varint(out, len as u64);
}

const fn varint_len(value: u64) -> usize {
    let bits = 64_u32.saturating_sub((value | 1).leading_zeros());
    (bits.div_ceil(7)) as usize
}

fn u64_len(value: u64) -> usize {
    // Every nested field number here is below 16, so its tag is one byte.
    if value == 0 { 0 } else { varint_len(value).saturating_add(1) }
}

fn bytes_len(len: usize) -> usize {
    if len == 0 { 0 } else { varint_len(len as u64).saturating_add(1).saturating_add(len) }
}

/// Appends the protobuf form of a commit.
pub(crate) fn encode(commit: &Commit, out: &mut Vec<u8>) {
    put_bytes(out, 1, commit.commit_id.as_str().as_bytes());
    put_bytes(out, 2, commit.stream.as_str().as_bytes());
    put_u64(out, 3, commit.first_version.0);
    let command = &commit.command;
    let len = bytes_len(command.kind.len())
        .saturating_add(u64_len(command.schema_version.into()))
        .saturating_add(bytes_len(command.bytes.len()));
    put_len(out, 4, len);
    put_bytes(out, 1, command.kind.as_bytes());
    put_u64(out, 2, command.schema_version.into());
    put_bytes(out, 3, &command.bytes);
    for event in &commit.events {
        let payload = &event.payload;
        let len = bytes_len(16)
            .saturating_add(bytes_len(payload.kind.len()))
            .saturating_add(u64_len(payload.schema_version.into()))
            .saturating_add(bytes_len(payload.bytes.len()));
        put_len(out, 5, len);
        put_bytes(out, 1, event.event_id.as_bytes());
        put_bytes(out, 2, payload.kind.as_bytes());
        put_u64(out, 3, payload.schema_version.into());
        put_bytes(out, 4, &payload.bytes);
    }
    put_bytes(out, 6, commit.episode_id.as_bytes());
    put_bytes(out, 7, commit.causation_id.as_ref().map_or(&[][..], |id| id.as_str().as_bytes()));
    put_bytes(out, 8, commit.tenant.as_ref().map_or(&[][..], |id| id.as_str().as_bytes()));
    put_bytes(out, 9, commit.region.as_str().as_bytes());
    put_u64(out, 10, commit.epoch);
    put_bytes(out, 11, commit.principal.as_str().as_bytes());
    put_u64(out, 12, commit.recorded_at.0);
    put_bytes(out, 13, commit.traceparent.as_bytes());
    put_u64(out, 14, commit.decider_version.into());
    put_bytes(out, 15, commit.key_id.as_bytes());
    let context = &commit.context;
    let len = u64_len(context.seed)
        .saturating_add(u64_len(context.policy_version.into()))
        .saturating_add(u64_len(context.price_book_version.into()))
        .saturating_add(u64_len(context.routing_version.into()));
    put_len(out, 16, len);
    put_u64(out, 1, context.seed);
    put_u64(out, 2, context.policy_version.into());
    put_u64(out, 3, context.price_book_version.into());
    put_u64(out, 4, context.routing_version.into());
}

/// Walks the fields of one protobuf message.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// One field's value.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// A fixed-width value: none of our fields has one, a later version may.
    Other(u32),
}

impl<'a> Fields<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn next_field(&mut self) -> Result<Option<(u32, Value<'a>)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint(0)?;
        let field = u32::try_from(key >> 3).map_err(|_| DecodeError::Truncated { field: 0 })?;
        let value = match u32::try_from(key & 7).unwrap_or(0) {
            VARINT => Value::Varint(self.varint(field)?),
            BYTES => {
                let len = self.varint(field)?;
                let len = usize::try_from(len).map_err(|_| DecodeError::Truncated { field })?;
                Value::Bytes(self.take(field, len)?)
            }
            wire_type @ (FIXED64 | FIXED32) => {
                self.take(field, if wire_type == FIXED64 { 8 } else { 4 })?;
                Value::Other(wire_type)
            }
            wire_type => return Err(DecodeError::WireType { field, wire_type }),
        };
        Ok(Some((field, value)))
    }

    fn take(&mut self, field: u32, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self, field: u32) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(DecodeError::Truncated { field })?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Truncated { field })
    }
}

impl<'a> Value<'a> {
    fn u64(self, field: u32) -> Result<u64, DecodeError> {
        match self {
            Self::Varint(value) => Ok(value),
            Self::Bytes(_) => Err(DecodeError::WireType { field, wire_type: BYTES }),
            Self::Other(wire_type) => Err(DecodeError::WireType { field, wire_type }),
        }
    }

    fn u32(self, field: u32) -> Result<u32, DecodeError> {
        u32::try_from(self.u64(field)?).map_err(|_| DecodeError::Truncated { field })
    }

    fn bytes(self, field: u32) -> Result<&'a [u8], DecodeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) => Err(DecodeError::WireType { field, wire_type: VARINT }),
            Self::Other(wire_type) => Err(DecodeError::WireType { field, wire_type }),
        }
    }

    fn text(self, field: u32) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| DecodeError::Value { what: "a text" })
    }

    fn uuid(self, field: u32) -> Result<[u8; 16], DecodeError> {
        self.bytes(field)?.try_into().map_err(|_| DecodeError::Value { what: "a UUID" })
    }
}

/// Reads the envelope; payloads stay as they are.
pub(crate) fn parse(bytes: &[u8]) -> Result<CommitView<'_>, DecodeError> {
    let mut view = CommitView::over(bytes);
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next_field()? {
        match field {
            1 => view.commit_id = value.text(field)?,
            2 => view.stream = value.text(field)?,
            3 => view.first_version = value.u64(field)?,
            4 => view.command = parse_command(value.bytes(field)?)?,
            5 => {
                value.bytes(field)?;
                view.event_count = view.event_count.saturating_add(1);
            }
            6 => view.episode_id = value.uuid(field)?,
            7 => view.causation_id = value.text(field)?,
            8 => view.tenant = value.text(field)?,
            9 => view.region = value.text(field)?,
            10 => view.epoch = value.u64(field)?,
            11 => view.principal = value.text(field)?,
            12 => view.recorded_at = value.u64(field)?,
            13 => view.traceparent = value.text(field)?,
            14 => view.decider_version = value.u32(field)?,
            15 => view.key_id = value.text(field)?,
            16 => view.context = parse_context(value.bytes(field)?)?,
            _ => {}
        }
    }
    Ok(view)
}

fn parse_command(bytes: &[u8]) -> Result<PayloadView<'_>, DecodeError> {
    let mut command = PayloadView::default();
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next_field()? {
        match field {
            1 => command.kind = value.text(field)?,
            2 => command.schema_version = value.u32(field)?,
            3 => command.bytes = value.bytes(field)?,
            _ => {}
        }
    }
    Ok(command)
}

fn parse_context(bytes: &[u8]) -> Result<DecisionContext, DecodeError> {
    let mut context = DecisionContext::default();
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next_field()? {
        match field {
            1 => context.seed = value.u64(field)?,
            2 => context.policy_version = value.u32(field)?,
            3 => context.price_book_version = value.u32(field)?,
            4 => context.routing_version = value.u32(field)?,
            _ => {}
        }
    }
    Ok(context)
}

/// Reads one event of a commit; its payload stays as it is.
pub(crate) fn parse_event(bytes: &[u8]) -> Result<EventView<'_>, DecodeError> {
    let mut event = EventView::default();
    let mut fields = Fields::new(bytes);
    while let Some((field, value)) = fields.next_field()? {
        match field {
            1 => event.event_id = value.uuid(field)?,
            2 => event.payload.kind = value.text(field)?,
            3 => event.payload.schema_version = value.u32(field)?,
            4 => event.payload.bytes = value.bytes(field)?,
            _ => {}
        }
    }
    Ok(event)
}

/// The next event in what remains of a commit's fields.
pub(crate) fn next_event<'a>(fields: &mut Fields<'a>) -> Option<Result<EventView<'a>, DecodeError>> {
    loop {
        match fields.next_field() {
            Ok(Some((5, value))) => return Some(value.bytes(5).and_then(parse_event)),
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(error) => return Some(Err(error)),
        }
    }
}
