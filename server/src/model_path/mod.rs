//! The way of a model request, whatever surface it came in by: authenticate, route, admit, call, settle.
//!
//! Invariants:
//! - the admission is durable before the upstream is called, the settlement before the client sees the end of the
//!   answer;
//! - once admitted, a request belongs to a task of its own that settles it whatever happens to the client;
//! - what is settled is, in this order: what the upstream reported with a complete answer; what it says when asked
//!   (if something may have been billed); what it had reported before the answer broke off; what we count. Counted are
//!   the estimates of the prompt and of what was delivered (their real sizes are known to the upstream alone), each at
//!   most what is reserved for it.
//!
//! Deliberately absent: retries and hedging of calls, HTTP and gRPC forms.

mod admit;
mod call;
mod failure;
mod guard;
mod plain;
mod routing;
mod settle;
mod stream;
pub mod traceparent;
mod void;
#[cfg(test)]
mod void_tests;

use std::sync::Arc;

use actors_core::tenant::Tenant;
use actors_shell::{Clock, Handle, Ids, Shell, Unavailable};
use events_journal::EventLog;
use events_model::{DecisionContext, KeyId, RequestId, StreamId, TenantId, Version};
use gateway::openai::{ApiError, ChatRequest, RequestLimits};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

pub(crate) use self::settle::{Closing, Recording, look_up, settle};
pub use self::{
    failure::{Failed, Failure, chain},
    plain::Completion,
    routing::{Routing, USAGE_LOOKUP_MAX, micros, overdue_grace},
    stream::{Ended, Item, STREAM_ITEMS_MAX, Streaming},
};
use crate::{
    auth::{ApiKey, Pepper},
    cluster::Cluster,
    metrics::Metrics,
    shutdown::Stop,
};

/// Longest `Idempotency-Key`, bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// What the path is made of.
#[derive(Debug)]
pub struct Parts {
    /// The tenants' actors.
    pub tenants: Shell<Tenant>,
    /// The log, to look up which tenants exist.
    pub log: Arc<dyn EventLog>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// New ids.
    pub ids: Arc<dyn Ids>,
    /// Key of the keys.
    pub pepper: Pepper,
    /// Models and upstreams.
    pub routing: Routing,
    /// Versions in force; the seed is drawn for each request.
    pub inputs: DecisionContext,
    /// Bounds of a request's form.
    pub limits: RequestLimits,
    /// Most requests in flight.
    pub in_flight_max: usize,
    /// The nodes beside this one, if there are any.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Counts.
    pub metrics: Metrics,
    /// When to stop.
    pub stop: Stop,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    tasks: TaskTracker,
    slots: Arc<Semaphore>,
}

/// The model path. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ModelPath {
    inner: Arc<Inner>,
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its tenant.
    pub tenant: TenantId,
    /// The key it showed.
    pub key_id: KeyId,
    handle: Handle<Tenant>,
}

/// What this process knows of a key.
enum Found {
    Caller(Caller),
    Revoked,
    Nothing,
}

/// Which door a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// The OpenAI API.
    Http,
    /// `freehold.gateway.v1`.
    Grpc,
}

impl Surface {
    const fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// A request as a surface hands it over.
#[derive(Debug)]
pub struct Submission {
    /// Its id, and that of its episode.
    pub request_id: RequestId,
    /// Who asks.
    pub caller: Caller,
    /// What is asked.
    pub request: ChatRequest,
    /// Under which a second admission is refused.
    pub idempotency_key: Option<String>,
    /// W3C trace context, checked.
    pub traceparent: Option<String>,
    /// Where it came in.
    pub surface: Surface,
}

/// A request on its way.
#[derive(Debug)]
struct Work {
    path: ModelPath,
    submission: Submission,
    /// A place among the requests in flight.
    slot: Arc<OwnedSemaphorePermit>,
    _panics: guard::CountsPanic,
}

impl ModelPath {
    /// Puts the path together.
    pub fn new(parts: Parts) -> Self {
        let slots = Arc::new(Semaphore::new(parts.in_flight_max));
        Self { inner: Arc::new(Inner { parts, tasks: TaskTracker::new(), slots }) }
    }

