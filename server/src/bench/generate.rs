//! Commits to measure with: of one size, and real ones, decided by the tenant's own rules.

use std::collections::VecDeque;

use actors_core::{
    Context, Decider as _,
    plan::built_in,
    tenant::{State, Tenant},
};
use events_journal::{EventLog, Receipt};
use events_model::{
    Commit, CommitId, DecisionContext, DurationUs, EpisodeId, EventId, EventRecord, KeyId, NanoUsd, Payload, Principal,
    RegionId, RequestId, Stored as _, StreamId, TenantId, TimestampUs, Tokens, Version,
    tenant::{AdmitRequest, Command, Outcome, Price, SettleRequest, Usage, UsageSource},
};

use crate::cli::failure::{Failure, Problem};

/// Tenants that share the generated log.
pub(super) const TENANTS: u64 = 1_000;
/// Appends that wait at once while a log is generated.
const PENDING_MAX: usize = 16_384;
/// When the generated log begins: 2026-01-01.
const START: TimestampUs = TimestampUs(1_767_225_600_000_000);
/// Between two commits.
const STEP: DurationUs = DurationUs::from_millis(1);

/// A commit of exactly this many bytes in the stream of a writer; its version and id are to be filled in.
pub(super) fn sized(writer: usize, bytes: usize) -> Result<Commit, Failure> {
    let invalid = |error: events_model::id::Error| Problem::of(&error);
    let tenant = TenantId::new(&format!("writer-{writer:03}")).map_err(invalid)?;
    let payload = |bytes| Payload { kind: "freehold.log.v1.RequestSettled", schema_version: 1, bytes };
    let mut commit = Commit {
        commit_id: CommitId::new("bench/0000000000").map_err(invalid)?,
        stream: StreamId::tenant(&tenant),
        // A version of two bytes, as most of the ones that replace it.
        first_version: Version(10_000),
        command: payload(vec![1; 64]),
        events: vec![EventRecord { event_id: EventId::from_bytes([7; 16]), payload: payload(Vec::new()) }],
        episode_id: EpisodeId::from_bytes([9; 16]),
        causation_id: None,
        tenant: Some(tenant),
        region: RegionId::new("local").map_err(invalid)?,
        epoch: 1,
        principal: Principal::admin(),
        recorded_at: START,
        traceparent: String::new(),
        decider_version: 1,
        key_id: String::new(),
        context: DecisionContext::default(),
    };
    // Lengths are written with one or two bytes, so a few steps find the payload that gives the size.
    let mut length = bytes / 2;
    for _ in 0..4 {
        if let Some(event) = commit.events.first_mut() {
            event.payload.bytes = vec![3; length];
        }
        length = (length + bytes).saturating_sub(commit.encode().len());
    }
    Ok(commit)
}

/// Tenants and what they have done so far.
#[derive(Debug)]
pub(super) struct Tenants {
    region: RegionId,
    tenants: Vec<(TenantId, StreamId, State, Version)>,
    key: KeyId,
    now: TimestampUs,
    made: u64,
}

impl Tenants {
    /// Nobody is registered yet.
    pub(super) fn new(count: u64) -> Result<Self, Failure> {
        let invalid = |error: events_model::id::Error| Problem::of(&error);
        let tenant = |number| {
            let tenant = TenantId::new(&format!("tenant-{number:04}")).map_err(invalid)?;
            Ok((tenant.clone(), StreamId::tenant(&tenant), State::default(), Version::ZERO))
        };
        Ok(Self {
            region: RegionId::new("local").map_err(invalid)?,
            tenants: (0..count).map(tenant).collect::<Result<_, Problem>>()?,
            key: KeyId::new("key").map_err(invalid)?,
            now: START,
            made: 0,
        })
    }

    /// Each tenant's stream and state.
    pub(super) fn states(&self) -> impl Iterator<Item = (&StreamId, &State)> {
        self.tenants.iter().map(|(_, stream, state, _)| (stream, state))
    }

    /// The next commit and the version it is expected after: registrations and keys first, then requests in pairs of
    /// admission and settlement, tenant by tenant.
    pub(super) fn next(&mut self) -> Result<(Version, Commit), Failure> {
        let number = self.made;
        self.made += 1;
        self.now = self.now.after(STEP);
        let count = self.tenants.len() as u64;
        let setup = 2 * count;
        // Each tenant has both commits of a pair before the next tenant's turn.
        let index = (number / 2) % count;
        let request_id = RequestId::from_parts(self.now.0 / 1_000, (number / 2).to_be_bytes_10());
        let command = match (number < setup, number % 2) {
            (true, 0) => register(index)?,
            (true, _) => Command::IssueApiKey {
                key_id: self.key.clone(),
                prefix: "fhk_tenant_abcd".to_owned(),
                hash: [7; 32],
                label: "bench".to_owned(),
            },
            (false, 0) => Command::AdmitRequest(admission(request_id, &self.key, self.now)),
            (false, _) => Command::SettleRequest(settlement(self.last_request(index, request_id), number)),
        };
        self.decide(index, &command, number)
    }

    /// The request that is to be settled: the one that is open.
    fn last_request(&self, index: u64, otherwise: RequestId) -> RequestId {
        let tenant = usize::try_from(index).ok().and_then(|index| self.tenants.get(index));
        tenant.and_then(|(_, _, state, _)| state.reservations.keys().next().copied()).unwrap_or(otherwise)
    }

