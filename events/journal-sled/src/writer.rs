//! The one writer: forms groups, makes them durable, publishes and answers.
//!
//! Invariants:
//! - a group is written, then synced, then published, then answered; in a copy it is published and answered before it is
//!   synced; group n+1 is not written before group n is synced;
//! - after any failure nothing is accepted until what the failed group may have left is zeroed durably, so the log
//!   never holds what was answered as not written;
//! - `place` and the index change only after the barrier: they always show the durable log. In a copy they may be one
//!   group ahead, which is written again until it is durable: it cannot be taken back.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{SendError, SyncSender},
    },
};

use events_journal::{AppendError, Health, Refusal};
use events_model::Position;
use tokio::sync::watch;
use tracing::{error, info};

use crate::{
    error::refusal,
    filler::Room,
    format::{GROUP_HEADER_BYTES, GroupHeader},
    group::{Answers, Group},
    limit::{ANSWER_INLINE_LEN_MAX, JUDGE_PASSES_MAX, RETRY_FIRST, RETRY_MAX},
    queue::{Pending, refuse_all},
    scan::Place,
    segment::{Window, install},
    store::Core,
};

/// A write that failed.
#[derive(Debug)]
struct Failure {
    refusal: Refusal,
    /// Set if the group may be there all the same.
    unknown: Option<Arc<io::Error>>,
}

impl Failure {
    fn not_written(error: &io::Error) -> Self {
        Self { refusal: refusal(error), unknown: None }
    }

    fn unknown(error: io::Error) -> Self {
        Self { refusal: refusal(&error), unknown: Some(Arc::new(error)) }
    }

    fn answer(&self) -> AppendError {
        match &self.unknown {
            Some(error) => AppendError::Unknown(Arc::clone(error)),
            None => AppendError::Refused(self.refusal.clone()),
        }
    }
}

/// How many names a file has.
///
/// Asks for nothing else: Linux gives a file whose times were asked for a new fine-grained time at the next write, and
/// with it a change of metadata that makes the next barrier half as dear again (70 µs of 210 where it was measured).
#[cfg(target_os = "linux")]
fn links(file: &fs::File) -> io::Result<u64> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    Ok(u64::from(statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::NLINK)?.stx_nlink))
}

#[cfg(not(target_os = "linux"))]
fn links(file: &fs::File) -> io::Result<u64> {
    file.metadata().map(|metadata| metadata.nlink())
}

/// Answers few callers here and leaves many to the thread that does nothing else.
fn answer(answers: Answers, thread: &SyncSender<Answers>) {
    if answers.len() <= ANSWER_INLINE_LEN_MAX {
        answers.send();
    } else if let Err(SendError(answers)) = thread.send(answers) {
        answers.send();
    }
}

/// Leaves nobody waiting for a writer that has ended, whatever ended it.
///
/// Those whose group it was working on are answered by the loss of their reply: they cannot know.
#[derive(Debug)]
struct End {
    core: Arc<Core>,
    health: watch::Sender<Health>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.core.queue.close();
        self.core.queue.refuse(&Refusal::Closed);
        self.health.send_replace(Health::Refusing(Refusal::Closed));
    }
}

/// The writer's thread and its state.
#[derive(Debug)]
pub(crate) struct Writer {
    core: Arc<Core>,
    head: watch::Sender<Position>,
    health: watch::Sender<Health>,
    room: Arc<Room>,
    path: PathBuf,
    place: Place,
    /// The segment is complete: the next group needs a new one, even if it would fit.
    must_roll: bool,
    /// End of what a failed group may have written.
    dirty_end: u64,
    group: Group,
    /// Of a copy: where the group that is shown and not synced yet begins, and its header.
    unsynced: Option<(u64, [u8; GROUP_HEADER_BYTES])>,
}

impl Writer {
    pub(crate) fn new(
        core: Arc<Core>,
        head: watch::Sender<Position>,
        health: watch::Sender<Health>,
        (room, path): (Arc<Room>, PathBuf),
        place: Place,
    ) -> Self {
        let group = Group::new(place.position);
        Self { core, head, health, room, path, place, must_roll: false, dirty_end: 0, group, unsynced: None }
    }

    /// Works until the queue is closed and empty, then leaves the trailer. Returns whether all that is shown is durable.
    pub(crate) fn run(self, answers: SyncSender<Answers>) -> bool {
        // Dropped after the writer, also when that panics.
        let _end = End { core: Arc::clone(&self.core), health: self.health.clone() };
        self.work(&answers)
    }