    /// A new request id.
    pub fn new_request_id(&self) -> RequestId {
        self.parts().ids.request(self.parts().clock.now())
    }

    /// Models and upstreams.
    pub fn routing(&self) -> &Routing {
        &self.parts().routing
    }

    /// Bounds of a request's form.
    pub fn limits(&self) -> &RequestLimits {
        &self.parts().limits
    }

    /// Finds out who shows a key. A tenant that does not exist costs a look at the log's index, no actor.
    ///
    /// # Errors
    /// `Unauthenticated`, or the tenant's state cannot be loaded.
    pub async fn authenticate(&self, key: Option<&str>) -> Result<Caller, Failed> {
        let key = key.and_then(ApiKey::parse).ok_or(Failure::Unauthenticated)?;
        match self.find(&key).await? {
            Found::Caller(caller) => return Ok(caller),
            // It is good nowhere, whatever others have recorded since.
            Found::Revoked => return Err(Failure::Unauthenticated.into()),
            Found::Nothing => {}
        }
        // Another node may have issued it a moment ago.
        let Some(cluster) = &self.parts().cluster else { return Err(Failure::Unauthenticated.into()) };
        if !cluster.reach_head().await {
            return Err(Failure::Unavailable(Unavailable::Elsewhere).into());
        }
        match self.find(&key).await? {
            Found::Caller(caller) => Ok(caller),
            Found::Revoked | Found::Nothing => Err(Failure::Unauthenticated.into()),
        }
    }

    /// Finds the caller in what this process knows.
    async fn find(&self, key: &ApiKey) -> Result<Found, Failed> {
        let parts = self.parts();
        let stream = StreamId::tenant(key.tenant());
        let head = parts.log.head(&stream);
        if head.map_err(|error| Failure::Unavailable(Unavailable::Storage(error)))? == Version::ZERO {
            return Ok(Found::Nothing);
        }
        let tag = key.tag(&parts.pepper);
        let handle = parts.tenants.actor(&stream);
        let find = move |state: &actors_core::tenant::State| {
            let shown = || state.keys.iter().filter(|(_, key)| tag.is(&key.hash));
            let good = shown().find(|(_, key)| key.revoked_at.is_none());
            (good.map(|(key_id, _)| key_id.clone()), shown().next().is_some())
        };
        let (good, is_known) = handle.peek(find).await.map_err(Failure::Unavailable)?;
        Ok(match good {
            Some(key_id) => Found::Caller(Caller { tenant: key.tenant().clone(), key_id, handle }),
            None if is_known => Found::Revoked,
            None => Found::Nothing,
        })
    }

    /// Waits until no request is in flight; nothing new must come in any more.
    pub async fn idle(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    /// Takes a request in, or says that there is no room.
    fn take_in(&self, submission: Submission) -> Result<Work, Failed> {
        if self.parts().stop.is_draining() {
            return Err(Failure::Draining.into());
        }
        if let Some(key) = &submission.idempotency_key
            && (key.is_empty()
                || key.len() > IDEMPOTENCY_KEY_BYTES_MAX
                || !key.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            let message =
                format!("The idempotency key must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters.");
            return Err(ApiError::bad_request(Some("invalid_idempotency_key"), None, message).into());
        }
        let limit = self.parts().in_flight_max;
        let slot = Arc::clone(&self.inner.slots).try_acquire_owned().map_err(|_| Failure::TooManyInFlight { limit })?;
        let panics = guard::CountsPanic(self.parts().metrics.panics.clone());
        Ok(Work { path: self.clone(), submission, slot: Arc::new(slot), _panics: panics })
    }
}
