//! Dead letters of read models: tried again by newer code and by command, given up for good, one tenant's beside
//! another's.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use events_journal::{Direction, EventLog as _, Filter, SnapshotStore as _};
use events_model::{CommitView, EventView, Position, Stored as _, StreamId, group::Place, region, tenant::Event};
use projections::{
    ApplyError, Fold, Options, Parked, Projection, Reader, fold_to,
    parked::{PARKED_PER_STREAM_MAX, WHOLE_COMMIT},
};
use tests_kit::NOON;

use crate::{
    book::{Book, tenant},
    runner::{AsStore as _, Odd, WAIT_MAX, while_running},
};

/// What each stream said last, and all that was said, in order: it matters where an event counts.
type Story = Vec<(String, String)>;

fn tell(state: &mut Story, commit: &CommitView<'_>, event: &EventView<'_>, is_able: bool) -> Result<(), ApplyError> {
    let Ok(Event::TenantSuspended { reason, .. }) = Event::from_payload(event.payload) else { return Ok(()) };
    if reason == "new" && !is_able {
        return Err(ApplyError::Stream { stream: "from a newer version".to_owned() });
    }
    state.push((commit.stream.to_owned(), reason));
    Ok(())
}

/// A fold that cannot apply what a newer version wrote, or can.
#[derive(Debug)]
struct Tale<const ABLE: bool>;

impl<const ABLE: bool> Projection for Tale<ABLE> {
    const NAME: &'static str = "tale";
    const VERSION: u32 = 1;
    type State = Story;

    fn apply(s: &mut Story, _: Position, commit: &CommitView<'_>, event: &EventView<'_>) -> Result<(), ApplyError> {
        tell(s, commit, event, ABLE)
    }
}

fn said(reason: &str) -> Event {
    Event::TenantSuspended { reason: reason.to_owned(), at: NOON }
}

/// One tenant's event that is from a newer version lies between others of it and of its neighbour.
fn written() -> Book {
    let mut book = Book::default();
    book.write(&tenant("acme"), &[said("a1"), said("new"), said("a2")]);
    book.write(&tenant("other"), &[said("o1")]);
    book.write(&tenant("acme"), &[said("a3")]);
    book
}

fn decide(book: &mut Book, event: &region::Event) -> Position {
    book.write_stream(&StreamId::new("region/local").unwrap(), vec![event.to_payload()])
}

fn drop_of(places: &[(u64, u32)]) -> region::Event {
    let place = |(position, index): &(u64, u32)| Place { position: Position(*position), index: *index };
    let (read_model, reason) = ("tale".to_owned(), "written by mistake".to_owned());
    region::Event::DroppedFromReadModel { read_model, places: places.iter().map(place).collect(), reason, at: NOON }
}

/// Catches up, lets everything be carried out that was decided, and gives what there is.
async fn settled<P: Projection<State = Story>>(reader: &Reader<P>, head: Position) -> (Story, Parked) {
    reader.wait_for(head, WAIT_MAX).await.unwrap();
    reader.wait_rebuilt(WAIT_MAX).await.unwrap();
    (reader.read(|state, _| state.clone()), reader.parked())
}

fn run<P: Projection<State = Story>>(book: &Book) -> (Story, Parked) {
    let head = book.log.head_position_of_all();
    let (port, store) = (book.port(), book.log.clone_store());
    let (result, _, output) =
        while_running::<P, _>(port, store, Options::default(), |reader| async move { settled(&reader, head).await });
    result.unwrap();
    output
}

trait Head {
    fn head_position_of_all(&self) -> Position;
}

impl Head for Arc<events_journal::MemoryLog> {
    fn head_position_of_all(&self) -> Position {
        events_journal::EventLog::head_position(&**self)
    }
}

fn reasons(story: &Story) -> Vec<&str> {
    story.iter().map(|(_, reason)| reason.as_str()).collect()
}

fn fold<P: Projection<State = Story>>(book: &Book) -> Fold<Story> {
    fold_to::<P>(&*book.log, Position(u64::MAX)).unwrap()
}

