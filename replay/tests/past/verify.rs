//! The recorded context suffices to decide everything once more.

use actors_core::{region::Region, tenant::Tenant};
use events_model::{
    DurationUs, NanoUsd, Payload, RequestId, Stored, StreamId, TimestampUs, Version,
    tenant::{Command, Event, Period, RefusalReason},
};
use proptest::prelude::*;
use replay::{
    state_at::Error,
    verify::{How, Verified, stream as verify},
};
use tests_kit::tenant as kit;

use crate::desk::{Desk, admit, id, settle, stream};

/// Takes a step of a random kind; whatever the rules would refuse is not told.
fn step(desk: &mut Desk, open: &mut Vec<u64>, number: u64, kind: u8) {
    desk.now = desk.now.after(DurationUs::from_secs(number % 90));
    let oldest = |open: &mut Vec<u64>| if open.is_empty() { None } else { Some(open.remove(0)) };
    match kind {
        0 => {
            let limit = Some(NanoUsd::from_usd(1_000));
            desk.tell("acme", number, &Command::SetBudget { period: Period::Week, limit });
        }
        1 => desk.tell("acme", number, &Command::SetPlan { plan: kit::plan("enterprise") }),
        2 => {
            desk.tell("acme", number, &Command::Suspend { reason: "test".to_owned() });
            desk.tell("acme", number, &Command::Resume);
        }
        3 => {
            let (reason, second) = (RefusalReason::Budget, desk.now.0 / 1_000_000);
            desk.tell("acme", number, &Command::RecordRefusals { reason, second, count: number });
        }
        4 => {
            let Some(request) = oldest(open) else { return };
            desk.now = desk.now.after(DurationUs::from_secs(60));
            let request_id = RequestId::from_bytes(id(request));
            desk.tell("acme", request, &Command::ExpireReservation { request_id });
        }
        5 | 6 => {
            if let Some(request) = oldest(open) {
                desk.tell("acme", request, &settle(request, number % 7, number % 31));
            }
        }
        _ => {
            desk.tell("acme", number, &admit(number, 1 + number % 100, 1 + number % 50, desk.now));
            open.push(number);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_decided_is_decided_again_to_the_byte(kinds in prop::collection::vec(0..12_u8, 1..120)) {
        let mut desk = Desk::with_acme();
        let mut open = Vec::new();
        for (number, kind) in (1_u64..).zip(kinds) {
            step(&mut desk, &mut open, number, kind);
        }
        let commits = desk.log_commits();
        let verified = verify::<Tenant>(&desk.log, &stream("acme")).unwrap();
        prop_assert_eq!(verified, Verified { commits, difference: None });
    }
}

/// A desk whose third commit was decided by nobody.
fn forged(command: &Command, events: &[Event]) -> How {
    let mut desk = Desk::with_acme();
    desk.append(&stream("acme"), 5, command.to_payload(), events.iter().map(Stored::to_payload).collect());
    desk.tell("acme", 6, &admit(6, 1, 1, desk.now));
    let verified = verify::<Tenant>(&desk.log, &stream("acme")).unwrap();
    let difference = verified.difference.unwrap();
    assert_eq!((verified.commits, difference.version, difference.commit_id.as_str()), (3, Version(3), "c-3"));
    difference.how
}

#[test]
fn the_first_commit_that_differs_is_named_with_what_differs() {
    let at = Desk::with_acme().now;
    let suspend = Command::Suspend { reason: "a".to_owned() };
    let suspended = |reason: &str, at| Event::TenantSuspended { reason: reason.to_owned(), at };
    let name = |word: &str| format!("freehold.log.v1.{word}");
    let event =
        |decided: &str| How::Event { version: Version(3), recorded: name("TenantSuspended"), decided: name(decided) };
    assert_eq!(forged(&suspend, &[suspended("b", at)]), event("TenantSuspended"));
    assert_eq!(forged(&suspend, &[suspended("a", TimestampUs(at.0 + 1))]), event("TenantSuspended"));
    let refusals = Command::RecordRefusals { reason: RefusalReason::Key, second: 1, count: 1 };
    assert_eq!(forged(&refusals, &[suspended("a", at)]), event("RequestsRefused"));
    assert_eq!(forged(&suspend, &[suspended("a", at), suspended("a", at)]), How::Count { recorded: 2, decided: 1 });
    assert_eq!(
        forged(&Command::Resume, &[Event::TenantResumed { at }]),
        How::Rejected { rejection: "the tenant is not suspended".to_owned() }
    );
}

#[test]
fn regions_are_verified_too_and_what_cannot_be_read_is_an_error() {
    let mut desk = Desk::with_acme();
    desk.publish("sim-small");
    let region = StreamId::new("region/local").unwrap();
    let verified = verify::<Region>(&desk.log, &region).unwrap();
    assert_eq!(verified, Verified { commits: 1, difference: None });
    assert!(matches!(verify::<Tenant>(&desk.log, &stream("ghost")), Err(Error::NoSuchStream { .. })));
    let payload = Payload { kind: "a.Unheard", schema_version: 1, bytes: Vec::new() };
    desk.append(&stream("acme"), 9, payload.clone(), vec![payload]);
    let error = verify::<Tenant>(&desk.log, &stream("acme")).unwrap_err();
    assert!(matches!(error, Error::Decode { version: Version(3), .. }), "{error}");
}
