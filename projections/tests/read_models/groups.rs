//! The consumer groups at a glance.

use events_model::{
    DurationUs, Position, Stored, StreamId, TimestampUs,
    group::{Event, Numbered, ParkedDelivery, Place, Settings},
};
use projections::{fold_to, groups::Groups};
use tests_kit::NOON;

use crate::book::{Book, tenant};

fn place(position: u64) -> Place {
    Place { position: Position(position), index: 0 }
}

fn parked(position: u64, at: TimestampUs) -> Event {
    let delivery = ParkedDelivery {
        place: place(position),
        stream: "app/acme/a".to_owned(),
        kind: "a".to_owned(),
        error: "no".to_owned(),
        attempts: 1,
        consumer_version: String::new(),
    };
    Event::Parked { delivery, at }
}

fn numbered(number: u64, position: u64) -> Numbered {
    Numbered { number, place: place(position) }
}

fn created() -> Event {
    let settings = Settings {
        types: vec!["a".to_owned()],
        after: Position(3),
        attempts_max: 1,
        backoff_first: DurationUs(1),
        backoff_max: DurationUs(1),
        answer_timeout: DurationUs(1),
        in_flight_max: 1,
    };
    Event::Created { settings, at: NOON }
}

#[test]
fn a_group_shows_how_far_it_is_what_is_parked_and_since_when() {
    let mut book = Book::default();
    let stream = StreamId::group(&tenant("acme"), "mail").unwrap();
    let later = NOON.after(DurationUs(1));
    let mut write = |events: &[Event]| book.write_stream(&stream, events.iter().map(Stored::to_payload).collect());
    write(&[created()]);
    write(&[parked(5, NOON), parked(4, later), Event::Recorded { checkpoint: Position(6), settled: vec![] }]);
    write(&[parked(7, later)]);
    write(&[Event::Redriven { parked: vec![numbered(2, 5)], at: later }]);
    let reason = "test".to_owned();
    write(&[Event::Dropped { parked: vec![numbered(5, 7)], reason, at: later }]);
    let fold = fold_to::<Groups>(&*book.log, Position(u64::MAX)).unwrap();
    let summary = &fold.state.groups[&stream];
    assert_eq!((summary.checkpoint, summary.created_at, fold.parked.count), (Position(6), NOON, 0));
    assert_eq!((summary.parked(), summary.oldest_parked_at(), summary.redriven()), (1, Some(later), 1));
    assert_eq!((summary.parked_total, summary.dropped_total), (3, 1));
    let settled = Event::Recorded { checkpoint: Position(2), settled: vec![place(5)] };
    book.write_stream(&stream, vec![settled.to_payload()]);
    let fold = fold_to::<Groups>(&*book.log, Position(u64::MAX)).unwrap();
    let summary = &fold.state.groups[&stream];
    assert_eq!((summary.checkpoint, summary.redriven()), (Position(6), 0));
}

#[test]
fn what_is_about_a_group_that_nobody_created_is_parked_and_pages_go_on_behind_the_last_group() {
    let mut book = Book::default();
    let streams = ["a", "b", "c"].map(|name| StreamId::group(&tenant("acme"), name).unwrap());
    book.write_stream(&streams[0], vec![parked(5, NOON).to_payload()]);
    for stream in &streams[1..] {
        book.write_stream(stream, vec![created().to_payload()]);
    }
    let fold = fold_to::<Groups>(&*book.log, Position(u64::MAX)).unwrap();
    assert_eq!((fold.parked.count, fold.parked.events[0].stream.as_str()), (1, "group/acme/a"));
    let page = |after| fold.state.page(after).map(|(stream, _)| stream.name().to_owned()).collect::<Vec<_>>();
    assert_eq!((page(None), page(Some(&streams[1]))), (vec!["b".to_owned(), "c".to_owned()], vec!["c".to_owned()]));
}
