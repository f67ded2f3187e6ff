//! The reference for appends: the least that can be done to make records durable together.
//!
//! A queue under a mutex, a thread that takes all that waits, one write and one `fdatasync`, then the answers. No index,
//! no checksum, no order to keep, no recovery; the file was filled with zeros before, so that no metadata is synced.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    thread::JoinHandle,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// Room of the file, bytes; it is written round and round.
const FILE_BYTES: u64 = 256 * 1024 * 1024;
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

/// The loop and its thread.
#[derive(Debug)]
pub(super) struct Bare {
    shared: Arc<Shared>,
    thread: JoinHandle<io::Result<u64>>,
}

impl Bare {
    /// Makes the file and starts the thread.
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let zeros = vec![0; FILL_BYTES];
        for offset in (0..FILE_BYTES).step_by(FILL_BYTES) {
            file.write_all_at(&zeros, offset)?;
        }
        file.sync_all()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("bare".to_owned()).spawn(move || serve(&file, &theirs))?;
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

fn serve(file: &File, shared: &Shared) -> io::Result<u64> {
    let (mut taken, mut buffer) = (Queue::default(), Vec::new());
    let (mut offset, mut count) = (0, 0);
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
        if offset + buffer.len() as u64 > FILE_BYTES {
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
