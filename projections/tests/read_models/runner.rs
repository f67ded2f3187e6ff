//! The runner: every event once, across stops, damage and panics.

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex},
    time::Duration,
};

use events_journal::{
    Blob, Direction, EventLog, Filter, Health, MemoryLog, Page, ReadError, Receipt, Recorded, SnapshotStore,
};
use events_model::{
    Commit, CommitId, CommitView, EpisodeId, EventView, Position, Stored as _, StreamId, Version, region, tenant::Event,
};
use projections::{ApplyError, Options, Parked, Progress, Projection, Reader, RunError, Runner, WaitError};
use tests_kit::NOON;
use tokio::sync::watch;

use crate::book::{Book, tenant};

pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);

/// Counts events and remembers the last position; knows neither.
#[derive(Debug)]
struct Count<const PANICS: bool>;

impl<const PANICS: bool> Projection for Count<PANICS> {
    const NAME: &'static str = "count";
    const VERSION: u32 = 1;
    type State = u64;

    fn apply(state: &mut u64, _: Position, _: &CommitView<'_>, event: &EventView<'_>) -> Result<(), ApplyError> {
        assert!(!PANICS, "a test asked for it");
        if event.payload.short_kind() == "TenantSuspended" {
            return Err(ApplyError::Stream { stream: "test".to_owned() });
        }
        *state += 1;
        Ok(())
    }
}

/// The same fold in a later version.
#[derive(Debug)]
struct CountTwo;

impl Projection for CountTwo {
    const NAME: &'static str = "count";
    const VERSION: u32 = 2;
    type State = u64;

    fn apply(state: &mut u64, _: Position, _: &CommitView<'_>, _: &EventView<'_>) -> Result<(), ApplyError> {
        *state += 2;
        Ok(())
    }
}

fn resumed() -> Event {
    Event::TenantResumed { at: NOON }
}

fn write(book: &mut Book, commits: usize) {
    for _ in 0..commits {
        book.write(&tenant("acme"), &[resumed(), resumed()]);
    }
}

/// Runs a runner while `drive` lasts, then stops it.
pub(crate) fn while_running<P: Projection, F: Future>(
    log: Arc<dyn EventLog>,
    store: Arc<dyn SnapshotStore>,
    options: Options,
    drive: impl FnOnce(Reader<P>) -> F,
) -> (Result<(), RunError>, Vec<Progress>, F::Output) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (runner, reader) = Runner::<P>::open(log, store, options);
    let (stop, stopped) = watch::channel(false);
    let mut seen = Vec::new();
    let (result, output) = runtime.block_on(async {
        let drive = async {
            let output = drive(reader).await;
            stop.send_replace(true);
            output
        };
        tokio::join!(runner.run(stopped, |progress| seen.push(progress)), drive)
    });
    (result, seen, output)
}

/// Catches up and tells the state, the position and how far the checkpoint had come before.
fn catch_up<P: Projection<State = u64>>(book: &Book) -> (u64, Position, Vec<Progress>) {
    let head = book.log.head_position();
    let (result, seen, state) =
        while_running::<P, _>(book.port(), book.log.clone_store(), Options::default(), |reader| async move {
            reader.wait_for(head, WAIT_MAX).await.unwrap();
            reader.read(|state, position| (*state, position))
        });
    result.unwrap();
    (state.0, state.1, seen)
}

pub(crate) trait AsStore {
    fn clone_store(&self) -> Arc<dyn SnapshotStore>;
}

impl AsStore for Arc<MemoryLog> {
    fn clone_store(&self) -> Arc<dyn SnapshotStore> {
        Self::clone(self)
    }
}

#[test]
fn it_catches_up_follows_and_gives_read_your_writes() {
    let mut book = Book::default();
    write(&mut book, 1_200);
    let (port, store) = (book.port(), book.log.clone_store());
    let (result, seen, ()) = while_running::<Count<false>, _>(port, store, Options::default(), |reader| async move {
        reader.wait_for(Position(1_200), WAIT_MAX).await.unwrap();
        for _ in 0..20 {
            let position = book.write(&tenant("acme"), &[resumed()]);
            reader.wait_for(position, WAIT_MAX).await.unwrap();
            reader.read(|state, at| assert_eq!((*state, at), (2_400 + position.0 - 1_200, position)));
        }
    });
    result.unwrap();
    let head = Position(1_200);
    assert_eq!(seen.first(), Some(&Progress { position: Position(0), head }));
    assert_eq!(seen.last(), Some(&Progress { position: head, head }));
    assert!(seen.is_sorted_by_key(|progress| progress.position) && seen.len() == 4, "{seen:?}");
}

