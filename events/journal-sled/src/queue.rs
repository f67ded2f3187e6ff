//! The bounded queue in front of the writer, and the gate that closes it.
//!
//! Callers put the next group together themselves, side by side, while the writer waits for the disk with the one
//! before. What needs a look at the disk or finds no room waits for the writer, and all that come after it wait too.
//!
//! Invariants: the order of calls is the order of the log; pushing never waits for the disk; while the gate is not open
//! nothing waits; a commit that is not in the index yet is in `forming`, in `flying` or in what waits.

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
    group::{Group, Tables},
    hash::Keys,
    index::Index,
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
    /// The caller found no commit with this key below this position; 0 = it does not know.
    pub(crate) absent_below: u64,
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
    /// The next group.
    forming: Group,
    /// Of the group that the writer took last.
    flying: Tables,
    /// Comes behind all of `forming`.
    waiting: VecDeque<Pending>,
    /// The writer has what waited before and looks at it: whatever comes now waits too.
    judging: bool,
    /// Bytes of encoded commits in `forming` and `waiting`.
    bytes: usize,
    gate: Gate,
    writer_sleeps: bool,
}

impl State {
    fn len(&self) -> usize {
        self.forming.len() + self.waiting.len()
    }

    /// Whether it can be seen without a look at the disk that the append adds to the group that is forming.
    fn is_certain(&self, index: &Index, pending: &Pending) -> bool {
        let keys = &pending.keys;
        if self.judging
            || !self.waiting.is_empty()
            || !self.forming.has_room(pending.commit.len())
            || self.forming.tables.may_hold(keys.commit)
            || self.flying.may_hold(keys.commit)
        {
            return false;
        }
        let live = index.live.read();
        let durable = live.head(keys.stream);
        let head = self.forming.tables.head(keys.stream).or_else(|| self.flying.head(keys.stream)).unwrap_or(durable);
        head == pending.expected && (durable == 0 || live.is_still_absent(keys.commit, pending.absent_below))
    }
}