#[test]
fn what_a_newer_version_wrote_is_parked_and_counts_where_it_lies_once_the_code_knows_it() {
    let book = written();
    let (story, parked) = run::<Tale<false>>(&book);
    assert_eq!(reasons(&story), ["a1", "a2", "o1", "a3"]);
    let [event] = &parked.events[..] else { panic!("{parked:?}") };
    assert_eq!((event.place(), event.version.0), (Place { position: Position(1), index: 1 }, 2));
    assert_eq!((event.stream.as_str(), event.attempts, parked.oldest_at()), ("tenant/acme", 1, Some(NOON)));
    // A start tries again, in vain with the same code, and counts it.
    let (same, parked) = run::<Tale<false>>(&book);
    assert_eq!((same, parked.count, parked.events[0].attempts), (story, 1, 2));
    // The same checkpoint, and code that can.
    let (story, parked) = run::<Tale<true>>(&book);
    assert_eq!(reasons(&story), ["a1", "new", "a2", "o1", "a3"]);
    assert_eq!((parked.count, story), (0, fold::<Tale<true>>(&book).state));
    assert!(book.log.load_checkpoint("tale").unwrap().is_some());
}

static MENDED: AtomicBool = AtomicBool::new(false);

/// A fold whose fault goes away while it runs.
#[derive(Debug)]
struct Mended;

impl Projection for Mended {
    const NAME: &'static str = "tale";
    const VERSION: u32 = 1;
    type State = Story;

    fn apply(s: &mut Story, _: Position, commit: &CommitView<'_>, event: &EventView<'_>) -> Result<(), ApplyError> {
        tell(s, commit, event, MENDED.load(Ordering::Acquire))
    }
}

#[test]
fn a_command_on_the_log_has_parked_events_tried_again_while_the_log_goes_on() {
    let mut book = written();
    let head = book.log.head_position_of_all();
    let (port, store) = (book.port(), book.log.clone_store());
    let (result, _, ()) = while_running::<Mended, _>(port, store, Options::default(), |reader| async move {
        assert_eq!(settled(&reader, head).await.1.count, 1);
        let redriven = |name: &str| region::Event::ReadModelRedriven { read_model: name.to_owned(), at: NOON };
        MENDED.store(true, Ordering::Release);
        let head = decide(&mut book, &redriven("another"));
        assert_eq!(settled(&reader, head).await.1.count, 1);
        let head = decide(&mut book, &redriven("tale"));
        book.write(&tenant("other"), &[said("o2")]);
        let (story, parked) = settled(&reader, head).await;
        assert_eq!((&reasons(&story)[..3], parked.count), (&["a1", "new", "a2"][..], 0));
    });
    result.unwrap();
}

#[test]
fn what_was_given_up_is_in_no_fold_whatever_its_code_and_wherever_it_began() {
    let mut book = written();
    let (before, _) = run::<Tale<false>>(&book);
    decide(&mut book, &drop_of(&[(1, 1)]));
    book.write(&tenant("acme"), &[said("a4")]);
    let expected = ["a1", "a2", "o1", "a3", "a4"];
    // The live fold goes on from its checkpoint, where it is parked.
    let (story, parked) = run::<Tale<false>>(&book);
    assert_eq!((reasons(&story), parked.count, parked.oldest_at()), (expected.to_vec(), 0, None));
    assert!(story.starts_with(&before));
    // Other code on that checkpoint, and from the start, where it had applied the event.
    assert_eq!(run::<Tale<true>>(&book).0, story);
    book.log.save_checkpoint("tale", &events_journal::Blob { at: 1, bytes: Vec::new() }).unwrap();
    assert_eq!(run::<Tale<true>>(&book).0, story);
    let folds = [fold::<Tale<true>>(&book), fold::<Tale<false>>(&book)];
    assert_eq!(folds.map(|fold| (fold.state, fold.parked.count)), [(story.clone(), 0), (story.clone(), 0)]);
    // Twice changes nothing; what never was parked is given up all the same, and what is not there yet, too.
    let next = book.log.head_position_of_all().0 + 2;
    decide(&mut book, &drop_of(&[(1, 1), (2, 0), (next, 0)]));
    book.write(&tenant("acme"), &[said("a5"), said("a6")]);
    let expected = ["a1", "a2", "a3", "a4", "a6"];
    for (story, parked) in [run::<Tale<true>>(&book), run::<Tale<false>>(&book)] {
        assert_eq!((reasons(&story), parked.count), (expected.to_vec(), 0));
    }
    assert_eq!(reasons(&fold::<Tale<false>>(&book).state), expected);
}

