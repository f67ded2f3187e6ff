//! What a saga asks of the world, as data: rendered once, when an attempt begins, and recorded with it.

use std::collections::BTreeMap;

use events_model::{
    NanoUsd, StreamId, TimestampUs,
    saga::{Json, Parent, StepPath},
};
use serde::{Deserialize, Serialize};

/// All that an effect needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are those of the definition's steps")]
pub enum Request {
    /// Ask a model, through the tenant's admission.
    Model { model: String, messages: Json, max_tokens: u32, temperature: Option<Json>, tier: String },
    /// Call a service.
    Http { method: String, url: String, headers: BTreeMap<String, String>, body: Option<Json>, ok: Vec<(u16, u16)> },
    /// Append an event to `app/<tenant>/<stream>`.
    Append { stream: StreamId, event: String, payload: Json },
    /// Tell somebody.
    Notify { url: String, body: Option<Json> },
    /// Ask a person.
    Approve { title: String, assignees: Vec<String> },
    /// Start another saga, in this stream.
    Saga { definition: String, version: u32, input: Json, budget: NanoUsd, stream: StreamId },
}

impl Request {
    /// The recorded form.
    pub fn write(&self) -> Json {
        // The value is made of texts and numbers alone, so it always has a form.
        serde_json::to_string(self).unwrap_or_default().into()
    }

    /// Reads the recorded form.
    pub fn read(json: &Json) -> Option<Self> {
        serde_json::from_str(json.as_str()).ok()
    }

    /// The saga that a recorded form starts.
    pub fn child(json: &Json) -> Option<StreamId> {
        match Self::read(json)? {
            Self::Saga { stream, .. } => Some(stream),
            Self::Model { .. }
            | Self::Http { .. }
            | Self::Append { .. }
            | Self::Notify { .. }
            | Self::Approve { .. } => None,
        }
    }
}

/// A wish of a saga to the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Runs an attempt; its outcome comes back as a command.
    Run {
        /// The same for every run of this attempt: `<stream>/<path>/<attempt>`.
        idempotency_key: String,
        /// The step, or what undoes it.
        path: StepPath,
        /// Which attempt.
        attempt: u32,
        /// It has failed then.
        deadline: TimestampUs,
        /// What to do.
        request: Request,
    },
    /// Cancels a saga that this one started.
    CancelChild {
        /// Which.
        stream: StreamId,
        /// Why.
        reason: String,
    },
    /// Tells the saga that waits for this one how it ended.
    TellParent {
        /// Who waits.
        parent: Parent,
        /// The output, or the kind and the text of the failure.
        outcome: Result<Json, (String, String)>,
        /// What it cost.
        cost: NanoUsd,
    },
}
