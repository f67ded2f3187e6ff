//! Keeps zeroed room ahead of the writer.
//!
//! Overwriting zeros that are on disk already makes a group cost one barrier and no change of metadata. The filler
//! writes only at or above a file's `filled` mark and the writer only below it, so the two never meet.
//! It grows the active segment ahead of what is used and prepares the next one under a temporary name; a segment that
//! is not wholly filled when it is needed is used as it is and filled further.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Condvar, Mutex};

use crate::{
    limit::{FILL_STEP_BYTES, FIRST_FILL_BYTES, RETRY_FIRST, RETRY_MAX},
    segment::SPARE_SUFFIX,
};

/// A segment that is written to.
///
/// Linux tells of a failed write-back once for each open of a file and takes the pages for clean from then on. So the
/// filler has an open of its own: through the writer's it could take the news of a group that did not reach the disk,
/// and the writer's barrier would succeed.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) file: File,
    filler: File,
    filled: AtomicU64,
}

impl Room {
    /// Takes the writer's open of the file at `path`.
    pub(crate) fn new(file: File, path: &Path, filled: u64) -> io::Result<Self> {
        let filler = OpenOptions::new().write(true).open(path)?;
        Ok(Self { file, filler, filled: AtomicU64::new(filled) })
    }

    pub(crate) fn filled(&self) -> u64 {
        self.filled.load(Ordering::Acquire)
    }

    /// Writes zeros up to `to` and makes them durable.
    fn fill(&self, to: u64) -> io::Result<()> {
        static ZEROS: [u8; FILL_STEP_BYTES as usize] = [0; FILL_STEP_BYTES as usize];
        while self.filled() < to {
            let from = self.filled();
            let step = (to - from).min(FILL_STEP_BYTES);
            let zeros = ZEROS.get(..usize::try_from(step).unwrap_or(0)).unwrap_or_default();
            self.filler.write_all_at(zeros, from)?;
            self.filler.sync_data()?;
            self.filled.store(from + step, Ordering::Release);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct State {
    active: Arc<Room>,
    /// Bytes of the active segment that hold groups.
    used: u64,
    /// Bytes the writer waits for.
    demand: u64,
    /// The writer waits for a next segment.
    spare_demanded: bool,
    spares_made: u64,
    spare: Option<Spare>,
    failed: Option<io::Error>,
    stop: bool,
}

/// The next segment: its file and the temporary name it has.
#[derive(Debug, Clone)]
pub(crate) struct Spare {
    pub(crate) room: Arc<Room>,
    pub(crate) path: PathBuf,
}

/// What the writer and the filler share.
#[derive(Debug)]
pub(crate) struct Filler {
    log_dir: PathBuf,
    segment_bytes: u64,
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
}

enum Job {
    Grow(Arc<Room>, u64),
    /// Create the next segment; the number makes its name unique.
    Spare(u64),
    Stop,
}

/// Creates a file with a little room.
fn create(path: &Path, bytes: u64) -> io::Result<Room> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    let room = Room::new(file, path, 0)?;
    room.fill(bytes)?;
    Ok(room)
}

/// Creates the file of a log's first segment, without a name of a segment yet.
pub(crate) fn create_first(log_dir: &Path, segment_bytes: u64) -> io::Result<Spare> {
    let path = log_dir.join(format!("0{SPARE_SUFFIX}"));
    let room = Arc::new(create(&path, segment_bytes.min(FIRST_FILL_BYTES))?);
    Ok(Spare { room, path })
}

fn ended() -> io::Error {
    io::Error::other("the thread that prepares room has ended")
}

/// Lets nobody wait for a filler that has ended, whatever ended it.
struct End<'a>(&'a Filler);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Filler {
    pub(crate) fn new(log_dir: PathBuf, segment_bytes: u64, active: Arc<Room>, used: u64) -> Self {
        let state = State {
            active,
            used,
            demand: 0,
            spare_demanded: false,
            spares_made: 0,
            spare: None,
            failed: None,
            stop: false,
        };
        Self { log_dir, segment_bytes, state: Mutex::new(state), wake: Condvar::new(), done: Condvar::new() }
    }

    /// How far the active segment should be filled for what is used.
    fn target(&self, used: u64) -> u64 {
        used.saturating_mul(4).saturating_add(FILL_STEP_BYTES).min(self.segment_bytes)
    }

    const fn wants_spare(&self, used: u64) -> bool {
        used >= self.segment_bytes / 4
    }

    /// Tells how much of the active segment is used.
    pub(crate) fn used(&self, used: u64) {
        let mut state = self.state.lock();
        state.used = used;
        let grow = state.active.filled() < self.target(used);
        if grow || (state.spare.is_none() && self.wants_spare(used)) {
            self.wake.notify_one();
        }
    }

