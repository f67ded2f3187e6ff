//! What was served and what is billed for it.
//!
//! Invariants: every chat request is counted once and ends once, whatever happens to it: an [`Attempt`] that is
//! dropped before its end was reported is a client that went away (or a simulator that was stopped). So at any time
//! `requests` is the sum of `in_flight` and the outcomes, and when nothing is in flight the billed tokens of
//! [`Stats`] are the sums over all attempts. A bill is settled before the last byte of its response leaves, so a
//! caller that has read a whole response finds it settled.
//! Nothing is stored on disk.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
    sync::Arc,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Counts since the start, one consistent picture; `/stats` is this as JSON. Tokens are billed tokens of attempts that
/// have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Chat requests that arrived.
    pub requests: u64,
    /// Of these, not ended yet.
    pub in_flight: u64,
    /// Ended: answered to the end.
    pub completed: u64,
    /// Ended: broken off by the simulator in the middle.
    pub cut: u64,
    /// Ended: the client went away first (or the simulator was stopped).
    pub client_gone: u64,
    /// Ended: refused with 400, 404 or 413.
    pub bad_request: u64,
    /// Ended: refused with 401.
    pub unauthorized: u64,
    /// Ended: refused with 429.
    pub rate_limited: u64,
    /// Ended: refused with 500.
    pub error_500: u64,
    /// Ended: refused with 503.
    pub error_503: u64,
    /// Accepted requests that asked for a stream.
    pub streamed: u64,
    /// Responses that stalled in the middle.
    pub stalled: u64,
    /// Responses that contained invalid JSON.
    pub malformed: u64,
    /// Responses planned to go on beyond `max_tokens`.
    pub overrun: u64,
    /// Ended attempts that were billed.
    pub billed: u64,
    /// Billed prompt tokens.
    pub prompt_tokens: u64,
    /// Billed completion tokens.
    pub completion_tokens: u64,
}

/// How far the request with some client request id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// At least one attempt has not ended.
    Running,
    /// Answered to the end.
    Completed,
    /// Broken off by the simulator.
    Cut,
    /// The client went away first.
    ClientGone,
    /// Refused before generation.
    Refused,
}

/// What is known of one client request id, summed over its attempts; the body of `GET /v1/usage/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The client request id.
    pub id: String,
    /// `Running` while any attempt runs, else how the attempt that ended last ended.
    pub status: Status,
    /// Prompt tokens of accepted attempts; final once nothing runs.
    pub prompt_tokens: u64,
    /// Tokens generated so far; final once nothing runs.
    pub completion_tokens: u64,
    /// Whether nothing runs and these tokens are on the bill.
    pub billed: bool,
    /// Attempts seen with this id.
    pub attempts: u32,
}

/// Why a request was refused before generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    BadRequest,
    Unauthorized,
    RateLimited,
    Error500,
    Error503,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Completed,
    Cut,
    ClientGone,
    Refused(Refused),
}

/// A fault that does not end a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Stalled,
    Malformed,
    Overrun,
}

#[derive(Debug)]
struct Record {
    attempts: u32,
    running: u32,
    accepted: u32,
    last: Status,
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// The books of one simulator.
#[derive(Debug)]
pub(super) struct Ledger {
    stats: Mutex<Stats>,
    records: Mutex<Bounded<Arc<str>, Arc<Mutex<Record>>>>,
    /// How often each body without a client request id was seen, by its hash.
    bodies: Mutex<Bounded<u64, u32>>,
}

impl Ledger {
    /// Empty books that remember `records_max` client request ids (and as many bodies).
    pub(super) fn new(records_max: usize) -> Self {
        Self {
            stats: Mutex::default(),
            records: Mutex::new(Bounded::new(records_max)),
            bodies: Mutex::new(Bounded::new(records_max)),
        }
    }

    /// Opens the books for one request.
    pub(super) fn begin(self: &Arc<Self>, client_id: Option<&str>) -> Attempt {
        {
            let mut stats = self.stats.lock();
            stats.requests += 1;
            stats.in_flight += 1;
        }
        let mut number = 1;
        let record = client_id.map(|id| {
            let record = Arc::clone(self.records.lock().get_or_insert_with(id.into(), || {
                let empty = Record {
                    attempts: 0,
                    running: 0,
                    accepted: 0,
                    last: Status::Running,
                    prompt_tokens: 0,
                    completion_tokens: 0,
                };
                Arc::new(Mutex::new(empty))
            }));
            {
                let mut open = record.lock();
                open.attempts = open.attempts.saturating_add(1);
                open.running += 1;
                number = open.attempts;
            }
            record
        });
        let ledger = Arc::clone(self);
        Attempt { ledger, record, number, accepted: false, prompt_tokens: 0, generated: 0, ended: false }
    }

    /// Counts one more occurrence of a body, from 1.
    pub(super) fn occurrence(&self, body: u64) -> u32 {
        let mut bodies = self.bodies.lock();
        let count = bodies.get_or_insert_with(body, || 0);
        *count = count.wrapping_add(1);
        *count
    }

    /// The counts.
    pub(super) fn stats(&self) -> Stats {
        *self.stats.lock()
    }