    fn work(mut self, answers: &SyncSender<Answers>) -> bool {
        let core = Arc::clone(&self.core);
        let mut waited = VecDeque::new();
        let mut last_len = 0;
        while core.queue.take((self.place.position, last_len), &mut self.group, &mut waited) {
            loop {
                self.judge(&mut waited);
                last_len = self.group.len();
                let mut written = self.write_group();
                if written.is_ok() {
                    answer(self.group.take_answers(), answers);
                    written = self.harden();
                }
                if let Err(failure) = written
                    && !self.fail(failure, &mut waited)
                {
                    return self.unsynced.is_none();
                }
                if waited.is_empty() {
                    break;
                }
                self.group.begin(self.place.position);
            }
        }
        if let Err(error) = self.write_trailer() {
            // The next start reads the tail as after a crash.
            info!(error = %error, "no clean end could be written");
        }
        true
    }

    /// Brings what waited into the group, as far as it has room, and then lets callers form the next one.
    fn judge(&mut self, waited: &mut VecDeque<Pending>) {
        let mut passes = 0;
        while !waited.is_empty() {
            self.group.judge_all(&self.core.library, waited);
            passes += 1;
            if !waited.is_empty() || passes == JUDGE_PASSES_MAX || !self.core.queue.take_more(&mut self.group, waited) {
                return;
            }
        }
    }

    fn write_group(&mut self) -> Result<(), Failure> {
        let commits = self.group.commits();
        if commits == 0 {
            return Ok(());
        }
        let payload = self.group.payload();
        let header = GroupHeader::over(payload, self.place.position, commits, self.place.chain);
        self.make_room(header.bytes()).map_err(|error| Failure::not_written(&error))?;
        let (head, crc) = header.encode(&self.core.library.index.key);
        self.write_at(head)?;
        if self.core.is_copy {
            self.unsynced = Some((self.place.offset, head));
        } else {
            self.sync()?;
        }
        self.publish(self.place.after(&header, crc));
        Ok(())
    }

    fn sync(&self) -> Result<(), Failure> {
        self.room.file.sync_data().map_err(Failure::unknown)?;
        // The barrier held: only a group in a file without a name cannot come back.
        if self.is_linked().map_err(Failure::unknown)? {
            return Ok(());
        }
        Err(Failure::not_written(&io::ErrorKind::NotFound.into()))
    }

    /// Makes durable what a copy shows already.
    fn harden(&mut self) -> Result<(), Failure> {
        if self.unsynced.is_some() {
            self.sync()?;
            self.hardened();
        }
        Ok(())
    }

    fn hardened(&mut self) {
        self.unsynced = None;
        let index = &self.core.library.index;
        if index.complete(&mut index.live.write()) {
            self.core.indexer.wake();
        }
    }

    fn write_at(&mut self, head: [u8; GROUP_HEADER_BYTES]) -> Result<(), Failure> {
        let bytes = self.group.bytes(head);
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.room.file.write_at(rest, self.place.offset + written as u64) {
                Ok(0) if written == 0 => return Err(Failure::not_written(&io::ErrorKind::WriteZero.into())),
                Ok(0) => return Err(Failure::unknown(io::ErrorKind::WriteZero.into())),
                Ok(more) => {
                    written += more;
                    self.dirty_end = self.dirty_end.max(self.place.offset + written as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if written == 0 => return Err(Failure::not_written(&error)),
                Err(error) => return Err(Failure::unknown(error)),
            }
        }
        Ok(())
    }

    /// A segment without a name is gone with all it holds, whatever the barrier said.
    fn is_linked(&self) -> io::Result<bool> {
        Ok(links(&self.room.file)? > 0)
    }

    fn publish(&mut self, end: Place) {
        let index = &self.core.library.index;
        let mut live = index.live.write();
        self.group.publish(&mut live, self.place);
        live.end = end;
        let complete = self.unsynced.is_none() && index.complete(&mut live);
        drop(live);
        self.place = end;
        self.dirty_end = 0;
        self.head.send_replace(Position(end.position - 1));
        self.core.filler.used(end.offset);
        if complete {
            self.core.indexer.wake();
        }
    }

    /// Makes sure that the next group has room, in this segment or a new one.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let fits = self.place.offset + bytes <= self.core.options.segment_bytes || self.place.last_group == 0;
        if self.must_roll || !fits {
            // Once positions may have a new segment, this one must not get any more of them.
            self.must_roll = true;
            self.roll()?;
            self.must_roll = false;
        }
        let end = self.place.offset + bytes;
        if self.room.filled() >= end { Ok(()) } else { self.core.filler.room(end) }
    }

    fn roll(&mut self) -> io::Result<()> {
        let spare = self.core.filler.spare()?;
        let library = &self.core.library;
        let place = self.place.next_segment();
        let names = (place.position, place.chain);
        let path = install(&spare.room.file, &spare.path, &library.files.log_dir, &library.index.key, names);
        self.path = path.inspect_err(|_| drop(fs::remove_file(&spare.path)))?;
        library.index.live.write().segments.push(place.position);
        self.core.filler.activate(Arc::clone(&spare.room), place.offset);
        self.room = spare.room;
        self.place = place;
        Ok(())
    }

