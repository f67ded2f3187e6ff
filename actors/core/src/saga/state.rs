//! What is known of a saga: a tree of cursors, flat, by path.
//!
//! Invariants: a frame is a list of steps that is being run, with its cursor; the root's path is empty. An attempt in
//! flight holds a reservation; `reserved` is the sum of them, and `spent + reserved <= budget`. `done` are the steps
//! that can be undone and are not yet, in the order of their ends. Everything is bounded: frames and steps by the
//! definition, outputs by `OUTPUTS_BYTES_MAX`, signals by `SIGNALS_BYTES_MAX`, history by the largest window.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use events_model::{
    NanoUsd, StreamId, TimestampUs,
    saga::{Cause, Json, Parent, SagaPrice, StepPath},
};
use serde::{Deserialize, Serialize, de};
use serde_json::Value;

use super::{
    definition::{BlockIndex, Definition, Join, Kind, StepIndex},
    parse,
};

/// Largest outcome of one step, bytes.
pub const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// All outcomes of one saga together, bytes.
pub const OUTPUTS_BYTES_MAX: usize = 1024 * 1024;
/// Most signals that no step has taken.
pub const SIGNALS_LEN_MAX: usize = 256;
/// All of them together, bytes.
pub const SIGNALS_BYTES_MAX: usize = 256 * 1024;
/// All requests in flight together, bytes.
pub const REQUESTS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How many outcomes the search for progress looks back.
pub const HISTORY_LEN_MAX: usize = 256;

/// A definition that many states share; stored as its canonical form.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared(pub Arc<Definition>);

impl Serialize for Shared {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.canonical.as_str())
    }
}

impl<'de> Deserialize<'de> for Shared {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let canonical = Json::from(String::deserialize(deserializer)?);
        parse::load(&canonical).map(|read| Self(Arc::new(read))).map_err(|fault| de::Error::custom(fault.message))
    }
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of the events")]
pub enum Phase {
    /// Nobody started it.
    #[default]
    New,
    /// Steps run.
    Running,
    /// What was done is being undone.
    Unwinding { cause: Cause, path: StepPath, kind: String, message: String },
    /// Something could not be undone.
    NeedsOperator { cause: Cause, path: StepPath, kind: String, message: String, failure: (StepPath, String, String) },
    /// It came to a good end.
    Completed { output: Json },
    /// It failed; nothing had to be undone.
    Failed { kind: String, message: String },
    /// It failed; all is undone.
    Unwound { kind: String, message: String },
    /// It was cancelled; all is undone.
    Cancelled { reason: String },
}

impl Phase {
    /// Its name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Running => "running",
            Self::Unwinding { .. } => "unwinding",
            Self::NeedsOperator { .. } => "needs_operator",
            Self::Completed { .. } => "completed",
            Self::Failed { .. } => "failed",
            Self::Unwound { .. } => "compensated",
            Self::Cancelled { .. } => "cancelled",
        }
    }

    /// Whether nothing will happen any more.
    pub const fn is_end(&self) -> bool {
        match self {
            Self::New | Self::Running | Self::Unwinding { .. } | Self::NeedsOperator { .. } => false,
            Self::Completed { .. } | Self::Failed { .. } | Self::Unwound { .. } | Self::Cancelled { .. } => true,
        }
    }
}

/// A round of an `each`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// The `each`.
    pub step: StepIndex,
    /// Which item.
    pub index: u32,
    /// The item.
    pub item: Json,
}

/// A list of steps that is being run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Which list.
    pub block: BlockIndex,
    /// How many of its steps have ended.
    pub next: u32,
    /// The rounds around it, from the outside in.
    pub rounds: Vec<Round>,
    /// What its present step does.
    pub current: Current,
    /// The outcome of the last step that ended.
    pub last: Json,
}

/// What the present step of a frame does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Current {
    /// It has not begun.
    Idle,
    /// An attempt is in flight.
    Running,
    /// Its next attempt waits for others to end.
    Held {
        /// Which attempt that is.
        attempt: u32,
    },
    /// An attempt failed.
    Backoff {
        /// Which.
        attempt: u32,
        /// When the next one begins.
        until: TimestampUs,
    },
    /// It waits for a signal, or for time alone.
    Waiting {
        /// Empty = time alone.
        signal: String,
        /// Until when.
        until: TimestampUs,
    },
    /// Its branches run.
    Branches {
        /// How many there are.
        count: u32,
        /// What came of those that ended.
        ended: BTreeMap<u32, Json>,
    },
    /// Its items run.
    Items {
        /// The items.
        items: Vec<Json>,
        /// How many have begun.
        begun: u32,
        /// What came of those that ended.
        ended: BTreeMap<u32, Json>,
    },
}

