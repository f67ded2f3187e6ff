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

/// A `DecodeError` without a text in it: small, so that walking fields moves and drops next to nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Truncated { field: u32 },
    WireType { field: u32, wire_type: u32 },
    Value { what: &'static str },
}

impl From<Fault> for DecodeError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Truncated { field } => Self::Truncated { field },
            Fault::WireType { field, wire_type } => Self::WireType { field, wire_type },
            Fault::Value { what } => Self::Value { what },
        }
    }
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

    // Left to itself the compiler keeps a call, with its result in memory, for each of some 40 fields a commit.
    #[inline(always)]
    pub(crate) fn next_field(&mut self) -> Result<Option<(u32, Value<'a>)>, Fault> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint(0)?;
        let field = u32::try_from(key >> 3).map_err(|_| Fault::Truncated { field: 0 })?;
        let value = match u32::try_from(key & 7).unwrap_or(0) {
            VARINT => Value::Varint(self.varint(field)?),
            BYTES => {
                let len = self.varint(field)?;
                let len = usize::try_from(len).map_err(|_| Fault::Truncated { field })?;
                Value::Bytes(self.take(field, len)?)
            }
            wire_type @ (FIXED64 | FIXED32) => {
                self.take(field, if wire_type == FIXED64 { 8 } else { 4 })?;
                Value::Other(wire_type)
            }
            wire_type => return Err(Fault::WireType { field, wire_type }),
        };
        Ok(Some((field, value)))
    }

    #[inline(always)]
    fn take(&mut self, field: u32, len: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Fault::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline(always)]
    fn varint(&mut self, field: u32) -> Result<u64, Fault> {
        if let Some((byte, rest)) = self.rest.split_first()
            && *byte < 0x80
        {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        self.long_varint(field)
    }

    #[cold]
    #[inline(never)]
    fn long_varint(&mut self, field: u32) -> Result<u64, Fault> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(Fault::Truncated { field })?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Fault::Truncated { field })
    }
}

impl<'a> Value<'a> {
    #[inline]
    pub(crate) fn u64(self, field: u32) -> Result<u64, Fault> {
        match self {
            Self::Varint(value) => Ok(value),
            Self::Bytes(_) => Err(Fault::WireType { field, wire_type: BYTES }),
            Self::Other(wire_type) => Err(Fault::WireType { field, wire_type }),
        }
    }

    #[inline]
    pub(crate) fn u32(self, field: u32) -> Result<u32, Fault> {
        u32::try_from(self.u64(field)?).map_err(|_| Fault::Truncated { field })
    }

    #[inline]
    pub(crate) fn bytes(self, field: u32) -> Result<&'a [u8], Fault> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) => Err(Fault::WireType { field, wire_type: VARINT }),
            Self::Other(wire_type) => Err(Fault::WireType { field, wire_type }),
        }
    }

    #[inline]
    pub(crate) fn text(self, field: u32) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| Fault::Value { what: "a text" })
    }

    fn uuid(self, field: u32) -> Result<[u8; 16], Fault> {
        self.bytes(field)?.try_into().map_err(|_| Fault::Value { what: "a UUID" })
    }
}

/// Reads the envelope; payloads stay as they are.
pub(crate) fn parse(bytes: &[u8]) -> Result<CommitView<'_>, Fault> {
    let mut view = CommitView::over(bytes);
    let mut fields = Fields::new(bytes);
    let mut before = bytes;
    let mut events_end = bytes.len();
    while let Some((field, value)) = fields.next_field()? {
        let start = std::mem::replace(&mut before, fields.rest);
        match field {
            1 => view.commit_id = value.text(field)?,
            2 => view.stream = value.text(field)?,
            3 => view.first_version = value.u64(field)?,
            4 => view.command = parse_command(value.bytes(field)?)?,
            5 => {
                value.bytes(field)?;
                if view.event_count == 0 {
                    view.bytes = start;
                }
                events_end = fields.rest.len();
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
    // Only the fields from the first event to the last remain to be walked.
    view.bytes = view.bytes.get(..view.bytes.len().saturating_sub(events_end)).unwrap_or_default();
    Ok(view)
}

/// Reads what a fold needs: the stream, the first version, and where the events lie. Nothing else is validated.
pub(crate) fn parse_stream(bytes: &[u8]) -> Result<(&str, u64, &[u8]), Fault> {
    let (mut stream, mut first_version, mut events) = ("", 0, None);
    let mut fields = Fields::new(bytes);
    let (mut before, mut end) = (bytes, bytes.len());
    while let Some((field, value)) = fields.next_field()? {
        let start = std::mem::replace(&mut before, fields.rest);
        match field {
            2 => stream = value.text(field)?,
            3 => first_version = value.u64(field)?,
            5 => {
                events.get_or_insert(start);
                end = fields.rest.len();
            }
            // `encode` writes fields in ascending order: behind the events there is nothing that a fold needs.
            6.. if events.is_some() => break,
            _ => {}
        }
    }
    let events = events.unwrap_or_default();
    Ok((stream, first_version, events.get(..events.len().saturating_sub(end)).unwrap_or_default()))
}

fn parse_command(bytes: &[u8]) -> Result<PayloadView<'_>, Fault> {
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

fn parse_context(bytes: &[u8]) -> Result<DecisionContext, Fault> {
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
pub(crate) fn parse_event(bytes: &[u8]) -> Result<EventView<'_>, Fault> {
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
pub(crate) fn next_event<'a>(fields: &mut Fields<'a>) -> Option<Result<EventView<'a>, Fault>> {
    loop {
        match fields.next_field() {
            Ok(Some((5, value))) => return Some(value.bytes(5).and_then(parse_event)),
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(error) => return Some(Err(error)),
        }
    }
}
