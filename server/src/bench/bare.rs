//! The references for appends: the least that can be done to make records durable together.
//!
//! A queue under a mutex, a thread that takes all that waits, one write and one `fdatasync`, then the answers. No index,
//! no checksum, no order to keep, no recovery. One writes a log of segments that were allocated before; the other
//! overwrites one file round and round, which no log can do: the disk at its best, nothing new to find room for.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

use parking_lot::{Condvar, Mutex};
use rustix::fs::FallocateFlags;
use tokio::sync::oneshot;

/// Room of the file that is written round and round, bytes.
const RING_BYTES: u64 = 256 * 1024 * 1024;
/// Room of a segment, bytes; as the store's.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Zeros written at a time, bytes.
const FILL_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug, Default)]
struct Queue {
    records: Vec<Vec<u8>>,
    answers: Vec<oneshot::Sender<()>>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

/// Where the records go.
#[derive(Debug)]
pub(super) enum Place {
    /// One file, filled with zeros before and overwritten.
    Ring(PathBuf),
    /// Segments in a directory.
    Segments(PathBuf),
}

impl Place {
    /// The file to go on with, from its start.
    fn next(&self, number: u64) -> io::Result<File> {
        let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        match self {
            Self::Ring(path) if number > 0 => OpenOptions::new().write(true).open(path),
            Self::Ring(path) => {
                let file = create(path)?;
                let zeros = vec![0; FILL_BYTES];
                for offset in (0..RING_BYTES).step_by(FILL_BYTES) {
                    file.write_all_at(&zeros, offset)?;
                }
                file.sync_all()?;
                Ok(file)
            }
            Self::Segments(dir) => {
                fs::create_dir_all(dir)?;
                let file = create(&dir.join(format!("{number:06}")))?;
                rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SEGMENT_BYTES)?;
                file.sync_all()?;
                Ok(file)
            }
        }
    }

    const fn bytes(&self) -> u64 {
        match self {
            Self::Ring(_) => RING_BYTES,
            Self::Segments(_) => SEGMENT_BYTES,
        }
    }
}

/// The loop and its thread.
#[derive(Debug)]
pub(super) struct Bare {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<u64>>,
}

impl Bare {
    /// Makes the first file and starts the thread.
    pub(super) fn start(place: Place) -> io::Result<Self> {
        let file = place.next(0)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("bare".to_owned()).spawn(move || serve(&place, file, &theirs))?;
        Ok(Self { shared, thread })
    }

    /// Queues a record; the answer comes when it is durable.
    pub(super) fn append(&self, record: Vec<u8>) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut queue = self.shared.queue.lock();
        queue.records.push(record);
        queue.answers.push(sender);
        drop(queue);
        self.shared.filled.notify_one();
        receiver
    }

    /// Ends the thread; returns how many records it wrote.
    pub(super) fn close(self) -> io::Result<u64> {
        self.shared.queue.lock().closed = true;
        self.shared.filled.notify_one();
        self.thread.join().map_err(|_| io::Error::other("the thread of the reference panicked"))?
    }
}

fn serve(place: &Place, mut file: File, shared: &Shared) -> io::Result<u64> {
    let (mut taken, mut buffer) = (Queue::default(), Vec::new());
    let (mut offset, mut count, mut files) = (0, 0, 1);
    loop {
        let mut queue = shared.queue.lock();
        while queue.records.is_empty() && !queue.closed {
            shared.filled.wait(&mut queue);
        }
        std::mem::swap(&mut *queue, &mut taken);
        queue.closed = taken.closed;
        drop(queue);
        if taken.records.is_empty() {
            return Ok(count);
        }
        buffer.clear();
        count += taken.records.len() as u64;
        taken.records.drain(..).for_each(|record| buffer.extend_from_slice(&record));
        if offset + buffer.len() as u64 > place.bytes() {
            file = place.next(files)?;
            files += 1;
            offset = 0;
        }
        file.write_all_at(&buffer, offset)?;
        file.sync_data()?;
        offset += buffer.len() as u64;
        for answer in taken.answers.drain(..) {
            // Whoever gave up waiting needs no answer.
            answer.send(()).ok();
        }
    }
}