/// An attempt whose outcome is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The step it belongs to.
    pub step: StepIndex,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// All that its effect needs.
    pub request: Json,
    /// What it may cost.
    pub reserved: NanoUsd,
    /// It has failed then.
    pub deadline: TimestampUs,
    /// Since when.
    pub at: TimestampUs,
    /// The rounds around the step.
    pub rounds: Vec<Round>,
    /// Nothing waits for it, but what it did may have to be undone.
    pub abandoned: bool,
    /// The saga that it started.
    pub child: Option<StreamId>,
    /// That saga has been told to end; its last word is waited for, however long it takes.
    pub is_ending: bool,
}

/// A step that can be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Its path.
    pub path: StepPath,
    /// Which step.
    pub step: StepIndex,
    /// The rounds around it.
    pub rounds: Vec<Round>,
    /// Attempts to undo it, so far.
    pub attempts: u32,
    /// Those of them from before an operator had it tried again.
    pub forgiven: u32,
    /// When the next one may begin.
    pub not_before: TimestampUs,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Events folded: the version of the stream.
    pub version: u64,
    /// How far it is.
    pub phase: Phase,
    /// What it does; `None` before it began, and if this server cannot read it.
    pub definition: Option<Shared>,
    /// Its own stream.
    pub stream: Option<StreamId>,
    /// What it began with.
    pub input: Json,
    /// What it may spend.
    pub budget: NanoUsd,
    /// What it has spent.
    pub spent: NanoUsd,
    /// What attempts in flight may spend.
    pub reserved: NanoUsd,
    /// When it began.
    pub started_at: TimestampUs,
    /// When it is cut.
    pub deadline: TimestampUs,
    /// When something last happened.
    pub changed_at: TimestampUs,
    /// Seed of waits that are spread by chance.
    pub seed: u64,
    /// Who waits for it.
    pub parent: Option<Parent>,
    /// What models cost.
    pub prices: Vec<SagaPrice>,
    /// Lists of steps that are being run.
    pub frames: BTreeMap<StepPath, Frame>,
    /// Attempts in flight, by path; those that undo a step are at `<path>.compensate`.
    pub attempts: BTreeMap<StepPath, Attempt>,
    /// Outcomes of steps.
    pub outputs: BTreeMap<StepPath, Json>,
    /// Their size together.
    pub outputs_bytes: usize,
    /// Steps that can be undone, oldest first.
    pub done: Vec<Done>,
    /// Steps that are undone.
    pub compensated: Vec<StepPath>,
    /// Steps that stay done by an operator's word, or because the definition does not undo them any more.
    pub left_done: Vec<StepPath>,
    /// Signals that no step has taken.
    pub signals: VecDeque<(String, Json)>,
    /// Steps begun.
    pub steps: u32,
    /// Levels of degrading that hold.
    pub level: u32,
    /// Of the last steps that ended: which step it was, what was asked and what came.
    pub history: VecDeque<u64>,
    /// Steps that ended in a row with nothing new: the same step had asked the same and got the same before.
    pub no_progress: u32,
}

/// The end of the path of what undoes a step.
pub const COMPENSATE: &str = "compensate";

/// The path of a step in a frame.
pub fn step_path(frame: &StepPath, id: &str) -> StepPath {
    if frame.as_str().is_empty() { id.into() } else { format!("{frame}.{id}").into() }
}

/// The path of a branch or an item of a step.
pub fn branch_path(step: &StepPath, branch: u32) -> StepPath {
    format!("{step}[{branch}]").into()
}

/// The frame and the id of a step's path.
pub fn split_step(path: &StepPath) -> (StepPath, &str) {
    match path.as_str().rsplit_once('.') {
        Some((frame, id)) => (frame.into(), id),
        None => (StepPath::default(), path.as_str()),
    }
}

/// The step and the number of a branch's path.
pub fn split_branch(path: &StepPath) -> Option<(StepPath, u32)> {
    let (step, number) = path.as_str().strip_suffix(']')?.rsplit_once('[')?;
    Some((step.into(), number.parse().ok()?))
}

