//! Admission: route the request, bound what it may cost, and have the tenant's actor hold that much.

use actors_core::{
    Decider as _,
    route::Route,
    tenant::{Rejection, Tenant, View},
};
use actors_shell::{Ask, Handle, Unavailable};
use events_journal::Outcome as WriteOutcome;
use events_model::{
    CommitId, DecisionContext, Principal, RequestId, TimestampUs, Tokens,
    tenant::{AdmitRequest, Command, Event, Outcome, Usage, UsageSource},
};
use gateway::{
    openai::ApiError,
    upstream::{Call, Upstream},
};
use sha2::{Digest as _, Sha256};

use super::{
    ModelPath, Submission, Work,
    failure::{Failed, Failure},
    settle::{self, Closing},
};
use crate::metrics::seconds;

/// A request that may go to its upstream.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) handle: Handle<Tenant>,
    pub(super) upstream: Upstream,
    pub(super) upstream_model: String,
    /// Bound on each choice.
    pub(super) choice_tokens_max: Tokens,
    /// Bound on all choices together.
    pub(super) completion_tokens_max: Tokens,
    pub(super) prompt_tokens_max: Tokens,
    pub(super) deadline: TimestampUs,
    pub(super) inputs: DecisionContext,
    /// The admission's commit.
    pub(super) cause: CommitId,
    pub(super) view: View,
}

impl Work {
    /// Admits the request.
    pub(super) async fn admit(&self) -> Result<Admitted, Failed> {
        let Self { path, submission, .. } = self;
        let parts = path.parts();
        let now = parts.clock.now();
        let inputs = DecisionContext { seed: seed(parts.ids.random()), ..parts.inputs };
        let (command, mut admitted) = self.plan(now, inputs)?;
        let ask = Ask {
            command: Command::AdmitRequest(command),
            commit_id: admitted.cause.clone(),
            idempotent: submission.idempotency_key.is_some(),
            episode_id: submission.request_id.into(),
            causation_id: None,
            principal: Principal::key(&submission.caller.key_id),
            traceparent: submission.traceparent.clone().unwrap_or_default(),
            inputs,
        };
        let answer = admitted.handle.ask(ask).await;
        parts.metrics.admission.observe(seconds(parts.clock.now().since(now)));
        let decided = match answer {
            Ok(Ok(decided)) => decided,
            Ok(Err(rejected)) => return Err(refused(path, rejected.rejection, rejected.view)),
            Err(unavailable) => {
                self.release_if_unknown(&unavailable, &admitted);
                return Err(Failure::Unavailable(unavailable).into());
            }
        };
        let recorded = decided.events.iter().find_map(recorded);
        let Some(recorded) = recorded else {
            return Err(Failure::Internal { what: "the admission has no event" }.into());
        };
        // Under this request's own id it was admitted by an earlier try of this very call, whose answer got lost on
        // the way from another node: nobody else serves it.
        if decided.duplicate && recorded.request_id != submission.request_id {
            return Err(Failed::with_view(Failure::Duplicate { first: recorded.request_id }, decided.view));
        }
        // The rules name the upstream that is called: what they recorded is what happens.
        debug_assert_eq!(
            recorded.upstream,
            admitted.upstream.settings().name,
            "the route is the one that was admitted"
        );
        admitted.upstream_model = recorded.upstream_model.clone();
        admitted.view = decided.view;
        Ok(admitted)
    }

    /// What is asked of the tenant's actor.
    fn plan(&self, now: TimestampUs, inputs: DecisionContext) -> Result<(AdmitRequest, Admitted), Failed> {
        let Submission { request_id, caller, request, idempotency_key, .. } = &self.submission;
        let routing = self.path.routing();
        let unknown = || Failed::from(ApiError::model_not_found(&request.model));
        let route = routing.choose(&request.model, inputs.seed).ok_or_else(unknown)?;
        let upstream = routing.upstream(&route.upstream).ok_or_else(unknown)?;
        let choice_tokens_max = bound(request.completion_tokens_max, route)?;
        let completion_tokens_max = Tokens(choice_tokens_max.0.saturating_mul(request.n.into()));
        let prompt_tokens_max = request.prompt_tokens_bound();
        let deadline = now.after(routing.reservation_span(upstream));
        let command = AdmitRequest {
            request_id: *request_id,
            key_id: caller.key_id.clone(),
            model: request.model.clone(),
            upstream: route.upstream.clone(),
            upstream_model: route.upstream_model.clone(),
            prompt_tokens_max,
            completion_tokens_max,
            price: route.price,
            deadline,
            streaming: request.stream,
        };
        let admitted = Admitted {
            handle: caller.handle.clone(),
            upstream: upstream.clone(),
            upstream_model: route.upstream_model.clone(),
            choice_tokens_max,
            completion_tokens_max,
            prompt_tokens_max,
            deadline,
            inputs,
            cause: admission_id(*request_id, idempotency_key.as_deref())?,
            view: View::default(),
        };
        Ok((command, admitted))
    }

