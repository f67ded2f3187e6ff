//! What happened in an episode: the timeline of one request or one administrative act, and the list of a tenant's
//! episodes, newest first.
//!
//! Invariants: an entry for every event, in log order, decodable or not; totals and end state come from the events
//! alone; every read is bounded, and a bound that was met is said.

mod list;
mod show;

use events_model::{
    CommitView, DurationUs, EpisodeId, NanoUsd, TimestampUs, Tokens,
    tenant::{self, Outcome},
};

pub use self::{
    list::{ListError, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Page, list},
    show::{COMMITS_MAX, show},
};
use crate::fact::Fact;

/// How an episode stands at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndState {
    /// A request that was admitted and not settled yet.
    Open,
    /// A request that was settled.
    Settled(Outcome),
    /// A request that nobody settled in time.
    Expired,
    /// No request: an act of the operator or of the platform.
    Administration,
}

impl EndState {
    /// The word operators see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Settled(outcome) => outcome.name(),
            Self::Expired => "expired",
            Self::Administration => "administration",
        }
    }
}

/// An episode at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The episode.
    pub episode_id: EpisodeId,
    /// The tenant it concerns; empty = none.
    pub tenant: String,
    /// When its first event was recorded.
    pub started_at: TimestampUs,
    /// From its first event to its last.
    pub duration: DurationUs,
    /// How it stands.
    pub end_state: EndState,
    /// Model as the client named it; empty = no request.
    pub model: String,
    /// Prompt tokens settled.
    pub prompt_tokens: Tokens,
    /// Completion tokens settled.
    pub completion_tokens: Tokens,
    /// What was paid.
    pub cost: NanoUsd,
}

/// One event of an episode and the command behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Place of its commit in the log.
    pub position: u64,
    /// Its stream.
    pub stream: String,
    /// Its version there.
    pub version: u64,
    /// Its short name: `RequestAdmitted`.
    pub event: String,
    /// When it was recorded.
    pub recorded_at: TimestampUs,
    /// Since the first event of the episode.
    pub since_start: DurationUs,
    /// What it says, one line for people, without control characters.
    pub summary: String,
    /// Money it set aside.
    pub reserved: Option<NanoUsd>,
    /// Money it charged.
    pub cost: Option<NanoUsd>,
    /// Money it set free.
    pub released: Option<NanoUsd>,
    /// Its fields as JSON.
    pub payload_json: String,
    /// Short name of the command behind it: `AdmitRequest`.
    pub command: String,
    /// The command's fields as JSON.
    pub command_json: String,
    /// Idempotency key of the command.
    pub commit_id: String,
    /// Who asked.
    pub principal: String,
}

/// An episode as it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Episode {
    /// It at a glance.
    pub summary: Summary,
    /// Its events in log order.
    pub entries: Vec<Entry>,
    /// It has more than `COMMITS_MAX` commits; those behind are not here.
    pub is_truncated: bool,
}

impl Summary {
    fn begin(first: &CommitView<'_>) -> Self {
        Self {
            episode_id: first.episode(),
            tenant: first.tenant.to_owned(),
            started_at: first.recorded_at(),
            duration: DurationUs::ZERO,
            end_state: EndState::Administration,
            model: String::new(),
            prompt_tokens: Tokens::ZERO,
            completion_tokens: Tokens::ZERO,
            cost: NanoUsd::ZERO,
        }
    }

    fn commit(&mut self, commit: &CommitView<'_>) {
        if self.tenant.is_empty() {
            self.tenant.push_str(commit.tenant);
        }
        self.duration = self.duration.max(commit.recorded_at().since(self.started_at));
    }

    fn fact(&mut self, fact: &Fact) {
        match fact {
            Fact::Tenant(tenant::Event::RequestAdmitted { request, .. }) => {
                self.end_state = EndState::Open;
                self.model.clone_from(&request.model);
            }
            Fact::Tenant(tenant::Event::RequestSettled { settlement, cost, .. }) => {
                self.end_state = EndState::Settled(settlement.outcome);
                self.prompt_tokens = self.prompt_tokens.plus(settlement.usage.prompt_tokens);
                self.completion_tokens = self.completion_tokens.plus(settlement.usage.completion_tokens);
                self.cost = self.cost.plus(*cost);
            }
            Fact::Tenant(tenant::Event::ReservationExpired { .. }) => self.end_state = EndState::Expired,
            Fact::Tenant(
                tenant::Event::TenantRegistered { .. }
                | tenant::Event::ApiKeyIssued { .. }
                | tenant::Event::ApiKeyRevoked { .. }
                | tenant::Event::PlanSet { .. }
                | tenant::Event::BudgetSet { .. }
                | tenant::Event::TenantSuspended { .. }
                | tenant::Event::TenantResumed { .. }
                | tenant::Event::RequestsRefused { .. },
            )
            | Fact::Region(_) => {}
        }
    }
}
