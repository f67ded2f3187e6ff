//! The store as its user holds it: opening, what it says about itself, closing.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc::sync_channel},
    thread::JoinHandle,
    time::Duration,
};

use events_journal::{Health, ReadError, Refusal};
use events_model::{Position, TimestampUs};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;

use crate::{
    clock,
    error::{OpenError, corrupt, open_io},
    filler::{Filler, Room, create_first},
    format::LogKey,
    group::Answers,
    index::Index,
    indexer::Indexer,
    limit::{ANSWER_GROUPS_MAX, Options},
    queue::Queue,
    read::Library,
    recovery,
    run::Part,
    run_store::RunStore,
    scan::Place,
    segment::{self, Files, INDEX_DIR, LOCK_FILE, LOG_DIR},
    writer::Writer,
};

/// Longest wait for the index to be stored when the store is closed; what is not stored is replayed at the next start.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Bytes at the end of a segment that hold no commit and were not zero: the rest of a write that a crash cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub file: String,
    /// Where they began.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// What opening found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Commits in the log.
    pub commits: u64,
    /// Segment files.
    pub segments: usize,
    /// What was cut; read-only: what is not served.
    pub cut: Option<Cut>,
    /// Commits that were read from the segments because the stored index lacked them.
    pub replayed: u64,
    /// How long it took, microseconds.
    pub duration_us: u64,
}

/// The size of the log and of its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Commits.
    pub commits: u64,
    /// Events.
    pub events: u64,
    /// Streams.
    pub streams: u64,
    /// Segment files.
    pub segments: usize,
    /// Bytes of groups, without zeros that wait to be used.
    pub log_bytes: u64,
    /// Stored index runs.
    pub index_runs: usize,
    /// Bytes of sled's files.
    pub index_bytes: u64,
    /// When the first commit was recorded.
    pub first_recorded_at: Option<TimestampUs>,
    /// When the last commit was recorded.
    pub last_recorded_at: Option<TimestampUs>,
}

/// What the threads and the handles share.
#[derive(Debug)]
pub(crate) struct Core {
    dir: PathBuf,
    pub(crate) options: Options,
    /// See `open_copy`.
    pub(crate) is_copy: bool,
    pub(crate) library: Library,
    pub(crate) queue: Queue,
    pub(crate) filler: Filler,
    pub(crate) indexer: Indexer,
    lock: Mutex<Option<File>>,
}

#[derive(Debug)]
struct Threads {
    answerer: JoinHandle<()>,
    /// Ends with whether all that the index shows is durable.
    writer: JoinHandle<bool>,
    filler: JoinHandle<()>,
    indexer: JoinHandle<()>,
}

#[derive(Debug)]
enum Mode {
    Writing(Arc<Core>),
    Reading(Box<Library>),
}

#[derive(Debug)]
pub(crate) struct Handle {
    mode: Mode,
    threads: Mutex<Option<Threads>>,
    pub(crate) head: watch::Receiver<Position>,
    pub(crate) health: watch::Receiver<Health>,
    /// One save at a time.
    pub(crate) saving: Mutex<()>,
    opening: Opening,
}

/// The local store of one data directory. A cheap handle: clones share the store, the last one to go closes it.
#[derive(Debug, Clone)]
pub struct LocalStore {
    pub(crate) handle: Arc<Handle>,
}

impl Core {
    /// Locks the directory that is at our path now; `None` = it is the one that is locked already.
    pub(crate) fn relock(&self) -> io::Result<Option<File>> {
        let ours = self.lock.lock().as_ref().map(File::metadata).transpose()?;
        let there = fs::metadata(self.dir.join(LOCK_FILE));
        if let (Some(ours), Ok(there)) = (ours, there)
            && (ours.dev(), ours.ino()) == (there.dev(), there.ino())
        {
            return Ok(None);
        }
        lock(&self.dir).map(Some).map_err(io::Error::other)
    }

    pub(crate) fn keep_lock(&self, lock: Option<File>) {
        if lock.is_some() {
            *self.lock.lock() = lock;
        }
    }
}

/// Takes the directory for this process.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(open_io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(OpenError::Locked { dir: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(open_io("lock", &path)(error)),
    }
    let write_pid = |file: &mut File| {
        file.rewind()?;
        // Ten characters whatever the number is, so that nothing of an older one is left behind it.
        writeln!(file, "{:<10}", std::process::id())
    };
    // The lock holds without the number, also on a full disk.
    drop(write_pid(&mut file));
    Ok(file)
}