#[test]
fn one_streams_many_parked_events_leave_room_for_anothers_and_come_up_as_they_are_given_up() {
    let many = PARKED_PER_STREAM_MAX + 100;
    let mut book = Book::default();
    for _ in 0..many {
        book.write(&tenant("acme"), &[said("new")]);
    }
    book.write(&tenant("other"), &[said("new")]);
    let (_, parked) = run::<Tale<false>>(&book);
    assert_eq!((parked.count, parked.events.len()), (many as u64 + 1, PARKED_PER_STREAM_MAX + 1));
    assert_eq!(parked.events.last().unwrap().stream, "tenant/other");
    let first: Vec<_> = (1..=PARKED_PER_STREAM_MAX as u64).map(|position| (position, 0)).collect();
    decide(&mut book, &drop_of(&first));
    let (_, parked) = run::<Tale<false>>(&book);
    assert_eq!((parked.count, parked.events.len()), (101, 101));
}

#[test]
fn a_commit_that_does_not_decode_is_given_up_as_a_whole_also_by_code_that_can_decode_it() {
    let mut book = Book::default();
    book.write(&tenant("acme"), &[said("a1"), said("a2"), said("a3")]);
    book.write(&tenant("acme"), &[said("a4")]);
    decide(&mut book, &drop_of(&[(1, WHOLE_COMMIT)]));
    let page = book.log.read_log(Position(1), Direction::Forward, &Filter::default(), 10).unwrap();
    let mut commits = page.commits;
    commits[0].bytes = vec![0xFF; 8].into();
    let mut fold = Fold::<Story>::default();
    fold.apply::<Tale<true>>(&commits[0]);
    assert_eq!(fold.parked.events[0].place(), Place { position: Position(1), index: WHOLE_COMMIT });
    // Nobody knows when it was recorded; that is not 1970.
    assert_eq!(fold.parked.oldest_at(), None);
    commits[1..].iter().for_each(|commit| fold.apply::<Tale<true>>(commit));
    assert_eq!((reasons(&fold.state), fold.parked.count, fold.parked.wants_rebuild()), (vec!["a4"], 0, false));
    // The log as code sees it that can decode the commit.
    assert_eq!(reasons(&run::<Tale<true>>(&book).0), ["a4"]);
    assert_eq!(self::fold::<Tale<true>>(&book).state, fold.state);
}

#[test]
fn a_log_that_never_stands_still_does_not_keep_what_was_decided_from_being_carried_out() {
    let mut book = written();
    let head = decide(&mut book, &drop_of(&[(1, 1)]));
    let (log, store) = (Arc::clone(&book.log), book.log.clone_store());
    let port = Arc::new(Odd { log, damaged: Mutex::new(0..=0), grows: Some(Mutex::new(book)) });
    let (result, _, ()) = while_running::<Tale<true>, _>(port, store, Options::default(), |reader| async move {
        reader.wait_for(head, WAIT_MAX).await.unwrap();
        reader.wait_rebuilt(WAIT_MAX).await.unwrap();
        assert!(!reader.read(|state, _| reasons(state).contains(&"new")));
    });
    result.unwrap();
}

#[test]
fn all_of_one_streams_many_parked_events_can_be_given_up_without_folding_the_log_anew_for_each_batch() {
    let many = 3 * PARKED_PER_STREAM_MAX as u64;
    let mut book = Book::default();
    for _ in 0..many {
        book.write(&tenant("acme"), &[said("new")]);
    }
    let mut fold = fold::<Tale<false>>(&book);
    assert_eq!(fold.parked.places().count() as u64, many);
    for batch in fold.parked.clone().places().collect::<Vec<_>>().chunks(PARKED_PER_STREAM_MAX) {
        let given_up: Vec<_> = batch.iter().map(|place| (place.position.0, place.index)).collect();
        let at = decide(&mut book, &drop_of(&given_up));
        let page = book.log.read_log(at, Direction::Forward, &Filter::default(), 1).unwrap();
        fold.apply::<Tale<false>>(&page.commits[0]);
        // The list has run empty, which is nothing to wait for.
        assert!(!fold.parked.is_pending() && fold.parked.events.is_empty());
        assert_eq!(fold.parked.wants_rebuild(), fold.parked.count > 0);
    }
    assert_eq!((fold.parked.count, run::<Tale<true>>(&book).0), (0, Vec::new()));
}
