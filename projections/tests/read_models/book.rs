//! Puts events on a memory log.

use std::{collections::HashMap, sync::Arc};

use events_journal::{EventLog, MemoryLog, contract::settle};
use events_model::{
    Commit, CommitId, DecisionContext, DurationUs, EpisodeId, EventId, EventRecord, NanoUsd, Payload, Position,
    Principal, RegionId, RequestId, Stored, StreamId, TenantId, TimestampUs, Version,
    tenant::{AdmitRequest, Command, Event, SettleRequest},
};
use tests_kit::{NOON, tenant as kit};

/// A day, microseconds.
pub(crate) const DAY: DurationUs = DurationUs::from_secs(86_400);

/// A log that is being written.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) log: Arc<MemoryLog>,
    heads: HashMap<StreamId, Version>,
}

impl Book {
    /// The log as the port.
    pub(crate) fn port(&self) -> Arc<dyn EventLog> {
        Arc::<MemoryLog>::clone(&self.log)
    }

    /// Appends one commit with these events to a tenant's stream.
    pub(crate) fn write(&mut self, tenant: &TenantId, events: &[Event]) -> Position {
        self.write_payloads(tenant, events.iter().map(Stored::to_payload).collect())
    }

    /// Appends one commit with these payloads to a tenant's stream.
    pub(crate) fn write_payloads(&mut self, tenant: &TenantId, payloads: Vec<Payload>) -> Position {
        self.write_stream(&StreamId::tenant(tenant), payloads)
    }

    /// Appends one commit with these payloads to a stream.
    pub(crate) fn write_stream(&mut self, stream: &StreamId, payloads: Vec<Payload>) -> Position {
        let stream = stream.clone();
        let head = self.heads.entry(stream.clone()).or_default();
        let event_id = EventId::from_bytes([1; 16]);
        let commit = Commit {
            commit_id: CommitId::new(&format!("{stream}-{head}")).unwrap(),
            tenant: stream.tenant_id(),
            stream,
            first_version: head.next(),
            command: Command::Resume.to_payload(),
            events: payloads.into_iter().map(|payload| EventRecord { event_id, payload }).collect(),
            episode_id: EpisodeId::from_bytes([2; 16]),
            causation_id: None,
            region: RegionId::new("local").unwrap(),
            epoch: 1,
            principal: Principal::admin(),
            recorded_at: NOON,
            traceparent: String::new(),
            decider_version: 1,
            key_id: String::new(),
            context: DecisionContext::default(),
        };
        let before = *head;
        *head = commit.last_version();
        // Not `wait`: some tests write inside a runtime.
        settle(self.log.append(before, commit)).unwrap().position
    }
}

/// A tenant of this name.
pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// The request of this number.
pub(crate) fn request(number: u64) -> RequestId {
    RequestId::from_bytes(u128::from(number).to_be_bytes())
}

/// A request for this model, held for a minute.
pub(crate) fn admitted(number: u64, model: &str, at: TimestampUs) -> Event {
    let deadline = at.after(DurationUs::from_secs(60));
    let asked =
        AdmitRequest { request_id: request(number), model: model.to_owned(), deadline, ..kit::admission(1, 9, 9) };
    Event::RequestAdmitted { request: asked, reserved: NanoUsd(1_000_000), at }
}

/// Its settlement.
pub(crate) fn settled(number: u64, prompt: u64, completion: u64, cost: i64, at: TimestampUs) -> Event {
    let settlement = SettleRequest { request_id: request(number), ..kit::settlement(1, prompt, completion) };
    let (released, overrun) = (NanoUsd(1_000_000 - cost), NanoUsd::ZERO);
    Event::RequestSettled { settlement, cost: NanoUsd(cost), released, overrun, at }
}

/// Its expiry.
pub(crate) fn expired(number: u64, at: TimestampUs) -> Event {
    Event::ReservationExpired { request_id: request(number), released: NanoUsd(1_000_000), at }
}

/// A registration on a plan.
pub(crate) fn registered(plan: &str) -> Event {
    kit::registered(kit::plan(plan)).remove(0)
}

/// Bytes of a state.
pub(crate) fn bytes(state: &impl serde::Serialize) -> Vec<u8> {
    bincode::serde::encode_to_vec(state, bincode::config::standard()).unwrap()
}
