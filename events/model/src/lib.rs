//! Pure: the vocabulary of facts: ids, units, the envelope, facts of tenants, regions, consumer groups, sagas
//! and applications, their stored forms.
//!
//! Invariants: no clock, randomness, I/O, async, hashing containers or logging. The bytes of the log are made
//! only in `wire` (envelope) and `persisted` (payloads); domain types derive serde for *disposable* things alone
//! (snapshots, read models, JSON for people), never for the log.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::float_cmp
    )
)]

pub mod application;
pub mod envelope;
pub mod group;
pub mod id;
pub mod persisted;
pub mod region;
pub mod saga;
pub mod shard;
pub mod tenant;

pub mod unit;
mod wire;

pub use envelope::{Commit, CommitView, DecisionContext, EventRecord, EventView, Payload, PayloadView, Stored};
pub use id::{CommitId, EpisodeId, EventId, KeyId, Principal, RegionId, RequestId, StreamId, TenantId};
pub use unit::{DurationUs, NanoUsd, Position, TimestampUs, Tokens, Version};
pub use wire::DecodeError;