/// Makes the first segment of a new log; returns the log's id.
fn create_log(files: &Files, options: &Options) -> Result<(), OpenError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| open_io("draw a log id for", &files.log_dir)(io::Error::other(error)))?;
    let spare = create_first(&files.log_dir, options.segment_bytes).map_err(open_io("create", &files.log_dir))?;
    let key = LogKey::new(id);
    segment::install(&spare.room.file, &spare.path, &files.log_dir, &key, (Place::START.position, 0))
        .map_err(open_io("create a segment in", &files.log_dir))?;
    Ok(())
}

/// A log that is gone while its index is there was not new.
fn check_not_lost(store: &RunStore, log_dir: &Path) -> Result<(), OpenError> {
    if store.open().is_ok()
        && let Ok(Some(manifest)) = store.read_manifest()
        && let Some(run) = manifest.runs.last()
    {
        let last = run.end.position - 1;
        let reason =
            format!("all segments are missing, but positions up to {last} were acknowledged, as the index proves");
        return Err(corrupt(log_dir, 0, reason).into());
    }
    Ok(())
}

impl LocalStore {
    /// Opens a data directory for this process alone, creating it if it is not there.
    ///
    /// # Errors
    /// - `Locked`: another handle or process has it.
    /// - `Corrupt`, `UnsupportedVersion`: nothing was changed.
    /// - `Io`: the disk failed.
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        Self::open_as(dir, options, false)
    }

    /// As `open`, for a copy of what another log holds durably and can be followed from again: a group is shown, and
    /// its callers are answered, as soon as it is written; it is synced before the next one is written. So after a loss
    /// of power the last group may be missing, and nothing else.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_copy(dir: &Path, options: Options) -> Result<Self, OpenError> {
        Self::open_as(dir, options, true)
    }

    fn open_as(dir: &Path, options: Options, is_copy: bool) -> Result<Self, OpenError> {
        let start = clock::now();
        let options = options.bounded();
        let log_dir = dir.join(LOG_DIR);
        fs::create_dir_all(&log_dir).map_err(open_io("create", &log_dir))?;
        let lock = lock(dir)?;
        segment::remove_spares(&log_dir)?;
        let files = Files::new(log_dir.clone());
        let store = Arc::new(RunStore::new(dir.join(INDEX_DIR)));
        if segment::list(&log_dir)?.is_empty() {
            check_not_lost(&store, &log_dir)?;
            create_log(&files, &options)?;
        }
        let firsts = segment::list(&log_dir)?;
        let key = recovery::identify(&files, &firsts)?;
        let index = Index::new(key, Arc::clone(&store), firsts.clone(), options.run_commits);
        recovery::load_index(&files, &store, &index)?;
        recovery::make_durable(dir, &files, &index)?;
        let replayed = recovery::replay(&files, &index, true)?;
        let place = replayed.place;
        let path = files.path(firsts.last().copied().unwrap_or(0));
        let room = open_room(&path)?;
        let core = Arc::new(Core {
            dir: dir.to_owned(),
            library: Library::new(files, index),
            queue: Queue::new(place.position),
            filler: Filler::new(log_dir, options.segment_bytes, Arc::clone(&room), place.offset),
            indexer: Indexer::default(),
            lock: Mutex::new(Some(lock)),
            options,
            is_copy,
        });
        let (head_sender, head) = watch::channel(Position(place.position - 1));
        let (health_sender, health) = watch::channel(Health::Accepting);
        let writer = Writer::new(Arc::clone(&core), head_sender, health_sender, (room, path), place);
        let threads = start_threads(&core, writer).map_err(open_io("start threads for", dir))?;
        core.indexer.wake();
        let opening = opening(&replayed, firsts.len(), start.elapsed());
        let handle = Handle {
            mode: Mode::Writing(core),
            threads: Mutex::new(Some(threads)),
            head,
            health,
            saving: Mutex::new(()),
            opening,
        };
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Opens a data directory for reading what is there now, also beside a process that writes to it.
    ///
    /// Takes no lock, writes nothing, follows nothing: later commits are not seen, `watch_head` ends at once, appends
    /// are refused, snapshots are not found. The index is built in memory, so it costs a scan of the log.
    ///
    /// # Errors
    /// As `open`; there is no `Locked`.
    pub fn open_read_only(dir: &Path) -> Result<Self, OpenError> {
        let start = clock::now();
        let log_dir = dir.join(LOG_DIR);
        let files = Files::new(log_dir.clone());
        let firsts = segment::list(&log_dir)?;
        let key = recovery::identify(&files, &firsts)?;
        let store = Arc::new(RunStore::new(dir.join(INDEX_DIR)));
        let index = Index::new(key, store, firsts.clone(), usize::MAX);
        let replayed = recovery::replay(&files, &index, false)?;
        let handle = Handle {
            mode: Mode::Reading(Box::new(Library::new(files, index))),
            threads: Mutex::new(None),
            head: watch::channel(Position(replayed.place.position - 1)).1,
            health: watch::channel(Health::Refusing(Refusal::ReadOnly)).1,
            saving: Mutex::new(()),
            opening: opening(&replayed, firsts.len(), start.elapsed()),
        };
        Ok(Self { handle: Arc::new(handle) })
    }

    /// What opening found and did.
    pub fn opening(&self) -> &Opening {
        &self.handle.opening
    }

    /// The size of the log and of its index.
    ///
    /// # Errors
    /// `Corrupt`, `Decode`, `Io`: the first or the last commit cannot be read.
    pub fn stat(&self) -> Result<Stat, ReadError> {
        let library = self.library();
        let (end, segments, streams, events, parts) = {
            let live = library.index.live.read();
            let events = live.heads.values().sum();
            (live.end, live.segments.len(), live.heads.len() as u64, events, Arc::clone(&live.parts))
        };
        let recorded_at = |position: u64| {
            let found = if position == 0 { None } else { library.scan(position, 0)?.next(position + 1)? };
            let time = |found: crate::read::Found| {
                crate::read::parse(found.position, &found.bytes).map(|view| view.recorded_at())
            };
            found.map(time).transpose()
        };
        let commits = end.position - 1;
        Ok(Stat {
            commits,
            events,
            streams,
            segments,
            log_bytes: end.log_bytes,
            index_runs: parts.iter().filter(|part| matches!(part, Part::Stored(_))).count(),
            index_bytes: library.index.store.size_on_disk(),
            first_recorded_at: recorded_at(commits.min(1))?,
            last_recorded_at: recorded_at(commits)?,
        })
    }

    /// Answers what waits, marks the end of the log, stores the index and lets go of the directory. Reads go on
    /// working. Called again, or when the last handle goes, it does nothing more.
    pub fn close(&self) {
        self.handle.close();
    }

    pub(crate) fn library(&self) -> &Library {
        self.handle.library()
    }
}