    fn decide(&mut self, index: u64, command: &Command, number: u64) -> Result<(Version, Commit), Failure> {
        let slot = usize::try_from(index).ok().and_then(|index| self.tenants.get_mut(index));
        let Some((tenant, stream, state, version)) = slot else { return Err(Problem::new("no such tenant").into()) };
        let inputs = DecisionContext { seed: number, price_book_version: 1, ..DecisionContext::default() };
        let context = Context { now: self.now, inputs };
        let events = Tenant::decide(state, command, &context).map_err(|error| Problem::of(&error))?;
        let episode_id = match command {
            Command::AdmitRequest(AdmitRequest { request_id, .. })
            | Command::SettleRequest(SettleRequest { request_id, .. }) => (*request_id).into(),
            Command::RegisterTenant { .. }
            | Command::IssueApiKey { .. }
            | Command::RevokeApiKey { .. }
            | Command::SetPlan { .. }
            | Command::SetBudget { .. }
            | Command::Suspend { .. }
            | Command::Resume
            | Command::ExpireReservation { .. }
            | Command::RecordRefusals { .. } => EpisodeId::from_parts(self.now.0 / 1_000, number.to_be_bytes_10()),
        };
        let expected = *version;
        *version = Version(expected.0 + events.len() as u64);
        let record = |event| {
            let event_id = EventId::from_parts(self.now.0 / 1_000, number.to_be_bytes_10());
            EventRecord { event_id, payload: event_payload(event) }
        };
        let commit = Commit {
            commit_id: CommitId::new(&format!("bench/{number}")).map_err(|error| Problem::of(&error))?,
            stream: stream.clone(),
            first_version: expected.next(),
            command: command.to_payload(),
            events: events.iter().map(record).collect(),
            episode_id,
            causation_id: None,
            tenant: Some(tenant.clone()),
            region: self.region.clone(),
            epoch: 1,
            principal: Principal::key(&self.key),
            recorded_at: self.now,
            traceparent: String::new(),
            decider_version: Tenant::VERSION,
            key_id: String::new(),
            context: inputs,
        };
        *state = events.iter().fold(std::mem::take(state), Tenant::evolve);
        Ok((expected, commit))
    }
}

/// Appends so many commits of these tenants, without waiting for each.
pub(super) fn fill(log: &dyn EventLog, tenants: &mut Tenants, commits: u64) -> Result<(), Failure> {
    let mut pending: VecDeque<Receipt> = VecDeque::with_capacity(PENDING_MAX);
    let settle = |receipt: Receipt| receipt.wait().map_err(|error| Problem::new("append").because(&error));
    for _ in 0..commits {
        let (expected, commit) = tenants.next()?;
        if pending.len() == PENDING_MAX
            && let Some(receipt) = pending.pop_front()
        {
            settle(receipt)?;
        }
        pending.push_back(log.append(expected, commit));
    }
    for receipt in pending {
        settle(receipt)?;
    }
    Ok(())
}

fn event_payload(event: &events_model::tenant::Event) -> Payload {
    event.to_payload()
}

/// A number as the random part of an id.
trait TenBytes {
    fn to_be_bytes_10(self) -> [u8; 10];
}

impl TenBytes for u64 {
    fn to_be_bytes_10(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        for (to, from) in bytes.iter_mut().skip(2).zip(self.to_be_bytes()) {
            *to = from;
        }
        bytes
    }
}

fn register(index: u64) -> Result<Command, Failure> {
    let plan = built_in("enterprise").ok_or_else(|| Problem::new("there is no plan enterprise"))?;
    Ok(Command::RegisterTenant { display_name: format!("Tenant {index}"), plan, zone: "local".to_owned() })
}

fn admission(request_id: RequestId, key: &KeyId, now: TimestampUs) -> AdmitRequest {
    AdmitRequest {
        request_id,
        key_id: key.clone(),
        model: "sim-small".to_owned(),
        upstream: "sim".to_owned(),
        upstream_model: "sim-small".to_owned(),
        prompt_tokens_max: Tokens(96),
        completion_tokens_max: Tokens(64),
        price: Price {
            price_book_version: 1,
            input_per_mtok: NanoUsd(150_000_000),
            output_per_mtok: NanoUsd(600_000_000),
        },
        deadline: now.after(DurationUs::from_secs(600)),
        streaming: false,
        served_by: String::new(),
    }
}

fn settlement(request_id: RequestId, number: u64) -> SettleRequest {
    SettleRequest {
        request_id,
        outcome: Outcome::Completed,
        usage: Usage {
            prompt_tokens: Tokens(16 + number % 80),
            completion_tokens: Tokens(1 + number % 64),
            source: UsageSource::Reported,
        },
        upstream_status: 200,
        first_token: DurationUs::from_millis(120),
        duration: DurationUs::from_millis(900),
        detail: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sized_commit_has_its_size_whatever_its_version() {
        let commit = sized(17, 512).unwrap();
        assert_eq!(commit.encode().len(), 512);
    }

    #[test]
    fn generated_commits_follow_each_other_and_leave_nothing_open() {
        let mut tenants = Tenants::new(TENANTS).unwrap();
        for _ in 0..6 * TENANTS {
            let (expected, commit) = tenants.next().unwrap();
            assert_eq!(commit.first_version, expected.next());
        }
        assert!(tenants.tenants.iter().all(|(_, _, state, _)| state.open() == 0 && state.totals.settled == 2));
    }
}
