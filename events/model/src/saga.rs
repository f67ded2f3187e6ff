//! The facts about sagas and the wishes they come from.
//!
//! Invariants: values are compact JSON texts (`Json`), opaque here; a `StepPath` names one instance of a step. What
//! may happen is decided in `actors_core::saga`.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    id::StreamId,
    unit::{NanoUsd, TimestampUs},
};

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self("".into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// One instance of a step: `pay`, `items[3].ship`, `both[1].call`; also of a branch or an item: `items[3]`.
    StepPath
);
text!(
    /// A value as compact JSON; cheap to clone.
    Json
);

/// What a model's tokens cost for as long as the saga runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaPrice {
    /// The model as the definition names it.
    pub model: String,
    /// Empty = every tier without a price of its own.
    pub tier: String,
    /// A million tokens of the prompt.
    pub input_per_mtok: NanoUsd,
    /// A million tokens of the answer.
    pub output_per_mtok: NanoUsd,
}

/// The step of another saga that waits for this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The other saga.
    pub stream: StreamId,
    /// Its step.
    pub path: StepPath,
    /// The step's attempt.
    pub attempt: u32,
    /// How many sagas are above this one, at least 1.
    pub depth: u32,
}

/// Why a saga is unwound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A step failed for good.
    StepFailed,
    /// A limit of loop safety cut it.
    Limit,
    /// Its owner cancelled it.
    Cancelled,
    /// An operator had it unwound.
    Operator,
}

/// A limit of loop safety.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Limit {
    /// Steps begun.
    Steps,
    /// Time since the start.
    WallTime,
    /// Money.
    Spend,
    /// The same step asked the same and got the same too often.
    Repeats,
    /// Steps ended without a new output.
    NoProgress,
    /// Bytes of outputs kept.
    OutputBytes,
}

impl Limit {
    /// Its name in metrics and texts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::WallTime => "wall_time",
            Self::Spend => "spend",
            Self::Repeats => "repeats",
            Self::NoProgress => "no_progress",
            Self::OutputBytes => "output_bytes",
        }
    }
}

/// A wish to a saga.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Command {
    /// Starts it.
    Start(Box<Start>),
    /// Tells it something, whether it waits for it or not.
    Signal {
        /// Which signal.
        name: String,
        /// What about.
        payload: Json,
    },
    /// Ends it; what was done is undone.
    Cancel {
        /// Why.
        reason: String,
    },
    /// An attempt came to a good end.
    SucceedStep {
        /// The step, or its compensation (`pay.compensate`).
        path: StepPath,
        /// Which attempt, from 1.
        attempt: u32,
        /// What came of it.
        output: Json,
        /// What it cost.
        cost: NanoUsd,
    },
    /// An attempt failed.
    FailStep {
        /// The step, or its compensation.
        path: StepPath,
        /// Which attempt, from 1.
        attempt: u32,
        /// A word for the failure: `http_503`, `refused`, `timeout`.
        kind: String,
        /// What was said.
        message: String,
        /// What it cost all the same.
        cost: NanoUsd,
    },
    /// Does all that is due.
    Wake,
    /// Tries a step that waits for its next attempt, or a failed compensation, again at once.
    RetryStep {
        /// Which.
        path: StepPath,
    },
    /// Takes a failed compensation for done.
    SkipStep {
        /// Which.
        path: StepPath,
        /// Why.
        reason: String,
    },
    /// Has a running saga unwound.
    Compensate {
        /// Why.
        reason: String,
    },
    /// Goes on under another version of the definition.
    Migrate {
        /// The canonical form.
        definition: Json,
    },
}

/// All that a saga begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Start {
    /// Its own stream.
    pub stream: StreamId,
    /// The definition's canonical form, complete.
    pub definition: Json,
    /// An object.
    pub input: Json,
    /// At most so much; `None` = what the definition says.
    pub budget: Option<NanoUsd>,
    /// At the latest then; `None` = what the definition says.
    pub deadline: Option<TimestampUs>,
    /// Who waits for it.
    pub parent: Option<Parent>,
    /// Prices of the models it names.
    pub prices: Vec<SagaPrice>,
}

