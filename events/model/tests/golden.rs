//! Stored bytes never change: every command and event of version 1, and the envelope around them, is held against
//! a file of golden bytes. A new field adds a golden file; an existing one is never edited.
//!
//! `GOLDEN=write cargo test -p events-model --test golden` writes the files that do not exist yet.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use std::{collections::BTreeMap, fs, path::Path};

use events_model::{
    Commit, CommitId, DecisionContext, DurationUs, EpisodeId, EventId, EventRecord, KeyId, NanoUsd, Position,
    Principal, RegionId, RequestId, Stored, StreamId, TenantId, TimestampUs, Tokens, Version, application, group,
    region, saga,
    tenant::{
        AdmitRequest, Budget, Command, Event, Outcome, Period, Plan, Price, RefusalReason, SettleRequest, Usage,
        UsageSource,
    },
};

const AT: TimestampUs = TimestampUs(1_795_176_000_000_000);

fn plan() -> Plan {
    Plan {
        name: "pro".to_owned(),
        requests_per_second_milli: 50_000,
        request_burst: 200,
        tokens_per_minute: 2_000_000,
        concurrency_max: 64,
        weight: 3,
        request_cost_max: NanoUsd::from_usd(5),
        budgets: vec![
            Budget { period: Period::Day, limit: NanoUsd::from_usd(1) },
            Budget { period: Period::Month, limit: NanoUsd::from_usd(500) },
        ],
    }
}

fn request() -> RequestId {
    RequestId::from_parts(1_795_176_000_000, [7; 10])
}

fn key() -> KeyId {
    KeyId::new("main").unwrap()
}

fn admission() -> AdmitRequest {
    AdmitRequest {
        request_id: request(),
        key_id: key(),
        model: "sim-small".to_owned(),
        upstream: "sim".to_owned(),
        upstream_model: "sim-small-1".to_owned(),
        prompt_tokens_max: Tokens(96),
        completion_tokens_max: Tokens(64),
        price: Price {
            price_book_version: 3,
            input_per_mtok: NanoUsd(150_000_000),
            output_per_mtok: NanoUsd(600_000_000),
        },
        deadline: AT.after(DurationUs::from_secs(600)),
        streaming: true,
        served_by: String::new(),
    }
}

/// What nodes of a cluster write; the field came later.
fn served_admission() -> AdmitRequest {
    AdmitRequest { served_by: "n1/0000000000000000000000000000abcd".to_owned(), ..admission() }
}

fn settlement() -> SettleRequest {
    SettleRequest {
        request_id: request(),
        outcome: Outcome::ClientGone,
        usage: Usage { prompt_tokens: Tokens(12), completion_tokens: Tokens(34), source: UsageSource::LookedUp },
        upstream_status: 200,
        first_token: DurationUs(1_234),
        duration: DurationUs(56_789),
        detail: "client closed the connection".to_owned(),
    }
}

fn commands() -> Vec<Command> {
    vec![
        Command::RegisterTenant { display_name: "Acme".to_owned(), plan: plan(), zone: "eu".to_owned() },
        Command::IssueApiKey {
            key_id: key(),
            prefix: "fhk_acme_9aX3".to_owned(),
            hash: [0xab; 32],
            label: "main".to_owned(),
        },
        Command::RevokeApiKey { key_id: key(), reason: "lost".to_owned() },
        Command::SetPlan { plan: plan() },
        Command::SetBudget { period: Period::Week, limit: Some(NanoUsd(1)) },
        Command::Suspend { reason: "unpaid".to_owned() },
        Command::Resume,
        Command::AdmitRequest(admission()),
        Command::SettleRequest(settlement()),
        Command::ExpireReservation { request_id: request() },
        Command::RecordRefusals { reason: RefusalReason::Budget, second: 1_795_176_000, count: 17 },
    ]
}

fn events() -> Vec<Event> {
    vec![
        Event::TenantRegistered { display_name: "Acme".to_owned(), plan: plan(), zone: "eu".to_owned(), at: AT },
        Event::ApiKeyIssued {
            key_id: key(),
            prefix: "fhk_acme_9aX3".to_owned(),
            hash: [0xab; 32],
            label: "main".to_owned(),
            at: AT,
        },
        Event::ApiKeyRevoked { key_id: key(), reason: "lost".to_owned(), at: AT },
        Event::PlanSet { plan: plan(), at: AT },
        Event::BudgetSet { period: Period::Year, limit: None, at: AT },
        Event::TenantSuspended { reason: "unpaid".to_owned(), at: AT },
        Event::TenantResumed { at: AT },
        Event::RequestAdmitted { request: admission(), reserved: NanoUsd(52_800), at: AT },
        Event::RequestSettled {
            settlement: settlement(),
            cost: NanoUsd(22_200),
            released: NanoUsd(30_600),
            overrun: NanoUsd(0),
            at: AT,
        },
        Event::ReservationExpired { request_id: request(), released: NanoUsd(52_800), at: AT },
        Event::RequestsRefused { reason: RefusalReason::RequestRate, second: 1_795_176_000, count: 17 },
    ]
}