/// Answers those who will not get into a group.
pub(crate) fn refuse_all(waiting: impl IntoIterator<Item = Pending>, refusal: &Refusal) {
    for pending in waiting {
        // The caller may have dropped the receipt.
        drop(pending.reply.send(Err(AppendError::Refused(refusal.clone()))));
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    len: AtomicUsize,
}

impl Queue {
    pub(crate) fn new(next_position: u64) -> Self {
        let state = State {
            forming: Group::new(next_position),
            flying: Tables::default(),
            waiting: VecDeque::new(),
            judging: false,
            bytes: 0,
            gate: Gate::Open,
            writer_sleeps: false,
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), len: AtomicUsize::new(0) }
    }

    /// Takes a place in the order, or answers at once.
    pub(crate) fn push(&self, index: &Index, pending: Pending) {
        let mut state = self.state.lock();
        let waiting = state.len();
        let refused = match &state.gate {
            Gate::Open if waiting >= APPEND_QUEUE_LEN_MAX || state.bytes >= APPEND_QUEUE_BYTES_MAX => {
                AppendError::Busy { waiting }
            }
            Gate::Open => {
                state.bytes += pending.commit.len();
                if state.is_certain(index, &pending) {
                    state.forming.add(pending);
                } else {
                    state.waiting.push_back(pending);
                }
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

    /// Takes the next group and what waited behind it, after a short wait for as many as came last time;
    /// `false` = closed and empty. The group begins at `position`.
    ///
    /// Those who were just answered append again within microseconds; without the wait they would be split over two
    /// barriers, each as dear as one.
    pub(crate) fn take(
        &self,
        (position, last_len): (u64, usize),
        group: &mut Group,
        waited: &mut VecDeque<Pending>,
    ) -> bool {
        let mut state = self.state.lock();
        while state.len() == 0 {
            if matches!(state.gate, Gate::Closed) {
                return false;
            }
            state.writer_sleeps = true;
            self.wake.wait(&mut state);
        }
        if state.len() < last_len && last_len <= LINGER_LEN_MAX && matches!(state.gate, Gate::Open) {
            drop(state);
            let start = clock::now();
            while self.len.load(Ordering::Acquire) < last_len && start.elapsed() < LINGER_MAX {
                std::thread::yield_now();
            }
            state = self.state.lock();
        }
        std::mem::swap(&mut state.forming, group);
        if group.len() == 0 {
            // Callers could form nothing behind the group before, so nobody told it where it begins.
            group.begin(position);
        }
        self.take_waiting(&mut state, group, waited);
        true
    }

    /// After what waited was judged: takes what has come meanwhile; `false` = nothing, callers form the next group.
    pub(crate) fn take_more(&self, group: &mut Group, waited: &mut VecDeque<Pending>) -> bool {
        self.take_waiting(&mut self.state.lock(), group, waited)
    }

    fn take_waiting(&self, state: &mut State, group: &mut Group, waited: &mut VecDeque<Pending>) -> bool {
        std::mem::swap(&mut state.waiting, waited);
        state.bytes = 0;
        self.len.store(0, Ordering::Release);
        state.judging = !waited.is_empty();
        if !state.judging {
            std::mem::swap(&mut state.flying, &mut group.tables);
            state.forming.begin(group.next_position());
        }
        state.judging
    }

    /// Refuses from now on, also all that wait.
    pub(crate) fn refuse(&self, refusal: &Refusal) {
        let mut state = self.state.lock();
        if !matches!(state.gate, Gate::Closed) {
            state.gate = Gate::Refusing(refusal.clone());
        }
        state.bytes = 0;
        self.len.store(0, Ordering::Release);
        let (forming, waiting) = (state.forming.take_answers(), std::mem::take(&mut state.waiting));
        drop(state);
        let error = AppendError::Refused(refusal.clone());
        forming.fail(&error, refusal);
        refuse_all(waiting, refusal);
    }

    /// Accepts again; the next commit gets this position.
    pub(crate) fn accept(&self, next_position: u64) {
        let mut state = self.state.lock();
        if matches!(state.gate, Gate::Refusing(_)) {
            state.gate = Gate::Open;
            state.judging = false;
            state.flying.clear();
            state.forming.begin(next_position);
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
    use std::{path::PathBuf, sync::Arc};

    use events_journal::Receipt;

    use super::*;
    use crate::{format::LogKey, run_store::RunStore};

    /// An empty log's queue.
    struct Bench {
        queue: Queue,
        index: Index,
        group: Group,
        waited: VecDeque<Pending>,
    }

    impl Bench {
        fn new() -> Self {
            let store = Arc::new(RunStore::new(PathBuf::new()));
            let index = Index::new(LogKey::new([7; 16]), store, Vec::new(), 1);
            Self { queue: Queue::new(1), index, group: Group::new(1), waited: VecDeque::new() }
        }

        fn push(&self, expected: u64, id: u64, bytes: usize) -> Receipt {
            let (reply, receipt) = Receipt::channel();
            let keys = Keys { stream: (1, 1), commit: id, episode: (1, 1) };
            let pending = Pending {
                stream: StreamId::new("tenant/acme").unwrap(),
                commit_id: CommitId::new(&format!("c-{id}")).unwrap(),
                keys,
                absent_below: 1,
                expected,
                last_version: expected + 1,
                commit: vec![0; bytes],
                body_crc: 0,
                reply,
            };
            self.queue.push(&self.index, pending);
            receipt
        }

        fn take(&mut self) -> bool {
            let position = self.group.next_position();
            self.queue.take((position, 0), &mut self.group, &mut self.waited)
        }
    }

    #[test]
    fn a_full_queue_is_busy_by_number_and_by_bytes_and_has_room_when_it_was_taken() {
        for len in [APPEND_QUEUE_LEN_MAX, APPEND_QUEUE_BYTES_MAX / (1024 * 1024)] {
            let mut bench = Bench::new();
            let bytes = if len == APPEND_QUEUE_LEN_MAX { 0 } else { 1024 * 1024 };
            let held: Vec<_> = (0..len as u64).map(|n| bench.push(n, n, bytes)).collect();
            let error = bench.push(len as u64, len as u64, 0).wait().unwrap_err();
            assert!(matches!(error, AppendError::Busy { waiting } if waiting == len), "{error}");
            assert!(bench.take());
            assert_eq!((bench.group.len() + bench.waited.len(), held.len()), (len, len));
        }
    }

    #[test]
    fn callers_form_the_next_group_behind_the_one_that_is_being_written() {
        let mut bench = Bench::new();
        let _first = [bench.push(0, 10, 5), bench.push(1, 11, 5)];
        assert!(bench.take());
        assert_eq!((bench.group.len(), bench.waited.len(), bench.group.next_position()), (2, 0, 3));
        // The index knows nothing of them yet.
        let _second = bench.push(2, 12, 5);
        assert!(bench.take());
        assert_eq!((bench.group.len(), bench.waited.len(), bench.group.next_position()), (1, 0, 4));
    }

    #[test]
    fn what_is_not_certain_waits_for_the_writer_and_so_does_all_that_comes_behind_it() {
        // A repeated commit id in the group that is forming, the same in the one before, and a wrong version.
        for (expected, id) in [(2, 11), (2, 10), (7, 12)] {
            let mut bench = Bench::new();
            let _flying = bench.push(0, 10, 5);
            assert!(bench.take());
            let _forming = bench.push(1, 11, 5);
            let _uncertain = bench.push(expected, id, 5);
            let _behind = bench.push(2, 13, 5);
            assert!(bench.take());
            assert_eq!((bench.group.len(), bench.waited.len()), (1, 2), "{id}");
            let _while_judged = bench.push(3, 14, 5);
            bench.waited.clear();
            assert!(bench.queue.take_more(&mut bench.group, &mut bench.waited));
            assert_eq!(bench.waited.len(), 1, "{id}");
            bench.waited.clear();
            assert!(!bench.queue.take_more(&mut bench.group, &mut bench.waited));
            let _certain_again = bench.push(2, 15, 5);
            assert!(bench.take());
            assert_eq!((bench.group.len(), bench.waited.len()), (1, 0), "{id}");
        }
    }

    #[test]
    fn a_refusing_queue_answers_what_waits_and_a_closed_one_stays_closed() {
        let mut bench = Bench::new();
        let waits = [bench.push(0, 1, 0), bench.push(9, 2, 0)];
        bench.queue.refuse(&Refusal::DiskFull);
        for receipt in waits {
            let error = receipt.wait().unwrap_err();
            assert!(matches!(error, AppendError::Refused(Refusal::DiskFull)), "{error}");
        }
        let error = bench.push(0, 3, 0).wait().unwrap_err();
        assert!(matches!(error, AppendError::Refused(Refusal::DiskFull)), "{error}");
        bench.queue.accept(1);
        let _accepted = bench.push(0, 4, 0);
        bench.queue.close();
        bench.queue.accept(1);
        let error = bench.push(1, 5, 0).wait().unwrap_err();
        assert!(matches!(error, AppendError::Refused(Refusal::Closed)), "{error}");
        assert!(bench.take(), "what was accepted is still taken");
        drop(bench.group.take_answers());
        assert!(!bench.take());
    }
}