fn opening(replayed: &recovery::Replayed, segments: usize, duration: Duration) -> Opening {
    Opening {
        commits: replayed.place.position - 1,
        segments,
        cut: replayed.cut.clone(),
        replayed: replayed.commits,
        duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
    }
}

fn open_room(path: &Path) -> Result<Arc<Room>, OpenError> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(open_io("open", path))?;
    let filled = file.metadata().map_err(open_io("read", path))?.len();
    Ok(Arc::new(Room::new(file, path, filled).map_err(open_io("open", path))?))
}

fn start_threads(core: &Arc<Core>, writer: Writer) -> io::Result<Threads> {
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let (filler, indexer) = (Arc::clone(core), Arc::clone(core));
    // The answerer ends when the writer, which owns the sender, does.
    let (answers, answered) = sync_channel(ANSWER_GROUPS_MAX);
    Ok(Threads {
        filler: thread("log-filler").spawn(move || filler.filler.run())?,
        indexer: thread("log-indexer").spawn(move || indexer.indexer.run(&indexer.library))?,
        answerer: thread("log-answerer").spawn(move || answered.into_iter().for_each(Answers::send))?,
        writer: thread("log-writer").spawn(move || writer.run(answers))?,
    })
}

impl Handle {
    pub(crate) fn library(&self) -> &Library {
        match &self.mode {
            Mode::Writing(core) => &core.library,
            Mode::Reading(library) => library,
        }
    }

    /// `None` = read-only.
    pub(crate) const fn core(&self) -> Option<&Arc<Core>> {
        match &self.mode {
            Mode::Writing(core) => Some(core),
            Mode::Reading(_) => None,
        }
    }

    fn close(&self) {
        let (Some(core), Some(threads)) = (self.core(), self.threads.lock().take()) else {
            return;
        };
        core.queue.close();
        let written = threads.writer.join();
        let is_durable = matches!(written, Ok(true));
        let joined = written.and(threads.answerer.join());
        core.filler.stop();
        let joined = joined.and(threads.filler.join());
        if is_durable {
            core.library.index.freeze(&mut core.library.index.live.write());
        }
        let stored = core.indexer.stop(CLOSE_WAIT_MAX);
        // A thread that hangs in sled is left behind; the process is about to end.
        let joined = if stored { joined.and(threads.indexer.join()) } else { joined };
        if !stored || joined.is_err() {
            warn!(stored, panicked = joined.is_err(), "the store was not closed cleanly, the next start takes longer");
        }
        core.library.index.store.close();
        drop(core.lock.lock().take());
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}