    /// Answers everybody, then tries to go on until it works; `false` = closed meanwhile.
    fn fail(&mut self, failure: Failure, waited: &mut VecDeque<Pending>) -> bool {
        error!(reason = %failure.refusal, "the log accepts no commits");
        self.core.queue.refuse(&failure.refusal);
        self.health.send_replace(Health::Refusing(failure.refusal.clone()));
        self.group.take_answers().fail(&failure.answer(), &failure.refusal);
        refuse_all(waited.drain(..), &failure.refusal);
        let bytes = GROUP_HEADER_BYTES as u64 + self.group.payload().len() as u64;
        let mut pause = RETRY_FIRST;
        let mut shown = failure.refusal;
        while self.core.queue.pause(pause) {
            pause = (pause * 2).min(RETRY_MAX);
            match self.recover(bytes) {
                Ok(()) => {
                    info!(position = self.place.position - 1, "the log accepts commits again");
                    // In this order: who waits for the word may append at once.
                    self.core.queue.accept(self.place.position);
                    self.health.send_replace(Health::Accepting);
                    return true;
                }
                Err(error) => {
                    let reason = refusal(&error);
                    if reason != shown {
                        self.core.queue.refuse(&reason);
                        self.health.send_replace(Health::Refusing(reason.clone()));
                        shown = reason;
                    }
                }
            }
        }
        false
    }

    /// Brings the file back to the durable log and proves that the next group can be written.
    fn recover(&mut self, bytes: u64) -> io::Result<()> {
        self.reopen()?;
        if let Some((offset, head)) = self.unsynced {
            self.room.file.write_all_at(self.group.bytes(head), offset)?;
        }
        let end = self.dirty_end.max(self.place.offset + GROUP_HEADER_BYTES as u64).min(self.room.filled());
        if end > self.place.offset {
            let zeros = vec![0; usize::try_from(end - self.place.offset).unwrap_or(0)];
            self.room.file.write_all_at(&zeros, self.place.offset)?;
        }
        self.room.file.sync_data()?;
        if !self.is_linked()? {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.dirty_end = 0;
        if self.unsynced.is_some() {
            self.hardened();
        }
        self.make_room(bytes)
    }

    /// Finds the segment again if its directory was replaced by one that holds the same log.
    fn reopen(&mut self) -> io::Result<()> {
        let (there, ours) = (fs::metadata(&self.path)?, self.room.file.metadata()?);
        if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) {
            return Ok(());
        }
        let lock = self.core.relock()?;
        let file = fs::OpenOptions::new().read(true).write(true).open(&self.path)?;
        let first = self.core.library.index.live.read().segments.last().copied().unwrap_or(0);
        let key = &self.core.library.index.key;
        let header = crate::segment::read_header(&file, &self.path, first).map_err(io::Error::other)?;
        let mut window = Window::new(&file, &self.path);
        let same = header.log_id == key.id
            && match self.place.last_group {
                0 => header.chain == self.place.chain,
                offset => crate::scan::group_at(&mut window, key, offset)
                    .map_err(io::Error::other)?
                    .is_ok_and(|(_, crc, _)| crc == self.place.chain),
            };
        if !same {
            return Err(io::ErrorKind::NotFound.into());
        }
        let filled = there.len();
        // Whatever follows the last group in that copy is not ours.
        self.dirty_end = filled;
        self.room = Arc::new(Room::new(file, &self.path, filled)?);
        self.core.filler.activate(Arc::clone(&self.room), self.place.offset);
        self.core.library.files.forget();
        self.core.keep_lock(lock);
        Ok(())
    }

    fn write_trailer(&mut self) -> io::Result<()> {
        let end = self.place.offset + GROUP_HEADER_BYTES as u64;
        self.core.filler.room(end)?;
        let (trailer, _) =
            GroupHeader::over(&[], self.place.position, 0, self.place.chain).encode(&self.core.library.index.key);
        self.room.file.write_all_at(&trailer, self.place.offset)?;
        self.room.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use events_journal::{EventLog, contract, contract::fixture::tenant};
    use events_model::Version;

    use super::*;
    use crate::{LocalStore, Options};

    #[test]
    fn a_writer_that_panics_leaves_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path(), Options::default()).unwrap();
        let (health, seen) = watch::channel(Health::Accepting);
        let end = End { core: Arc::clone(store.handle.core().unwrap()), health };
        let panicked = thread::spawn(move || {
            let _end = end;
            panic!("as a writer might");
        });
        assert!(panicked.join().is_err());
        assert_eq!(*seen.borrow(), Health::Refusing(Refusal::Closed));
        let commit = contract::commit(&tenant("acme"), Version(1), "c", 1, 10);
        let error = contract::settle(store.append(Version(0), commit)).unwrap_err();
        assert!(matches!(error, AppendError::Refused(Refusal::Closed)), "{error}");
    }
}
