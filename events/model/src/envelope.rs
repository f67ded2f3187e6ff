//! The envelope: what the log stores about every decision, whatever it was about.
//!
//! A commit is the atomic unit: one command and the 1..=`EVENTS_PER_COMMIT_MAX` events it caused, in one stream.
//! `Commit` is built to be appended; `CommitView` borrows from stored bytes and decodes lazily.

use crate::{
    id::{CommitId, EpisodeId, EventId, Principal, RegionId, StreamId, TenantId},
    unit::{TimestampUs, Version},
    wire::{self, DecodeError, Fields},
};

/// Most events in one commit.
pub const EVENTS_PER_COMMIT_MAX: usize = 1_024;
/// Largest encoded commit, bytes.
pub const COMMIT_BYTES_MAX: usize = 1024 * 1024;

/// A typed, versioned, encoded payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Full protobuf name.
    pub kind: &'static str,
    /// Version of the schema, from 1.
    pub schema_version: u32,
    /// Protobuf.
    pub bytes: Vec<u8>,
}

/// A domain value that has a stored form.
pub trait Stored: Sized {
    /// Encodes the newest stored form.
    fn to_payload(&self) -> Payload;

    /// Decodes any stored form ever written.
    ///
    /// # Errors
    /// The type is not one of these values', or the bytes are not of it.
    fn from_payload(payload: PayloadView<'_>) -> Result<Self, DecodeError>;
}

/// An event to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// UUIDv7.
    pub event_id: EventId,
    /// What happened.
    pub payload: Payload,
}

/// All that a decision depends on besides state, command and time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct DecisionContext {
    /// Seed of every choice that looks random.
    pub seed: u64,
    /// Version of the policies in force.
    pub policy_version: u32,
    /// Version of the price book in force.
    pub price_book_version: u32,
    /// Version of the routing table in force.
    pub routing_version: u32,
}

/// A commit to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Idempotency key of the command, unique in the stream.
    pub commit_id: CommitId,
    /// Whose decision it is.
    pub stream: StreamId,
    /// Version of the first event.
    pub first_version: Version,
    /// What was asked.
    pub command: Payload,
    /// What came of it: 1..=`EVENTS_PER_COMMIT_MAX`.
    pub events: Vec<EventRecord>,
    /// The episode it belongs to.
    pub episode_id: EpisodeId,
    /// The commit that caused this one, if one did.
    pub causation_id: Option<CommitId>,
    /// The tenant it concerns, if one.
    pub tenant: Option<TenantId>,
    /// The region that decided.
    pub region: RegionId,
    /// The tenant's home epoch.
    pub epoch: u64,
    /// Who asked.
    pub principal: Principal,
    /// Hybrid logical clock.
    pub recorded_at: TimestampUs,
    /// W3C trace context; empty = none.
    pub traceparent: String,
    /// Version of the decider.
    pub decider_version: u32,
    /// Data key of personal data in the payloads; empty = none.
    pub key_id: String,
    /// The rest of the decision's inputs.
    pub context: DecisionContext,
}

impl Commit {
    /// Encodes as `freehold.log.v1.Commit`.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        self.encode_into(&mut bytes);
        bytes
    }

    /// Appends the encoded form to a buffer.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        wire::encode(self, bytes);
    }

    /// Version of the last event.
    pub fn last_version(&self) -> Version {
        Version(self.first_version.0.saturating_add(self.events.len() as u64).saturating_sub(1))
    }
}

/// A payload as it lies in stored bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PayloadView<'a> {
    /// Full protobuf name.
    pub kind: &'a str,
    /// Version of the schema.
    pub schema_version: u32,
    /// Protobuf.
    pub bytes: &'a [u8],
}

impl<'a> PayloadView<'a> {
    /// The name without its package: `RequestAdmitted`.
    pub fn short_kind(&self) -> &'a str {
        self.kind.rsplit('.').next().unwrap_or(self.kind)
    }
}

impl Payload {
    /// Borrows as a view.
    pub fn view(&self) -> PayloadView<'_> {
        PayloadView { kind: self.kind, schema_version: self.schema_version, bytes: &self.bytes }
    }
}

/// An event as it lies in stored bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventView<'a> {
    /// UUIDv7.
    pub event_id: [u8; 16],
    /// What happened.
    pub payload: PayloadView<'a>,
}

/// A commit as it lies in stored bytes: the envelope is read, payloads are not.
#[derive(Debug, Clone, Copy)]
pub struct CommitView<'a> {
    pub(crate) bytes: &'a [u8],
    /// Idempotency key of the command.
    pub commit_id: &'a str,
    /// Whose decision it was.
    pub stream: &'a str,
    /// Version of the first event.
    pub first_version: u64,
    /// What was asked.
    pub command: PayloadView<'a>,
    /// How many events it holds.
    pub event_count: u64,
    /// UUIDv7.
    pub episode_id: [u8; 16],
    /// Empty = caused from outside.
    pub causation_id: &'a str,
    /// Empty = concerns no tenant.
    pub tenant: &'a str,
    /// The region that decided.
    pub region: &'a str,
    /// The tenant's home epoch.
    pub epoch: u64,
    /// Who asked.
    pub principal: &'a str,
    /// UTC microseconds.
    pub recorded_at: u64,
    /// Empty = none.
    pub traceparent: &'a str,
    /// Version of the decider.
    pub decider_version: u32,
    /// Empty = nothing encrypted.
    pub key_id: &'a str,
    /// The rest of the decision's inputs.
    pub context: DecisionContext,
}