fn commit() -> Commit {
    Commit {
        commit_id: CommitId::new("admit/1").unwrap(),
        stream: StreamId::new("tenant/acme").unwrap(),
        first_version: Version(3),
        command: commands().remove(7).to_payload(),
        events: vec![EventRecord { event_id: EventId::from_bytes([5; 16]), payload: events().remove(7).to_payload() }],
        episode_id: EpisodeId::from(request()),
        causation_id: Some(CommitId::new("cause/0").unwrap()),
        tenant: Some(TenantId::new("acme").unwrap()),
        region: RegionId::new("local").unwrap(),
        epoch: 1,
        principal: Principal::key(&key()),
        recorded_at: AT,
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        decider_version: 1,
        key_id: "data-key-1".to_owned(),
        context: DecisionContext { seed: 42, policy_version: 1, price_book_version: 3, routing_version: 2 },
    }
}

/// Holds bytes against their golden file, hexadecimal, 32 bytes a line.
fn hold(name: &str, bytes: &[u8]) {
    let hex = |byte: &u8| format!("{byte:02x}");
    let text: String = bytes.chunks(32).map(|line| line.iter().map(hex).collect::<String>() + "\n").collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    if !path.exists() && std::env::vars().any(|(key, value)| key == "GOLDEN" && value == "write") {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}; see the module's text"));
    assert_eq!(golden, text, "the stored bytes of {name} changed");
}

fn hold_all<T: Stored + PartialEq + std::fmt::Debug>(values: Vec<T>) {
    let mut kinds = BTreeMap::new();
    for value in values {
        let payload = value.to_payload();
        assert_eq!(payload.schema_version, 1);
        hold(&format!("{}.v1", payload.kind.rsplit('.').next().unwrap()), &payload.bytes);
        assert_eq!(T::from_payload(payload.view()).unwrap(), value);
        assert!(kinds.insert(payload.kind, ()).is_none(), "{} twice", payload.kind);
    }
}

#[test]
fn tenant_commands_keep_their_bytes() {
    hold_all(commands());
}

#[test]
fn admissions_of_nodes_keep_their_bytes() {
    let command = Command::AdmitRequest(served_admission());
    let event = Event::RequestAdmitted { request: served_admission(), reserved: NanoUsd(52_800), at: AT };
    let (asked, told) = (command.to_payload(), event.to_payload());
    hold("AdmitRequest.served.v1", &asked.bytes);
    hold("RequestAdmitted.served.v1", &told.bytes);
    assert_eq!(Command::from_payload(asked.view()).unwrap(), command);
    assert_eq!(Event::from_payload(told.view()).unwrap(), event);
}

#[test]
fn tenant_events_keep_their_bytes() {
    hold_all(events());
}

#[test]
fn region_facts_keep_their_bytes() {
    let entry = region::PriceBookEntry {
        model: "sim-small".to_owned(),
        upstream: "sim".to_owned(),
        input_per_mtok: NanoUsd(150_000_000),
        output_per_mtok: NanoUsd(600_000_000),
    };
    let read_model = || "billing".to_owned();
    let places = vec![group::Place { position: Position(300), index: 2 }];
    let reason = "written by mistake".to_owned();
    hold_all(vec![
        region::Command::PublishPriceBook { entries: vec![entry.clone()] },
        region::Command::DropFromReadModel { read_model: read_model(), places: places.clone(), reason: reason.clone() },
        region::Command::RedriveReadModel { read_model: read_model() },
    ]);
    hold_all(vec![
        region::Event::PriceBookPublished { version: 3, entries: vec![entry], at: AT },
        region::Event::DroppedFromReadModel { read_model: read_model(), places, reason, at: AT },
        region::Event::ReadModelRedriven { read_model: read_model(), at: AT },
    ]);
}

