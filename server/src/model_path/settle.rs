//! Settlement: what a request used, recorded until it is durable.

use std::time::Duration;

use actors_core::tenant::{Rejection, Tenant};
use actors_shell::{Ask, Handle, Unavailable};
use events_model::{
    CommitId, DecisionContext, DurationUs, NanoUsd, Principal, RequestId, TimestampUs, Tokens,
    tenant::{Command, Event, Outcome, SettleRequest, TEXT_BYTES_MAX, Usage, UsageSource},
};
use gateway::{
    openai::{Delivered, Usage as UpstreamUsage},
    upstream::{CallError, Upstream},
};
use tracing::{info, warn};

use super::{
    Parts, Work,
    admit::{Admitted, nothing},
    failure::chain,
    routing::USAGE_LOOKUP_MAX,
};
use crate::metrics::seconds;

/// First and longest pause between two attempts to record a settlement.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How a request ended, before its usage is known.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) outcome: Outcome,
    /// What the upstream reported.
    pub(super) reported: Option<UpstreamUsage>,
    /// The report came with a complete answer: it is final.
    pub(super) is_complete: bool,
    /// The upstream may have billed something.
    pub(super) may_be_billed: bool,
    pub(super) delivered: Delivered,
    pub(super) upstream_status: u32,
    pub(super) first_token: DurationUs,
    pub(super) duration: DurationUs,
    pub(super) detail: String,
}

impl Ending {
    /// A request whose answer was not completed, with what had been delivered.
    pub(super) fn incomplete(outcome: Outcome, delivered: Delivered, detail: &str) -> Self {
        Self {
            outcome,
            reported: None,
            is_complete: false,
            may_be_billed: true,
            delivered,
            upstream_status: 0,
            first_token: DurationUs::ZERO,
            duration: DurationUs::ZERO,
            detail: detail.to_owned(),
        }
    }

    /// A call that failed before an answer began, or in the middle of it.
    pub(super) fn failed(error: &CallError, in_the_middle: bool) -> Self {
        let outcome = match error {
            CallError::Timeout { .. } => Outcome::TimedOut,
            CallError::Connect { .. } | CallError::Status { .. } | CallError::NoLookup { .. } => {
                Outcome::UpstreamFailed
            }
            CallError::Cut { .. }
            | CallError::Reported { .. }
            | CallError::Malformed { .. }
            | CallError::TooLarge { .. } => {
                if in_the_middle {
                    Outcome::UpstreamCut
                } else {
                    Outcome::UpstreamFailed
                }
            }
        };
        let reported = if let CallError::Cut { usage, .. } = error { *usage } else { None };
        Self {
            reported,
            may_be_billed: error.billable_unknown(),
            upstream_status: error.upstream_status().map_or(0, u32::from),
            ..Self::incomplete(outcome, error.delivered(), &chain(error, TEXT_BYTES_MAX))
        }
    }
}

/// How a request ended, with its usage.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) outcome: Outcome,
    pub(crate) usage: Usage,
    pub(crate) upstream_status: u32,
    pub(crate) first_token: DurationUs,
    pub(crate) duration: DurationUs,
    pub(crate) detail: String,
}

impl Closing {
    pub(crate) const fn new(outcome: Outcome, usage: Usage) -> Self {
        let zero = DurationUs::ZERO;
        Self { outcome, usage, upstream_status: 0, first_token: zero, duration: zero, detail: String::new() }
    }

    /// The command that says so.
    pub(crate) fn settlement(self, request_id: RequestId) -> SettleRequest {
        SettleRequest {
            request_id,
            outcome: self.outcome,
            usage: self.usage,
            upstream_status: self.upstream_status,
            first_token: self.first_token,
            duration: self.duration,
            detail: self.detail,
        }
    }
}

/// What stands beside a settlement in the log.
#[derive(Debug, Clone)]
pub(crate) struct Recording {
    pub(crate) handle: Handle<Tenant>,
    pub(crate) cause: Option<CommitId>,
    pub(crate) traceparent: String,
    pub(crate) inputs: DecisionContext,
    /// When the reservation ends by itself.
    pub(crate) deadline: TimestampUs,
    pub(crate) component: &'static str,
}

