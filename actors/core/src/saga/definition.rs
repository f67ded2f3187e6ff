//! A definition: what a saga does, as data.
//!
//! Invariants: steps lie in one list in the order of the text; a step's children have greater numbers than itself;
//! everything is bounded by the constants here. Made by `parse`, judged by `check`.

use std::collections::BTreeMap;

use events_model::{DurationUs, NanoUsd, saga::Json};

use super::tree::{Node, Place};

/// Most steps of a definition.
pub const STEPS_LEN_MAX: usize = 512;
/// Deepest nesting of steps in steps.
pub const STEP_DEPTH_MAX: usize = 8;
/// Most branches of a `parallel` or `choice`.
pub const BRANCHES_LEN_MAX: usize = 64;
/// Most items of an `each`.
pub const ITEMS_LEN_MAX: u32 = 1_000;
/// Most items of an `each` at a time.
pub const ITEMS_IN_PARALLEL_MAX: u32 = 64;
/// Most attempts of a step.
pub const ATTEMPTS_MAX: u32 = 100;
/// Longest attempt of a step that waits for a machine.
pub const TIMEOUT_MAX: DurationUs = DurationUs::from_secs(3_600);
/// Longest wait of any kind, and longest life of a saga.
pub const WAIT_MAX: DurationUs = DurationUs::from_secs(366 * 24 * 3_600);
/// Most steps begun by one saga.
pub const LIMIT_STEPS_MAX: u32 = 10_000;
/// Most money of one saga.
pub const BUDGET_MAX: NanoUsd = NanoUsd::from_usd(1_000_000);
/// Longest window of the search for repeats.
pub const WINDOW_MAX: u32 = 256;
/// Most levels of degrading.
pub const LEVELS_LEN_MAX: usize = 8;
/// Most tokens of one answer.
pub const TOKENS_MAX: u32 = 1_000_000;

/// A step's number in its definition.
pub type StepIndex = u32;
/// A block's number in its definition.
pub type BlockIndex = u32;

/// A whole definition.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Its version, from 1.
    pub version: u32,
    /// For people.
    pub description: String,
    /// What `Start` has to bring, by name.
    pub input: BTreeMap<String, InputType>,
    /// What a saga may spend.
    pub budget: NanoUsd,
    /// When it is cut.
    pub limits: Limits,
    /// What becomes cheaper before that.
    pub degrade: Vec<Level>,
    /// All steps.
    pub steps: Vec<Step>,
    /// Lists of steps; the first is the saga's own.
    pub blocks: Vec<Vec<StepIndex>>,
    /// What comes of it; a template.
    pub output: Option<Node>,
    /// The canonical form: compact JSON, keys in ascending order.
    pub canonical: Json,
}

/// The type of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputType {
    /// Which values.
    pub kind: InputKind,
    /// Whether it may be absent.
    pub optional: bool,
}

/// Which values an input may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// A text.
    Text,
    /// A whole number.
    Int,
    /// A number.
    Number,
    /// True or false.
    Bool,
    /// A list.
    List,
    /// An object.
    Map,
    /// Whatever JSON can say.
    Any,
}

/// When a saga is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Steps begun.
    pub steps: u32,
    /// Time since the start.
    pub wall_time: DurationUs,
    /// Money; at most the budget.
    pub spend: NanoUsd,
    /// In how many ended steps repeats are searched for.
    pub window: u32,
    /// How often the same step may ask the same and get the same there.
    pub same: u32,
    /// Ended steps in a row that asked what they, or their like, had asked before, and got the same.
    pub no_progress_steps: u32,
}

impl Limits {
    /// What holds where a definition says nothing.
    pub const DEFAULT: Self = Self {
        steps: 5_000,
        wall_time: DurationUs::from_secs(30 * 24 * 3_600),
        spend: BUDGET_MAX,
        window: 64,
        same: 16,
        no_progress_steps: 200,
    };
}

/// A level of degrading: each holds from when it is applied, beside those before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Level {
    /// Which tier models are asked on.
    pub tier: Option<String>,
    /// Most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// How many messages of a conversation are kept: the last ones, and those of the system.
    pub context_messages: Option<u32>,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its name, unique in the definition.
    pub id: String,
    /// For people.
    pub name: String,
    /// It is skipped where this is false.
    pub condition: Option<Node>,
    /// Longest attempt.
    pub timeout: Option<DurationUs>,
    /// When it is tried again.
    pub retry: Retry,
    /// What undoes it.
    pub compensate: Option<Compensation>,
    /// Under which name expressions find its outcome.
    pub result: String,
    /// What it does.
    pub kind: Kind,
    /// The step it is part of, and in which of its branches.
    pub parent: Option<(StepIndex, u32)>,
    /// Where it stands.
    pub at: Position,
}

/// A place that does not tell definitions apart.
#[derive(Debug, Clone, Copy, Default)]
pub struct Position(pub Place);

impl PartialEq for Position {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What undoes a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Compensation {
    /// What is done: `http`, `append`, `notify` or `saga`.
    pub kind: Kind,
    /// Longest attempt.
    pub timeout: Option<DurationUs>,
    /// When it is tried again.
    pub retry: Retry,
}

/// When something is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Attempts altogether, from 1.
    pub attempts: u32,
    /// Longest wait before the second attempt.
    pub first: DurationUs,
    /// Longest wait of all.
    pub max: DurationUs,
    /// By how much the wait grows with each attempt.
    pub factor: u32,
    /// Kinds of failures that no attempt cures.
    pub not: Vec<String>,
}

