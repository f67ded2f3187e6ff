//! Who asks, and what that one may see.

use actors_core::tenant::{State, Status as TenantStatus};
use actors_shell::Unavailable;
use events_model::{Principal, StreamId, TenantId, Version};
use tonic::{Code, Status, metadata::MetadataMap};

use super::{super::admin, Events, errors, status};
use crate::{
    events::{
        select::APPLICATION,
        share::{Place, Shares},
    },
    model_path::Caller,
};

/// Who asks.
#[derive(Debug, Clone)]
pub(super) enum Who {
    /// The operator sees all.
    Admin,
    /// An application sees the applications' streams of its tenant.
    Application {
        caller: Caller,
        /// The key itself, to be checked again while a stream is open.
        key: String,
    },
}

impl Who {
    /// The tenant it is bound to.
    pub(super) const fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Admin => None,
            Self::Application { caller, .. } => Some(&caller.tenant),
        }
    }

    pub(super) fn principal(&self) -> Principal {
        match self {
            Self::Admin => Principal::admin(),
            Self::Application { caller, .. } => Principal::key(&caller.key_id),
        }
    }

    /// The tenant that a request is about: with a key its own, which may be left out.
    pub(super) fn tenant_of(&self, text: &str) -> Result<Option<TenantId>, Status> {
        let named = match text {
            "" => None,
            text => Some(TenantId::new(text).map_err(|error| status::invalid("tenant", error.to_string()))?),
        };
        match (self.tenant(), named) {
            (None, named) => Ok(named),
            (Some(own), None) => Ok(Some(own.clone())),
            (Some(own), Some(named)) if *own == named => Ok(Some(named)),
            (Some(_), Some(_)) => Err(forbidden("an API key sees only its own tenant")),
        }
    }

    /// Like `tenant_of`, where there must be one.
    pub(super) fn one_tenant_of(&self, text: &str) -> Result<TenantId, Status> {
        self.tenant_of(text)?.ok_or_else(|| status::invalid("tenant", "must be given with the admin token"))
    }

    /// Refuses a stream that this one may not see; whether it exists is not told.
    pub(super) fn must_see(&self, stream: &StreamId, field: &str) -> Result<(), Status> {
        let Some(own) = self.tenant() else { return Ok(()) };
        if stream.kind() == APPLICATION && stream.tenant_id().as_ref() == Some(own) {
            return Ok(());
        }
        Err(forbidden(&format!("{field}: an API key sees only the streams {APPLICATION}/{own}/...")))
    }
}

fn forbidden(message: &str) -> Status {
    status::plain(Code::PermissionDenied, "NOT_YOURS", message)
}

impl Events {
    /// Finds out who asks.
    pub(super) async fn who(&self, metadata: &MetadataMap) -> Result<Who, Status> {
        let shown = admin::token(metadata);
        if shown.is_some_and(|shown| self.app.pepper.same(shown, &self.app.admin_token)) {
            return Ok(Who::Admin);
        }
        let caller = self.app.path.authenticate(shown).await.map_err(|failed| status::failed(&failed))?;
        Ok(Who::Application { caller, key: shown.unwrap_or_default().to_owned() })
    }

    /// Ends a stream whose key was revoked. A state that cannot be loaded at the moment ends nothing.
    pub(super) async fn still(&self, who: &Who) -> Result<(), Status> {
        let Who::Application { key, .. } = who else { return Ok(()) };
        match self.app.path.authenticate(Some(key)).await {
            Ok(_) => Ok(()),
            Err(failed) => match status::failed(&failed) {
                status if status.code() == Code::Unauthenticated => Err(status),
                _ => Ok(()),
            },
        }
    }

    /// Takes one of the caller's places; the operator needs none.
    pub(super) fn share(&self, shares: &Shares, who: &Who) -> Result<Option<Place>, Status> {
        let Some(tenant) = who.tenant() else { return Ok(None) };
        shares.take(tenant).map(Some).ok_or_else(errors::too_many)
    }

    /// Refuses what a tenant must not do while it is suspended, and what nobody can do for one that does not exist.
    pub(super) async fn must_be_active(&self, who: &Who, stream: &StreamId) -> Result<(), Status> {
        let Some(tenant) = stream.tenant_id() else { return Ok(()) };
        let actor = StreamId::tenant(&tenant);
        let head = self.app.log.head(&actor).map_err(|error| errors::read(&error))?;
        if head == Version::ZERO {
            return Err(status::plain(Code::NotFound, "NOT_REGISTERED", format!("there is no tenant {tenant}")));
        }
        if who.tenant().is_none() {
            return Ok(());
        }
        let is_suspended = |state: &State| matches!(state.status, TenantStatus::Suspended { .. });
        let read: Result<bool, Unavailable> = self.app.tenants.actor(&actor).peek(is_suspended).await;
        if read.map_err(|unavailable| status::unavailable(&unavailable))? {
            return Err(status::plain(Code::FailedPrecondition, "SUSPENDED", "the tenant is suspended"));
        }
        Ok(())
    }
}