    /// Waits until the active segment has room up to `end`; a failure or a filler that ended leaves it as it was.
    pub(crate) fn room(&self, end: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.failed = None;
        while state.active.filled() < end {
            if let Some(error) = state.failed.take() {
                state.demand = 0;
                return Err(error);
            }
            if state.stop {
                return Err(ended());
            }
            state.demand = end;
            self.wake.notify_one();
            self.done.wait(&mut state);
        }
        state.demand = 0;
        Ok(())
    }

    /// Waits for the next segment's file and takes it; it has the spare's name still and no header.
    pub(crate) fn spare(&self) -> io::Result<Spare> {
        let mut state = self.state.lock();
        state.failed = None;
        loop {
            if let Some(spare) = state.spare.take() {
                state.spare_demanded = false;
                return Ok(spare);
            }
            if let Some(error) = state.failed.take() {
                state.spare_demanded = false;
                return Err(error);
            }
            if state.stop {
                return Err(ended());
            }
            state.spare_demanded = true;
            self.wake.notify_one();
            self.done.wait(&mut state);
        }
    }

    /// From now on this one is written to.
    pub(crate) fn activate(&self, room: Arc<Room>, used: u64) {
        let mut state = self.state.lock();
        state.active = room;
        state.used = used;
        self.wake.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.wake.notify_one();
        self.done.notify_all();
    }

    fn next(&self, state: &State) -> Option<Job> {
        let filled = state.active.filled();
        if state.stop {
            return Some(Job::Stop);
        }
        if filled < state.demand || filled < self.target(state.used) {
            // Whole steps: a small one costs as much as a large one.
            let to = (filled + FILL_STEP_BYTES).min(self.segment_bytes.max(state.demand));
            return Some(Job::Grow(Arc::clone(&state.active), to));
        }
        match &state.spare {
            None if state.spare_demanded || self.wants_spare(state.used) => Some(Job::Spare(state.spares_made + 1)),
            Some(spare) if spare.room.filled() < self.segment_bytes => {
                let to = self.segment_bytes.min(spare.room.filled() + FILL_STEP_BYTES);
                Some(Job::Grow(Arc::clone(&spare.room), to))
            }
            None | Some(_) => None,
        }
    }

    fn run_job(&self, job: Job) -> io::Result<Option<Spare>> {
        match job {
            Job::Grow(room, to) => room.fill(to).map(|()| None),
            Job::Spare(number) => {
                let path = self.log_dir.join(format!("{number}{SPARE_SUFFIX}"));
                match create(&path, self.segment_bytes.min(FIRST_FILL_BYTES)) {
                    Ok(room) => Ok(Some(Spare { room: Arc::new(room), path })),
                    Err(error) => {
                        // What is left of it is in nobody's way; the next start removes it if this does not.
                        drop(fs::remove_file(&path));
                        Err(error)
                    }
                }
            }
            Job::Stop => Ok(None),
        }
    }

    /// The filler's thread.
    pub(crate) fn run(&self) {
        // Declared before the lock is taken: a panic lets go of that first.
        let _end = End(self);
        let mut pause = RETRY_FIRST;
        let mut state = self.state.lock();
        loop {
            let Some(job) = self.next(&state) else {
                self.wake.wait(&mut state);
                continue;
            };
            if matches!(job, Job::Stop) {
                return;
            }
            let outcome = parking_lot::MutexGuard::unlocked(&mut state, || self.run_job(job));
            match outcome {
                Ok(spare) => {
                    pause = RETRY_FIRST;
                    if spare.is_some() {
                        state.spares_made += 1;
                        state.spare = spare;
                    }
                    self.done.notify_all();
                }
                Err(error) => {
                    state.failed = Some(error);
                    self.done.notify_all();
                    // The writer's next demand ends the pause; without one the pause grows.
                    self.wake.wait_for(&mut state, pause);
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_filler_that_panics_leaves_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let first = create_first(dir.path(), FIRST_FILL_BYTES).unwrap();
        let filler = Filler::new(dir.path().to_owned(), FIRST_FILL_BYTES, first.room, 0);
        thread::scope(|scope| {
            // Both wait before the filler ends or come after it: neither may hang.
            let room = scope.spawn(|| filler.room(FIRST_FILL_BYTES + 1));
            let panicked = scope.spawn(|| {
                let _end = End(&filler);
                panic!("as a filler might");
            });
            assert!(panicked.join().is_err());
            assert!(room.join().unwrap().is_err());
        });
        assert!(filler.spare().is_err());
    }
}
