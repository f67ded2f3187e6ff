//! `freehold.tenant.v1.Tenants`: administration.

use std::{sync::Arc, time::Duration};

use actors_core::{
    plan::{BUILT_IN, built_in},
    tenant::{State, Tenant},
};
use actors_shell::{Ask, Decided, Placement as _, Unavailable};
use events_model::{
    CommitId, KeyId, NanoUsd, Principal, StreamId, TenantId, Version,
    tenant::{Command, Plan},
};
use proto::tenant::v1 as pb;
use tonic::{Code, Request, Response, Status};

use super::{App, convert, status};
use crate::{
    auth::{ApiKey, entropy},
    model_path::traceparent,
};

/// Tenants on a page when none are asked for, and at the most.
const PAGE_SIZE_DEFAULT: u32 = 100;
const PAGE_SIZE_MAX: u32 = 1_000;
/// Longest wait for the list to contain what the caller has written.
const LIST_WAIT_MAX: Duration = Duration::from_secs(2);
/// Random bytes of a key's id.
const KEY_ID_BYTES: usize = 8;

/// The service.
#[derive(Debug)]
pub(super) struct Tenants(pub(super) Arc<App>);

type Answer<T> = Result<Response<T>, Status>;

impl Tenants {
    /// Has a tenant's actor decide a command.
    async fn ask(&self, tenant: &TenantId, command: Command, trace: Option<String>) -> Result<Decided<Tenant>, Status> {
        let app = &self.0;
        let episode_id = app.ids.episode(app.clock.now());
        let commit_id = CommitId::new(&format!("admin/{episode_id}"));
        let commit_id = commit_id.map_err(|_| status::plain(Code::Internal, "INTERNAL", "the server had an error"))?;
        let ask = Ask {
            command,
            commit_id,
            idempotent: false,
            episode_id,
            causation_id: None,
            principal: Principal::admin(),
            traceparent: trace.unwrap_or_default(),
            inputs: app.inputs,
        };
        match app.tenants.actor(&StreamId::tenant(tenant)).ask(ask).await {
            Ok(Ok(decided)) => Ok(decided),
            Ok(Err(rejected)) => Err(status::rejected(&rejected)),
            Err(unavailable) => Err(failed(&unavailable)),
        }
    }

    /// Reads a tenant's state and the version it has at least; an unknown tenant costs no actor.
    async fn read<R: Send + 'static>(
        &self,
        tenant: &TenantId,
        read: impl FnOnce(&State) -> R + Send + 'static,
    ) -> Result<(R, Version), Status> {
        let stream = StreamId::tenant(tenant);
        let version = self.0.log.head(&stream).map_err(|error| failed(&Unavailable::Storage(error)))?;
        if version == Version::ZERO {
            return Err(status::plain(Code::NotFound, "NOT_REGISTERED", format!("there is no tenant {tenant}")));
        }
        match self.0.tenants.actor(&stream).read(read).await {
            Ok(read) => Ok((read, version)),
            Err(unavailable) => Err(failed(&unavailable)),
        }
    }

    async fn show(&self, tenant: &TenantId) -> Answer<pb::Tenant> {
        let (id, now) = (tenant.clone(), self.0.clock.now());
        let shown = move |state: &State| convert::tenant(&id, state, Version::ZERO, now);
        let (mut message, version) = self.read(tenant, shown).await?;
        message.version = version.0;
        Ok(Response::new(message))
    }

    /// Decides a command about a tenant that exists and shows the tenant after it.
    async fn change(&self, tenant: &str, command: Command, trace: Option<String>) -> Answer<pb::Tenant> {
        let tenant = convert::tenant_id(tenant)?;
        self.must_exist(&tenant)?;
        self.ask(&tenant, command, trace).await?;
        self.show(&tenant).await
    }

    fn must_exist(&self, tenant: &TenantId) -> Result<(), Status> {
        let stream = StreamId::tenant(tenant);
        if self.0.cluster.as_ref().is_some_and(|cluster| !cluster.is_here(&stream)) {
            // This node's log may not show it yet; whoever decides knows.
            return Ok(());
        }
        let head = self.0.log.head(&stream).map_err(|error| failed(&Unavailable::Storage(error)))?;
        if head == Version::ZERO {
            return Err(status::plain(Code::NotFound, "NOT_REGISTERED", format!("there is no tenant {tenant}")));
        }
        Ok(())
    }
}

fn failed(unavailable: &Unavailable) -> Status {
    tracing::warn!(error = crate::model_path::chain(unavailable, 2_048), "administrative command not decided");
    status::unavailable(unavailable)
}

fn plan(name: &str) -> Result<Plan, Status> {
    let name = if name.is_empty() { "free" } else { name };
    built_in(name).ok_or_else(|| status::invalid("plan", format!("must be one of {}", BUILT_IN.join(", "))))
}

fn trace<T>(request: &Request<T>) -> Option<String> {
    traceparent::parse(request.metadata().get("traceparent")?.to_str().ok()?)
}

#[tonic::async_trait]
impl pb::tenants_server::Tenants for Tenants {
    async fn create_tenant(&self, request: Request<pb::CreateTenantRequest>) -> Answer<pb::Tenant> {
        let trace = trace(&request);
        let pb::CreateTenantRequest { tenant_id, display_name, plan: name } = request.into_inner();
        let tenant = convert::tenant_id(&tenant_id)?;
        let display_name = if display_name.is_empty() { tenant_id } else { display_name };
        let command = Command::RegisterTenant { display_name, plan: plan(&name)?, zone: self.0.zone.clone() };
        self.ask(&tenant, command, trace).await?;
        self.show(&tenant).await
    }