impl Retry {
    /// What holds for a step that says nothing: one attempt.
    pub const NONE: Self = Self {
        attempts: 1,
        first: DurationUs::from_secs(1),
        max: DurationUs::from_secs(60),
        factor: 2,
        not: Vec::new(),
    };
    /// What holds for a compensation that says nothing: it should succeed.
    pub const PATIENT: Self = Self {
        attempts: 8,
        first: DurationUs::from_secs(1),
        max: DurationUs::from_secs(60),
        factor: 2,
        not: Vec::new(),
    };
}

/// What becomes of a wait whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnTimeout {
    /// The step fails.
    Fail,
    /// The step succeeds, with null.
    Continue,
}

/// When a `parallel` is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// With the last branch.
    All,
    /// With the first.
    Any,
}

/// Until when a step waits.
#[derive(Debug, Clone, PartialEq)]
pub enum Until {
    /// For so long.
    For(DurationUs),
    /// A template: RFC 3339 or UTC microseconds.
    At(Node),
}

/// What a step does. `Node`s are templates, except for `items` and `when`, which are expressions.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields are the keys of the definition, described in docs/sagas.md")]
pub enum Kind {
    /// Asks a model.
    Model { model: String, messages: Node, max_tokens: u32, temperature: Option<Node>, tier: String },
    /// Calls a service.
    Http { method: String, url: Node, headers: Option<Node>, body: Option<Node>, ok: Vec<(u16, u16)> },
    /// Appends an event to a stream of the tenant's applications.
    Append { stream: Node, event: String, payload: Node },
    /// Tells somebody.
    Notify { url: Node, body: Option<Node> },
    /// Asks a person.
    Approve { title: Node, assignees: Option<Node>, timeout: DurationUs, on_timeout: OnTimeout },
    /// Lets time pass.
    Wait(Until),
    /// Waits for a signal.
    Signal { name: String, timeout: DurationUs, on_timeout: OnTimeout },
    /// Runs another saga.
    Saga { definition: String, version: u32, input: Option<Node>, budget: NanoUsd },
    /// Does several things at once.
    Parallel { branches: Vec<BlockIndex>, join: Join },
    /// Does one of several things.
    Choice { cases: Vec<(Option<Node>, BlockIndex)> },
    /// Does something for each of several items.
    Each { items: Node, variable: String, at_most: u32, in_parallel: u32, block: BlockIndex },
    /// Computes.
    Set { values: Node },
    /// Fails.
    Fail { kind: Node, message: Node },
}

impl Kind {
    /// Its key in a definition.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Model { .. } => "model",
            Self::Http { .. } => "http",
            Self::Append { .. } => "append",
            Self::Notify { .. } => "notify",
            Self::Approve { .. } => "approve",
            Self::Wait(_) => "wait",
            Self::Signal { .. } => "signal",
            Self::Saga { .. } => "saga",
            Self::Parallel { .. } => "parallel",
            Self::Choice { .. } => "choice",
            Self::Each { .. } => "each",
            Self::Set { .. } => "set",
            Self::Fail { .. } => "fail",
        }
    }

    /// Whether it does something outside that can be tried again, timed out and undone.
    pub const fn is_action(&self) -> bool {
        matches!(
            self,
            Self::Model { .. }
                | Self::Http { .. }
                | Self::Append { .. }
                | Self::Notify { .. }
                | Self::Approve { .. }
                | Self::Saga { .. }
        )
    }

    /// The lists of steps in it.
    pub fn blocks(&self) -> Vec<BlockIndex> {
        match self {
            Self::Parallel { branches, .. } => branches.clone(),
            Self::Choice { cases } => cases.iter().map(|(_, block)| *block).collect(),
            Self::Each { block, .. } => vec![*block],
            Self::Model { .. }
            | Self::Http { .. }
            | Self::Append { .. }
            | Self::Notify { .. }
            | Self::Approve { .. }
            | Self::Wait(_)
            | Self::Signal { .. }
            | Self::Saga { .. }
            | Self::Set { .. }
            | Self::Fail { .. } => Vec::new(),
        }
    }
}

impl Definition {
    /// A step by its number.
    pub fn step(&self, index: StepIndex) -> Option<&Step> {
        usize::try_from(index).ok().and_then(|index| self.steps.get(index))
    }

    /// A block's steps.
    pub fn block(&self, index: BlockIndex) -> &[StepIndex] {
        usize::try_from(index).ok().and_then(|index| self.blocks.get(index)).map_or(&[], Vec::as_slice)
    }

    /// The step whose outcome has this name.
    pub fn by_result(&self, result: &str) -> Option<StepIndex> {
        let found = self.steps.iter().position(|step| step.result == result)?;
        u32::try_from(found).ok()
    }

    /// The steps around one, from the outside in, with the branch of each: the last is its own parent.
    pub fn ancestors(&self, step: StepIndex) -> Vec<(StepIndex, u32)> {
        let mut chain = Vec::new();
        let mut next = self.step(step).and_then(|step| step.parent);
        while let Some((parent, branch)) = next {
            chain.push((parent, branch));
            next = self.step(parent).and_then(|step| step.parent);
        }
        chain.reverse();
        chain
    }

    /// The names and versions of the sagas it starts.
    pub fn children(&self) -> impl Iterator<Item = (&str, u32)> {
        self.steps
            .iter()
            .flat_map(|step| std::iter::once(&step.kind).chain(step.compensate.as_ref().map(|undo| &undo.kind)))
            .filter_map(|kind| match kind {
                Kind::Saga { definition, version, .. } => Some((definition.as_str(), *version)),
                Kind::Model { .. }
                | Kind::Http { .. }
                | Kind::Append { .. }
                | Kind::Notify { .. }
                | Kind::Approve { .. }
                | Kind::Wait(_)
                | Kind::Signal { .. }
                | Kind::Parallel { .. }
                | Kind::Choice { .. }
                | Kind::Each { .. }
                | Kind::Set { .. }
                | Kind::Fail { .. } => None,
            })
    }
}
