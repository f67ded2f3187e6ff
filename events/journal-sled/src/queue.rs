//! The bounded queue in front of the writer, and the gate that closes it.
//!
//! Invariants: the order of calls is the order of the log; pushing never waits for the disk; while the gate is not open
//! nothing waits.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use events_journal::{AppendError, Appended, Refusal, log::APPEND_QUEUE_LEN_MAX};
use events_model::{CommitId, StreamId};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::{
    clock,
    hash::Keys,
    limit::{APPEND_QUEUE_BYTES_MAX, LINGER_LEN_MAX, LINGER_MAX},
};

/// Answers an append.
pub(crate) type Reply = oneshot::Sender<Result<Appended, AppendError>>;

/// An append that waits: encoded, hashed and checked as far as it can be without the log.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) stream: StreamId,
    pub(crate) commit_id: CommitId,
    pub(crate) keys: Keys,
    pub(crate) expected: u64,
    pub(crate) last_version: u64,
    pub(crate) commit: Vec<u8>,
    pub(crate) body_crc: u32,
    pub(crate) reply: Reply,
}

#[derive(Debug)]
enum Gate {
    Open,
    Refusing(Refusal),
    Closed,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<Pending>,
    bytes: usize,
    gate: Gate,
    writer_sleeps: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    len: AtomicUsize,
}

impl Queue {
    pub(crate) fn new() -> Self {
        let state = State { waiting: VecDeque::new(), bytes: 0, gate: Gate::Open, writer_sleeps: false };
        Self { state: Mutex::new(state), wake: Condvar::new(), len: AtomicUsize::new(0) }
    }

    /// Takes a place in the order, or answers at once.
    pub(crate) fn push(&self, pending: Pending) {
        let mut state = self.state.lock();
        let waiting = state.waiting.len();
        let refused = match &state.gate {
            Gate::Open if waiting >= APPEND_QUEUE_LEN_MAX || state.bytes >= APPEND_QUEUE_BYTES_MAX => {
                AppendError::Busy { waiting }
            }
            Gate::Open => {
                state.bytes += pending.commit.len();
                state.waiting.push_back(pending);
                self.len.store(waiting + 1, Ordering::Release);
                let wake = std::mem::take(&mut state.writer_sleeps);
                drop(state);
                if wake {
                    self.wake.notify_one();
                }
                return;
            }
            Gate::Refusing(refusal) => AppendError::Refused(refusal.clone()),
            Gate::Closed => AppendError::Refused(Refusal::Closed),
        };
        drop(state);
        // The caller may have dropped the receipt.
        drop(pending.reply.send(Err(refused)));
    }

    /// Takes everything that waits, after a short wait for as many as came last time; `false` = closed and empty.
    ///
    /// Those who were just answered append again within microseconds; without the wait they would be split over two
    /// barriers, each as dear as one.
    pub(crate) fn take(&self, batch: &mut VecDeque<Pending>, last_len: usize) -> bool {
        let mut state = self.state.lock();
        while state.waiting.is_empty() {
            if matches!(state.gate, Gate::Closed) {
                return false;
            }
            state.writer_sleeps = true;
            self.wake.wait(&mut state);
        }
        if state.waiting.len() < last_len && last_len <= LINGER_LEN_MAX && matches!(state.gate, Gate::Open) {
            drop(state);
            let start = clock::now();
            while self.len.load(Ordering::Acquire) < last_len && start.elapsed() < LINGER_MAX {
                std::thread::yield_now();
            }
            state = self.state.lock();
        }
        std::mem::swap(&mut state.waiting, batch);
        state.bytes = 0;
        self.len.store(0, Ordering::Release);
        true
    }

    /// Refuses from now on, and hands out all that wait.
    pub(crate) fn refuse(&self, refusal: &Refusal) -> VecDeque<Pending> {
        let mut state = self.state.lock();
        if !matches!(state.gate, Gate::Closed) {
            state.gate = Gate::Refusing(refusal.clone());
        }
        state.bytes = 0;
        self.len.store(0, Ordering::Release);
        std::mem::take(&mut state.waiting)
    }

    /// Accepts again.
    pub(crate) fn accept(&self) {
        let mut state = self.state.lock();
        if !matches!(state.gate, Gate::Closed) {
            state.gate = Gate::Open;
        }
    }

    /// Accepts nothing more; what waits is still taken.
    pub(crate) fn close(&self) {
        self.state.lock().gate = Gate::Closed;
        self.wake.notify_all();
    }

    /// Waits before the next attempt to go on; `false` = closed meanwhile.
    pub(crate) fn pause(&self, pause: Duration) -> bool {
        let mut state = self.state.lock();
        let open = |state: &State| !matches!(state.gate, Gate::Closed);
        if open(&state) {
            self.wake.wait_for(&mut state, pause);
        }
        open(&state)
    }
}

#[cfg(test)]
mod tests {
    use events_journal::Receipt;

    use super::*;

    fn push(queue: &Queue, commit: Vec<u8>) -> Receipt {
        let (reply, receipt) = Receipt::channel();
        queue.push(Pending {
            stream: StreamId::new("tenant/acme").unwrap(),
            commit_id: CommitId::new("c").unwrap(),
            keys: Keys::default(),
            expected: 0,
            last_version: 1,
            commit,
            body_crc: 0,
            reply,
        });
        receipt
    }

    #[test]
    fn a_full_queue_is_busy_by_number_and_by_bytes_and_has_room_when_it_was_taken() {
        let queue = Queue::new();
        let mut batch = VecDeque::new();
        for len in [APPEND_QUEUE_LEN_MAX, APPEND_QUEUE_BYTES_MAX / (1024 * 1024)] {
            let bytes = if len == APPEND_QUEUE_LEN_MAX { 0 } else { 1024 * 1024 };
            let held: Vec<_> = (0..len).map(|_| push(&queue, vec![0; bytes])).collect();
            let error = push(&queue, Vec::new()).wait().unwrap_err();
            assert!(matches!(error, AppendError::Busy { waiting } if waiting == len), "{error}");
            assert!(queue.take(&mut batch, 0));
            assert_eq!((batch.len(), held.len()), (len, len));
            batch.clear();
        }
    }

    #[test]
    fn a_refusing_queue_hands_out_what_waits_and_a_closed_one_stays_closed() {
        let queue = Queue::new();
        let waits = push(&queue, Vec::new());
        let mut out = queue.refuse(&Refusal::DiskFull);
        assert_eq!(out.len(), 1);
        out.clear();
        waits.wait().unwrap_err();
        let error = push(&queue, Vec::new()).wait().unwrap_err();
        assert!(matches!(error, AppendError::Refused(Refusal::DiskFull)), "{error}");
        queue.accept();
        let _accepted = push(&queue, Vec::new());
        queue.close();
        queue.accept();
        let error = push(&queue, Vec::new()).wait().unwrap_err();
        assert!(matches!(error, AppendError::Refused(Refusal::Closed)), "{error}");
        let mut batch = VecDeque::new();
        assert!(queue.take(&mut batch, 0), "what was accepted is still taken");
        batch.clear();
        assert!(!queue.take(&mut batch, 0));
    }
}