/// The path of what undoes a step.
pub fn compensation_path(path: &StepPath) -> StepPath {
    format!("{path}.{COMPENSATE}").into()
}

/// The step that something undoes.
pub fn compensated_step(path: &StepPath) -> Option<StepPath> {
    path.as_str().strip_suffix(COMPENSATE).and_then(|path| path.strip_suffix('.')).map(StepPath::from)
}

impl State {
    /// The definition, if it has begun.
    pub fn definition(&self) -> Option<&Arc<Definition>> {
        self.definition.as_ref().map(|shared| &shared.0)
    }

    /// The step a frame is at.
    pub fn at(&self, frame: &Frame) -> Option<StepIndex> {
        let definition = self.definition()?;
        usize::try_from(frame.next).ok().and_then(|next| definition.block(frame.block).get(next)).copied()
    }

    /// The path of a step as seen from some rounds.
    pub fn instance(&self, step: StepIndex, rounds: &[Round]) -> Option<StepPath> {
        let definition = self.definition()?;
        let mut path = StepPath::default();
        for (around, branch) in definition.ancestors(step) {
            let container = definition.step(around)?;
            let number = match container.kind {
                Kind::Each { .. } => rounds.iter().find(|round| round.step == around)?.index,
                Kind::Model { .. }
                | Kind::Http { .. }
                | Kind::Append { .. }
                | Kind::Notify { .. }
                | Kind::Approve { .. }
                | Kind::Wait(_)
                | Kind::Signal { .. }
                | Kind::Saga { .. }
                | Kind::Parallel { .. }
                | Kind::Choice { .. }
                | Kind::Set { .. }
                | Kind::Fail { .. } => branch,
            };
            path = branch_path(&step_path(&path, &container.id), number);
        }
        Some(step_path(&path, &definition.step(step)?.id))
    }

    /// What is left of the budget.
    pub fn left(&self) -> NanoUsd {
        self.budget.minus(self.spent).minus(self.reserved)
    }

    /// Whether a `parallel` or `choice` is over, and with what.
    pub(super) fn joined(&self, kind: &Kind, count: u32, ended: &BTreeMap<u32, Json>) -> Option<Json> {
        let all = u32::try_from(ended.len()).is_ok_and(|ended| ended >= count);
        let list = || {
            let parts: Vec<&str> = ended.values().map(|json| json.as_str()).collect();
            Json::from(format!("[{}]", parts.join(",")))
        };
        let first = || ended.values().next().cloned().unwrap_or_else(|| "null".into());
        match kind {
            Kind::Parallel { join: Join::Any, .. } => (!ended.is_empty()).then(first),
            Kind::Choice { .. } => all.then(first),
            Kind::Parallel { join: Join::All, .. } | Kind::Each { .. } => all.then(list),
            Kind::Model { .. }
            | Kind::Http { .. }
            | Kind::Append { .. }
            | Kind::Notify { .. }
            | Kind::Approve { .. }
            | Kind::Wait(_)
            | Kind::Signal { .. }
            | Kind::Saga { .. }
            | Kind::Set { .. }
            | Kind::Fail { .. } => None,
        }
    }

    /// Whether another outcome can be kept: signals that wait become outcomes too.
    pub(super) fn has_room_for(&self, output: &Json) -> bool {
        let signals = self.signals_bytes();
        let sum = self.outputs_bytes.saturating_add(signals).saturating_add(output.as_str().len());
        sum <= OUTPUTS_BYTES_MAX
    }

    pub(super) fn signals_bytes(&self) -> usize {
        self.signals.iter().map(|(_, payload)| payload.as_str().len()).sum()
    }

    /// Whether a request has room beside those in flight; one always has.
    pub(super) fn has_room_beside(&self, request: &Json) -> bool {
        let flying: usize = self.attempts.values().map(|flying| flying.request.as_str().len()).sum();
        flying == 0 || flying.saturating_add(request.as_str().len()) <= REQUESTS_BYTES_MAX
    }

    /// Attempts in flight that undo nothing.
    pub fn forward(&self) -> impl Iterator<Item = (&StepPath, &Attempt)> {
        self.attempts.iter().filter(|(path, _)| compensated_step(path).is_none())
    }
}

/// A stored text as a value; what is no JSON is null.
pub fn value(json: &Json) -> Value {
    serde_json::from_str(json.as_str()).unwrap_or(Value::Null)
}

/// FNV-1a with a finalizer: the same on every machine.
pub fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