    /// Releases what an admission may have held although nobody was told of it.
    fn release_if_unknown(&self, unavailable: &Unavailable, admitted: &Admitted) {
        let is_unknown = match unavailable {
            Unavailable::Aborted(error) => error.outcome() == WriteOutcome::Unknown,
            Unavailable::Restarted | Unavailable::Unreachable => true,
            Unavailable::Overloaded { .. }
            | Unavailable::Refusing(_)
            | Unavailable::Storage(_)
            | Unavailable::Elsewhere
            | Unavailable::Closed => false,
        };
        if !is_unknown {
            return;
        }
        let closing = Closing {
            detail: "the admission's outcome was unknown".to_owned(),
            ..Closing::new(Outcome::UpstreamFailed, nothing())
        };
        let settlement = closing.settlement(self.submission.request_id);
        let (path, recording) = (self.path.clone(), self.recording(admitted));
        self.path.inner.tasks.spawn(async move {
            // Whether it was there or not, nothing is held afterwards; the deadline covers what fails here.
            drop(settle::settle(path.parts(), &recording, settlement).await);
        });
    }

    /// The call of the upstream.
    pub(super) fn call(&self, admitted: &Admitted) -> Call {
        let Submission { request_id, request, traceparent, .. } = &self.submission;
        Call {
            request_id: *request_id,
            model: request.model.clone(),
            body: admitted.upstream.body(request, &admitted.upstream_model, admitted.choice_tokens_max),
            include_usage: request.include_usage,
            traceparent: traceparent.clone(),
        }
    }
}

/// No tokens, and nobody says otherwise.
pub(super) const fn nothing() -> Usage {
    Usage { prompt_tokens: Tokens::ZERO, completion_tokens: Tokens::ZERO, source: UsageSource::None }
}

fn seed(random: [u8; 10]) -> u64 {
    random.iter().take(8).fold(0, |seed, byte| (seed << 8) | u64::from(*byte))
}

/// The bound on a choice: the client's, or the model's default; more than the model may give is refused, not cut,
/// so that a client learns why its answers would be short.
fn bound(asked: Option<Tokens>, route: &Route) -> Result<Tokens, ApiError> {
    let most = route.completion_tokens_max;
    match asked {
        Some(asked) if asked.0 > most => {
            let message =
                format!("{asked} completion tokens are more than the {most} that '{}' may give.", route.model);
            Err(ApiError::bad_request(Some("integer_above_max_value"), Some("max_tokens".to_owned()), message))
        }
        Some(asked) => Ok(asked),
        None => Ok(Tokens(route.completion_tokens_default.min(most))),
    }
}

/// The admission's idempotency key: the client's, hashed, or the request's own id.
fn admission_id(request_id: RequestId, key: Option<&str>) -> Result<CommitId, Failed> {
    let text = match key {
        None => format!("admit/{request_id}"),
        Some(key) => {
            let digest = Sha256::digest(key.as_bytes());
            digest.iter().fold("admit/idem-".to_owned(), |text, byte| format!("{text}{byte:02x}"))
        }
    };
    CommitId::new(&text).map_err(|_| Failure::Internal { what: "the admission's id is not one" }.into())
}

fn refused(path: &ModelPath, rejection: Rejection, view: View) -> Failed {
    let reason = Tenant::refusal(&rejection).map_or("rule", events_model::tenant::RefusalReason::name);
    path.parts().metrics.model_refusals.with_label_values(&[reason]).inc();
    // The key was good a moment ago; it was revoked in between.
    if rejection == Rejection::UnknownKey {
        return Failed::with_view(Failure::Unauthenticated, view);
    }
    Failed::with_view(Failure::Rejected(rejection), view)
}

/// The admission that an event records.
fn recorded(event: &Event) -> Option<&AdmitRequest> {
    match event {
        Event::RequestAdmitted { request, .. } => Some(request),
        Event::TenantRegistered { .. }
        | Event::ApiKeyIssued { .. }
        | Event::ApiKeyRevoked { .. }
        | Event::PlanSet { .. }
        | Event::BudgetSet { .. }
        | Event::TenantSuspended { .. }
        | Event::TenantResumed { .. }
        | Event::RequestSettled { .. }
        | Event::ReservationExpired { .. }
        | Event::RequestsRefused { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use events_model::tenant::Price;

    use super::*;

    #[test]
    fn a_bound_above_the_models_own_is_refused_and_none_is_the_default() {
        let route = Route {
            model: "m".to_owned(),
            upstream: "u".to_owned(),
            upstream_model: "m".to_owned(),
            completion_tokens_default: 100,
            completion_tokens_max: 64,
            price: Price::default(),
        };
        assert_eq!(bound(None, &route).unwrap(), Tokens(64));
        assert_eq!(bound(Some(Tokens(64)), &route).unwrap(), Tokens(64));
        let error = bound(Some(Tokens(65)), &route).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some("max_tokens")));
    }

    #[test]
    fn an_idempotency_key_never_appears_in_the_log_and_always_gives_the_same_id() {
        let one = RequestId::from_bytes([1; 16]);
        let id = admission_id(one, Some("order 7")).unwrap();
        assert!(!id.as_str().contains("order"), "{id}");
        assert_eq!(id, admission_id(RequestId::from_bytes([2; 16]), Some("order 7")).unwrap());
        assert_eq!(id.as_str().len(), "admit/idem-".len() + 64);
        assert_eq!(admission_id(one, None).unwrap().as_str(), format!("admit/{one}"));
    }
}
