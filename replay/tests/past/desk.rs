//! A tenant actor in a few lines: decides, appends, evolves, one command after the other.

use std::collections::BTreeMap;

use actors_core::{
    Context, Decider, fold,
    region::Region,
    tenant::{State, Tenant},
};
use events_journal::{EventLog, MemoryLog};
use events_model::{
    Commit, CommitId, DecisionContext, DurationUs, EpisodeId, EventId, EventRecord, Payload, Principal, RegionId,
    RequestId, Stored, StreamId, TenantId, TimestampUs, Version,
    region::PriceBookEntry,
    tenant::{AdmitRequest, Command, SettleRequest},
};
use tests_kit::{NOON, tenant as kit};

/// A log and the actors that write it. Each command is decided a millisecond after the one before.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) log: MemoryLog,
    pub(crate) now: TimestampUs,
    states: BTreeMap<StreamId, State>,
    commits: u64,
}

/// The id of this number.
pub(crate) fn id(number: u64) -> [u8; 16] {
    u128::from(number).to_be_bytes()
}

/// The stream of a tenant of this name.
pub(crate) fn stream(name: &str) -> StreamId {
    StreamId::tenant(&TenantId::new(name).unwrap())
}

/// The admission of a request that holds `prompt + 2 * completion` nano-dollars for a minute.
pub(crate) fn admit(number: u64, prompt: u64, completion: u64, now: TimestampUs) -> Command {
    Command::AdmitRequest(AdmitRequest {
        request_id: RequestId::from_bytes(id(number)),
        deadline: now.after(DurationUs::from_secs(60)),
        ..kit::admission(1, prompt, completion)
    })
}

/// Its settlement.
pub(crate) fn settle(number: u64, prompt: u64, completion: u64) -> Command {
    let request_id = RequestId::from_bytes(id(number));
    Command::SettleRequest(SettleRequest { request_id, ..kit::settlement(1, prompt, completion) })
}

/// A registration on the enterprise plan without budgets.
pub(crate) fn register() -> Command {
    let (display_name, plan) = ("Acme".to_owned(), kit::plan("enterprise"));
    Command::RegisterTenant { display_name, plan, zone: "local".to_owned() }
}

/// The key `main`.
pub(crate) fn issue_key() -> Command {
    let (prefix, label) = ("fhk_acme_abcd".to_owned(), "main".to_owned());
    Command::IssueApiKey { key_id: kit::key("main"), prefix, hash: [7; 32], label }
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self { log: MemoryLog::new(), now: NOON, states: BTreeMap::new(), commits: 0 }
    }

    /// A desk with a tenant `acme` that has the key `main`: versions 1 and 2, episodes 1001 and 1002.
    pub(crate) fn with_acme() -> Self {
        let mut desk = Self::new();
        desk.tell("acme", 1_001, &register());
        desk.tell("acme", 1_002, &issue_key());
        desk
    }

    /// The state of a tenant as its actor has it.
    pub(crate) fn state(&self, name: &str) -> &State {
        &self.states[&stream(name)]
    }

    /// Decides a command of an episode, appends what comes of it and evolves; the command must be accepted.
    pub(crate) fn tell(&mut self, name: &str, episode: u64, command: &Command) {
        self.now = self.now.after(DurationUs::from_millis(1));
        let state = self.states.entry(stream(name)).or_default().clone();
        let events = Tenant::decide(&state, command, &Context { now: self.now, inputs: inputs() }).unwrap();
        self.append(&stream(name), episode, command.to_payload(), events.iter().map(Stored::to_payload).collect());
        self.states.insert(stream(name), fold::<Tenant>(state, &events));
    }

    /// Publishes a price book with one price for the region `local`.
    pub(crate) fn publish(&mut self, model: &str) {
        let entry = PriceBookEntry {
            model: model.to_owned(),
            upstream: "sim".to_owned(),
            input_per_mtok: kit::PRICE.input_per_mtok,
            output_per_mtok: kit::PRICE.output_per_mtok,
        };
        let command = events_model::region::Command::PublishPriceBook { entries: vec![entry] };
        let context = Context { now: self.now, inputs: inputs() };
        let events = Region::decide(&Default::default(), &command, &context).unwrap();
        let stream = StreamId::new("region/local").unwrap();
        self.append(&stream, 2_000, command.to_payload(), events.iter().map(Stored::to_payload).collect());
    }

    /// Appends a commit as it is given, decided by nobody.
    pub(crate) fn append(&mut self, stream: &StreamId, episode: u64, command: Payload, events: Vec<Payload>) {
        self.commits += 1;
        let event = |payload| EventRecord { event_id: EventId::from_bytes(id(self.commits)), payload };
        let head = self.log.head(stream).unwrap();
        let commit = Commit {
            commit_id: CommitId::new(&format!("c-{}", self.commits)).unwrap(),
            stream: stream.clone(),
            first_version: head.next(),
            command,
            events: events.into_iter().map(event).collect(),
            episode_id: EpisodeId::from_bytes(id(episode)),
            causation_id: None,
            tenant: stream.tenant_id(),
            region: RegionId::new("local").unwrap(),
            epoch: 1,
            principal: Principal::admin(),
            recorded_at: self.now,
            traceparent: String::new(),
            decider_version: Tenant::VERSION,
            key_id: String::new(),
            context: inputs(),
        };
        self.log.append(head, commit).wait().unwrap();
    }

    /// How many commits the log has.
    pub(crate) const fn log_commits(&self) -> u64 {
        self.commits
    }

    /// The head of a tenant's stream.
    pub(crate) fn head(&self, name: &str) -> Version {
        self.log.head(&stream(name)).unwrap()
    }
}

fn inputs() -> DecisionContext {
    DecisionContext { seed: 7, policy_version: 1, price_book_version: 1, routing_version: 1 }
}
