//! Stored forms of applications' streams.

use proto::log::v1 as pb;

use super::{SCHEMA_VERSION, decode, encode, unknown};
use crate::{
    application::{Command, Event, Expected, TYPE},
    envelope::{Payload, PayloadView, Stored},
    unit::Version,
    wire::DecodeError,
};

const APPEND_EVENTS: &str = "freehold.log.v1.AppendEvents";

impl Stored for Command {
    fn to_payload(&self) -> Payload {
        match self {
            Self::Append { expected } => {
                let (expected, version) = match expected {
                    Expected::Exact(version) => (pb::ExpectedVersion::Exact, version.0),
                    Expected::None => (pb::ExpectedVersion::None, 0),
                    Expected::Any => (pb::ExpectedVersion::Any, 0),
                    Expected::Exists => (pb::ExpectedVersion::Exists, 0),
                };
                encode(APPEND_EVENTS, &pb::AppendEvents { expected: expected.into(), version })
            }
        }
    }

    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        match (payload.kind, payload.schema_version) {
            (APPEND_EVENTS, SCHEMA_VERSION) => {
                let message: pb::AppendEvents = decode(APPEND_EVENTS, payload.bytes)?;
                let expected = match message.expected() {
                    pb::ExpectedVersion::Exact => Expected::Exact(Version(message.version)),
                    pb::ExpectedVersion::None => Expected::None,
                    pb::ExpectedVersion::Any => Expected::Any,
                    pb::ExpectedVersion::Exists => Expected::Exists,
                    pb::ExpectedVersion::Unspecified => return Err(DecodeError::Value { what: "an expectation" }),
                };
                Ok(Self::Append { expected })
            }
            (kind, version) => Err(unknown(kind, version)),
        }
    }
}

impl Stored for Event {
    fn to_payload(&self) -> Payload {
        let Self { kind, content_type, data } = self;
        let message =
            pb::ApplicationEvent { r#type: kind.clone(), content_type: content_type.clone(), data: data.clone() };
        encode(TYPE, &message)
    }

    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError> {
        match (payload.kind, payload.schema_version) {
            (TYPE, SCHEMA_VERSION) => {
                let pb::ApplicationEvent { r#type, content_type, data } = decode(TYPE, payload.bytes)?;
                Ok(Self { kind: r#type, content_type, data })
            }
            (kind, version) => Err(unknown(kind, version)),
        }
    }
}