#[test]
fn a_stopped_runner_goes_on_from_its_checkpoint_and_counts_every_event_once() {
    let mut book = Book::default();
    for round in 1..=5_u64 {
        write(&mut book, 7);
        let (state, position, seen) = catch_up::<Count<false>>(&book);
        assert_eq!((state, position), (round * 14, Position(round * 7)));
        assert_eq!(seen[0].position, Position((round - 1) * 7));
    }
}

#[test]
fn checkpoints_are_saved_along_the_way() {
    let mut book = Book::default();
    write(&mut book, 1_500);
    let options = Options { checkpoint_commits: 600, checkpoint_every: Duration::from_secs(3_600) };
    let (runner, reader) = Runner::<Count<false>>::open(book.port(), book.log.clone_store(), options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (_stop, stopped) = watch::channel(false);
    // Dropped in the middle, as when a process dies: nothing is saved at the end.
    runtime.block_on(async {
        tokio::select! {
            _ = runner.run(stopped, |_| {}) => panic!("nobody stopped it"),
            reached = reader.wait_for(Position(1_500), WAIT_MAX) => reached.unwrap(),
        }
    });
    let saved = book.log.load_checkpoint("count").unwrap().unwrap().at;
    assert_eq!(saved, 1_024);
    assert_eq!(catch_up::<Count<false>>(&book).0, 3_000);
}

#[test]
fn a_quiet_log_is_saved_by_the_clock() {
    let mut book = Book::default();
    write(&mut book, 3);
    let options = Options { checkpoint_commits: u64::MAX, checkpoint_every: Duration::from_millis(1) };
    let log = Arc::clone(&book.log);
    let (result, _, ()) =
        while_running::<Count<false>, _>(book.port(), book.log.clone_store(), options, |_| async move {
            let saved = async {
                while log.load_checkpoint("count").unwrap().is_none() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(WAIT_MAX, saved).await.unwrap();
        });
    result.unwrap();
}

#[test]
fn no_damage_to_a_checkpoint_gives_a_wrong_number() {
    let mut book = Book::default();
    write(&mut book, 3);
    catch_up::<Count<false>>(&book);
    let good = book.log.load_checkpoint("count").unwrap().unwrap();
    let mut bad = Vec::new();
    for index in 0..good.bytes.len() {
        let mut bytes = good.bytes.clone();
        bytes[index] ^= 1;
        bad.push(Blob { at: good.at, bytes });
    }
    for len in 0..good.bytes.len() {
        bad.push(Blob { at: good.at, bytes: good.bytes[..len].to_vec() });
    }
    bad.push(Blob { at: good.at, bytes: [good.bytes.as_slice(), &[0]].concat() });
    bad.extend([0, 2, 4].map(|at| Blob { at, bytes: good.bytes.clone() }));
    for blob in bad {
        book.log.save_checkpoint("count", &blob).unwrap();
        let (state, position, seen) = catch_up::<Count<false>>(&book);
        assert_eq!((state, position), (6, Position(3)), "{blob:?}");
        assert_eq!(seen[0].position, Position(0), "{blob:?} was not discarded");
    }
}

#[test]
fn a_later_version_of_the_projection_rebuilds() {
    let mut book = Book::default();
    write(&mut book, 3);
    catch_up::<Count<false>>(&book);
    let (state, _, seen) = catch_up::<CountTwo>(&book);
    assert_eq!((state, seen[0].position), (12, Position(0)));
}

#[test]
fn a_checkpoint_of_another_log_is_not_taken_and_a_new_one_replaces_it() {
    let (mut one, mut other) = (Book::default(), Book::default());
    write(&mut one, 3);
    for _ in 0..3 {
        other.write(&tenant("acme"), &[resumed()]);
    }
    catch_up::<Count<false>>(&one);
    let foreign = one.log.load_checkpoint("count").unwrap().unwrap();
    other.log.save_checkpoint("count", &foreign).unwrap();
    for begun in [0, 3] {
        let (state, position, seen) = catch_up::<Count<false>>(&other);
        assert_eq!((state, position, seen[0].position), (3, Position(3), Position(begun)));
    }
}

#[test]
fn the_bytes_of_a_checkpoint_are_these_and_those_of_the_form_before_are_rebuilt() {
    let mut book = Book::default();
    write(&mut book, 3);
    catch_up::<Count<false>>(&book);
    let saved = book.log.load_checkpoint("count").unwrap().unwrap();
    let last = book.log.read_log(Position(3), Direction::Forward, &Filter::default(), 1).unwrap();
    // Six events, none parked or given up, nothing to be tried again.
    let body = [6, 0, 0, 0, 0, 0, 0, 0, 0];
    let header =
        |form: u32, rest: &[u8]| [b"FHCP", &form.to_le_bytes()[..], &1_u32.to_le_bytes(), rest, &body].concat();
    let sum = crc32c::crc32c(&body).to_le_bytes();
    let both = [sum, crc32c::crc32c(&last.commits[0].bytes).to_le_bytes()].concat();
    assert_eq!(saved, Blob { at: 3, bytes: header(4, &both) });
    book.log.save_checkpoint("count", &Blob { at: 3, bytes: header(3, &both) }).unwrap();
    let (state, _, seen) = catch_up::<Count<false>>(&book);
    assert_eq!((state, seen[0].position), (6, Position(0)));
}

#[test]
fn a_run_may_move_between_threads() {
    const fn moves<T: Send>(_: &T) {}
    let book = Book::default();
    let (runner, _) = Runner::<Count<false>>::open(book.port(), book.log.clone_store(), Options::default());
    let (_stop, stopped) = watch::channel(false);
    moves(&runner.run(stopped, |_| {}));
}

#[test]
fn parked_events_are_counted_bounded_and_survive_a_restart() {
    let mut book = Book::default();
    let suspended = Event::TenantSuspended { reason: String::new(), at: NOON };
    for _ in 0..60 {
        book.write(&tenant("acme"), &vec![suspended.clone(); 20]);
    }
    write(&mut book, 1);
    let parked = |book: &Book| -> Parked {
        let head = book.log.head_position();
        let (result, _, parked) = while_running::<Count<false>, _>(
            book.port(),
            book.log.clone_store(),
            Options::default(),
            |reader| async move {
                reader.wait_for(head, WAIT_MAX).await.unwrap();
                assert_eq!(reader.read(|state, _| *state), 2);
                reader.parked()
            },
        );
        result.unwrap();
        parked
    };
    let first = parked(&book);
    assert_eq!((first.count, first.events.len()), (1_200, projections::parked::PARKED_PER_STREAM_MAX));
    let again = parked(&book);
    let places = |parked: &Parked| parked.events.iter().map(projections::ParkedEvent::place).collect::<Vec<_>>();
    assert_eq!((again.count, places(&again)), (first.count, places(&first)));
}

#[test]
fn a_panic_in_the_fold_ends_the_run_and_saves_nothing() {
    let mut book = Book::default();
    write(&mut book, 3);
    let (port, store) = (book.port(), book.log.clone_store());
    let (result, _, waited) = while_running::<Count<true>, _>(port, store, Options::default(), |reader| async move {
        reader.wait_for(Position(3), WAIT_MAX).await
    });
    assert!(matches!(result, Err(RunError::Panicked { position: Position(0), .. })), "{result:?}");
    assert!(matches!(waited, Err(WaitError::Stopped { wanted: Position(3), .. })), "{waited:?}");
    assert_eq!(book.log.load_checkpoint("count").unwrap(), None);
}

#[test]
fn a_position_that_does_not_come_is_waited_for_in_vain_and_a_closed_log_ends_the_run() {
    let mut book = Book::default();
    write(&mut book, 3);
    let log = Arc::clone(&book.log);
    let (result, _, waited) = while_running::<Count<false>, _>(
        book.port(),
        book.log.clone_store(),
        Options::default(),
        |reader| async move {
            reader.wait_for(Position(3), WAIT_MAX).await.unwrap();
            let waited = reader.wait_for(Position(4), Duration::from_millis(1)).await;
            log.close();
            (waited, reader.wait_for(Position(4), WAIT_MAX).await)
        },
    );
    result.unwrap();
    let (wanted, reached) = (Position(4), Position(3));
    assert_eq!(waited, (Err(WaitError::TimedOut { wanted, reached }), Err(WaitError::Stopped { wanted, reached })));
}

/// A log that cannot be read at some positions, or grows with each read.
#[derive(Debug)]
pub(crate) struct Odd {
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) damaged: Mutex<RangeInclusive<u64>>,
    pub(crate) grows: Option<Mutex<Book>>,
}

fn damaged(book: &Book, damaged: RangeInclusive<u64>) -> Arc<Odd> {
    Arc::new(Odd { log: Arc::clone(&book.log), damaged: Mutex::new(damaged), grows: None })
}

impl EventLog for Odd {
    fn append(&self, expected: Version, commit: Commit) -> Receipt {
        self.log.append(expected, commit)
    }

    fn read_stream(&self, s: &StreamId, f: Version, d: Direction, limit: usize) -> Result<Vec<Recorded>, ReadError> {
        self.log.read_stream(s, f, d, limit)
    }

    fn read_log(&self, from: Position, d: Direction, filter: &Filter, limit: usize) -> Result<Page, ReadError> {
        if self.damaged.lock().unwrap().contains(&from.0) {
            return Err(ReadError::Corrupt { file: "segment".to_owned(), offset: 7, reason: "test".to_owned() });
        }
        let page = self.log.read_log(from, d, filter, limit);
        if let Some(book) = &self.grows {
            book.lock().unwrap().write(&tenant("grows"), &[resumed()]);
        }
        page
    }

    fn read_episode(&self, episode: EpisodeId, limit: usize) -> Result<Vec<Recorded>, ReadError> {
        self.log.read_episode(episode, limit)
    }

    fn find_commit(&self, stream: &StreamId, id: &CommitId) -> Result<Option<Recorded>, ReadError> {
        self.log.find_commit(stream, id)
    }

    fn head(&self, stream: &StreamId) -> Result<Version, ReadError> {
        self.log.head(stream)
    }

    fn watch_head(&self) -> watch::Receiver<Position> {
        self.log.watch_head()
    }

    fn watch_health(&self) -> watch::Receiver<Health> {
        self.log.watch_health()
    }
}

#[test]
fn a_damaged_log_ends_the_run_with_its_place_and_what_was_read_stays_readable() {
    let mut book = Book::default();
    write(&mut book, 1_000);
    let damaged = damaged(&book, 513..=u64::MAX);
    let (result, _, state) =
        while_running::<Count<false>, _>(damaged, book.log.clone_store(), Options::default(), |reader| async move {
            assert!(reader.wait_for(Position(1_000), WAIT_MAX).await.is_err());
            reader.read(|state, position| (*state, position))
        });
    assert!(matches!(result, Err(RunError::Read { position: Position(513), .. })), "{result:?}");
    assert_eq!(state, (1_024, Position(512)));
}

#[test]
fn a_damaged_old_part_of_the_log_leaves_the_live_fold_as_it_is_and_is_tried_again_when_it_is_mended() {
    let mut book = Book::default();
    book.write(&tenant("acme"), &[resumed(), Event::TenantSuspended { reason: String::new(), at: NOON }]);
    write(&mut book, 1_000);
    assert_eq!(catch_up::<Count<false>>(&book).0, 2_001);
    let damaged = damaged(&book, 1..=600);
    let (port, store) = (Arc::clone(&damaged), book.log.clone_store());
    let (result, _, ()) = while_running::<Count<false>, _>(port, store, Options::default(), |reader| async move {
        let reached = Position(1_001);
        assert_eq!(reader.wait_rebuilt(WAIT_MAX).await, Err(WaitError::NotRebuilt { reached }));
        // It goes on, from where it was.
        let position = book.write(&tenant("acme"), &[resumed()]);
        reader.wait_for(position, WAIT_MAX).await.unwrap();
        assert_eq!((reader.read(|state, _| *state), reader.parked().count), (2_002, 1));
        *damaged.damaged.lock().unwrap() = 0..=0;
        let redriven = region::Event::ReadModelRedriven { read_model: "count".to_owned(), at: NOON };
        let position = book.write_stream(&StreamId::new("region/local").unwrap(), vec![redriven.to_payload()]);
        reader.wait_for(position, WAIT_MAX).await.unwrap();
        reader.wait_rebuilt(WAIT_MAX).await.unwrap();
        let parked = reader.parked();
        assert_eq!((reader.read(|state, _| *state), parked.count, parked.events[0].attempts), (2_002, 1, 2));
    });
    result.unwrap();
}
