//! Version 1 of the stored forms: protobuf messages of `freehold.log.v1`, converted by hand.

mod application;
mod group;
mod hot;
mod region;
mod saga;
mod tenant;
mod tenant_parts;

use prost::Message;

use crate::{envelope::Payload, wire::DecodeError};

/// Schema version of everything here.
pub const SCHEMA_VERSION: u32 = 1;

fn encode<M: Message>(kind: &'static str, message: &M) -> Payload {
    Payload { kind, schema_version: SCHEMA_VERSION, bytes: message.encode_to_vec() }
}

fn decode<M: Message + Default>(kind: &'static str, bytes: &[u8]) -> Result<M, DecodeError> {
    M::decode(bytes).map_err(|error| DecodeError::Payload { kind, reason: error.to_string() })
}

fn unknown(kind: &str, schema_version: u32) -> DecodeError {
    DecodeError::UnknownType { kind: kind.to_owned(), schema_version }
}

fn required<T>(what: &'static str, value: Option<T>) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::Value { what })
}