#[test]
fn facts_of_applications_keep_their_bytes() {
    hold_all(vec![application::Command::Append { expected: application::Expected::Exact(Version(300)) }]);
    for expected in [application::Expected::None, application::Expected::Any, application::Expected::Exists] {
        let command = application::Command::Append { expected };
        assert_eq!(application::Command::from_payload(command.to_payload().view()).unwrap(), command);
    }
    hold_all(vec![application::Event {
        kind: "order.placed".to_owned(),
        content_type: "application/json".to_owned(),
        data: b"{\"order\":1}".to_vec(),
    }]);
}

#[test]
fn facts_of_consumer_groups_keep_their_bytes() {
    let settings = || group::Settings {
        types: vec!["order.placed".to_owned(), "order.paid".to_owned()],
        after: Position(17),
        attempts_max: 5,
        backoff_first: DurationUs::from_millis(500),
        backoff_max: DurationUs::from_secs(60),
        answer_timeout: DurationUs::from_secs(30),
        in_flight_max: 256,
    };
    let place = |position, index| group::Place { position: Position(position), index };
    let settled = || vec![place(21, 0), place(300, 2)];
    let delivery = || group::ParkedDelivery {
        place: place(25, 1),
        stream: "app/acme/order-1".to_owned(),
        kind: "order.placed".to_owned(),
        error: "no such customer".to_owned(),
        attempts: 5,
        consumer_version: "mailer 1.4.2".to_owned(),
    };
    let parked = || vec![group::Numbered { number: 3, place: place(25, 1) }];
    let reason = || "customer was deleted".to_owned();
    hold_all(vec![
        group::Command::Create { settings: settings() },
        group::Command::Record { checkpoint: Position(20), settled: settled(), parked: vec![delivery()] },
        group::Command::Redrive { numbers: vec![3, 300], limit: 10 },
        group::Command::Drop { numbers: Vec::new(), limit: 10, reason: reason() },
    ]);
    hold_all(vec![
        group::Event::Created { settings: settings(), at: AT },
        group::Event::Recorded { checkpoint: Position(20), settled: settled() },
        group::Event::Parked { delivery: delivery(), at: AT },
        group::Event::Redriven { parked: parked(), at: AT },
        group::Event::Dropped { parked: parked(), reason: reason(), at: AT },
    ]);
}

fn saga_stream() -> StreamId {
    StreamId::new("saga/acme/order-17").unwrap()
}

fn saga_parent() -> Option<saga::Parent> {
    let stream = StreamId::new("saga/acme/campaign-3").unwrap();
    Some(saga::Parent { stream, path: "orders[2].order".into(), attempt: 1, depth: 2 })
}

fn saga_prices() -> Vec<saga::SagaPrice> {
    vec![saga::SagaPrice {
        model: "sim-small".to_owned(),
        tier: "batch".to_owned(),
        input_per_mtok: NanoUsd(150_000_000),
        output_per_mtok: NanoUsd(600_000_000),
    }]
}