    /// What is known of a client request id.
    pub(super) fn usage(&self, id: &str) -> Option<Usage> {
        let record = Arc::clone(self.records.lock().entries.get(id)?);
        let record = record.lock();
        Some(Usage {
            id: id.to_owned(),
            status: if record.running > 0 { Status::Running } else { record.last },
            prompt_tokens: record.prompt_tokens,
            completion_tokens: record.completion_tokens,
            billed: record.running == 0 && record.accepted > 0,
            attempts: record.attempts,
        })
    }
}

/// One request, from its first byte to its end. Dropping it ends it as [`Outcome::ClientGone`].
#[derive(Debug)]
pub(super) struct Attempt {
    ledger: Arc<Ledger>,
    record: Option<Arc<Mutex<Record>>>,
    number: u32,
    accepted: bool,
    prompt_tokens: u64,
    generated: u64,
    ended: bool,
}

impl Attempt {
    /// Which attempt of its client request id this is, from 1.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Tokens generated so far.
    pub(super) fn generated(&self) -> u64 {
        self.generated
    }

    /// Prompt tokens on the bill.
    pub(super) fn prompt_tokens(&self) -> u64 {
        self.prompt_tokens
    }

    /// Generation begins: from here on the prompt is billed, however this ends.
    pub(super) fn accept(&mut self, prompt_tokens: u64, streamed: bool) {
        self.accepted = true;
        self.prompt_tokens = prompt_tokens;
        self.ledger.stats.lock().streamed += u64::from(streamed);
        if let Some(record) = &self.record {
            let mut record = record.lock();
            record.accepted += 1;
            record.prompt_tokens += prompt_tokens;
        }
    }

    /// One token was generated.
    pub(super) fn token(&mut self) {
        self.generated += 1;
        if let Some(record) = &self.record {
            record.lock().completion_tokens += 1;
        }
    }

    /// A fault was put into the response.
    pub(super) fn note(&self, fault: Fault) {
        let mut stats = self.ledger.stats.lock();
        match fault {
            Fault::Stalled => stats.stalled += 1,
            Fault::Malformed => stats.malformed += 1,
            Fault::Overrun => stats.overrun += 1,
        }
    }

    /// Closes the books; only the first end counts.
    pub(super) fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let mut stats = self.ledger.stats.lock();
        stats.in_flight -= 1;
        let (count, status) = match outcome {
            Outcome::Completed => (&mut stats.completed, Status::Completed),
            Outcome::Cut => (&mut stats.cut, Status::Cut),
            Outcome::ClientGone => (&mut stats.client_gone, Status::ClientGone),
            Outcome::Refused(Refused::BadRequest) => (&mut stats.bad_request, Status::Refused),
            Outcome::Refused(Refused::Unauthorized) => (&mut stats.unauthorized, Status::Refused),
            Outcome::Refused(Refused::RateLimited) => (&mut stats.rate_limited, Status::Refused),
            Outcome::Refused(Refused::Error500) => (&mut stats.error_500, Status::Refused),
            Outcome::Refused(Refused::Error503) => (&mut stats.error_503, Status::Refused),
        };
        *count += 1;
        stats.billed += u64::from(self.accepted);
        stats.prompt_tokens += self.prompt_tokens;
        stats.completion_tokens += self.generated;
        drop(stats);
        if let Some(record) = &self.record {
            let mut record = record.lock();
            record.running -= 1;
            record.last = status;
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.end(Outcome::ClientGone);
    }
}

/// A map that forgets its oldest entry when it is full. An entry that is still in use elsewhere (by `Arc`) lives on
/// there; it only can no longer be found.
#[derive(Debug)]
struct Bounded<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
    max: usize,
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), max }
    }

    fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if self.entries.len() >= self.max
            && !self.entries.contains_key(&key)
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        match self.entries.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.order.push_back(entry.key().clone());
                entry.insert(make())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_of_one_id_add_up_and_refusals_cost_nothing() {
        let ledger = Arc::new(Ledger::new(10));
        let mut refused = ledger.begin(Some("a"));
        assert_eq!(ledger.usage("a").unwrap().status, Status::Running);
        refused.end(Outcome::Refused(Refused::Error503));
        assert!(!ledger.usage("a").unwrap().billed);
        for outcome in [Outcome::Cut, Outcome::Completed] {
            let mut attempt = ledger.begin(Some("a"));
            attempt.accept(10, true);
            attempt.token();
            attempt.token();
            assert!(!ledger.usage("a").unwrap().billed);
            attempt.end(outcome);
        }
        let usage = ledger.usage("a").unwrap();
        assert_eq!((usage.attempts, usage.prompt_tokens, usage.completion_tokens), (3, 20, 4));
        assert!(usage.billed && usage.status == Status::Completed);
        let stats = ledger.stats();
        assert_eq!((stats.requests, stats.in_flight, stats.billed), (3, 0, 2));
        assert_eq!((stats.prompt_tokens, stats.completion_tokens, stats.streamed), (20, 4, 2));
    }

    #[test]
    fn a_dropped_attempt_is_a_client_that_went_away() {
        let ledger = Arc::new(Ledger::new(10));
        let mut attempt = ledger.begin(Some("a"));
        attempt.accept(5, false);
        attempt.token();
        drop(attempt);
        let usage = ledger.usage("a").unwrap();
        assert_eq!((usage.status, usage.completion_tokens, usage.billed), (Status::ClientGone, 1, true));
        assert_eq!((ledger.stats().client_gone, ledger.stats().in_flight), (1, 0));
    }

    #[test]
    fn the_oldest_record_is_forgotten_and_a_running_one_still_ends() {
        let ledger = Arc::new(Ledger::new(2));
        let oldest = ledger.begin(Some("a"));
        for id in ["b", "b", "c"] {
            ledger.begin(Some(id)).end(Outcome::Completed);
        }
        assert_eq!((ledger.usage("a"), ledger.usage("b").unwrap().attempts), (None, 2));
        assert!(ledger.usage("c").is_some());
        drop(oldest);
        assert_eq!((ledger.stats().in_flight, ledger.stats().completed), (0, 3));
    }
}