/// A fact about a saga.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields say what they are; what is not plain is said in saga.proto")]
pub enum Event {
    /// It began.
    Started {
        stream: StreamId,
        definition: Json,
        input: Json,
        budget: NanoUsd,
        deadline: TimestampUs,
        seed: u64,
        parent: Option<Parent>,
        prices: Vec<SagaPrice>,
        at: TimestampUs,
    },
    /// An attempt began; its effect may begin once this is durable.
    StepStarted {
        path: StepPath,
        attempt: u32,
        request: Json,
        reserved: NanoUsd,
        deadline: TimestampUs,
        at: TimestampUs,
    },
    /// An attempt waits for others to end: what they hold would not leave enough for it.
    StepHeld { path: StepPath, attempt: u32, at: TimestampUs },
    /// A step came to a good end; attempt 0 = it needed nothing from outside.
    StepSucceeded { path: StepPath, attempt: u32, output: Json, cost: NanoUsd, at: TimestampUs },
    /// Its condition was false.
    StepSkipped { path: StepPath },
    /// An attempt failed and another follows.
    AttemptFailed {
        path: StepPath,
        attempt: u32,
        kind: String,
        message: String,
        cost: NanoUsd,
        retry_at: TimestampUs,
        at: TimestampUs,
    },
    /// A step failed for good.
    StepFailed { path: StepPath, attempt: u32, kind: String, message: String, cost: NanoUsd, at: TimestampUs },
    /// A step waits for time (`signal` empty) or a signal.
    WaitStarted { path: StepPath, signal: String, until: TimestampUs, at: TimestampUs },
    /// The time came.
    WaitEnded { path: StepPath, at: TimestampUs },
    /// A signal came; it is kept until a step takes it.
    SignalReceived { name: String, payload: Json, at: TimestampUs },
    /// A step took the oldest signal of this name.
    SignalConsumed { path: StepPath, name: String, at: TimestampUs },
    /// Branches of a `parallel`, or the one of a `choice`, began; none = no condition held.
    BranchesStarted { path: StepPath, branches: Vec<u32> },
    /// An `each` has its items.
    ItemsFound { path: StepPath, items: Json },
    /// The steps of an item began.
    ItemStarted { path: StepPath, index: u32 },
    /// A branch or the steps of an item came to their end.
    BranchEnded { path: StepPath },
    /// From now on cheaper.
    Degraded { level: u32, reason: Limit, at: TimestampUs },
    /// A limit was reached.
    LoopCut { reason: Limit, at: TimestampUs },
    /// Nothing new begins; what was done will be undone.
    UnwindingStarted { cause: Cause, path: StepPath, kind: String, message: String, at: TimestampUs },
    /// An attempt to undo a step began.
    CompensationStarted { path: StepPath, attempt: u32, request: Json, deadline: TimestampUs, at: TimestampUs },
    /// A step is undone.
    StepCompensated { path: StepPath, attempt: u32, at: TimestampUs },
    /// A step could not be undone.
    CompensationFailed { path: StepPath, attempt: u32, kind: String, message: String, at: TimestampUs },
    /// An operator took it upon himself.
    CompensationSkipped { path: StepPath, reason: String, at: TimestampUs },
    /// It stands still until an operator decides.
    OperatorNeeded {
        path: StepPath,
        kind: String,
        message: String,
        compensated: Vec<StepPath>,
        remaining: Vec<StepPath>,
        at: TimestampUs,
    },
    /// An operator had it tried again.
    StepRetried { path: StepPath, at: TimestampUs },
    /// An outcome that nobody waits for any more; `output` = what is kept of it for what undoes the step, empty = nothing.
    OutcomeIgnored { path: StepPath, attempt: u32, succeeded: bool, detail: String, output: Json, at: TimestampUs },
    /// A saga that a step started is told to end; its last word is waited for.
    ChildCancelled { path: StepPath, child: StreamId, reason: String, at: TimestampUs },
    /// It came to a good end.
    Completed { output: Json, at: TimestampUs },
    /// It failed, and nothing had to be undone.
    Failed { kind: String, message: String, at: TimestampUs },
    /// It failed, and all that had been done is undone.
    Unwound { kind: String, message: String, at: TimestampUs },
    /// It was cancelled, and all that had been done is undone.
    Cancelled { reason: String, at: TimestampUs },
    /// It goes on under another version of the definition.
    Migrated { definition: Json, at: TimestampUs },
}