fn saga_commands() -> Vec<saga::Command> {
    use saga::Command;
    let pay = || saga::StepPath::from("pay");
    vec![
        Command::Start(Box::new(saga::Start {
            stream: saga_stream(),
            definition: r#"{"definition":"order"}"#.into(),
            input: r#"{"order":17}"#.into(),
            budget: Some(NanoUsd::from_usd(2)),
            deadline: Some(AT.after(DurationUs::from_secs(60))),
            parent: saga_parent(),
            prices: saga_prices(),
        })),
        Command::Signal { name: "paid".to_owned(), payload: "true".into() },
        Command::Cancel { reason: "customer asked".to_owned() },
        Command::SucceedStep { path: pay(), attempt: 1, output: r#"{"status":200}"#.into(), cost: NanoUsd(12) },
        Command::FailStep {
            path: pay(),
            attempt: 2,
            kind: "http_503".to_owned(),
            message: "busy".to_owned(),
            cost: NanoUsd(3),
        },
        Command::Wake,
        Command::RetryStep { path: pay() },
        Command::SkipStep { path: pay(), reason: "refunded by hand".to_owned() },
        Command::Compensate { reason: "wrong order".to_owned() },
        Command::Migrate { definition: r#"{"definition":"order","version":2}"#.into() },
    ]
}

fn saga_steps() -> Vec<saga::Event> {
    use saga::Event;
    let pay = || saga::StepPath::from("items[3].pay");
    let (kind, message, cost, at) = ("http_503".to_owned(), "busy".to_owned(), NanoUsd(7), AT);
    let (later, request) = (AT.after(DurationUs::from_secs(30)), saga::Json::from(r#"{"http":{}}"#));
    vec![
        Event::Started {
            stream: saga_stream(),
            definition: r#"{"definition":"order"}"#.into(),
            input: r#"{"order":17}"#.into(),
            budget: NanoUsd::from_usd(2),
            deadline: later,
            seed: 42,
            parent: saga_parent(),
            prices: saga_prices(),
            at,
        },
        Event::StepStarted { path: pay(), attempt: 1, request, reserved: NanoUsd(9), deadline: later, at },
        Event::StepSucceeded { path: pay(), attempt: 1, output: "[1]".into(), cost, at },
        Event::StepSkipped { path: pay() },
        Event::AttemptFailed {
            path: pay(),
            attempt: 1,
            kind: kind.clone(),
            message: message.clone(),
            cost,
            retry_at: later,
            at,
        },
        Event::StepFailed { path: pay(), attempt: 3, kind, message, cost, at },
        Event::WaitStarted { path: pay(), signal: "paid".to_owned(), until: later, at },
        Event::WaitEnded { path: pay(), at },
        Event::SignalReceived { name: "paid".to_owned(), payload: "true".into(), at },
        Event::SignalConsumed { path: pay(), name: "paid".to_owned(), at },
        Event::BranchesStarted { path: pay(), branches: vec![0, 1] },
        Event::ItemsFound { path: pay(), items: "[1,2]".into() },
        Event::ItemStarted { path: pay(), index: 1 },
        Event::BranchEnded { path: "both[1]".into() },
    ]
}

fn saga_ends() -> Vec<saga::Event> {
    use saga::{Cause, Event, Limit};
    let pay = || saga::StepPath::from("pay");
    let (kind, message, at) = (|| "http_503".to_owned(), || "busy".to_owned(), AT);
    vec![
        Event::Degraded { level: 1, reason: Limit::Spend, at },
        Event::LoopCut { reason: Limit::Repeats, at },
        Event::UnwindingStarted { cause: Cause::StepFailed, path: pay(), kind: kind(), message: message(), at },
        Event::CompensationStarted { path: pay(), attempt: 1, request: "{}".into(), deadline: AT, at },
        Event::StepCompensated { path: pay(), attempt: 1, at },
        Event::CompensationFailed { path: pay(), attempt: 3, kind: kind(), message: message(), at },
        Event::CompensationSkipped { path: pay(), reason: "by hand".to_owned(), at },
        Event::OperatorNeeded {
            path: pay(),
            kind: kind(),
            message: message(),
            compensated: vec!["ship".into()],
            remaining: vec![pay(), "reserve".into()],
            at,
        },
        Event::StepRetried { path: pay(), at },
        Event::OutcomeIgnored {
            path: pay(),
            attempt: 1,
            succeeded: true,
            detail: "{}".to_owned(),
            output: "{}".into(),
            at,
        },
        Event::StepHeld { path: pay(), attempt: 2, at },
        Event::ChildCancelled { path: pay(), child: saga_stream(), reason: "nobody waits".to_owned(), at },
        Event::Completed { output: "{}".into(), at },
        Event::Failed { kind: kind(), message: message(), at },
        Event::Unwound { kind: kind(), message: message(), at },
        Event::Cancelled { reason: "customer asked".to_owned(), at },
        Event::Migrated { definition: "{}".into(), at },
    ]
}

#[test]
fn facts_of_sagas_keep_their_bytes() {
    hold_all(saga_commands());
    hold_all(saga_steps());
    hold_all(saga_ends());
}

#[test]
fn the_envelope_keeps_its_bytes() {
    hold("Commit.v1", &commit().encode());
}

#[test]
fn bytes_of_an_unknown_type_or_version_are_a_typed_error() {
    let payload = Command::Resume.to_payload();
    let mut view = payload.view();
    view.schema_version = 2;
    assert!(Command::from_payload(view).is_err());
    assert!(Event::from_payload(payload.view()).is_err());
}

fn damage<T: Stored>(values: Vec<T>) {
    for value in values {
        let payload = value.to_payload();
        for end in 0..payload.bytes.len() {
            let mut view = payload.view();
            view.bytes = &payload.bytes[..end];
            drop(T::from_payload(view));
            let mut flipped = payload.clone();
            flipped.bytes[end] ^= 0x55;
            drop(T::from_payload(flipped.view()));
        }
    }
}

#[test]
fn no_truncated_or_flipped_payload_panics() {
    damage(events());
    damage(saga_commands());
    damage(saga_steps());
    damage(saga_ends());
}