/// A durable settlement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settled {
    pub(crate) usage: Usage,
    pub(crate) cost: NanoUsd,
}

/// Why a settlement is not recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Nothing is held: it expired, or settled before.
    NotOpen,
    /// Time was over; the reservation's deadline covers it.
    GivenUp,
    /// The rules refuse it, which is a mistake of ours.
    Refused(Rejection),
}

impl Work {
    pub(super) fn recording(&self, admitted: &Admitted) -> Recording {
        Recording {
            handle: admitted.handle.clone(),
            cause: Some(admitted.cause.clone()),
            traceparent: self.submission.traceparent.clone().unwrap_or_default(),
            inputs: admitted.inputs,
            deadline: admitted.deadline,
            component: "gateway",
        }
    }

    /// Finds out what was used and records it.
    pub(super) async fn close(&self, admitted: &Admitted, ending: Ending) -> Result<Settled, Lost> {
        let parts = self.path.parts();
        let outcome = ending.outcome;
        let Some(usage) = self.usage(admitted, &ending).await else {
            parts.metrics.settlements_lost.inc();
            return Err(Lost::GivenUp);
        };
        let Ending { upstream_status, first_token, duration, detail, .. } = ending;
        let closing = Closing { outcome, usage, upstream_status, first_token, duration, detail };
        if first_token > DurationUs::ZERO {
            parts.metrics.first_token.observe(seconds(first_token));
        }
        parts.metrics.duration.observe(seconds(duration));
        let labels = [self.submission.surface.label(), outcome.name()];
        parts.metrics.model_requests.with_label_values(&labels).inc();
        let settlement = closing.settlement(self.submission.request_id);
        settle(parts, &self.recording(admitted), settlement).await
    }

    /// What was used; none if we must stop before we know, so that the next start asks again.
    async fn usage(&self, admitted: &Admitted, ending: &Ending) -> Option<Usage> {
        let reported = |usage: UpstreamUsage| from_upstream(usage, UsageSource::Reported);
        if let (Some(usage), true) = (ending.reported, ending.is_complete) {
            return Some(reported(usage));
        }
        if !ending.may_be_billed {
            return Some(nothing());
        }
        let parts = self.path.parts();
        if parts.stop.abandon.is_cancelled() {
            return None;
        }
        let request_id = self.submission.request_id;
        if admitted.upstream.settings().usage_lookup_path.is_some() {
            let asking = look_up(parts, &admitted.upstream, request_id, USAGE_LOOKUP_MAX);
            match parts.stop.abandon.run_until_cancelled(asking).await? {
                Ok(usage) => return Some(usage),
                Err(error) => {
                    let error = chain(&error, TEXT_BYTES_MAX);
                    warn!(%request_id, error, "usage unknown to its upstream, will be estimated");
                }
            }
        }
        if let Some(usage) = ending.reported {
            return Some(reported(usage));
        }
        Some(Usage {
            prompt_tokens: self.submission.request.prompt_tokens_estimate().min(admitted.prompt_tokens_max),
            completion_tokens: ending.delivered.tokens_estimate().min(admitted.completion_tokens_max),
            source: UsageSource::Counted,
        })
    }
}

fn from_upstream(usage: UpstreamUsage, source: UsageSource) -> Usage {
    Usage { prompt_tokens: usage.prompt, completion_tokens: usage.completion, source }
}

/// Asks an upstream what it billed.
pub(crate) async fn look_up(
    parts: &Parts,
    upstream: &Upstream,
    request_id: RequestId,
    wait_max: Duration,
) -> Result<Usage, CallError> {
    let answer = upstream.lookup_usage(request_id, wait_max).await;
    let label = match &answer {
        Ok(Some(_)) => "billed",
        Ok(None) => "nothing",
        Err(_) => "failed",
    };
    parts.metrics.usage_lookups.with_label_values(&[label]).inc();
    let zero = UpstreamUsage { prompt: Tokens::ZERO, completion: Tokens::ZERO };
    answer.map(|usage| from_upstream(usage.unwrap_or(zero), UsageSource::LookedUp))
}