impl<'a> CommitView<'a> {
    pub(crate) const fn over(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            commit_id: "",
            stream: "",
            first_version: 0,
            command: PayloadView { kind: "", schema_version: 0, bytes: &[] },
            event_count: 0,
            episode_id: [0; 16],
            causation_id: "",
            tenant: "",
            region: "",
            epoch: 0,
            principal: "",
            recorded_at: 0,
            traceparent: "",
            decider_version: 0,
            key_id: "",
            context: DecisionContext { seed: 0, policy_version: 0, price_book_version: 0, routing_version: 0 },
        }
    }

    /// Reads the envelope of an encoded commit.
    ///
    /// # Errors
    /// The bytes are not a commit.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        wire::parse(bytes).map_err(DecodeError::from)
    }

    /// The events in order.
    pub fn events(&self) -> impl Iterator<Item = Result<EventView<'a>, DecodeError>> + use<'a> {
        let mut fields = Fields::new(self.bytes);
        std::iter::from_fn(move || wire::next_event(&mut fields).map(|event| event.map_err(DecodeError::from)))
    }

    /// Version of the last event.
    pub const fn last_version(&self) -> Version {
        Version(self.first_version.saturating_add(self.event_count).saturating_sub(1))
    }

    /// The episode it belongs to.
    pub const fn episode(&self) -> EpisodeId {
        EpisodeId::from_bytes(self.episode_id)
    }

    /// When it was recorded.
    pub const fn recorded_at(&self) -> TimestampUs {
        TimestampUs(self.recorded_at)
    }
}

/// As much of a stored commit as a fold needs; the rest is walked over, not validated.
#[derive(Debug, Clone, Copy)]
pub struct StreamView<'a> {
    events: &'a [u8],
    /// Whose decision it was.
    pub stream: &'a str,
    /// Version of the first event.
    pub first_version: u64,
}

impl<'a> StreamView<'a> {
    /// Reads the stream, the first version and where the events lie.
    ///
    /// # Errors
    /// The bytes are not a commit.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (stream, first_version, events) = wire::parse_stream(bytes)?;
        Ok(Self { events, stream, first_version })
    }

    /// The events in order.
    pub fn events(&self) -> impl Iterator<Item = Result<EventView<'a>, DecodeError>> + use<'a> {
        let mut fields = Fields::new(self.events);
        std::iter::from_fn(move || wire::next_event(&mut fields).map(|event| event.map_err(DecodeError::from)))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::log::v1 as pb;

    use super::*;

    fn commit() -> Commit {
        Commit {
            commit_id: CommitId::new("c-1").unwrap(),
            stream: StreamId::new("tenant/acme").unwrap(),
            first_version: Version(7),
            command: Payload { kind: "freehold.log.v1.AdmitRequest", schema_version: 1, bytes: vec![1; 300] },
            events: (0..3_u8)
                .map(|n| EventRecord {
                    event_id: EventId::from_bytes([n; 16]),
                    payload: Payload {
                        kind: "freehold.log.v1.RequestAdmitted",
                        schema_version: 1,
                        bytes: vec![n; usize::from(n)],
                    },
                })
                .collect(),
            episode_id: EpisodeId::from_bytes([9; 16]),
            causation_id: Some(CommitId::new("c-0").unwrap()),
            tenant: Some(TenantId::new("acme").unwrap()),
            region: RegionId::new("local").unwrap(),
            epoch: 1,
            principal: Principal::admin(),
            recorded_at: TimestampUs(1_790_000_000_000_000),
            traceparent: "00-1-2-01".to_owned(),
            decider_version: 3,
            key_id: String::new(),
            context: DecisionContext { seed: u64::MAX, policy_version: 1, price_book_version: 0, routing_version: 9 },
        }
    }

    #[test]
    fn our_bytes_are_what_prost_reads_and_writes() {
        let bytes = commit().encode();
        let read = pb::Commit::decode(bytes.as_slice()).unwrap();
        assert_eq!(read.stream, "tenant/acme");
        assert_eq!(read.events.len(), 3);
        assert_eq!(read.events[2].payload, [2, 2]);
        assert_eq!(read.context.unwrap().seed, u64::MAX);
        assert_eq!(read.encode_to_vec(), bytes);
    }

    #[test]
    fn a_view_shows_what_was_encoded() {
        let commit = commit();
        let bytes = commit.encode();
        let view = CommitView::parse(&bytes).unwrap();
        assert_eq!(view.commit_id, "c-1");
        assert_eq!(view.last_version(), Version(9));
        assert_eq!(view.command.bytes, commit.command.bytes);
        assert_eq!(view.context, commit.context);
        let kinds: Vec<_> = view.events().map(|event| event.unwrap().payload.short_kind().to_owned()).collect();
        assert_eq!(kinds, ["RequestAdmitted"; 3]);
    }

    #[test]
    fn no_prefix_of_a_commit_panics() {
        let bytes = commit().encode();
        for end in 0..bytes.len() {
            if let Ok(view) = CommitView::parse(&bytes[..end]) {
                let _ = view.events().count();
            }
        }
    }
}
