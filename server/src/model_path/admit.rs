//! Admission: route the request, bound what it may cost, and have the tenant's actor hold that much.

use actors_core::{
    Decider as _,
    route::Route,
    tenant::{Rejection, Tenant, View},
};
use actors_shell::{Ask, Handle, Unavailable};
use events_model::{
    CommitId, DecisionContext, Principal, TimestampUs, Tokens,
    tenant::{AdmitRequest, Command, Event, Usage, UsageSource},
};
use gateway::{
    openai::ApiError,
    upstream::{Call, Upstream},
};

use super::{
    ModelPath, Submission, Work,
    failure::{Failed, Failure},
    routing::micros,
    void::{TRIES_MAX, admission_id, is_unknown},
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
        // Whatever another node admitted for this one would have to be made void again.
        if !self.has_lease() {
            return Err(Failure::Unavailable(Unavailable::Elsewhere).into());
        }
        let now = parts.clock.now();
        let inputs = DecisionContext { seed: seed(parts.ids.random()), ..parts.inputs };
        let (command, mut admitted) = self.plan(now, inputs)?;
        let mut ask = Ask {
            command: Command::AdmitRequest(command),
            commit_id: admitted.cause.clone(),
            idempotent: submission.idempotency_key.is_some(),
            episode_id: submission.request_id.into(),
            causation_id: None,
            principal: Principal::key(&submission.caller.key_id),
            traceparent: submission.traceparent.clone().unwrap_or_default(),
            inputs,
        };
        let answer = self.ask(&mut ask, &mut admitted).await;
        parts.metrics.admission.observe(seconds(parts.clock.now().since(now)));
        let (recorded, view) = answer?;
        // Others may have found this node gone, and settle what it has admitted; and what is held must outlast the call.
        if !self.has_lease() || !self.has_time(&admitted) {
            self.make_void(&admitted).await;
            return Err(Failure::Unavailable(Unavailable::Elsewhere).into());
        }
        // The rules name the upstream that is called: what they recorded is what happens.
        debug_assert_eq!(
            recorded.upstream,
            admitted.upstream.settings().name,
            "the route is the one that was admitted"
        );
        admitted.upstream_model = recorded.upstream_model;
        admitted.view = view;
        Ok(admitted)
    }

    /// Whether no other node may take this one for gone.
    fn has_lease(&self) -> bool {
        self.path.parts().cluster.as_ref().is_none_or(|cluster| cluster.has_lease())
    }

    /// Whether the longest call that begins now ends before what is held for it is released.
    fn has_time(&self, admitted: &Admitted) -> bool {
        let longest = micros(admitted.upstream.settings().timeouts.total);
        self.path.parts().clock.now().after(longest) <= admitted.deadline
    }

    /// Has the tenant's actor admit the request, under the first id of its idempotency key that is not void.
    async fn ask(&self, ask: &mut Ask<Command>, admitted: &mut Admitted) -> Result<(AdmitRequest, View), Failed> {
        let Submission { request_id, idempotency_key, .. } = &self.submission;
        for number in 1..=TRIES_MAX {
            admitted.cause = admission_id(*request_id, idempotency_key.as_deref(), number)?;
            ask.commit_id = admitted.cause.clone();
            let decided = match admitted.handle.ask(ask.clone()).await {
                Ok(Ok(decided)) => decided,
                Ok(Err(rejected)) => return Err(refused(&self.path, rejected.rejection, rejected.view)),
                Err(unavailable) => {
                    if is_unknown(&unavailable) {
                        self.make_void(admitted).await;
                    }
                    return Err(Failure::Unavailable(unavailable).into());
                }
            };
            let recorded = decided.events.iter().find_map(recorded);
            match recorded {
                // Under this request's own id it was admitted by an earlier try of this very call, whose answer got
                // lost on the way from another node: nobody else serves it.
                Some(met) if !decided.duplicate || met.request_id == *request_id => {
                    return Ok((met.clone(), decided.view));
                }
                Some(met) if !self.is_void(met).await? => {
                    let first = met.request_id;
                    return Err(Failed::with_view(Failure::Duplicate { first }, decided.view));
                }
                // Without a key, ids are not used again.
                None if idempotency_key.is_none() => break,
                Some(_) | None => {}
            }
        }
        Err(Failure::Internal { what: "no id is left for the admission" }.into())
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
            served_by: self.path.parts().cluster.as_ref().map(|cluster| cluster.served_by()).unwrap_or_default(),
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
            cause: admission_id(*request_id, idempotency_key.as_deref(), 1)?,
            view: View::default(),
        };
        Ok((command, admitted))
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

/// The refusal, counted.
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
pub(super) fn recorded(event: &Event) -> Option<&AdmitRequest> {
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
}
