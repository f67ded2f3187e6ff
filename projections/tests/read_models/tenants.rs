//! The tenants at a glance.

use events_model::{
    DurationUs, NanoUsd, Payload, Position, StreamId, Tokens, Version,
    tenant::{Event, RefusalReason},
};
use projections::{
    fold_to,
    tenants::{Status, Tenants},
};
use tests_kit::{NOON, tenant as kit};

use crate::book::{Book, admitted, expired, registered, settled, tenant};

fn fold(book: &Book) -> projections::Fold<projections::tenants::State> {
    fold_to::<Tenants>(&*book.log, Position(u64::MAX)).unwrap()
}

#[test]
fn a_tenant_shows_what_it_used_and_what_is_open() {
    let mut book = Book::default();
    let acme = tenant("acme");
    book.write(&acme, &kit::registered(kit::plan("pro")));
    book.write(&acme, &[Event::PlanSet { plan: kit::plan("enterprise"), at: NOON }]);
    book.write(&acme, &[admitted(1, "a", NOON.after(DurationUs(2))), admitted(2, "b", NOON.after(DurationUs(1)))]);
    book.write(&acme, &[admitted(3, "a", NOON)]);
    book.write(&acme, &[settled(3, 5, 7, 19, NOON), expired(2, NOON)]);
    let refused = Event::RequestsRefused { reason: RefusalReason::Budget, second: 1, count: 3 };
    book.write(&acme, &[refused, Event::TenantSuspended { reason: "test".to_owned(), at: NOON }]);
    let fold = fold(&book);
    let summary = &fold.state.tenants[&acme];
    assert_eq!((summary.display_name.as_str(), summary.plan.as_str()), ("Acme", "enterprise"));
    assert_eq!((summary.status, summary.refused, summary.registered_at), (Status::Suspended, 3, NOON));
    assert_eq!((summary.requests_settled, summary.cost), (1, NanoUsd(19)));
    assert_eq!((summary.prompt_tokens, summary.completion_tokens), (Tokens(5), Tokens(7)));
    assert_eq!(summary.open_reservations(), 1);
    assert_eq!(fold.parked.count, 0);
}

#[test]
fn the_streams_to_wake_come_with_their_earliest_deadline() {
    let mut book = Book::default();
    let (acme, idle) = (tenant("acme"), tenant("idle"));
    for tenant in [&acme, &idle] {
        book.write(tenant, &[registered("pro")]);
    }
    let minute = DurationUs::from_secs(60);
    book.write(&acme, &[1_u64, 2, 3].map(|n| admitted(n, "a", NOON.after(DurationUs(n)))));
    book.write(&idle, &[admitted(9, "a", NOON), expired(9, NOON)]);
    let open = |book: &Book| fold(book).state.open_streams().collect::<Vec<_>>();
    assert_eq!(open(&book), [(StreamId::tenant(&acme), NOON.after(DurationUs(1)).after(minute))]);
    book.write(&acme, &[settled(1, 1, 1, 1, NOON)]);
    assert_eq!(open(&book), [(StreamId::tenant(&acme), NOON.after(DurationUs(2)).after(minute))]);
    book.write(&acme, &[settled(3, 1, 1, 1, NOON), expired(2, NOON)]);
    assert_eq!(open(&book), []);
}

#[test]
fn pages_go_on_behind_the_last_tenant() {
    let mut book = Book::default();
    for name in ["c", "a", "b", "d"] {
        book.write(&tenant(name), &[registered("free")]);
    }
    let state = fold(&book).state;
    let names = |after: Option<&str>, limit| {
        let after = after.map(tenant);
        state.page(after.as_ref(), limit).map(|(id, _)| id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(None, 3), ["a", "b", "c"]);
    assert_eq!(names(Some("c"), 3), ["d"]);
    assert_eq!(names(Some("bb"), 1), ["c"]);
    assert!(names(Some("d"), 3).is_empty());
}

#[test]
fn an_event_that_does_not_apply_is_parked_and_the_rest_goes_on() {
    let mut book = Book::default();
    let (acme, ghost) = (tenant("acme"), tenant("ghost"));
    book.write(&acme, &[registered("pro"), admitted(1, "a", NOON)]);
    book.write(&ghost, &[admitted(8, "a", NOON)]);
    let broken = Payload { kind: "freehold.log.v1.RequestSettled", schema_version: 1, bytes: vec![0xff; 9] };
    let later = Payload { kind: "freehold.log.v1.RequestSettled", schema_version: 7, bytes: Vec::new() };
    let foreign = Payload { kind: "freehold.log.v1.NeverHeardOf", schema_version: 1, bytes: vec![0xff] };
    book.write_payloads(&acme, vec![broken, later, foreign]);
    book.write(&acme, &[settled(7, 1, 1, 1, NOON), settled(1, 2, 3, 4, NOON)]);
    let fold = fold(&book);
    assert_eq!((fold.state.tenants[&acme].requests_settled, fold.state.tenants[&acme].cost), (1, NanoUsd(4)));
    let parked: Vec<_> = fold.parked.events.iter().map(|event| (event.position.0, event.version)).collect();
    assert_eq!(parked, [(2, Version(1)), (3, Version(3)), (3, Version(4)), (4, Version(6))]);
    assert_eq!(fold.parked.count, 4);
    let errors: Vec<_> = fold.parked.events.iter().map(|event| event.error.as_str()).collect();
    assert_eq!(errors[0], "tenant ghost is not registered");
    assert!(errors[1].starts_with("the event does not decode: "), "{}", errors[1]);
    assert_eq!(fold.parked.events[3].stream, "tenant/acme");
}
