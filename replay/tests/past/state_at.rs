//! The state of an actor at a moment.

use std::collections::BTreeMap;

use actors_core::tenant::{State, Status};
use events_model::{Payload, StreamId, TimestampUs, Version, tenant::Command};
use replay::{
    At, PAGE_LEN_MAX,
    state_at::{Error, json_at, region_at, tenant_at},
};
use tests_kit::NOON;

use crate::desk::{Desk, admit, settle, stream};

#[test]
fn every_version_and_time_gives_the_state_the_actor_had() {
    let mut desk = Desk::with_acme();
    let mut history = BTreeMap::new();
    // Longer than a page, so that pages must join.
    for number in 0..PAGE_LEN_MAX as u64 {
        desk.now = TimestampUs(desk.now.0 + 1_000_000);
        desk.tell("acme", number, &admit(number, 1, 1, desk.now));
        history.insert((desk.head("acme"), desk.now), desk.state("acme").clone());
        if number % 3 > 0 {
            desk.tell("acme", number, &settle(number, 1, 1));
            history.insert((desk.head("acme"), desk.now), desk.state("acme").clone());
        }
    }
    for ((version, at), state) in history.iter().step_by(7).chain(history.last_key_value()) {
        let found = tenant_at(&desk.log, &stream("acme"), At::Version(*version)).unwrap();
        assert_eq!((found.version, found.recorded_at), (*version, *at));
        assert_eq!(&found.state, state);
        let found = tenant_at(&desk.log, &stream("acme"), At::Time(*at)).unwrap();
        assert_eq!((found.version, &found.state), (*version, state));
        let before = tenant_at(&desk.log, &stream("acme"), At::Time(TimestampUs(at.0 - 1))).unwrap();
        assert_eq!(before.version.next(), *version);
    }
    let newest = tenant_at(&desk.log, &stream("acme"), At::Newest).unwrap();
    assert_eq!((newest.version, &newest.state), (desk.head("acme"), desk.state("acme")));
}

#[test]
fn before_the_first_event_there_is_nothing() {
    let desk = Desk::with_acme();
    for at in [At::Version(Version(0)), At::Time(NOON)] {
        let found = tenant_at(&desk.log, &stream("acme"), at).unwrap();
        assert_eq!((found.version, found.recorded_at, found.state), (Version(0), TimestampUs(0), State::default()));
    }
}

#[test]
fn a_version_in_the_middle_of_a_commit_is_the_state_right_after_it() {
    let mut desk = Desk::with_acme();
    let events = [
        events_model::tenant::Event::TenantSuspended { reason: "x".to_owned(), at: desk.now },
        events_model::tenant::Event::TenantResumed { at: desk.now },
    ];
    let command = events_model::Stored::to_payload(&Command::Resume);
    let payloads: Vec<Payload> = events.iter().map(events_model::Stored::to_payload).collect();
    desk.append(&stream("acme"), 9, command, payloads);
    let status = |version| tenant_at(&desk.log, &stream("acme"), At::Version(Version(version))).unwrap().state.status;
    assert_eq!(status(3), Status::Suspended { reason: "x".to_owned() });
    assert_eq!(status(4), Status::Active);
}

#[test]
fn a_stream_that_is_not_there_a_version_beyond_it_and_a_kind_without_rules_are_told_apart() {
    let mut desk = Desk::with_acme();
    desk.publish("sim-small");
    let ghost = tenant_at(&desk.log, &stream("ghost"), At::Newest).unwrap_err();
    assert_eq!(ghost.to_string(), "there is no stream tenant/ghost");
    let beyond = json_at(&desk.log, &stream("acme"), At::Version(Version(3))).unwrap_err();
    assert_eq!(beyond.to_string(), "stream tenant/acme has no version 3, it is at 2");
    let saga = StreamId::new("saga/acme/one").unwrap();
    assert!(matches!(json_at(&desk.log, &saga, At::Newest), Err(Error::Kind { .. })));
    let payload = Payload { kind: "a.Unheard", schema_version: 1, bytes: Vec::new() };
    desk.append(&stream("acme"), 9, payload.clone(), vec![payload]);
    let broken = tenant_at(&desk.log, &stream("acme"), At::Newest).unwrap_err();
    assert_eq!(broken.to_string(), "version 3 of tenant/acme at position 4 does not decode");
    assert!(tenant_at(&desk.log, &stream("acme"), At::Version(Version(2))).is_ok());
}

#[test]
fn states_are_json_by_the_kind_of_their_stream() {
    let mut desk = Desk::with_acme();
    desk.publish("sim-small");
    desk.tell("acme", 5, &admit(5, 1, 1, desk.now));
    let json = |stream: &StreamId| {
        serde_json::from_str::<serde_json::Value>(&json_at(&desk.log, stream, At::Newest).unwrap().state).unwrap()
    };
    let tenant = json(&stream("acme"));
    assert_eq!((&tenant["status"], &tenant["display_name"]), (&"active".into(), &"Acme".into()));
    assert_eq!(tenant["reservations"].as_object().unwrap().len(), 1);
    let region = StreamId::new("region/local").unwrap();
    assert_eq!(json(&region)["entries"][0]["model"], "sim-small");
    assert_eq!(region_at(&desk.log, &region, At::Newest).unwrap().state.price_book_version, 1);
}