    async fn get_tenant(&self, request: Request<pb::GetTenantRequest>) -> Answer<pb::Tenant> {
        self.show(&convert::tenant_id(&request.into_inner().tenant_id)?).await
    }

    async fn list_tenants(&self, request: Request<pb::ListTenantsRequest>) -> Answer<pb::ListTenantsResponse> {
        let pb::ListTenantsRequest { page_size, page_token } = request.into_inner();
        let limit = match page_size {
            0 => PAGE_SIZE_DEFAULT,
            size if size <= PAGE_SIZE_MAX => size,
            _ => return Err(status::invalid("page_size", format!("must be at most {PAGE_SIZE_MAX}"))),
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let after = match page_token.as_str() {
            "" => None,
            token => Some(TenantId::new(token).map_err(|_| status::invalid("page_token", "is not one of ours"))?),
        };
        let readers = &self.0.projections;
        if let Err(late) = readers.tenants.wait_for(self.0.log.head_position(), LIST_WAIT_MAX).await {
            // The list says by its position that it is late.
            tracing::warn!(%late, "tenants listed as they were");
        }
        let message = readers.tenants.read(|state, position| {
            let mut page = state.page(after.as_ref(), limit.saturating_add(1));
            let tenants: Vec<_> = page.by_ref().take(limit).map(|(id, tenant)| convert::summary(id, tenant)).collect();
            let has_more = page.next().is_some();
            let last = tenants.last().filter(|_| has_more).map(|tenant| tenant.tenant_id.clone());
            pb::ListTenantsResponse { next_page_token: last.unwrap_or_default(), position: position.0, tenants }
        });
        Ok(Response::new(message))
    }

    async fn set_plan(&self, request: Request<pb::SetPlanRequest>) -> Answer<pb::Tenant> {
        let trace = trace(&request);
        let pb::SetPlanRequest { tenant_id, plan: name } = request.into_inner();
        if name.is_empty() {
            return Err(status::invalid("plan", format!("must be one of {}", BUILT_IN.join(", "))));
        }
        self.change(&tenant_id, Command::SetPlan { plan: plan(&name)? }, trace).await
    }

    async fn set_budget(&self, request: Request<pb::SetBudgetRequest>) -> Answer<pb::Tenant> {
        let trace = trace(&request);
        let pb::SetBudgetRequest { tenant_id, period, limit_nano_usd } = request.into_inner();
        let command = Command::SetBudget { period: convert::period(period)?, limit: limit_nano_usd.map(NanoUsd) };
        self.change(&tenant_id, command, trace).await
    }

    async fn suspend_tenant(&self, request: Request<pb::SuspendTenantRequest>) -> Answer<pb::Tenant> {
        let trace = trace(&request);
        let pb::SuspendTenantRequest { tenant_id, reason } = request.into_inner();
        self.change(&tenant_id, Command::Suspend { reason }, trace).await
    }

    async fn resume_tenant(&self, request: Request<pb::ResumeTenantRequest>) -> Answer<pb::Tenant> {
        let trace = trace(&request);
        self.change(&request.into_inner().tenant_id, Command::Resume, trace).await
    }

    async fn issue_api_key(&self, request: Request<pb::IssueApiKeyRequest>) -> Answer<pb::IssueApiKeyResponse> {
        let trace = trace(&request);
        let pb::IssueApiKeyRequest { tenant_id, label } = request.into_inner();
        let tenant = convert::tenant_id(&tenant_id)?;
        self.must_exist(&tenant)?;
        let no_entropy = |error: crate::auth::NoEntropy| status::plain(Code::Internal, "NO_ENTROPY", error.to_string());
        let key = ApiKey::generate(&tenant).map_err(no_entropy)?;
        let random = entropy::<KEY_ID_BYTES>().map_err(no_entropy)?;
        let key_id = random.iter().fold("k-".to_owned(), |text, byte| format!("{text}{byte:02x}"));
        let key_id =
            KeyId::new(&key_id).map_err(|error| status::plain(Code::Internal, "INTERNAL", error.to_string()))?;
        let hash = key.tag(&self.0.pepper).to_bytes();
        let command = Command::IssueApiKey { key_id: key_id.clone(), prefix: key.prefix(), hash, label };
        self.ask(&tenant, command, trace).await?;
        let shown = move |state: &State| state.keys.get(&key_id).map(|key| convert::api_key(&key_id, key));
        let (api_key, _) = self.read(&tenant, shown).await?;
        Ok(Response::new(pb::IssueApiKeyResponse { api_key, secret: key.reveal().to_owned() }))
    }

    async fn revoke_api_key(&self, request: Request<pb::RevokeApiKeyRequest>) -> Answer<pb::ApiKey> {
        let trace = trace(&request);
        let pb::RevokeApiKeyRequest { tenant_id, key_id, reason } = request.into_inner();
        let tenant = convert::tenant_id(&tenant_id)?;
        let key_id = KeyId::new(&key_id).map_err(|error| status::invalid("key_id", error.to_string()))?;
        self.must_exist(&tenant)?;
        self.ask(&tenant, Command::RevokeApiKey { key_id: key_id.clone(), reason }, trace).await?;
        let shown = move |state: &State| state.keys.get(&key_id).map(|key| convert::api_key(&key_id, key));
        let (api_key, _) = self.read(&tenant, shown).await?;
        Ok(Response::new(api_key.unwrap_or_default()))
    }
}