impl Recording {
    /// What the tenant's actor is asked to record; `idempotent` = it may be there already.
    pub(super) fn ask(&self, command: Command, request_id: RequestId, id: (CommitId, bool)) -> Ask<Command> {
        let (commit_id, idempotent) = id;
        Ask {
            command,
            commit_id,
            idempotent,
            episode_id: request_id.into(),
            causation_id: self.cause.clone(),
            principal: Principal::system(self.component),
            traceparent: self.traceparent.clone(),
            inputs: self.inputs,
        }
    }
}

/// Records a settlement; tries again while the log refuses, until the reservation has ended by itself or the
/// server must stop.
pub(crate) async fn settle(parts: &Parts, recording: &Recording, settlement: SettleRequest) -> Result<Settled, Lost> {
    let request_id = settlement.request_id;
    // Always a valid id: a UUID behind a short word.
    let Ok(commit_id) = CommitId::new(&format!("settle/{request_id}")) else { return Err(Lost::GivenUp) };
    // After a crash or an unknown outcome the same settlement may be there already.
    let is_repeated = recording.cause.is_none();
    let ask = recording.ask(Command::SettleRequest(settlement), request_id, (commit_id, is_repeated));
    let lost = match persist(parts, recording, request_id, ask).await {
        Ok(Ok(events)) => return settled(parts, &events),
        Ok(Err(rejection)) => refused(rejection),
        Err(GivenUp) => Lost::GivenUp,
    };
    match &lost {
        Lost::NotOpen => info!(%request_id, "nothing is held for the request any more"),
        Lost::GivenUp => parts.metrics.settlements_lost.inc(),
        Lost::Refused(rejection) => {
            parts.metrics.settlements_lost.inc();
            tracing::error!(%request_id, %rejection, "settlement refused by the rules");
        }
    }
    Err(lost)
}

/// There was no time for another attempt.
#[derive(Debug)]
pub(super) struct GivenUp;

/// Has the actor decide until it does; the events, or the rule that is broken.
pub(super) async fn persist(
    parts: &Parts,
    recording: &Recording,
    request_id: RequestId,
    mut ask: Ask<Command>,
) -> Result<Result<Vec<Event>, Rejection>, GivenUp> {
    let mut pause = RETRY_FIRST;
    loop {
        match recording.handle.ask(ask.clone()).await {
            Ok(Ok(decided)) => return Ok(Ok(decided.events)),
            Ok(Err(rejected)) => return Ok(Err(rejected.rejection)),
            Err(Unavailable::Closed) => return Err(GivenUp),
            Err(error) => {
                // While the log refuses, or nobody decides, nothing expires either, so there is no reason to give up what is known.
                let refuses = matches!(
                    error,
                    Unavailable::Refusing(_)
                        | Unavailable::Aborted(_)
                        | Unavailable::Elsewhere
                        | Unavailable::Unreachable
                );
                let until = if refuses { TimestampUs(u64::MAX) } else { recording.deadline };
                if !wait(parts, until, pause).await {
                    let error = chain(&error, TEXT_BYTES_MAX);
                    warn!(%request_id, error, "settlement given up, the reservation's deadline covers it");
                    return Err(GivenUp);
                }
                parts.metrics.settlement_retries.inc();
                pause = pause.saturating_mul(2).min(RETRY_MAX);
                ask.idempotent = true;
            }
        }
    }
}

fn refused(rejection: Rejection) -> Lost {
    if matches!(rejection, Rejection::NotOpen { .. }) { Lost::NotOpen } else { Lost::Refused(rejection) }
}

/// Pauses; false if there is no time for another attempt.
async fn wait(parts: &Parts, deadline: TimestampUs, pause: Duration) -> bool {
    if parts.clock.now() >= deadline {
        return false;
    }
    parts.stop.abandon.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
}

fn settled(parts: &Parts, events: &[Event]) -> Result<Settled, Lost> {
    for event in events {
        if let Event::RequestSettled { settlement, cost, .. } = event {
            parts.metrics.add_usage(&settlement.usage);
            parts.metrics.model_cost.inc_by(u64::try_from(cost.0).unwrap_or(0));
            return Ok(Settled { usage: settlement.usage, cost: *cost });
        }
    }
    // An idempotency key that stands for something else: it cannot be, keys of settlements have a form of their own.
    Err(Lost::GivenUp)
}
