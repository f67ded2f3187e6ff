//! Admissions that may have been recorded although nobody was told of it: they are made void, so that nothing stays held
//! and the idempotency key can be used again.
//!
//! What decides is the admission's commit id, which the tenant's stream holds at most once. Under that id a refusal is
//! recorded. If it is, the admission never was and never can be recorded. If the admission was there first, the answer
//! shows it, and it is settled for nothing under an id that says so; its upstream was never called. The next try under
//! the same idempotency key sees either, and goes by the next id of that key.

use std::{sync::Arc, time::Duration};

use actors_shell::Unavailable;
use events_journal::Outcome as WriteOutcome;
use events_model::{
    CommitId, RequestId, StreamId,
    tenant::{AdmitRequest, Command, Outcome, RefusalReason},
};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tracing::warn;

use super::{
    Work,
    admit::{Admitted, nothing, recorded},
    failure::{Failed, Failure},
    settle::{Closing, GivenUp, persist},
};

/// How often one idempotency key may have been used for admissions that are void.
pub(super) const TRIES_MAX: u32 = 64;
/// Longest time that a caller waits until its admission is void; then that goes on without it, and a next try under the
/// same key may meet it.
const VOID_WAIT: Duration = Duration::from_secs(1);

/// The commit id of an admission: made of the client's idempotency key, hashed, or of the request's own id. Tries under one idempotency key beyond the first have ids of their own.
pub(super) fn admission_id(request_id: RequestId, key: Option<&str>, number: u32) -> Result<CommitId, Failed> {
    let text = match key {
        None => format!("admit/{request_id}"),
        Some(key) => {
            let digest = Sha256::digest(key.as_bytes());
            let first = digest.iter().fold("admit/idem-".to_owned(), |text, byte| format!("{text}{byte:02x}"));
            if number == 1 { first } else { format!("{first}-{number}") }
        }
    };
    commit_id(&text)
}

fn commit_id(text: &str) -> Result<CommitId, Failed> {
    CommitId::new(text).map_err(|_| Failure::Internal { what: "the admission's id is not one" }.into())
}

/// The commit id of the settlement of an admission that was made void.
fn void_id(request_id: RequestId) -> Result<CommitId, Failed> {
    commit_id(&format!("void/{request_id}"))
}

/// Whether an admission may have been recorded.
pub(super) fn is_unknown(unavailable: &Unavailable) -> bool {
    match unavailable {
        Unavailable::Aborted(error) => error.outcome() == WriteOutcome::Unknown,
        Unavailable::Restarted | Unavailable::Unreachable => true,
        Unavailable::Overloaded { .. }
        | Unavailable::Refusing(_)
        | Unavailable::Storage(_)
        | Unavailable::Elsewhere
        | Unavailable::Closed => false,
    }
}

impl Work {
    /// Whether the admission that a try under the same idempotency key met is void.
    pub(super) async fn is_void(&self, met: &AdmitRequest) -> Result<bool, Failed> {
        let parts = self.path.parts();
        if let Some(cluster) = &parts.cluster
            && !cluster.reach_head().await
        {
            return Err(Failure::Unavailable(Unavailable::Elsewhere).into());
        }
        let stream = StreamId::tenant(&self.submission.caller.tenant);
        let found = parts.log.find_commit(&stream, &void_id(met.request_id)?);
        Ok(found.map_err(|error| Failure::Unavailable(Unavailable::Storage(error)))?.is_some())
    }

    /// Makes an admission void, in a task of its own; waits a while for it if its key may be used again. The task keeps
    /// the request's place, so that there are never more of them than requests.
    pub(super) async fn make_void(&self, admitted: &Admitted) {
        let (path, recording) = (self.path.clone(), self.recording(admitted));
        let (request_id, admission) = (self.submission.request_id, admitted.cause.clone());
        let slot = Arc::clone(&self.slot);
        let task = self.path.inner.tasks.spawn(async move {
            let _slot = slot;
            let parts = path.parts();
            let second = parts.clock.now().0 / 1_000_000;
            let refusal = Command::RecordRefusals { reason: RefusalReason::Overload, second, count: 1 };
            let ask = recording.ask(refusal, request_id, (admission, true));
            let events = match persist(parts, &recording, request_id, ask).await {
                Ok(Ok(events)) => events,
                // Without a tenant there is no admission; or the deadline covers it.
                Ok(Err(_)) | Err(GivenUp) => return,
            };
            if !events.iter().filter_map(recorded).any(|met| met.request_id == request_id) {
                return;
            }
            let detail = "the admission's outcome was unknown".to_owned();
            let closing = Closing { detail, ..Closing::new(Outcome::UpstreamFailed, nothing()) };
            let Ok(id) = void_id(request_id) else { return };
            let ask = recording.ask(Command::SettleRequest(closing.settlement(request_id)), request_id, (id, true));
            if let Ok(Err(rejection)) = persist(parts, &recording, request_id, ask).await {
                warn!(%request_id, %rejection, "an admission of unknown outcome was not made void");
            }
        });
        if self.submission.idempotency_key.is_some() {
            // In vain at the most for so long.
            drop(timeout(VOID_WAIT, task).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use events_journal::AppendError;

    use super::*;

    #[test]
    fn an_idempotency_key_never_appears_in_the_log_and_always_gives_the_same_ids() {
        let one = RequestId::from_bytes([1; 16]);
        let id = admission_id(one, Some("order 7"), 1).unwrap();
        assert!(!id.as_str().contains("order"), "{id}");
        assert_eq!(id, admission_id(RequestId::from_bytes([2; 16]), Some("order 7"), 1).unwrap());
        assert_eq!(id.as_str().len(), "admit/idem-".len() + 64);
        assert_eq!(admission_id(one, Some("order 7"), TRIES_MAX).unwrap().as_str(), format!("{id}-{TRIES_MAX}"));
        assert_eq!(admission_id(one, None, 1).unwrap().as_str(), format!("admit/{one}"));
    }

    #[test]
    fn only_what_may_have_been_recorded_is_made_void() {
        assert!(is_unknown(&Unavailable::Unreachable) && is_unknown(&Unavailable::Restarted));
        assert!(!is_unknown(&Unavailable::Elsewhere) && !is_unknown(&Unavailable::Closed));
        assert!(!is_unknown(&Unavailable::Aborted(AppendError::Busy { waiting: 1 })));
    }
}
